"""A long run: classes of 10, 100 and 1,000 mixed submissions, honest and hostile.

For each class: throughput, CPU-seconds beyond the students' own compute, and the peak memory of
the grader's processes (the one that writes and the largest of those that judge), which must not
grow with the class. Every verdict is compared with what its submission was built to score.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from autograder.demo.synthetic import Synthetic, make_class, write_class
from autograder.graded import Graded, load_class
from benchmarks.figure import Figure
from benchmarks.grading import HONEST, ROOT, busy, environment, honest_class, own_compute

SIZES = (10, 100, 1000)
WALL_PER_CELL = 3  # seconds: the honest cells take milliseconds, and many attacks only wait


@dataclass(frozen=True)
class Run:
    """CPU-seconds, wall-seconds and peak bytes of the writer and of the largest judge."""

    cpu: float
    wall: float
    writer: int
    judge: int


def mixed(size: int) -> list[Synthetic]:
    """A class of that size: every honest kind in turn, and each attack at most once."""
    hostile = [student for student in make_class(ROOT) if student.kind == "hostile"]
    hostile = hostile[: size // 10]
    return [*honest_class(size - len(hostile)), *hostile]


def grade(folder: Path) -> Run:
    """Grade the class in a folder, and watch what it takes."""
    command = [sys.executable, "-m", "autograder", "grade", "-C", str(folder)]
    command += ["--limit", f"wall_per_cell={WALL_PER_CELL}"]
    before, start = busy(), time.perf_counter()
    writer = judge = 0
    process = subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while process.poll() is None:
        writer = max(writer, peak(process.pid))
        judge = max(judge, *map(peak, children(process.pid)), 0)
        time.sleep(0.2)
    if process.returncode:
        raise RuntimeError(f"grading failed:\n{process.stderr.read().decode()[-2000:]}")
    return Run(busy() - before, time.perf_counter() - start, writer, judge)


def peak(pid: int) -> int:
    """The most bytes of memory that a process has had resident; 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    lines = (line.split() for line in status.splitlines())
    return next((int(line[1]) * 1024 for line in lines if line[0] == "VmHWM:"), 0)


def children(pid: int) -> Iterator[int]:
    try:
        yield from map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        return


def wrong(students: list[Synthetic], folder: Path) -> tuple[int, int]:
    """How many submissions have no record, and how many verdicts are not what they must be."""
    records: dict[tuple[str, str], Graded] = {
        (one.student, one.chapter): one for one in load_class(folder)
    }
    lost = differ = 0
    for student in students:
        record = records.get((student.student, student.chapter))
        lost += record is None
        earned = {v.exercise: v.earned for v in record.verdicts} if record else {}
        differ += sum(earned.get(name) != points for name, points in student.expected.items())
    return lost, differ


def figures() -> Iterator[Figure]:
    print("submissions  per minute  CPU-s each  beyond own  writer MiB  judge MiB  lost  wrong")
    for size in SIZES:
        students = mixed(size)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write_class(ROOT, folder, students)
            own = own_compute([s for s in students if s.kind in HONEST]) / size
            run = grade(folder)
            lost, differ = wrong(students, folder)
        print(
            f"{size:11,}  {60 * size / run.wall:10.0f}  {run.cpu / size:10.3f}  "
            f"{run.cpu / size - own:10.3f}  {run.writer / 2**20:10.0f}  "
            f"{run.judge / 2**20:9.0f}  {lost:4}  {differ:5}"
        )
        yield Figure(f"mixed submissions, {size:,}", "a minute", 60 * size / run.wall)
        if lost or differ:
            raise AssertionError(f"{lost} submissions lost, {differ} verdicts wrong")
