"""What students get back: nbgrader's feedback pages, which show our messages."""

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nbgrader.converters import GenerateFeedback
from nbgrader.coursedir import CourseDirectory
from nbgrader.utils import capture_log
from traitlets.config import Config

from autograder.settings import nbgrader_settings

SAFE = {
    "markdown2html": "autograder.nbgrader_plugin.harmless_markdown",
    "highlight_code": "autograder.nbgrader_plugin.harmless_code",
    "clean_html": "autograder.nbgrader_plugin.harmless_html",
}


@dataclass(frozen=True)
class Feedback:
    """The pages that were written, the notebooks that have none, and nbgrader's words on them."""

    pages: list[Path]
    failed: list[Path]
    log: str


def write_feedback(
    course: Path,
    assignment: str,
    db_url: str,
    student: str | None = None,
    jobs: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Feedback:
    """Write feedback/STUDENT/ASSIGNMENT/*.html for every graded notebook (of one student).

    jobs:      how many processes write; one for each core otherwise
    progress:  called with how many students are done, and of how many

    Pages of an earlier run are replaced: scores and comments may have changed since. Whatever
    nbgrader_config.py says, no page runs what a student wrote, or takes long to draw it. Raises
    LookupError if there is nothing graded.
    """
    course = course.resolve()
    judged: dict[str, list[Path]] = {}
    for path in sorted(course.glob(f"autograded/*/{assignment}/*.ipynb")):
        if student in (None, path.parent.parent.name):
            judged.setdefault(path.parent.parent.name, []).append(path)
    if not judged:
        whose = f" by {student!a}" if student else ""
        raise LookupError(f"No {assignment}{whose} is graded yet: run `autograder grade`.")
    settings = nbgrader_settings(course, db_url)
    filters = settings.HTMLExporter.get("filters", {})
    settings.HTMLExporter.filters = {**filters, **SAFE}
    pages, failed, log, start = [], [], "", time.time()
    jobs = min(jobs or os.cpu_count() or 1, len(judged))
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork")) as pool:
        writing = pool.map(partial(_write, settings, assignment), judged)
        for done, said in enumerate(writing, start=1):
            log += said
            progress(done, len(judged))
    for notebook in (path for paths in judged.values() for path in paths):
        beside = course / "feedback" / notebook.parent.relative_to(course / "autograded")
        page = beside / f"{notebook.stem}.html"
        if page.is_file() and page.stat().st_mtime > start - 1:  # not an earlier run's
            pages.append(page)
        else:
            failed.append(notebook)
    return Feedback(pages, failed, log)


def _write(settings: Config, assignment: str, student: str) -> str:
    """Write one student's pages; what nbgrader says if it fails at them."""
    folder = CourseDirectory(config=settings, assignment_id=assignment, student_id=student)
    done = capture_log(GenerateFeedback(coursedir=folder, config=settings, force=True))
    return "" if done["success"] else done.get("log", "") + done["error"]
