"""Grading a class: submissions fan out over an executor, one writer brings the results home.

Whatever stops a run, what was finished stays finished: a notebook's record is saved after its
grade is in the gradebook, and a notebook whose record still holds is not graded again.
"""

import contextlib
import hashlib
import hmac
import json
import multiprocessing
import os
import secrets
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from pathlib import Path

import nbformat
import torch
from nbformat import NotebookNode
from nbgrader.api import Gradebook

from autograder.build import instructor_notebook, release
from autograder.course import Chapter, chapters, checks_of, find_chapter
from autograder.feedback import with_verdicts
from autograder.gradebook import graded_students, open_gradebook, record, register_chapter
from autograder.graded import Graded, RecordError, record_path, write_atomically
from autograder.judge import judge_submission
from autograder.practice import PRACTICE_SEED
from autograder.sandbox import Limits, Sandbox, SandboxUnavailable
from autograder.submission import Found, find_submissions, merged, read_submission
from autograder.verdict import lost


@dataclass(frozen=True)
class Job:
    """One notebook to grade: all that a process needs for it, wherever that process runs."""

    found: Found
    chapter: Chapter
    release: str  # the blank notebook's text: cheaper to send than its nodes, and parsed once
    limits: Limits
    secret: bytes  # of the course: the seeds of the hidden cases are drawn from it
    basis: str  # digest of all that the grade depends on, but for the submission
    known: Graded | None  # the record of an earlier run


def grade_class(
    course: Path,
    chapter: str | None = None,
    *,
    db_url: str | None = None,
    limits: Limits | None = None,
    jobs: int | None = None,
    executor: Executor | None = None,
    progress: Callable[[Graded, int, int], None] = lambda graded, done, total: None,
) -> list[Graded]:
    """Grade the submissions in a course's folder; write the gradebook and autograded/.

    course:    a folder with solutions/ and submitted/STUDENT/CHAPTER/CHAPTER.ipynb
    chapter:   only this one ("02-losses"); all that are in solutions/ otherwise
    db_url:    the gradebook as an SQLAlchemy URL; gradebook.db in the folder otherwise
    jobs:      how many processes judge; one for each core otherwise
    executor:  takes the place of those processes
    progress:  called with each record, how many are done, and of how many

    Raises SandboxUnavailable, with nothing graded, where the sandbox cannot be had, GradebookError
    and RuntimeError where the database or a process fails. What was finished is kept.
    """
    course = course.resolve()
    db_url = db_url or f"sqlite:///{course / 'gradebook.db'}"
    limits = limits or Limits()
    jobs = jobs or os.cpu_count() or 1
    graded = []
    with executor or _processes(jobs) as pool:
        # Sandboxes take seconds to start: they do while the gradebook is opened.
        warming = [pool.submit(_warm, limits) for _ in range(jobs)]
        with open_gradebook(db_url) as gradebook:
            todo: list[Job] = []
            for each in [find_chapter(chapter)] if chapter else chapters(course):
                register_chapter(gradebook, db_url, each.slug, blank_notebook(course, each))
                in_gradebook = graded_students(gradebook, each.slug)
                job = job_of(course, each, limits)
                for found in find_submissions(course, each.slug):
                    known = None
                    if found.student in in_gradebook:
                        with contextlib.suppress(RecordError):
                            known = Graded.load(record_path(course, found.student, each.slug))
                    todo.append(job(found, known))
            try:
                for warmed in warming:
                    warmed.result()
                # No list of the futures is kept: they would hold all notebooks in memory.
                finished = as_completed(pool.submit(grade_notebook, job) for job in todo)
                for done, future in enumerate(finished, start=1):
                    result, notebook = future.result()
                    if notebook:
                        _bring_home(course, gradebook, result, notebook)
                    graded.append(result)
                    progress(result, done, len(todo))
            except BrokenExecutor:
                raise RuntimeError(
                    "A grading process was killed, perhaps for want of memory. What was finished "
                    "is kept: grade again with fewer --jobs, and it goes on from there."
                ) from None
            except BaseException:  # Ctrl-C, say: what is finished is safe, the rest is dropped
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return sorted(graded, key=lambda one: (one.chapter, one.student))


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
        who = f"{job.found.student!a}, {job.chapter.slug}"
        raise SandboxUnavailable(f"Grading stopped at {who}. {error}") from None
    except Exception as error:  # a fault of ours: it must not stop the class
        problem = f"not graded, for the grader itself failed: {type(error).__name__}: {error}"
    verdicts = tuple(lost(e, problem) for e in checks_of(job.chapter.slug).values())
    return Graded(job.found.student, job.chapter.slug, verdicts, (problem,)), None


