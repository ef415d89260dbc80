"""Grading a class: submissions fan out over an executor, one writer brings the results home.

Whatever stops a run, what was finished stays finished: a notebook's record is saved after its
grade is in the gradebook, and a notebook whose record still holds is not graded again.
"""

import contextlib
import gc
import hashlib
import hmac
import json
import multiprocessing
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    ProcessPoolExecutor,
    wait,
)
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from nbformat import NotebookNode
from nbgrader.api import Gradebook

from autograder.course import Chapter
from autograder.feedback import with_verdicts
from autograder.fingerprint import of_exercise, of_notebook, versions
from autograder.gradebook import (
    Entry,
    Registered,
    entry_of,
    graded_students,
    open_gradebook,
    record,
    register,
)
from autograder.graded import Graded, RecordError, record_path, write_atomically
from autograder.judge import judge_submission
from autograder.master import Master
from autograder.masters import chapter_master, sources
from autograder.sandbox import Limits, Sandbox, SandboxUnavailable
from autograder.settings import SettingsError, nbgrader_settings
from autograder.submission import (
    Found,
    Unreadable,
    find_submissions,
    read_found,
    read_submission,
)
from autograder.verdict import Verdict, lost


@dataclass(frozen=True)
class Terms:
    """What is the same for all who hand in one notebook; the digests are those of `Graded`."""

    master: Master
    limits: Limits
    secret: bytes  # of the course: the seeds of the hidden cases are drawn from it
    basis: str
    checks: Mapping[str, str]


@dataclass(frozen=True)
class Job:
    """One notebook to grade: all that a process needs for it, wherever that process runs."""

    found: Found
    terms: Terms
    known: Graded | None = None  # the record of an earlier run
    content: bytes | Unreadable | None = None  # of the file, where it is judged far from it


@dataclass(frozen=True)
class Judged:
    """A judged notebook on its way home: its text, and what it says to the gradebook."""

    text: str
    entry: Entry


def grade_class(
    course: Path,
    chapter: str | None = None,
    *,
    db_url: str | None = None,
    limits: Limits | None = None,
    jobs: int | None = None,
    executor: Executor | None = None,
    dry_run: bool = False,
    progress: Callable[[Graded, int, int], None] = lambda graded, done, total: None,
    changed: Callable[[Graded, Graded], None] = lambda before, after: None,
) -> list[Graded]:
    """Grade the submissions in a course's folder; write the gradebook and autograded/.

    course:    a folder with submitted/STUDENT/CHAPTER/CHAPTER.ipynb, and solutions/ or an nbgrader
               course's source/
    chapter:   only this one ("02-losses"), or this assignment; all that are there otherwise
    db_url:    the gradebook as an SQLAlchemy URL; otherwise where nbgrader_config.py says, or
               gradebook.db in the folder
    limits:    what a submission may use; `course_limits` otherwise
    jobs:      how many processes judge; one for each core otherwise
    executor:  takes the place of those processes
    dry_run:   judge, and write nothing
    progress:  called with each record, how many are done, and of how many
    changed:   called with the record of an earlier run and the new one, where a verdict differs,
               before the new one is written

    What was graded before with the same submission, checks and versions is not graded again; where
    only checks have changed, only their exercises are.

    Raises SandboxUnavailable, with nothing graded, where the sandbox cannot be had, GradebookError
    and RuntimeError where the database or a process fails. What was finished is kept.
    """
    course = course.resolve()
    db_url = db_url or nbgrader_settings(course).CourseDirectory.db_url
    limits = limits or course_limits(course)
    jobs = jobs or os.cpu_count() or 1
    graded = []
    with (
        _workforce(executor, jobs, limits) as (pool, wait_until_ready),
        contextlib.nullcontext() if dry_run else open_gradebook(db_url) as gradebook,
    ):
        todo = [
            (source, list(find_submissions(course, source.assignment, source.name)))
            for source in sources(course, chapter)
        ]
        registered: dict[str, Registered] = {}

        def jobs_of_all() -> Iterator[Job]:
            """A notebook's master is made while the one before it is judged."""
            for source, submissions in todo:
                if not submissions:
                    continue
                master, in_gradebook = source.make(), None
                if gradebook:
                    registered[master.label] = register(gradebook, db_url, master)
                    in_gradebook = graded_students(gradebook, master.assignment, master.name)
                terms = terms_of(course, master, limits)
                for found in submissions:
                    known = in_gradebook is None or found.student in in_gradebook
                    yield _job(course, found, terms, known)

        try:
            total = sum(len(submissions) for _, submissions in todo)
            wait_until_ready()
            finished = _finished(pool, jobs_of_all(), at_once=4 * jobs)
            for done, (known, result, judged) in enumerate(finished, start=1):
                if known and known.changes(result):
                    changed(known, result)
                if gradebook and judged:
                    cells = registered[result.chapter]
                    _bring_home(course, gradebook, cells, result, judged)
                graded.append(result)
                progress(result, done, total)
        except BrokenExecutor:
            raise RuntimeError(
                "A grading process was killed, perhaps for want of memory. What was finished "
                "is kept: grade again with fewer --jobs, and it goes on from there."
            ) from None
        except BaseException:  # Ctrl-C, say: what is finished is safe, the rest is dropped
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return sorted(graded, key=lambda one: (one.chapter, one.student))


