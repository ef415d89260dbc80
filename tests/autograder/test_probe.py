"""A check can judge a class: a probe makes an object of it and says what it does."""

from dataclasses import dataclass

import pytest
import torch

from autograder.cells import source_of
from autograder.check import Case, Check, Misconception
from autograder.inside.outcome import Outcome
from autograder.practice import practise
from autograder.sandbox import Limits, Sandbox
from autograder.verdict import judge


class Line(torch.nn.Module):
    """y = a x + b, with a weight that is given."""

    def __init__(self, slope):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(slope))

    def forward(self, x, bias=0.0):
        return self.slope * x + bias


class Doubled(Line):
    def forward(self, x, bias=0.0):
        return 2 * super().forward(x, bias)


class Detached(Line):
    def forward(self, x, bias=0.0):
        return self.slope.detach() * x + bias + 0 * self.slope


@dataclass
class Unwritten:
    slope: float

    def __call__(self, x, bias=0.0):
        raise NotImplementedError


class Renamed:
    """Correct, and of another design: no module at all."""

    def __init__(self, slope):
        self.slope = torch.tensor(slope, requires_grad=True)

    def __call__(self, x, bias=0.0):
        return torch.addcmul(torch.as_tensor(bias), self.slope, x)


def probe(line, slope, x, **kwargs):
    made = line(slope)
    y = made(x, **kwargs)
    y.sum().backward()
    return {"y": y.detach(), "gradient": made.slope.grad}


def cases(rng):
    return [
        Case(2.5, torch.randn(3, generator=rng)),
        Case(-1.0, torch.randn(2, generator=rng), bias=0.5),
    ]


LINE = Check(
    reference=Line,
    points=3,
    cases=cases,
    misconceptions=[Misconception("twice", Doubled, "How often?")],
    probe=probe,
    name="Line",
)


def in_a_worker(implementation) -> list[Outcome]:
    drawn = [(case.args, case.kwargs) for case in LINE.draw("seed")]
    with Sandbox(Limits()) as sandbox, sandbox.worker() as worker:
        assert worker.run(source_of(implementation, "Line")).error is None
        return worker.calls("Line", drawn, source_of(probe, "probe"))


def test_practice_and_grade_see_the_object_through_the_probe():
    assert practise(LINE, Line).correct and practise(LINE, Renamed).correct
    for implementation in (Line, Renamed):
        assert judge(LINE, in_a_worker(implementation), "seed").correct


@pytest.mark.parametrize(
    ("implementation", "status", "title"),
    [(Doubled, "wrong", "twice"), (Detached, "wrong", ""), (Unwritten, "blank", "")],
)
def test_a_wrong_class_is_found(implementation, status, title):
    for verdict in (
        practise(LINE, implementation),
        judge(LINE, in_a_worker(implementation), "seed"),
    ):
        assert (verdict.status, verdict.misconception) == (status, title)


def test_the_case_is_described_by_the_probes_arguments():
    assert practise(LINE, Doubled).case.startswith("slope = 2.5, x = ")


def test_a_class_that_is_not_defined_is_said_to_be_missing():
    drawn = [(case.args, case.kwargs) for case in LINE.draw("seed")]
    with Sandbox(Limits()) as sandbox, sandbox.worker() as worker:
        for outcome in worker.calls("Line", drawn, source_of(probe, "probe")):
            assert outcome.error.type == "NameError"