def _grade_notebook(job: Job) -> tuple[Graded, NotebookNode | None]:
    start = time.perf_counter()
    found, chapter = job.found, job.chapter
    blank = _parsed(job.release)
    submission = read_submission(found.path, blank)
    basis = f"{job.basis}\0{found.student}\0{chapter.slug}\0{submission.digest}"
    seed = hmac.new(job.secret, basis.encode(), hashlib.sha256).hexdigest()
    key = hashlib.sha256(seed.encode()).hexdigest()
    if job.known and job.known.key == key:
        return job.known, None
    judging = partial(judge_submission, _sandbox(job.limits), chapter.slug, submission, seed)
    try:
        verdicts = judging()
    except SandboxUnavailable:  # its parent was killed, say; the next worker gets another
        verdicts = judging()
    notebook = with_verdicts(merged(blank, submission), verdicts)
    seconds = time.perf_counter() - start
    problems = tuple(submission.problems)
    return Graded(found.student, chapter.slug, tuple(verdicts), problems, key, seconds), notebook


def _bring_home(course: Path, gradebook: Gradebook, result: Graded, notebook: NotebookNode) -> None:
    """Write the judged notebook, then its grade, then its record, which vouches for the others."""
    folder = course / "autograded" / result.student / result.chapter
    # nbformat's writer would validate what we have just built, and indent it in pure Python
    text = json.dumps(notebook, ensure_ascii=False)
    write_atomically(folder / f"{result.chapter}.ipynb", text)
    record(gradebook, result.student, result.chapter, notebook)
    result.save(record_path(course, result.student, result.chapter))


def check_notebook(path: Path, chapter: str = "", trusted: bool = False) -> Graded:
    """Score one notebook by itself on the practice cases: what a student asks before handing in.

    chapter:  told by the file's name otherwise
    trusted:  run it without the sandbox, as a program of one's own
    """
    start = time.perf_counter()
    taught = find_chapter(chapter or path.stem)
    notebook = nbformat.read(path, as_version=4)
    if any("### BEGIN SOLUTION" in cell.source for cell in notebook.cells):
        notebook = release(notebook)  # an instructor's
    submission = read_submission(path, notebook)
    with Sandbox(Limits(), trusted=trusted) as sandbox:
        verdicts = judge_submission(sandbox, taught.slug, submission, PRACTICE_SEED, False)
    seconds = time.perf_counter() - start
    return Graded("", taught.slug, tuple(verdicts), tuple(submission.problems), "", seconds)


@cache
def job_of(course: Path, chapter: Chapter, limits: Limits) -> Callable[..., Job]:
    """What all jobs of a chapter share, read once: call the result with who and what is known."""
    blank = nbformat.writes(blank_notebook(course, chapter), version=4)
    secret, basis = _secret(course), _basis(chapter, blank, limits)
    return lambda found, known=None: Job(found, chapter, blank, limits, secret, basis, known)


@cache
def blank_notebook(course: Path, chapter: Chapter) -> NotebookNode:
    """What students were given, made anew from the chapter's source."""
    source = chapter.source(course)
    text = source.read_text(encoding="utf-8")
    return release(instructor_notebook(text, checks_of(chapter.slug), source.name))


def _processes(jobs: int) -> Executor:
    """A pool of processes forked off this one, which has everything imported and no thread yet."""
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("fork"))


def _warm(limits: Limits) -> None:
    """Start this process's sandbox. Raises SandboxUnavailable."""
    _sandbox(limits)


@cache
def _parsed(text: str) -> NotebookNode:
    return nbformat.reads(text, as_version=4)


@cache
def _sandbox(limits: Limits) -> Sandbox:
    """The sandbox of this process, started at its first notebook; it ends with the process."""
    torch.set_num_threads(1)  # the cases are small, and the other processes want the cores
    return Sandbox(limits).__enter__()


def _secret(course: Path) -> bytes:
    """The course's secret, made at its first grading. Who knows it knows the hidden cases."""
    path = course / ".autograder" / "secret"
    if not path.is_file():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomically(path, secrets.token_hex(32))
    return bytes.fromhex(path.read_text())


def _basis(chapter: Chapter, blank: str, limits: Limits) -> str:
    """Digest of what a grade depends on, but for the submission: checks, release, versions."""
    code = [path for path in resources.files("autograder").rglob("*.py")]
    code += [resources.files("llmkit") / f"{module}.py" for module in chapter.modules]
    texts = [path.read_text(encoding="utf-8") for path in sorted(code) if path.is_file()]
    texts += [blank, torch.__version__, repr(limits)]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
