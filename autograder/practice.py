"""`check(function)` and `check_answer(name, value)`: what a student calls in the notebook."""

from collections.abc import Callable
from typing import Any

from autograder import course
from autograder.check import Check, Exercise, Question
from autograder.display import show
from autograder.inside.codec import decode, encode
from autograder.inside.outcome import Outcome, call
from autograder.verdict import Verdict, judge

PRACTICE_SEED = "practice"  # a grade differs from practice in the seed alone


class CheckFailed(Exception):
    """The exercise is not solved yet; the message says why. Shown without a traceback."""

    def _render_traceback_(self) -> list[str]:  # the hook that IPython asks before it prints
        return [f"CheckFailed: {self}"]


def check(function: Callable) -> None:
    """Check a solution against the exercise that bears its name, and say what is wrong with it.

    Raises `CheckFailed` if a case fails, `LookupError` if no exercise has that name.
    """
    if not callable(function):
        raise TypeError(
            f"check(...) takes the function itself, not its result: got {type(function).__name__}."
        )
    exercise = _exercise(getattr(function, "__name__", repr(function)), Check)
    _answer(practise(exercise, function))


def check_answer(name: str, value: Any) -> None:
    """Check the answer to a question: `check_answer("loss_unit", loss_unit)`.

    Raises `CheckFailed` if it is wrong, `LookupError` if no question has that name.
    """
    exercise = _exercise(name, Question)
    _answer(judge(exercise, [Outcome(decode(encode(value)))], PRACTICE_SEED))


def practise(exercise: Check, function: Callable) -> Verdict:
    """The verdict on `function` for the practice seed, by the path that a grade takes.

    Arguments and values pass through the sandbox's codec here too, so that what crosses the
    boundary in grading cannot make a difference.
    """
    outcomes = []
    for case in exercise.draw(PRACTICE_SEED):
        args, kwargs = decode(encode((case.args, case.kwargs)))
        outcome = call(exercise.call_of(function), args, kwargs)
        value, arguments = decode(encode((outcome.value, outcome.arguments)))
        outcomes.append(Outcome(value, arguments, outcome.error))
    return judge(exercise, outcomes, PRACTICE_SEED)


def _exercise(name: str, kind: type) -> Exercise:
    found = course.find(name)
    if not isinstance(found, kind):
        right = "check_answer(name, value)" if isinstance(found, Question) else "check(function)"
        raise LookupError(f"{name} is checked with {right}.")
    return found


def _answer(verdict: Verdict) -> None:
    show(verdict)
    if not verdict.correct:
        raise CheckFailed(verdict.headline) from None
