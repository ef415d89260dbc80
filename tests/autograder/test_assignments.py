"""Any nbgrader assignment, graded as nbgrader itself grades it, from file to gradebook."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import chdir, closing
from importlib.resources import files
from pathlib import Path

import nbformat
import nbformat.v4 as v4
import pytest
from nbgrader.apps.api import NbGraderAPI

from autograder.build import BuildError
from autograder.check import Asserts
from autograder.display import as_html, as_text
from autograder.grade import grade_class
from autograder.gradebook import open_gradebook
from autograder.graded import Graded, load_class, record_path
from autograder.inside.outcome import Error, Outcome
from autograder.master import Master
from autograder.masters import masters
from autograder.report import FORGEABLE, print_report, write_report
from autograder.sandbox import Limits
from autograder.settings import nbgrader_settings
from autograder.submission import read_submission
from autograder.verdict import judge

ROOT = Path(__file__).parents[2]
LIMITS = Limits(wall_per_cell=5.0)
SECRET = "the secret is nine"

# ---- two assignments: nbgrader's own example, and one with all that it lacks ---------------------


def marked(source: str, grade_id: str, kind: str = "code", **flags) -> nbformat.NotebookNode:
    metadata = {"grade_id": grade_id, "schema_version": 3, "task": False}
    metadata |= {"grade": "points" in flags, "solution": False, "locked": False} | flags
    new = v4.new_code_cell if kind == "code" else v4.new_markdown_cell
    return new(source, metadata={"nbgrader": metadata})


HIDDEN = f"""\
assert f(1) == 1
### BEGIN HIDDEN TESTS
assert f(3) == 9, "{SECRET}"
### END HIDDEN TESTS
assert f(0) == 0, "zero"
"""
# The last value of a graded cell, out of 4 points. What is no score is tested apart: nbgrader
# gives full marks for it, or stops.
VALUES = {
    "whole": "f(2) - 1",
    "fraction": "f(2) / 3",
    "zero": "f(0)",
    "all": "4",
    "quiet": "2;",
    "none": "None",
    "text": "'2'",
    "truth": "True",
    "numpy": "numpy.float64(1.5)",
    "list": "[1]",
    "assigned": "score = 1",
    "in_a_block": "if True:\n    2",
    "printed": "print(2)",
    "displayed": "display(2)",
    "commented": "2  # points",
    "two": "1\n2",
    "magic": "%time 2",
}
EXTRAS = [
    v4.new_code_cell("import math\nimport numpy\nfrom helper import halve"),
    marked("N = 2", "given", locked=True),
    marked(
        'def f(x):\n    """x²"""\n    ### BEGIN SOLUTION\n    return x**N\n    ### END SOLUTION',
        "f",
        solution=True,
    ),
    marked(HIDDEN, "hidden_tests", points=3, locked=True),
    *(marked(source, f"value_{name}", points=4) for name, source in VALUES.items()),
    marked("assert halve(f(2)) == 2\nassert open('data/w.csv').read() == 'a,b'", "files", points=1),
    marked("### BEGIN SOLUTION\nf(5)\n### END SOLUTION", "by_hand", points=2, solution=True),
    marked("assert math.pi > 3", "imports", points=1),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The course of `nbgrader quickstart`, with a second assignment and everything released.

    The files are copied from where quickstart copies them: the command itself takes a minute.
    """
    course = tmp_path_factory.mktemp("made") / "course"
    example = files("nbgrader") / "docs" / "source" / "user_guide" / "source"
    shutil.copytree(example, course / "source", ignore=shutil.ignore_patterns("*.html", "*test*"))
    (course / "nbgrader_config.py").write_text(
        "c = get_config()\n"
        'c.CourseDirectory.course_id = "course"\n'
        'c.IncludeHeaderFooter.header = "source/header.ipynb"\n'
    )
    folder = course / "source" / "ps2"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "w.csv").write_text("a,b")
    (folder / "helper.py").write_text("def halve(x):\n    return x / 2\n")
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = v4.new_notebook(cells=EXTRAS, metadata={"kernelspec": kernel})
    nbformat.write(notebook, folder / "extras.ipynb")
    nbgrader(course, "generate_assignment", "ps1")
    nbgrader(course, "generate_assignment", "ps2")
    return course


