"""The record of one graded notebook: who, which chapter, every verdict, and what it was made from.

It is the truth from which the gradebook, the feedback and the report are written, kept as JSON.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from autograder.verdict import Verdict


class RecordError(RuntimeError):
    """A file is no record: it is damaged, or another version's. The message says what to do."""


@dataclass(frozen=True)
class Graded:
    """One student's notebook of one chapter, graded.

    problems: what was wrong with the file itself, in plain words
    key:      digest of all that the grade depends on; the same key means the same grade
    seconds:  wall time that judging took
    """

    student: str
    chapter: str
    verdicts: tuple[Verdict, ...]
    problems: tuple[str, ...] = ()
    key: str = ""
    seconds: float = 0.0

    @property
    def earned(self) -> int:
        return sum(verdict.earned for verdict in self.verdicts)

    @property
    def points(self) -> int:
        return sum(verdict.points for verdict in self.verdicts)

    def save(self, path: Path) -> None:
        """Write the record as JSON, whole or not at all."""
        write_atomically(path, json.dumps(asdict(self), indent=1, ensure_ascii=True))

    @classmethod
    def load(cls, path: Path) -> "Graded":
        """The record in a file. Raises RecordError if there is none that this version reads."""
        try:
            data = json.loads(path.read_text())
            verdicts = tuple(Verdict(**verdict) for verdict in data.pop("verdicts"))
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
    for path in sorted((course / "verdicts").glob(f"{chapter or '*'}/*.json")):
        yield Graded.load(path)


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader, or a crash, never finds half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
