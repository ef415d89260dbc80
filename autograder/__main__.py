"""The command line: `autograder build | outline | check | grade | report | feedback | export | …`.

Exit codes: 0 done; 1 not done, with a sentence on stderr; 2 a wrong option or argument; 3 graded,
but for notebooks at which the grader itself failed; 130 interrupted.
"""

import json
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from autograder.graded import Graded
    from autograder.sandbox import Limits

app = typer.Typer(
    help="Build the course's notebooks, and grade them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
out = Console()
err = Console(stderr=True)

Course = Annotated[
    Path,
    typer.Option(
        "--course", "-C", exists=True, file_okay=False, help="The course's folder, with solutions/."
    ),
]
ChapterArgument = Annotated[
    str | None, typer.Argument(metavar="CHAPTER", help="Only this chapter: 02-losses.")
]
Jobs = Annotated[
    int | None, typer.Option("--jobs", "-j", min=1, help="Processes (default: one per core).")
]
Db = Annotated[
    str | None, typer.Option("--db", help="The gradebook's URL (default: gradebook.db).")
]
Html = Annotated[Path | None, typer.Option("--html", help="Where the page goes.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and no page.")]


@app.command()
def build(
    course: Course = Path("."),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if notebooks/ is out of date.")
    ] = False,
) -> None:
    """Build the instructor's and the students' notebooks from the sources."""
    from autograder.build import build

    stale = build(course, check=check)
    for path in stale:
        out.print(f"{'out of date' if check else 'built'}: {path}", markup=False)
    if check and stale:
        err.print("Run `autograder build` and commit the result.")
        raise typer.Exit(1)
    if not stale:
        out.print("All notebooks are up to date.")


@app.command()
def execute(
    chapters: Annotated[list[str] | None, typer.Argument(help="Only these: 02-losses …")] = None,
    course: Course = Path("."),
) -> None:
    """Run chapters from top to bottom, demos too; the result goes to build/executed/."""
    from autograder.build import execute
    from autograder.course import chapters as existing
    from autograder.course import find_chapter

    for chapter in [find_chapter(c) for c in chapters or ()] or existing(course):
        seconds = execute(course.resolve(), chapter)
        out.print(f"{chapter.slug}: {seconds:.0f} s", highlight=False)


@app.command()
def slides(
    chapters: Annotated[list[str] | None, typer.Argument(help="Only these: 02-losses …")] = None,
    course: Course = Path("."),
) -> None:
    """Write chapters as slides, with outputs and solutions, into build/slides/."""
    from autograder.course import chapters as existing
    from autograder.course import find_chapter
    from autograder.slides import write_slides

    folder = course.resolve() / "build" / "slides"
    for chapter in [find_chapter(c) for c in chapters or ()] or existing(course):
        out.print(str(write_slides(course.resolve(), chapter, folder)), highlight=False)


@app.command()
def outline(course: Course = Path(".")) -> None:
    """Count what each chapter holds: exercises, points, misconceptions, minutes."""
    from autograder.course import chapters
    from autograder.outline import as_table, outline

    found = [outline(course, chapter) for chapter in chapters(course)]
    if not found:
        raise LookupError(f"There is no chapter in {course.resolve()}.")
    out.print(as_table(found))


@app.command()
def check(
    notebook: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    chapter: Annotated[str, typer.Option(help="If the file's name does not tell it.")] = "",
    no_sandbox: Annotated[
        bool,
        typer.Option(
            "--no-sandbox",
            help="Run the notebook as an ordinary program: only for a notebook of your own.",
        ),
    ] = False,
) -> None:
    """Score one notebook, as it would be graded but on the practice cases. Writes no gradebook."""
    from autograder.display import as_text
    from autograder.selfcheck import check_notebook

    graded = check_notebook(notebook, chapter, trusted=no_sandbox)
    for verdict in graded.verdicts:
        out.print(as_text(verdict), markup=False, highlight=False)
    for problem in graded.problems:
        out.print(f"! {problem}", markup=False, highlight=False)
    out.print(f"{graded.earned} of {graded.points} points", style="bold", highlight=False)
    raise typer.Exit(0 if graded.earned == graded.points else 1)


Notebooks = Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the chapters are.")]


