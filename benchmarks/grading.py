"""`autograder grade` beside stock `nbgrader autograde`, on the same honest submissions.

CPU-seconds are those of the command and all its children. The student's own compute is measured by
running the same cells in one plain process, and subtracted from both: what remains is the grader.
The machine's floor is a process that imports torch, which every stock kernel pays anew.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

HONEST = 48  # submissions that both grade


def measured(command: list[str], cwd: Path) -> tuple[float, float]:
    """CPU-seconds (with all children) and wall-seconds of a command, which must succeed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env=os.environ | {"PATH": path}
    )
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, wall
