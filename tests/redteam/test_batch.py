"""All attacks at once, in one shuffled batch with honest neighbours, from file to gradebook."""

import hashlib
import json
import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from autograder.course import CHAPTERS
from autograder.demo.synthetic import Synthetic, _Room, make_class, write_class
from autograder.grade import grade_class
from autograder.sandbox import Limits
from autograder.submission import Unreadable, find_submissions, read_found
from tests.redteam.conftest import family
from tests.redteam.test_deadly_cells import DEADLY

ROOT = Path(__file__).parents[2]
LIMITS = Limits(
    wall_per_cell=3.0,
    wall_per_submission=30.0,
    cpu_seconds=20,
    memory_bytes=5 * 2**27,
    processes=32,
    file_bytes=2**24,
    tmp_bytes=2**25,
)
CHAPTER = next(chapter for chapter in CHAPTERS if chapter.slug == "02-losses")
HARMLESS = "stop itself"  # nothing comes of it: the first process of a namespace ignores it
FILES = {
    "no JSON": b"print('hello')",
    "no UTF-8": b'{"cells": "\xff"}',
    "nbformat 3": b'{"nbformat": 3, "worksheets": []}',
    "deep": b'{"cells":' + b"[" * 100_000,
    "many cells": json.dumps(
        {"nbformat": 4, "cells": [{"cell_type": "code", "source": ""}] * 100_000}
    ).encode(),
    "empty": b"",
}
LINKS = ("symbolic link", "hard link", "fifo", "device")


@pytest.fixture(scope="module")
def everybody() -> dict[str, list[Synthetic]]:
    """The class by kind; a deadly cell stands behind the right solution of one exercise."""
    made = make_class(ROOT)
    room = _Room(ROOT, CHAPTER)
    deadly = []
    for number, (name, (source, _)) in enumerate(DEADLY.items()):
        target = room.checks[number % len(room.checks)]
        cell = f"{room.right[target.name]}\n\n{source}"
        wrong = {} if name == HARMLESS else {target.name: cell}
        right = {target.name: cell}
        deadly.append(room.student(name, "deadly", wrong, right=right))
    return {
        "honest": [s for s in made if s.kind not in ("hostile", "looping")],
        "attacks": [s for s in made if s.kind == "hostile"] + deadly,
    }


def scores(database: Path) -> dict[str, float]:
    query = """
        select submitted_assignment.student_id, sum(coalesce(grade.auto_score, 0))
        from grade
        join submitted_notebook on submitted_notebook.id = grade.notebook_id
        join submitted_assignment on submitted_assignment.id = submitted_notebook.assignment_id
        group by 1
    """
    with closing(sqlite3.connect(database)) as connection:
        return dict(connection.execute(query).fetchall())


def contents(folder: Path) -> dict[str, str]:
    """A digest of every plain file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("seed", range(3))
def test_everybody_earns_what_is_theirs_among_all_attacks(everybody, tmp_path, seed):
    draw = random.Random(seed)
    students = draw.sample(everybody["honest"], 20) + everybody["attacks"]
    names = [f"s{number:03}" for number in range(len(students) + len(FILES) + len(LINKS))]
    draw.shuffle(names)  # the order of grading is that of the names
    course = tmp_path / "course"
    write_class(ROOT, course, [])
    expected = {}  # student -> exercise -> points
    for student in students:
        expected[name := names.pop()] = student.expected
        submit(course, name, student.chapter).write_text(json.dumps(student.notebook))
    for data in FILES.values():
        expected[name := names.pop()] = {}
        submit(course, name, CHAPTER.slug).write_bytes(data)
    secret = tmp_path / "secret.ipynb"
    secret.write_text(json.dumps(everybody["honest"][0].notebook))
    for kind in LINKS:
        expected[name := names.pop()] = {}
        path = submit(course, name, CHAPTER.slug)
        match kind:
            case "symbolic link":
                path.symlink_to(secret)
            case "hard link":
                path.hardlink_to(secret)
            case "fifo":
                os.mkfifo(path)
            case "device":
                path.symlink_to("/dev/zero")
    before = contents(course / "submitted"), family(os.getpid())

    graded = grade_class(course, limits=LIMITS)

    differing = [
        (one.student, one.chapter, one.seed, verdict)
        for one in graded
        for verdict in one.verdicts
        if verdict.earned != expected[one.student].get(verdict.exercise, 0)
    ]
    assert not differing
    points = {name: sum(by_exercise.values()) for name, by_exercise in expected.items()}
    assert {one.student: one.earned for one in graded} == points
    assert scores(course / "gradebook.db") == points
    assert (contents(course / "submitted"), family(os.getpid())) == before
    for one in graded:
        lost = [v for v in one.verdicts if not v.correct]
        assert all(v.headline and "\n" not in v.headline for v in lost)


@pytest.mark.parametrize("depth", [0, 1])
def test_a_folder_that_becomes_a_link_while_the_class_is_graded_leads_nowhere(tmp_path, depth):
    """All submissions are found at the start; who can write there has the whole run to do it."""
    for name in ("alice", "mallory"):
        submit(tmp_path, name, CHAPTER.slug).write_text(name)
    alice, mallory = find_submissions(tmp_path, CHAPTER.slug)
    assert (read_found(alice), read_found(mallory)) == (b"alice", b"mallory")
    folder = mallory.path.parents[depth]
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(alice.path.parents[depth])
    assert mallory.path.read_text() == "alice"
    assert isinstance(read_found(mallory), Unreadable)


def submit(course: Path, student: str, chapter: str) -> Path:
    path = course / "submitted" / student / chapter / f"{chapter}.ipynb"
    path.parent.mkdir(parents=True)
    return path