def nbgrader(course: Path, step: str, *arguments: str) -> None:
    """One of nbgrader's commands, without the five seconds that it takes to start."""
    db_url = f"sqlite:///{course / 'gradebook.db'}"
    with chdir(course), open_gradebook(db_url):
        api = NbGraderAPI(config=nbgrader_settings(course, db_url))
        done = getattr(api, step)(*arguments)
    assert done["success"], done["log"][-3000:]


# ---- a class -------------------------------------------------------------------------------------

SQUARES = """\
def squares(n):
    if n < 1:
        raise ValueError("n")
    return [i**2 for i in range(1, n + 1)]
"""
SUM = "def sum_of_squares(n):\n    return sum(squares(n))"
RIGHT = {
    "squares": SQUARES,
    "sum_of_squares": SUM,
    "sum_of_squares_equation": "$x$",
    "sum_of_squares_application": "sum_of_squares(3)",
}


def fill(cells: list, sources: dict[str, str]) -> None:
    for name, source in sources.items():
        cells[place(cells, name)]["source"] = source


def place(cells: list, grade_id: str) -> int:
    ids = [cell["metadata"].get("nbgrader", {}).get("grade_id") for cell in cells]
    return ids.index(grade_id)


def with_a_helper(cells: list) -> None:
    """A cell of the student's own, which the solution uses, and one that is skipped."""
    fill(cells, RIGHT | {"squares": SQUARES.replace("i**2", "square(i)")})
    helper, skipped = code("def square(x):\n    return x * x"), code("def square(x): return 0")
    skipped["metadata"]["tags"] = ["skip-execution"]
    cells[place(cells, "squares") : 0] = [helper, skipped]


def split_in_two(cells: list) -> None:
    """A solution cell split in Jupyter: both halves keep its id."""
    fill(cells, RIGHT)
    first = json.loads(json.dumps(cells[place(cells, "squares")]))
    first["source"] = "def square(x):\n    return x * x"
    fill(cells, {"squares": SQUARES.replace("i**2", "square(i)")})
    cells.insert(place(cells, "squares"), first)


def with_changed_tests(cells: list) -> None:
    fill(cells, {"correct_squares": "pass", "squares_invalid_input": "pass"})
    cells[place(cells, "correct_squares")]["metadata"]["nbgrader"]["points"] = 100


def without_a_call(cells: list) -> None:
    """The release's own cell `squares(10)` deleted, as anybody may."""
    fill(cells, RIGHT)
    del cells[next(i for i, cell in enumerate(cells) if cell["source"] == "squares(10)")]


def code(source: str) -> dict:
    return json.loads(json.dumps(v4.new_code_cell(source))) | {"id": f"own-{len(source)}"}


def filled(**sources: str) -> Callable[[list], None]:
    return lambda cells: fill(cells, RIGHT | sources)


CLASS: dict[str, Callable[[list], None]] = {
    "right": filled(),
    "blank": lambda cells: None,
    "wrong": filled(squares="def squares(n):\n    return list(range(n))"),
    "half": filled(sum_of_squares="def sum_of_squares(n):\n    return n*(n+1)*(2*n+1)//6"),
    "syntax": filled(squares="def squares(n:\n    return"),
    "crashing": filled(squares="def squares(n):\n    return 1 / 0"),
    "exiting": filled(squares="import sys\ndef squares(n):\n    sys.exit()"),
    "helper": with_a_helper,
    "split": split_in_two,
    "changed": with_changed_tests,
    "deleted": without_a_call,
}
EXTRA_CLASS = {
    "right": lambda cells: fill(cells, {"f": "def f(x):\n    return x**N", "by_hand": "f(6)"}),
    "wrong": lambda cells: fill(cells, {"f": "def f(x):\n    return x", "given": "N = 5"}),
    "blank": lambda cells: None,
}


def hand_in(course: Path, student: str, assignment: str, name: str, change: Callable) -> None:
    notebook = json.loads((course / "release" / assignment / f"{name}.ipynb").read_text())
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    change(notebook["cells"])
    path = course / "submitted" / student / assignment / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook))


@pytest.fixture(scope="module")
def handed_in(made, tmp_path_factory) -> Path:
    course = shutil.copytree(made, tmp_path_factory.mktemp("handed-in") / "course")
    for student, change in CLASS.items():
        hand_in(course, student, "ps1", "problem1", change)
    hand_in(course, "right", "ps1", "problem2", lambda cells: fill(cells, {"part-a": "words"}))
    for student, change in EXTRA_CLASS.items():
        hand_in(course, student, "ps2", "extras", change)
    return course


