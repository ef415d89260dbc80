"""The demo: a real model answers, and a class whose every score is known in advance is graded."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from autograder.course import chapters
from autograder.demo.synthetic import Synthetic, make_class, write_class
from autograder.graded import Graded

QUESTION = "What is the capital of France?"
MISTAKEN = 3  # students of a chapter; all its misconceptions would fill a dozen or more


def run(course: Path, console: Console) -> int:
    """Answer a question with SmolLM2, then grade a class in build/demo from scratch.

    Returns in how many ways grades differ from what the submissions were built to score. Raises
    LookupError, AssetError, BuildError or SandboxUnavailable, with a sentence for the user.
    """
    if not chapters(course):
        raise LookupError(
            f"There is no chapter in {course / 'solutions'}: name the course's folder."
        )

    from autograder.display import grading_progress
    from autograder.grade import grade_class
    from autograder.places import find_places
    from autograder.report import write_report
    from autograder.sandbox import Limits

    answer_question(console)
    target = course / "build" / "demo"
    students = make_class(course, MISTAKEN)
    write_class(course, target, students)
    console.print(f"\nA class of {len(students)} submissions is in {target}.", highlight=False)

    start = time.perf_counter()
    limits = Limits(wall_per_cell=3)  # the honest cells take milliseconds
    with grading_progress(console) as progress:
        graded = grade_class(target, limits=limits, progress=progress)
    seconds = time.perf_counter() - start
    scores = gradebook_scores(target)
    console.print(gradebook_table(students, scores))

    differences = [*compare(students, graded), *compare_scores(students, scores)]
    for difference in differences:
        console.print(f"✗ {difference}", style="red", markup=False, highlight=False)
    console.print(
        f"{len(graded)} submissions graded in {seconds:.0f} s; "
        f"{'none differs' if not differences else f'{len(differences)} differences'} "
        "from what they were built to score.",
        highlight=False,
    )
    report = write_report(graded, target / "report.html", find_places(course))
    console.print(f"Report: {report}", markup=False)
    return len(differences)


def answer_question(console: Console) -> None:
    """SmolLM2 answers, token by token; what the course downloads is fetched the first time."""
    from llmkit.__main__ import generate
    from llmkit.assets import fetch

    fetch("shakespeare")
    console.print(f'$ python -m llmkit generate "{QUESTION}"', style="bold", highlight=False)
    generate(QUESTION)


def gradebook_scores(course: Path) -> dict[tuple[str, str], float]:
    """What stands in nbgrader's gradebook: (student, chapter) -> points."""
    from autograder.gradebook import open_gradebook

    with open_gradebook(f"sqlite:///{course.resolve() / 'gradebook.db'}") as gradebook:
        return {
            (submission.student_id, assignment.name): submission.score
            for assignment in gradebook.assignments
            for submission in gradebook.assignment_submissions(assignment.name)
        }


def compare(expected: Iterable[Synthetic], graded: Iterable[Graded]) -> list[str]:
    """A line for each exercise whose points or diagnosis are not what they were built to be."""
    records = {(one.student, one.chapter): one for one in graded}
    lines: list[str] = []
    for one in expected:
        record = records.pop((one.student, one.chapter), None)
        if record is None:
            lines.append(f"{one.student} · {one.chapter}: was not graded")
        else:
            lines += (f"{one.student} · {one.chapter}: {line}" for line in _compare(one, record))
    return lines + [f"{student} · {chapter}: nobody built it" for student, chapter in records]


def compare_scores(
    expected: Iterable[Synthetic], scores: dict[tuple[str, str], float]
) -> list[str]:
    """A line for each submission whose score in the gradebook is not what it was built to be."""
    return [
        f"{one.student} · {one.chapter}: the gradebook holds {_score(one, scores)}, "
        f"was built to score {one.points}"
        for one in expected
        if scores.get((one.student, one.chapter)) != one.points
    ]


def gradebook_table(expected: Iterable[Synthetic], scores: dict[tuple[str, str], float]) -> Table:
    """The gradebook beside what each submission was built to score."""
    table = Table("student", "chapter", title="Gradebook")
    for heading in ("expected", "actual"):
        table.add_column(heading, justify="right")
    table.add_column()
    for one in expected:
        agrees = scores.get((one.student, one.chapter)) == one.points
        mark = "[green]✓[/green]" if agrees else "[red]✗[/red]"
        table.add_row(one.student, one.chapter, str(one.points), _score(one, scores), mark)
    return table


def _score(one: Synthetic, scores: dict[tuple[str, str], float]) -> str:
    score = scores.get((one.student, one.chapter))
    return "nothing" if score is None else f"{score:g}"


def _compare(one: Synthetic, record: Graded) -> Iterator[str]:
    verdicts = {verdict.exercise: verdict for verdict in record.verdicts}
    for exercise, points in one.expected.items():
        verdict = verdicts.get(exercise)
        if verdict is None:
            yield f"{exercise} has no verdict"
        elif verdict.earned != points:
            why = f": {verdict.problem}" if verdict.problem else ""
            yield f"{exercise} earned {verdict.earned}, was built to earn {points}{why}"
        elif verdict.misconception != one.diagnosis.get(exercise, verdict.misconception):
            yield (
                f"{exercise} was diagnosed {verdict.misconception!r}, "
                f"was built with {one.diagnosis[exercise]!r}"
            )
