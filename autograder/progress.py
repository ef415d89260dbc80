"""How far a student has come, as the notebooks that they have saved say.

A check that passed has left its verdict under its cell. That is the student's own evidence, no
grade: nothing is run, and nothing here believes more than it reads.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from rich.progress_bar import ProgressBar
from rich.table import Table

from autograder.course import CHAPTERS, graded_call
from autograder.display import one_line, templates
from autograder.outline import MINUTES

PARTLY = re.compile(r"\(([\d.]+) of [\d.]+ points?\)$")


@dataclass(frozen=True)
class Task:
    """One exercise in a saved notebook; `earned` is what its last saved check says."""

    name: str
    points: float
    earned: float
    minutes: int

    @property
    def solved(self) -> bool:
        return self.earned == self.points


@dataclass(frozen=True)
class Standing:
    """One chapter, as its notebook was saved. `title` is its heading, "01 · N-grams"."""

    chapter: str
    title: str
    tasks: tuple[Task, ...]

    @property
    def solved(self) -> int:
        return sum(task.solved for task in self.tasks)

    @property
    def points(self) -> float:
        return sum(task.points for task in self.tasks)

    @property
    def earned(self) -> float:
        return sum(task.earned for task in self.tasks)

    @property
    def next(self) -> Task | None:
        """The first exercise that is not solved yet."""
        return next((task for task in self.tasks if not task.solved), None)


def standings(folder: Path) -> list[Standing]:
    """The chapters whose notebooks are in `folder`, in order: notebooks/02-losses/02-losses.ipynb.

    Raises LookupError if there is none, RuntimeError for a file that is no notebook.
    """
    found = []
    for chapter in CHAPTERS:
        path = folder / chapter.slug / f"{chapter.slug}.ipynb"
        if not path.is_file():
            continue
        try:
            notebook = nbformat.read(path, as_version=4)
        except (OSError, ValueError, AttributeError) as error:
            raise RuntimeError(f"{path} cannot be read as a notebook: {error}") from None
        found.append(Standing(chapter.slug, _title(notebook), tuple(_tasks(notebook))))
    if not found:
        raise LookupError(f"There is no chapter in {folder}: name the folder of your notebooks.")
    return found


def _title(notebook: NotebookNode) -> str:
    headings = (cell.source for cell in notebook.cells if cell.source.startswith("# "))
    heading, *_ = re.split(r"[:\n]", next(headings, "").removeprefix("# "))
    return one_line(heading)


def _tasks(notebook: NotebookNode) -> Iterable[Task]:
    minutes = 0
    for cell in notebook.cells:
        if said := MINUTES.search(cell.source):
            minutes = int(said[1])
        call = graded_call(cell.source) if cell.cell_type == "code" else None
        points = cell.metadata.get("nbgrader", {}).get("points")
        if call and points:
            yield Task(call[0], points, _earned(cell, call[0], points), minutes)
            minutes = 0  # a question says none


def _earned(cell: NotebookNode, name: str, points: float) -> float:
    for output in cell.get("outputs", ()):
        text = output.get("data", {}).get("text/plain", output.get("text", ""))
        first = "".join(text).partition("\n")[0]
        if first.startswith(f"✓ {name}"):
            return points
        if first.startswith(f"◐ {name}") and (partly := PARTLY.search(first)):
            return min(float(partly[1]), points)
    return 0


def what_next(standings: Iterable[Standing]) -> str:
    """What to do next, in a sentence: the first open exercise after the last one solved."""
    standings = list(standings)
    begun = [i for i, one in enumerate(standings) if one.earned]
    after = standings[begun[-1] :] if begun else standings
    for one in (*after, *standings):
        if task := one.next:
            time = f", about {task.minutes} minutes" if task.minutes else ""
            return f"Next: {task.name} in {one.chapter}{time}."
    return "Every exercise is solved."


def as_table(standings: Iterable[Standing]) -> Table:
    """A line for each chapter, and the sums below."""
    standings = list(standings)
    sums = Standing("", "all", tuple(task for one in standings for task in one.tasks))
    table = Table(box=None, show_footer=True, pad_edge=False)
    columns = zip(
        ("chapter", "solved", "points", ""), (sums.title, *_counts(sums), ""), strict=True
    )
    for place, (name, footer) in enumerate(columns):
        justify = "right" if name in ("solved", "points") else "left"
        table.add_column(name, footer, justify=justify, footer_style="bold", no_wrap=place > 0)
    for one in standings:
        bar = ProgressBar(total=one.points, completed=one.earned, width=20)
        table.add_row(one.title, *_counts(one), bar)
    return table


def _counts(one: Standing) -> tuple[str, str]:
    return f"{one.solved} of {len(one.tasks)}", f"{one.earned:g} of {one.points:g}"


def as_page(standings: Iterable[Standing]) -> str:
    """The same as one self-contained HTML page, readable in light and dark."""
    standings = list(standings)
    return templates.get_template("progress.html.j2").render(
        standings=standings,
        next=what_next(standings),
        earned=sum(one.earned for one in standings),
        points=sum(one.points for one in standings),
    )
