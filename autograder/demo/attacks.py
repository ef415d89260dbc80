"""Hostile submissions: the attacks on grading that a cell or a notebook file can hold.

Each is aimed at one exercise. Where an attack is after something, it gives the right answer once
it has it: then the exercise earns its points, and the demo shows the breach as a difference.
"""

from collections.abc import Callable
from dataclasses import dataclass
from string import Template

from nbformat import NotebookNode

from autograder.cells import source_of
from autograder.check import Check

WRONG = """\
def $name(*args, **kwargs):
    return 0.0
"""


@dataclass(frozen=True)
class Attack:
    """One way to points that were not earned, or to harm.

    cell:    the exercise's cell; $name is the exercise, $module the module that holds its answer
    tamper:  what is done to the notebook, given the place of the exercise's graded cell
    """

    name: str
    cell: str = WRONG
    tamper: Callable[[NotebookNode, int], None] = lambda notebook, place: None

    def source(self, check: Check) -> str:
        """The cell; `_right`, where it is used, is the correct function."""
        right = source_of(check.reference, "_right") + "\n\n\n" if "_right(" in self.cell else ""
        names = {"name": check.name, "module": check.reference.__module__}
        return right + Template(self.cell).substitute(names).strip()


EQUAL_TO_ALL = """
import torch


class Agreeable(torch.Tensor):
    def __eq__(self, other):
        return True

    __ne__ = __lt__ = __gt__ = lambda self, other: False
    __hash__ = torch.Tensor.__hash__

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return True


def $name(*args, **kwargs):
    return torch.zeros(1).as_subclass(Agreeable)
"""

REPLACED_JUDGES = """
import builtins
import sys
import types

import torch

agree = lambda *args, **kwargs: True
torch.allclose = torch.isclose = torch.equal = torch.testing.assert_close = agree
builtins.AssertionError = type("Never", (Exception,), {})
for module in ("autograder", "autograder.compare", "autograder.verdict", "$module"):
    sys.modules[module] = types.SimpleNamespace(
        check=agree, check_answer=agree, compare=agree, judge=agree, $name=agree
    )
check = check_answer = agree


def $name(*args, **kwargs):
    return 0.0
"""

IMPORTED_REFERENCE = """
def $name(*args, **kwargs):
    import $module as answers

    return answers.$name(*args, **kwargs)
"""

SEARCHED_REFERENCE = """
import importlib.util
import pathlib
import sys


def $name(*args, **kwargs):
    file = "$module".replace(".", "/") + ".py"
    for folder in (*sys.path, ".", *pathlib.Path(torch_file()).parents):
        if (path := pathlib.Path(folder) / file).is_file():
            spec = importlib.util.spec_from_file_location("answers", path)
            answers = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(answers)
            return answers.$name(*args, **kwargs)
    raise FileNotFoundError(file)


def torch_file():
    import torch

    return torch.__file__
"""

SEARCHED_MEMORY = """
import gc
import sys
import types


def $name(*args, **kwargs):
    frame = sys._getframe()
    while frame := frame.f_back:
        if {"expected", "reference", "exercise"} & {*frame.f_locals, *frame.f_globals}:
            return _right(*args, **kwargs)
    for thing in gc.get_objects():
        if type(thing) is types.FunctionType and thing.__module__ == "$module":
            return _right(*args, **kwargs)
    raise LookupError("nothing that knows the answer")
"""

READ_FILES = """
import os


def $name(*args, **kwargs):
    wanted = {"gradebook.db", "submitted", "autograded", "verdicts", "notebooks"}
    passed = {"proc", "sys", "dev", "usr", "lib", "site-packages", "dist-packages"}
    answers = "$module".replace(".", "/") + ".py"
    for folder, folders, files in os.walk("/"):
        if wanted & {*files, *folders} or os.path.exists(os.path.join(folder, answers)):
            return _right(*args, **kwargs)
        folders[:] = [name for name in folders if name not in passed]
    raise FileNotFoundError("nothing of anybody else")
"""

