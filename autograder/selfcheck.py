"""A whole notebook scored by itself: what a student asks before handing in.

Nothing here needs nbgrader or Linux, but for the sandbox where it is asked for.
"""

import time
from pathlib import Path

import nbformat

from autograder.course import find_chapter
from autograder.graded import Graded
from autograder.judge import judge_submission
from autograder.master import chapter_from
from autograder.practice import PRACTICE_SEED
from autograder.sandbox import Limits, Sandbox
from autograder.submission import read_submission


def check_notebook(path: Path, chapter: str = "", trusted: bool = False) -> Graded:
    """Score one notebook on the practice cases.

    chapter:  told by the file's name otherwise
    trusted:  run it without the sandbox, as a program of one's own
    """
    start = time.perf_counter()
    try:
        taught = find_chapter(chapter or path.stem)
    except LookupError as error:
        hint = "" if chapter else " Keep the file's name, 10-decoding.ipynb say, or give --chapter."
        raise LookupError(f"{error}{hint}") from None
    notebook = nbformat.read(path, as_version=4)
    if any("### BEGIN SOLUTION" in cell.source for cell in notebook.cells):  # an instructor's
        from autograder.build import release

        notebook = release(notebook)
    submission = read_submission(path, notebook)
    master = chapter_from(notebook, taught)
    with Sandbox(Limits(), trusted=trusted) as sandbox:
        verdicts = judge_submission(sandbox, master, submission, PRACTICE_SEED, False)
    seconds = time.perf_counter() - start
    problems = tuple(submission.problems)
    return Graded("", taught.slug, tuple(verdicts), problems, PRACTICE_SEED, seconds=seconds)
