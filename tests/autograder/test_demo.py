"""The synthetic class: each cell behaves as it was built to, each total adds up."""

import functools
import math
import shutil
import sys
from collections import Counter
from pathlib import Path

import nbformat
import pytest
import torch
import torch.nn.functional as F

from autograder.build import instructor_notebook, release
from autograder.cells import source_of
from autograder.check import Check, Question
from autograder.compare import compare_outcomes
from autograder.course import CHAPTERS, SOLUTION, allowed_modules, chapters, checks_of, graded_call
from autograder.demo import compare, make_class, write_class
from autograder.demo.attacks import ATTACKS
from autograder.demo.rehearsal import compare_scores
from autograder.demo.synthetic import MISTAKEN
from autograder.graded import Graded
from autograder.inside.outcome import Outcome
from autograder.settings import nbgrader_settings
from autograder.submission import find_submissions, read_submission, valid_student_id
from autograder.verdict import Verdict, judge
from llmkit import positions

ROOT = Path(__file__).parents[2]
COURSE = chapters(ROOT)
SEED = "a seed"


class NoAnswers:
    """Refuses to import what the sandbox of a chapter does not hold."""

    def __init__(self, allowed: set[str]):
        self.allowed = allowed

    def find_spec(self, name: str, path=None, target=None):
        if name.split(".")[0] in ("llmkit", "autograder") and name not in self.allowed:
            raise ModuleNotFoundError(f"No module named {name!r} in the sandbox")


@pytest.fixture
def run(monkeypatch):
    """Run a cell as the sandbox of a chapter would, in an empty namespace."""

    def run(source: str, chapter=None) -> dict:
        files = allowed_modules(chapter.slug) if chapter else {}
        names = {file.removesuffix(".py").removesuffix("/__init__") for file in files}
        names = {name.replace("/", ".") for name in names} | {"llmkit"}
        for name in [n for n in sys.modules if n.split(".")[0] in ("llmkit", "autograder")]:
            if name not in names:
                monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "meta_path", [NoAnswers(names), *sys.meta_path])
        if "llmkit" in sys.modules:  # `from llmkit import losses` would find it as an attribute
            for module in [n for c in CHAPTERS for n in c.modules if f"llmkit.{n}" not in names]:
                monkeypatch.delattr(sys.modules["llmkit"], module, raising=False)
        namespace: dict = {"__name__": "__main__"}
        exec(compile(source, "<cell>", "exec"), namespace)
        return namespace

    return run


def implementations():
    for chapter in CHAPTERS:
        for check in checks_of(chapter.slug).values():
            if isinstance(check, Check):
                wrong = [m.wrong for m in check.misconceptions]
                for i, function in enumerate([check.reference, *check.variants, *wrong]):
                    yield pytest.param(chapter, check, function, id=f"{check.name}-{i}")


@pytest.mark.parametrize(("chapter", "check", "function"), list(implementations()))
def test_a_cell_behaves_like_the_function_it_was_made_of(run, chapter, check, function):
    cases = check.draw(SEED)
    expected = check.outcomes(function, SEED)
    namespace = run(source_of(function, check.name), chapter)
    assert namespace.keys() - {"__name__", "__builtins__"} == {"_build", check.name}
    for case, wanted in zip(cases, expected, strict=True):
        actual = case.outcome(check.call_of(namespace[check.name]))
        assert compare_outcomes(actual, wanted, (0.0, 0.0)) is None


# what the authors of checks may write

SCALE = 3.0
double, triple = lambda x: 2 * x, lambda x: SCALE * x


def scaled(by, then=None):
    def inner(x):
        return (then or (lambda y: y))(by * x)

    return inner


def turned(x, positions):
    """A parameter that is called like a module, and a module's function of the same name."""
    return rope(x, positions)


def rope(x, at):
    return positions.apply_rope(x, at, positions.rope_frequencies(x.shape[-1]))


def countdown(n):
    return [n, *countdown(n - 1)] if n else []


class Doubler(torch.nn.Module):
    def forward(self, x):
        return double(x)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (double, (torch.arange(3),)),
        (triple, (torch.arange(3),)),
        ((lambda x: [(lambda y: y + SCALE)(z) for z in x]), ([1.0, 2.0],)),
        (scaled(5), (2,)),
        (scaled(-math.inf), (2,)),
        (scaled(5, then=double), (2,)),
        (functools.partial(scaled(7)), (2,)),
        (functools.partial(torch.full, (2,), dtype=torch.float64), (1.5,)),
        (turned, (torch.ones(1, 1, 3, 8), torch.arange(3))),
        (countdown, (3,)),
        (F.log_softmax, (torch.ones(2, 3), -1)),
        (torch.softmax, (torch.ones(2, 3), 0)),
    ],
)
def test_every_way_to_write_a_function_becomes_a_cell(run, function, arguments):
    expected = Outcome(function(*arguments))
    answer = run(source_of(function, "answer"))["answer"]
    assert compare_outcomes(Outcome(answer(*arguments)), expected, (0.0, 0.0)) is None


def test_a_class_becomes_a_cell(run):
    answer = run(source_of(Doubler, "Doubler"))["Doubler"]
    assert answer()(21) == 42


