"""From a chapter's source to its notebooks, and a chapter's notebook run in full.

    solutions/02-losses/02-losses.md ──► solutions/02-losses/02-losses.ipynb   for instructors
                                     ──► notebooks/02-losses/02-losses.ipynb   for students

The source is Jupytext Markdown without a word of nbgrader's metadata. What is what follows from
the cells themselves: `### BEGIN SOLUTION` makes a solution cell, the `check(...)` after it its
graded cell, and the points stand in the check. The release is what nbgrader's own preprocessors
make of the instructor's notebook, so `nbgrader generate_assignment` gives the same.
"""

import ast
import hashlib
import os
import re
import time
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from traitlets.config import Config

from autograder.check import Exercise, Question
from autograder.course import (
    DEMO,
    FIRST_CELL,
    SOLUTION,
    Chapter,
    chapters,
    checks_of,
    graded_call,
)
from autograder.first_cell import first_cell

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
MARKER = re.compile(r"^\s*(### (?:BEGIN|END) SOLUTION)\s*$", re.MULTILINE)
LOOSE_MARKER = re.compile(r"(BEGIN|END) SOLUTION")
LOOKS_GRADED = re.compile(r"^\s*check(_answer)?\(", re.MULTILINE)
UNQUOTED_WRITTEN = re.compile(r"written=(\w+)")
GRADE_ID = re.compile(r"[A-Za-z0-9_]+")
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


class BuildError(ValueError):
    """A chapter cannot be built or run; the message says which file, which line and why."""


def build(course: Path, check: bool = False) -> list[Path]:
    """Write the notebooks of every chapter in `course` and return those that were out of date.

    With `check` nothing is written, and only the releases are compared: the instructor's
    notebooks are not committed. A release whose source is gone counts as out of date.

    Raises BuildError where a source breaks the rules, RuntimeError where a package is missing.
    """
    course = Path(course)
    written, sources = {}, chapters(course)
    for chapter in sources:
        notebook = instructor_notebook(
            chapter.source(course).read_text(encoding="utf-8"),
            checks_of(chapter.slug),
            str(chapter.source(course).relative_to(course)),
        )
        if not check:
            written[chapter.instructor_notebook(course)] = notebook
        written[chapter.release(course)] = release(notebook)

    stale = []
    for path, notebook in written.items():
        text = nbformat.writes(notebook, version=4) + "\n"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(path)
            if not check:
                _write(path, text)
    orphans = set((course / "notebooks").glob("*/*.ipynb")) - {c.release(course) for c in sources}
    if orphans and not check:
        names = ", ".join(str(path.relative_to(course)) for path in sorted(orphans))
        raise BuildError(f"{names}: no chapter in solutions/ builds this; delete it.")
    return stale + sorted(orphans)


def instructor_notebook(text: str, exercises: dict[str, Exercise], file: str) -> NotebookNode:
    """The instructor's notebook of a source text, with nbgrader's metadata derived.

    exercises:  those of the chapter, by name; each must be checked exactly once
    file:       what errors call the source

    Raises BuildError.
    """
    try:
        import jupytext
    except ImportError:
        raise _missing("jupytext") from None

    cells = jupytext.reads(text, fmt="md").cells
    places = [f"{file}:{line}" for line in _lines(cells, text)]
    open_solution: tuple[NotebookNode, str] | None = None  # waits for its check
    seen: set[str] = set()

    for cell, place in zip(cells, places, strict=True):
        _check_markup(cell, place)
        name = None
        if "written" in cell.metadata:
            name = _mark_written(cell, place)
        elif cell.cell_type == "code" and BEGIN in cell.source:
            if open_solution:
                raise BuildError(f"{open_solution[1]}: no check(...) follows this solution cell.")
            if DEMO in cell.metadata.get("tags", ()):
                raise BuildError(f"{place}: a solution cell cannot be a demo: untag it.")
            open_solution = cell, place
        elif cell.cell_type == "code" and (call := graded_call(cell.source)):
            name, variable = call
            if name not in exercises:
                raise BuildError(f"{place}: the chapter's checks have no exercise {name!r}.")
            if open_solution is None:
                raise BuildError(f"{place}: no solution cell stands before the check of {name!r}.")
            _mark_exercise(cell, place, *open_solution, exercises[name], variable)
            open_solution = None
        elif cell.cell_type == "code" and LOOKS_GRADED.search(cell.source):
            raise BuildError(
                f"{place}: a graded cell holds nothing but check(function) or "
                'check_answer("exercise", variable).'
            )
        if name in seen:
            raise BuildError(f"{place}: {name!r} is graded a second time: remove or rename one.")
        if name:
            seen.add(name)

    if open_solution:
        raise BuildError(f"{open_solution[1]}: no check(...) follows this solution cell.")
    if unchecked := [name for name in exercises if name not in seen]:
        raise BuildError(f"{file}: never checks {', '.join(unchecked)}.")
    cells.insert(1, _first_cell())  # behind the title
    identify(cells)
    return nbformat.v4.new_notebook(
        cells=cells, metadata={"kernelspec": KERNEL, "language_info": {"name": "python"}}
    )


