"""What a student uses, where neither Linux nor the grader's packages are: on Windows, in Colab."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ABSENT = (
    *("fcntl", "resource", "pwd", "grp", "termios"),  # not on Windows
    *("nbgrader", "sqlalchemy", "alembic", "jupytext", "copydetect", "distributed"),  # extras
)
ELSEWHERE = f"""
import sys
for name in {ABSENT}:
    sys.modules[name] = None
import os, signal
for name in ("fork", "setsid", "getuid", "geteuid", "sched_getaffinity", "pidfd_open"):
    if hasattr(os, name):
        delattr(os, name)
del signal.SIGALRM
"""


def run(program: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", ELSEWHERE + program], cwd=ROOT, capture_output=True, text=True
    )


def autograder(*arguments: str) -> subprocess.CompletedProcess:
    program = f"sys.argv[1:] = {arguments}\nfrom autograder.__main__ import main\nmain()"
    return run(program)


def test_a_check_answers():
    done = run("from autograder import check\nfrom llmkit.losses import one_hot\ncheck(one_hot)")
    assert done.stdout.startswith("✓ one_hot"), done.stderr


def test_a_whole_notebook_is_scored(tmp_path):
    source = ROOT / "notebooks" / "02-losses" / "02-losses.ipynb"
    text = source.read_text("utf-8")
    blank = "cherry_bits = None"
    assert blank in text
    (tmp_path / source.name).write_text(text.replace(blank, "cherry_bits = 2.3219"), "utf-8")
    done = autograder("check", str(tmp_path / source.name), "--no-sandbox")
    assert done.stdout.splitlines()[-1].startswith("1 of "), done.stderr
    assert "✓ cherry_bits" in done.stdout


def test_progress_is_shown():
    done = autograder("progress")
    assert "Next: count_bigram in 01-ngrams" in done.stdout, done.stderr


@pytest.mark.parametrize("command", ["grade", "build"])
def test_what_needs_more_says_so(command):
    done = autograder(command, "-C", str(ROOT))
    assert done.returncode == 1
    assert "pip install" in done.stderr
    assert "Traceback" not in done.stderr
