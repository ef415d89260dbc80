"""The worker: runs a submission's cells and calls its functions, as the judge asks.

Everything here shares a process with the student's code, which can replace any of it. That is
no danger to anyone else: the judge believes nothing but plain data, and holds the expected values.
"""

import ast
import builtins
import io
import os
import random
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import torch
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from .codec import decode, encode
from .outcome import Error, Outcome, call

LENGTH = struct.Struct(">Q")  # of the message that follows
MAX_SHOWN = 100  # characters: what is longer is no score


def start_shell() -> InteractiveShell:
    """An IPython shell that keeps no history, so that no thread starts, and prints no traceback.

    Random numbers start from the same state in every worker.
    """
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "NoColor"
    shell = InteractiveShell.instance(config=config)
    shell.system = shell.system_raw  # !command without a terminal
    shell.showtraceback = lambda *args, **kwargs: None  # the error goes to the judge
    shell.enable_gui = lambda gui=None: None  # %matplotlib asks for it
    shell.showsyntaxerror = lambda *args, **kwargs: None
    shell.builtin_trap.activate()  # display() and get_ipython() are there without an import
    np.random.seed(0)
    torch.manual_seed(0)
    return shell


def warm_up(shell: InteractiveShell) -> None:
    """Touch what nearly every submission uses, so that a forked worker finds it loaded.

    Nothing here may start a thread: a process with threads cannot be forked safely.
    """
    shell.run_cell("import torch.nn.functional, matplotlib.pyplot, regex")
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = torch.ones(3, 4, dtype=dtype)
        torch.softmax(x @ x.T, -1).sum().item()
        repr(x)  # the first tensor that is printed takes longest
    decode(encode((torch.ones(2), "", {})))
    torch.optim.SGD([torch.zeros(1)])  # the first optimizer imports PyTorch's compiler: seconds
    os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)  # which leaves this behind
    shell.reset(new_session=True)


def serve(
    requests: BinaryIO, replies: BinaryIO, result_bytes: int, shell: InteractiveShell
) -> None:
    """Answer the judge's requests until it hangs up."""
    random.seed(0)  # a fork has seeded it anew
    sys.stdin = io.StringIO()
    sys.stdout = _open_output(1)
    sys.stderr = _open_output(2)
    builtins.input = _no_input
    server = os.getpid()
    # Bound here, once: what a cell replaces later is the cell's own loss.
    actions = {
        "files": _write_files,
        "run": lambda source, run=shell.run_cell: Outcome(error=_run(shell, run, source)[1]),
        "grade": lambda source, run=shell.run_cell: _grade(shell, run, source),
        "calls": lambda name, cases, probe: _calls(shell, name, cases, probe, result_bytes),
        "get": lambda name: Outcome(_lookup(shell, name)),
    }
    while head := requests.read(LENGTH.size):
        action, *arguments = decode(requests.read(*LENGTH.unpack(head)))
        reply = _answer(actions[action], arguments, result_bytes)
        if os.getpid() != server:  # the cell forked, and this is the fork falling out of it
            os._exit(0)
        replies.write(LENGTH.pack(len(reply)) + reply)
        replies.flush()


def _no_input(prompt: object = "") -> str:
    raise EOFError("input() has nobody to ask while a submission is graded")


def _answer(action: Callable, arguments: list, limit: int) -> bytes:
    """(value, arguments, error) of one action, encoded; errors of any kind included."""
    try:
        outcome = action(*arguments)
    except BaseException as error:  # KeyboardInterrupt, too, is the cell's affair
        outcome = Outcome(error=Error.of(error))
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # whatever the student put there
            continue
    try:
        return encode((outcome.value, outcome.arguments, _plain(outcome.error)), limit)
    except Exception as error:  # too large, or an object that fails when it is looked at
        unsent = Error("ValueError", ("ValueError",), f"the result cannot be sent: {error}"[:500])
        return encode((None, None, _plain(unsent)))


