"""The notebooks of a course that can be graded, and how their masters are made.

solutions/02-losses/02-losses.md   a chapter of ours; its checks are in autograder/checks/
source/ps1/problem1.ipynb          one of the notebooks of an nbgrader assignment
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbgrader.coursedir import CourseDirectory
from nbgrader.preprocessors import ClearHiddenTests
from nbgrader.utils import find_all_files, is_grade
from traitlets.config import Config

from autograder.build import BuildError, identify, instructor_notebook, release
from autograder.course import CHAPTERS, Chapter, chapters, checks_of, find_chapter
from autograder.master import HIDDEN, Master, chapter_from
from autograder.settings import nbgrader_settings

MAX_BESIDE = 24 * 2**20  # bytes: what a worker can be sent in one message
AUTOTEST = re.compile(r"^\s*### (HASHED )?AUTOTEST", re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """A notebook that can be graded, before its master is made: that takes half a second."""

    assignment: str
    name: str
    make: Callable[[], Master]


def sources(course: Path, name: str | None = None) -> list[Source]:
    """What can be graded in a course, chapters first; or the one chapter or assignment `name`.

    Raises LookupError if there is none. To make a master raises BuildError if it cannot be made.
    """
    course = course.resolve()
    settings = nbgrader_settings(course, "")
    source = course / CourseDirectory(config=settings).source_directory
    folders = _assignments(source)
    if name is None:
        of_chapters, of_folders = chapters(course), list(folders.values())
    elif name in folders:
        of_chapters, of_folders = [], [folders[name]]
    elif chapters(course) or not folders:
        of_chapters, of_folders = [find_chapter(name)], []
    else:
        raise LookupError(f"There is no assignment {name!r} in {source}: {', '.join(folders)}.")
    if not of_chapters and not of_folders:
        raise LookupError(f"There is nothing to grade in {course}: no chapter, and no {source}.")
    found = [Source(c.slug, c.slug, partial(chapter_master, course, c)) for c in of_chapters]
    return found + [s for folder in of_folders for s in _nbgrader_sources(course, folder, settings)]


def masters(course: Path, name: str | None = None) -> list[Master]:
    """The masters of all `sources`. Raises as they do."""
    return [source.make() for source in sources(course, name)]


def chapter_master(course: Path, chapter: Chapter) -> Master:
    """The master of a chapter, made anew from its source. Raises BuildError."""
    source = chapter.source(course)
    text = source.read_text(encoding="utf-8")
    notebook = release(instructor_notebook(text, checks_of(chapter.slug), source.name))
    return chapter_from(notebook, chapter)


def _assignments(source: Path) -> dict[str, Path]:
    """The folders of nbgrader's source directory that hold notebooks and are no chapters."""
    ours = {chapter.slug for chapter in CHAPTERS}
    folders = sorted(source.glob("[!.]*/"))
    return {f.name: f for f in folders if f.name not in ours and any(f.glob("*.ipynb"))}


def _nbgrader_sources(course: Path, folder: Path, settings: Config) -> list[Source]:
    for name in ("header", "footer"):  # nbgrader looks for them where it is started
        if path := settings.IncludeHeaderFooter.get(name):
            settings.IncludeHeaderFooter[name] = str(course / path)
    return [
        Source(folder.name, path.stem, partial(_nbgrader_master, path, settings))
        for path in sorted(folder.glob("*.ipynb"))
    ]


def _nbgrader_master(path: Path, settings: Config) -> Master:
    """The steps of `nbgrader generate_assignment`, up to what it keeps in the gradebook."""
    file = f"{path.parent.name}/{path.name}"
    try:
        notebook = nbformat.read(path, as_version=4)
        language = notebook.metadata.get("kernelspec", {}).get("language", "python")
        if language != "python":
            raise ValueError(f"its language is {language}, and only Python can be graded here")
        if any(AUTOTEST.search(cell.source) for cell in notebook.cells):
            raise ValueError("it has AUTOTEST directives: nbgrader alone can grade it")
        notebook = release(notebook, settings)
    except Exception as error:  # whatever nbgrader and nbformat refuse
        raise BuildError(f"{file}: {error}") from error
    for cell in notebook.cells:
        if is_grade(cell) and (lines := _hidden_lines(cell, settings)):
            cell.metadata[HIDDEN] = lines
    notebook.nbformat_minor = 5
    identify(notebook.cells)
    text = nbformat.writes(notebook, version=4)
    return Master(path.parent.name, path.stem, text, _beside(path.parent, settings))


def _hidden_lines(cell: NotebookNode, settings: Config) -> list[int]:
    marks = ClearHiddenTests(config=settings)
    hidden, inside = [], False
    for number, line in enumerate(cell.source.split("\n"), start=1):
        inside |= marks.begin_test_delimeter in line
        if inside:
            hidden.append(number)
        inside &= marks.end_test_delimeter not in line
    return hidden


def _beside(folder: Path, settings: Config) -> tuple[tuple[str, bytes], ...]:
    """The files that nbgrader releases with the notebooks: data, pictures, modules."""
    ignored = [*CourseDirectory(config=settings).ignore, "*.ipynb"]
    paths = sorted(map(Path, find_all_files(str(folder), ignored)))
    if (size := sum(path.stat().st_size for path in paths)) > MAX_BESIDE:
        raise BuildError(
            f"{folder} holds {size / 2**20:.0f} MiB beside its notebooks, and a worker takes "
            f"{MAX_BESIDE // 2**20} MiB: move out what grading does not need."
        )
    return tuple((path.relative_to(folder).as_posix(), path.read_bytes()) for path in paths)