@pytest.fixture(scope="module")
def course(handed_in, tmp_path_factory) -> Path:
    return shutil.copytree(handed_in, tmp_path_factory.mktemp("ours") / "course")


@pytest.fixture(scope="module")
def graded(course) -> dict[tuple[str, str], Graded]:
    return {(one.student, one.chapter): one for one in grade_class(course, limits=LIMITS)}


def scores(course: Path) -> dict[tuple[str, ...], tuple]:
    """(student, assignment, notebook, cell) -> its scores and whether a person is asked."""
    query = """
        select submitted_assignment.student_id, assignment.name, notebook.name, base_cell.name,
               grade.auto_score, grade.manual_score, grade.needs_manual_grade
        from grade
        join base_cell on base_cell.id = grade.cell_id
        join submitted_notebook on submitted_notebook.id = grade.notebook_id
        join notebook on notebook.id = submitted_notebook.notebook_id
        join submitted_assignment on submitted_assignment.id = submitted_notebook.assignment_id
        join assignment on assignment.id = submitted_assignment.assignment_id
    """
    with closing(sqlite3.connect(course / "gradebook.db")) as connection:
        rows = connection.execute(query).fetchall()
    assert len(rows) == len({row[:4] for row in rows})
    return {row[:4]: row[4:] for row in rows}


def verdict(graded, student: str, exercise: str, notebook: str = "ps1/problem1"):
    return next(v for v in graded[student, notebook].verdicts if v.exercise == exercise)


# ---- the same scores -----------------------------------------------------------------------------


def test_every_score_is_the_one_that_nbgrader_gives(handed_in, course, graded, tmp_path):
    theirs = shutil.copytree(handed_in, tmp_path / "theirs")
    shutil.rmtree(theirs / "submitted" / "split")  # which stops nbgrader
    nbgrader(theirs, "autograde", "ps1", "*")
    nbgrader(theirs, "autograde", "ps2", "*")
    expected = scores(theirs)
    found = {k: v for k, v in scores(course).items() if k[0] != "split"}
    assert {k: (v, found.get(k)) for k, v in expected.items() if found.get(k) != v} == {}
    assert found.keys() == expected.keys()
    assert {s[0] for s in expected.values()} >= {0, 0.5, 1, 2, 3, 4, 4 / 3, None}


def test_the_records_add_up_to_what_a_machine_can_score(course, graded):
    earned = {who: graded[who, "ps1/problem1"].earned for who in CLASS}
    assert earned == {
        "right": 3, "blank": 0, "wrong": 0.5, "half": 2.5, "syntax": 0, "crashing": 0.5,
        "exiting": 0.5, "helper": 3, "split": 3, "changed": 0, "deleted": 3,
    }  # fmt: skip
    assert all(graded[who, "ps1/problem1"].points == 3 for who in CLASS)


def test_a_partial_score_is_said_and_kept(graded):
    third = verdict(graded, "right", "value_fraction", "ps2/extras")
    assert (third.status, third.earned, third.points) == ("partial", 4 / 3, 4)
    assert as_text(third).startswith("◐ value_fraction ends in a score of 1.33333.")
    assert (verdict(graded, "right", "value_zero", "ps2/extras").status) == "wrong"


def test_without_a_number_a_notebook_is_complete_even_if_all_of_it_waits(course, graded):
    """problem2 is graded by hand; who did not hand it in gets 0, as with nbgrader."""
    assert graded["right", "ps1/problem2"].verdicts == ()
    assert graded["wrong", "ps1/problem2"].problems == (
        "there is no file problem2.ipynb; was it renamed?",
    )
    by_hand = {k: v for k, v in scores(course).items() if k[3] in ("part-a", "part-b")}
    assert by_hand["right", "ps1", "problem2", "part-a"] == (None, None, 1)
    assert by_hand["right", "ps1", "problem2", "part-b"] == (0, None, 0)
    assert by_hand["wrong", "ps1", "problem2", "part-a"] == (0, None, 0)


def test_grading_again_judges_nothing(course, graded):
    before = scores(course)
    again = {(one.student, one.chapter): one for one in grade_class(course, jobs=1, limits=LIMITS)}
    assert again == graded  # with the seconds that the first run took
    assert scores(course) == before
    assert {(one.student, one.chapter): one for one in load_class(course)} == graded
    assert len(list(load_class(course, "ps2"))) == len(EXTRA_CLASS)


