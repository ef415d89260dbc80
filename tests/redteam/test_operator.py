"""Faults on the operator's side: no grade is lost, and what is wrong is said in a sentence."""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from autograder import grade
from autograder.grade import grade_class
from autograder.gradebook import GradebookError
from autograder.graded import record_path
from autograder.sandbox import Limits
from tests.grading import CHAPTER, KINDS, finish, scores, start, write_small_class

LIMITS = Limits()


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Path:
    """A class that nobody has graded."""
    return write_small_class(tmp_path_factory.mktemp("fresh"))


@pytest.fixture
def course(fresh, tmp_path) -> Path:
    return shutil.copytree(fresh, tmp_path / "course")


@pytest.fixture(scope="module")
def undisturbed(fresh, tmp_path_factory) -> list[tuple]:
    course = shutil.copytree(fresh, tmp_path_factory.mktemp("undisturbed") / "course")
    grade_class(course, CHAPTER, limits=LIMITS)
    found = scores(course)
    assert len(found) > 50
    return found


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_and_started_again_it_ends_as_if_undisturbed(course, undisturbed, seed):
    draw = random.Random(seed)
    for _ in range(2):
        process = start(course)
        deadline = time.monotonic() + draw.uniform(0, 6)
        records = draw.randrange(len(KINDS))  # how many are brought home before it dies
        while len(list(course.glob("verdicts/*/*"))) < records or time.monotonic() < deadline:
            if process.poll() is not None:
                break
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        finish(process)
    code, complaint = finish(start(course))
    assert code == 0, complaint
    assert scores(course) == undisturbed


def test_ctrl_c_keeps_what_is_finished_and_leaves_no_process(course, undisturbed):
    perfect = course / "submitted" / f"perfect-{CHAPTER[:2]}"
    for number in range(40):  # enough to be in the midst of it
        shutil.copytree(perfect, perfect.with_name(f"same-{number}"))
    process = start(course)
    while not list(course.glob("verdicts/*/*")) and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    code, complaint = finish(process)
    assert (code, complaint.strip()) == (130, "Interrupted; what was finished is kept.")
    assert session_of(process.pid) == []
    assert 1 <= len(list(course.glob("verdicts/*/*"))) < 40
    assert finish(start(course))[0] == 0
    assert [row for row in scores(course) if not row[0].startswith("same-")] == undisturbed


def session_of(leader: int) -> list[int]:
    """The processes that are still in the session of a process which has ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rsplit(")")[1].split()[3]) == leader:
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_two_graders_on_one_gradebook_end_as_one_would(course, undisturbed):
    for process in [start(course), start(course)]:
        code, complaint = finish(process)
        assert code == 0, complaint
    assert scores(course) == undisturbed


def test_a_full_disk_is_said_and_costs_no_grade(course, undisturbed):
    def small_files() -> None:  # stands for a full disk: the gradebook cannot grow past it
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (190_000, resource.RLIM_INFINITY))

    code, complaint = finish(start(course, preexec_fn=small_files))
    assert code == 1
    assert "The gradebook" in complaint and "failed" in complaint
    assert "Traceback" not in complaint
    assert finish(start(course))[0] == 0
    assert scores(course) == undisturbed


def test_a_sandbox_s_parent_that_dies_costs_nobody_anything(course, undisturbed):
    def kill_the_parent(_: object, done: int, total: int) -> None:
        if done == 1:  # a second kill might meet the new parent before it is ready
            os.killpg(grade._sandbox(LIMITS)._process.pid, signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        grade_class(course, CHAPTER, limits=LIMITS, jobs=1, executor=pool, progress=kill_the_parent)
    grade._sandboxes.pop(LIMITS).stop()
    assert scores(course) == undisturbed


def test_a_grading_process_that_is_killed_stops_the_run_with_a_sentence(course, undisturbed):
    def kill_a_process(*_: object) -> None:
        for process in multiprocessing.active_children()[:1]:
            os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(RuntimeError, match=r"A grading process was killed.*it goes on from there"):
        grade_class(course, CHAPTER, limits=LIMITS, progress=kill_a_process)
    grade_class(course, CHAPTER, limits=LIMITS)
    assert scores(course) == undisturbed


def test_a_gradebook_that_is_locked_is_an_error_in_a_sentence(course, undisturbed):
    grade_class(course, CHAPTER, limits=LIMITS)
    shutil.rmtree(course / "verdicts")
    with closing(sqlite3.connect(course / "gradebook.db")) as other:
        other.execute("begin exclusive")
        with pytest.raises(GradebookError, match=r"gradebook.*failed: database is locked"):
            grade_class(course, CHAPTER, limits=LIMITS)
    grade_class(course, CHAPTER, limits=LIMITS)
    assert scores(course) == undisturbed


def test_a_damaged_record_is_graded_again(course, undisturbed):
    graded = {one.student: one for one in grade_class(course, CHAPTER, limits=LIMITS)}
    path = record_path(course, f"perfect-{CHAPTER[:2]}", CHAPTER)
    whole = path.read_text()
    for text in (whole[: len(whole) // 2], "[]", "{}", ""):
        path.write_text(text)
        again = {one.student: one for one in grade_class(course, CHAPTER, limits=LIMITS)}
        assert {n: one.earned for n, one in again.items()} == {
            n: one.earned for n, one in graded.items()
        }
    assert scores(course) == undisturbed
