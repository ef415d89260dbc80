"""One submission, judged: its cells run in the sandbox, its outcomes are compared out here.

The judge is trusted and runs nothing of the student's. What it gets from a worker is plain data.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

from autograder.cells import source_of
from autograder.check import Asserts, Case, Check, Exercise
from autograder.inside.outcome import Error, Outcome
from autograder.master import Master
from autograder.sandbox import Sandbox, Worker, WorkerDied, calls
from autograder.submission import Step, Submission
from autograder.verdict import Verdict, judge, lost

# What a notebook imports from us: in grading the judge asks, so the calls answer nothing.
STUB = {"autograder/__init__.py": "def check(*_): ...\n\n\ncheck_answer = check\n"}


def judge_submission(
    sandbox: Sandbox,
    master: Master,
    submission: Submission,
    seed: str,
    hidden: bool = True,
    known: Iterable[Verdict] = (),
) -> list[Verdict]:
    """The verdicts on a notebook's exercises, in the notebook's order.

    known:  verdicts that stand: their exercises are not judged again

    The cells run from top to bottom, and each exercise is judged at its place, as in the notebook.
    A step that ends the worker costs its own exercise: a fresh worker runs the steps before it
    again, leaves it out, and goes on behind it. With `hidden` no verdict holds a case's values.

    Asserts run where they stand, in the worker, and the judge believes what it says of them.
    """
    exercises = master.exercises
    if submission.unreadable:
        return [lost(exercise, submission.unreadable) for exercise in exercises.values()]
    verdicts = {
        name: lost(exercise, submission.missing[name])
        for name, exercise in exercises.items()
        if name in submission.missing
    } | {verdict.exercise: verdict for verdict in known}
    cases = {
        name: exercise.draw(seed)
        for name, exercise in exercises.items()
        if isinstance(exercise, Check) and name not in verdicts
    }
    deadly: dict[int, str] = {}  # a step that ended its worker, and how
    deadline = time.monotonic() + sandbox.limits.wall_per_submission
    while time.monotonic() < deadline:
        errors: dict[str, Error] = {}  # what the exercises' own cells raised
        secrets = False  # whether the worker has seen hidden tests, and could tell of them
        broken = ""  # the last cell that failed, and how: why a name is not defined
        requests = {
            place: _request(step, exercises, cases)
            for place, step in enumerate(submission.steps)
            if place not in deadly and not _is_settled(step, exercises, verdicts)
        }
        place = 0
        try:
            with sandbox.worker(master.modules | STUB, dict(master.beside)) as worker:
                answers = _answers(worker, requests.values())
                for place, step in enumerate(submission.steps):
                    if place in deadly:
                        broken = f"{step.exercise or 'an earlier cell'} {deadly[place]}"
                    if place not in requests:
                        continue
                    outcome = next(answers)
                    if step.kind != "check":
                        if error := outcome.error:
                            errors[step.exercise] = error
                            if step.exercise and not (hidden and secrets):
                                broken = f"{step.exercise} raised {error.type}: {error.message}"
                        continue
                    exercise = exercises[step.exercise]
                    if isinstance(exercise, Asserts):  # again, too: what it defines may be used
                        secrets |= bool(exercise.hidden)
                        verdict = judge(exercise, [outcome], seed, hidden and secrets)
                        if broken and outcome.error and outcome.error.type == "NameError":
                            problem = f"{verdict.problem}; {broken}"
                            verdict = replace(verdict, problem=problem)
                        verdicts.setdefault(exercise.name, verdict)
                        continue
                    outcomes = [outcome]
                    if isinstance(exercise, Check):
                        outcomes = worker.outcomes(outcome, requests[place])
                    verdicts[exercise.name] = _undefined(
                        exercise, outcomes, step.variable, errors.get(exercise.name)
                    ) or judge(exercise, outcomes, seed, hidden, cases.get(exercise.name))
            break
        except WorkerDied as died:
            deadly[place] = died.reason
            if exercise := exercises.get(submission.steps[place].exercise):
                verdicts[exercise.name] = lost(exercise, f"{died.reason}.", "stopped")
    allowed = sandbox.limits.wall_per_submission
    spent = f"was not reached: the submission ran longer than {allowed:g} s."
    return [
        verdicts.get(name) or lost(exercise, spent, "stopped")
        for name, exercise in exercises.items()
    ]


def _is_settled(
    step: Step, exercises: Mapping[str, Exercise], verdicts: Mapping[str, Verdict]
) -> bool:
    """Whether a step need not be taken: what asserts define may be used further down."""
    asks = step.kind == "check" and not isinstance(exercises[step.exercise], Asserts)
    return asks and step.exercise in verdicts


def _request(
    step: Step, exercises: Mapping[str, Exercise], cases: Mapping[str, Sequence[Case]]
) -> tuple:
    """What a worker is asked at a step."""
    if step.kind != "check":
        return "run", step.source
    match exercises[step.exercise]:
        case Asserts() as tests:
            return "grade", tests.source
        case Check() as check:
            arguments = [(case.args, case.kwargs) for case in cases[check.name]]
            return calls(step.variable, arguments, _source(check.probe))
    return "get", step.variable


def _answers(worker: Worker, requests: Iterable[tuple]) -> Iterator[Outcome]:
    """The worker's answers, in turn. All is asked at once, up to asserts, which nothing that runs
    before them may see: their cell may hold hidden tests."""
    portion = []
    for request in requests:
        if request[0] == "grade":
            yield from worker.ask(portion)
            yield from worker.ask([request])
            portion = []
        else:
            portion.append(request)
    yield from worker.ask(portion)


@cache
def _source(probe: Callable | None) -> str:
    return source_of(probe, "probe") if probe else ""


def _undefined(
    exercise: Exercise, outcomes: list[Outcome], variable: str, cell_error: Error | None
) -> Verdict | None:
    """The verdict where the asked name is not even defined: what the exercise's cell raised."""
    message = f"name '{variable}' is not defined"
    if not all(o.error and o.error.message == message for o in outcomes):
        return None
    if cell_error is None:
        return lost(exercise, f"its cell does not define {variable}.")
    if cell_error.type == "NotImplementedError":
        return lost(exercise, "is not answered yet", "blank")
    return lost(exercise, f"its cell raised {cell_error.type}: {cell_error.message}")
