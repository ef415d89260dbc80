"""Comparing an outcome with the expected one, and saying in words how they differ."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from autograder.inside.codec import Opaque
from autograder.inside.outcome import Outcome

# (rtol, atol) by dtype: wide enough for another order of summation, too narrow for another formula.
TOLERANCE = {
    torch.float64: (1e-7, 1e-9),
    torch.float32: (1e-4, 1e-5),
    torch.bfloat16: (2e-2, 1e-2),
    torch.float16: (2e-3, 1e-3),
}

Tolerance = tuple[float, float] | None


@dataclass(frozen=True)
class Difference:
    """How an outcome differs: `summary` names no value of the case, `detail` does.

    Graded cases are secret, so a grade shows the summary; practice shows both.
    """

    summary: str
    detail: str = ""
    blank: bool = False  # nothing is written yet


class _Unworded:
    """A `Difference` that is put into words when it is asked: diagnosis asks for none."""

    blank = False

    def __init__(self, words: Callable[[], Difference]):
        self._words = words

    @cached_property
    def _worded(self) -> Difference:
        return self._words()

    @property
    def summary(self) -> str:
        return self._worded.summary

    @property
    def detail(self) -> str:
        return self._worded.detail


def compare_outcomes(
    actual: Outcome, expected: Outcome, tolerance: Tolerance = None
) -> Difference | None:
    """None if the two agree in value or error, and in what they did to their arguments."""
    if expected.error or actual.error:
        return _compare_errors(actual, expected)
    difference = compare(actual.value, expected.value, tolerance)
    if difference is None and compare(actual.arguments, expected.arguments, (0.0, 0.0)):
        return Difference(
            "changes an argument in place: the caller's tensor is damaged. Work on a copy."
        )
    return difference


def compare(
    actual: Any, expected: Any, tolerance: Tolerance = None, where: str = ""
) -> Difference | None:
    """None if equal, else the first difference found. `where` is the path into the value: "[2]"."""
    if actual is expected:
        return None
    number = isinstance(expected, bool | int | float)
    if number and isinstance(actual, Tensor) and actual.ndim == 0:
        actual = actual.item()
    if isinstance(expected, Tensor):
        if not isinstance(actual, Tensor):
            return _wrong_type(actual, expected, where)
        return _compare_tensors(actual, expected, tolerance, where)
    if isinstance(expected, float) and isinstance(actual, float | int):
        rtol, atol = tolerance or TOLERANCE[torch.float32]
        if _is_close(float(actual), expected, rtol, atol):
            return None
        return Difference(
            f"{_at(where)}the number differs by more than rtol {rtol:g}, atol {atol:g}",
            f"expected {expected:.6g}, got {actual:.6g}",
        )
    if type(actual) is not type(expected):
        return _wrong_type(actual, expected, where)
    if isinstance(expected, dict):
        return _compare_dicts(actual, expected, tolerance, where)
    if isinstance(expected, list | tuple):
        if len(actual) != len(expected):
            return Difference(
                f"{_at(where)}expected {len(expected)} items, got {len(actual)}",
            )
        found = (
            compare(a, e, tolerance, f"{where}[{i}]")
            for i, (a, e) in enumerate(zip(actual, expected, strict=True))
        )
        return next((d for d in found if d), None)
    if actual != expected:
        return Difference(
            f"{_at(where)}a different {type(expected).__name__}",
            f"expected {_short(expected)}, got {_short(actual)}",
        )
    return None


def describe(value: Any) -> str:
    """A value in a few words: "float32 tensor (3, 5)", "dict of 4", "'abc'"."""
    if isinstance(value, Opaque):
        return value.type_name
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        layout = "" if value.is_contiguous() else ", not contiguous"
        return f"{dtype} tensor {tuple(value.shape)}{layout}"
    if isinstance(value, list | tuple | dict) and len(repr(value)) > 60:
        return f"{type(value).__name__} of {len(value)}"
    return _short(value)


def _is_close(actual: float, expected: float, rtol: float, atol: float) -> bool:
    """What torch.isclose says, with NaN equal to NaN, at a hundredth of its time."""
    if math.isfinite(actual) and math.isfinite(expected):
        return abs(actual - expected) <= atol + abs(rtol * expected)
    return actual == expected or (math.isnan(actual) and math.isnan(expected))


def _compare_errors(actual: Outcome, expected: Outcome) -> Difference | None:
    if expected.error is None:
        error = actual.error
        if error.type == "NotImplementedError":
            return Difference("is not written yet", blank=True)
        return Difference(f"raised {error.type}: {error.message}", error.traceback)
    if actual.error is None:
        return Difference(
            f"should raise {expected.error.type}, but returned {kind(actual.value)}",
            f"the reference says: {expected.error.message}",
        )
    if expected.error.type in (actual.error.type, *actual.error.bases):
        return None
    return Difference(
        f"should raise {expected.error.type}, but raised "
        f"{actual.error.type}: {actual.error.message}",
        actual.error.traceback,
    )


def _compare_tensors(
    actual: Tensor, expected: Tensor, tolerance: Tolerance, where: str
) -> Difference | None:
    at = _at(where)
    if actual.shape != expected.shape:
        return Difference(f"{at}expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}")
    if actual.dtype != expected.dtype:
        return Difference(f"{at}expected dtype {expected.dtype}, got {actual.dtype}")
    if torch.equal(actual, expected):  # the usual case, and quicker to find than closeness
        return None
    rtol, atol = tolerance or TOLERANCE.get(expected.dtype, (0.0, 0.0))
    close = torch.isclose(actual, expected, rtol, atol, equal_nan=True)
    if close.all():
        return None
    return _Unworded(partial(_describe_tensors, actual, expected, close, rtol, atol, at))


def _describe_tensors(
    actual: Tensor, expected: Tensor, close: Tensor, rtol: float, atol: float, at: str
) -> Difference:
    count = int((~close).sum())
    within = f" by more than rtol {rtol:g}, atol {atol:g}" if atol or rtol else ""
    whose = f"{count} of {close.numel()} elements differ" if close.ndim else "the value differs"
    summary = f"{at}{whose}{within}"
    if actual.is_floating_point():
        for name, test in (("NaN", torch.isnan), ("infinite", torch.isinf)):
            # float8 knows no isinf
            has, wanted = (int(test(tensor.double()).sum()) for tensor in (actual, expected))
            if has != wanted:
                summary += f"; {has} are {name} (expected {wanted})"
    first = tuple((~close).nonzero()[0].tolist())
    place = f"first at {list(first)}: " if first else ""
    values = f"expected {expected[first].item():.6g}, got {actual[first].item():.6g}"
    return Difference(summary, place + values)


def _compare_dicts(
    actual: dict, expected: dict, tolerance: Tolerance, where: str
) -> Difference | None:
    missing = [k for k in expected if k not in actual]
    extra = [k for k in actual if k not in expected]
    if missing or extra:
        return Difference(
            f"{_at(where)}{len(missing)} keys are missing, {len(extra)} are too many",
            f"missing {_short(missing)}, too many {_short(extra)}",
        )
    found = (compare(actual[k], expected[k], tolerance, f"{where}[{k!r}]") for k in expected)
    return next((d for d in found if d), None)


def _wrong_type(actual: Any, expected: Any, where: str) -> Difference:
    hint = " (is a return statement missing?)" if actual is None else ""
    return Difference(f"{_at(where)}expected {kind(expected)}, got {kind(actual)}{hint}")


def describe_kind(value: Any) -> str:
    """The same without values, for a hidden case: "float32 tensor (3, 5)", "a dict", "an int"."""
    return describe(value) if isinstance(value, Tensor) else kind(value)


def kind(value: Any) -> str:
    """The type of a value in words: "a tensor", "None", "a list"."""
    if value is None:
        return "None"
    name = value.type_name if isinstance(value, Opaque) else type(value).__name__
    name = {"Tensor": "tensor", "str": "string", "": "nameless thing"}.get(name, name)
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _at(where: str) -> str:
    return f"at {where}: " if where else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
