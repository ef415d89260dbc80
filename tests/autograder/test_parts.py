"""Partial credit: the parts of a check, from its cases to the gradebook, with the message kept."""

import dataclasses
import json
import shutil
import sqlite3
from contextlib import chdir, closing
from pathlib import Path

import nbformat.v4 as v4
import pytest
from nbformat import from_dict
from nbgrader.apps.api import NbGraderAPI
from nbgrader.utils import determine_grade

from autograder import build
from autograder import master as master_module
from autograder.check import Case, Check, Misconception
from autograder.course import SOLUTION, checks_of, find_chapter
from autograder.display import as_html, as_text
from autograder.feedback import with_verdicts
from autograder.grade import grade_class
from autograder.gradebook import open_gradebook
from autograder.graded import Graded
from autograder.masters import chapter_master
from autograder.practice import CheckFailed, check
from autograder.report import write_report
from autograder.settings import nbgrader_settings
from autograder.verdict import Part, judge

ROOT = Path(__file__).parents[2]
CHAPTER = find_chapter("02-losses")


def scaled(x, factor=2.0, offset=0.0):
    return x * factor + offset


def cases(rng):
    return [
        Case(1.5).titled("defaults"),
        Case(2.5).titled("defaults"),
        Case(3.0, 4.0).titled("a factor"),
        Case(3.0, offset=1.0).titled("an offset"),
        Case(-1.0),  # of no part, so of all
    ]


CHECK = Check(
    scaled,
    points=4,
    cases=cases,
    misconceptions=[
        Misconception("the offset is ignored", lambda x, f=2.0, offset=0: x * f, "What moves it?")
    ],
    parts={"defaults": 1, "a factor": 2, "an offset": 1},
)


def verdict_on(function):
    return judge(CHECK, CHECK.outcomes(function, "s"), "s")


def earned(function) -> tuple[float, list[int]]:
    verdict = verdict_on(function)
    return verdict.earned, [part.earned for part in verdict.parts]


def test_a_part_is_earned_when_all_of_its_cases_pass():
    assert earned(lambda x, factor=2.0, offset=0.0: x * factor) == (3, [1, 2, 0])
    assert earned(lambda x, factor=2.0, offset=0.0: x * 2) == (1, [1, 0, 0])
    only_first = lambda x, factor=2.0, offset=0.0: scaled(x, factor, offset) if x != 2.5 else 0.0
    assert earned(only_first) == (3, [0, 2, 1])


def test_a_case_of_no_part_gates_all_of_them():
    assert earned(lambda x, factor=2.0, offset=0.0: abs(scaled(x, factor, offset))) == (
        0,
        [0, 0, 0],
    )


def test_all_correct_earns_all_points_and_names_no_part():
    verdict = verdict_on(scaled)
    assert (verdict.status, verdict.earned, verdict.parts) == ("correct", 4, ())


def test_the_message_and_the_hint_come_with_the_points():
    verdict = verdict_on(lambda x, factor=2.0, offset=0.0: x * factor)
    assert (verdict.status, verdict.misconception) == ("partial", "the offset is ignored")
    assert verdict.parts[2] == Part("an offset", 1, 0)
    text = as_text(verdict)
    assert text.splitlines()[:5] == [
        "◐ scaled (3 of 4 points)",
        "  ✓ defaults (1 point)",
        "  ✓ a factor (2 points)",
        "  ✗ an offset (1 point)",
        "  4 of 5 cases pass; the first that fails:",
    ]
    assert "Diagnosis: the offset is ignored" in text and "Ask yourself: What moves it?" in text
    page = as_html(verdict)
    assert "3 of 4 points" in page and "✗ an offset (1 point)" in page and "What moves it?" in page


def test_what_is_written_for_some_cases_only_is_not_blank():
    def half(x, factor=2.0, offset=0.0):
        if offset:
            raise NotImplementedError
        return x * factor

    assert (verdict_on(half).status, verdict_on(half).earned) == ("partial", 3)

    def blank(x, factor=2.0, offset=0.0):
        raise NotImplementedError

    assert (verdict_on(blank).status, verdict_on(blank).earned) == ("blank", 0)


def test_a_check_without_parts_is_all_or_nothing():
    whole = dataclasses.replace(CHECK, parts={})
    verdict = judge(whole, whole.outcomes(lambda x, factor=2.0, offset=0.0: x * factor, "s"), "s")
    assert (verdict.status, verdict.earned, verdict.parts) == ("wrong", 0, ())


