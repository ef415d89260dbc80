"""The one writer to nbgrader's gradebook.

Grades are set the way nbgrader's own autograder sets them, so that manual scores, comments,
formgrader, feedback and export go on working; only the judging was done elsewhere.
"""

import copy
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nbformat import NotebookNode
from nbgrader.api import Gradebook
from nbgrader.preprocessors import SaveCells
from nbgrader.utils import compute_checksum, determine_grade, is_grade, is_solution

COURSE_ID = "llm"


@contextmanager
def open_gradebook(db_url: str) -> Iterator[Gradebook]:
    """Open the gradebook at an SQLAlchemy URL, making its tables the first time."""
    # nbgrader asks the `alembic` command for its schema version: it stands beside this Python.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with Gradebook(db_url, COURSE_ID) as gradebook:
        yield gradebook


def register_chapter(gradebook: Gradebook, db_url: str, chapter: str, blank: NotebookNode) -> None:
    """Tell the gradebook a released chapter's cells and points, as nbgrader does on release."""
    gradebook.update_or_create_assignment(chapter)
    resources = {"nbgrader": {"notebook": chapter, "assignment": chapter, "db_url": db_url}}
    SaveCells().preprocess(copy.deepcopy(blank), resources)


def record(gradebook: Gradebook, student: str, chapter: str, notebook: NotebookNode) -> None:
    """Write the scores of one judged notebook, whose graded cells carry the verdicts' outputs.

    A score that a person gave is kept, and its cell is marked for another look.
    """
    gradebook.update_or_create_student(student)
    submission = gradebook.update_or_create_submission(chapter, student)
    (submitted,) = submission.notebooks
    grades = {grade.name: grade for grade in submitted.grades}
    comments = {comment.name: comment for comment in submitted.comments}
    for cell in notebook.cells:
        if is_grade(cell):
            grade = grades[cell.metadata.nbgrader.grade_id]
            grade.auto_score, _ = determine_grade(cell)
            by_hand = grade.manual_score is not None or grade.auto_score is None
            grade.needs_manual_grade = by_hand
        if is_solution(cell):
            untouched = cell.metadata.nbgrader.get("checksum") == compute_checksum(cell)
            comments[cell.metadata.nbgrader.grade_id].auto_comment = (
                "No response." if untouched else None
            )
    gradebook.db.commit()


def graded_students(gradebook: Gradebook, chapter: str) -> set[str]:
    """The students who have a submission of the chapter in the gradebook."""
    return {submission.student_id for submission in gradebook.assignment_submissions(chapter)}
