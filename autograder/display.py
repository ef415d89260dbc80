"""A verdict as people read it: HTML in a notebook, plain text in a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jinja2 import Environment, PackageLoader
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from autograder.verdict import Verdict

# Autoescaping: text from a submission reaches a page as text.
templates = Environment(
    loader=PackageLoader("autograder"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


def as_text(verdict: Verdict) -> str:
    """The verdict in plain words, a fact a line."""
    name = verdict.exercise
    if verdict.correct:
        counted = f" — {verdict.passed} of {verdict.cases} cases pass" if verdict.cases > 1 else ""
        points = f"{verdict.points} point{'' if verdict.points == 1 else 's'}"
        return f"✓ {name}{counted} ({points})"
    lines = [f"✗ {name} {verdict.problem}" if not verdict.case else f"✗ {name}"]
    if verdict.case:
        lines.append(f"  {verdict.passed} of {verdict.cases} cases pass; the first that fails:")
        lines.append(f"    {verdict.case}")
        lines.append(f"    {verdict.problem}")
    lines += [f"    {line}" for line in verdict.detail.splitlines()]
    if verdict.misconception:
        lines.append(f"  Diagnosis: {verdict.misconception}")
        lines.append(f"  Ask yourself: {verdict.hint}")
    return printable("\n".join(lines))


def as_html(verdict: Verdict) -> str:
    """The verdict as one self-contained HTML card, readable in light and dark themes."""
    return printable(templates.get_template("verdict.html.j2").render(verdict=verdict))


def show(verdict: Verdict) -> None:
    """Show the verdict where the caller reads: as a card in Jupyter, as text elsewhere."""
    if "ipykernel" in sys.modules:
        from IPython.display import display

        display(
            {"text/plain": as_text(verdict), "text/html": as_html(verdict)},
            raw=True,
        )
    else:
        print(as_text(verdict))


@contextmanager
def grading_progress(console: Console) -> Iterator[Callable[[object, int, int], None]]:
    """A progress bar for `grade_class`: call the result with (record, done, total).

    It begins with the first record: its thread must not run yet when grading processes are forked.
    """
    columns = TextColumn("grading"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task("", total=None)

    def show(graded: object, done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    if console.is_terminal:
        console.print("starting the sandbox …", end="\r")
    try:
        yield show
    finally:
        bar.stop()


def printable(text: str) -> str:
    """`text` without what a terminal obeys, turns its neighbours around or cannot be stored.

    Control, bidirectional and other invisible characters and lone surrogates become �; line
    breaks and tabs stay.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)