def test_parts_that_do_not_add_up_or_are_never_drawn_are_refused():
    with pytest.raises(ValueError, match="parts of scaled are worth 3 points and the check 4"):
        dataclasses.replace(CHECK, parts={"defaults": 1, "a factor": 2})
    lost = dataclasses.replace(CHECK, parts={"defaults": 3, "an ofset": 1})
    with pytest.raises(ValueError, match="scaled draws no case for its part 'an ofset'"):
        lost.draw("s")


@pytest.mark.parametrize(
    "function",
    [scaled, lambda x, f=2.0, offset=0.0: x * f, lambda *_, **__: 0, lambda *_, **__: 1 / 0],
)
def test_nbgrader_reads_the_score_that_the_verdict_says(function):
    verdict = verdict_on(function)
    cell = v4.new_code_cell("check(scaled)")
    cell.metadata.nbgrader = from_dict({"grade_id": "scaled", "grade": True, "points": 4})
    notebook = with_verdicts(v4.new_notebook(cells=[cell]), [verdict])
    assert determine_grade(notebook.cells[0]) == (verdict.earned, 4)


def test_a_record_with_parts_survives_a_round_trip(tmp_path):
    verdict = verdict_on(lambda x, factor=2.0, offset=0.0: x * factor)
    one = Graded("ada", "02-losses", (verdict,))
    one.save(tmp_path / "ada.json")
    assert Graded.load(tmp_path / "ada.json") == one
    page = write_report([one], tmp_path / "report.html").read_text()
    assert "✗ an offset 0/1" in page


# ---- from a student's file to both gradebooks ----------------------------------------------------

MISSES_ONE_PART = """\
import torch
def one_hot(targets, num_classes):
    if targets.shape == (2, 3):
        return torch.zeros(2, 3, num_classes)
    return torch.eye(num_classes)[targets]
"""
FAILED = "two texts, and words that never come"


@pytest.fixture
def parted(monkeypatch):
    """The chapter's first exercise, worth 5 points in parts."""
    parts = {"five targets": 3, FAILED: 2}
    changed = dataclasses.replace(checks_of(CHAPTER.slug)["one_hot"], points=5, parts=parts)
    monkeypatch.setitem(checks_of(CHAPTER.slug), "one_hot", changed)
    master_module._exercises.cache_clear()
    yield changed
    master_module._exercises.cache_clear()


def test_part_of_the_points_reach_the_gradebook_both_ways(parted, tmp_path):
    course = tmp_path / "course"
    (course / "solutions" / CHAPTER.slug).mkdir(parents=True)
    shutil.copy(CHAPTER.source(ROOT), CHAPTER.source(course))
    notebook = json.loads(json.dumps(chapter_master(course, CHAPTER).released))
    for cell in notebook["cells"]:
        if cell["metadata"].get("nbgrader", {}).get("grade_id") == "one_hot" + SOLUTION:
            cell["source"] = MISSES_ONE_PART
    path = course / "submitted" / "ada" / CHAPTER.slug / f"{CHAPTER.slug}.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(notebook))
    theirs = shutil.copytree(course, tmp_path / "theirs")
    shutil.copy(ROOT / "nbgrader_config.py", theirs)

    (one,) = grade_class(course, jobs=1)
    verdict = next(v for v in one.verdicts if v.exercise == "one_hot")
    assert (verdict.status, verdict.earned, verdict.points) == ("partial", 3, 5)
    assert verdict.parts == (Part("five targets", 3, 3), Part(FAILED, 2, 0))
    assert verdict.case.startswith(FAILED) and one.earned == 3
    assert score(course) == 3

    db_url = f"sqlite:///{theirs / 'gradebook.db'}"
    with chdir(theirs), open_gradebook(db_url):
        build.build(theirs)
        api = NbGraderAPI(config=nbgrader_settings(theirs, db_url))
        for done in (
            api.generate_assignment(CHAPTER.slug),
            api.autograde(CHAPTER.slug, "*"),
            api.generate_feedback(CHAPTER.slug, "*"),
        ):
            assert done["success"], done["log"][-3000:]
    assert score(theirs) == 3
    page = (theirs / "feedback" / "ada" / CHAPTER.slug / f"{CHAPTER.slug}.html").read_text()
    assert f"✗ {FAILED} (2 points)" in page and "3 of 5 points" in page


def score(course: Path) -> float:
    query = "select auto_score from grade join base_cell on base_cell.id = cell_id where name = ?"
    with closing(sqlite3.connect(course / "gradebook.db")) as connection:
        ((found,),) = connection.execute(query, ["one_hot"]).fetchall()
    return found


def test_practice_says_the_parts_and_still_fails(parted, capsys):
    names: dict = {}
    exec(MISSES_ONE_PART, names)
    with pytest.raises(CheckFailed, match="one_hot: "):
        check(names["one_hot"])
    assert f"✗ {FAILED} (2 points)" in capsys.readouterr().out
