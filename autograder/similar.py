"""Which solutions are alike: submissions with each other, and submissions with the reference.

A solution is taken as winnowing takes it (Schleimer, Wilkerson and Aiken, 2003): copydetect drops
comments and white space, puts one letter for each name and string, and cuts what is left into all
its runs of `GRAM` characters. So renaming, reformatting and commenting change nothing.

What counts is what hardly anybody else wrote. Runs of the release's own cells count nothing, nor,
between two students, those of the reference and of the checks' variants: whoever solves the
exercise well writes them. A run that n others wrote, too, counts 1 / (1 + n). The sum over the
exercises in which two solutions agree is their number of rare characters in common.

Alike is not copied: people learn together, and from the same page. The tool shows, a person judges.
"""

import io
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from inspect import getsource
from pathlib import Path

import nbformat
import numpy as np
from copydetect import CodeFingerprint, compare_files
from nbformat import NotebookNode
from nbgrader.coursedir import CourseDirectory
from nbgrader.utils import is_solution
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autograder.build import instructor_notebook
from autograder.cells import source_of
from autograder.check import Check
from autograder.course import SOLUTION
from autograder.display import one_line, printable, templates
from autograder.graded import write_atomically
from autograder.master import Master
from autograder.masters import masters
from autograder.settings import nbgrader_settings
from autograder.submission import find_submissions, read_submission

GRAM = 16  # characters of a run: about six tokens
AGREE = 0.6  # of the rare runs of the one that has fewer: the exercise counts as alike
LEAST = 150  # rare characters in common, some eight lines: what is listed
LONGEST = 20_000  # characters of a solution that are compared
REFERENCE = "the reference"


@dataclass(frozen=True)
class Alike:
    """One exercise that two solved alike; the lines are counted from 0.

    characters:  rare ones in common
    share:       of the rare runs of the solution that has fewer
    verbatim:    the two are the same text, names and comments included
    """

    exercise: str
    characters: float
    share: float
    verbatim: bool
    sources: tuple[str, str]
    lines: tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Pair:
    """Two people who are alike in a chapter; the second may be `REFERENCE`."""

    chapter: str
    who: tuple[str, str]
    characters: float
    exercises: tuple[Alike, ...]
    compared: int  # exercises that both solved

    @property
    def with_reference(self) -> bool:
        return self.who[1] == REFERENCE


@dataclass(frozen=True)
class _Solutions:
    """All solutions of one exercise: sources and runs by student, and the course's own."""

    exercise: str
    sources: dict[str, str]
    references: tuple[str, ...]
    own: frozenset[int]  # runs of the reference and the variants
    variants: Counter[int]  # how many variants hold a run
    given: frozenset[int]  # runs of the release


def find_similar(
    course: Path,
    chapter: str | None = None,
    least: float = LEAST,
    progress: Callable[[str], None] = lambda chapter: None,
) -> list[Pair]:
    """The pairs of a course (of one chapter) with `least` rare characters in common or more.

    Nothing of a submission is run. The most alike come first, those with the reference after the
    pairs of students.
    """
    course, pairs = course.resolve(), []
    for master in masters(course, chapter):
        progress(master.label)
        runs.cache_clear()  # the texts of one notebook are enough to hold
        solutions = _read(course, master)
        pairs += _pairs(master.label, solutions, least)
        pairs += _with_reference(master.label, solutions, least)
    return sorted(pairs, key=lambda pair: (pair.with_reference, -pair.characters, pair.who))


def print_pairs(pairs: Sequence[Pair], console: Console, shown: int = 20) -> None:
    """Print who is alike, most alike first."""
    for reference in (False, True):
        found = [pair for pair in pairs if pair.with_reference == reference]
        title = "Alike: students and the reference" if reference else "Alike: students"
        if not found:
            console.print(Text(f"{title}: nobody."))
            continue
        more = f"and {len(found) - shown} more on the page" if len(found) > shown else None
        table = Table(title=title, caption=more, title_justify="left", box=SIMPLE_HEAD)
        for heading in ("student", "and"):
            table.add_column(heading, overflow="fold")
        table.add_column("chapter")
        table.add_column("rare characters", justify="right")
        table.add_column("exercises", justify="right")
        table.add_column("most of all in", overflow="fold")
        for pair in found[:shown]:
            most = ", ".join(alike.exercise for alike in pair.exercises[:2])
            cells = (
                *(one_line(name) for name in pair.who),
                pair.chapter,
                f"{pair.characters:.0f}",
                f"{len(pair.exercises)} of {pair.compared}",
                most,
            )
            table.add_row(*map(Text, cells))
        console.print(table)