def course_limits(course: Path, changes: Mapping[str, float] | None = None) -> Limits:
    """The limits of a course: ours, `c.Judge.limits` of its nbgrader_config.py, then `changes`.

    Raises SettingsError for a limit that does not exist or a value that is none.
    """
    settings = nbgrader_settings(course.resolve())
    kinds = {limit.name: limit.type for limit in fields(Limits)}
    found = dict(settings.Judge.get("limits", {})) | dict(changes or {})
    for name, value in found.items():
        if name not in kinds:
            raise SettingsError(f"There is no limit {name!r}: there are {', '.join(kinds)}.")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**60:
            raise SettingsError(f"The limit {name} is {value!r}: it must be a number above 0.")
    return Limits(**{name: kinds[name](value) for name, value in found.items()})


def terms_of(course: Path, master: Master, limits: Limits) -> Terms:
    """What all jobs of a notebook share, read once."""
    checks = {name: of_exercise(exercise) for name, exercise in master.exercises.items()}
    return Terms(master, limits, _secret(course), of_notebook(master, limits), checks)


def _job(course: Path, found: Found, terms: Terms, graded_before: bool) -> Job:
    known = None
    if graded_before:
        with contextlib.suppress(RecordError):
            known = Graded.load(record_path(course, found.student, terms.master.label))
    return Job(found, terms, known)


def _finished(
    pool: Executor, jobs: Iterable[Job], at_once: int
) -> Iterator[tuple[Graded | None, Graded, Judged | None]]:
    """What each job knew before and its result, as they come.

    No more are under way at once, so that a slow writer does not fill the memory with notebooks.
    """
    jobs, running = iter(jobs), {}
    while True:
        for job in islice(jobs, at_once - len(running)):
            running[pool.submit(_work, job)] = job.known
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), *future.result()


def _work(job: Job) -> tuple[Graded, Judged | None]:
    """What a grading process does: all that need not wait for the one writer."""
    graded, notebook = grade_notebook(job)
    if notebook is None:
        return graded, None
    # nbformat's writer would validate what we have just built, and indent it in pure Python
    return graded, Judged(json.dumps(notebook, ensure_ascii=False), entry_of(notebook))


def grade_notebook(job: Job) -> tuple[Graded, NotebookNode | None]:
    """Judge one notebook: its record, and the notebook with the verdicts under its graded cells.

    No notebook where there is nothing to bring home: an earlier record holds, the submission
    cannot be handed in under its name, or the grader itself fails at it. Raises SandboxUnavailable.
    """
    try:
        problem = job.found.problem
        if not problem:
            return _grade_notebook(job)
    except SandboxUnavailable as error:
        who = f"{job.found.student!a}, {job.terms.master.label}"
        raise SandboxUnavailable(f"Grading stopped at {who}. {error}") from None
    except Exception as error:  # a fault of ours: it must not stop the class
        problem = f"not graded, for the grader itself failed: {type(error).__name__}: {error}"
    master = job.terms.master
    verdicts = tuple(lost(e, problem, "ungraded") for e in master.exercises.values())
    return Graded(job.found.student, master.label, verdicts, (problem,)), None


