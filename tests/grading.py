"""A small class to grade, the command that grades it, and what its gradebook then says."""

import os
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from sqlalchemy import create_engine, text

from autograder.demo.synthetic import make_class, write_class

ROOT = Path(__file__).parents[1]
CHAPTER = "02-losses"
KINDS = ("perfect", "style", "blank", "unfinished", "crashing")


def write_small_class(target: Path, kinds: Collection[str] = KINDS) -> Path:
    """A course's folder in which a few honest students have handed in one chapter."""
    course = target.with_name(f"{target.name}-course")
    shutil.copytree(ROOT / "solutions" / CHAPTER, course / "solutions" / CHAPTER)
    shutil.copy(ROOT / "nbgrader_config.py", course)
    write_class(course, target, [s for s in make_class(course) if s.kind in kinds])
    return target


def scores(course: Path, db: str | None = None) -> list[tuple]:
    """All that the gradebook says of every submission's every cell, with nothing twice."""
    query = """
        select submitted_assignment.student_id, base_cell.name, grade.auto_score
        from grade
        join base_cell on base_cell.id = grade.cell_id
        join submitted_notebook on submitted_notebook.id = grade.notebook_id
        join submitted_assignment on submitted_assignment.id = submitted_notebook.assignment_id
    """
    engine = create_engine(db or f"sqlite:///{course / 'gradebook.db'}")
    with engine.connect() as connection:
        rows = connection.execute(text(query)).all()
    engine.dispose()
    return sorted(map(tuple, rows), key=lambda row: row[:2])


def start(course: Path, *arguments: str, **options) -> subprocess.Popen:
    """`autograder grade` of the class, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "autograder", "grade", "-C", str(course), CHAPTER, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Its exit code, and what it said on stderr."""
    _, complaint = process.communicate(timeout=300)
    return process.returncode, complaint