def test_what_cannot_be_written_is_refused():
    with pytest.raises(TypeError, match="cannot hold tensor"):
        source_of(functools.partial(rope, at=torch.ones(2)), "answer")


def test_a_cell_is_the_authors_own_text():
    source = source_of(turned, "answer")
    assert '"""A parameter that is called like a module' in source
    assert "# bfloat16 cannot even tell" in source
    assert "llmkit" not in source


# the class


@pytest.fixture(scope="module")
def students():
    return make_class(ROOT)


@pytest.fixture(scope="module")
def released():
    built = {}
    for chapter in COURSE:
        text = chapter.source(ROOT).read_text(encoding="utf-8")
        built[chapter.slug] = release(
            instructor_notebook(text, checks_of(chapter.slug), chapter.slug)
        )
    return built


def test_the_class_is_large_and_of_every_kind(students):
    kinds = Counter(one.kind for one in students)
    assert len(students) >= 40
    assert kinds.keys() == {
        "perfect", "style", "misconception", "blank", "unfinished", "crashing", "looping",
        "hostile",
    }  # fmt: skip
    for kind in ("perfect", "blank", "unfinished", "crashing"):
        assert kinds[kind] == len(COURSE)
    assert kinds["looping"] == 3
    assert kinds["style"] == 3 * len(COURSE)
    assert kinds["hostile"] == len(ATTACKS) >= 8
    exercises = [checks_of(chapter.slug).values() for chapter in COURSE]
    most = [max(len(exercise.misconceptions) for exercise in chapter) for chapter in exercises]
    assert kinds["misconception"] == sum(max(MISTAKEN, n) for n in most)


def test_student_names_are_valid_and_no_two_alike(students):
    assert len({one.student for one in students}) == len(students)
    for one in students:
        assert valid_student_id(one.student) == one.student


def test_expected_points_add_up(students):
    total = {c.slug: sum(e.points for e in checks_of(c.slug).values()) for c in COURSE}
    for one in students:
        exercises = checks_of(one.chapter)
        assert one.expected.keys() == exercises.keys()
        lost = [exercises[n] for n, points in one.expected.items() if not points]
        assert one.points == total[one.chapter] - sum(exercise.points for exercise in lost)
        assert one.diagnosis.keys() <= {exercise.name for exercise in lost}
        match one.kind:
            case "perfect" | "style":
                assert not lost
            case "blank":
                assert one.points == 0
            case "unfinished":
                assert len(lost) == (len(exercises) + 1) // 2
            case "hostile" | "looping":
                assert len(lost) == 1
            case "misconception":
                assert {exercise.name for exercise in lost} == one.diagnosis.keys()
                assert 1 <= len(lost) < len(exercises)


def test_every_misconception_is_in_the_class(students):
    taught = {
        (chapter.slug, exercise.name, misconception.title)
        for chapter in COURSE
        for exercise in checks_of(chapter.slug).values()
        for misconception in exercise.misconceptions
    }
    assert taught == {(o.chapter, *found) for o in students for found in o.diagnosis.items()}


def test_the_class_is_the_same_each_time(students):
    again = make_class(ROOT)
    assert [nbformat.writes(a.notebook) for a in students] == [
        nbformat.writes(b.notebook) for b in again
    ]


def test_only_the_perfect_answer_what_is_graded_by_hand(students, released, tmp_path):
    for one in students:
        nbformat.write(one.notebook, tmp_path / "handed-in.ipynb")
        submission = read_submission(tmp_path / "handed-in.ipynb", released[one.chapter])
        answers = [
            cell.source
            for cell in submission.notebook.cells
            if cell.cell_type == "markdown" and cell.metadata.get("nbgrader", {}).get("solution")
        ]
        answered = {text for text in answers if text != "YOUR ANSWER HERE"}
        assert bool(answered) == (one.kind == "perfect" and bool(answers))


def test_the_judge_finds_every_exercise_whatever_was_done_to_the_file(students, released, tmp_path):
    for one in students:
        nbformat.write(one.notebook, tmp_path / "handed-in.ipynb")
        submission = read_submission(tmp_path / "handed-in.ipynb", released[one.chapter])
        assert not submission.missing
        sources = {s.exercise: s.source for s in submission.steps if s.kind == "solution"}
        cells = {
            cell.metadata.nbgrader.grade_id.removesuffix(SOLUTION): cell.source
            for cell in one.notebook.cells
            if cell.metadata.get("nbgrader", {}).get("grade_id", "").endswith(SOLUTION)
        }
        assert sources == cells


def test_wrong_answers_to_questions_are_diagnosed(students):
    for one in (one for one in students if one.kind == "misconception"):
        exercises = checks_of(one.chapter)
        variables = {}
        for cell in one.notebook.cells:
            if cell.cell_type == "code" and (call := graded_call(cell.source)):
                variables[call[0]] = call[1]
        for name, title in one.diagnosis.items():
            question = exercises[name]
            if not isinstance(question, Question):
                continue
            place = [c.metadata.get("nbgrader", {}).get("grade_id") for c in one.notebook.cells]
            namespace: dict = {}
            exec(one.notebook.cells[place.index(name + SOLUTION)].source, namespace)
            verdict = judge(question, [Outcome(namespace[variables[name]])], SEED)
            assert (verdict.earned, verdict.misconception) == (0, title)


