"""Where a chapter's text treats an exercise: the section, and its lines in the source."""

import re
from dataclasses import dataclass
from pathlib import Path

from autograder.course import chapters, graded_call

HEADING = re.compile(r"(#{1,6}) +(.+?)\s*#*$")
FENCE = re.compile(r" {0,3}(```|~~~)")
TOP = 2  # a section is what stands under a heading of this level


@dataclass(frozen=True)
class Place:
    """Lines of a chapter's source, from 1, up to the cell that checks the exercise."""

    heading: str  # of the section
    file: str
    first: int
    last: int

    @property
    def lines(self) -> str:
        return f"{self.file}:{self.first}–{self.last}"


def find_places(course: Path) -> dict[tuple[str, str], Place]:
    """The place of every exercise in the chapters of a course, by chapter and name."""
    return {
        (chapter.slug, exercise): place
        for chapter in chapters(course)
        for exercise, place in _places(chapter.source(course)).items()
    }


def _places(source: Path) -> dict[str, Place]:
    places, heading, first, code = {}, source.stem, 1, False
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), start=1):
        if FENCE.match(line):
            code = not code
        elif code and (call := graded_call(line)):
            places[call[0]] = Place(heading, source.name, first, number)
        elif not code and (match := HEADING.match(line)) and len(match[1]) <= TOP:
            heading, first = match[2], number
    return places
