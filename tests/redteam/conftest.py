"""One sandbox with tight limits for all attacks, so that each attack meets what others left."""

from pathlib import Path

import pytest
import torch

from autograder.sandbox import Limits, Sandbox

LIMITS = Limits(
    wall_per_cell=10.0,
    wall_per_submission=30.0,
    cpu_seconds=20,
    memory_bytes=5 * 2**27,
    processes=32,
    file_bytes=2**24,
    tmp_bytes=2**25,
)


@pytest.fixture(scope="session")
def shared():
    with Sandbox(LIMITS) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(shared):
    """The shared sandbox; afterwards no process is left and an honest worker is as if alone."""
    with shared.worker() as worker:  # starts the parent if an earlier test ended it
        assert worker.run("1").error is None
    before = family(shared._process.pid)
    yield shared
    assert family(shared._process.pid) == before, "the attack left a process, or ended the parent"
    with shared.worker({"m.py": "x = 1"}) as worker:
        worker.run("import os, torch\nfrom m import x\ndef f(t): return t + x")
        assert torch.equal(worker.call("f", (torch.zeros(2),), {}).value, torch.ones(2))
        worker.run("left = os.listdir('/tmp') + os.listdir('/dev/shm')")
        assert worker.get("left").value == ["modules"]


def family(pid: int) -> list[int]:
    """`pid` and all processes below it, as the host sees them."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")")[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found
