"""What an exercise is: a reference, cases drawn from a seed, and the misconceptions it can name.

A check is data. The notebook's `check(...)`, the judge, the tests and the class report all read
the same one.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from autograder.inside.outcome import Outcome, call


class Case:
    """One call of the student's function: `Case(q, k, v, causal=True)`.

    Arguments are data (tensors, numbers, strings, None, lists, tuples, dicts): they cross a
    process boundary in grading.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self.args = args
        self.kwargs = kwargs
        self.title = ""

    def titled(self, title: str) -> "Case":
        """Name what this case is about; the student reads it: "logits of 1000"."""
        self.title = title
        return self

    def outcome(self, function: Callable) -> Outcome:
        return call(function, self.args, self.kwargs)


@dataclass(frozen=True)
class Misconception:
    """A named wrong solution. It proves that a check catches it, and it diagnoses who wrote it.

    `wrong` is an implementation with the exercise's signature (for a `Question`: a wrong answer).
    `hint` asks the question that would have prevented the mistake.
    """

    title: str
    wrong: Any
    hint: str


@dataclass(frozen=True)
class Check:
    """An exercise that asks for a function.

    reference:      the correct function, from llmkit
    cases:          (rng) -> cases; called anew for every run, so that no run can damage another's
    variants:       correct implementations in other styles; the tests prove that they pass
    tolerance:      (rtol, atol) where the default of the dtype does not fit
    """

    reference: Callable
    points: int
    cases: Callable[[torch.Generator], Sequence[Case]]
    misconceptions: Sequence[Misconception]
    variants: Sequence[Callable] = ()
    tolerance: tuple[float, float] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.reference.__name__)

    def draw(self, seed: str) -> list[Case]:
        """The cases of one seed. The same seed gives the same cases on every machine."""
        digest = hashlib.sha256(f"{self.name}\0{seed}".encode()).digest()
        rng = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return list(self.cases(rng))

    def outcomes(self, function: Callable, seed: str) -> list[Outcome]:
        """What `function` makes of each case of the seed, on arguments of its own."""
        return [case.outcome(function) for case in self.draw(seed)]


@dataclass(frozen=True)
class Question:
    """An exercise that asks for a choice or a number, held by a variable of the notebook.

    choices:    the admissible answers, for a multiple-choice question
    tolerance:  (rtol, atol) for a number; exact without it
    """

    name: str
    answer: Any
    points: int = 1
    misconceptions: Sequence[Misconception] = ()
    choices: Sequence[Any] | None = None
    tolerance: tuple[float, float] | None = None


Exercise = Check | Question
