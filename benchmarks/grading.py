"""`autograder grade` beside stock `nbgrader autograde`, on the same honest submissions.

CPU-seconds are the machine's while a command runs, so run this on an idle one. The student's own
compute is what the same cells and calls take in one plain process that has torch imported already;
it is subtracted from both, and what remains is the grader's. The floor beside it is what a process
that imports torch takes, since every kernel of stock nbgrader has to.

Both grade two small classes. A large one is graded by us alone: stock nbgrader would take an hour
and a half for a thousand notebooks, at the rate of the larger class, with which it is compared.
"""

import io
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, cycle, islice
from pathlib import Path

from nbformat import NotebookNode
from tqdm import tqdm

from autograder.check import Check
from autograder.course import checks_of
from autograder.demo.synthetic import Synthetic, make_class, write_class
from autograder.practice import PRACTICE_SEED
from benchmarks.figure import Figure

HONEST = {"perfect", "style", "misconception", "blank", "unfinished", "crashing"}
STOCK = (10, 26)  # notebooks that both grade
ROOT = Path(__file__).parents[1]
STOCK_CONFIG = """
c = get_config()
c.CourseDirectory.course_id = "llm"
c.CourseDirectory.source_directory = "solutions"
c.CourseDirectory.release_directory = "notebooks"
c.CourseDirectory.ignore = ["*.md"]
"""


@dataclass(frozen=True)
class Cost:
    """CPU-seconds and wall-seconds of one run."""

    cpu: float
    wall: float


def busy() -> float:
    """CPU-seconds that the machine has spent since it started, whoever spent them."""
    user, nice, system, _, _, interrupts, soft, *_ = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    )
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")


def environment() -> dict[str, str]:
    """This process's, in which the commands of this Python are found, and the project first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PATH": path, "PYTHONPATH": python_path}


def measure(command: list[str], folder: Path, cores: set[int] | None = None) -> Cost:
    """What a command takes, on these cores or on all; it must succeed.

    The whole machine's CPU-seconds are counted, since those of a namespace that the kernel ends
    reach no parent. What the machine spends on other things is measured first, and subtracted.
    """
    before, start = busy(), time.perf_counter()
    time.sleep(2)
    background = (busy() - before) / (time.perf_counter() - start)
    before, start = busy(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        preexec_fn=partial(os.sched_setaffinity, 0, cores) if cores else None,
    )
    cpu, wall = busy() - before, time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    if background > 0.1:
        print(f"the machine is not idle: {background:.1f} cores are busy with other work")
    return Cost(cpu - background * wall, wall)


def honest_class(count: int) -> list[Synthetic]:
    """So many honest submissions, to every chapter in turn."""
    by_chapter: dict[str, list[Synthetic]] = {}
    for student in make_class(ROOT):
        if student.kind in HONEST:
            by_chapter.setdefault(student.chapter, []).append(without_demos(student))
    in_turn = chain.from_iterable(zip(*map(cycle, by_chapter.values()), strict=False))
    chosen = enumerate(islice(in_turn, count))
    return [replace(student, student=f"{student.student}-{i}") for i, student in chosen]


def without_demos(student: Synthetic) -> Synthetic:
    """The same submission with its demo cells emptied: stock nbgrader would run them, too."""
    for cell in student.notebook.cells:
        if "demo" in cell.metadata.get("tags", ()):
            cell.source = ""
    return student


def own_compute(students: list[Synthetic]) -> float:
    """CPU-seconds that the submissions' own cells and functions take, without any grader."""
    start = time.process_time()
    for student in tqdm(students, "the students' own compute", leave=False):
        with redirect_stdout(io.StringIO()):
            run_plainly(student.notebook, student.chapter)
    return time.process_time() - start


def run_plainly(notebook: NotebookNode, chapter: str) -> None:
    """Run a notebook's cells, and call each solution on the cases of one seed."""
    exercises = checks_of(chapter)
    scope: dict = {"__name__": "__main__"}
    for cell in notebook.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id", "")
        if cell.cell_type != "code":
            continue
        try:
            if isinstance(check := exercises.get(name), Check):
                check.outcomes(scope[check.name], PRACTICE_SEED)
            elif check is None:
                exec(compile(cell.source, name or "cell", "exec"), scope)
        except Exception:  # the crashing ones: as in a kernel, the next cell runs
            continue


