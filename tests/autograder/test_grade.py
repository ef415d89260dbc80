"""A class graded from file to gradebook, in the real sandbox, both ways in."""

import html
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from nbgrader.api import Gradebook
from sqlalchemy import create_engine, inspect, text

from autograder.course import chapters
from autograder.demo.synthetic import make_class, write_class
from autograder.grade import grade_class
from autograder.gradebook import COURSE_ID, open_gradebook
from autograder.graded import Graded, load_class, record_path
from autograder.sandbox import Limits
from autograder.selfcheck import check_notebook

ROOT = Path(__file__).parents[2]
CHAPTER = chapters(ROOT)[0]
LIMITS = Limits(wall_per_cell=3.0)
KINDS = {"perfect", "style", "blank", "unfinished", "crashing"}


@pytest.fixture(scope="module")
def students():
    """One of each kind of honest student, and some of the hostile ones."""
    hostile = {
        "hostile-equal-to-all",
        "hostile-exit",
        "hostile-skipped-check",
        "hostile-rewritten-check",
        "hostile-deleted-check",
        "hostile-duplicated-check",
    }
    made = make_class(ROOT)
    mistaken = {s.chapter: s for s in made if s.kind == "misconception"}.values()
    chosen = [s for s in made if s.kind in KINDS or s.student in hostile]
    assert hostile <= {s.student for s in chosen}
    return [*chosen, *mistaken]


@pytest.fixture(scope="module")
def course(tmp_path_factory, students) -> Path:
    target = tmp_path_factory.mktemp("course")
    write_class(ROOT, target, students)
    return target


@pytest.fixture(scope="module")
def graded(course) -> dict[str, Graded]:
    return {one.student: one for one in grade_class(course, limits=LIMITS)}


def scores(database: Path) -> dict[tuple[str, str, str], float | None]:
    """(student, chapter, cell) -> automatic score, read past nbgrader's own code."""
    query = """
        select submitted_assignment.student_id, assignment.name, base_cell.name, grade.auto_score
        from grade
        join base_cell on base_cell.id = grade.cell_id
        join submitted_notebook on submitted_notebook.id = grade.notebook_id
        join submitted_assignment on submitted_assignment.id = submitted_notebook.assignment_id
        join assignment on assignment.id = submitted_assignment.assignment_id
    """
    with sqlite3.connect(database) as connection:
        return {row[:3]: row[3] for row in connection.execute(query)}


def test_everybody_scores_what_they_were_built_to_score(graded, students):
    for student in students:
        verdicts = {v.exercise: v for v in graded[student.student].verdicts}
        earned = {name: verdict.earned for name, verdict in verdicts.items()}
        assert earned == student.expected, student.student
        for exercise, title in student.diagnosis.items():
            assert verdicts[exercise].misconception == title


def test_the_gradebook_holds_every_score(course, graded, students):
    stored = scores(course / "gradebook.db")
    for student in students:
        for name, earned in student.expected.items():
            assert stored[student.student, student.chapter, name] == earned


def test_an_unanswered_written_question_is_zero_and_an_answered_one_waits(course, graded):
    written = {}
    for (student, _, cell), score in scores(course / "gradebook.db").items():
        if cell not in {v.exercise for v in graded[student].verdicts}:
            written.setdefault(student.split("-")[0], set()).add(score)
    assert written["perfect"] == {None}
    assert written["blank"] == {0}


def test_grading_again_changes_nothing_and_judges_nothing(course, graded, monkeypatch):
    before = scores(course / "gradebook.db")
    saved = {one.student: one for one in load_class(course)}
    again = {one.student: one for one in grade_class(course, limits=LIMITS)}
    assert again == saved == graded  # with the seconds that the first run took
    assert scores(course / "gradebook.db") == before


def test_a_changed_submission_is_judged_again(course, graded, tmp_path):
    target = tmp_path / "course"
    shutil.copytree(course, target)
    chapter = chapters(ROOT)[0].slug
    number = chapter[:2]
    blank, perfect = (
        target / "submitted" / f"{who}-{number}" / chapter / f"{chapter}.ipynb"
        for who in ("blank", "perfect")
    )
    blank.write_bytes(perfect.read_bytes())
    again = {one.student: one for one in grade_class(target, chapter, limits=LIMITS)}
    assert again[f"blank-{number}"].earned == graded[f"perfect-{number}"].earned
    assert again[f"perfect-{number}"] == graded[f"perfect-{number}"]


def test_a_new_gradebook_is_made_as_nbgrader_makes_it(tmp_path, monkeypatch):
    scripts = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    monkeypatch.setenv("PATH", scripts)  # nbgrader starts the command `alembic`
    ours, theirs = (f"sqlite:///{tmp_path / name}" for name in ("ours.db", "theirs.db"))
    made = []
    for url, opened in ((ours, open_gradebook(ours)), (theirs, Gradebook(theirs, COURSE_ID))):
        with opened:
            pass
        with create_engine(url).connect() as connection:
            tables = inspect(connection)
            columns = {
                table: [
                    (column["name"], str(column["type"])) for column in tables.get_columns(table)
                ]
                for table in tables.get_table_names()
            }
            made.append((columns, connection.scalar(text("select * from alembic_version"))))
    assert made[0] == made[1]


