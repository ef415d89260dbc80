"""A submission, read as data: nothing of it is run, and little of it is kept.

What counts is the source of the cells that the release asks a student to fill. Everything else,
the order of the cells included, comes from the release. Whatever is wrong with a file or a cell
becomes a sentence, never an exception: one odd submission must not stop a class.
"""

import copy
import hashlib
import json
import os
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nbformat import NotebookNode

from autograder.course import CHAPTERS, DEMO, SOLUTION, find_chapter, graded_call

MAX_BYTES = 20 * 2**20  # of a file
MAX_CELLS = 5_000
MAX_SOURCE = 1_000_000  # characters of one cell
MAX_STUDENT_ID = 64  # characters
LINKED = "the folder is a symbolic link: put the submission itself there"

# Not every system has each flag. O_NONBLOCK: opening a fifo must not wait for a writer.
OPEN_FLAGS = os.O_RDONLY | sum(
    getattr(os, flag, 0)
    for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY")
)


@dataclass(frozen=True)
class Step:
    """One thing that grading does, in the order of the release.

    context:   run the release's own cell (imports, data, plots)
    solution:  run the student's cell for `exercise`
    check:     judge `exercise`, whose answer is the notebook's `variable`
    """

    kind: Literal["context", "solution", "check"]
    source: str = ""
    exercise: str = ""
    variable: str = ""


@dataclass(frozen=True)
class Submission:
    """What a student handed in, as far as it counts.

    steps:       what to run and what to judge; a missing exercise has its check but no solution
    answers:     the text of the written answers, by name
    missing:     exercise or written answer -> why there is nothing of it to grade
    notes:       what the student should know and what costs nothing
    unreadable:  why the whole file could not be read; then everything is missing
    """

    steps: tuple[Step, ...]
    answers: dict[str, str]
    missing: dict[str, str]
    notes: tuple[str, ...] = ()
    unreadable: str = ""

    @property
    def problems(self) -> list[str]:
        """All that is odd about the submission, in plain words."""
        if self.unreadable:
            return [self.unreadable]
        return [f"{name}: {reason}" for name, reason in self.missing.items()] + list(self.notes)

    @property
    def digest(self) -> str:
        """Equal for submissions that are judged alike: outputs, say, make no difference."""
        data = [[vars(step) for step in self.steps], self.answers, self.problems]
        return hashlib.sha256(json.dumps(data).encode()).hexdigest()


class Unreadable(ValueError):
    """A file is no notebook that can be graded; the message is a sentence for the student."""


def read_submission(path: Path, release: NotebookNode) -> Submission:
    """The submission in the file at `path`, to the chapter whose release is given.

    A file that cannot be read gives a submission in which every exercise is missing, with the
    reason. It is read once: what changes afterwards is not seen.
    """
    asked = _asked(release)
    try:
        cells = _read_cells(path)
    except Unreadable as error:
        reason = str(error)
        return Submission(_steps(release, {}), {}, dict.fromkeys(asked, reason), unreadable=reason)

    found, missing, notes = {}, {}, []
    for name, (grade_id, asked_cell) in asked.items():
        candidates = _candidates(cells, grade_id)
        kept, reason = _choose(candidates, asked_cell["source"])
        if reason:
            missing[name] = reason
            continue
        found[name] = kept["source"]
        if len(candidates) > 1:
            notes.append(
                f"{name}: its cell is there {len(candidates)} times; "
                "the last one that was worked on counts"
            )
        if kept["cell_type"] != asked_cell["cell_type"]:
            notes.append(
                f"{name}: its cell became {kept['cell_type']}; it was read as "
                f"{asked_cell['cell_type']}"
            )
    if own := _own_cells(cells, release):
        notes.append(
            f"{own} code cell{'s were' if own > 1 else ' was'} added or changed outside the "
            "solution cells and not run: what a solution needs must stand in its own cell"
        )
    answers = {name: found[name] for name in found if asked[name][0] == name}
    return Submission(_steps(release, found), answers, missing, tuple(notes))


