"""What must hold for every exercise of the course, proven for each one.

`pytest tests/checks --seeds 100` draws the cases of a hundred more seeds, new ones each time: after
a change of a check, look whether a correct solution fails on any of them.
"""

import secrets
from dataclasses import replace

import pytest
import torch

from autograder.check import Check, Exercise, Question
from autograder.compare import compare
from autograder.course import CHAPTERS, checks_of
from autograder.inside.codec import decode, encode
from autograder.inside.outcome import Outcome
from autograder.practice import practise
from autograder.verdict import diagnose, judge

EXERCISES: dict[str, Exercise] = {
    name: exercise for chapter in CHAPTERS for name, exercise in checks_of(chapter.slug).items()
}
CHECKS = {name: e for name, e in EXERCISES.items() if isinstance(e, Check)}
QUESTIONS = {name: e for name, e in EXERCISES.items() if isinstance(e, Question)}
SEEDS = ("0", "1", "a secret seed")


@pytest.fixture(scope="module")
def seeds(pytestconfig: pytest.Config) -> list[str]:
    more = range(pytestconfig.getoption("seeds"))
    return [*SEEDS, *(secrets.token_hex(8) for _ in more)]


def each(checks: dict[str, Exercise]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("exercise", checks.values(), ids=checks.keys())


def pairs(attribute: str) -> pytest.MarkDecorator:
    """Every check with each of its misconceptions or variants."""
    found = [(c, i, w) for c in CHECKS.values() for i, w in enumerate(getattr(c, attribute))]
    return pytest.mark.parametrize(
        ("exercise", "index", "other"), found, ids=[f"{c.name}-{i}" for c, i, _ in found]
    )


@each(CHECKS)
def test_the_reference_passes(exercise: Check, seeds: list[str]):
    for seed in seeds:
        verdict = judge(exercise, exercise.outcomes(exercise.reference, seed), seed)
        assert verdict.correct, (seed, verdict)


@each(CHECKS)
def test_a_check_has_four_misconceptions_and_three_variants(exercise: Check):
    assert len(exercise.misconceptions) >= 4
    assert len(exercise.variants) >= 3
    assert exercise.points > 0


@pairs("variants")
def test_every_correct_style_passes(exercise: Check, index: int, other, seeds: list[str]):
    for seed in seeds:
        verdict = judge(exercise, exercise.outcomes(other, seed), seed)
        assert verdict.correct, (seed, verdict)


@each(CHECKS)
def test_a_reference_leaves_its_arguments_as_they_are(exercise: Check):
    """So that the cases are still what a student's function was called with."""
    reference = exercise.call_of(exercise.reference)
    for seed in SEEDS:
        for case in exercise.draw(seed):
            before = encode((case.args, case.kwargs))
            case.outcome(reference)
            assert encode((case.args, case.kwargs)) == before, case.title


@pairs("misconceptions")
def test_every_misconception_is_rejected_and_diagnosed(
    exercise: Check, index: int, other, seeds: list[str]
):
    """And as itself: so no two of an exercise behave alike."""
    for seed in seeds:
        verdict = judge(exercise, exercise.outcomes(other.wrong, seed), seed)
        assert not verdict.correct, seed
        assert verdict.misconception == other.title, seed
        assert verdict.hint == other.hint
        assert verdict.earned == 0


@each(CHECKS)
def test_a_correct_solution_is_never_diagnosed(exercise: Check):
    for seed in SEEDS:
        assert diagnose(exercise, exercise.outcomes(exercise.reference, seed), seed) is None


def degenerate(expected: list[Outcome]) -> dict[str, list]:
    """What an idle student might return: constants, zeros, noise of the right shape."""

    def like(value, number: int, tensor):
        """The shape of a value with nothing of what is in it."""
        match value:
            case torch.Tensor():
                return tensor(value)
            case tuple() | list():
                return type(value)(like(v, number, tensor) for v in value)
            case dict():
                return {key: like(v, number, tensor) for key, v in value.items()}
            case bool() | int() | float() | str() | bytes():
                return type(value)(number)
        return value

    generator = torch.Generator().manual_seed(0)
    noise = lambda t: torch.rand(t.shape, generator=generator).to(t.dtype)
    values = [outcome.value for outcome in expected]
    return {
        "None": [None] * len(values),
        "0.0": [0.0] * len(values),
        "1.0": [1.0] * len(values),
        "zeros": [like(v, 0, torch.zeros_like) for v in values],
        "ones": [like(v, 1, torch.ones_like) for v in values],
        "noise": [like(v, 7, noise) for v in values],
    }


@each(CHECKS)
def test_no_constant_no_noise_and_no_input_passes(exercise: Check):
    seed = "0"
    cases = exercise.draw(seed)
    expected = exercise.outcomes(exercise.reference, seed)
    untouched = [(case.args, case.kwargs) for case in cases]
    attempts = degenerate(expected)
    for position in range(max(len(case.args) for case in cases)):
        attempts[f"argument {position}"] = [
            case.args[position] if position < len(case.args) else None for case in cases
        ]
    for name, values in attempts.items():
        outcomes = [Outcome(v, a) for v, a in zip(values, untouched, strict=True)]
        assert not judge(exercise, outcomes, seed).correct, name


@each(CHECKS)
def test_what_is_right_for_one_seed_earns_nothing_for_another(exercise: Check):
    """Else a list of answers would do, and so would a probe that a submission replaces."""
    learned = exercise.outcomes(exercise.reference, "0")
    learned = [replace(outcome, arguments=None) for outcome in learned]
    if len(learned) == len(exercise.draw("1")):
        assert judge(exercise, learned, "1").earned == 0


@each(CHECKS)
def test_cases_are_the_same_for_the_same_seed_and_differ_between_seeds(exercise: Check):
    first, again, other = (
        [(c.args, c.kwargs) for c in exercise.draw(seed)] for seed in ("0", "0", "1")
    )
    assert compare(first, again, (0.0, 0.0)) is None
    assert compare(first, other, (0.0, 0.0)) is not None


@each(CHECKS)
def test_cases_cross_the_boundary_unchanged(exercise: Check):
    for case in exercise.draw("0"):
        args, kwargs = decode(encode((case.args, case.kwargs)))
        assert compare((args, kwargs), (case.args, case.kwargs), (0.0, 0.0)) is None
        for sent, got in zip(case.args, args, strict=True):
            if isinstance(sent, torch.Tensor):
                assert sent.is_contiguous() == got.is_contiguous()


@each(CHECKS)
def test_an_argument_damaged_in_place_is_an_error(exercise: Check):
    call = exercise.call_of(exercise.reference)

    def damaging(*args, **kwargs):
        result = call(*args, **kwargs)
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor) and value.numel():
                value.fill_(7)
        return result

    outcomes = [case.outcome(damaging) for case in exercise.draw("0")]
    if any(isinstance(v, torch.Tensor) for c in exercise.draw("0") for v in c.args):
        assert not judge(exercise, outcomes, "0").correct


@each(CHECKS)
def test_practice_takes_the_same_path_to_the_same_verdict(exercise: Check):
    assert practise(exercise, exercise.reference).correct
    for misconception in exercise.misconceptions:
        assert practise(exercise, misconception.wrong).misconception == misconception.title


@each(QUESTIONS)
def test_a_question_takes_its_answer_and_diagnoses_the_wrong_ones(exercise: Question):
    assert judge(exercise, [Outcome(exercise.answer)], "0").correct
    assert exercise.misconceptions, "a wrong answer without a diagnosis teaches nothing"
    for misconception in exercise.misconceptions:
        verdict = judge(exercise, [Outcome(misconception.wrong)], "0")
        assert not verdict.correct
        assert verdict.misconception == misconception.title
        assert exercise.choices is None or misconception.wrong in exercise.choices
    assert judge(exercise, [Outcome(None)], "0").status == "blank"


def test_names_are_unique_across_the_course():
    assert len(EXERCISES) == sum(len(checks_of(chapter.slug)) for chapter in CHAPTERS)
