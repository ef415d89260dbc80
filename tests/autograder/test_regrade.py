"""What has changed is graded again and nothing else; what changes is said before it is written."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from autograder import judge
from autograder import master as master_module
from autograder.__main__ import app
from autograder.check import Question
from autograder.course import checks_of, find_chapter
from autograder.demo.synthetic import make_class, write_class
from autograder.explain import explain
from autograder.fingerprint import of_exercise, of_notebook
from autograder.grade import course_limits, grade_class
from autograder.graded import Graded, record_path
from autograder.masters import chapter_master
from autograder.sandbox import Limits
from autograder.settings import SettingsError

ROOT = Path(__file__).parents[2]
CHAPTER = "02-losses"
LIMITS = Limits(wall_per_cell=5.0)
CHECKS = checks_of(CHAPTER)


@pytest.fixture(scope="module")
def graded_course(tmp_path_factory) -> Path:
    kinds = {"perfect", "blank", "misconception"}
    found = [s for s in make_class(ROOT) if s.chapter == CHAPTER and s.kind in kinds]
    chosen = {s.kind: s for s in reversed(found)}.values()
    course = tmp_path_factory.mktemp("course")
    write_class(ROOT, course, chosen)
    grade_class(course, CHAPTER, limits=LIMITS, jobs=1)
    return course


@pytest.fixture
def course(graded_course, tmp_path) -> Path:
    return shutil.copytree(graded_course, tmp_path / "course")


@pytest.fixture
def judged(monkeypatch) -> list[str]:
    """The exercises that are judged from here on, by `grade` below."""
    names = []
    real = judge.judge
    monkeypatch.setattr(
        judge,
        "judge",
        lambda exercise, *rest: (names.append(exercise.name), real(exercise, *rest))[1],
    )
    return names


def grade(course: Path, **options) -> tuple[list[Graded], list[tuple[Graded, Graded]]]:
    """Grade in this process; the records, and each that changed before and after."""
    changed = []
    graded = grade_class(
        course,
        CHAPTER,
        limits=LIMITS,
        jobs=1,
        executor=ThreadPoolExecutor(1),
        changed=lambda before, after: changed.append((before, after)),
        **options,
    )
    return graded, changed


def change(monkeypatch, name: str, **fields) -> None:
    monkeypatch.setitem(CHECKS, name, replace(CHECKS[name], **fields))
    master_module._exercises.cache_clear()


@pytest.fixture(autouse=True)
def forget_changed_checks():
    yield
    master_module._exercises.cache_clear()


def in_bits(probabilities):
    return -torch.special.xlogy(probabilities, probabilities).sum(-1) / 0.6931471805599453


def test_what_is_unchanged_is_not_judged_again(course, judged):
    before = {p: p.stat().st_mtime_ns for p in course.rglob("*.ipynb")}
    graded, changed = grade(course)
    assert len(graded) == 3 and judged == [] and changed == []
    assert {p: p.stat().st_mtime_ns for p in course.rglob("*.ipynb")} == before


def test_a_changed_check_regrades_its_exercise_alone(course, judged, monkeypatch):
    change(monkeypatch, "entropy", reference=in_bits)
    graded, changed = grade(course)
    assert set(judged) == {"entropy"} and len(graded) == 3
    perfect = next(after for before, after in changed if before.earned == before.points)
    assert [(b.correct, a.correct) for b, a in _of(changed, perfect)] == [(True, False)]
    assert perfect == Graded.load(record_path(course, perfect.student, CHAPTER))
    judged.clear()
    assert grade(course)[1] == [] and judged == []


def _of(changed, after):
    return next(b.changes(a) for b, a in changed if a is after)


def test_a_better_hint_regrades_and_changes_no_score(course, judged, monkeypatch):
    wrong = [replace(m, hint="What is the unit?") for m in CHECKS["entropy"].misconceptions]
    change(monkeypatch, "entropy", misconceptions=wrong)
    assert grade(course)[1] == [] and set(judged) == {"entropy"}


def test_another_submission_is_judged_whole_and_from_the_same_seed(course, judged):
    path = next(course.glob(f"submitted/perfect*/{CHAPTER}/*.ipynb"))
    student = path.parts[-3]
    before = Graded.load(record_path(course, student, CHAPTER))
    path.write_text(path.read_text().replace("import torch", "import torch  # mine", 1))
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        if cell["metadata"].get("nbgrader", {}).get("solution"):
            cell["source"] = [*cell["source"], "\n# and a comment"]
            break
    path.write_text(json.dumps(notebook))
    grade(course)
    after = Graded.load(record_path(course, student, CHAPTER))
    assert set(judged) == set(CHECKS)
    assert after.seed == before.seed and after.submission != before.submission
    assert after.earned == before.earned


def test_a_dry_run_says_what_would_change_and_writes_nothing(course, monkeypatch):
    change(monkeypatch, "entropy", reference=in_bits)
    before = {p: p.read_bytes() for p in course.rglob("*") if p.is_file()}
    _, changed = grade(course, dry_run=True)
    assert [a.earned - b.earned for b, a in changed] == [-CHECKS["entropy"].points] * len(changed)
    assert changed
    assert {p: p.read_bytes() for p in course.rglob("*") if p.is_file()} == before


def test_the_fingerprint_of_an_exercise_is_of_what_decides_it():
    entropy = CHECKS["entropy"]
    same = of_exercise(entropy)
    assert of_exercise(replace(entropy, variants=())) == same
    others = [
        replace(entropy, points=entropy.points + 1),
        replace(entropy, tolerance=(0.5, 0.5)),
        replace(entropy, reference=in_bits),
        replace(entropy, misconceptions=entropy.misconceptions[1:]),
        replace(entropy, cases=CHECKS["kl_divergence"].cases),
    ]
    assert len({same, *map(of_exercise, others)}) == 1 + len(others)
    question = next(q for q in CHECKS.values() if isinstance(q, Question))
    assert of_exercise(question) != of_exercise(replace(question, points=question.points + 1))


def test_the_fingerprint_of_a_notebook_is_of_its_code_and_limits():
    master = chapter_master(ROOT, find_chapter(CHAPTER))
    same = of_notebook(master, LIMITS)
    notebook = json.loads(master.text)
    prose = next(c for c in notebook["cells"] if c["cell_type"] == "markdown")
    prose["source"] = "# A better word"
    assert of_notebook(replace(master, text=json.dumps(notebook)), LIMITS) == same
    code = next(c for c in notebook["cells"] if c["cell_type"] == "code")
    code["source"] = "import torch as t"
    assert of_notebook(replace(master, text=json.dumps(notebook)), LIMITS) != same
    assert of_notebook(master, replace(LIMITS, wall_per_cell=6.0)) != same


def test_explaining_replays_a_verdict_with_its_values(graded_course):
    records = map(Graded.load, graded_course.glob(f"verdicts/{CHAPTER}/*.json"))
    record = next(one for one in records if any(v.misconception for v in one.verdicts))
    wrong = next(v for v in record.verdicts if v.misconception)
    replay = explain(graded_course, record.student, CHAPTER, wrong.exercise)
    assert replace(replay.now, detail="", case="") == replace(wrong, case="")
    assert replay.now.case != wrong.case  # which names kinds, and no value
    assert wrong.exercise in replay.source
    assert replay.since == (
        f"the grader, its limits or the course (then: {record.versions})",
    )  # LIMITS are not the course's
    shown = CliRunner().invoke(
        app, ["explain", record.student, "02", wrong.exercise, "-C", str(graded_course)]
    )
    assert shown.exit_code == 0 and wrong.misconception in shown.output.replace("\n", " ")


def test_limits_come_from_the_course_and_the_command_line(tmp_path):
    assert course_limits(tmp_path) == Limits()
    (tmp_path / "nbgrader_config.py").write_text(
        "c = get_config()\nc.Judge.limits = {'wall_per_cell': 30, 'processes': 8}\n"
    )
    found = course_limits(tmp_path, {"processes": 9.0})
    assert found == Limits(wall_per_cell=30.0, processes=9)
    with pytest.raises(SettingsError, match="no limit 'wall'"):
        course_limits(tmp_path, {"wall": 3})
    with pytest.raises(SettingsError, match="above 0"):
        course_limits(tmp_path, {"processes": 0})
    refused = CliRunner().invoke(app, ["grade", "-C", str(tmp_path), "--limit", "processes"])
    assert refused.exit_code == 2
