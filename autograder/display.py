"""A verdict as people read it: HTML in a notebook, plain text in a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jinja2 import Environment, PackageLoader
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from autograder.verdict import Verdict, pointed

# Autoescaping: text from a submission reaches a page as text.
templates = Environment(
    loader=PackageLoader("autograder"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)

# A check's verdict cannot be forged: it comes from outside of the process that the student owns.
INSIDE = "Judged by asserts inside the student's own process."


def as_text(verdict: Verdict) -> str:
    """The verdict in plain words, a fact a line."""
    name = verdict.exercise
    if verdict.correct:
        counted = f" — {verdict.passed} of {verdict.cases} cases pass" if verdict.cases > 1 else ""
        return f"✓ {name}{counted} ({pointed(verdict.points)})" + (f"\n  {INSIDE}" * verdict.inside)
    mark = "◐" if verdict.earned else "✗"
    lines = [f"{mark} {name} {verdict.problem}" if not verdict.case else f"{mark} {name}"]
    if verdict.earned:
        lines[0] += f" ({verdict.earned:g} of {pointed(verdict.points)})"
    for part in verdict.parts:
        lines.append(f"  {'✓' if part.earned else '✗'} {part.title} ({pointed(part.points)})")
    if verdict.cases:
        lines.append(f"  {verdict.passed} of {verdict.cases} cases pass; the first that fails:")
    if verdict.case:
        lines.append(f"    {verdict.case}")
        lines.append(f"    {verdict.problem}")
    lines += [f"    {line}" for line in verdict.detail.splitlines()]
    if verdict.misconception:
        lines.append(f"  Diagnosis: {verdict.misconception}")
        lines.append(f"  Ask yourself: {verdict.hint}")
    if verdict.inside:
        lines.append(f"  {INSIDE}")
    return printable("\n".join(lines))


def as_html(verdict: Verdict) -> str:
    """The verdict as one self-contained HTML card, readable in light and dark themes."""
    page = templates.get_template("verdict.html.j2")
    return printable(page.render(verdict=verdict, inside=INSIDE, pointed=pointed))


def as_change(before: Verdict | None, after: Verdict) -> str:
    """What a new grade changes of an exercise: "entropy: 2 of 2 → 0 of 2, wrong"."""
    was = f"{before.earned:g} of {before.points:g}" if before else "not there"
    same = before and (before.earned, before.points) == (after.earned, after.points)
    now = f"{after.earned:g} of {after.points:g}"
    ending = f"{before.status} → {after.status}" if same else f"{was} → {now}, {after.status}"
    return f"{after.exercise}: {ending}"


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
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)


def one_line(text: str) -> str:
    """`text` as one line that no terminal obeys and that cannot turn its neighbours around.

    Control, bidirectional and other invisible characters are replaced by �.
    """
    line = " ".join(text.split())
    return line if line.isprintable() else "".join(c if c.isprintable() else "�" for c in line)