def write_page(pairs: Sequence[Pair], path: Path, shown: int = 100) -> Path:
    """Write the pairs with their cells side by side as one HTML file, the first `shown` of them."""
    page = templates.get_template("similar.html.j2")
    text = page.render(pairs=pairs, shown=shown, one_line=one_line, printable=printable)
    write_atomically(path, text)
    return path


def as_data(pairs: Iterable[Pair]) -> list[dict]:
    """The pairs as plain data for JSON."""
    return [asdict(pair) | {"with_reference": pair.with_reference} for pair in pairs]


@cache
def runs(source: str) -> frozenset[int]:
    """The digests of all runs of `GRAM` characters that `source` has without its names."""
    return frozenset(int(digest) for digest in _fingerprint(source).hashes)


def _fingerprint(source: str) -> CodeFingerprint:
    # A window of one keeps all runs: fewer would be faster, and these texts are short.
    text = io.StringIO(source)
    return CodeFingerprint("solution.py", GRAM, 1, fp=text, language="python")


def _read(course: Path, master: Master) -> list[_Solutions]:
    code = [cell.source for cell in master.released.cells if cell.cell_type == "code"]
    given = runs("\n".join(code))
    released = _solution_cells(master.released)
    solved = _solution_cells(_solved_notebook(course, master))
    found: dict[str, dict[str, str]] = {}
    for one in find_submissions(course, master.assignment, master.name):
        if one.problem:
            continue
        for step in read_submission(one.path, master.released, master.own_cells).steps:
            stub = released.get(step.exercise, "")
            if step.kind == "solution" and step.source.strip() != stub.strip():
                found.setdefault(step.exercise, {})[one.student] = step.source[:LONGEST]
    solutions = []
    for name, sources in found.items():
        exercise = master.exercises.get(name)
        functions = [exercise.reference, *exercise.variants] if isinstance(exercise, Check) else []
        references = tuple(filter(None, (solved.get(name), *map(_source, functions[:1]))))
        variants = [source_of(function, name) for function in functions[1:]]
        own = frozenset().union(*(runs(text) for text in (*references, *variants)))
        counted = Counter(run for text in variants for run in runs(text))
        solutions.append(_Solutions(name, sources, references, own, counted, given))
    return solutions


def _pairs(chapter: str, solutions: Sequence[_Solutions], least: float) -> list[Pair]:
    """The pairs of students, all at once: runs by students as a matrix, and its square."""
    students = sorted({student for one in solutions for student in one.sources})
    place = {student: i for i, student in enumerate(students)}
    total = np.zeros((len(students), len(students)), dtype=np.float32)
    weights: list[dict[int, float]] = []
    for one in solutions:
        counted = Counter(run for source in one.sources.values() for run in runs(source))
        weight = {
            run: 1 / max(1, n - 1)  # n - 2 others, and each of the two
            for run, n in counted.items()
            if run not in one.own and run not in one.given
        }
        weights.append(weight)
        common = {run: i for i, run in enumerate(r for r in weight if counted[r] > 1)}
        holds = np.zeros((len(students), len(common)), dtype=np.float32)
        rare = np.zeros(len(students), dtype=np.float32)
        for student, source in one.sources.items():
            rare[place[student]] = math.fsum(weight.get(run, 0.0) for run in runs(source))
            holds[place[student], [common[run] for run in runs(source) if run in common]] = 1
        shared = (holds * np.fromiter((weight[run] for run in common), np.float32)) @ holds.T
        enough = AGREE * np.minimum(rare[:, None], rare[None, :])
        total += np.where(shared >= np.maximum(enough, 1), shared, 0)
    pairs = []
    for i, j in np.argwhere(np.triu(total, 1) >= least):
        a, b = students[i], students[j]
        both = [
            (one, weight, one.sources[a], one.sources[b])
            for one, weight in zip(solutions, weights, strict=True)
            if a in one.sources and b in one.sources
        ]
        pairs.append(_pair(chapter, (a, b), both))
    return pairs


