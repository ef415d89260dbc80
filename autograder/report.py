"""The class report: how the class did and what it misunderstood, in a terminal and as an HTML page.

Names, error messages and problems come from submissions, so they are made harmless once, where the
summary is drawn up; below that, they are only ever placed as text.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import StatisticsError, correlation, mean, median

from rich.bar import Bar
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autograder.display import one_line, templates
from autograder.graded import Graded, write_atomically
from autograder.places import Place
from autograder.verdict import Verdict

SHOWN = 8  # rows of a list before the reader has to ask for the rest
LONGEST = 300  # characters of one text from a submission
HELP = 0.5  # of the points: who has less is named among those who could use help
FEWEST = 10  # notebooks: from fewer, nothing is said about how well an exercise discriminates
WEAK = 0.1  # discrimination below which an exercise does not tell who knows the chapter


@dataclass(frozen=True)
class Kind:
    """One way in which an exercise ends: a symbol beside the colour, and words beside both."""

    symbol: str
    words: str


KINDS = {
    "correct": Kind("✓", "correct"),
    "partial": Kind("◐", "partly right"),
    "diagnosed": Kind("✗a", "wrong, diagnosed"),
    "wrong": Kind("✗", "wrong"),
    "blank": Kind("–", "not written yet"),
    "stopped": Kind("⚠", "ended its worker"),
    "ungraded": Kind("?", "not graded: the grader's failure"),
}


FORGEABLE = "† judged by asserts inside the student's own process: a submission can forge it"


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
    earned: float = 0
    points: float = 0
    notebooks: dict[str, Graded] = field(default_factory=dict)

    @property
    def score(self) -> float:
        return self.earned / self.points if self.points else 0.0

    @property
    def misconceptions(self) -> list[tuple[str, str]]:
        """(exercise, title) of each misconception that the student holds."""
        verdicts = (verdict for one in self.notebooks.values() for verdict in one.verdicts)
        return [(v.exercise, v.misconception) for v in verdicts if v.misconception]


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
    points: float
    inside: bool = False
    kinds: Counter[str] = field(default_factory=Counter)
    earned: float = 0
    misunderstandings: dict[str, Misunderstanding] = field(default_factory=dict)
    place: Place | None = None
    discrimination: float | None = None

    @property
    def difficulty(self) -> float:
        """The share of its points that the class earned: item analysis's p, 1 for the easiest."""
        return self.mean / self.points if self.points else 1.0

    @property
    def remark(self) -> str:
        """What an instructor should make of the exercise's numbers, if anything."""
        if self.discrimination is None or not 0.05 < self.difficulty < 0.95:
            return ""
        if self.discrimination < 0:
            return "the stronger students fail it: is the check right, or the text misleading?"
        return "does not tell who knows the chapter" if self.discrimination < WEAK else ""

    @property
    def mark(self) -> str:
        return " †" if self.inside else ""

    @property
    def handed_in(self) -> int:
        return self.kinds.total()

    @property
    def rate(self) -> float:
        """The share of the notebooks graded that solve the exercise."""
        return self.kinds["correct"] / (self.handed_in or 1)

    @property
    def mean(self) -> float:
        return self.earned / (self.handed_in or 1)

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
    totals: list[float] = field(default_factory=list)  # points of each notebook graded

    @property
    def points(self) -> float:
        return sum(item.points for item in self.items.values())

    @property
    def mean(self) -> float:
        return mean(self.totals) if self.totals else 0.0

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
    def scored(self) -> list[Student]:
        """Everybody but those of whom the grader failed at all that there is."""
        return [student for student in self.students if student.points]

    @property
    def mean(self) -> float:
        return mean([student.score for student in self.scored] or [0.0])

    @property
    def median(self) -> float:
        return median([student.score for student in self.scored] or [0.0])

    @property
    def endings(self) -> set[str]:
        """The keys in `KINDS` that occur."""
        notebooks = (one for student in self.students for one in student.notebooks.values())
        return {kind(verdict) for one in notebooks for verdict in one.verdicts}

    @property
    def points(self) -> float:
        return sum(chapter.points for chapter in self.chapters)

    @property
    def mean_points(self) -> float:
        return mean([student.earned for student in self.scored] or [0.0])

    @property
    def distribution(self) -> list[int]:
        """How many students score 0–10 %, 10–20 %, …, 90–100 %."""
        tenths = Counter(min(int(10 * s.earned // s.points), 9) for s in self.scored)
        return [tenths[i] for i in range(10)]

    @property
    def items(self) -> list[Item]:
        return [item for chapter in self.chapters for item in chapter.items.values()]

    @property
    def hardest(self) -> list[Item]:
        """The exercises that somebody failed, the worst first."""
        failed = (item for item in self.items if item.handed_in and item.rate < 1)
        return sorted(failed, key=lambda item: item.rate)

    @property
    def misunderstandings(self) -> list[tuple[Item, Misunderstanding]]:
        """The commonest first."""
        held = [(item, m) for item in self.items for m in item.misunderstandings.values()]
        return sorted(held, key=lambda pair: -len(pair[1].students))

    @property
    def struggling(self) -> list[Student]:
        """Who has less than `HELP` of the points, the least first."""
        return sorted((s for s in self.scored if s.score < HELP), key=lambda s: s.score)

    @property
    def needs_a_look(self) -> list[tuple[Student, str, list[str]]]:
        """(student, chapter, reasons): files with problems, and work that ended its worker."""
        return [
            (student, chapter, reasons)
            for student in self.students
            for chapter, notebook in student.notebooks.items()
            if not notebook.ungraded and (reasons := _oddities(notebook))
        ]

    @property
    def ungraded(self) -> list[tuple[Student, str, str]]:
        """(student, chapter, reason): what the grader failed at, which is no student's failure."""
        return [
            (student, chapter, next(v.problem for v in notebook.verdicts if v.status == "ungraded"))
            for student in self.students
            for chapter, notebook in student.notebooks.items()
            if notebook.ungraded
        ]


def summarize(
    graded: Iterable[Graded], places: Mapping[tuple[str, str], Place] | None = None
) -> Summary:
    """Draw up the report's numbers from the records of a class.

    places:  where the course treats an exercise, by chapter and name

    A chapter's mean and an exercise's numbers count the notebooks that were graded; in a student's
    total a notebook that was not handed in counts 0, and one that the grader failed at not at all.
    Written answers and late penalties stand in the gradebook and are not in it.
    """
    students: dict[str, Student] = {}
    chapters: dict[str, Chapter] = {}
    for record in sorted(graded, key=lambda g: (g.student.casefold(), g.student, g.chapter)):
        name = one_line(record.student)
        student = students.setdefault(record.student, Student(name, f"s{len(students) + 1}"))
        chapter = chapters.setdefault(record.chapter, Chapter(record.chapter))
        notebook = _harmless(record)
        student.notebooks[record.chapter] = notebook
        if not notebook.ungraded:
            student.earned += notebook.earned
            chapter.totals.append(notebook.earned)
        for verdict in notebook.verdicts:
            place = (places or {}).get((record.assignment, verdict.exercise))
            new = Item(
                record.chapter, verdict.exercise, verdict.points, verdict.inside, place=place
            )
            item = chapter.items.setdefault(verdict.exercise, new)
            if not notebook.ungraded:
                _count(verdict, student, item)
    summary = Summary(list(students.values()), sorted(chapters.values(), key=lambda c: c.slug))
    for student in summary.students:
        student.points = summary.points - sum(
            chapters[slug].points for slug, one in student.notebooks.items() if one.ungraded
        )
    for chapter in summary.chapters:
        rows = [s.notebooks[chapter.slug] for s in summary.students if chapter.slug in s.notebooks]
        _discriminate(chapter, [row for row in rows if not row.ungraded])
    for item in summary.items:
        commonest = sorted(item.misunderstandings.values(), key=lambda m: -len(m.students))
        item.misunderstandings = {m.title: m for m in commonest}
        for i, misunderstanding in enumerate(commonest):
            misunderstanding.letter = chr(ord("a") + i)
    return summary


def print_report(
    graded: Sequence[Graded],
    console: Console,
    places: Mapping[tuple[str, str], Place] | None = None,
) -> None:
    """Print the report; what matters most comes last, where a terminal's reader looks first."""
    summary = summarize(graded, places)
    if not summary.students:
        console.print(Text("Nothing is graded yet: there is no submission to report on."))
        return
    console.print(_gradebook(summary), _exercises(summary), _distribution(summary))
    tables = (
        (summary.misunderstandings, _misunderstandings),
        (summary.struggling, _struggling),
        (summary.needs_a_look, _needs_a_look),
        (summary.ungraded, _ungraded),
    )
    for found, table in tables:
        if found:
            console.print(table(summary))
    n, m = len(summary.students), summary.notebooks
    console.print(
        Text(
            f"{n} student{'s' * (n != 1)} · {m} notebook{'s' * (m != 1)} · "
            f"mean {summary.mean:.0%} · median {summary.median:.0%}"
        )
    )


def write_report(
    graded: Sequence[Graded],
    path: Path,
    places: Mapping[tuple[str, str], Place] | None = None,
    names: bool = True,
) -> Path:
    """Write the report as one HTML file that needs no other file, no network and no script.

    With `names=False` it can be shown to the class: nothing in it is about one student.
    """
    page = templates.get_template("report.html.j2")
    pieces = page.generate(  # of a large class, the whole page would take tens of megabytes
        summary=summarize(graded, places),
        named=names,
        kinds=KINDS,
        kind=kind,
        top=SHOWN,
        forgeable=FORGEABLE,
        few=HELP,
        fewest=FEWEST,
    )
    write_atomically(path, pieces)
    return path


def as_data(
    graded: Sequence[Graded], places: Mapping[tuple[str, str], Place] | None = None
) -> dict:
    """The report as plain data for JSON, every verdict included; docs/instructors.md describes it.

    Names and messages are as they came: who shows them makes them harmless.
    """
    summary = summarize(graded, places)
    some = bool(summary.students)
    return {
        "format": 1,
        "students": len(summary.students),
        "points": summary.points,
        "mean": summary.mean if some else None,
        "median": summary.median if some else None,
        "distribution": summary.distribution,
        "exercises": [
            {
                "chapter": item.chapter,
                "exercise": item.name,
                "points": item.points,
                "notebooks": item.handed_in,
                "endings": dict(item.shares()),
                "mean": item.mean,
                "difficulty": item.difficulty,
                "discrimination": item.discrimination,
                "place": asdict(item.place) if item.place else None,
                "misconceptions": [
                    {"title": held.title, "hint": held.hint, "students": len(held.students)}
                    for held in item.misunderstandings.values()
                ],
            }
            for item in summary.items
        ],
        "notebooks": [
            asdict(one) | {"earned": one.earned, "points": one.points, "ungraded": one.ungraded}
            for one in sorted(graded, key=lambda one: (one.chapter, one.student))
        ],
    }


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


def _discriminate(chapter: Chapter, notebooks: Sequence[Graded]) -> None:
    """Set how well each exercise tells who knows the chapter from who does not: discrimination.

    That is the correlation of its points with those of the rest of the chapter (the corrected
    item-total correlation; for an exercise that is all or nothing, the point-biserial one).
    """
    if len(notebooks) < FEWEST:
        return
    for item in chapter.items.values():
        own = [sum(v.earned for v in n.verdicts if v.exercise == item.name) for n in notebooks]
        rest = [n.earned - points for n, points in zip(notebooks, own, strict=True)]
        with suppress(StatisticsError):  # everybody earned the same
            item.discrimination = correlation(own, rest)


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
        footer = f"{chapter.mean:.{decimals}f}\n{chapter.points:g}"
        table.add_column(Text(title), Text(footer), justify="right", no_wrap=True)
    footer = f"{summary.mean_points:.{decimals}f}\n{summary.points:g}"
    table.add_column("total", Text(footer), justify="right", no_wrap=True)
    table.add_column("score", Text(f"{summary.mean:.0%}"), justify="right", no_wrap=True)
    for student in summary.students:
        notebooks = (student.notebooks.get(chapter.slug) for chapter in summary.chapters)
        table.add_row(
            Text(student.name, no_wrap=True, overflow="ellipsis"),
            *(Text(_points(notebook)) for notebook in notebooks),
            Text(f"{student.earned:g}"),
            Text(f"{student.score:.0%}"),
        )
    return table


def _points(notebook: Graded | None) -> str:
    if notebook is None:
        return "–"
    return "?" if notebook.ungraded else f"{notebook.earned:g}"


def _exercises(summary: Summary) -> Table:
    table = _table("Exercises")
    table.add_column("chapter")
    table.add_column("exercise", overflow="fold")
    table.add_column("solved", justify="right")
    table.add_column("")
    table.add_column("mean", justify="right")
    discriminates = any(item.discrimination is not None for item in summary.items)
    if discriminates:
        table.add_column("tells", justify="right")
    for chapter in summary.chapters:
        for i, item in enumerate(chapter.items.values()):
            row = [
                Text(chapter.slug if i == 0 else ""),
                Text(item.name + item.mark),
                Text(f"{item.kinds['correct']}/{item.handed_in}"),
                Bar(1, 0, item.rate, width=10),
                Text(f"{item.mean:.1f}/{item.points:g}"),
            ]
            if discriminates:
                told = item.discrimination
                style = "bold" if item.remark else ""
                row.append(Text("–" if told is None else f"{told:+.2f}", style=style))
            table.add_row(*row)
        table.add_section()
    notes = []
    if any(item.inside for item in summary.items):
        notes.append(FORGEABLE)
    if discriminates:
        notes.append("tells: correlation with the rest of the chapter (item-total, corrected)")
    table.caption = "\n".join(notes) or None
    return table


def _distribution(summary: Summary) -> Table:
    table = _table("Students by score")
    table.add_column("% of the points", justify="right")
    table.add_column("students", justify="right")
    table.add_column("")
    most = max(summary.distribution)
    for tenth, count in enumerate(summary.distribution):
        share = Text(f"{10 * tenth}–{10 * tenth + 10}")
        table.add_row(share, Text(str(count or "")), Bar(most, 0, count, width=30))
    return table


def _misunderstandings(summary: Summary) -> Table:
    found = summary.misunderstandings
    table = _table("Commonest misconceptions", found)
    table.add_column("students", justify="right")
    table.add_column("exercise", overflow="fold")
    table.add_column("misconception", overflow="fold")
    treated = any(item.place for item, _ in found[:SHOWN])
    if treated:
        table.add_column("treated in", overflow="fold")
    for item, held in found[:SHOWN]:
        row = [Text(str(len(held.students))), Text(item.name), Text(held.title)]
        table.add_row(*row, *[Text(item.place.lines if item.place else "")] * treated)
    return table


def _struggling(summary: Summary) -> Table:
    found = summary.struggling
    table = _table(f"Could use help: less than {HELP:.0%} of the points", found)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("student", overflow="fold")
    table.add_column("not handed in", overflow="fold")
    table.add_column("misconceptions", overflow="fold")
    for student in found[:SHOWN]:
        missing = [c.slug for c in summary.chapters if c.slug not in student.notebooks]
        held = [f"{exercise}: {title}" for exercise, title in student.misconceptions[:2]]
        more = len(student.misconceptions) - len(held)
        table.add_row(
            Text(f"{student.score:.0%}"),
            Text(student.name),
            Text(", ".join(missing)),
            Text("\n".join([*held, f"and {more} more"] if more else held)),
        )
    return table


def _ungraded(summary: Summary) -> Table:
    found = summary.ungraded
    table = _table("Not graded: the grader failed, not the student", found)
    table.add_column("student", overflow="fold")
    table.add_column("chapter")
    table.add_column("what happened", overflow="fold")
    for student, chapter, reason in found[:SHOWN]:
        table.add_row(Text(student.name), Text(chapter), Text(reason))
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