# the attacks

APPLY_ROPE = checks_of("04-positions")["apply_rope"]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_is_a_readable_cell_that_defines_the_exercise(attack):
    source = attack.source(APPLY_ROPE)
    assert "def apply_rope(*args, **kwargs):" in source
    compile(source, attack.name, "exec")


@pytest.mark.parametrize("name", ["imported-reference", "searched-reference", "searched-memory"])
def test_an_attack_that_gets_through_would_show(name):
    """Here the answers are at hand, so these three must earn the points that they are after."""
    attack = next(attack for attack in ATTACKS if attack.name == name)
    namespace: dict = {"__name__": "__main__"}
    exec(attack.source(APPLY_ROPE), namespace)
    outcomes = APPLY_ROPE.outcomes(namespace["apply_rope"], SEED)
    assert judge(APPLY_ROPE, outcomes, SEED).correct


@pytest.mark.parametrize("name", ["equal-to-all", "skipped-check"])
def test_an_attack_is_worth_nothing_by_itself(name):
    attack = next(attack for attack in ATTACKS if attack.name == name)
    namespace: dict = {"__name__": "__main__"}
    exec(attack.source(APPLY_ROPE), namespace)
    assert type(namespace["apply_rope"]()).__name__ in ("Agreeable", "float")
    if name == "equal-to-all":
        assert namespace["apply_rope"]() == "anything"


# the course's folder


def test_the_class_becomes_a_course_of_its_own(students, tmp_path):
    write_class(ROOT, tmp_path / "demo", students)
    leftover = tmp_path / "demo" / "submitted" / "somebody" / "02-losses"
    leftover.mkdir(parents=True)
    (tmp_path / "demo" / "gradebook.db").write_text("old")
    write_class(ROOT, tmp_path / "demo", students)
    found = [f for chapter in COURSE for f in find_submissions(tmp_path / "demo", chapter.slug)]
    assert {(f.student, f.chapter) for f in found} == {(s.student, s.chapter) for s in students}
    assert not any(f.problem for f in found)
    assert [c.slug for c in chapters(tmp_path / "demo")] == [c.slug for c in COURSE]
    assert all(c.release(tmp_path / "demo").is_file() for c in COURSE)
    assert (tmp_path / "demo" / "nbgrader_config.py").is_file()
    assert not (tmp_path / "demo" / "gradebook.db").exists()


def test_the_class_does_not_replace_the_course(students):
    with pytest.raises(ValueError, match="holds the course itself"):
        write_class(ROOT, ROOT, students)
    assert all(c.source(ROOT).is_file() for c in COURSE)


# what differs


def as_built(one):
    verdicts = [
        Verdict(
            name,
            max(points, 1),
            points,
            "correct" if points else "wrong",
            misconception=one.diagnosis.get(name, ""),
        )
        for name, points in one.expected.items()
    ]
    return Graded(one.student, one.chapter, tuple(verdicts))


def test_a_class_has_a_gradebook_of_its_own(tmp_path):
    course, target = tmp_path / "course", tmp_path / "class"
    shutil.copytree(ROOT / "solutions" / "02-losses", course / "solutions" / "02-losses")
    settings = (ROOT / "nbgrader_config.py").read_text(encoding="utf-8")
    settings += "c.CourseDirectory.db_url = 'postgresql+psycopg://db.example.edu/grades'\n"
    (course / "nbgrader_config.py").write_text(settings, encoding="utf-8")
    write_class(course, target, [])
    assert nbgrader_settings(course).CourseDirectory.db_url.endswith("edu/grades")
    assert nbgrader_settings(target).CourseDirectory.db_url == f"sqlite:///{target}/gradebook.db"


def test_grades_as_built_differ_in_nothing(students):
    assert compare(students, [as_built(one) for one in students]) == []
    scores = {(one.student, one.chapter): float(one.points) for one in students}
    assert compare_scores(students, scores) == []


def test_every_difference_gets_a_line(students):
    one = next(s for s in students if s.kind == "misconception")
    name, title = next(iter(one.diagnosis.items()))
    record = as_built(one)

    def with_verdict(**changes):
        changed = [
            Verdict(**vars(v) | changes) if v.exercise == name else v for v in record.verdicts
        ]
        return Graded(one.student, one.chapter, tuple(changed))

    (line,) = compare([one], [with_verdict(earned=1)])
    assert line == f"{one.student} · {one.chapter}: {name} earned 1, was built to earn 0"
    (line,) = compare([one], [with_verdict(misconception="another")])
    assert f"{name} was diagnosed 'another', was built with {title!r}" in line
    (line,) = compare([one], [])
    assert line.endswith("was not graded")
    (line,) = compare([], [record])
    assert line.endswith("nobody built it")
    (line,) = compare_scores([one], {})
    assert line.endswith(f"the gradebook holds nothing, was built to score {one.points}")
