"""A submission, read as data: nothing of it is run, and little of it is kept.

What counts is the source of the cells that the release asks a student to fill. Everything else,
the order of the cells included, comes from the release; in an nbgrader assignment a student's own
cells count, too. Whatever is wrong with a file or a cell becomes a sentence, never an exception:
one odd submission must not stop a class.
"""

import copy
import errno
import hashlib
import json
import os
import stat
import unicodedata
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from nbformat import NotebookNode, from_dict

from autograder.course import CHAPTERS, DEMO, FIRST_CELL, SOLUTION, find_chapter, graded_call

MAX_BYTES = 20 * 2**20  # of a file
MAX_CELLS = 5_000
MAX_SOURCE = 600_000  # characters of one cell, of which a message to the worker has room for any
MAX_STUDENT_ID = 64  # characters
SKIPPED = "skip-execution"  # the tag of cells that Jupyter's tools do not run
LINKED = "the folder is a symbolic link: put the submission itself there"

# Not every system has each flag. O_NONBLOCK: opening a fifo must not wait for a writer.
OPEN_FLAGS = os.O_RDONLY | sum(
    getattr(os, flag, 0)
    for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY")
)


@dataclass(frozen=True)
class Step:
    """One thing that grading does, in the order of the release.

    context:   run a cell that answers nothing (imports, data, plots)
    solution:  run the student's cell for `exercise`
    check:     judge `exercise`, whose answer is the notebook's `variable`; none for asserts
    """

    kind: Literal["context", "solution", "check"]
    source: str = ""
    exercise: str = ""
    variable: str = ""


@dataclass(frozen=True)
class Submission:
    """What a student handed in, as far as it counts.

    notebook:    the release with the student's sources in it: what gradebook and feedback show
    missing:     exercise or written answer -> why there is nothing of it to grade
    notes:       what the student should know and what costs nothing
    unreadable:  why the whole file could not be read; then everything is missing
    """

    notebook: NotebookNode
    missing: dict[str, str]
    notes: tuple[str, ...] = ()
    unreadable: str = ""

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """What to run and what to judge; a missing exercise has its check but no solution."""
        return _steps(self.notebook, self.missing)

    @property
    def problems(self) -> list[str]:
        """All that is odd about the submission, in plain words."""
        if self.unreadable:
            return [self.unreadable]
        return [f"{name}: {reason}" for name, reason in self.missing.items()] + list(self.notes)

    @property
    def digest(self) -> str:
        """Equal for submissions that are judged alike: outputs, say, make no difference."""
        cells = [(c["cell_type"], c["source"], c["metadata"]) for c in self.notebook["cells"]]
        data = [cells, self.problems]
        return hashlib.sha256(json.dumps(data).encode()).hexdigest()


class Unreadable(ValueError):
    """A file is no notebook that can be graded; the message is a sentence for the student."""


def read_submission(
    file: Path | bytes | Unreadable, release: NotebookNode, own_cells: bool = False
) -> Submission:
    """The submission in a file, to the notebook whose release is given.

    file:       its path, or what `read_bytes` gave or raised for it elsewhere
    own_cells:  keep the cells that the release does not know, or leaves open to change, and the
                student's order of all cells, as nbgrader does

    A file that cannot be read gives a submission in which every exercise is missing, with the
    reason. It is read once: what changes afterwards is not seen.
    """
    asked = _asked(release)
    try:
        cells = _read_cells(file)
    except Unreadable as error:
        reason = str(error)
        return Submission(_filled(release, {}), dict.fromkeys(asked, reason), unreadable=reason)
    if own_cells:
        return _with_own_cells(cells, release)

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
    return Submission(_filled(release, found), missing, tuple(notes))


@dataclass(frozen=True)
class Found:
    """A place where a submission is, or should be; `problem` says why it cannot be graded."""

    student: str
    chapter: str
    path: Path
    problem: str = ""


def find_submissions(
    course: Path, chapter: str | None = None, notebook: str = ""
) -> Iterator[Found]:
    """The submissions in submitted/STUDENT/CHAPTER/CHAPTER.ipynb, ordered by student.

    chapter:   or an nbgrader assignment
    notebook:  the file's name, without .ipynb, where it is not the chapter's

    Links are not followed: what is linked is found, with a problem.
    """
    for student in _folders(course / "submitted"):
        if student.is_symlink():
            yield Found(student.name, chapter or "", Path(student.path), LINKED)
            continue
        for folder in _folders(Path(student.path)):
            if folder.name == chapter or (chapter is None and folder.name[0] != "."):
                path = Path(folder.path) / f"{notebook or folder.name}.ipynb"
                problem = _problem(student, folder, known=chapter is not None)
                yield Found(student.name, folder.name, path, problem)


def read_found(found: Found) -> bytes | Unreadable:
    """What the file of a submission holds, or why it cannot be read.

    Neither of its folders may have become a link since they were found, which could lead to
    another's submission: each is opened in the one above it.
    """
    flags, folders = OPEN_FLAGS | os.O_DIRECTORY, []
    try:
        folders.append(os.open(found.path.parent.parent, flags))
        folders.append(os.open(found.path.parent.name, flags, dir_fd=folders[0]))
        return read_bytes(Path(found.path.name), folders[1])
    except OSError:
        return Unreadable("its folder is gone, or has become a link, since grading began")
    except Unreadable as reason:
        return reason
    finally:
        for folder in folders:
            os.close(folder)


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


def _read_cells(file: Path | bytes | Unreadable) -> list[dict[str, Any]]:
    """The cells of a notebook file: their type, their source, their ids, and nothing else."""
    if isinstance(file, Unreadable):
        raise file
    data = file if isinstance(file, bytes) else read_bytes(file)
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