@app.command()
def progress(
    folder: Notebooks = Path("notebooks"),
    html: Html = None,
) -> None:
    """How far you are: what is solved in your saved notebooks, and what comes next."""
    from autograder.progress import as_page, as_table, standings, what_next

    found = standings(folder)
    out.print(as_table(found))
    out.print(f"\n{what_next(found)}", markup=False, highlight=False)
    if html:
        html.write_text(as_page(found), encoding="utf-8")
        out.print(f"Page: {html}", markup=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab(context: typer.Context, folder: Notebooks = Path("notebooks")) -> None:
    """Open JupyterLab where you have got to; its own options go behind the folder."""
    from autograder.lab import open_lab

    raise typer.Exit(open_lab(folder, context.args))


@app.command()
def grade(
    chapter: ChapterArgument = None,
    course: Course = Path("."),
    jobs: Jobs = None,
    db: Db = None,
    html: Html = None,
    as_json: Json = False,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="What a submission may use: wall_per_cell=30."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would change, and write nothing.")
    ] = False,
    dask: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Judge on this Dask cluster: tcp://scheduler:8786."),
    ] = None,
) -> None:
    """Grade the submissions in submitted/ and write gradebook, autograded/ and the class report."""
    from autograder.display import as_change, grading_progress, one_line
    from autograder.grade import course_limits, grade_class
    from autograder.late import settle_class

    changes = []

    def changed(before: "Graded", after: "Graded") -> None:
        changes.append(after.earned - before.earned)
        each = "; ".join(as_change(*pair) for pair in before.changes(after))
        words = one_line(f"{after.student}, {after.chapter}: {each}")
        err.print(words, markup=False, highlight=False)

    if dask and jobs:
        raise typer.BadParameter("--jobs is for processes here: a cluster has its workers.")
    limits = course_limits(course, _limits(limit))
    with (
        _workers(dask, limits, jobs) as (executor, jobs),
        grading_progress(err if as_json else out) as progress,
    ):
        graded = grade_class(
            course,
            chapter,
            db_url=db,
            limits=limits,
            jobs=jobs,
            executor=executor,
            dry_run=dry_run,
            progress=progress,
            changed=changed,
        )
    if changes:
        up, down = sum(c > 0 for c in changes), sum(c < 0 for c in changes)
        words = f"Changed: {len(changes)} notebooks, {up} to more points and {down} to fewer."
        err.print(words, highlight=False)
    if dry_run:
        err.print(f"Nothing was written: {len(graded)} notebooks were judged.", highlight=False)
        if as_json:
            _report(graded, course, html, as_json)
        return
    if not graded:
        err.print(f"There is no submission in {course / 'submitted'}.", markup=False)
        raise typer.Exit(1)
    for problem in settle_class(course, _gradebook_url(course, db), _full_name(chapter)):
        err.print(f"! {problem}", markup=False, highlight=False)
    _report(graded, course, html, as_json)
    if any(one.ungraded for one in graded):
        raise typer.Exit(3)


@app.command()
def explain(
    student: Annotated[str, typer.Argument()],
    chapter: Annotated[str, typer.Argument()],
    exercise: Annotated[str, typer.Argument()],
    course: Course = Path("."),
) -> None:
    """Judge one exercise of one student again, and show the values of the case that fails."""
    from autograder.display import as_text, printable
    from autograder.explain import explain

    replay = explain(course, student, _full_name(chapter) or chapter, exercise)
    out.print(printable(replay.source), markup=False, highlight=False)
    out.print(as_text(replay.now), markup=False, highlight=False)
    recorded = f"recorded: {replay.before.status}, {replay.before.earned:g} points"
    out.print(f"{recorded}; judged by {replay.record.versions}", markup=False, highlight=False)
    if replay.since:
        out.print(f"Changed since: {', '.join(replay.since)}.", markup=False, highlight=False)


