"""Lateness costs the same whichever way a submission is graded: nbgrader's own steps are asked."""

import os
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import nbformat
import pytest
from nbgrader.api import Gradebook, SubmittedAssignment
from nbgrader.preprocessors import AssignLatePenalties
from typer.testing import CliRunner

from autograder.__main__ import app
from autograder.demo.synthetic import make_class, write_class
from autograder.gradebook import open_gradebook
from autograder.late import extend, handed_in, parse_time, settle, settle_class
from autograder.settings import SettingsError, nbgrader_settings

ROOT = Path(__file__).parents[2]
DUE = datetime(2026, 11, 1, 12)
CHAPTER = "02-losses"
PLUGIN = """
from nbgrader.plugins import BasePlugin

class PointAnHour(BasePlugin):
    def late_submission_penalty(self, student_id, score, total_seconds_late):
        return total_seconds_late / 3600 - 1

class Broken(BasePlugin):
    def late_submission_penalty(self, student_id, score, total_seconds_late):
        return 1 / 0
"""
METHODS = {
    "none": "",
    "zero": "c.LateSubmissionPlugin.penalty_method = 'zero'",
    "plugin": "c.AssignLatePenalties.plugin_class = 'penalties_of_course.PointAnHour'",
}
# student -> (hours after the due date; score given by hand; hours of extension)
STUDENTS = {
    "punctual": (-1, None, 0),
    "on-the-dot": (0, None, 0),
    "late": (2, None, 0),
    "very-late": (100, None, 0),
    "a-little-late": (0.5, None, 0),
    "extended": (2, None, 3),
    "extended-too-little": (5, None, 3),
    "by-hand": (2, 0.25, 0),
    "no-time": (None, None, 0),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A graded class in a gradebook, with timestamps beside the submissions."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "penalties_of_course.py").write_text(PLUGIN)
    with open_gradebook(url(folder)) as gradebook:
        gradebook.add_assignment(CHAPTER, duedate=DUE)
        gradebook.add_notebook(CHAPTER, CHAPTER)
        gradebook.add_grade_cell("f", CHAPTER, CHAPTER, max_score=4, cell_type="code")
        for student, (hours, by_hand, extension) in STUDENTS.items():
            gradebook.add_student(student)
            gradebook.add_submission(CHAPTER, student)
            grade = gradebook.find_grade("f", CHAPTER, CHAPTER, student)
            grade.auto_score, grade.manual_score = 3, by_hand
            gradebook.db.commit()
            extend(gradebook, CHAPTER, student, timedelta(hours=extension))
            submitted = folder / "submitted" / student / CHAPTER
            submitted.mkdir(parents=True)
            if hours is not None:
                moment = DUE + timedelta(hours=hours)
                (submitted / "timestamp.txt").write_text(f"{moment:%Y-%m-%d %H:%M:%S.%f} UTC\n")
    return folder


@pytest.fixture
def course(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "course"))


def url(course: Path) -> str:
    return f"sqlite:///{course / 'gradebook.db'}"


def penalties(course: Path) -> dict[str, tuple[datetime | None, float, float]]:
    """student -> when it was handed in, the penalty, the score before it."""
    with Gradebook(url(course)) as gradebook:
        return {
            one.student_id: (one.timestamp, one.late_submission_penalty, one.score)
            for one in gradebook.assignment_submissions(CHAPTER)
        }


@pytest.mark.parametrize("method", METHODS)
def test_the_penalties_are_those_of_nbgraders_own_preprocessor(method, course):
    (course / "nbgrader_config.py").write_text(f"c = get_config()\n{METHODS[method]}\n")
    assert settle_class(course, url(course)) == []
    ours = penalties(course)
    settings = nbgrader_settings(course, url(course))
    with Gradebook(url(course)) as gradebook:
        for submission in gradebook.assignment_submissions(CHAPTER):
            submission.notebooks[0].late_submission_penalty = 77.0
        gradebook.db.commit()
    for student in STUDENTS:
        who = {"notebook": CHAPTER, "assignment": CHAPTER, "student": student}
        resources = {"nbgrader": who | {"db_url": url(course)}}
        AssignLatePenalties(config=settings).preprocess(nbformat.v4.new_notebook(), resources)
    assert penalties(course) == ours
    assert {student: taken for student, (_, taken, _) in ours.items() if taken} == {
        "none": {},
        "zero": {
            "late": 3,
            "very-late": 3,
            "a-little-late": 3,
            "extended-too-little": 3,
            "by-hand": 0.25,
        },
        # no less than nothing, no more than there is
        "plugin": {"late": 1, "very-late": 3, "extended-too-little": 1, "by-hand": 0.25},
    }[method]
    assert ours["extended"][0] == DUE + timedelta(hours=2)
    assert ours["no-time"][0] is None


def test_a_moved_due_date_and_a_new_extension_count_at_once(course):
    (course / "nbgrader_config.py").write_text(f"c = get_config()\n{METHODS['zero']}\n")
    settle_class(course, url(course))
    with open_gradebook(url(course)) as gradebook:
        extend(gradebook, CHAPTER, "late", timedelta(hours=2))
        settle(gradebook, course, CHAPTER, nbgrader_settings(course, url(course)))
    assert penalties(course)["late"][1] == 0 < penalties(course)["very-late"][1]
    with open_gradebook(url(course)) as gradebook:
        gradebook.update_or_create_assignment(CHAPTER, duedate=None)
    settle_class(course, url(course))
    assert not any(taken for _, taken, _ in penalties(course).values())


