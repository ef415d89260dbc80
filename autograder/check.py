"""What an exercise is: a reference, cases drawn from a seed, and the misconceptions it can name.

A check is data. The notebook's `check(...)`, the judge, the tests and the class report all read
the same one.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
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
    """An exercise that asks for a function, or for a class.

    reference:      the correct one, from llmkit
    cases:          (rng) -> cases; called anew for every run, so that no run can damage another's
    variants:       correct implementations in other styles; the tests prove that they pass
    tolerance:      (rtol, atol) where the default of the dtype does not fit
    parts:          title -> points, for partial credit; all or nothing without it
    probe:          (implementation, *arguments of a case) -> plain data, where a call is not
                    enough: makes an object of the class, gives it weights, says what it does
    reading:        (value, *arguments of a case) -> what of a returned value is compared, where
                    many values are right. The judge runs it, on whatever a submission returned:
                    a probe that says "all right" runs where the submission can say so itself

    A part is earned whole, when every case of its title passes, so what is earned is a whole
    number. A case of no part belongs to all of them: while it fails, nothing is earned. The points
    of the parts add up to those of the check.

    Raises ValueError if they do not; `draw` raises it for a part of which no case is drawn.
    """

    reference: Callable
    points: int
    cases: Callable[[torch.Generator], Sequence[Case]]
    misconceptions: Sequence[Misconception]
    variants: Sequence[Callable] = ()
    tolerance: tuple[float, float] | None = None
    name: str = ""
    parts: Mapping[str, int] = field(default_factory=dict)
    probe: Callable | None = None
    reading: Callable | None = None

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.reference.__name__)
        if self.parts and sum(self.parts.values()) != self.points:
            raise ValueError(
                f"the parts of {self.name} are worth {sum(self.parts.values())} points and the "
                f"check {self.points}: make them agree."
            )

    def draw(self, seed: str) -> list[Case]:
        """The cases of one seed. The same seed gives the same cases on every machine."""
        digest = hashlib.sha256(f"{self.name}\0{seed}".encode()).digest()
        rng = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        cases = list(self.cases(rng))
        if undrawn := self.parts.keys() - {case.title for case in cases}:
            raise ValueError(f"{self.name} draws no case for its part {min(undrawn)!r}.")
        return cases

    def call_of(self, implementation: Callable) -> Callable:
        """What is called with the arguments of a case: the implementation, or the probe of it."""
        return partial(self.probe, implementation) if self.probe else implementation

    def read(self, outcome: Outcome, case: Case) -> Outcome:
        """The outcome with what is compared of its value; an error where it cannot be read."""
        if self.reading is None or outcome.error:
            return outcome
        read = call(partial(self.reading, outcome.value), case.args, case.kwargs)
        return Outcome(read.value, outcome.arguments, read.error)

    def outcomes(self, implementation: Callable, seed: str) -> list[Outcome]:
        """What an implementation makes of each case of the seed, on arguments of its own."""
        return [case.outcome(self.call_of(implementation)) for case in self.draw(seed)]


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


@dataclass(frozen=True)
class Asserts:
    """An exercise whose graded cell judges it by itself: plain asserts, as nbgrader has them.

    They run in the student's own process, so unlike a check's verdict theirs can be forged.

    source:  the graded cell, with the hidden tests that the release lacks
    hidden:  the numbers of the lines, from 1, that no student sees
    """

    name: str
    points: float
    source: str
    hidden: frozenset[int] = frozenset()


Exercise = Check | Question | Asserts
