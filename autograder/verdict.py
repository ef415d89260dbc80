"""From outcomes to a verdict: which cases pass, what differs, which misconception explains it."""

import builtins
import inspect
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from autograder.check import Asserts, Case, Check, Exercise, Misconception, Question
from autograder.compare import Difference, compare, compare_outcomes, describe, describe_kind
from autograder.inside.codec import decode, encode
from autograder.inside.outcome import Outcome, call

CELL_LINE = re.compile(r"line (\d{1,7}), in <")  # of a traceback: its first frame is the cell's own


@dataclass(frozen=True)
class Part:
    """One part of an exercise that gives partial credit."""

    title: str
    points: int
    earned: int


@dataclass(frozen=True)
class Verdict:
    """What one exercise of one person earned, and why.

    status:  "correct", "partial", "wrong", "blank" (not written yet), "stopped" (it ended its
             worker), or "ungraded" (the grader failed, not the student)
    problem: the failure in a sentence that names no value; empty when all cases pass
    detail:  the values behind it, for practice runs
    parts:   what each part earned, where the check has parts and not all is correct
    inside:  judged by asserts inside the student's own process, so it can be forged
    """

    exercise: str
    points: float
    earned: float
    status: str
    cases: int = 0
    passed: int = 0
    case: str = ""  # the first failing case: its title and the kinds of its arguments; an assert
    problem: str = ""
    detail: str = ""
    misconception: str = ""
    hint: str = ""
    parts: tuple[Part, ...] = ()
    inside: bool = False

    @property
    def correct(self) -> bool:
        return self.status == "correct"

    @property
    def headline(self) -> str:
        """What is wrong, in a line: "one_hot is not written yet", "one_hot: …" for a diagnosis."""
        if self.misconception or self.case:
            return f"{self.exercise}: {self.misconception or self.problem}"
        return f"{self.exercise} {self.problem}"


def pointed(points: float) -> str:
    """ "1 point", "2.5 points"."""
    return f"{points:g} point{'' if points == 1 else 's'}"


def lost(exercise: Exercise, problem: str, status: str = "wrong", detail: str = "") -> Verdict:
    """The verdict of an exercise that could not be judged case by case."""
    inside = isinstance(exercise, Asserts)
    return Verdict(
        exercise.name, exercise.points, 0, status, problem=problem, detail=detail, inside=inside
    )


def judge(
    exercise: Exercise,
    outcomes: Sequence[Outcome],
    seed: str,
    hidden: bool = False,
    cases: Sequence[Case] | None = None,
) -> Verdict:
    """The verdict on the outcomes that a student's work gave for the cases of `seed`.

    cases:  those cases, where they are drawn already and nothing has been called with them

    A `Question` has one outcome, the variable's value; `Asserts` have one, their cell's. With
    `hidden`, as in a grade, the verdict holds no value of a case, and of asserts no word that a
    process wrote which knows the hidden tests.
    """
    if isinstance(exercise, Question):
        return _judge_answer(exercise, outcomes[0])
    if isinstance(exercise, Asserts):
        return _judge_asserts(exercise, outcomes[0], hidden)
    return _judge_function(exercise, outcomes, cases or exercise.draw(seed), hidden)


def _judge_function(
    check: Check, outcomes: Sequence[Outcome], cases: Sequence[Case], hidden: bool
) -> Verdict:
    reference = check.call_of(check.reference)
    expected = [case.outcome(reference) for case in cases]
    differences = list(_differences(check, cases, outcomes, expected))
    failed = [i for i, difference in enumerate(differences) if difference]
    passed = len(outcomes) - len(failed)
    if not failed:
        return Verdict(check.name, check.points, check.points, "correct", passed, passed)
    first = failed[0]
    difference = differences[first]
    parts = _parts(check, {cases[i].title for i in failed})
    earned = sum(part.earned for part in parts)
    if difference.blank and not earned:
        return lost(check, difference.summary, "blank")
    found = _explanation(check, cases, outcomes, failed)
    return Verdict(
        check.name,
        check.points,
        earned,
        "partial" if earned else "wrong",
        len(outcomes),
        passed,
        case=_describe_case(check, cases[first], hidden),
        problem=difference.summary,
        detail="" if hidden else difference.detail,
        misconception=found.title if found else "",
        hint=found.hint if found else "",
        parts=parts,
    )


