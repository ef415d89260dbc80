"""Calling a student's function and writing down what came of it.

The notebook's `check(...)` and the sandboxed worker call a function in this one way, so that a
grade and a practice run cannot differ by how the function was called.
"""

import builtins
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_MESSAGE = 2_000  # characters of an exception's own message that are kept


@dataclass(frozen=True)
class Error:
    """An exception as data: it can cross the sandbox's boundary, a live one cannot."""

    type: str  # the class's name, "ZeroDivisionError"
    bases: tuple[str, ...]  # names of the built-in classes that it is an instance of
    message: str
    traceback: str = ""  # the student's own frames only, as text

    @classmethod
    def of(cls, error: BaseException) -> "Error":
        kinds = type(error).__mro__
        bases = tuple(k.__name__ for k in kinds if getattr(builtins, k.__name__, None) is k)
        try:
            message = str(error)[:MAX_MESSAGE]
        except Exception as broken:  # a student's own exception class may fail to print itself
            message = f"(its message could not be read: {type(broken).__name__})"
        return cls(type(error).__name__, bases, message, _own_frames(error))


@dataclass(frozen=True)
class Outcome:
    """What one call left behind: a value or an error, and the arguments as they were afterwards.

    `arguments` is None where they are as they were before.
    """

    value: Any = None
    arguments: tuple[tuple, dict] | None = None
    error: Error | None = None


def call(function: Callable, args: tuple, kwargs: dict) -> Outcome:
    """Call `function`, catching whatever it raises; KeyboardInterrupt passes through."""
    try:
        value = function(*args, **kwargs)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, too, must not end the caller
        return Outcome(arguments=(args, kwargs), error=Error.of(error))
    return Outcome(value, (args, kwargs))


def _own_frames(error: BaseException) -> str:
    """The traceback as text, without this file's frames, shortened to its first and last nine."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    return "".join(traceback.format_list(frames[:1] + frames[1:][-9:]))
