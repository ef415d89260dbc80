"""One verdict replayed: the same submission, check and seed again, this time with the values."""

from dataclasses import dataclass
from pathlib import Path

from autograder import fingerprint
from autograder.grade import course_limits
from autograder.graded import Graded, record_path
from autograder.judge import judge_submission
from autograder.masters import masters
from autograder.sandbox import Sandbox
from autograder.submission import find_submissions, read_found, read_submission
from autograder.verdict import Verdict


@dataclass(frozen=True)
class Replay:
    """A verdict of the record and what it comes to now.

    source:  the student's cell
    since:   what has changed since the record, in plain words; nothing where it must be the same
    """

    before: Verdict
    now: Verdict
    source: str
    since: tuple[str, ...]
    record: Graded


def explain(course: Path, student: str, chapter: str, exercise: str) -> Replay:
    """Judge one exercise of one student again, and keep the values of the cases.

    chapter:  as the record has it: "02-losses", "ps1/problem1"

    Writes nothing. Raises RecordError where nothing is graded, LookupError where there is no such
    exercise or no submission any more, SandboxUnavailable.
    """
    course = course.resolve()
    record = Graded.load(record_path(course, student, chapter))
    master = next(m for m in masters(course, record.assignment) if m.label == chapter)
    before = {verdict.exercise: verdict for verdict in record.verdicts}
    if exercise not in before or exercise not in master.exercises:
        raise LookupError(f"{chapter} has no exercise {exercise!r}: {', '.join(before)}.")
    submissions = find_submissions(course, master.assignment, master.name)
    found = next((one for one in submissions if one.student == student), None)
    if found is None or found.problem:
        problem = found.problem if found else "it is gone"
        raise LookupError(f"{student}'s {chapter} cannot be read: {problem}.")
    submission = read_submission(read_found(found), master.released, master.own_cells)
    limits = course_limits(course)
    others = [verdict for name, verdict in before.items() if name != exercise]
    with Sandbox(limits) as sandbox:
        verdicts = judge_submission(sandbox, master, submission, record.seed, False, others)
    now = next(verdict for verdict in verdicts if verdict.exercise == exercise)
    solution = (step for step in submission.steps if step.exercise == exercise and step.source)
    source = next((step.source for step in solution), "")
    check = fingerprint.of_exercise(master.exercises[exercise])
    since = {
        "the submission": submission.digest != record.submission,
        "the check": check != record.checks.get(exercise),
        f"the grader, its limits or the course (then: {record.versions})": (
            fingerprint.of_notebook(master, limits) != record.basis
        ),
    }
    return Replay(before[exercise], now, source, tuple(k for k, v in since.items() if v), record)
