"""The roster: a CSV file of students into nbgrader's gradebook."""

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from nbgrader.api import Gradebook, Student

from autograder.display import one_line
from autograder.submission import valid_student_id

FIELDS = ("first_name", "last_name", "email", "lms_user_id")
ALIASES = {
    "e_mail": "email",
    "student_id": "id",
    "given_name": "first_name",
    "surname": "last_name",
}
LONGEST = 128  # characters that the gradebook's columns hold


class RosterError(RuntimeError):
    """A roster cannot be imported: the message says which line and why. Nothing was written."""


@dataclass(frozen=True)
class Roster:
    """What a file says: student id -> fields; `ignored` are columns that no field takes."""

    students: dict[str, dict[str, str | None]]
    ignored: tuple[str, ...] = ()
    repeated: int = 0  # lines that say once more what another has said


def read_roster(path: Path) -> Roster:
    """The roster in a CSV file with the columns id, first_name, last_name, email, lms_user_id.

    Only id is required, the order is free, and "First Name" is read as first_name. UTF-8 and
    UTF-16, with or without a byte-order mark; commas, semicolons or tabs. An empty cell empties
    the field. Raises RosterError.
    """
    text = _text(path)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    try:
        table = [(lines.line_num, row) for row in lines if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise RosterError(f"{path}, line {lines.line_num}: {error}.") from None
    if not table:
        raise RosterError(f"{path} is empty: its first line names the columns, as id,first_name.")
    header = [cell.strip().lower().replace(" ", "_").replace("-", "_") for cell in table[0][1]]
    header = [ALIASES.get(name, name) for name in header]
    if "id" not in header:
        found = ", ".join(one_line(cell) for cell in table[0][1])
        raise RosterError(f"{path} has no column id; its first line reads: {found:.200}.")
    for name, count in Counter(header).items():
        if count > 1 and name in ("id", *FIELDS):
            raise RosterError(f"{path} has {count} columns {name}: leave one.")

    students: dict[str, dict[str, str | None]] = {}
    lines_of: dict[str, int] = {}
    repeated = 0
    for number, row in table[1:]:
        place = f"{path}, line {number}"
        if len(row) > len(header):
            raise RosterError(
                f"{place}: {len(row)} cells under {len(header)} columns; does a cell hold a "
                "separator without quotes around it?"
            )
        cells = {name: one_line(cell) for name, cell in zip(header, row, strict=False)}
        student = _student_id(cells.get("id", ""), place)
        fields = {name: cells.get(name) or None for name in FIELDS if name in header}
        for name, value in fields.items():
            if value and len(value) > LONGEST:
                raise RosterError(f"{place}: the {name} is longer than {LONGEST} characters.")
        if student in students and students[student] != fields:
            raise RosterError(
                f"{place}: {student} is there already, in line {lines_of[student]}, with other "
                "data: leave one."
            )
        repeated += student in students
        students[student], lines_of[student] = fields, number
    ignored = tuple(one_line(name) for name in header if name not in ("id", *FIELDS))
    return Roster(students, ignored, repeated)


def import_roster(gradebook: Gradebook, roster: Roster) -> tuple[int, int]:
    """Write the roster into the gradebook, all of it or nothing: (new students, changed ones).

    Who is in the gradebook and not in the roster stays there.
    """
    new = changed = 0
    for student, fields in roster.students.items():
        known = gradebook.db.get(Student, student)
        if known is None:
            gradebook.db.add(Student(id=student, **fields))
            new += 1
        elif any(getattr(known, name) != value for name, value in fields.items()):
            for name, value in fields.items():
                setattr(known, name, value)
            changed += 1
    gradebook.db.commit()
    return new, changed


def _text(path: Path) -> str:
    data = path.read_bytes()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RosterError(
            f"{path}, line {line}: this is not {encoding.upper().removesuffix('-SIG')} text; save "
            'it as "CSV UTF-8" and import it again.'
        ) from None


def _delimiter(text: str) -> str:
    first = text.partition("\n")[0]
    return max(",;\t", key=first.count)


def _student_id(text: str, place: str) -> str:
    if not text:
        raise RosterError(f"{place}: the id is empty.")
    try:
        return valid_student_id(text)
    except ValueError as error:
        raise RosterError(f"{place}: {error}.".replace(": rename its folder", "")) from None
