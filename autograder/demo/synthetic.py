"""A class of synthetic students, each built to score exactly so much.

It is made of the checks themselves (references, variants, misconceptions), so that it grows with
the course.
"""

import copy
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from nbformat import NotebookNode

from autograder.build import build, instructor_notebook, release
from autograder.cells import literal, source_of
from autograder.check import Check, Exercise, Misconception
from autograder.course import SOLUTION, Chapter, chapters, checks_of, graded_call
from autograder.demo.attacks import ATTACKS

MISTAKEN = 12  # students of a chapter who share its misconceptions, at least
LOOPING = ("01", "02", "08")  # chapters: each of these takes the whole limit of a cell
MADE = ("submitted", "autograded", "feedback", "verdicts", "solutions", "notebooks")


@dataclass(frozen=True)
class Synthetic:
    """One submission, and what it was built to score.

    expected:   exercise -> the points that it must earn
    diagnosis:  exercise -> the title of the misconception that must be found
    """

    student: str
    chapter: str
    kind: str  # "perfect", "style", "misconception", "blank", …, "hostile"
    notebook: NotebookNode
    expected: Mapping[str, int]
    diagnosis: Mapping[str, str]

    @property
    def points(self) -> int:
        return sum(self.expected.values())


def make_class(course: Path, mistaken: int | None = None) -> list[Synthetic]:
    """The class of every chapter in `course`; each attack is met in one of the chapters.

    mistaken:  at most so many students of a chapter share its misconceptions; all that it takes
               to hold every one of them otherwise
    """
    rooms = [_Room(course, chapter) for chapter in chapters(course)]
    students = [student for room in rooms for student in room.students(mistaken)]
    for number, attack in enumerate(ATTACKS if rooms else ()):
        room = rooms[number % len(rooms)]
        target = room.checks[number // len(rooms) % len(room.checks)]
        hostile = room.student(
            f"hostile-{attack.name}", "hostile", {target.name: attack.source(target)}
        )
        attack.tamper(hostile.notebook, room.place(target.name))
        students.append(hostile)
    return students


def write_class(course: Path, target: Path, students: Iterable[Synthetic]) -> None:
    """A course's folder with the chapters of `course` and these submissions, ready for grading.

    What an earlier class left in `target` goes first, its grades too.
    """
    if target.resolve() == course.resolve():
        raise ValueError(f"{target} holds the course itself: name another folder for the class.")
    for name in MADE:
        shutil.rmtree(target / name, ignore_errors=True)
    (target / "gradebook.db").unlink(missing_ok=True)
    for chapter in chapters(course):
        copied = chapter.source(target)
        copied.parent.mkdir(parents=True)
        shutil.copyfile(chapter.source(course), copied)
    settings = (course / "nbgrader_config.py").read_text(encoding="utf-8")
    settings += 'c.CourseDirectory.pop("db_url", None)  # a gradebook of its own\n'
    (target / "nbgrader_config.py").write_text(settings, encoding="utf-8")
    build(target)
    for one in students:
        path = target / "submitted" / one.student / one.chapter / f"{one.chapter}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(one.notebook), encoding="utf-8")


class _Room:
    """Where one chapter's submissions are written: it has a right cell for every exercise."""

    def __init__(self, course: Path, chapter: Chapter):
        text = chapter.source(course).read_text(encoding="utf-8")
        self.chapter, self.exercises = chapter, checks_of(chapter.slug)
        self.checks = [e for e in self.exercises.values() if isinstance(e, Check)]
        self.solved = instructor_notebook(text, self.exercises, chapter.source(course).name)
        self.blank = release(self.solved)
        calls = (graded_call(cell.source) for cell in self.blank.cells if cell.cell_type == "code")
        self.variables = dict(call for call in calls if call)
        self.released = {
            n: self.blank.cells[self.place(n + SOLUTION)].source for n in self.exercises
        }
        self.right = {
            e.name: self.cell(e, e.reference if isinstance(e, Check) else e.answer)
            for e in self.exercises.values()
        }

    def cell(self, exercise: Exercise, answer: object) -> str:
        """A cell that answers the exercise with this function, or this value."""
        variable = self.variables[exercise.name]
        if isinstance(exercise, Check):
            return source_of(answer, variable)
        return f"{variable} = {literal(answer)}"

    def place(self, grade_id: str) -> int:
        """The index of the cell with this grade_id."""
        ids = [cell.metadata.get("nbgrader", {}).get("grade_id") for cell in self.blank.cells]
        return ids.index(grade_id)

    def student(
        self,
        name: str,
        kind: str,
        wrong: Mapping[str, str],
        diagnosis: Mapping[str, str] | None = None,
        right: Mapping[str, str] | None = None,
    ) -> Synthetic:
        """A submission that is right but for the cells in `wrong`, which must earn nothing."""
        notebook = copy.deepcopy(self.blank)
        for exercise, source in (self.right | (right or {}) | wrong).items():
            notebook.cells[self.place(exercise + SOLUTION)].source = source
        expected = {n: 0 if n in wrong else e.points for n, e in self.exercises.items()}
        return Synthetic(name, self.chapter.slug, kind, notebook, expected, diagnosis or {})

    def students(self, mistaken: int | None) -> list[Synthetic]:
        """Everybody but the hostile."""
        number = self.chapter.slug[:2]
        everything = {name: e.points for name, e in self.exercises.items()}
        made = [
            Synthetic(
                f"perfect-{number}", self.chapter.slug, "perfect", self.solved, everything, {}
            ),
            self.student(f"blank-{number}", "blank", self.released),
            self.student(
                f"unfinished-{number}", "unfinished", dict(list(self.released.items())[::2])
            ),
            self.student(f"crashing-{number}", "crashing", self._crashes()),
        ]
        if number in LOOPING:
            made.append(self.student(f"looping-{number}", "looping", self._loop()))
        for k in range(3):
            style = {c.name: self.cell(c, c.variants[k % len(c.variants)]) for c in self.checks}
            made.append(self.student(f"style-{number}-{k + 1}", "style", {}, right=style))
        made += islice(self._mistaken(), mistaken)
        return made

    def _mistaken(self) -> Iterator[Synthetic]:
        """A few students who between them hold every misconception, each in one exercise."""
        exercises = self.exercises.values()
        few = max(MISTAKEN, *(len(exercise.misconceptions) for exercise in exercises))
        held: list[dict[str, Misconception]] = [{} for _ in range(few)]
        for place, exercise in enumerate(exercises):
            for k, misconception in enumerate(exercise.misconceptions):
                held[(place + k) % few][exercise.name] = misconception
        for number, mistakes in enumerate(filter(None, held), start=1):
            wrong = {n: self.cell(self.exercises[n], m.wrong) for n, m in mistakes.items()}
            titles = {name: mistake.title for name, mistake in mistakes.items()}
            name = f"mistaken-{self.chapter.slug[:2]}-{number:02}"
            yield self.student(name, "misconception", wrong, titles)

    def _crashes(self) -> dict[str, str]:
        """A cell that raises, a function that raises, and a cell that is not Python."""
        sources = (
            "raise RuntimeError('the cell stops before it defines anything')",
            "def {name}(*args, **kwargs):\n    return 1 / 0",
            "def {name}(*args, **kwargs)\n    return args[0]",
        )
        pairs = zip(self.checks, sources, strict=False)
        return {check.name: source.format(name=check.name) for check, source in pairs}

    def _loop(self) -> dict[str, str]:
        last = self.checks[-1].name
        return {last: f"def {last}(*args, **kwargs):\n    while True:\n        pass"}
