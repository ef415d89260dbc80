"""What a worker sends is data: it can stop neither the judge nor the batch, nor reach a page."""

import dataclasses
import json
import os
import time
from pathlib import Path

import nbformat
import pytest
import torch

from autograder.cells import source_of
from autograder.course import SOLUTION, find, find_chapter
from autograder.feedback import with_verdicts
from autograder.graded import Graded
from autograder.inside import codec
from autograder.inside.outcome import Outcome
from autograder.judge import judge_submission
from autograder.masters import chapter_master
from autograder.report import write_report
from autograder.sandbox import WorkerDied
from autograder.submission import read_submission
from autograder.verdict import judge

from .conftest import family

ROOT = Path(__file__).parents[2]
CHAPTER = find_chapter("02-losses")
EXERCISE = "one_hot"

# Each sends `value`, whatever it is, as the answer to the call that is under way.
FORGE = """
import os, time
from inside.codec import encode

def one_hot(*args, **kwargs):
    message = encode({value})
    for descriptor in range(3, 20):
        try:
            os.write(descriptor, len(message).to_bytes(8, "big") + message)
        except OSError:
            pass
    time.sleep(100)
"""

ODD = "\\ud800 \\x00 \\x1b[2J \\u202e <script>alert(1)</script> {{7*7}}"

CELLS = {
    "a type without a name": "def one_hot(*_): return type('', (), {})()",
    "a class in disguise": f"def one_hot(*_): return type({ODD.replace('ud800', 'x07')!r}"
    ".encode().decode('unicode_escape').replace('\\0', ''), (), {})()",
    "an odd message": f"def one_hot(*_): raise ValueError('{ODD}')",
    "an odd cell": f"raise ValueError('{ODD}')",
    "a message of 100 MB": "def one_hot(*_): raise ValueError('x' * 10**8)",
    "an exception that cannot be printed": "class E(Exception):\n"
    "    def __str__(self): raise self\n"
    "def one_hot(*_): raise E",
    "a name of a megabyte": "def one_hot(*_): raise type('A' * 10**6, (ValueError,), {})",
    "a huge number": "def one_hot(*_): return 10**4000",
    "half a million items": "def one_hot(*_): return [[i] for i in range(240_000)]",
    "a tensor of 64 dimensions": "import torch\ndef one_hot(*_): return torch.zeros([1] * 64)",
    "a complex tensor": "import torch\ndef one_hot(*_): return torch.zeros(3, 4) * 1j",
    "a list in place of a message": FORGE.format(value="([[0, 0, 0, 1, 5]], (), {}, None)"),
    "no list at all": FORGE.format(value="(7, (), {}, None)"),
    "too many messages": FORGE.format(value="([b''] * 100, (), {}, None)"),
    "an error that is none": FORGE.format(value="(None, (), {}, (1, 2, 3, 4))"),
}


def judged(sandbox, cell: str, tmp_path: Path) -> tuple[Graded, nbformat.NotebookNode]:
    """The record and the judged notebook of a submission with this cell for `EXERCISE`."""
    master = chapter_master(ROOT, CHAPTER)
    notebook = nbformat.from_dict(json.loads(json.dumps(master.released)))
    for each in notebook.cells:
        if each.metadata.get("nbgrader", {}).get("grade_id") == EXERCISE + SOLUTION:
            each.source = cell
    path = tmp_path / "submission.ipynb"
    path.write_text(json.dumps(notebook))
    submission = read_submission(path, master.released)
    verdicts = judge_submission(sandbox, master, submission, "seed")
    graded = Graded("mallory", CHAPTER.slug, tuple(verdicts), tuple(submission.problems))
    return graded, with_verdicts(submission.notebook, verdicts)


@pytest.mark.parametrize("name", CELLS)
def test_what_a_worker_sends_stops_no_judge_and_reaches_no_page(
    sandbox, name, tmp_path, monkeypatch
):
    monkeypatch.setattr(sandbox, "limits", dataclasses.replace(sandbox.limits, wall_per_cell=3))
    graded, notebook = judged(sandbox, CELLS[name], tmp_path)
    verdict = next(v for v in graded.verdicts if v.exercise == EXERCISE)
    assert verdict.earned == 0 and verdict.problem
    assert len(verdict.problem) < 5_000

    written = nbformat.v4.writes(notebook).encode()  # UTF-8 holds no half characters
    (shown,) = (
        c.outputs
        for c in nbformat.reads(written, as_version=4).cells
        if c.metadata.get("nbgrader", {}).get("grade_id") == EXERCISE
    )
    card, error = shown
    for text in (*card.data.values(), error.evalue, *error.traceback):
        assert all(c.isprintable() or c in "\n\t" for c in text)
    assert "<script>" not in card.data["text/html"]

    graded.save(tmp_path / "record.json")
    assert Graded.load(tmp_path / "record.json") == graded
    assert b"<script>" not in write_report([graded], tmp_path / "report.html").read_bytes()


