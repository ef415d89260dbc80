"""The record of one graded notebook: who, which chapter, every verdict, and what it was made from.

It is the truth from which the gradebook, the feedback and the report are written, kept as JSON.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from autograder.verdict import Part, Verdict


class RecordError(RuntimeError):
    """A file is no record: it is damaged, or another version's. The message says what to do."""


@dataclass(frozen=True)
class Graded:
    """One student's notebook of one chapter, graded.

    chapter:     "02-losses"; "ps1/problem1" for a notebook that bears not its assignment's name
    problems:    what was wrong with the file itself, in plain words
    seed:        that the hidden cases were drawn from
    submission:  digest of what was handed in
    basis:       digest of all else that the grades depend on, but for the checks
    checks:      digest of each exercise's check; where all these are the same, so is the grade
    versions:    of what judged, in plain words
    seconds:     wall time that judging took
    """

    student: str
    chapter: str
    verdicts: tuple[Verdict, ...]
    problems: tuple[str, ...] = ()
    seed: str = ""
    submission: str = ""
    basis: str = ""
    checks: Mapping[str, str] = field(default_factory=dict)
    versions: str = ""
    seconds: float = 0.0

    @property
    def assignment(self) -> str:
        return self.chapter.partition("/")[0]

    @property
    def notebook(self) -> str:
        return self.chapter.rpartition("/")[2]

    @property
    def earned(self) -> float:
        return sum(verdict.earned for verdict in self.verdicts)

    @property
    def points(self) -> float:
        return sum(verdict.points for verdict in self.verdicts)

    @property
    def ungraded(self) -> bool:
        """Whether the grader failed at it: it says nothing about the student."""
        return any(verdict.status == "ungraded" for verdict in self.verdicts)

    def changes(self, after: "Graded") -> list[tuple[Verdict | None, Verdict]]:
        """The verdicts that another grade of the same notebook changes: each before and after."""
        before = {verdict.exercise: verdict for verdict in self.verdicts}
        pairs = [(before.get(verdict.exercise), verdict) for verdict in after.verdicts]
        ending = lambda v: v and (v.status, v.earned, v.points)
        return [(b, a) for b, a in pairs if ending(b) != ending(a)]

    def save(self, path: Path) -> None:
        """Write the record as JSON, whole or not at all."""
        write_atomically(path, json.dumps(vars(self), default=vars))

    @classmethod
    def load(cls, path: Path) -> "Graded":
        """The record in a file. Raises RecordError if there is none that this version reads."""
        try:
            data = json.loads(path.read_text())
            verdicts = tuple(
                Verdict(**verdict | {"parts": tuple(Part(**part) for part in verdict["parts"])})
                for verdict in data.pop("verdicts")
            )
            return cls(**data | {"verdicts": verdicts, "problems": tuple(data["problems"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RecordError(
                f"{path} holds no record of a grade that can be read: run `autograder grade`."
            ) from error


def record_path(course: Path, student: str, chapter: str) -> Path:
    """Where the record of one graded notebook is kept: outside of what nbgrader hands back."""
    return course / "verdicts" / chapter / f"{student}.json"


def load_class(course: Path, chapter: str | None = None) -> Iterator[Graded]:
    """Every record of a course (of one chapter), by chapter and student."""
    for path in sorted((course / "verdicts").glob(f"{chapter or '*'}/**/*.json")):
        yield Graded.load(path)


def write_atomically(path: Path, text: str | Iterable[str]) -> None:
    """Write a text, or its pieces, so that a reader, or a crash, never finds half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.writelines([text] if isinstance(text, str) else text)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
