"""Graded cells of plain asserts run in the student's process. What cheats there can gain is those
cells' own points, each marked as forgeable, and nothing else: no check, no neighbour, no secret."""

import dataclasses
import json
from pathlib import Path

import nbformat
import nbformat.v4 as v4
import pytest

from autograder.course import SOLUTION, find_chapter
from autograder.display import as_html, as_text
from autograder.feedback import with_verdicts
from autograder.judge import judge_submission
from autograder.master import HIDDEN, Master, chapter_from
from autograder.masters import chapter_master
from autograder.sandbox import Sandbox
from autograder.submission import read_submission
from autograder.verdict import Verdict

ROOT = Path(__file__).parents[2]
CHAPTER = find_chapter("02-losses")
SECRET = "mango"
TESTS = f"assert f(1) == 1\nassert f(2) == 4, '{SECRET}'\nassert f(3) == 9"


def marked(source: str, grade_id: str, **flags) -> nbformat.NotebookNode:
    metadata = {"grade_id": grade_id, "grade": "points" in flags, "solution": False} | flags
    return v4.new_code_cell(source, metadata={"nbgrader": metadata})


def cells() -> list[nbformat.NotebookNode]:
    hidden = marked(TESTS, "tests", points=3, locked=True)
    hidden.metadata[HIDDEN] = [2]
    return [
        marked("", "f", solution=True),
        hidden,
        marked("", "g", solution=True),
        marked("assert g() == 7, 'seven'", "later", points=2, locked=True),
    ]


ASSERTS = Master("ps1", "p", nbformat.writes(v4.new_notebook(cells=cells())))


def judged(
    sandbox: Sandbox, tmp_path: Path, sources: dict[str, str], change=lambda cells: None
) -> tuple[dict[str, Verdict], str]:
    """The verdicts by exercise, and all the text that anybody gets to read of them."""
    notebook = json.loads(json.dumps(ASSERTS.released))
    for cell in notebook["cells"]:
        cell["source"] = sources.get(cell["metadata"]["nbgrader"]["grade_id"], cell["source"])
    change(notebook["cells"])
    path = tmp_path / "p.ipynb"
    path.write_text(json.dumps(notebook))
    submission = read_submission(path, ASSERTS.released, own_cells=True)
    verdicts = judge_submission(sandbox, ASSERTS, submission, "seed")
    shown = nbformat.writes(with_verdicts(submission.notebook, verdicts))
    words = [json.dumps(dataclasses.asdict(v)) + as_text(v) + as_html(v) for v in verdicts]
    return {v.exercise: v for v in verdicts}, "\n".join([shown, *words, *submission.problems])


RIGHT_F, RIGHT_G = "def f(x): return x * x", "def g(): return 7"


@pytest.fixture
def sandbox(sandbox, monkeypatch):
    limits = dataclasses.replace(sandbox.limits, wall_per_cell=3)
    monkeypatch.setattr(sandbox, "limits", limits)
    return sandbox


def test_an_honest_solution_earns_it_all(sandbox, tmp_path):
    verdicts, shown = judged(sandbox, tmp_path, {"f": RIGHT_F, "g": RIGHT_G})
    assert [(v.earned, v.inside) for v in verdicts.values()] == [(3, True), (2, True)]
    assert SECRET not in shown and "assert f(3) == 9" in shown


# Each ends the worker, or tries to, in the call that the first tests make.
DEADLY = {
    "exit": "import os\ndef f(x): os._exit(0)",
    "segmentation fault": "import ctypes\ndef f(x): ctypes.string_at(0)",
    "loop": "def f(x):\n    while True:\n        try:\n            while True: pass\n"
    "        except BaseException: pass",
    "output": "import os\ndef f(x):\n    while True: os.write(1, b'!' * 2**20)",
    "memory": "def f(x): return bytearray(2**33)",
    "kill": "import os\ndef f(x):\n    os.kill(-1, 9); os.kill(os.getpid(), 9)",
    "a forged reply": "import os, time\nfrom inside.codec import encode\n"
    "def f(x):\n    message = encode((None, (), {}, None)) * 2\n"
    "    for d in range(3, 20):\n"
    "        try: os.write(d, len(message).to_bytes(8, 'big') + message)\n"
    "        except OSError: pass\n"
    "    time.sleep(100)",
}


@pytest.mark.parametrize("name", DEADLY)
def test_what_ends_the_worker_costs_its_own_tests_only(sandbox, tmp_path, name):
    verdicts, _ = judged(sandbox, tmp_path, {"f": DEADLY[name], "g": RIGHT_G})
    assert (verdicts["tests"].earned, verdicts["later"].earned) == (0, 2)
    assert verdicts["tests"].problem


def test_an_own_cell_that_ends_the_worker_is_left_out(sandbox, tmp_path):
    bomb = json.loads(json.dumps(v4.new_code_cell("import os\nos._exit(1)")))
    verdicts, _ = judged(
        sandbox, tmp_path, {"f": RIGHT_F, "g": RIGHT_G}, lambda cells: cells.insert(0, bomb)
    )
    assert [v.earned for v in verdicts.values()] == [3, 2]


def skipped(cells: list) -> None:
    for cell in cells:
        cell["metadata"]["tags"] = ["skip-execution"]


