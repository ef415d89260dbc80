"""What a course holds, counted chapter by chapter."""

import re
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from rich.table import Table

from autograder.check import Check
from autograder.course import Chapter, checks_of

MINUTES = re.compile(r"^Difficulty .* · (\d+) minutes? · \d+ points?$", re.MULTILINE)


@dataclass(frozen=True)
class Outline:
    """One chapter in numbers.

    exercises:  functions and classes to write; questions to answer; points of both
    variants:   correct solutions in other styles, beside the reference
    minutes:    for the exercises, as the chapter says
    """

    chapter: str
    exercises: int
    questions: int
    points: int
    misconceptions: int
    variants: int
    minutes: int


def outline(course: Path, chapter: Chapter) -> Outline:
    """Count what a chapter holds; written answers, which a person grades, are left out."""
    graded = checks_of(chapter.slug).values()
    checks = [check for check in graded if isinstance(check, Check)]
    source = chapter.source(course).read_text(encoding="utf-8")
    return Outline(
        chapter.slug,
        len(checks),
        len(graded) - len(checks),
        sum(exercise.points for exercise in graded),
        sum(len(exercise.misconceptions) for exercise in graded),
        sum(len(check.variants) for check in checks),
        sum(map(int, MINUTES.findall(source))),
    )


def as_table(outlines: Iterable[Outline]) -> Table:
    """A line for each chapter, and the sums below."""
    rows = [astuple(one) for one in outlines]
    sums = ("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:]))
    table = Table(box=None, show_footer=True, pad_edge=False)
    for place, field in enumerate(fields(Outline)):
        justify = "right" if place else "left"
        table.add_column(field.name, str(sums[place]), justify=justify, footer_style="bold")
    for row in rows:
        table.add_row(*map(str, row))
    return table