def _grade_notebook(job: Job) -> tuple[Graded, NotebookNode | None]:
    start = time.perf_counter()
    found, terms, master = job.found, job.terms, job.terms.master
    file = read_found(found) if job.content is None else job.content
    submission = read_submission(file, master.released, master.own_cells)
    whose = f"{found.student}\0{master.label}"
    now = Graded(
        found.student,
        master.label,
        (),
        tuple(submission.problems),
        hmac.new(terms.secret, whose.encode(), hashlib.sha256).hexdigest(),
        submission.digest,
        terms.basis,
        terms.checks,
        versions(),
    )
    standing = _standing(job.known, now)
    if standing is not None and len(standing) == len(master.exercises):
        return job.known, None
    judging = partial(
        judge_submission, _sandbox(terms.limits), master, submission, now.seed, known=standing or ()
    )
    try:
        verdicts = judging()
    except SandboxUnavailable:  # its parent was killed, say; the next worker gets another
        verdicts = judging()
    seconds = time.perf_counter() - start
    notebook = with_verdicts(submission.notebook, verdicts)
    return replace(now, verdicts=tuple(verdicts), seconds=seconds), notebook


def _standing(known: Graded | None, now: Graded) -> list[Verdict] | None:
    """The verdicts of an earlier record that would come out again; None where all must be new."""
    made_from = lambda one: (one.seed, one.submission, one.basis)
    if known is None or made_from(known) != made_from(now):
        return None
    same = {name for name, check in now.checks.items() if known.checks.get(name) == check}
    return [verdict for verdict in known.verdicts if verdict.exercise in same]


def _bring_home(
    course: Path, gradebook: Gradebook, cells: Registered, result: Graded, judged: Judged
) -> None:
    """Write the judged notebook, then its grade, then its record, which vouches for the others."""
    folder = course / "autograded" / result.student / result.assignment
    write_atomically(folder / f"{result.notebook}.ipynb", judged.text)
    record(gradebook, cells, result.student, judged.entry)
    result.save(record_path(course, result.student, result.chapter))


def blank_notebook(course: Path, chapter: Chapter) -> NotebookNode:
    """What students were given, made anew from the chapter's source."""
    return chapter_master(course, chapter).released


def _begin() -> None:
    """What a grading process does first."""
    torch.set_num_threads(1)
    gc.freeze()  # a collection need not walk through all that was imported


@contextlib.contextmanager
def _workforce(
    executor: Executor | None, jobs: int, limits: Limits
) -> Iterator[tuple[Executor, Callable[[], object]]]:
    """What judges, and what waits until its sandboxes are ready: they take seconds to start."""
    if executor:
        with executor:
            warming = [executor.submit(_warm, limits) for _ in range(jobs)]
            yield executor, lambda: [warmed.result() for warmed in warming]
        return
    sandbox = _sandboxes[limits] = Sandbox(limits)
    sandbox.start()
    torch.optim.SGD([torch.zeros(1)])  # imports PyTorch's compiler, once for all judges
    try:
        # Forked at the first job, from a process that has everything imported and no thread yet;
        # by then the sandbox is ready, and all share it.
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(jobs, context, _begin) as pool:
            yield pool, sandbox.wait
    finally:
        del _sandboxes[limits]
        sandbox.stop()


def _warm(limits: Limits) -> None:
    """Start this process's sandbox. Raises SandboxUnavailable."""
    _sandbox(limits)


_sandboxes: dict[Limits, Sandbox] = {}  # of this process, or of the one that forked it


def _sandbox(limits: Limits) -> Sandbox:
    """The sandbox for these limits, started at the first notebook; it ends with the process."""
    if limits not in _sandboxes:
        torch.set_num_threads(1)  # the cases are small, and the other processes want the cores
        _sandboxes[limits] = Sandbox(limits).__enter__()
    return _sandboxes[limits]


def _secret(course: Path) -> bytes:
    """The course's secret, made at its first grading. Who knows it knows the hidden cases."""
    path = course / ".autograder" / "secret"
    if not path.is_file():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomically(path, secrets.token_hex(32))
    return bytes.fromhex(path.read_text())
