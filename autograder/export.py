"""The gradebook as a table: nbgrader's CSV, or what Canvas imports.

Scores given by hand and late penalties are in it, for both stand in the gradebook. Names and ids
come from outside, so no cell of theirs is taken for a formula by a spreadsheet.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from nbgrader.api import Assignment, Gradebook, Student, SubmittedAssignment
from sqlalchemy import select

from autograder.display import one_line

# What a spreadsheet takes for the beginning of one, in a cell or behind a semicolon: where the
# comma is the decimal point, that ends a cell.
FORMULA = re.compile(r"(^|; ?)(?=[=+\-@＝＋－＠])")
COLUMNS = (
    *("assignment", "duedate", "timestamp", "student_id", "last_name", "first_name", "email"),
    *("raw_score", "late_submission_penalty", "score", "max_score", "needs_manual_grade"),
)


@dataclass(frozen=True)
class Row:
    """One student's chapter; `handed_in` is false where there is nothing, which scores 0."""

    assignment: str
    duedate: datetime | None
    timestamp: datetime | None
    student_id: str
    last_name: str | None
    first_name: str | None
    email: str | None
    lms_user_id: str | None
    raw_score: float
    late_submission_penalty: float
    max_score: float
    needs_manual_grade: bool
    handed_in: bool

    @property
    def score(self) -> float:
        return max(0.0, self.raw_score - self.late_submission_penalty)


def read_grades(gradebook: Gradebook, chapter: str | None = None) -> list[Row]:
    """A row for every student and chapter (for one chapter), by chapter and student.

    Raises LookupError for a chapter that the gradebook does not know.
    """
    chosen = [a for a in gradebook.assignments if chapter in (None, a.name)]
    if chapter and not chosen:
        raise LookupError(f"The gradebook has no {chapter}: run `autograder grade {chapter}`.")
    query = (
        select(
            SubmittedAssignment.student_id,
            Assignment.name,
            SubmittedAssignment.timestamp,
            SubmittedAssignment.score,
            SubmittedAssignment.late_submission_penalty,
            SubmittedAssignment.needs_manual_grade,
        )
        .join(Assignment, Assignment.id == SubmittedAssignment.assignment_id)
        .where(Assignment.name.in_([a.name for a in chosen]))
    )
    found = {(row.student_id, row.name): row for row in gradebook.db.execute(query)}
    students = gradebook.db.scalars(select(Student).order_by(Student.id)).all()
    rows = []
    for assignment in sorted(chosen, key=lambda a: a.name):
        maximum = assignment.max_score or 0.0
        for student in students:
            row = found.get((student.id, assignment.name))
            rows.append(
                Row(
                    assignment.name,
                    assignment.duedate,
                    row and row.timestamp,
                    student.id,
                    student.last_name,
                    student.first_name,
                    student.email,
                    student.lms_user_id,
                    float(row.score or 0) if row else 0.0,
                    float(row.late_submission_penalty or 0) if row else 0.0,
                    float(maximum),
                    bool(row and row.needs_manual_grade),
                    row is not None,
                )
            )
    return rows


def as_csv(rows: Iterable[Row]) -> str:
    """One line for each student and chapter, in the columns of nbgrader's own export."""
    lines = [[_cell(getattr(row, column)) for column in COLUMNS] for row in rows]
    return _table([COLUMNS, *lines])


def as_canvas(rows: Sequence[Row]) -> str:
    """One line for each student, one column for each chapter, as Canvas's gradebook imports it.

    Canvas finds a student by its own id, then by the login, then by the name; a chapter by its
    title. Where nothing was handed in the cell is empty, which changes no grade there.
    """
    chapters = {row.assignment: row.max_score for row in rows}
    students: dict[str, list[Row]] = {}
    for row in rows:
        students.setdefault(row.student_id, []).append(row)
    identity = ["Student", "ID", "SIS User ID", "SIS Login ID", "Section"]
    lines = [
        [*identity, *(_cell(chapter) for chapter in chapters)],
        ["    Points Possible", "", "", "", "", *(_cell(points) for points in chapters.values())],
    ]
    for student, of_student in students.items():
        first = of_student[0]
        name = ", ".join(filter(None, (first.last_name, first.first_name))) or student
        number, text = first.lms_user_id or "", ""
        if not number.isdecimal():  # Canvas's own ids are numbers; this is the registry's
            number, text = "", number
        scores = {row.assignment: row.score for row in of_student if row.handed_in}
        lines.append(
            [
                *(_cell(value) for value in (name, number, text, student, "")),
                *(_cell(scores.get(chapter)) for chapter in chapters),
            ]
        )
    return _table(lines)


def defused(text: str) -> str:
    """`text` as one line that a spreadsheet shows and does not compute."""
    return FORMULA.sub(r"\1'", one_line(text))


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case float():
            return f"{value:.2f}".rstrip("0").rstrip(".")
        case str():
            return defused(value)
        case _:
            return str(value)


def _table(lines: Iterable[Sequence[str]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()
