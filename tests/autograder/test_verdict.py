"""From outcomes to a verdict, and how it reads."""

import warnings
from dataclasses import replace

import torch

from autograder.check import Case, Check, Misconception, Question
from autograder.display import as_html, as_text
from autograder.inside.outcome import Outcome
from autograder.verdict import judge


def scale(x: torch.Tensor, factor: float = 2.0) -> torch.Tensor:
    return x * factor


def ignores_factor(x, factor=2.0):
    return x * 2.0


def adds(x, factor=2.0):
    return x + factor


CHECK = Check(
    reference=scale,
    points=4,
    cases=lambda rng: [
        Case(torch.randn(3, 5, generator=rng)),
        Case(torch.randn(2, 7, generator=rng), factor=3.0).titled("another factor"),
    ],
    misconceptions=[
        Misconception("the factor is ignored", ignores_factor, "What changes when factor does?"),
        Misconception("the factor is added", adds, "What should scale(0) be?"),
    ],
)
QUESTION = Question(
    "loss_unit",
    "nats",
    choices=("bits", "nats"),
    misconceptions=[Misconception("bits for nats", "bits", "Which logarithm is it?")],
)
NUMBER = Question("loss", 10.8027, tolerance=(1e-3, 0.0), points=2)


def verdict_on(function):
    return judge(CHECK, CHECK.outcomes(function, "s"), "s")


def test_a_correct_solution_earns_all_points():
    verdict = verdict_on(lambda x, factor=2.0: factor * x)
    assert (verdict.status, verdict.earned, verdict.passed, verdict.cases) == ("correct", 4, 2, 2)
    assert as_text(verdict) == "✓ scale — 2 of 2 cases pass (4 points)"


def test_a_known_mistake_is_named_with_its_hint_and_its_case():
    verdict = verdict_on(ignores_factor)
    assert (verdict.status, verdict.earned, verdict.passed) == ("wrong", 0, 1)
    assert verdict.case == "another factor: x = float32 tensor (2, 7), factor = 3.0"
    text = as_text(verdict)
    assert "Diagnosis: the factor is ignored" in text
    assert "Ask yourself: What changes when factor does?" in text


def test_an_unknown_mistake_is_described_but_not_diagnosed():
    verdict = verdict_on(lambda x, factor=2.0: x * factor + 1)
    assert verdict.misconception == ""
    assert "15 of 15 elements differ" in verdict.problem
    assert "first at [0, 0]" in verdict.detail


def test_a_wrong_solution_warns_nobody_and_damages_no_other_case(recwarn):
    def warns_and_overwrites(x, factor=2.0):
        warnings.warn("a mean of nothing", stacklevel=1)
        return x.zero_()

    wrong = Misconception("x is overwritten", warns_and_overwrites, "Whose tensor is x?")
    check = replace(CHECK, misconceptions=[wrong, *CHECK.misconceptions])
    assert judge(check, check.outcomes(adds, "s"), "s").misconception == "the factor is added"
    assert not recwarn


def test_a_graded_verdict_hides_the_values():
    verdict = judge(CHECK, CHECK.outcomes(ignores_factor, "s"), "s", hidden=True)
    assert verdict.detail == ""
    assert verdict.case == "another factor: x = float32 tensor (2, 7), factor = a float"


def test_blank_is_not_wrong():
    def unwritten(x, factor=2.0):
        raise NotImplementedError

    assert verdict_on(unwritten).status == "blank"


def test_questions():
    def on(question, value):
        return judge(question, [Outcome(value)], "s")

    assert on(QUESTION, "nats").correct
    assert on(QUESTION, "bits").misconception == "bits for nats"
    assert on(QUESTION, "hartleys").problem == "is none of the choices: 'bits', 'nats'"
    assert on(QUESTION, torch.zeros(2)).problem.startswith("is none of the choices")
    assert on(QUESTION, None).status == on(QUESTION, ...).status == "blank"
    assert on(NUMBER, 10.803).correct
    assert on(NUMBER, torch.tensor(10.803)).correct
    assert not on(NUMBER, 10.9).correct
    assert not on(NUMBER, "10.8027").correct


def test_text_from_a_submission_arrives_as_text():
    def hostile(x, factor=2.0):
        raise ValueError("<script>alert(1)</script>\x1b[31mred")

    verdict = verdict_on(hostile)
    assert "<script>" not in as_html(verdict)
    assert "&lt;script&gt;" in as_html(verdict)
    assert "\x1b" not in as_text(verdict)