def merged(release: NotebookNode, submission: Submission) -> NotebookNode:
    """The release with the student's sources in it: what gradebook and feedback show."""
    notebook = copy.copy(release)
    notebook["cells"] = [copy.copy(cell) for cell in release["cells"]]
    solutions = {s.exercise: s.source for s in submission.steps if s.kind == "solution"}
    sources = solutions | submission.answers
    for name, (_, cell) in _asked(notebook).items():
        if name in sources:
            cell["source"] = sources[name]
    return notebook


@dataclass(frozen=True)
class Found:
    """A place where a submission is, or should be; `problem` says why it cannot be graded."""

    student: str
    chapter: str
    path: Path
    problem: str = ""


def find_submissions(course: Path, chapter: str | None = None) -> Iterator[Found]:
    """The submissions in submitted/STUDENT/CHAPTER/CHAPTER.ipynb, ordered by student.

    Links are not followed: what is linked is found, with a problem.
    """
    for student in _folders(course / "submitted"):
        if student.is_symlink():
            yield Found(student.name, chapter or "", Path(student.path), LINKED)
            continue
        for folder in _folders(Path(student.path)):
            if folder.name == chapter or (chapter is None and folder.name[0] != "."):
                path = Path(folder.path) / f"{folder.name}.ipynb"
                yield Found(student.name, folder.name, path, _problem(student, folder))


def valid_student_id(name: str) -> str:
    """`name`, if it is safe as a folder, a database key and a cell of a table.

    Letters and digits of any script, blanks, and . _ - @ + , ' inside. Raises ValueError.
    """
    shown = ascii(name)
    if not name or len(name) > MAX_STUDENT_ID:
        raise ValueError(f"the student id {shown:.80} must have 1 to {MAX_STUDENT_ID} characters")
    for character in name:
        # letters, the marks that accents are made of, and digits
        if unicodedata.category(character)[0] not in "LMN" and character not in " ._-@+,'":
            raise ValueError(f"the student id {shown} holds {character!a}: rename its folder")
    # A first - reads as an option, = + @ as a formula of a spreadsheet, . as a hidden file.
    if not (name[0].isalnum() or name[0] == "_") or name[-1] in " .":
        raise ValueError(
            f"the student id {shown} must begin with a letter or digit, and not end in a blank "
            "or a dot: rename its folder"
        )
    return name


def _read_cells(path: Path) -> list[dict[str, Any]]:
    """The cells of a notebook file: their type, their source, their ids, and nothing else."""
    data = _read_bytes(path)
    try:
        notebook = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise Unreadable("the file is not UTF-8 text, so it is not a notebook") from None
    except RecursionError:
        raise Unreadable("the file is nested too deeply to be a notebook") from None
    except ValueError:
        raise Unreadable("the file is not valid JSON, so it is not a notebook") from None

    version = notebook.get("nbformat") if isinstance(notebook, dict) else None
    if type(version) is not int or version not in range(100):
        raise Unreadable("the file is not a notebook: it names no notebook format")
    if version != 4:
        raise Unreadable(
            f"the notebook is in format {version}; open it in JupyterLab and save it in format 4"
        )
    cells = notebook.get("cells")
    if not isinstance(cells, list):
        raise Unreadable("the notebook has no list of cells")
    if len(cells) > MAX_CELLS:
        raise Unreadable(f"the notebook has {len(cells):,} cells; at most {MAX_CELLS:,} are read")
    return [_plain(cell) for cell in cells if isinstance(cell, dict)]