@app.command()
def report(
    chapter: ChapterArgument = None,
    course: Course = Path("."),
    html: Html = None,
    for_class: Annotated[
        bool, typer.Option("--for-class", help="A page without names, to show to the class.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the class report of what was graded before."""
    from autograder.graded import load_class

    graded = list(load_class(course, _full_name(chapter)))
    if not graded:
        err.print(f"Nothing is graded yet in {course}: run `autograder grade`.", markup=False)
        raise typer.Exit(1)
    _report(graded, course, html, as_json, named=not for_class)


@app.command()
def feedback(
    chapter: ChapterArgument = None,
    course: Course = Path("."),
    student: Annotated[str | None, typer.Option(help="Only this student's.")] = None,
    jobs: Jobs = None,
    db: Db = None,
) -> None:
    """Write what students get back: feedback/STUDENT/CHAPTER/CHAPTER.html."""
    from rich.progress import Progress

    from autograder.gradebook import open_gradebook
    from autograder.handback import write_feedback

    url, failed = _gradebook_url(course, db, must_exist=True), False
    with open_gradebook(url):  # a database that is gone is one sentence here
        pass
    graded = sorted({path.name for path in (course / "autograded").glob("*/*")})
    for assignment in [_full_name(chapter)] if chapter else graded:
        with Progress(console=err, transient=True) as bar:
            task = bar.add_task(assignment)
            show = lambda done, total, task=task, bar=bar: bar.update(
                task, completed=done, total=total
            )
            done = write_feedback(course, assignment, url, student, jobs, show)
        n = len(done.pages)
        words = f"{assignment}: {n} page{'s' * (n != 1)} in {course / 'feedback'}"
        out.print(words, markup=False, highlight=False)
        if done.failed:
            failed = True
            names = ", ".join(ascii(path.parent.parent.name) for path in done.failed)
            err.print(f"{assignment}: no page for {names}.", markup=False, highlight=False)
            err.print(done.log, markup=False, highlight=False)
    if not graded:
        err.print(f"Nothing is graded yet in {course}: run `autograder grade`.", markup=False)
    if failed or not graded:
        raise typer.Exit(1)


class Format(StrEnum):
    csv = "csv"
    canvas = "canvas"


@app.command()
def export(
    chapter: ChapterArgument = None,
    course: Course = Path("."),
    format: Annotated[Format, typer.Option(help="Of the table.")] = Format.csv,
    to: Annotated[Path | None, typer.Option(help="The file to write (default: stdout).")] = None,
    db: Db = None,
) -> None:
    """Write the gradebook as a table; scores given by hand and late penalties are in it."""
    from autograder.export import as_canvas, as_csv, read_grades
    from autograder.gradebook import open_gradebook
    from autograder.graded import write_atomically

    with open_gradebook(_gradebook_url(course, db, must_exist=True)) as gradebook:
        rows = read_grades(gradebook, _full_name(chapter))
    table = as_canvas(rows) if format == Format.canvas else as_csv(rows)
    if to:
        write_atomically(to, table)
    else:
        typer.echo(table, nl=False)
    if waiting := sum(row.needs_manual_grade for row in rows):
        err.print(f"{waiting} of these scores may change: something waits to be graded by hand.")


@app.command()
def roster(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    course: Course = Path("."),
    db: Db = None,
) -> None:
    """Bring students into the gradebook: id, first_name, last_name, email, lms_user_id."""
    from autograder.gradebook import open_gradebook
    from autograder.roster import import_roster, read_roster

    found = read_roster(file)
    with open_gradebook(_gradebook_url(course, db)) as gradebook:
        new, changed = import_roster(gradebook, found)
    same = len(found.students) - new - changed
    out.print(f"{new} new, {changed} changed, {same} as before.", highlight=False)
    if found.repeated:
        out.print(f"Lines that say the same twice: {found.repeated}.", highlight=False)
    if found.ignored:
        out.print(f"Columns left out: {', '.join(found.ignored)}.", markup=False, highlight=False)


@app.command()
def due(
    chapter: Annotated[str, typer.Argument()],
    when: Annotated[str, typer.Argument(help='As "2026-12-01 18:00 Europe/Berlin", or "never".')],
    course: Course = Path("."),
    db: Db = None,
) -> None:
    """Set when a chapter is due; penalties for lateness follow at once."""
    from autograder.gradebook import open_gradebook
    from autograder.late import parse_time, settle_class
    from autograder.masters import sources

    try:
        time = None if when == "never" else parse_time(when)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    (assignment,) = {source.assignment for source in sources(course, chapter)}
    url = _gradebook_url(course, db)
    with open_gradebook(url) as gradebook:
        gradebook.update_or_create_assignment(assignment, duedate=time)
    settle_class(course, url, assignment)
    words = f"due {time:%Y-%m-%d %H:%M:%S} UTC" if time else "never due"
    out.print(f"{assignment} is {words}.", markup=False, highlight=False)


@app.command()
def extend(
    chapter: Annotated[str, typer.Argument()],
    student: Annotated[str, typer.Argument()],
    days: Annotated[float, typer.Option(min=0)] = 0,
    hours: Annotated[float, typer.Option(min=0)] = 0,
    course: Course = Path("."),
    db: Db = None,
) -> None:
    """Give a student more time for a chapter than the due date; 0 takes it back."""
    from autograder import late
    from autograder.gradebook import open_gradebook

    url, extension = _gradebook_url(course, db, must_exist=True), timedelta(days, hours=hours)
    assignment = _full_name(chapter) or chapter
    with open_gradebook(url) as gradebook:
        late.extend(gradebook, assignment, student, extension)
    late.settle_class(course, url, assignment)
    more = f"{extension / timedelta(hours=1):g} hours more" if extension else "no more time"
    out.print(f"{student} has {more} for {assignment}.", markup=False, highlight=False)


@app.command()
def similar(
    chapter: ChapterArgument = None,
    course: Course = Path("."),
    least: Annotated[
        float | None, typer.Option(min=1, help="Rare characters in common (default: 150).")
    ] = None,
    html: Html = None,
    as_json: Json = False,
) -> None:
    """Show whose solutions are alike, and whose are like the reference; a person judges."""
    from autograder import similar

    least = least or similar.LEAST
    with err.status("reading …") as status:
        progress = lambda name: status.update(f"comparing {name} …")
        pairs = similar.find_similar(course, _full_name(chapter), least, progress)
    if as_json:
        typer.echo(json.dumps(similar.as_data(pairs), indent=1))
        return
    similar.print_pairs(pairs, out)
    page = similar.write_page(pairs, html or course / "similar.html")
    out.print(f"Side by side: {page}", markup=False, highlight=False)


@app.command()
def demo(course: Course = Path(".")) -> None:
    """Everything at once: a real model answers, and a class of synthetic students is graded."""
    from autograder.demo import run

    raise typer.Exit(1 if run(course, out) else 0)


def _report(
    graded: list, course: Path, html: Path | None, as_json: bool, named: bool = True
) -> None:
    from autograder.places import find_places
    from autograder.report import as_data, print_report, write_report

    places = find_places(course)
    if as_json:
        typer.echo(json.dumps(as_data(graded, places), indent=1))
        return
    path = html or course / ("report.html" if named else "report-for-class.html")
    if named:
        print_report(graded, out, places)
    out.print(f"Report: {write_report(graded, path, places, named)}", markup=False)


def _workers(
    dask: str | None, limits: "Limits", jobs: int | None
) -> AbstractContextManager[tuple["Executor | None", int | None]]:
    """What judges in place of processes here, and how many that is."""
    if not dask:
        return nullcontext((None, jobs))
    from autograder.cluster import on_cluster

    return on_cluster(dask, limits)


def _limits(given: list[str] | None) -> dict[str, float]:
    """{"wall_per_cell": 30.0} for ["wall_per_cell=30"]."""
    limits = {}
    for each in given or ():
        name, _, value = each.partition("=")
        try:
            limits[name.strip()] = float(value)
        except ValueError:
            raise typer.BadParameter(f"{each!r} is no limit: write wall_per_cell=30.") from None
    return limits


def _full_name(chapter: str | None) -> str | None:
    """ "02-losses" for "losses" and "02"; the name of an nbgrader assignment as it is."""
    from autograder.course import find_chapter

    with suppress(LookupError):
        return find_chapter(chapter).slug if chapter else None
    return chapter


def _gradebook_url(course: Path, db: str | None, must_exist: bool = False) -> str:
    from autograder.settings import nbgrader_settings

    url = db or nbgrader_settings(course.resolve()).CourseDirectory.db_url
    file = url.removeprefix("sqlite:///")
    if must_exist and file != url and not Path(file).is_file():  # SQLite would make it, empty
        raise LookupError(f"There is no gradebook {file}: run `autograder grade`.")
    return url


def main() -> None:
    """Run the command line; what went wrong is one sentence on stderr."""
    # jsonschema would import it, if it is there, and that compiles a grammar for two seconds.
    sys.modules.setdefault("rfc3987_syntax", None)
    from autograder.build import BuildError

    try:
        app()
    except SystemExit as end:
        if end.code == 130:  # Ctrl-C, as typer reports it
            err.print("Interrupted; what was finished is kept.")
        raise
    except ModuleNotFoundError as error:
        said = (
            f"This takes {error.name}, which is not here: python -m pip install "
            "'llmkit-course[grader]'. Grading runs on Linux."
        )
        err.print(said, style="red", markup=False)
        raise SystemExit(1) from None
    except (BuildError, LookupError, RuntimeError, OSError) as error:
        err.print(str(error), style="red", markup=False)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