def release(notebook: NotebookNode, settings: Config | None = None) -> NotebookNode:
    """What students get: the steps of `nbgrader generate_assignment`, without its gradebook.

    settings:  nbgrader's, of a course that has its own. Hidden tests stay: no chapter has any.
    """
    try:
        from nbgrader import preprocessors as steps
    except ImportError:
        raise _missing("nbgrader") from None

    notebook, resources = nbformat.from_dict(notebook), {}
    for step in (
        steps.IncludeHeaderFooter,
        steps.LockCells,
        steps.ClearSolutions,
        steps.ClearOutput,
        steps.CheckCellMetadata,
        steps.ComputeChecksums,
    ):
        notebook, resources = step(config=settings).preprocess(notebook, resources)
    return notebook


def executed(course: Path, chapter: Chapter) -> NotebookNode:
    """The instructor's notebook with its outputs: of an earlier run if its cells are as they were.

    Raises BuildError, as `execute` does.
    """
    target = _executed(course, chapter)
    text = chapter.source(course).read_text(encoding="utf-8")
    wanted = instructor_notebook(text, checks_of(chapter.slug), chapter.slug)
    if target.is_file():
        found = nbformat.read(target, 4)
        done = all(cell.get("execution_count", True) for cell in found.cells)
        if done and [c.source for c in found.cells] == [c.source for c in wanted.cells]:
            for cell, current in zip(found.cells, wanted.cells, strict=True):
                cell.metadata = current.metadata
            return found
    execute(course, chapter)
    return nbformat.read(target, 4)


def execute(course: Path, chapter: Chapter, timeout: int = 600) -> float:
    """Run the instructor's notebook in full, demos too; return the seconds that it took.

    The result is written to build/executed/NN-slug.ipynb, also when a cell failed.
    `timeout` is in seconds and for one cell.

    Raises BuildError, naming the chapter, the cell and what happened in it.
    """
    try:
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
        from rich.progress import Progress
    except ImportError as error:
        raise _missing(error.name) from None

    file = chapter.source(course).relative_to(course)
    text = chapter.source(course).read_text(encoding="utf-8")
    notebook = instructor_notebook(text, checks_of(chapter.slug), str(file))
    lines = _lines(notebook.cells, text)
    running = 0

    def started(cell: NotebookNode, cell_index: int) -> None:
        nonlocal running
        running = cell_index
        progress.update(task, completed=cell_index)

    start = time.perf_counter()
    with Progress(transient=True) as progress:
        task = progress.add_task(chapter.slug, total=len(notebook.cells))
        client = NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name=KERNEL["name"],
            coalesce_streams=True,
            resources={"metadata": {"path": str(course)}},
            on_cell_start=started,
        )
        try:
            client.execute()
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            if isinstance(error, CellExecutionError):
                reason = f"{error.ename}: {error.evalue}"
            elif isinstance(error, CellTimeoutError):
                reason = f"it ran for more than {timeout} s"
            else:
                reason = "the kernel died"
            raise BuildError(
                f"{chapter.slug}: cell {running + 1} ({file}:{lines[running]}) failed: {reason}"
            ) from None
        finally:
            _write(_executed(course, chapter), nbformat.writes(notebook, version=4) + "\n")
    return time.perf_counter() - start


def _executed(course: Path, chapter: Chapter) -> Path:
    return course / "build" / "executed" / f"{chapter.slug}.ipynb"