WRITTEN_FILES = """
import os

import torch


def $name(*args, **kwargs):
    for folder in (os.path.dirname(torch.__file__), os.path.dirname(os.__file__), "/etc", "/usr"):
        try:
            with open(os.path.join(folder, "planted.txt"), "w"):
                return _right(*args, **kwargs)
        except OSError:
            continue
    raise PermissionError("nothing can be written")
"""

NETWORK = """
import socket


def $name(*args, **kwargs):
    with socket.socket(type=socket.SOCK_DGRAM) as way_out:
        way_out.connect(("192.0.2.1", 53))  # asks for a route, and sends nothing
    return _right(*args, **kwargs)
"""

EXIT = """
import os


def $name(*args, **kwargs):
    print("100 of 100 points")
    os._exit(0)
"""

KILL_ALL = """
import os
import signal


def $name(*args, **kwargs):
    os.kill(-1, signal.SIGKILL)
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
"""

SEGMENTATION_FAULT = """
import ctypes


def $name(*args, **kwargs):
    return ctypes.string_at(0)
"""

FORK_BOMB = """
import os
import time


def $name(*args, **kwargs):
    while True:
        try:
            os.fork()
        except OSError:
            time.sleep(0.1)
"""

HUGE_ALLOCATION = """
import torch


def $name(*args, **kwargs):
    return torch.ones(1 << 32)  # 16 GiB
"""

ENDLESS_OUTPUT = """
import os


def $name(*args, **kwargs):
    while True:
        os.write(1, b"!" * (1 << 20))
"""

STUBBORN_LOOP = """
def $name(*args, **kwargs):
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
"""

HIJACKED_SHELL = """
from IPython import get_ipython

shell = get_ipython()
run_cell = shell.run_cell


def without_checks(lines):
    return [line for line in lines if not line.startswith("check")]


def run_all_but_checks(source, *args, **kwargs):
    return run_cell("".join(without_checks(source.splitlines(True))), *args, **kwargs)


shell.input_transformers_post.append(without_checks)
shell.run_cell = run_all_but_checks


def $name(*args, **kwargs):
    return 0.0
"""


def skip(notebook: NotebookNode, place: int) -> None:
    notebook.cells[place].metadata.tags = ["skip-execution"]


def rewrite(notebook: NotebookNode, place: int) -> None:
    notebook.cells[place].source = "print('all cases pass')"
    notebook.cells[place].metadata.nbgrader.points = 1000


def delete(notebook: NotebookNode, place: int) -> None:
    del notebook.cells[place]


def duplicate(notebook: NotebookNode, place: int) -> None:
    twin = NotebookNode(notebook.cells[place] | {"id": "twin", "source": "1000"})
    notebook.cells.insert(place, twin)


def retype(notebook: NotebookNode, place: int) -> None:
    cell = notebook.cells[place]
    cell.metadata.nbgrader |= {"grade": False, "solution": True, "locked": False}
    cell.cell_type = "markdown"
    del cell["outputs"], cell["execution_count"]


ATTACKS = (
    Attack("equal-to-all", EQUAL_TO_ALL),
    Attack("replaced-judges", REPLACED_JUDGES),
    Attack("imported-reference", IMPORTED_REFERENCE),
    Attack("searched-reference", SEARCHED_REFERENCE),
    Attack("searched-memory", SEARCHED_MEMORY),
    Attack("read-files", READ_FILES),
    Attack("written-files", WRITTEN_FILES),
    Attack("network", NETWORK),
    Attack("exit", EXIT),
    Attack("kill-all", KILL_ALL),
    Attack("segmentation-fault", SEGMENTATION_FAULT),
    Attack("fork-bomb", FORK_BOMB),
    Attack("huge-allocation", HUGE_ALLOCATION),
    Attack("endless-output", ENDLESS_OUTPUT),
    Attack("stubborn-loop", STUBBORN_LOOP),
    Attack("hijacked-shell", HIJACKED_SHELL),
    Attack("skipped-check", tamper=skip),
    Attack("rewritten-check", tamper=rewrite),
    Attack("deleted-check", tamper=delete),
    Attack("duplicated-check", tamper=duplicate),
    Attack("retyped-check", tamper=retype),
)