def _plain(error: Error | None) -> tuple | None:
    return error and (error.type, error.bases, error.message, error.traceback)


def _write_files(modules: dict[str, str], beside: dict[str, bytes]) -> Outcome:
    """Put modules where `import` finds them first, and other files where the notebook stands:
    there it looks next, as in Jupyter."""
    folder = os.path.abspath("modules")
    files = {os.path.join(folder, name): text.encode() for name, text in modules.items()}
    for path, content in (files | beside).items():
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
    sys.path[:0] = [folder, os.getcwd()]
    return Outcome()


def _run(shell: InteractiveShell, run_cell: Callable, source: str) -> tuple[Any, Error | None]:
    """Run a cell as a notebook would, save that nothing is displayed; its last value and its error.

    What is Python by itself is run here: the shell takes ten times as long to begin. It is asked
    where it alone knows what is meant: magics, await, or a mistake.
    """
    scope, value, shown = shell.user_ns, None, None
    try:
        name = shell.compile.cache(source)
        body = shell.compile.ast_parse(source, name).body
        if body and isinstance(body[-1], ast.Expr):
            value = shell.compile(ast.Expression(body.pop().value), name, "eval")
        code = shell.compile(ast.Module(body, []), name, "exec")
    except Exception:
        result = run_cell(source)
        error = result.error_before_exec or result.error_in_exec
        shown = result.result
    else:
        error = None
        try:
            exec(code, scope)
            if value and (shown := eval(value, scope)) is not None:
                scope["_"] = shown
        except BaseException as raised:
            error = raised
    _close_figures()
    return shown, Error.of(_without_our_frames(error)) if error else None


def _grade(shell: InteractiveShell, run_cell: Callable, source: str) -> Outcome:
    """Run a graded cell; the value is the text that a notebook shows under it, None for nothing."""
    value, error = _run(shell, run_cell, source)
    if error or value is None or source.rstrip().endswith(";"):
        return Outcome(error=error)
    shown, _ = shell.display_formatter.format(value, include={"text/plain"})
    return Outcome(shown.get("text/plain", "")[:MAX_SHOWN])


def _calls(
    shell: InteractiveShell, name: str, cases: list, probe: str, result_bytes: int
) -> Outcome:
    """Each case's answer, encoded by itself: one that cannot be sent spoils no other.

    cases:  the arguments of each, (args, kwargs), encoded too; they go back only if they changed
    """

    def one(case: bytes) -> Outcome:
        function = _lookup(shell, name)
        function = partial(scope["probe"], function) if probe else function
        outcome = call(function, *decode(case))
        unchanged = outcome.arguments is None or encode(outcome.arguments) == case
        return replace(outcome, arguments=None) if unchanged else outcome

    scope: dict[str, Any] = {}
    exec(probe, scope)
    return Outcome([_answer(one, [case], result_bytes) for case in cases])


def _lookup(shell: InteractiveShell, name: str) -> Any:
    if name not in shell.user_ns:
        raise NameError(f"name {name!r} is not defined")
    return shell.user_ns[name]


def _without_our_frames(error: BaseException) -> BaseException:
    """The error with its traceback cut down to what lies below the shell's frames and ours."""
    frame = error.__traceback__
    while frame and _is_ours(frame.tb_frame.f_code.co_filename):
        frame = frame.tb_next
    return error.with_traceback(frame)


def _is_ours(file: str) -> bool:
    return file == __file__ or "/IPython/" in file.replace("\\", "/")


def _close_figures() -> None:
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot:
        pyplot.close("all")


def _open_output(descriptor: int) -> Any:
    return open(
        descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )


def main() -> None:
    """A worker without walls, for a student's own notebook: requests on stdin, replies on stdout.

    Started as a plain child process where there are no namespaces and no fork. What the cells
    print goes to stderr.
    """
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    serve(requests, replies, int(sys.argv[1]), start_shell())