def _read_bytes(path: Path) -> bytes:
    try:
        descriptor = os.open(path, OPEN_FLAGS)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable("this is not an ordinary file; hand in the notebook itself")
            if status.st_nlink != 1:
                raise Unreadable("the file is a hard link; hand in a copy of the notebook")
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(MAX_BYTES + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise Unreadable(f"there is no file {path.name}; was it renamed?") from None
    except OSError as error:
        if path.is_symlink():
            raise Unreadable("the file is a symbolic link; hand in the notebook itself") from None
        raise Unreadable(f"the file cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise Unreadable(
            f"the file is larger than {MAX_BYTES // 2**20} MiB; clear its outputs and save it"
        )
    return data


def _plain(cell: dict) -> dict[str, Any]:
    """What of a cell is looked at, each in the type that it should have."""
    metadata = cell.get("metadata")
    nbgrader = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    grade_id = nbgrader.get("grade_id") if isinstance(nbgrader, dict) else None
    source = cell.get("source")
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        source = "".join(source)
    if isinstance(source, str):
        source = source.encode("utf-8", "replace").decode()  # JSON can hold half a character
    kind = cell.get("cell_type")
    return {
        "cell_type": kind if kind in ("code", "markdown", "raw") else "of an unknown type",
        "source": source if isinstance(source, str) else None,
        "id": cell.get("id") if isinstance(cell.get("id"), str) else "",
        "grade_id": grade_id if isinstance(grade_id, str) else "",
    }


def _asked(release: NotebookNode) -> dict[str, tuple[str, NotebookNode]]:
    """The cells that a student fills: exercise or written answer -> (grade_id, cell)."""
    asked = {}
    for cell in release["cells"]:
        nbgrader = cell["metadata"].get("nbgrader", {})
        if nbgrader.get("solution"):
            if "### BEGIN SOLUTION" in cell["source"]:
                raise ValueError("Grading starts from the release, not from the solutions.")
            asked[nbgrader["grade_id"].removesuffix(SOLUTION)] = nbgrader["grade_id"], cell
    return asked


def _candidates(cells: list[dict], grade_id: str) -> list[dict]:
    """The cells that claim to be the asked one; the cell's own id helps where metadata is lost."""
    return [c for c in cells if c["grade_id"] == grade_id] or [
        c for c in cells if c["id"] == grade_id and not c["grade_id"]
    ]


def _choose(candidates: list[dict], stub: str) -> tuple[dict, str]:
    """The cell that counts, or a reason why none does.

    Of several the last counts, as it would if the notebook were run, but one that is blank or as
    released does not hide one that was worked on.
    """
    if not candidates:
        return {}, "its cell is missing from the submission"
    readable = [c for c in candidates if c["source"] is not None]
    if not readable:
        return {}, "its cell has no readable source"
    worked_on = [c for c in readable if c["source"].strip() not in ("", stub.strip())]
    kept = (worked_on or readable)[-1]
    if len(kept["source"]) > MAX_SOURCE:
        return {}, f"its cell is longer than {MAX_SOURCE:,} characters"
    return kept, ""


def _steps(release: NotebookNode, found: dict[str, str]) -> tuple[Step, ...]:
    steps = []
    for cell in release["cells"]:
        nbgrader = cell["metadata"].get("nbgrader", {})
        if cell["cell_type"] != "code" or DEMO in cell["metadata"].get("tags", ()):
            continue
        if nbgrader.get("solution"):
            name = nbgrader["grade_id"].removesuffix(SOLUTION)
            if name in found:
                steps.append(Step("solution", found[name], name))
        elif nbgrader.get("grade"):
            if call := graded_call(cell["source"]):
                steps.append(Step("check", "", *call))
        else:
            steps.append(Step("context", cell["source"]))
    return tuple(steps)


def _own_cells(cells: list[dict], release: NotebookNode) -> int:
    """How many code cells are neither the release's nor a solution."""
    known = {cell["source"].strip() for cell in release["cells"]} | {""}
    solutions = {grade_id for grade_id, _ in _asked(release).values()}
    return sum(
        cell["cell_type"] == "code"
        and not {cell["grade_id"], cell["id"]} & solutions
        and (cell["source"] or "").strip() not in known
        for cell in cells
    )


def _folders(parent: Path) -> list[os.DirEntry]:
    """The folders in a folder, and the links that pose as such, ordered by name."""
    try:
        with os.scandir(parent) as entries:
            found = [e for e in entries if e.is_symlink() or e.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return sorted(found, key=lambda entry: entry.name)


def _problem(student: os.DirEntry, folder: os.DirEntry) -> str:
    if folder.is_symlink():
        return LINKED
    try:
        valid_student_id(student.name)
        if folder.name not in (chapter.slug for chapter in CHAPTERS):
            find_chapter(folder.name)
            return f"the folder {folder.name!a} must bear the chapter's full name"
    except (ValueError, LookupError) as error:
        return str(error)
    return ""
