"""Grading on a Dask cluster: the same jobs through the same `Executor` interface.

    with on_cluster("tcp://scheduler:8786", limits) as (executor, workers):
        grade_class(course, limits=limits, executor=executor, jobs=workers)

Workers need no folder of the course: a job carries what it judges. Each is a process with one
thread, a sandbox and the same code as here; one that is not stops the run, whenever it joins.
"""

import asyncio
import importlib
import logging
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from autograder import grade
from autograder.fingerprint import digest, versions
from autograder.grade import Job
from autograder.sandbox import Limits, Sandbox, SandboxUnavailable
from autograder.submission import read_found

if TYPE_CHECKING:
    from distributed import Client, Worker

CONNECT_SECONDS = 5.0
LOST_SECONDS = 30.0  # without any worker; who starts workers anew needs a few seconds
RESUME = "What was finished is kept: grade again, and it goes on from there."


class ClusterError(RuntimeError):
    """The cluster is not there, is lost, or must not grade. The message says so in a sentence."""


@dataclass(frozen=True)
class Run:
    """One run of the grader, as its workers know it."""

    name: str
    limits: Limits
    code: str  # digest of what judges here
    versions: str


@contextmanager
def on_cluster(address: str, limits: Limits) -> Iterator[tuple[Executor, int]]:
    """What judges on a cluster's workers, and how many they are.

    address:  of the scheduler: "tcp://scheduler:8786"

    Leaving it, for whatever reason, ends what is under way and the sandboxes. Raises ClusterError
    where there is no scheduler, no worker or one that must not grade, and where they are lost.
    """
    killed = _dask().KilledWorker
    client = _connect(address)
    run = Run(uuid.uuid4().hex, limits, _code(), versions())
    executor = _Workers(client, run)
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(client, executor, ended), daemon=True)
    try:
        workers = _prepare(client, run)
        watch.start()
        yield executor, workers
    except CancelledError:
        lost = f"The cluster at {address} is lost: its scheduler or its last worker ended."
        raise ClusterError(f"{lost} {RESUME}") from None
    except killed as error:
        last = f"Workers died one after the other, the last at {error.last_worker.address}"
        raise ClusterError(f"{last}, perhaps for want of memory. {RESUME}") from None
    finally:
        ended.set()
        executor.shutdown(wait=False)
        with suppress(Exception):  # what is gone has nothing left to end
            if client.status == "running":
                client.run(_leave, run, on_error="ignore")
        client.close(CONNECT_SECONDS)


class _Workers(Executor):
    """Dask's own executor, but that jobs carry their files and their worker is looked at."""

    def __init__(self, client: "Client", run: Run):
        self._pool = client.get_executor(pure=False)
        self._run = run

    def submit(self, function: Callable, /, *arguments: Any) -> Future:
        carried = [_with_content(one) if isinstance(one, Job) else one for one in arguments]
        try:
            return self._pool.submit(_work, self._run, function, *carried)
        except RuntimeError:  # it has been shut down: the last worker is gone
            raise CancelledError from None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with suppress(Exception):  # the scheduler is gone: then all is cancelled already
            self._pool.shutdown(wait and not cancel_futures)


def _with_content(job: Job) -> Job:
    """The job with what its file holds, or why it cannot be read."""
    if job.found.problem:
        return job
    content = read_found(job.found)
    return replace(job, content=content, found=replace(job.found, path=Path(job.found.path.name)))


def _dask() -> Any:
    try:
        return importlib.import_module("distributed")
    except ImportError:
        raise ClusterError(
            "Grading on a cluster needs Dask: python -m pip install distributed."
        ) from None


def _connect(address: str) -> "Client":
    """A client of the scheduler there. Raises ClusterError within seconds."""
    connect = partial(_dask().Client, address, timeout=CONNECT_SECONDS, set_as_default=False)
    for name in ("distributed", "distributed.client"):  # what matters is raised
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "Sending large graph", UserWarning)  # a large notebook

    async def reach() -> None:  # Dask's timeout does not cover one that accepts and is silent
        client = connect(asynchronous=True)
        try:
            await asyncio.wait_for(client, CONNECT_SECONDS)
        finally:
            await client.close(CONNECT_SECONDS)

    try:
        asyncio.run(reach())
        return connect()
    except Exception as error:  # of many kinds, by what is wrong with the address
        cause = " ".join(str(error).split()).rstrip(".") or "it does not answer"
        raise ClusterError(
            f"There is no Dask scheduler at {address!r} ({cause:.200}): start one with "
            "`dask scheduler` and name it as tcp://HOST:8786."
        ) from None