def test_a_lost_gradebook_is_filled_again_notebook_by_notebook(course, graded, tmp_path):
    target, before = shutil.copytree(course, tmp_path / "course"), scores(course)
    (target / "gradebook.db").unlink()
    grade_class(target, "ps1", limits=LIMITS, jobs=1)
    assert scores(target) == {key: score for key, score in before.items() if key[1] == "ps1"}


def test_a_record_survives_a_round_trip(course, graded):
    for one in graded.values():
        assert Graded.load(record_path(course, one.student, one.chapter)) == one


# ---- what people read ----------------------------------------------------------------------------


def test_what_failed_is_said_with_the_line_and_the_message(graded):
    wrong = verdict(graded, "wrong", "correct_squares")
    assert (wrong.case, wrong.problem) == ("assert squares(1) == [1]", "raised AssertionError")
    crashing = verdict(graded, "crashing", "correct_sum_of_squares")
    assert crashing.problem == "raised ZeroDivisionError: division by zero"
    assert verdict(graded, "blank", "correct_squares").status == "blank"


def test_a_name_that_is_missing_is_explained_by_the_cell_that_failed(graded):
    problem = verdict(graded, "syntax", "correct_squares").problem
    assert problem.startswith("raised NameError: name 'squares' is not defined; squares raised Syn")


def test_changed_tests_are_put_back_and_mentioned(graded):
    assert graded["changed", "ps1/problem1"].problems == (
        "correct_squares: its cell was changed; the released one counts",
        "squares_invalid_input: its cell was changed; the released one counts",
    )
    assert graded["helper", "ps1/problem1"].problems == ()


def test_verdict_feedback_and_report_mark_what_can_be_forged(course, graded, tmp_path):
    some = verdict(graded, "right", "correct_squares")
    assert some.inside and "inside the student's own process" in as_text(some) + as_html(some)
    notebook = nbformat.read(course / "autograded/right/ps1/problem1.ipynb", as_version=4)
    cards = [o.data["text/html"] for c in notebook.cells for o in c.get("outputs", ())]
    assert len(cards) == 4 and all("own process" in card for card in cards)
    page = write_report(list(graded.values()), tmp_path / "report.html").read_text()
    assert "correct_squares</code> †" in page and FORGEABLE.replace("'", "&#39;") in page


def test_hidden_tests_count_and_are_not_shown(course, graded):
    right, wrong = (
        verdict(graded, who, "hidden_tests", "ps2/extras") for who in ("right", "wrong")
    )
    assert right.correct
    assert (wrong.earned, wrong.problem, wrong.case) == (0, "fails a hidden test.", "")
    nbgrader(course, "generate_feedback", "ps2", "*")
    pages = list(course.glob("feedback/*/ps2/extras.html"))
    assert len(pages) == len(EXTRA_CLASS)
    for path in (*pages, *course.glob("autograded/*/ps2/*"), *course.glob("verdicts/ps2/*/*")):
        text = path.read_text() if path.is_file() else ""
        assert SECRET not in text and "HIDDEN" not in text and "f(3)" not in text
    assert "fails a hidden test" in (course / "feedback/wrong/ps2/extras.html").read_text()


def test_a_score_of_parts_is_in_nbgraders_feedback(course, graded):
    page = (course / "feedback/right/ps2/extras.html").read_text()
    assert "ends in a score of 1.33333." in page


# ---- nbgrader's own command with our judge -------------------------------------------------------


def test_the_judge_gives_the_same_inside_nbgrader(handed_in, course, graded, tmp_path):
    target = shutil.copytree(handed_in, tmp_path / "plugged")
    config = (ROOT / "nbgrader_config.py").read_text()
    lines = [line for line in config.splitlines() if "CourseDirectory" not in line]
    with open(target / "nbgrader_config.py", "a") as file:
        file.write("\n".join(lines))
    nbgrader(target, "autograde", "ps2", "*")
    expected = {k: v for k, v in scores(course).items() if k[1] == "ps2"}
    assert {k: v for k, v in scores(target).items() if k[1] == "ps2"} == expected


# ---- parts of it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["nan", "-1", "inf", "4.5", "1e9", "-inf"])
def test_a_number_that_is_no_score_earns_nothing(value):
    """nbgrader gives full marks for nan and below 0, and stops at what is above the points."""
    verdict = judge(Asserts("a", 4, ""), [Outcome(value)], "")
    assert (verdict.earned, verdict.status) == (0, "wrong")
    assert verdict.problem == f"ends in {float(value):g}: no score from 0 to 4."


