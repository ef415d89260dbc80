"""The one writer to nbgrader's gradebook.

Grades are set the way nbgrader's own autograder sets them, so that manual scores, comments,
formgrader, feedback and export go on working; only the judging was done elsewhere.
"""

import copy
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nbformat import NotebookNode
from nbgrader.api import (
    Assignment,
    Comment,
    Grade,
    Gradebook,
    GradeCell,
    InvalidEntry,
    Notebook,
    SolutionCell,
    Student,
    SubmittedAssignment,
    SubmittedNotebook,
)
from nbgrader.preprocessors import SaveCells
from nbgrader.utils import compute_checksum, determine_grade, is_grade, is_solution
from sqlalchemy import make_url, select
from sqlalchemy.exc import IntegrityError, SAWarning, SQLAlchemyError

COURSE_ID = "llm"


class GradebookError(RuntimeError):
    """The database failed: it is gone, full or locked. The message says so in a sentence."""


@contextmanager
def open_gradebook(db_url: str) -> Iterator[Gradebook]:
    """Open the gradebook at an SQLAlchemy URL, making its tables the first time.

    Raises GradebookError for whatever the database refuses while it is open.
    """
    # nbgrader's own models warn at every new submission about the order of their making.
    warnings.filterwarnings("ignore", category=SAWarning, module="nbgrader")
    # nbgrader asks the `alembic` command for its schema version: it stands beside this Python.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    try:
        with Gradebook(db_url, COURSE_ID) as gradebook:
            yield gradebook
    except (SQLAlchemyError, InvalidEntry) as error:
        cause = " ".join(str(getattr(error, "orig", None) or error).split())
        raise GradebookError(
            f"The gradebook {make_url(db_url)!r} failed: {cause:.300}. What was graded before is "
            "in it: grade again, and it goes on from there."
        ) from error


def register_chapter(gradebook: Gradebook, db_url: str, chapter: str, blank: NotebookNode) -> None:
    """Tell the gradebook a released chapter's cells and points, as nbgrader does on release."""
    gradebook.update_or_create_assignment(chapter)
    resources = {"nbgrader": {"notebook": chapter, "assignment": chapter, "db_url": db_url}}
    SaveCells().preprocess(copy.deepcopy(blank), resources)


def record(gradebook: Gradebook, student: str, chapter: str, notebook: NotebookNode) -> None:
    """Write the scores of one judged notebook, whose graded cells carry the verdicts' outputs.

    A score that a person gave is kept, and its cell is marked for another look. All in one
    transaction, by ids: nbgrader's own way takes some forty queries and three commits.
    """
    try:
        _record(gradebook, student, chapter, notebook)
    except IntegrityError:  # another grader has made the same rows a moment ago
        gradebook.db.rollback()
        _record(gradebook, student, chapter, notebook)


def graded_students(gradebook: Gradebook, chapter: str) -> set[str]:
    """The students who have a submission of the chapter in the gradebook."""
    return {submission.student_id for submission in gradebook.assignment_submissions(chapter)}


def _record(gradebook: Gradebook, student: str, chapter: str, notebook: NotebookNode) -> None:
    db = gradebook.db
    master = db.execute(
        select(Notebook).join(Assignment).where(Assignment.name == chapter)
    ).scalar_one()
    grade_cells, solution_cells = (
        dict(db.execute(select(kind.name, kind.id).where(kind.notebook_id == master.id)).all())
        for kind in (GradeCell, SolutionCell)
    )
    submitted = db.execute(
        select(SubmittedNotebook)
        .join(SubmittedAssignment)
        .where(SubmittedAssignment.student_id == student)
        .where(SubmittedNotebook.notebook_id == master.id)
    ).scalar_one_or_none()
    if submitted is None:
        if db.get(Student, student) is None:
            db.add(Student(id=student))
        assignment = SubmittedAssignment(assignment_id=master.assignment_id, student_id=student)
        submitted = SubmittedNotebook(
            notebook_id=master.id,
            assignment=assignment,
            grades=[Grade(cell_id=cell) for cell in grade_cells.values()],
            comments=[Comment(cell_id=cell) for cell in solution_cells.values()],
        )
        db.add(submitted)
    grades = {grade.cell_id: grade for grade in submitted.grades}
    comments = {comment.cell_id: comment for comment in submitted.comments}
    for cell in notebook.cells:
        if is_grade(cell):
            grade = grades[grade_cells[cell.metadata.nbgrader.grade_id]]
            grade.auto_score, _ = determine_grade(cell)
            by_hand = grade.manual_score is not None or grade.auto_score is None
            grade.needs_manual_grade = by_hand
        if is_solution(cell):
            comment = comments[solution_cells[cell.metadata.nbgrader.grade_id]]
            untouched = cell.metadata.nbgrader.get("checksum") == compute_checksum(cell)
            comment.auto_comment = "No response." if untouched else None
    db.commit()
