"""The gradebook as a table: nbgrader's own export agrees, and no cell computes anything."""

import csv
import io
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbgrader.plugins import CsvExportPlugin

from autograder.export import COLUMNS, as_canvas, as_csv, defused, read_grades
from autograder.gradebook import open_gradebook

DUE = datetime(2026, 11, 1, 12)
NAMES = {  # id -> last name, first name, e-mail, the number in the course's platform
    "ada": ("Lovelace", "Ada", "ada@example.org", "1815"),
    "bob": ("Smith, Jr", 'Bob "B"', None, "reg-7"),
    "cyd": ('=HYPERLINK("http://x","y")', "+1", "@SUM(A1)", None),
    "dée 1": ("\t=1+1", "Zoë\nZwei", "-2+3", "77"),
    "eve": (None, None, None, None),  # handed in nothing
}


@pytest.fixture(scope="module")
def gradebook(tmp_path_factory):
    with open_gradebook(
        f"sqlite:///{tmp_path_factory.mktemp('book') / 'gradebook.db'}"
    ) as gradebook:
        for chapter, due in (("02-losses", DUE), ("04-positions", None)):
            gradebook.add_assignment(chapter, duedate=due)
            gradebook.add_notebook(chapter, chapter)
            for cell, points in (("f", 4), ("g", 6)):
                gradebook.add_grade_cell(cell, chapter, chapter, max_score=points, cell_type="code")
        for student, (last, first, email, number) in NAMES.items():
            fields = {"last_name": last, "first_name": first, "email": email}
            gradebook.add_student(student, **fields, lms_user_id=number)
            if student == "eve":
                continue
            submission = gradebook.add_submission("02-losses", student, timestamp=DUE)
            for cell, points in (("f", 4), ("g", 2.25)):
                gradebook.find_grade(cell, "02-losses", "02-losses", student).auto_score = points
            if student == "ada":  # a person judged one cell; a day late
                grade = gradebook.find_grade("g", "02-losses", "02-losses", student)
                grade.manual_score, grade.extra_credit = 5, 0.5
                submission.timestamp = DUE + timedelta(days=1)
                submission.notebooks[0].late_submission_penalty = 1.5
            if student == "bob":
                gradebook.find_grade(
                    "g", "02-losses", "02-losses", student
                ).needs_manual_grade = True
        gradebook.db.commit()
        yield gradebook


@pytest.fixture(scope="module")
def rows(gradebook):
    return read_grades(gradebook)


def parsed(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline=""), strict=True))


def test_every_student_has_a_row_for_every_chapter(rows):
    assert len(rows) == 2 * len(NAMES)
    lines = parsed(as_csv(rows))
    assert lines[0] == list(COLUMNS)
    assert {len(line) for line in lines} == {len(COLUMNS)}
    found = {(line[0], line[3]): dict(zip(COLUMNS, line, strict=True)) for line in lines[1:]}
    ada = found["02-losses", "ada"]
    assert ada["raw_score"] == "9.5" and ada["late_submission_penalty"] == "1.5"
    assert ada["score"] == "8" and ada["max_score"] == "10"
    assert ada["duedate"] == str(DUE) and ada["timestamp"] == str(DUE + timedelta(days=1))
    assert found["02-losses", "bob"]["needs_manual_grade"] == "True"
    assert found["04-positions", "ada"]["score"] == "0"
    assert found["02-losses", "bob"]["first_name"] == 'Bob "B"'


def test_nbgraders_own_export_holds_the_same(gradebook, rows, tmp_path):
    """Of those whose names it does not break into more cells than it has columns."""
    plain = ["ada", "eve"]
    CsvExportPlugin(to=str(tmp_path / "theirs.csv"), student=plain).export(gradebook)
    theirs = list(csv.DictReader((tmp_path / "theirs.csv").open()))
    ours = [one for one in csv.DictReader(io.StringIO(as_csv(rows))) if one["student_id"] in plain]
    assert len(ours) == len(theirs) == 2 * len(plain)
    by_row = {(one["assignment"], one["student_id"]): one for one in ours}
    for other in theirs:
        mine = by_row[other["assignment"], other["student_id"]]
        for column, value in other.items():
            if "score" in column or "penalty" in column:
                assert float(mine[column]) == float(value), column
            else:
                assert mine[column] == value, column


def test_a_chapter_that_the_gradebook_does_not_know_is_named(gradebook):
    assert {row.assignment for row in read_grades(gradebook, "02-losses")} == {"02-losses"}
    with pytest.raises(LookupError, match="no 05-attention: run `autograder grade 05-attention`"):
        read_grades(gradebook, "05-attention")


# --- Canvas ----------------------------------------------------------------------------------


def test_canvas_reads_its_own_header_points_and_ids(rows):
    header, points, *lines = parsed(as_canvas(rows))
    assert header == [
        *("Student", "ID", "SIS User ID", "SIS Login ID", "Section"),
        *("02-losses", "04-positions"),
    ]
    assert points[0].strip() == "Points Possible" and points[5:] == ["10", "10"]
    by_login = {line[3]: line for line in lines}
    assert by_login["ada"] == ["Lovelace, Ada", "1815", "", "ada", "", "8", ""]
    assert by_login["bob"] == ['Smith, Jr, Bob "B"', "", "reg-7", "bob", "", "6.25", ""]
    assert by_login["eve"] == ["eve", "", "", "eve", "", "", ""]  # no grade is changed there


# --- spreadsheets ----------------------------------------------------------------------------


@pytest.mark.parametrize("write", [as_csv, as_canvas])
def test_no_cell_is_a_formula(write, rows):
    cells = [cell for line in parsed(write(rows)) for cell in line]
    assert any(cell.startswith("'=HYPERLINK") for cell in cells)
    assert any("'@SUM(A1)" in cell for cell in cells) or write is as_canvas
    for cell in cells:
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
        assert "\n" not in cell


def test_where_a_semicolon_ends_a_cell_the_next_one_is_no_formula():
    """A spreadsheet reads so where the comma is the decimal point."""
    assert defused("Smith;=1+1; @SUM(A1);a") == "Smith;'=1+1; '@SUM(A1);a"


@given(st.text())
def test_a_defused_cell_is_one_line_that_computes_nothing(text):
    cell = defused(text)
    assert cell.isprintable() and cell[:1] not in ("=", "+", "-", "@", "\t", "\r", "＝", "＋")
    assert parsed(",".join(["x", '"' + cell.replace('"', '""') + '"']))[0][1] == cell
    if text.isprintable() and text == " ".join(text.split()) and text[:1].isalnum():
        assert cell == text


def test_what_is_read_is_what_stands_in_the_file(tmp_path, rows):
    path = Path(tmp_path / "grades.csv")
    path.write_text(as_csv(rows), encoding="utf-8", newline="")
    assert "Zoë Zwei" in path.read_text(encoding="utf-8")