def test_a_lost_gradebook_is_filled_again(course, graded, tmp_path):
    target = tmp_path / "course"
    shutil.copytree(course, target)
    before = scores(target / "gradebook.db")
    (target / "gradebook.db").unlink()
    grade_class(target, limits=LIMITS)
    assert scores(target / "gradebook.db") == before


def test_a_score_given_by_hand_is_kept(course, graded, tmp_path):
    target = tmp_path / "course"
    shutil.copytree(course, target)
    chapter = chapters(ROOT)[0].slug
    with sqlite3.connect(target / "gradebook.db") as connection:
        connection.execute("update grade set manual_score = 1.5")
    shutil.rmtree(target / "verdicts")
    grade_class(target, chapter, limits=LIMITS)
    with sqlite3.connect(target / "gradebook.db") as connection:
        assert {row[0] for row in connection.execute("select manual_score from grade")} == {1.5}


def test_an_unsafe_student_name_is_reported_and_never_used(course, graded, tmp_path):
    target = tmp_path / "course"
    chapter = chapters(ROOT)[0].slug
    shutil.copytree(course / "solutions", target / "solutions")
    shutil.copytree(course / "submitted" / f"perfect-{chapter[:2]}", target / "submitted" / "=1+1")
    (one,) = grade_class(target, chapter, limits=LIMITS)
    assert one.earned == 0
    assert "the student id '=1+1' holds '='" in one.problems[0]
    assert scores(target / "gradebook.db") == {}
    assert not list(target.glob("autograded/*"))


def test_a_file_that_is_no_notebook_scores_zero_with_the_reason(course, tmp_path):
    target = tmp_path / "course"
    chapter = chapters(ROOT)[0].slug
    shutil.copytree(course / "solutions", target / "solutions")
    path = target / "submitted" / "ada" / chapter / f"{chapter}.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text("print('hello')")
    (one,) = grade_class(target, chapter, limits=LIMITS)
    assert one.earned == 0
    assert one.problems == ("the file is not valid JSON, so it is not a notebook",)
    assert set(scores(target / "gradebook.db").values()) == {0}


def test_the_record_survives_a_round_trip(course, graded):
    for one in graded.values():
        assert Graded.load(record_path(course, one.student, one.chapter)) == one


@pytest.mark.parametrize("chapter", (CHAPTER, chapters(ROOT)[-1]), ids=lambda c: c.slug)
def test_a_student_can_check_a_notebook_without_a_gradebook(chapter, course, tmp_path):
    build = course / "solutions" / chapter.slug / f"{chapter.slug}.ipynb"
    assert (full := check_notebook(build)).earned == full.points > 0
    assert check_notebook(course / "notebooks" / chapter.slug / f"{chapter.slug}.ipynb").earned == 0


def test_a_renamed_notebook_is_told_what_it_needs(course, tmp_path):
    copied = tmp_path / "first.ipynb"
    shutil.copy(CHAPTER.release(course), copied)
    with pytest.raises(LookupError, match=r"no chapter 'first'.* or give --chapter"):
        check_notebook(copied)
    assert check_notebook(copied, CHAPTER.slug).points > 0


def nbgrader(course: Path, *arguments: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        [sys.executable, "-m", "nbgrader", *arguments],
        cwd=course,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )


def test_nbgrader_gives_the_same_scores_and_its_feedback_shows_the_message(
    course, graded, students, tmp_path
):
    target = tmp_path / "course"
    target.mkdir()
    shutil.copy(course / "nbgrader_config.py", target)
    shutil.copytree(course / "solutions", target / "solutions")
    kinds = ("perfect", "blank", "misconception", "hostile")
    chosen = [s for s in students if s.kind in kinds and s.chapter == CHAPTER.slug]
    assert {s.kind for s in chosen} == {*kinds}
    for student in chosen:
        shutil.copytree(
            course / "submitted" / student.student, target / "submitted" / student.student
        )
    for command in ("generate_assignment", "autograde", "generate_feedback"):
        nbgrader(target, command, CHAPTER.slug)
    ours = scores(course / "gradebook.db")
    theirs = scores(target / "gradebook.db")
    assert theirs.keys() == {key for key in ours if key[0] in {s.student for s in chosen}}
    assert theirs == {key: ours[key] for key in theirs}
    for student in (s for s in chosen if s.kind == "misconception"):
        found = [v for v in graded[student.student].verdicts if v.exercise in student.diagnosis]
        pages = (target / "feedback" / student.student).rglob("*.html")
        text = "".join(page.read_text() for page in pages)
        for verdict in found:
            assert html.escape(verdict.hint, quote=False)[:20] in text
        assert "expected -" not in text and "first at [" not in text  # no value of a hidden case