def _with_reference(chapter: str, solutions: Sequence[_Solutions], least: float) -> list[Pair]:
    solved: dict[str, list[tuple]] = {}
    total: Counter[str] = Counter()
    for one in solutions:
        counted = one.variants + Counter(
            run for source in one.sources.values() for run in runs(source)
        )
        known = counted.keys() | frozenset().union(*map(runs, one.references))
        weight = {run: 1 / max(1, counted[run]) for run in known if run not in one.given}
        for student, source in one.sources.items():
            # the reference is in the notebook and in llmkit: the one that is nearer counts
            nearer = max(one.references, key=lambda r: _agreement(source, r, weight)[0], default="")
            total[student] += _agreement(source, nearer, weight)[0]
            solved.setdefault(student, []).append((one, weight, source, nearer))
    return [
        _pair(chapter, (student, REFERENCE), solved[student])
        for student, characters in total.items()
        if characters >= least
    ]


def _agreement(left: str, right: str, weight: dict[int, float]) -> tuple[float, float]:
    """The rare characters that two solutions share, and their share of the one that has fewer.

    None where they do not agree.
    """
    a, b = runs(left), runs(right)
    shared = math.fsum(weight.get(run, 0.0) for run in a & b)
    fewer = min(math.fsum(weight.get(run, 0.0) for run in one) for one in (a, b))
    return (shared, shared / fewer) if shared >= max(AGREE * fewer, 1) else (0.0, 0.0)


def _pair(chapter: str, who: tuple[str, str], solved: Sequence[tuple]) -> Pair:
    """solved: (solutions, weight, left source, right source) of each exercise that both solved."""
    found = []
    for one, weight, left, right in solved:
        characters, share = _agreement(left, right, weight)
        if characters:
            lines = _lines(left, right, {run for run in runs(left) & runs(right) if run in weight})
            verbatim = left.strip() == right.strip()
            found.append(Alike(one.exercise, characters, share, verbatim, (left, right), lines))
    found.sort(key=lambda alike: -alike.characters)
    characters = math.fsum(alike.characters for alike in found)
    return Pair(chapter, who, characters, tuple(found), len(solved))


def _lines(left: str, right: str, shared: set[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The lines of each text that lie for the most part in what the two share."""
    prints = _fingerprint(left), _fingerprint(right)
    for one in prints:
        one.hashes &= shared
    slices = compare_files(*prints)[2]
    return tuple(_touched(text, cut) for text, cut in zip((left, right), slices, strict=True))


def _touched(text: str, slices: np.ndarray) -> tuple[int, ...]:
    marked = np.zeros(len(text), dtype=bool)
    if slices.size:
        for start, end in slices.T:
            marked[int(start) : int(end)] = True
    lines, position = [], 0
    for number, line in enumerate(text.splitlines(keepends=True)):
        code = [position + i for i, character in enumerate(line) if not character.isspace()]
        if code and marked[code].mean() > 0.5:
            lines.append(number)
        position += len(line)
    return tuple(lines)


def _solved_notebook(course: Path, master: Master) -> NotebookNode:
    """The notebook with its solutions, from the course's source."""
    if master.chapter:
        source = master.chapter.source(course)
        text = source.read_text(encoding="utf-8")
        return instructor_notebook(text, master.exercises, source.name)
    source = CourseDirectory(config=nbgrader_settings(course, "")).source_directory
    return nbformat.read(course / source / master.assignment / f"{master.name}.ipynb", as_version=4)


def _solution_cells(notebook: NotebookNode) -> dict[str, str]:
    """The code of the cells that a student fills, by exercise."""
    return {
        cell.metadata.nbgrader.grade_id.removesuffix(SOLUTION): cell.source
        for cell in notebook.cells
        if cell.cell_type == "code" and is_solution(cell)
    }


def _source(function: Callable) -> str:
    """The text of a function; nothing where Python has none of it."""
    with suppress(OSError, TypeError):
        return textwrap.dedent(getsource(function))
    return ""
