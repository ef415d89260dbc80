"""The instructor's commands, from the roster to what students get back, on one small class."""

import csv
import io
import json
import re
import shutil
import sqlite3
from dataclasses import fields, replace
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from typer.testing import CliRunner

from autograder import grade
from autograder.__main__ import app
from autograder.demo.synthetic import make_class, write_class
from autograder.graded import Graded, load_class
from autograder.outline import Outline
from autograder.verdict import Verdict
from tests.browser import PROGRAM, chromium

ROOT = Path(__file__).parents[2]
CHAPTER = "02-losses"
MISTAKEN = "mistaken-02"
HOSTILE = '<img src=x onerror="window.owned=1"> [a](javascript:alert(1)) <script>owned=1</script>'


def autograder(course: Path, *command: str, code: int = 0):
    done = CliRunner().invoke(app, [*command, "--course", str(course)])
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A class of four, one of them with hostile text in a written answer and in an error."""
    course = tmp_path_factory.mktemp("course")
    bits = ("entropy", "the logarithm has base 2: these are bits, not nats")
    everybody = make_class(ROOT)
    mistaken = next(one for one in everybody if bits in one.diagnosis.items())
    students = [one for one in everybody if one.student in ("perfect-02", "blank-02")]
    write_class(ROOT, course, [*students, replace(mistaken, student=MISTAKEN)])
    for folder in (course / "solutions").iterdir():
        if folder.name != CHAPTER:
            shutil.rmtree(folder)
    perfect = course / "submitted" / "perfect-02" / CHAPTER / f"{CHAPTER}.ipynb"
    notebook = json.loads(perfect.read_text())
    for cell in notebook["cells"]:
        marks = cell["metadata"].get("nbgrader", {})
        if marks.get("solution") and marks.get("grade"):
            cell["source"] = HOSTILE
        elif marks.get("solution"):
            cell["source"] = f"raise RuntimeError({HOSTILE!r})"
    hostile = course / "submitted" / "hostile" / CHAPTER / f"{CHAPTER}.ipynb"
    hostile.parent.mkdir(parents=True)
    hostile.write_text(json.dumps(notebook))
    roster = course / "students.csv"
    roster.write_text("id,first_name,last_name\nhostile,Eve,=1+1\nabsent,Abe,Sent\n")
    autograder(course, "roster", str(roster))
    graded = autograder(course, "grade", "--jobs", "1", "--json")
    return course, json.loads(graded.stdout)


@pytest.fixture
def course(made, tmp_path):
    return Path(shutil.copytree(made[0], tmp_path / "course"))


def test_grade_prints_the_json_and_nothing_else(made):
    course, data = made
    assert data["students"] == 4 and data["format"] == 1
    assert {one["student"] for one in data["notebooks"]} == {
        *("blank-02", "hostile", MISTAKEN, "perfect-02")
    }
    assert not (course / "report.html").exists()


def test_a_dry_run_prints_its_json(made, course):
    done = autograder(course, "grade", "--jobs", "1", "--json", "--dry-run")
    assert json.loads(done.stdout) == made[1]


def test_the_report_is_the_same_later(made, course):
    assert json.loads(autograder(course, "report", "losses", "--json").stdout) == made[1]
    shown = autograder(course, "report").stdout
    assert (course / "report.html").is_file() and "4 students" in shown
    autograder(course, "report", "--for-class")
    assert "perfect-02" not in (course / "report-for-class.html").read_text()
    autograder(course, "report", "05", code=1)


def test_a_score_given_by_hand_and_a_penalty_are_exported(course):
    with sqlite3.connect(course / "gradebook.db") as connection:
        connection.execute("update grade set manual_score = 0.25 where auto_score is null")
        connection.execute("update grade set needs_manual_grade = 0")
        connection.execute("update submitted_notebook set late_submission_penalty = 0.5")
    done = autograder(course, "export", "02", "--format", "csv")
    rows = {row["student_id"]: row for row in csv.DictReader(io.StringIO(done.stdout))}
    assert rows.keys() == {"absent", "blank-02", "hostile", MISTAKEN, "perfect-02"}
    perfect = rows["perfect-02"]
    assert float(perfect["raw_score"]) == 36.25 and float(perfect["score"]) == 35.75
    assert rows["hostile"]["last_name"] == "'=1+1"
    assert rows["absent"]["score"] == "0"
    file = course / "canvas.csv"
    autograder(course, "export", "--format", "canvas", "--to", str(file))
    assert next(csv.reader(file.open())) == [
        *("Student", "ID", "SIS User ID", "SIS Login ID", "Section", CHAPTER)
    ]


def test_feedback_shows_our_messages_and_runs_nothing(course):
    said = autograder(course, "feedback", "losses").stdout
    assert f"{CHAPTER}: 4 pages" in said
    page = course / "feedback" / MISTAKEN / CHAPTER / f"{CHAPTER}.html"
    text = BeautifulSoup(page.read_text(), "html.parser").get_text()
    assert "Diagnosis: the logarithm has base 2" in re.sub(r"\s+", " ", text)
    hostile = course / "feedback" / "hostile" / CHAPTER / f"{CHAPTER}.html"
    soup = BeautifulSoup(hostile.read_text(), "html.parser")
    assert not [tag for tag in soup.find_all() if any(a.startswith("on") for a in tag.attrs)]
    assert not [a for a in soup.find_all("a") if a.get("href", "").startswith("javascript:")]
    assert not [script for script in soup.find_all("script") if "owned" in script.get_text()]


@pytest.mark.skipif(not PROGRAM, reason="no Chromium is installed")
def test_hostile_feedback_owns_no_browser(course):
    autograder(course, "feedback", CHAPTER, "--student", "hostile")
    with chromium() as page:
        page.open(course / "feedback" / "hostile" / CHAPTER / f"{CHAPTER}.html")
        assert page.evaluate("window.owned") is None
        shown = page.evaluate("document.body.innerText")
    assert "<script>owned=1</script>" in shown


def test_feedback_is_written_again_after_a_comment(course):
    autograder(course, "feedback", "--student", "blank-02")
    with sqlite3.connect(course / "gradebook.db") as connection:
        connection.execute("update comment set manual_comment = 'Come and see me.'")
    autograder(course, "feedback", "--student", "blank-02")
    pages = list(course.glob("feedback/*/*/*.html"))
    assert [page.parts[-3] for page in pages] == ["blank-02"]
    assert "Come and see me." in pages[0].read_text()


def test_similar_prints_json_or_writes_a_page(course):
    pairs = json.loads(autograder(course, "similar", "--json", "--least", "50").stdout)
    assert {pair["with_reference"] for pair in pairs} == {True}
    assert not (course / "similar.html").exists()
    said = autograder(course, "similar", "02", "--least", "50").stdout
    assert "Alike: students" in said and (course / "similar.html").is_file()


# --- exit codes ------------------------------------------------------------------------------


def test_what_is_missing_is_said(tmp_path):
    (tmp_path / "solutions").mkdir()
    for command in (
        ["report"],
        ["feedback"],
        ["export"],
        ["extend", CHAPTER, "ada", "--days", "1"],
    ):
        done = CliRunner().invoke(app, [*command, "--course", str(tmp_path)])
        assert done.exit_code == 1
        assert not (tmp_path / "gradebook.db").exists()


def test_a_failure_of_the_grader_has_a_code_of_its_own(course, monkeypatch):
    records = list(load_class(course))
    lost = Verdict("entropy", 3, 0, "ungraded", problem="not graded, for the disk is full")
    failed = Graded("zoe", CHAPTER, (lost,), (lost.problem,))
    monkeypatch.setattr(grade, "grade_class", lambda *_, **__: [*records, failed])
    done = autograder(course, "grade", code=3)
    assert "the disk is full" in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        ["grade", "--jobs", "0"],
        ["due", CHAPTER, "soon"],
        ["export", "--format", "xls"],
        ["roster", "nowhere.csv"],
        ["extend", CHAPTER, "ada", "--days", "-1"],
        ["frobnicate"],
    ],
)
def test_a_wrong_argument_is_code_two(command, course):
    done = CliRunner().invoke(app, [*command, "--course", str(course)])
    assert done.exit_code == 2


def test_nbgrader_config_says_where_the_gradebook_is(course):
    (course / "gradebook.db").rename(course / "moved.db")
    with open(course / "nbgrader_config.py", "a") as settings:
        settings.write(f"\nc.CourseDirectory.db_url = 'sqlite:///{course / 'moved.db'}'\n")
    autograder(course, "due", CHAPTER, "never")
    assert "perfect-02" in autograder(course, "export").stdout
    autograder(course, "grade", "--jobs", "1")
    assert not (course / "gradebook.db").exists()


@pytest.mark.parametrize("command", ["grade", "export", "similar"])
def test_help_tells_the_defaults(command):
    done = CliRunner().invoke(app, [command, "--help"])
    assert "(default: " in " ".join(done.stdout.split())
    assert " ." not in done.stdout.replace("[default: .]", "")


def test_the_outline_counts_what_the_releases_hold():
    lines = autograder(ROOT, "outline").stdout.splitlines()
    head, *rows, last = (line.split() for line in lines)
    assert head == [field.name for field in fields(Outline)]
    for slug, exercises, questions, points, *_, minutes in rows:
        text = (ROOT / "notebooks" / slug / f"{slug}.ipynb").read_text(encoding="utf-8")
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        graded = [cell["metadata"]["nbgrader"] for cell in cells if "nbgrader" in cell["metadata"]]
        asked = [cell["points"] for cell in graded if cell["grade"]]
        assert int(exercises) + int(questions) == len(asked)
        assert int(points) == sum(asked)
        assert int(minutes) == sum(map(int, re.findall(r" · (\d+) minutes? · \d+ point", text)))
    assert [int(number) for number in last[1:]] == [
        sum(int(row[place]) for row in rows) for place in range(1, len(head))
    ]


def test_a_gradebook_that_is_not_there_is_not_made(tmp_path):
    shutil.copytree(ROOT / "solutions" / CHAPTER, tmp_path / "solutions" / CHAPTER)
    typo = tmp_path / "typo.db"
    for command in (["export"], ["feedback"], ["extend", CHAPTER, "ada", "--days", "1"]):
        done = CliRunner().invoke(app, [*command, "-C", str(tmp_path), "--db", f"sqlite:///{typo}"])
        assert str(done.exception) == f"There is no gradebook {typo}: run `autograder grade`."
        assert not typo.exists()