def _parts(check: Check, failed: set[str]) -> tuple[Part, ...]:
    """What each part earns, given the titles of the cases that fail."""
    lost_all = not failed <= check.parts.keys()  # a case that belongs to every part
    return tuple(
        Part(title, points, 0 if lost_all or title in failed else points)
        for title, points in check.parts.items()
    )


def diagnose(check: Check, outcomes: Sequence[Outcome], seed: str) -> Misconception | None:
    """The misconception that behaves on every case as these outcomes do, if there is one."""
    return _explanation(check, check.draw(seed), outcomes, ())


def _explanation(
    check: Check,
    cases: Sequence[Case],
    outcomes: Sequence[Outcome],
    failed: Collection[int],
) -> Misconception | None:
    messages = [encode((case.args, case.kwargs)) for case in cases]
    # One failed case tells most of them apart, and a small one soonest.
    order = sorted(range(len(cases)), key=lambda i: (i not in failed, len(messages[i])))
    cases, outcomes, messages = ([them[i] for i in order] for them in (cases, outcomes, messages))
    with warnings.catch_warnings(action="ignore"):  # a wrong solution may well give rise to some
        for misconception in check.misconceptions:
            wrong = check.call_of(misconception.wrong)
            # One by one: most are told apart by the first. Each on arguments of its own.
            behaviour = (call(wrong, *decode(message)) for message in messages)
            if not any(_differences(check, cases, outcomes, behaviour)):
                return misconception
    return None


def _differences(
    check: Check, cases: Iterable[Case], actual: Iterable[Outcome], expected: Iterable[Outcome]
) -> Iterator[Difference | None]:
    for case, a, e in zip(cases, actual, expected, strict=True):
        if a.arguments is None:  # as they were
            a = replace(a, arguments=(case.args, case.kwargs))
        yield compare_outcomes(check.read(a, case), check.read(e, case), check.tolerance)


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


def _judge_asserts(tests: Asserts, outcome: Outcome, hidden: bool) -> Verdict:
    if outcome.error is None:
        return _value_of_cell(tests, outcome.value)
    error = outcome.error
    if error.type == "NotImplementedError":
        return lost(tests, "is not written yet", "blank")
    found = CELL_LINE.search(error.traceback)
    number, lines = int(found[1]) if found else 0, tests.source.split("\n")
    if number in tests.hidden:
        return lost(tests, "fails a hidden test.")
    kind, message = error.type, error.message
    if hidden:
        kind, message = next(filter(_is_error, error.bases), "an error of its own"), ""
    said = f"raised {kind}: {message}" if message else f"raised {kind}"
    verdict = lost(tests, said)
    return replace(verdict, case=lines[number - 1].strip()) if 0 < number <= len(lines) else verdict


def _value_of_cell(tests: Asserts, text: object) -> Verdict:
    """The verdict where no assert failed: a number under the cell is what it earns (nbgrader's
    rule), and anything else is full marks. A number that is no score earns nothing: nbgrader gives
    full marks for nan and -1, and stops at one above the points."""
    earned = tests.points
    if isinstance(text, str):
        try:
            earned = float(text)
        except ValueError:
            pass
        else:
            if not 0 <= earned <= tests.points:
                return lost(tests, f"ends in {earned:g}: no score from 0 to {tests.points:g}.")
    earned = int(earned) if earned == int(earned) else earned
    if earned == 0 < tests.points:
        return lost(tests, "ends in a score of 0.")
    status = "partial" if earned < tests.points else "correct"
    problem = f"ends in a score of {earned:g}." if status == "partial" else ""
    return Verdict(tests.name, tests.points, earned, status, problem=problem, inside=True)


def _is_error(name: str) -> bool:
    kind = getattr(builtins, name, None)
    return isinstance(kind, type) and issubclass(kind, BaseException)


def _describe_case(check: Check, case: Case, hidden: bool) -> str:
    """A case in a line: "logits of 1000: logits = float32 tensor (3, 5), dim = 0"."""
    try:
        signature = inspect.signature(check.call_of(check.reference))
        bound = signature.bind(*case.args, **case.kwargs).arguments
    except TypeError:  # a case that is meant to be refused
        bound = dict(enumerate(case.args)) | case.kwargs
    words = describe_kind if hidden else describe
    arguments = ", ".join(f"{name} = {words(value)}" for name, value in bound.items())
    return f"{case.title}: {arguments}" if case.title else arguments