def test_an_extension_can_be_given_before_anything_is_handed_in_and_taken_back(course):
    with open_gradebook(url(course)) as gradebook:
        gradebook.add_student("new")
        extend(gradebook, CHAPTER, "new", timedelta(days=2))
        query = gradebook.db.query(SubmittedAssignment).filter_by(student_id="new")
        assert query.one().duedate == DUE + timedelta(days=2)
        extend(gradebook, CHAPTER, "new", timedelta(0))
        assert query.one().duedate == DUE
        with pytest.raises(LookupError, match="no student 'nobody': import the roster first"):
            extend(gradebook, CHAPTER, "nobody", timedelta(days=2))
        with pytest.raises(LookupError, match="no 03-none yet: set its due date first"):
            extend(gradebook, "03-none", "late", timedelta(days=2))


# --- times -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hour"),
    [
        ("2026-11-01 12:30:00 UTC", 12),
        ("2026-11-01 12:30:00.123456 UTC", 12),
        ("2026-11-01 12:30:00", 12),
        ("2026-11-01T12:30:00Z", 12),
        ("2026-11-01 12:30:00 Europe/Berlin", 11),
        ("2026-11-01 12:30:00 America/Argentina/Buenos_Aires", 15),
        ("2026-11-01 12:30:00+02:00", 10),
    ],
)
def test_a_time_is_read_as_nbgrader_reads_it(text, hour):
    assert parse_time(text).replace(microsecond=0) == datetime(2026, 11, 1, hour, 30)


@pytest.mark.parametrize(
    "text",
    [
        *("", "soon", "2026-13-40 12:00:00 UTC", "2026-11-01 12:00:00 ../../etc/passwd"),
        *("2026-11-01 12:00:00 /etc/passwd", "9" * 60, "9" * 5_000, "\x1b[2J", "1 2 3 4 5 6 7 8"),
    ],
)
def test_what_is_no_time_is_one_sentence(text):
    with pytest.raises(ValueError, match="is no time: write it as") as error:
        parse_time(text)
    assert str(error.value).isprintable()


def test_a_timestamp_is_read_as_data(tmp_path):
    assert handed_in(tmp_path) is None
    path = tmp_path / "timestamp.txt"
    secret = tmp_path / "secret"
    secret.write_text("2026-11-01 12:00:00 UTC")
    path.symlink_to(secret)
    with pytest.raises(ValueError, match=r"timestamp.txt: the file is a symbolic link"):
        handed_in(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match=r"timestamp.txt: this is not an ordinary file"):
        handed_in(tmp_path)
    path.unlink()
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"timestamp.txt is no time"):
        handed_in(tmp_path)


def test_a_bad_timestamp_is_told_and_costs_nobody_else(course):
    (course / "nbgrader_config.py").write_text(f"c = get_config()\n{METHODS['zero']}\n")
    path = course / "submitted" / "late" / CHAPTER / "timestamp.txt"
    path.write_text("yesterday, honestly")
    (problem,) = settle_class(course, url(course))
    assert problem.startswith("late, 02-losses: 'yesterday, honestly' is no time")
    found = penalties(course)
    assert found["late"][:2] == (None, 0) and found["very-late"][1] == 3


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("raise OSError('no such course')", r"nbgrader_config.py failed: OSError: no such course"),
        ("c.AssignLatePenalties.plugin_class = 'nowhere.Plugin'", "names no late plugin"),
        (
            "c.AssignLatePenalties.plugin_class = 'penalties_of_course.Broken'",
            r"The late plugin Broken failed at '.*': ZeroDivisionError",
        ),
    ],
)
def test_settings_that_fail_are_one_sentence(line, said, course):
    (course / "nbgrader_config.py").write_text(f"c = get_config()\n{line}\n")
    with pytest.raises(SettingsError, match=said):
        settle_class(course, url(course))


# --- both ways in ----------------------------------------------------------------------------


def ours_does(course: Path, *command: str) -> None:
    done = CliRunner().invoke(app, [*command, "--course", str(course)])
    assert done.exit_code == 0, done.output


def nbgrader_does(course: Path, *command: str) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *command, CHAPTER],
        cwd=course,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_both_ways_in_give_the_same_penalty(tmp_path):
    wanted = {"perfect-02", "unfinished-02", "blank-02"}
    students = [one for one in make_class(ROOT) if one.student in wanted]
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write_class(ROOT, ours, students)
    for folder in (ours / "solutions").iterdir():
        if folder.name != CHAPTER:
            shutil.rmtree(folder)
    (ours / "penalties_of_course.py").write_text(PLUGIN)
    with (ours / "nbgrader_config.py").open("a") as file:
        file.write(f"\n{METHODS['plugin']}\n")
    for hours, student in enumerate(sorted(wanted), start=3):
        moment = DUE + timedelta(hours=hours)
        text = f"{moment:%Y-%m-%d %H:%M:%S} UTC"
        (ours / "submitted" / student / CHAPTER / "timestamp.txt").write_text(text)
    shutil.copytree(ours, theirs)
    nbgrader_does(theirs, "generate_assignment", "--force")
    for course in (ours, theirs):
        roster = tmp_path / "roster.csv"
        roster.write_text("id\nperfect-02\n")
        ours_does(course, "roster", str(roster))
        ours_does(course, "due", "losses", "2026-11-01 13:00 Europe/Berlin")
        ours_does(course, "extend", "losses", "perfect-02", "--hours", "2")
    ours_does(ours, "grade", "--jobs", "1")
    nbgrader_does(theirs, "autograde")
    assert penalties(ours) == penalties(theirs)
    assert {who: taken for who, (_, taken, _) in penalties(ours).items()} == {
        "blank-02": 0,  # of nothing
        "perfect-02": 1,  # 4 hours late, less 2 of extension, less the plugin's free one
        "unfinished-02": 4,
    }