def emptied(cells: list) -> None:
    for cell in cells:
        if cell["metadata"]["nbgrader"]["grade"]:
            cell["source"] = "100"
            cell["metadata"]["nbgrader"]["points"] = 100


def deleted(cells: list) -> None:
    cells[:] = [cell for cell in cells if cell["metadata"]["nbgrader"]["solution"]]


def doubled(cells: list) -> None:
    emptied(cells)
    cells += json.loads(json.dumps(cells))


def retyped(cells: list) -> None:
    for cell in cells:
        if cell["metadata"]["nbgrader"]["grade"]:
            cell["metadata"]["nbgrader"] |= {"grade": False, "solution": True, "locked": False}
            cell["cell_type"] = "markdown"


def renamed(cells: list) -> None:
    for cell in cells:
        cell["metadata"]["nbgrader"]["grade_id"] += "-mine"


def reordered(cells: list) -> None:
    cells.reverse()


@pytest.mark.parametrize(
    "change", [skipped, emptied, deleted, doubled, retyped, renamed, reordered]
)
def test_what_is_done_to_graded_cells_gains_nothing(sandbox, tmp_path, change):
    verdicts, shown = judged(sandbox, tmp_path, {"f": "def f(x): return x"}, change)
    assert {name: v.earned for name, v in verdicts.items()} == {"tests": 0, "later": 0}
    assert [v.points for v in verdicts.values()] == [3, 2]
    assert SECRET not in shown


# Each has the line of the hidden test in `text`, and tries to hand it to who reads the verdicts.
LEAKS = {
    "a message": "raise ValueError(text)",
    "a type's name": "raise type(text, (AssertionError,), {})",
    "a base's name": "raise type('E', (type(text, (Exception,), {}),), {})",
    "the output": "print(text); sys.stderr.write(text); return 49",
    "a file's name": "exec(compile('raise ValueError', text, 'exec'))",
    "not written": "raise NotImplementedError(text)",
    "a missing name": "raise NameError(text)",
}
FIND = """\
import linecache, sys
def find():
    frame = sys._getframe()
    while frame := frame.f_back:
        lines = linecache.getlines(frame.f_code.co_filename)
        if "assert f(1)" in lines[0]:
            return lines[1]
found = ""
def f(x):
    global found
    found = found or find()
    return x * x
"""


def test_hidden_tests_can_be_found_by_the_process_that_runs_them(sandbox):
    """Or else the tests below would prove nothing."""
    with sandbox.worker() as worker:
        worker.run(FIND)
        assert worker.grade(TESTS).error is None
        assert SECRET in worker.get("found").value


@pytest.mark.parametrize("name", LEAKS)
def test_hidden_tests_reach_no_reader_at_once(sandbox, tmp_path, name):
    f = f"{FIND}square = f\ndef f(x):\n    square(x)\n    text = found\n    {LEAKS[name]}"
    verdicts, shown = judged(sandbox, tmp_path, {"f": f, "g": RIGHT_G})
    assert verdicts["tests"].earned == 0 and SECRET not in shown


@pytest.mark.parametrize("name", LEAKS)
def test_hidden_tests_reach_no_reader_later(sandbox, tmp_path, name):
    g = f"def g():\n    text = found\n    {LEAKS[name]}"
    verdicts, shown = judged(sandbox, tmp_path, {"f": FIND, "g": g})
    assert verdicts["tests"].earned == 3 and verdicts["later"].earned == 0
    assert SECRET not in shown
    at_once = g.split("\n", 1)[1].replace("    ", "").replace("return 49", "")
    verdicts, shown = judged(sandbox, tmp_path, {"f": FIND, "g": at_once})
    assert verdicts["later"].earned == 0 and SECRET not in shown


# ---- beside checks, in one notebook --------------------------------------------------------------

CHEAT = """\
import builtins, sys

class Agreeable(int):
    def __eq__(self, other): return True

builtins.AssertionError = type("Never", (Exception,), {})
get_ipython().run_cell = lambda *a, **k: None
def one_hot(*args, **kwargs): return Agreeable()
"""


def test_cheats_gain_no_check(sandbox, tmp_path):
    """The cell of asserts believes what it is told; the checks around it do not."""
    notebook = json.loads(json.dumps(chapter_master(ROOT, CHAPTER).released))
    solution = next(
        i
        for i, cell in enumerate(notebook["cells"])
        if cell["metadata"].get("nbgrader", {}).get("grade_id") == "one_hot" + SOLUTION
    )
    asserts = json.loads(json.dumps(marked("assert one_hot(0, 2) == 5", "forged", points=1)))
    notebook["cells"].insert(solution + 1, asserts)
    master = chapter_from(nbformat.from_dict(notebook), CHAPTER)
    notebook["cells"][solution]["source"] = CHEAT
    path = tmp_path / "submission.ipynb"
    path.write_text(json.dumps(notebook))
    submission = read_submission(path, master.released)
    verdicts = {v.exercise: v for v in judge_submission(sandbox, master, submission, "seed")}
    assert verdicts["forged"].earned == 1 and verdicts["forged"].inside
    assert sum(v.earned for v in verdicts.values()) == 1
    assert not any(v.inside for name, v in verdicts.items() if name != "forged")
