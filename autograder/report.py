"""The class report: how the class did and what it misunderstood, in a terminal and as an HTML page.

Names, error messages and problems come from submissions, so they are made harmless once, where the
summary is drawn up; below that, they are only ever placed as text.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median

from rich.bar import Bar
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autograder.display import templates
from autograder.graded import Graded, write_atomically
from autograder.verdict import Verdict

SHOWN = 8  # rows of a list before the reader has to ask for the rest
LONGEST = 300  # characters of one text from a submission


@dataclass(frozen=True)
class Kind:
    """One way in which an exercise ends: a symbol beside the colour, and words beside both."""

    symbol: str
    words: str


KINDS = {
    "correct": Kind("✓", "correct"),
    "diagnosed": Kind("✗a", "wrong, diagnosed"),
    "wrong": Kind("✗", "wrong"),
    "blank": Kind("–", "not written yet"),
    "stopped": Kind("⚠", "ended its worker"),
}


def kind(verdict: Verdict) -> str:
    """The key in `KINDS` of a verdict."""
    return "diagnosed" if verdict.misconception else verdict.status


@dataclass
class Student:
    """One student: `notebooks` by chapter; a chapter that was not handed in is missing in it.

    points: of every chapter in the report, handed in or not
    """

    name: str
    anchor: str
    earned: int = 0
    points: int = 0
    notebooks: dict[str, Graded] = field(default_factory=dict)

    @property
    def score(self) -> float:
        return self.earned / self.points if self.points else 0.0


@dataclass
class Misunderstanding:
    """A misconception and who holds it; `letter` names it within its exercise."""

    title: str
    hint: str
    students: list[Student] = field(default_factory=list)
    letter: str = ""


@dataclass
class Item:
    """One exercise over the class: how often it ended in each of `KINDS`."""

    chapter: str
    name: str
    points: int
    kinds: Counter[str] = field(default_factory=Counter)
    earned: int = 0
    misunderstandings: dict[str, Misunderstanding] = field(default_factory=dict)

    @property
    def handed_in(self) -> int:
        return self.kinds.total()

    @property
    def rate(self) -> float:
        """The share of the notebooks handed in that solve the exercise."""
        return self.kinds["correct"] / self.handed_in

    @property
    def mean(self) -> float:
        return self.earned / self.handed_in

    @property
    def description(self) -> str:
        """The bar in words: "31 correct, 5 not written yet"."""
        return ", ".join(f"{n} {KINDS[k].words}" for k, n in self.shares())

    def shares(self) -> list[tuple[str, int]]:
        return [(name, self.kinds[name]) for name in KINDS if self.kinds[name]]


@dataclass
class Chapter:
    """One chapter over the class: its exercises by name, in the chapter's order."""

    slug: str
    items: dict[str, Item] = field(default_factory=dict)
    totals: list[int] = field(default_factory=list)  # points of each notebook handed in

    @property
    def points(self) -> int:
        return sum(item.points for item in self.items.values())

    @property
    def mean(self) -> float:
        return mean(self.totals)

    def row(self, notebook: Graded) -> list[Verdict | None]:
        """The notebook's verdicts in the order of `items`; None where it has none."""
        verdicts = {verdict.exercise: verdict for verdict in notebook.verdicts}
        return [verdicts.get(name) for name in self.items]


