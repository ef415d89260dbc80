"""The one writer to nbgrader's gradebook.

Grades are set the way nbgrader's own autograder sets them, so that manual scores, comments,
formgrader, feedback and export go on working; only the judging was done elsewhere.
"""

import copy
import fcntl
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
    TaskCell,
)
from nbgrader.preprocessors import SaveCells
from nbgrader.utils import compute_checksum, determine_grade, is_grade, is_solution
from sqlalchemy import bindparam, insert, make_url, select, update
from sqlalchemy.exc import IntegrityError, SAWarning, SQLAlchemyError
from sqlalchemy.orm import Session

from autograder.masters import Master

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
        with _alone(db_url):
            opened = Gradebook(db_url, COURSE_ID)
        with opened as gradebook:
            yield gradebook
    except (SQLAlchemyError, InvalidEntry) as error:
        cause = " ".join(str(getattr(error, "orig", None) or error).split())
        raise GradebookError(
            f"The gradebook {make_url(db_url)!r} failed: {cause:.300}. What was graded before is "
            "in it: grade again, and it goes on from there."
        ) from error


@contextmanager
def _alone(db_url: str) -> Iterator[None]:
    """One grader at a time where nbgrader looks whether something is there, and makes it."""
    url = make_url(db_url)
    if url.get_backend_name() != "sqlite" or not url.database:
        yield
        return
    folder = os.open(Path(url.database).parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


@dataclass(frozen=True)
class Registered:
    """A notebook in the gradebook: its id, its assignment's, and its cells' by their grade_id."""

    notebook: str
    assignment: str
    graded: dict[str, str]
    answered: dict[str, str]  # those that take a comment


def register(gradebook: Gradebook, db_url: str, master: Master) -> Registered:
    """Tell the gradebook a notebook's cells and points, as nbgrader does on release."""
    names = {"notebook": master.name, "assignment": master.assignment, "db_url": db_url}
    with _alone(db_url):
        gradebook.update_or_create_assignment(master.assignment)
        SaveCells().preprocess(copy.deepcopy(master.notebook), {"nbgrader": names})
    notebook, assignment = gradebook.db.execute(
        select(Notebook.id, Notebook.assignment_id)
        .join(Assignment)
        .where(Assignment.name == master.assignment)
        .where(Notebook.name == master.name)
    ).one()
    grades, solutions, tasks = (
        dict(gradebook.db.execute(select(k.name, k.id).where(k.notebook_id == notebook)).all())
        for k in (GradeCell, SolutionCell, TaskCell)
    )
    return Registered(notebook, assignment, grades | tasks, solutions | tasks)


def record(
    gradebook: Gradebook, registered: Registered, student: str, notebook: NotebookNode
) -> None:
    """Write the scores of one judged notebook, whose graded cells carry the verdicts' outputs.

    A score that a person gave is kept, and its cell is marked for another look. All in one
    transaction, by ids: nbgrader's own way takes some forty queries and three commits.
    """
    try:
        _record(gradebook.db, registered, student, notebook)
    except IntegrityError:  # another grader has made the same rows a moment ago
        gradebook.db.rollback()
        _record(gradebook.db, registered, student, notebook)


def graded_students(gradebook: Gradebook, assignment: str, name: str) -> set[str]:
    """The students who have a submission of the notebook `name` in the gradebook."""
    rows = gradebook.db.scalars(
        select(SubmittedAssignment.student_id)
        .join(SubmittedNotebook, SubmittedNotebook.assignment_id == SubmittedAssignment.id)
        .join(Notebook, Notebook.id == SubmittedNotebook.notebook_id)
        .join(Assignment, Assignment.id == Notebook.assignment_id)
        .where(Assignment.name == assignment)
        .where(Notebook.name == name)
    )
    return set(rows)


def _record(db: Session, cells: Registered, student: str, notebook: NotebookNode) -> None:
    submitted = _submitted(db, cells, student)
    grades, comments = Grade.__table__, Comment.__table__
    for table, wanted in ((grades, cells.graded), (comments, cells.answered)):
        there = set(db.scalars(select(table.c.cell_id).where(table.c.notebook_id == submitted)))
        new = [{"cell_id": i, "notebook_id": submitted} for i in wanted.values() if i not in there]
        if new:
            db.execute(insert(table), new)
    manual = select(grades.c.cell_id).where(grades.c.notebook_id == submitted)
    by_hand = set(db.scalars(manual.where(grades.c.manual_score.is_not(None))))
    scores, remarks = [], []
    for cell in notebook.cells:
        if is_grade(cell):
            i = cells.graded[cell.metadata.nbgrader.grade_id]
            score, _ = determine_grade(cell)
            look = score is None or i in by_hand
            scores.append({"i": i, "auto_score": score, "needs_manual_grade": look})
        if is_solution(cell):
            i = cells.answered[cell.metadata.nbgrader.grade_id]
            untouched = cell.metadata.nbgrader.get("checksum") == compute_checksum(cell)
            remarks.append({"i": i, "auto_comment": "No response." if untouched else None})
    for table, rows in ((grades, scores), (comments, remarks)):
        if rows:
            ours = (table.c.notebook_id == submitted) & (table.c.cell_id == bindparam("i"))
            db.connection().execute(update(table).where(ours), rows)
    db.commit()


def _submitted(db: Session, cells: Registered, student: str) -> str:
    """The id of the student's notebook, which is made the first time."""
    whole, mine = SubmittedAssignment.__table__, SubmittedNotebook.__table__
    folder = db.scalar(
        select(whole.c.id)
        .where(whole.c.assignment_id == cells.assignment)
        .where(whole.c.student_id == student)
    )
    if folder is None:
        if db.scalar(select(Student.id).where(Student.id == student)) is None:
            db.execute(insert(Student.__table__), {"id": student})
        row = {"assignment_id": cells.assignment, "student_id": student}
        folder = db.execute(insert(whole), row).inserted_primary_key[0]
    here = (mine.c.assignment_id == folder) & (mine.c.notebook_id == cells.notebook)
    found = db.scalar(select(mine.c.id).where(here))
    if found is None:
        row = {"assignment_id": folder, "notebook_id": cells.notebook}
        found = db.execute(insert(mine), row).inserted_primary_key[0]
    return found