def _check_markup(cell: NotebookNode, place: str) -> None:
    """Refuse what would build, but not into what its author meant."""
    bad = cell.metadata.pop("incorrectly_encoded_metadata", "")
    if match := UNQUOTED_WRITTEN.fullmatch(bad):
        cell.metadata["written"] = match[1]
    elif bad:
        raise BuildError(f'{place}: cannot read the cell\'s options {bad!r}; write key="value".')

    markers = MARKER.findall(cell.source)
    if len(markers) != len(LOOSE_MARKER.findall(cell.source)):
        raise BuildError(f"{place}: a marker stands alone on its line, as {BEGIN!r} or {END!r}.")
    if markers != [BEGIN, END] * (len(markers) // 2):
        raise BuildError(f"{place}: each {BEGIN!r} needs one {END!r} after it.")
    if markers and cell.cell_type != "code" and "written" not in cell.metadata:
        raise BuildError(
            f"{place}: a written answer stands between <!-- #region written=name points=3 --> "
            "and <!-- #endregion -->."
        )
    if cell.source.count("<details") != cell.source.count("</details>"):
        raise BuildError(
            f"{place}: a <details> fold is cut in two; two blank lines and ```python blocks end a "
            "Markdown cell: use one blank line and ```text."
        )


def _first_cell() -> NotebookNode:
    """The cell that finds the course. Grading, the book and the slides do without it."""
    metadata = {
        "jupyter": {"source_hidden": True},
        "nbgrader": _nbgrader(FIRST_CELL, locked=True),
        "slideshow": {"slide_type": "skip"},
        "tags": [DEMO, "remove-cell"],
    }
    return nbformat.v4.new_code_cell(first_cell(), metadata=metadata)


def _mark_written(cell: NotebookNode, place: str) -> str:
    name, points = cell.metadata.pop("written"), cell.metadata.pop("points", None)
    if cell.cell_type != "markdown" or BEGIN not in cell.source:
        raise BuildError(f"{place}: the model answer of {name!r} needs {BEGIN!r} and {END!r}.")
    if not GRADE_ID.fullmatch(name):
        raise BuildError(f"{place}: {name!r} is no name: use letters, digits and _.")
    if not isinstance(points, int) or points < 1:
        raise BuildError(f"{place}: the written answer {name!r} needs its points: points=3.")
    cell.metadata["nbgrader"] = _nbgrader(name, grade=True, solution=True, points=points)
    return name


def _mark_exercise(
    cell: NotebookNode,
    place: str,
    solution: NotebookNode,
    solution_place: str,
    exercise: Exercise,
    variable: str,
) -> None:
    if ("check_answer" in cell.source) != isinstance(exercise, Question):
        raise BuildError(f"{place}: check(...) is for functions, check_answer(...) for questions.")
    if variable not in _defined(solution.source, solution_place):
        raise BuildError(
            f"{place}: checks {variable!r}, which the solution cell at {solution_place} "
            "does not define."
        )
    if DEMO in cell.metadata.get("tags", ()):
        raise BuildError(f"{place}: a graded cell cannot be a demo: untag it.")
    solution.metadata["nbgrader"] = _nbgrader(exercise.name + SOLUTION, solution=True)
    cell.metadata["nbgrader"] = _nbgrader(
        exercise.name, grade=True, locked=True, points=exercise.points
    )


def _nbgrader(
    grade_id: str,
    grade: bool = False,
    solution: bool = False,
    locked: bool = False,
    points: int | None = None,
) -> dict:
    """nbgrader's metadata of one cell (schema version 3)."""
    metadata = {
        "schema_version": 3,
        "grade_id": grade_id,
        "grade": grade,
        "solution": solution,
        "locked": locked,
        "task": False,
    }
    return metadata if points is None else metadata | {"points": points}


def _defined(source: str, place: str) -> set[str]:
    """The names that a cell binds at its top level by def, class or assignment."""
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        raise BuildError(f"{place}: the solution is not Python: {error.msg}.") from None
    names = set()
    for statement in body:
        match statement:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Assign() | ast.AnnAssign():
                names |= {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)}
    return names


def identify(cells: list[NotebookNode]) -> None:
    """Give each cell an id that lasts: the exercise's, or one made of its text."""
    taken: set[str] = set()
    for cell in cells:
        text, identity, repeat = f"{cell.cell_type}\0{cell.source}", "", 0
        if "nbgrader" in cell.metadata:
            identity = cell.metadata["nbgrader"]["grade_id"][:64]
        while not identity or identity in taken:
            identity = hashlib.sha256(f"{text}\0{repeat}".encode()).hexdigest()[:12]
            repeat += 1
        taken.add(identity)
        cell["id"] = identity


def _lines(cells: list[NotebookNode], text: str) -> list[int]:
    """The line of the source on which each cell begins."""
    lines, position = [], 0
    for cell in cells:
        found = text.find(cell.source, position)
        if found >= 0:
            lines.append(text.count("\n", 0, found) + 1)
            position = found + len(cell.source)
        else:
            lines.append(text.count("\n", 0, position) + 1)
    return lines


def _write(path: Path, text: str) -> None:
    """Write the whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    os.replace(partial, path)


def _missing(package: str) -> RuntimeError:
    return RuntimeError(
        f"Building notebooks needs {package}, which is not installed: "
        "pip install 'llmkit-course[grader]'."
    )
