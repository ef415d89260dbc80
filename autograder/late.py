"""Late submissions, as nbgrader has them: due dates, extensions, and penalties by its plugin.

    c.AssignLatePenalties.plugin_class = "late.OnePointADay"  # in nbgrader_config.py

The time of a submission stands in timestamp.txt beside it, where nbgrader's exchange puts it.
"""

import re
from datetime import datetime, timedelta
from pathlib import Path

from nbgrader.api import Assignment, Gradebook, Student, SubmittedAssignment, SubmittedNotebook
from nbgrader.preprocessors import AssignLatePenalties
from nbgrader.utils import parse_utc
from sqlalchemy import select
from traitlets import TraitError
from traitlets.config import Config

from autograder.gradebook import open_gradebook
from autograder.settings import SettingsError, nbgrader_settings
from autograder.submission import Unreadable, find_submissions, read_bytes

# A date, a time and a zone. A zone's name is looked up as a file: none that leads elsewhere.
TIME = re.compile(r"[\w :.,+-]{1,60}( [A-Za-z]+(/[\w+-]+)+)?")
NOT_A_TIME = 'is no time: write it as "2026-12-01 18:00:00 UTC".'


def parse_time(text: str) -> datetime:
    """The moment in `text`, in UTC and without a zone, as the gradebook keeps it.

    Read as nbgrader reads it: "2026-12-01 18:00:00 Europe/Berlin"; UTC where no zone is named.
    Raises ValueError.
    """
    try:
        if TIME.fullmatch(text):
            return parse_utc(text)
    except (ValueError, OverflowError, TypeError, AttributeError):
        pass
    raise ValueError(f"{text!a:.80} {NOT_A_TIME}")


def handed_in(folder: Path) -> datetime | None:
    """When the submission in `folder` was handed in; None where nothing tells.

    Raises ValueError where timestamp.txt is there but tells no time.
    """
    path = folder / "timestamp.txt"
    if not path.is_symlink() and not path.exists():
        return None
    try:
        return parse_time(read_bytes(path).decode("utf-8-sig").strip())
    except Unreadable as error:
        raise ValueError(f"timestamp.txt: {error}") from None
    except UnicodeDecodeError:
        raise ValueError(f"timestamp.txt {NOT_A_TIME}") from None


def extend(gradebook: Gradebook, chapter: str, student: str, extension: timedelta) -> None:
    """Give a student more time for a chapter, counted from its due date; none takes it back.

    An earlier extension is replaced. The submission may be still to come. Raises LookupError for
    a chapter or student that the gradebook does not know.
    """
    if gradebook.db.scalar(select(Assignment.id).where(Assignment.name == chapter)) is None:
        raise LookupError(f"The gradebook has no {chapter} yet: set its due date first.")
    if gradebook.db.get(Student, student) is None:
        raise LookupError(f"The gradebook has no student {student!a}: import the roster first.")
    submission = gradebook.update_or_create_submission(chapter, student)
    submission.extension = extension or None
    gradebook.db.commit()


def settle_class(course: Path, db_url: str, chapter: str | None = None) -> list[str]:
    """Write when each submission of a course was handed in, and what its lateness costs.

    Over all submissions (of one chapter), so that a moved due date, a new extension and a score
    given by hand count for those, too, that are not graded again. Returns a sentence for each
    timestamp that cannot be read: such a submission was handed in when the gradebook says.

    Raises SettingsError and GradebookError.
    """
    course, problems = course.resolve(), []
    settings = nbgrader_settings(course, db_url)
    with open_gradebook(db_url) as gradebook:
        for assignment in gradebook.assignments:
            if chapter in (None, assignment.name):
                problems += settle(gradebook, course, assignment.name, settings)
    return problems


def settle(gradebook: Gradebook, course: Path, chapter: str, settings: Config) -> list[str]:
    """`settle_class` for one chapter, or one nbgrader assignment."""
    problems, times = [], {}
    for found in find_submissions(course, chapter):
        try:
            times[found.student] = None if found.problem else handed_in(found.path.parent)
        except ValueError as error:
            problems.append(f"{found.student}, {chapter}: {error}")
    try:
        step = AssignLatePenalties(config=settings)
        step.init_plugin()
    except (TraitError, ImportError, AttributeError) as error:
        raise SettingsError(f"nbgrader_config.py names no late plugin: {error}") from error
    rows = gradebook.db.execute(
        select(SubmittedAssignment, SubmittedNotebook, Assignment.duedate)
        .join(SubmittedNotebook, SubmittedNotebook.assignment_id == SubmittedAssignment.id)
        .join(Assignment, Assignment.id == SubmittedAssignment.assignment_id)
        .where(Assignment.name == chapter)
    )
    for submission, notebook, due in rows:
        if time := times.get(submission.student_id):
            submission.timestamp = time
        seconds = submission.total_seconds_late if due else 0
        penalty = None
        if seconds:
            penalty = _penalty(step, submission.student_id, notebook, seconds)
        if notebook.late_submission_penalty != penalty:
            notebook.late_submission_penalty = penalty
    gradebook.db.commit()
    return problems


def _penalty(
    step: AssignLatePenalties, student: str, notebook: SubmittedNotebook, seconds: float
) -> float | None:
    try:
        penalty = step.plugin_inst.late_submission_penalty(student, notebook.score, seconds)
    except Exception as error:
        name = type(step.plugin_inst).__name__
        raise SettingsError(f"The late plugin {name} failed at {student!a}: {error!r}") from error
    return None if penalty is None else step._check_late_penalty(notebook, penalty)
