"""The course's order, and who may use what."""

import importlib.util
from pathlib import Path

import pytest

from autograder import course
from autograder.course import CHAPTERS, allowed_modules, find, find_chapter, graded_call
from tests.autograder import sample


def test_the_chapters_are_thirteen_in_order_and_named_after_what_they_teach():
    assert [int(chapter.slug[:2]) for chapter in CHAPTERS] == list(range(1, 14))
    assert all(chapter.topic in chapter.modules for chapter in CHAPTERS)
    modules = [module for chapter in CHAPTERS for module in chapter.modules]
    assert len(set(modules)) == len(modules)


@pytest.mark.parametrize("name", ["04-positions", "positions", "04"])
def test_a_chapter_is_found_by_slug_topic_or_number(name):
    assert find_chapter(name).slug == "04-positions"


def test_an_unknown_chapter_names_the_nearest():
    with pytest.raises(LookupError, match="did you mean '02-losses'"):
        find_chapter("02-loses")


def test_names_are_unique_across_the_course():
    names = [name for chapter in CHAPTERS for name in course.checks_of(chapter.slug)]
    assert len(set(names)) == len(names)


def test_an_exercise_is_found_in_whichever_chapter_it_is(monkeypatch):
    second = {"04-positions": sample.EXERCISES}
    monkeypatch.setattr(course, "checks_of", lambda slug: second.get(slug, {}))
    assert find("square") is sample.EXERCISES["square"]
    with pytest.raises(LookupError, match=r"no exercise 'sqare'; did you mean 'square'\?"):
        find("sqare")


def test_exercises_stand_in_the_order_of_their_definition(monkeypatch, tmp_path):
    path = tmp_path / "ordered.py"
    path.write_text(
        "from autograder.check import Question\n"
        "ZEBRA = Question('zebra', 1)\nAPE = Question('ape', 1)\nALIAS = ZEBRA\n"
    )
    spec = importlib.util.spec_from_file_location("ordered", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(course.importlib, "import_module", lambda name: module)
    assert list(course.checks_of.__wrapped__("13-efficiency")) == ["zebra", "ape"]

    module.OTHER = type(module.APE)("ape", 2)
    with pytest.raises(ValueError, match="two exercises named 'ape'"):
        course.checks_of.__wrapped__("13-efficiency")


@pytest.mark.parametrize("number", range(13))
def test_a_student_may_import_what_was_taught_before_and_no_answer(number):
    chapter = CHAPTERS[number]
    allowed = {Path(path).parts[1].removesuffix(".py") for path in allowed_modules(chapter.slug)}
    later = {module for c in CHAPTERS[number:] for module in c.modules}
    assert not allowed & later
    assert allowed <= {"__init__", "device", "plots"} | {
        module for c in CHAPTERS[:number] for module in c.modules
    }


def test_allowed_modules_hold_their_source():
    modules = allowed_modules("05-attention")
    assert "def apply_rope(" in modules["llmkit/positions.py"]
    assert "llmkit/__init__.py" in modules


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("check(one_hot)", ("one_hot", "one_hot")),
        ("# your turn\ncheck(one_hot)  # now", ("one_hot", "one_hot")),
        ('check_answer("best", answer)', ("best", "answer")),
        ("check(one_hot); x = 1", None),
        ("check(one_hot())", None),
        ("check('one_hot')", None),
        ("check_answer(best, answer)", None),
        ("check_answer('best', 3)", None),
        ("check(one_hot, points=100)", None),
        ("%matplotlib inline", None),
        ("x = '\0'", None),
        ("", None),
    ],
)
def test_a_graded_cell_is_one_call_and_nothing_else(source, call):
    assert graded_call(source) == call
