"""A notebook that can be graded: what students were given, plus the tests hidden from them.

Grading starts from it, and so does a student's own check of a notebook, where nbgrader need not be
installed. Chapters of ours and assignments of any nbgrader course are graded alike: what differs
follows from what the graded cells hold, and from `Master.chapter`.
"""

import functools
from dataclasses import dataclass

import nbformat
from nbformat import NotebookNode

from autograder.check import Asserts, Exercise
from autograder.course import Chapter, allowed_modules, checks_of, graded_call

HIDDEN = "hidden_lines"  # a cell's metadata: the numbers, from 1, of the lines that no student sees


@dataclass(frozen=True)
class Master:
    """One notebook that can be graded, as data: it can be sent to another process.

    assignment:  "02-losses", "ps1"
    name:        of the notebook: "02-losses", "problem1"
    text:        the notebook without solutions and with hidden tests, as JSON
    beside:      (path, content) of the files that stand in its folder
    chapter:     the chapter that it is; None for an nbgrader assignment
    """

    assignment: str
    name: str
    text: str
    beside: tuple[tuple[str, bytes], ...] = ()
    chapter: Chapter | None = None

    @property
    def own_cells(self) -> bool:
        """Whether cells that a student adds or changes are run: nbgrader promises that they are."""
        return self.chapter is None

    @property
    def modules(self) -> dict[str, str]:
        """What a student may import of llmkit: {"llmkit/losses.py": source text}."""
        return allowed_modules(self.chapter.slug) if self.chapter else {}

    @property
    def label(self) -> str:
        """What records and the report call it: "02-losses", "ps1/problem1"."""
        same = self.assignment == self.name
        return self.assignment if same else f"{self.assignment}/{self.name}"

    @property
    def notebook(self) -> NotebookNode:
        """With hidden tests. Shared: not to be changed."""
        return _parsed(self.text)

    @property
    def released(self) -> NotebookNode:
        """Without hidden tests. Shared: not to be changed."""
        return _released(self.text)

    @property
    def exercises(self) -> dict[str, Exercise]:
        """What is graded without a person, by the graded cell's id, in the notebook's order."""
        return _exercises(self.chapter, self.text)


def chapter_from(released: NotebookNode, chapter: Chapter) -> Master:
    """The master of a chapter whose release is given."""
    text = nbformat.writes(released, version=4)
    return Master(chapter.slug, chapter.slug, text, chapter=chapter)


@functools.cache
def _parsed(text: str) -> NotebookNode:
    return nbformat.reads(text, as_version=4)


@functools.cache
def _released(text: str) -> NotebookNode:
    notebook = nbformat.reads(text, as_version=4)
    for cell in notebook.cells:
        hidden = cell.metadata.pop(HIDDEN, ())
        lines = enumerate(cell.source.split("\n"), start=1)
        cell.source = "\n".join(line for number, line in lines if number not in hidden)
    return notebook


@functools.cache
def _exercises(chapter: Chapter | None, text: str) -> dict[str, Exercise]:
    checks, found = checks_of(chapter.slug) if chapter else {}, {}
    for cell in _parsed(text).cells:
        told = cell.metadata.get("nbgrader", {})
        if cell.cell_type != "code" or not told.get("grade") or told.get("solution"):
            continue
        name, points = told.grade_id, told.points
        call = graded_call(cell.source)
        if call and call[0] in checks:
            found[name] = checks[call[0]]
        else:
            hidden = frozenset(cell.metadata.get(HIDDEN, ()))
            found[name] = Asserts(name, points, cell.source, hidden)
    return found
