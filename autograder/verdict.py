"""From outcomes to a verdict: which cases pass, what differs, which misconception explains it."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autograder.check import Case, Check, Exercise, Misconception, Question
from autograder.compare import Difference, compare, compare_outcomes, describe, describe_kind
from autograder.inside.outcome import Outcome


@dataclass(frozen=True)
class Verdict:
    """What one exercise of one person earned, and why.

    status:  "correct", "wrong", "blank" (not written yet), or "stopped" (it ended its worker)
    problem: the failure in a sentence that names no value; empty when all cases pass
    detail:  the values behind it, for practice runs
    """

    exercise: str
    points: int
    earned: int
    status: str
    cases: int = 0
    passed: int = 0
    case: str = ""  # the first failing case: its title and the kinds of its arguments
    problem: str = ""
    detail: str = ""
    misconception: str = ""
    hint: str = ""

    @property
    def correct(self) -> bool:
        return self.status == "correct"

    @property
    def headline(self) -> str:
        """What is wrong, in a line: "one_hot is not written yet", "one_hot: …" for a diagnosis."""
        if self.misconception or self.case:
            return f"{self.exercise}: {self.misconception or self.problem}"
        return f"{self.exercise} {self.problem}"


def lost(exercise: Exercise, problem: str, status: str = "wrong", detail: str = "") -> Verdict:
    """The verdict of an exercise that could not be judged case by case."""
    return Verdict(exercise.name, exercise.points, 0, status, problem=problem, detail=detail)


def judge(
    exercise: Exercise, outcomes: Sequence[Outcome], seed: str, hidden: bool = False
) -> Verdict:
    """The verdict on the outcomes that a student's work gave for the cases of `seed`.

    A `Question` has one outcome, the variable's value. With `hidden`, as in a grade, the verdict
    holds no value of a case.
    """
    if isinstance(exercise, Question):
        return _judge_answer(exercise, outcomes[0])
    return _judge_function(exercise, outcomes, seed, hidden)


def _judge_function(check: Check, outcomes: Sequence[Outcome], seed: str, hidden: bool) -> Verdict:
    differences = _differences(check, outcomes, check.outcomes(check.reference, seed))
    failed = [i for i, difference in enumerate(differences) if difference]
    passed = len(outcomes) - len(failed)
    if not failed:
        return Verdict(check.name, check.points, check.points, "correct", passed, passed)
    first = failed[0]
    difference = differences[first]
    if difference.blank:
        return lost(check, difference.summary, "blank")
    found = diagnose(check, outcomes, seed)
    return Verdict(
        check.name,
        check.points,
        0,
        "wrong",
        len(outcomes),
        passed,
        case=_describe_case(check, check.draw(seed)[first], hidden),
        problem=difference.summary,
        detail="" if hidden else difference.detail,
        misconception=found.title if found else "",
        hint=found.hint if found else "",
    )


def diagnose(check: Check, outcomes: Sequence[Outcome], seed: str) -> Misconception | None:
    """The misconception that behaves on every case as these outcomes do, if there is one."""
    for misconception in check.misconceptions:
        if not any(_differences(check, outcomes, check.outcomes(misconception.wrong, seed))):
            return misconception
    return None


def _differences(
    check: Check, actual: Sequence[Outcome], expected: Sequence[Outcome]
) -> list[Difference | None]:
    pairs = zip(actual, expected, strict=True)
    return [compare_outcomes(a, e, check.tolerance) for a, e in pairs]


def _judge_answer(question: Question, outcome: Outcome) -> Verdict:
    name, points = question.name, question.points
    if outcome.error:
        return lost(question, f"raised {outcome.error.type}: {outcome.error.message}")
    if outcome.value is None or outcome.value is Ellipsis:
        return lost(question, "is not answered yet", "blank")
    if question.choices and all(compare(outcome.value, choice) for choice in question.choices):
        options = ", ".join(repr(choice) for choice in question.choices)
        return lost(question, f"is none of the choices: {options}")
    difference = compare(outcome.value, question.answer, question.tolerance)
    if difference is None:
        return Verdict(name, points, points, "correct", 1, 1)
    wrong = question.misconceptions
    same = (m for m in wrong if not compare(outcome.value, m.wrong, question.tolerance))
    found = next(same, None)
    verdict = lost(question, "is not the right answer")
    return replace(verdict, misconception=found.title, hint=found.hint) if found else verdict


def _describe_case(check: Check, case: Case, hidden: bool) -> str:
    """A case in a line: "logits of 1000: logits = float32 tensor (3, 5), dim = 0"."""
    try:
        bound = inspect.signature(check.reference).bind(*case.args, **case.kwargs).arguments
    except TypeError:  # a case that is meant to be refused
        bound = dict(enumerate(case.args)) | case.kwargs
    words = describe_kind if hidden else describe
    arguments = ", ".join(f"{name} = {words(value)}" for name, value in bound.items())
    return f"{case.title}: {arguments}" if case.title else arguments