def _prepare(client: "Client", run: Run) -> int:
    """Start the sandbox of every worker; how many they are. Raises ClusterError."""
    try:
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
    except TimeoutError:
        where = client.scheduler.address
        raise ClusterError(
            f"The cluster at {where} has no worker: start some with "
            f"`dask worker {where} --nworkers 4 --nthreads 1`."
        ) from None
    found = client.run(_prepare_worker, run, on_error="return")
    for address, problem in sorted(found.items()):
        if isinstance(problem, ClusterError):
            raise problem
        if isinstance(problem, Exception):
            raise ClusterError(
                f"The worker {address} cannot run the grader ({problem!s:.200}): install the same "
                "there as here."
            )
    return len(found)


def _watch(client: "Client", executor: Executor, ended: threading.Event) -> None:
    """Cancel all when no worker has been there for long: Dask would wait for one without end."""
    seen = time.monotonic()
    with suppress(Exception):  # without a scheduler all is cancelled already
        while not ended.wait(1):
            if client.nthreads():
                seen = time.monotonic()
            elif time.monotonic() - seen > LOST_SECONDS:
                executor.shutdown(wait=False)
                return


@cache
def _code() -> str:
    """Digest of all that judges, checks and references included, as this process first saw it."""
    folders = [resources.files(package) for package in ("autograder", "llmkit")]
    paths = sorted(path for folder in folders for path in folder.rglob("*.py"))
    return digest(*(path.read_text(encoding="utf-8") for path in paths))


# What follows runs on the workers.


class _Lent(Sandbox):
    """The sandbox of a worker's process, for as long as there are runs that use it."""

    runs: frozenset[str] = frozenset()

    def start(self) -> None:
        if not self.runs:
            raise SandboxUnavailable("The run has ended.")
        super().start()


_lock = threading.Lock()  # a worker's thread judges, its event loop answers


def _work(run: Run, function: Callable, *arguments: Any) -> Any:
    """Call a function in a process that may judge. Raises ClusterError with the worker's name."""
    worker = _dask().get_worker()
    _enter(run, worker)
    try:
        return function(*arguments)
    except SandboxUnavailable as error:
        raise ClusterError(f"The worker {worker.address}: {error}") from None


async def _prepare_worker(run: Run, dask_worker: "Worker") -> None:
    await asyncio.to_thread(_enter, run, dask_worker)


async def _leave(run: Run) -> None:
    await asyncio.to_thread(_exit, run)


def _enter(run: Run, worker: "Worker") -> None:
    """Let this process judge for a run. Raises ClusterError where it must not."""
    if worker.state.nthreads != 1:
        raise ClusterError(
            f"The worker {worker.address} has {worker.state.nthreads} threads, and judging wants a "
            "process for each: start it with `--nworkers N --nthreads 1`."
        )
    if (_code(), versions()) != (run.code, run.versions):
        raise ClusterError(
            f"The worker {worker.address} has another grader ({versions()}, {_code()[:8]}) than "
            f"this machine ({run.versions}, {run.code[:8]}): install the same in both and start "
            "the worker again."
        )
    with _lock:
        sandbox = grade._sandboxes.setdefault(run.limits, _Lent(run.limits))
        starts, sandbox.runs = not sandbox.runs, sandbox.runs | {run.name}
        try:
            if starts:
                torch.set_num_threads(1)  # the cases are small, and other workers want the cores
                sandbox.__enter__()
        except SandboxUnavailable as error:
            del grade._sandboxes[run.limits]
            raise ClusterError(f"The worker {worker.address} cannot grade. {error}") from None


def _exit(run: Run) -> None:
    """Take this process back from a run; with the last, all ends that goes on in its sandbox."""
    with _lock:
        sandbox = grade._sandboxes.get(run.limits)
        if sandbox:
            sandbox.runs -= {run.name}
            if not sandbox.runs:
                del grade._sandboxes[run.limits]
                sandbox.stop()
