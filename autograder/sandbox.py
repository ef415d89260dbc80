"""The sandbox, from the judge's side: workers that run a submission's code behind walls.

    with Sandbox() as sandbox, sandbox.worker({"llmkit/__init__.py": ""}) as worker:
        worker.run("def double(x): return 2 * x")
        worker.call("double", (21,), {}).value  # 42

`inside/` holds what runs behind the walls; `inside/isolation.py` lists them. What comes back is
plain data or `WorkerDied`, never another exception and never an object of the submission's.
"""

import contextlib
import dataclasses
import json
import os
import select
import site
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autograder.inside.codec import CodecError, decode, encode
from autograder.inside.outcome import MAX_MESSAGE, Error, Outcome

ROOM = Path(__file__).parent / "inside"
FLOOD = 64  # times output_bytes: noise up to here is cut off, beyond it the worker dies
START_SECONDS = 120.0  # importing torch from a cold disk
LENGTH_BYTES = 8


@dataclass(frozen=True)
class Limits:
    """What one submission may use. Sizes in bytes, times in seconds."""

    wall_per_cell: float = 10.0  # a call of a function, too
    wall_per_submission: float = 120.0
    cpu_seconds: int = 120  # of each process
    memory_bytes: int = 2 * 2**30  # all processes, /tmp and /dev/shm together
    processes: int = 64  # and threads
    file_bytes: int = 64 * 2**20
    tmp_bytes: int = 128 * 2**20  # each of /tmp and /dev/shm
    output_bytes: int = 2**20  # kept of a cell's stdout and stderr
    result_bytes: int = 32 * 2**20  # of one value with the call's arguments


class SandboxUnavailable(RuntimeError):
    """The sandbox cannot be had, and nothing is run without it. The message says what to do."""


class WorkerDied(Exception):
    """The worker is gone, by its own doing. `reason` is a sentence without its subject."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class CellResult:
    """What a cell left: its error, and what it printed, cut off at `Limits.output_bytes`."""

    error: Error | None
    output: str