def scores(folder: Path) -> dict[tuple[str, str, str], float | None]:
    """(student, chapter, cell) -> automatic score in the gradebook of a course's folder."""
    query = """
        select submitted_assignment.student_id, assignment.name, base_cell.name, grade.auto_score
        from grade
        join base_cell on base_cell.id = grade.cell_id
        join submitted_notebook on submitted_notebook.id = grade.notebook_id
        join submitted_assignment on submitted_assignment.id = submitted_notebook.assignment_id
        join assignment on assignment.id = submitted_assignment.assignment_id
    """
    with sqlite3.connect(folder / "gradebook.db") as connection:
        return {row[:3]: row[3] for row in connection.execute(query)}


def grade_ours(students: list[Synthetic], folder: Path, cores: set[int] | None = None) -> Cost:
    write_class(ROOT, folder, students)
    jobs = len(cores or os.sched_getaffinity(0))
    return measure(["autograder", "grade", "-C", str(folder), "-j", str(jobs)], folder, cores)


def grade_stock(students: list[Synthetic], folder: Path) -> Cost:
    write_class(ROOT, folder, students)
    (folder / "nbgrader_config.py").write_text(STOCK_CONFIG)
    runs = []
    chapters = sorted({student.chapter for student in students})
    for chapter in tqdm(chapters, "stock nbgrader, chapter by chapter", leave=False):
        measure(["nbgrader", "generate_assignment", "--force", chapter], folder)
        runs.append(measure(["nbgrader", "autograde", chapter], folder))
    return Cost(sum(run.cpu for run in runs), sum(run.wall for run in runs))


def figures(notebooks: int) -> Iterator[Figure]:
    """Both at two sizes, ours alone with so many `notebooks`; prints what each took."""
    part = notebooks // 4  # for one core beside all of them
    sizes = (*STOCK, part, notebooks)
    classes = {size: honest_class(size) for size in sizes}
    own = {size: own_compute(students) / size for size, students in classes.items()}
    with tempfile.TemporaryDirectory() as scratch:
        floor = measure(["timeit", "-n1", "-r1", "import torch"], Path(scratch))
        print(f"the floor, importing torch: {floor.cpu:.2f} CPU-s, {floor.wall:.2f} s")
        folders = {size: Path(scratch, f"ours-{size}") for size in sizes}
        ours = {size: grade_ours(classes[size], folders[size]) for size in sizes}
        one_core = {min(os.sched_getaffinity(0))}
        alone = grade_ours(classes[part], Path(scratch, "one-core"), one_core)
        stock, same = {}, True
        for size in STOCK:
            folder = Path(scratch, f"stock-{size}")
            stock[size] = grade_stock(classes[size], folder)
            same &= scores(folders[size]) == scores(folder)
    if not same:
        raise AssertionError("autograder grade and nbgrader autograde gave different scores")

    print(f"{'a notebook':>19} {'CPU-s':>9} {'of them own':>12} {'beyond own':>11} {'wall s':>8}")
    for name, costs in (("autograder grade", ours), ("nbgrader autograde", stock)):
        for size, cost in costs.items():
            print(
                f"{name:18} {size:5,}: {cost.cpu / size:8.3f} {own[size]:8.3f} "
                f"{cost.cpu / size - own[size]:11.3f} {cost.wall / size:11.3f}"
            )
    most = max(STOCK)
    mine, theirs = ours[notebooks], stock[most]
    beyond = mine.cpu / notebooks - own[notebooks]
    peer = f"nbgrader autograde, {most} of them"
    yield Figure(
        f"grading {notebooks:,} notebooks",
        "notebooks/s",
        notebooks / mine.wall,
        peer,
        most / theirs.wall,
        40.0,
    )
    yield Figure(
        "a notebook beyond the student's own",
        "CPU-s",
        beyond,
        peer,
        theirs.cpu / most - own[most],
        20.0,
    )
    yield Figure("a notebook beyond the student's own", "CPU-s", beyond, goal=0.1)
    yield Figure(
        f"grading {part:,} on {os.cpu_count()} cores",
        "notebooks/s",
        part / ours[part].wall,
        "on one",
        part / alone.wall,
        ceiling=os.cpu_count() * part / alone.wall,
        limit="cores",
    )
