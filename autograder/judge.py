"""One submission, judged: its cells run in the sandbox, its outcomes are compared out here.

The judge is trusted and runs nothing of the student's. What it gets from a worker is plain data.
"""

import time

from autograder.check import Check, Exercise
from autograder.course import allowed_modules, checks_of
from autograder.inside.outcome import Error, Outcome
from autograder.sandbox import Sandbox, Worker, WorkerDied
from autograder.submission import Submission
from autograder.verdict import Verdict, judge, lost

# What a notebook imports from us: in grading the judge asks, so the calls answer nothing.
STUB = {"autograder/__init__.py": "def check(*_): ...\n\n\ncheck_answer = check\n"}


def judge_submission(
    sandbox: Sandbox, chapter: str, submission: Submission, seed: str, hidden: bool = True
) -> list[Verdict]:
    """The verdicts on a chapter's exercises, in the chapter's order.

    The cells run from top to bottom, and each exercise is judged at its place, as in the notebook.
    A step that ends the worker costs its own exercise: a fresh worker runs the steps before it
    again, leaves it out, and goes on behind it. With `hidden` no verdict holds a case's values.
    """
    exercises = checks_of(chapter)
    verdicts = {
        name: lost(exercise, submission.missing[name])
        for name, exercise in exercises.items()
        if name in submission.missing
    }
    deadly: set[int] = set()
    deadline = time.monotonic() + sandbox.limits.wall_per_submission
    while time.monotonic() < deadline:
        errors: dict[str, Error] = {}  # what the exercises' own cells raised
        place = 0
        try:
            with sandbox.worker(allowed_modules(chapter) | STUB) as worker:
                for place, step in enumerate(submission.steps):
                    if place in deadly or (step.kind == "check" and step.exercise in verdicts):
                        continue
                    if step.kind == "check":
                        exercise = exercises[step.exercise]
                        outcomes = _outcomes(worker, exercise, step.variable, seed)
                        verdicts[exercise.name] = _undefined(
                            exercise, outcomes, step.variable, errors.get(exercise.name)
                        ) or judge(exercise, outcomes, seed, hidden)
                    elif error := worker.run(step.source).error:
                        errors[step.exercise] = error
            break
        except WorkerDied as died:
            deadly.add(place)
            if exercise := exercises.get(submission.steps[place].exercise):
                verdicts[exercise.name] = lost(exercise, f"{died.reason}.", "stopped")
    allowed = sandbox.limits.wall_per_submission
    spent = f"was not reached: the submission ran longer than {allowed:g} s."
    return [
        verdicts.get(name) or lost(exercise, spent, "stopped")
        for name, exercise in exercises.items()
    ]


def _outcomes(worker: Worker, exercise: Exercise, variable: str, seed: str) -> list[Outcome]:
    if isinstance(exercise, Check):
        return worker.calls(variable, [(c.args, c.kwargs) for c in exercise.draw(seed)])
    return [worker.get(variable)]


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