# Takes the probe's place, and says what it says of a right solution.
PROBED = """
import inside.worker
from inside.outcome import Outcome

def call(function, args, kwargs):
    return Outcome({value})

inside.worker.call = call
{name} = len
"""
KIND = "('sum' in args[0] or 'first token' in args[0] or args[3:] == (1e-2,))"
PREDICTED = {
    "mask_tokens": "{'shapes': [tuple(args[0].shape)] * 2, 'dtypes': ['torch.int64'] * 2, "
    "'labels': 'as asked' if args[4] else 'none', 'a label is the token that stood there': True, "
    "'tokens without a label are left alone': True, 'a special token has a label': False, "
    "**dict.fromkeys(['of the labelled, masks', 'of the labelled, random tokens', "
    "'of the labelled, left as they were'], 'as asked' if args[4] else 'none'), "
    "'random tokens are of many kinds': bool(args[4]), "
    "'the same generator, the same masks': True}",
    "is_causal": "{'causal': type(args[0]) is str and " + KIND + "}",
}


@pytest.mark.parametrize("name", PREDICTED)
def test_what_a_probe_would_say_cannot_be_foretold(sandbox, name):
    check = find(name)
    with sandbox.worker() as worker:
        forged = PROBED.format(value=PREDICTED[name], name=name)
        assert worker.run(forged).error is None
        cases = [(case.args, case.kwargs) for case in check.draw("seed")]
        outcomes = worker.calls(name, cases, source_of(check.probe, "probe"))
    verdict = judge(check, outcomes, "seed", hidden=True)
    assert verdict.earned == 0 and verdict.passed < verdict.cases


@pytest.mark.parametrize(
    "value", [7, [], [(1, 2), (3, 4)], {"a": 1}, "bytes", None, [[[0]] * 2] * 2]
)
def test_what_the_judge_reads_of_a_value_may_be_anything(value):
    check = find("mask_tokens")
    outcomes = [Outcome(value)] * len(check.draw("seed"))
    assert judge(check, outcomes, "seed", hidden=True).earned == 0


def test_a_value_that_broadcasts_is_not_compared_element_by_element():
    """Ten million by thirty thousand: all the judge's memory."""
    check, huge = find("mask_tokens"), torch.zeros(1).expand(10**7, 1, 1)
    outcomes = [Outcome([(huge, huge), (huge, huge)])] * len(check.draw("seed"))
    assert "keys are missing" in judge(check, outcomes, "seed", hidden=True).problem


def test_keys_whose_hashes_collide_cost_no_time(sandbox):
    """All these keys have one hash, so that each is compared with all that came before."""
    same = 2**61 - 1
    keys = [{"tuple": [0.5] * 40 + [i * same]} for i in range(10_000)]
    text = json.dumps({"dict": [[key, None] for key in keys]}).encode()
    started = time.monotonic()
    with pytest.raises(codec.CodecError, match="keys"):
        codec.decode(len(text).to_bytes(4, "big") + text)
    assert time.monotonic() - started < 20  # each with each: minutes


# ---- the watcher in the parent -------------------------------------------------------------------

RENAME = "import ctypes\nrename = lambda name: ctypes.CDLL(None).prctl(15, name, 0, 0, 0)\n"


@pytest.mark.parametrize("name", ["²", "9 kB", "٣", "\x1cThreads: x", "\n:", "\u2028Vm: ²"])
def test_a_process_s_name_does_not_confuse_the_watcher(sandbox, name):
    parent = sandbox._process.pid
    with sandbox.worker() as worker:
        source = f"{RENAME}import time\nrename({name!r}.encode())\ntime.sleep(0.2)"
        assert worker.run(source).error is None
        assert worker.run("1").error is None
    assert sandbox._process.pid == parent


def test_a_process_s_name_does_not_hide_its_memory(sandbox):
    """A process whose first thread ended has no VmRSS line; a name can pretend to be one."""
    leak = (
        f"{RENAME}import os, threading, time\n"
        "def leak():\n"
        "    time.sleep(0.3); x = b'x' * (150 * 2**20); time.sleep(100)\n"
        "for _ in range(5):\n"
        "    if os.fork() == 0:\n"
        "        rename(b'\\x1cVmRSS: 1')\n"
        "        threading.Thread(target=leak).start()\n"
        "        ctypes.CDLL(None).syscall(60, 0)\n"
        "time.sleep(100)"
    )
    with sandbox.worker() as worker, pytest.raises(WorkerDied, match="memory"):
        worker.run(leak)


def test_threads_that_come_and_go_cost_the_watcher_no_descriptors(sandbox):
    restless = (
        "import ctypes, os, threading, time\n"
        "def breed():\n"
        "    while True:\n"
        "        try: threading.Thread(target=lambda: None).start()\n"
        "        except RuntimeError: pass\n"
        "for _ in range(2):\n"
        "    if os.fork() == 0:\n"
        "        threading.Thread(target=breed).start()\n"
        "        ctypes.CDLL(None).syscall(60, 0)\n"
        "time.sleep(2)"
    )
    with sandbox.worker() as worker:
        before = descriptors(sandbox)
        worker.run(restless)
        deadline = time.monotonic() + 5  # the watcher may be looking just now
        while descriptors(sandbox) > before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert descriptors(sandbox) <= before


def descriptors(sandbox) -> int:
    """How many files the most open-handed of the sandbox's processes holds: that is the parent."""
    return max(len(os.listdir(f"/proc/{pid}/fd")) for pid in family(sandbox._process.pid))
