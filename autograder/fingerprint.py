"""What a grade was made from, as digests: while they stay the same, so does the grade."""

import hashlib
import platform
from functools import cache
from importlib import resources
from importlib.metadata import version

import torch

from autograder.cells import source_of
from autograder.check import Asserts, Check, Exercise
from autograder.master import Master
from autograder.sandbox import Limits


def digest(*texts: str) -> str:
    """One digest of several texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def of_notebook(master: Master, limits: Limits) -> str:
    """Of all that the grades of a notebook depend on, but for its checks and the submission.

    Its prose and its points are not in it: to mend a word regrades nobody.
    """
    cells = [
        (cell.source, cell.metadata.get("nbgrader", {}).get("grade_id"), cell.metadata.get("tags"))
        for cell in master.notebook.cells
        if cell.cell_type == "code"
    ]
    parts = cells, master.beside, sorted(master.modules.items()), limits, versions()
    return digest(_engine(), *map(repr, parts))


def of_exercise(exercise: Exercise) -> str:
    """Of all that an exercise itself brings: its check, down to the functions that it uses.

    A check's variants are not in it: they are for its tests.
    """
    if isinstance(exercise, Check):
        functions = [exercise.reference, exercise.cases, exercise.probe, exercise.reading]
        sources = [source_of(function, "f") for function in functions if function]
        sources += [source_of(wrong.wrong, "f") for wrong in exercise.misconceptions]
        words = [(wrong.title, wrong.hint) for wrong in exercise.misconceptions]
        facts = exercise.points, sorted(exercise.parts.items()), exercise.tolerance, words
        return digest(*sources, repr(facts))
    if isinstance(exercise, Asserts):
        return digest(exercise.source, repr((exercise.points, sorted(exercise.hidden))))
    return digest(repr(exercise))


@cache
def versions() -> str:
    """What judged, for people: "llmkit-course 0.1.0, Python 3.11.7, torch 2.13.0+cpu"."""
    python = platform.python_version()
    return f"llmkit-course {version('llmkit-course')}, Python {python}, torch {torch.__version__}"


@cache
def _engine() -> str:
    """Digest of the grader's own code, but for the checks and the demo's class."""
    package = resources.files("autograder")
    paths = sorted(path for path in package.rglob("*.py"))
    apart = (package / "checks", package / "demo")
    return digest(*(p.read_text(encoding="utf-8") for p in paths if p.parent not in apart))
