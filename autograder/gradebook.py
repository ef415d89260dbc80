"""The one writer to nbgrader's gradebook.

Grades are set the way nbgrader's own autograder sets them, so that manual scores, comments,
formgrader, feedback and export go on working; only the judging was done elsewhere.
"""

import copy
import fcntl
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import nbgrader
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from nbformat import NotebookNode
from nbgrader.api import (
    Assignment,
    Base,
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
from sqlalchemy import (
    URL,
    Connection,
    NullPool,
    bindparam,
    create_engine,
    func,
    insert,
    inspect,
    make_url,
    select,
    update,
)
from sqlalchemy.exc import (
    ArgumentError,
    IntegrityError,
    NoSuchModuleError,
    SAWarning,
    SQLAlchemyError,
)
from sqlalchemy.orm import Session

from autograder.master import Master

COURSE_ID = "llm"
URLS = "postgresql+psycopg://USER@HOST/DATABASE or sqlite:////FOLDER/gradebook.db"
POSTGRESQL_LOCK = 0x6E62677261646572  # "nbgrader": the number on which graders agree
POSTGRESQL_SECONDS = "10"  # to wait for a host that does not answer


class GradebookError(RuntimeError):
    """The database failed: it is gone, full or locked. The message says so in a sentence."""


@contextmanager
def open_gradebook(db_url: str) -> Iterator[Gradebook]:
    """Open the gradebook at an SQLAlchemy URL, making its tables the first time.

    Raises GradebookError for a URL that is wrong, and for whatever the database refuses while it
    is open. No password is in the message.
    """
    url = _url(db_url)
    os.environ.setdefault("PGCONNECT_TIMEOUT", POSTGRESQL_SECONDS)
    # nbgrader's own models warn at every new submission about the order of their making.
    warnings.filterwarnings("ignore", category=SAWarning, module="nbgrader")
    try:
        with _alone(db_url):
            _make_tables(url)
            opened = Gradebook(db_url, COURSE_ID)
        with opened as gradebook:
            yield gradebook
    except (SQLAlchemyError, InvalidEntry) as error:
        cause = " ".join(str(getattr(error, "orig", None) or error).split()).rstrip(".")
        raise GradebookError(
            f"The gradebook {_shown(url)} failed: {cause:.300}. What was graded before is "
            "in it: grade again, and it goes on from there."
        ) from error


def _url(db_url: str) -> URL:
    """The URL, if it is one and its driver is installed. Raises GradebookError."""
    url = None
    try:
        url = make_url(db_url)
        url.get_dialect().import_dbapi()
    except NoSuchModuleError:
        raise GradebookError(f"{url.drivername!r} is no database: write {URLS}.") from None
    except (ArgumentError, ValueError):  # whose words would show the password
        raise GradebookError(f"The gradebook's URL cannot be read: write {URLS}.") from None
    except ImportError as error:
        advice = f"python -m pip install {error.name}"
        if url.get_backend_name() == "postgresql":
            advice = "python -m pip install 'psycopg[binary]', and write postgresql+psycopg://"
        raise GradebookError(
            f"The gradebook {_shown(url)} wants a driver that is not there: {advice}."
        ) from None
    if "@" in (url.host or ""):  # the rest of a password
        raise GradebookError("The gradebook's URL holds two @: write %40 for one in a password.")
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").parent.is_dir():
        raise GradebookError(f"There is no folder for the gradebook {_shown(url)}.")
    return url


def _shown(url: URL) -> str:
    """The URL without its password, wherever that stands."""
    return url.set(query={}).render_as_string(hide_password=True)


def _make_tables(url: URL) -> None:
    """nbgrader's tables and the version of their schema, in a database that has none.

    nbgrader would do the same, but starts a program to learn the version: four seconds.
    """
    with create_engine(url, poolclass=NullPool).begin() as connection:
        if not inspect(connection).get_table_names():
            Base.metadata.create_all(connection)
            script = ScriptDirectory(str(resources.files(nbgrader) / "alembic"))
            MigrationContext.configure(connection).stamp(script, "head")


@contextmanager
def _alone(db_url: str) -> Iterator[None]:
    """One grader at a time where nbgrader looks whether something is there, and makes it.

    In PostgreSQL none records meanwhile, either.
    """
    url = make_url(db_url)
    if url.get_backend_name() == "postgresql":
        with create_engine(url, poolclass=NullPool).connect() as connection:
            connection.execute(select(func.pg_advisory_lock(POSTGRESQL_LOCK)))
            yield  # closing the connection ends the lock
        return
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
        _SaveAtOnce().preprocess(copy.deepcopy(master.notebook), {"nbgrader": names})
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


class _SaveAtOnce(SaveCells):
    """nbgrader's way to write a notebook's cells, which commits each: here all of them or none."""

    def _create_notebook(self, nb: NotebookNode) -> None:
        db = self.gradebook.db
        commit, db.commit = db.commit, db.flush
        try:
            super()._create_notebook(nb)
        finally:
            db.commit = commit
        db.commit()


@dataclass(frozen=True)
class Entry:
    """What a judged notebook says to the gradebook, by its cells' grade_ids.

    scores:    of the graded cells; None where a person is to give one
    comments:  on the cells that a student fills, where there is one to make
    """

    scores: dict[str, float | None]
    comments: dict[str, str | None]


def entry_of(notebook: NotebookNode) -> Entry:
    """What nbgrader reads off a notebook whose graded cells carry the verdicts' outputs."""
    scores, comments = {}, {}
    for cell in notebook.cells:
        if is_grade(cell):
            scores[cell.metadata.nbgrader.grade_id], _ = determine_grade(cell)
        if is_solution(cell):
            untouched = cell.metadata.nbgrader.get("checksum") == compute_checksum(cell)
            comments[cell.metadata.nbgrader.grade_id] = "No response." if untouched else None
    return Entry(scores, comments)


def record(gradebook: Gradebook, registered: Registered, student: str, entry: Entry) -> None:
    """Write what a student's judged notebook says.

    A score that a person gave is kept, and its cell is marked for another look. All in one
    transaction, by ids: nbgrader's own way takes some forty queries and three commits.
    """
    try:
        _record(gradebook.db, registered, student, entry)
    except IntegrityError:  # another grader has made the same rows a moment ago
        gradebook.db.rollback()
        _record(gradebook.db, registered, student, entry)


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


def _record(db: Session, cells: Registered, student: str, entry: Entry) -> None:
    scores = {i: {"auto_score": None, "needs_manual_grade": True} for i in cells.graded.values()}
    for name, score in entry.scores.items():
        scores[cells.graded[name]] = {"auto_score": score, "needs_manual_grade": score is None}
    remarks = {i: {"auto_comment": None} for i in cells.answered.values()}
    for name, comment in entry.comments.items():
        remarks[cells.answered[name]] = {"auto_comment": comment}
    connection = db.connection()
    if connection.dialect.name == "postgresql":  # to register is to delete and write anew
        connection.execute(select(func.pg_advisory_xact_lock_shared(POSTGRESQL_LOCK)))
    submitted = _submitted(connection, cells, student)
    grades, comments = Grade.__table__, Comment.__table__
    known = select(grades.c.cell_id, grades.c.manual_score).where(grades.c.notebook_id == submitted)
    graded = dict(connection.execute(known).all())
    for i in graded.keys() & scores.keys():
        scores[i]["needs_manual_grade"] |= graded[i] is not None
    known = select(comments.c.cell_id).where(comments.c.notebook_id == submitted)
    commented = set(connection.scalars(known))
    for table, rows, there in ((grades, scores, graded), (comments, remarks, commented)):
        new = [
            {"cell_id": i, "notebook_id": submitted} | r for i, r in rows.items() if i not in there
        ]
        if new:
            connection.execute(insert(table), new)
        if old := [{"i": i} | r for i, r in rows.items() if i in there]:
            ours = (table.c.notebook_id == submitted) & (table.c.cell_id == bindparam("i"))
            connection.execute(update(table).where(ours), old)
    db.commit()


def _submitted(connection: Connection, cells: Registered, student: str) -> str:
    """The id of the student's notebook, which is made the first time."""
    whole, mine = SubmittedAssignment.__table__, SubmittedNotebook.__table__
    of_student = (whole.c.assignment_id == cells.assignment) & (whole.c.student_id == student)
    folder = connection.scalar(select(whole.c.id).where(of_student))
    if folder is None:
        if connection.scalar(select(Student.id).where(Student.id == student)) is None:
            connection.execute(insert(Student.__table__), {"id": student})
        row = {"assignment_id": cells.assignment, "student_id": student}
        folder = connection.execute(insert(whole), row).inserted_primary_key[0]
    here = (mine.c.assignment_id == folder) & (mine.c.notebook_id == cells.notebook)
    found = connection.scalar(select(mine.c.id).where(here))
    if found is None:
        row = {"assignment_id": folder, "notebook_id": cells.notebook}
        found = connection.execute(insert(mine), row).inserted_primary_key[0]
    return found