def test_a_warning_costs_nothing(made, tmp_path):
    """nbgrader takes a graded cell with a word on stderr for failed."""
    noisy = "import warnings\ndef f(x):\n    warnings.warn('slow')\n    return x**N"
    course = shutil.copytree(made, tmp_path / "course")
    hand_in(course, "noisy", "ps2", "extras", lambda cells: fill(cells, {"f": noisy}))
    (one,) = grade_class(course, "ps2", limits=LIMITS, jobs=1)
    assert next(v for v in one.verdicts if v.exercise == "hidden_tests").correct


def test_what_a_process_says_that_knows_hidden_tests_is_not_repeated():
    tests = Asserts("a", 1, "assert f(1)\nassert f(2)\nassert f(3)", frozenset({2}))
    told = 'File "cell", line {}, in <module>\n'
    error = Error("Told", ("ValueError", "Exception"), SECRET, told.format(3))
    open_, hidden = (judge(tests, [Outcome(error=error)], "", hidden) for hidden in (False, True))
    assert (open_.case, open_.problem) == ("assert f(3)", f"raised Told: {SECRET}")
    assert (hidden.case, hidden.problem) == ("assert f(3)", "raised ValueError")
    for line in ("0", "4", "999999", "x"):
        error = Error("Told", ("Told",), SECRET, told.format(line))
        verdict = judge(tests, [Outcome(error=error)], "", hidden=True)
        assert (verdict.case, verdict.problem) == ("", "raised an error of its own")


def test_a_course_without_anything_to_grade_says_so(tmp_path):
    with pytest.raises(LookupError, match="nothing to grade"):
        masters(tmp_path)


def test_an_unknown_assignment_is_named_with_those_there_are(made):
    with pytest.raises(LookupError, match=r"no assignment 'ps3' .*: ps1, ps2"):
        masters(made, "ps3")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda n: n.metadata.kernelspec.update(language="R"), "its language is R"),
        (lambda n: n.cells[0].update(source="### AUTOTEST f(1)"), "AUTOTEST"),
        (lambda n: n.cells[2].update(source="### BEGIN SOLUTION"), "solution"),
        (
            lambda n: n.cells[1].metadata.nbgrader.update(schema_version=1),
            "Outdated schema version",
        ),
    ],
)
def test_a_source_that_cannot_be_graded_is_refused_in_a_sentence(made, tmp_path, change, said):
    course = shutil.copytree(made, tmp_path / "course")
    path = course / "source" / "ps2" / "extras.ipynb"
    notebook = nbformat.read(path, as_version=4)
    change(notebook)
    nbformat.write(notebook, path)
    with pytest.raises(BuildError, match=rf"ps2/extras\.ipynb: .*{said}"):
        masters(course, "ps2")


def test_a_master_is_the_same_each_time_and_can_be_sent(made):
    first, again = masters(made), masters(made)
    assert [hash(m) for m in first] == [hash(m) for m in again]
    assert [m.label for m in first] == ["ps1/problem1", "ps1/problem2", "ps2/extras"]
    assert dict(first[2].beside) == {
        "data/w.csv": b"a,b",
        "helper.py": b"def halve(x):\n    return x / 2\n",
    }


@pytest.fixture
def extras(made) -> Master:
    return masters(made, "ps2")[0]


def test_a_cell_that_is_gone_is_put_back_behind_its_neighbour(extras, tmp_path):
    notebook = json.loads(json.dumps(extras.released))
    for grade_id in ("given", "hidden_tests", "f"):
        del notebook["cells"][place(notebook["cells"], grade_id)]
    path = tmp_path / "extras.ipynb"
    path.write_text(json.dumps(notebook))
    submission = read_submission(path, extras.released, own_cells=True)
    ids = [c.metadata.get("nbgrader", {}).get("grade_id") for c in submission.notebook.cells]
    assert ids[:4] == ["given", "f", "hidden_tests", None]
    assert submission.missing == {"f": "its cell is missing from the submission"}
    assert "given: its cell was missing and was put back" in submission.notes
    assert "f" not in [step.exercise for step in submission.steps if step.kind == "solution"]


def test_the_terminal_report_marks_what_can_be_forged(graded, capsys):
    from rich.console import Console

    print_report(list(graded.values()), Console(width=120))
    out = capsys.readouterr().out
    assert "correct_squares †" in out and "† judged by asserts" in out
    assert "ps1/problem1" in out
