"""An exercise of an instructor's own: the steps of docs/instructors.md, to the letter."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHAPTER = "14-accuracy"
STEP = re.compile(r"^\*\*\d\. .*?`([\w/.-]+)`.*?^(`{3,4})\w+\n(.*?)^\2$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def course(tmp_path_factory) -> Path:
    """A copy of the course in which the guide has been followed."""
    folder = tmp_path_factory.mktemp("own")
    for name in ("llmkit", "autograder"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copyfile(ROOT / "nbgrader_config.py", folder / "nbgrader_config.py")
    guide = (ROOT / "docs" / "instructors.md").read_text("utf-8")
    *files, (table, _, line) = STEP.findall(guide.partition("## Writing an exercise")[2])
    assert (len(files), table) == (3, "CHAPTERS")
    for name, _, text in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    source = folder / "autograder" / "course.py"
    before, end, after = source.read_text("utf-8").partition("\n)\n\n\ndef chapters(")
    assert end
    source.write_text(before + "\n" + line.rstrip("\n") + end + after, "utf-8")
    done = autograder(folder, "build")
    assert done.returncode == 0, done.stderr
    return folder


def autograder(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "autograder", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


def test_the_solution_scores_all_points_and_the_release_none(course):
    for room, points in (("solutions", 2), ("notebooks", 0)):
        done = autograder(course, "check", f"{room}/{CHAPTER}/{CHAPTER}.ipynb")
        assert f"{points} of 2 points" in done.stdout, done.stderr


def test_a_class_is_graded_and_a_known_mistake_is_named(course):
    release = (course / "notebooks" / CHAPTER / f"{CHAPTER}.ipynb").read_text("utf-8")
    blank = '"    # YOUR CODE HERE\\n",\n    "    raise NotImplementedError()"'
    assert blank in release
    for student, answer in {
        "ada": "(logits.argmax(-1) == targets).double().mean().item()",
        "bob": "float((logits.argmax(-1) == targets).sum())",
    }.items():
        path = course / "submitted" / student / CHAPTER / f"{CHAPTER}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(release.replace(blank, f'"    return {answer}"'), "utf-8")
    done = autograder(course, "grade")
    assert done.returncode == 0, done.stderr
    records = course / "verdicts" / CHAPTER
    earned = {
        path.stem: sum(one["earned"] for one in json.loads(path.read_text("utf-8"))["verdicts"])
        for path in records.glob("*.json")
    }
    assert earned == {"ada": 2, "bob": 0}
    told = autograder(course, "explain", "bob", CHAPTER, "accuracy").stdout
    assert "right answers are counted, not their share" in told