def read_bytes(path: Path, folder: int | None = None) -> bytes:
    """What an ordinary file in a submission holds; no link is followed. Raises Unreadable.

    folder:  the descriptor of what a relative path starts from; the working directory otherwise
    """
    try:
        descriptor = os.open(path, OPEN_FLAGS, dir_fd=folder)
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
        if error.errno == errno.ELOOP or path.is_symlink():
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
    tags = metadata.get("tags") if isinstance(metadata, dict) else None
    return {
        "cell_type": kind if kind in ("code", "markdown", "raw") else "of an unknown type",
        "source": source if isinstance(source, str) else None,
        "id": cell.get("id") if isinstance(cell.get("id"), str) else "",
        "grade_id": grade_id if isinstance(grade_id, str) else "",
        "skipped": isinstance(tags, list) and SKIPPED in tags,
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


def _filled(release: NotebookNode, found: dict[str, str]) -> NotebookNode:
    notebook = copy.copy(release)
    notebook["cells"] = [copy.copy(cell) for cell in release["cells"]]
    for name, (_, cell) in _asked(notebook).items():
        cell["source"] = found.get(name, cell["source"])
    return notebook


def _with_own_cells(cells: list[dict], release: NotebookNode) -> Submission:
    """The student's notebook, in which the release's cells stand for those they may not change.

    Of several cells that claim to be the same, the last is it, and the others are the student's
    own, as for nbgrader. A cell that is gone is put back behind the one that it followed.
    """
    known = {
        cell["metadata"]["nbgrader"]["grade_id"]: cell
        for cell in release["cells"]
        if _is_marked(cell["metadata"].get("nbgrader", {}))
    }
    last = {cell["grade_id"]: place for place, cell in enumerate(cells)}
    merged: list[NotebookNode] = []
    where: dict[str, NotebookNode] = {}
    missing, notes = {}, []
    for place, cell in enumerate(cells):
        name = cell["grade_id"]
        usable = cell["source"] is not None and len(cell["source"]) <= MAX_SOURCE
        if name in known and last[name] == place:
            where[name] = copy.copy(known[name])
            merged.append(where[name])
            if known[name]["metadata"]["nbgrader"].get("solution"):
                if usable:
                    where[name]["source"] = cell["source"]
                else:
                    missing[name] = f"its cell has no source of at most {MAX_SOURCE:,} characters"
            elif (cell["source"] or "").strip() != known[name]["source"].strip():
                notes.append(f"{name}: its cell was changed; the released one counts")
        elif usable:
            merged.append(_own(cell, len(merged)))
        else:
            notes.append(f"a cell has no source of at most {MAX_SOURCE:,} characters: left out")
    before = 0
    for name, cell in known.items():
        if name not in where:
            where[name] = copy.copy(cell)
            merged.insert(before, where[name])
            if cell["metadata"]["nbgrader"].get("solution"):
                missing[name] = "its cell is missing from the submission"
            else:
                notes.append(f"{name}: its cell was missing and was put back")
        before = 1 + next(i for i, c in enumerate(merged) if c is where[name])
    notebook = copy.copy(release)
    notebook["cells"] = merged
    return Submission(notebook, missing, tuple(notes))


def _own(cell: dict, place: int) -> NotebookNode:
    own = {"cell_type": cell["cell_type"], "source": cell["source"], "id": f"own-{place}"}
    if own["cell_type"] == "code":
        own |= {"outputs": [], "execution_count": None}
    elif own["cell_type"] not in ("markdown", "raw"):
        own["cell_type"] = "raw"
    return from_dict(own | {"metadata": {"tags": [SKIPPED]} if cell["skipped"] else {}})


def _is_marked(nbgrader: dict) -> bool:
    return any(nbgrader.get(kind) for kind in ("grade", "solution", "locked", "task"))


def _steps(notebook: NotebookNode, missing: Container[str]) -> tuple[Step, ...]:
    steps = []
    for cell in notebook["cells"]:
        nbgrader, tags = (cell["metadata"].get(key, {}) for key in ("nbgrader", "tags"))
        if cell["cell_type"] != "code" or DEMO in tags or SKIPPED in tags:
            continue
        if nbgrader.get("solution"):
            name = nbgrader["grade_id"].removesuffix(SOLUTION)
            if name not in missing:
                steps.append(Step("solution", cell["source"], name))
        elif nbgrader.get("grade"):
            _, variable = graded_call(cell["source"]) or ("", "")
            steps.append(Step("check", "", nbgrader["grade_id"], variable))
        else:
            steps.append(Step("context", cell["source"]))
    return tuple(steps)


def _own_cells(cells: list[dict], release: NotebookNode) -> int:
    """How many code cells are neither the release's, of any version, nor a solution."""
    known = {cell["source"].strip() for cell in release["cells"]} | {""}
    expected = {grade_id for grade_id, _ in _asked(release).values()} | {FIRST_CELL}
    return sum(
        cell["cell_type"] == "code"
        and not {cell["grade_id"], cell["id"]} & expected
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


def _problem(student: os.DirEntry, folder: os.DirEntry, known: bool) -> str:
    if folder.is_symlink():
        return LINKED
    try:
        valid_student_id(student.name)
        if not known and folder.name not in (chapter.slug for chapter in CHAPTERS):
            find_chapter(folder.name)
            return f"the folder {folder.name!a} must bear the chapter's full name"
    except (ValueError, LookupError) as error:
        return str(error)
    return ""