@dataclass
class Summary:
    """All that the report shows, for the terminal and the page alike."""

    students: list[Student]
    chapters: list[Chapter]

    @property
    def notebooks(self) -> int:
        return sum(len(student.notebooks) for student in self.students)

    @property
    def mean(self) -> float:
        return mean(student.score for student in self.students)

    @property
    def median(self) -> float:
        return median(student.score for student in self.students)

    @property
    def points(self) -> int:
        return sum(chapter.points for chapter in self.chapters)

    @property
    def mean_points(self) -> float:
        return mean(student.earned for student in self.students)

    @property
    def distribution(self) -> list[int]:
        """How many students score 0–10 %, 10–20 %, …, 90–100 %."""
        tenths = Counter(min(10 * s.earned // (s.points or 1), 9) for s in self.students)
        return [tenths[i] for i in range(10)]

    @property
    def items(self) -> list[Item]:
        return [item for chapter in self.chapters for item in chapter.items.values()]

    @property
    def hardest(self) -> list[Item]:
        """The exercises that somebody failed, the worst first."""
        return sorted((item for item in self.items if item.rate < 1), key=lambda item: item.rate)

    @property
    def misunderstandings(self) -> list[tuple[Item, Misunderstanding]]:
        """The commonest first."""
        held = [(item, m) for item in self.items for m in item.misunderstandings.values()]
        return sorted(held, key=lambda pair: -len(pair[1].students))

    @property
    def needs_a_look(self) -> list[tuple[Student, str, list[str]]]:
        """(student, chapter, reasons): files with problems, and work that ended its worker."""
        return [
            (student, chapter, reasons)
            for student in self.students
            for chapter, notebook in student.notebooks.items()
            if (reasons := _oddities(notebook))
        ]


def summarize(graded: Iterable[Graded]) -> Summary:
    """Draw up the report's numbers from the records of a class.

    A chapter's mean and an exercise's rate count the notebooks handed in; in a student's total a
    notebook that was not handed in counts 0. Written answers are graded by hand and not in it.
    """
    students: dict[str, Student] = {}
    chapters: dict[str, Chapter] = {}
    for record in sorted(graded, key=lambda g: (g.student.casefold(), g.student, g.chapter)):
        name = one_line(record.student)
        student = students.setdefault(record.student, Student(name, f"s{len(students) + 1}"))
        chapter = chapters.setdefault(record.chapter, Chapter(record.chapter))
        notebook = _harmless(record)
        student.notebooks[record.chapter] = notebook
        student.earned += notebook.earned
        chapter.totals.append(notebook.earned)
        for verdict in notebook.verdicts:
            new = Item(record.chapter, verdict.exercise, verdict.points)
            _count(verdict, student, chapter.items.setdefault(verdict.exercise, new))
    summary = Summary(list(students.values()), sorted(chapters.values(), key=lambda c: c.slug))
    for student in summary.students:
        student.points = summary.points
    for item in summary.items:
        commonest = sorted(item.misunderstandings.values(), key=lambda m: -len(m.students))
        item.misunderstandings = {m.title: m for m in commonest}
        for i, misunderstanding in enumerate(commonest):
            misunderstanding.letter = chr(ord("a") + i)
    return summary


def print_report(graded: Sequence[Graded], console: Console) -> None:
    """Print the report; what matters most comes last, where a terminal's reader looks first."""
    summary = summarize(graded)
    if not summary.students:
        console.print(Text("Nothing is graded yet: there is no submission to report on."))
        return
    console.print(_gradebook(summary), _exercises(summary))
    if summary.misunderstandings:
        console.print(_misunderstandings(summary))
    if summary.needs_a_look:
        console.print(_needs_a_look(summary))
    n, m = len(summary.students), summary.notebooks
    console.print(
        Text(
            f"{n} student{'s' * (n != 1)} · {m} notebook{'s' * (m != 1)} · "
            f"mean {summary.mean:.0%} · median {summary.median:.0%}"
        )
    )


def write_report(graded: Sequence[Graded], path: Path) -> Path:
    """Write the report as one HTML file that needs no other file, no network and no script."""
    page = templates.get_template("report.html.j2")
    write_atomically(
        path, page.render(summary=summarize(graded), kinds=KINDS, kind=kind, top=SHOWN)
    )
    return path


def one_line(text: str) -> str:
    """`text` as one line that no terminal obeys and that cannot turn its neighbours around.

    Control, bidirectional and other invisible characters are replaced by �.
    """
    line = " ".join(text.split())
    return line if line.isprintable() else "".join(c if c.isprintable() else "�" for c in line)


def _harmless(record: Graded) -> Graded:
    return replace(
        record,
        verdicts=tuple(
            v if v.correct else replace(v, case=_short(v.case), problem=_short(v.problem))
            for v in record.verdicts
        ),
        problems=tuple(_short(problem) for problem in record.problems),
    )


def _short(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def _count(verdict: Verdict, student: Student, item: Item) -> None:
    item.kinds[kind(verdict)] += 1
    item.earned += verdict.earned
    if title := verdict.misconception:
        held = item.misunderstandings.setdefault(title, Misunderstanding(title, verdict.hint))
        held.students.append(student)


def _oddities(notebook: Graded) -> list[str]:
    stopped = [v for v in notebook.verdicts if v.status == "stopped"]
    return [*notebook.problems, *(f"{v.exercise}: {v.problem}" for v in stopped)]


def _table(title: str, found: Sequence = ()) -> Table:
    """A table with a title, and a last line that says how many of `found` it leaves out."""
    left_out = f"and {len(found) - SHOWN} more in the HTML report" if len(found) > SHOWN else None
    return Table(
        title=title,
        caption=left_out,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        collapse_padding=True,
    )


def _gradebook(summary: Summary) -> Table:
    table = _table("Gradebook")
    table.show_footer = True
    table.add_column("student", Text("mean\nout of"))
    # Many chapters share the line, so each gets its number only. Names give way, numbers do not.
    few = len(summary.chapters) <= 4
    decimals = 1 if few else 0
    for chapter in summary.chapters:
        title = chapter.slug if few else chapter.slug.partition("-")[0]
        footer = f"{chapter.mean:.{decimals}f}\n{chapter.points}"
        table.add_column(Text(title), Text(footer), justify="right", no_wrap=True)
    footer = f"{summary.mean_points:.{decimals}f}\n{summary.points}"
    table.add_column("total", Text(footer), justify="right", no_wrap=True)
    table.add_column("score", Text(f"{summary.mean:.0%}"), justify="right", no_wrap=True)
    for student in summary.students:
        notebooks = (student.notebooks.get(chapter.slug) for chapter in summary.chapters)
        table.add_row(
            Text(student.name, no_wrap=True, overflow="ellipsis"),
            *(Text(str(notebook.earned) if notebook else "–") for notebook in notebooks),
            Text(str(student.earned)),
            Text(f"{student.score:.0%}"),
        )
    return table


def _exercises(summary: Summary) -> Table:
    table = _table("Exercises")
    table.add_column("chapter")
    table.add_column("exercise", overflow="fold")
    table.add_column("solved", justify="right")
    table.add_column("")
    table.add_column("mean", justify="right")
    for chapter in summary.chapters:
        for i, item in enumerate(chapter.items.values()):
            table.add_row(
                Text(chapter.slug if i == 0 else ""),
                Text(item.name),
                Text(f"{item.kinds['correct']}/{item.handed_in}"),
                Bar(1, 0, item.rate, width=10),
                Text(f"{item.mean:.1f}/{item.points}"),
            )
        table.add_section()
    return table


def _misunderstandings(summary: Summary) -> Table:
    found = summary.misunderstandings
    table = _table("Commonest misconceptions", found)
    table.add_column("students", justify="right")
    table.add_column("exercise", overflow="fold")
    table.add_column("misconception", overflow="fold")
    for item, held in found[:SHOWN]:
        table.add_row(Text(str(len(held.students))), Text(item.name), Text(held.title))
    return table


def _needs_a_look(summary: Summary) -> Table:
    found = summary.needs_a_look
    table = _table("Worth a look", found)
    table.add_column("student", overflow="fold")
    table.add_column("chapter")
    table.add_column("what happened", overflow="fold")
    for student, chapter, reasons in found[:SHOWN]:
        table.add_row(Text(student.name), Text(chapter), Text("\n".join(reasons)))
    return table
