"""The command line: `autograder build | check | grade | report | demo`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

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
    from autograder.grade import check_notebook

    graded = check_notebook(notebook, chapter, trusted=no_sandbox)
    for verdict in graded.verdicts:
        out.print(as_text(verdict), markup=False, highlight=False)
    for problem in graded.problems:
        out.print(f"! {problem}", markup=False, highlight=False)
    out.print(f"{graded.earned} of {graded.points} points", style="bold", highlight=False)
    raise typer.Exit(0 if graded.earned == graded.points else 1)


@app.command()
def grade(
    chapter: Annotated[str | None, typer.Argument(help="Only this chapter: 02-losses.")] = None,
    course: Course = Path("."),
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Processes [default: one per core].")
    ] = None,
    db: Annotated[
        str | None, typer.Option(help="The gradebook's URL [default: gradebook.db].")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Where the report goes.")] = None,
) -> None:
    """Grade the submissions in submitted/ and write gradebook, autograded/ and the class report."""
    from autograder.display import grading_progress
    from autograder.grade import grade_class
    from autograder.report import print_report, write_report

    with grading_progress(out) as progress:
        graded = grade_class(course, chapter, db_url=db, jobs=jobs, progress=progress)
    if not graded:
        err.print(f"There is no submission in {course / 'submitted'}.", markup=False)
        raise typer.Exit(1)
    print_report(graded, out)
    out.print(f"Report: {write_report(graded, html or course / 'report.html')}", markup=False)


@app.command()
def report(
    chapter: Annotated[str | None, typer.Argument(help="Only this chapter: 02-losses.")] = None,
    course: Course = Path("."),
    html: Annotated[Path | None, typer.Option(help="Where the report goes.")] = None,
) -> None:
    """Show the class report of what was graded before."""
    from autograder.graded import load_class
    from autograder.report import print_report, write_report

    graded = list(load_class(course, chapter))
    if not graded:
        err.print(f"Nothing is graded yet in {course}: run `autograder grade`.", markup=False)
        raise typer.Exit(1)
    print_report(graded, out)
    out.print(f"Report: {write_report(graded, html or course / 'report.html')}", markup=False)


@app.command()
def demo(course: Course = Path(".")) -> None:
    """Everything at once: a real model answers, and a class of synthetic students is graded."""
    from autograder.demo import run

    raise typer.Exit(1 if run(course, out) else 0)


def main() -> None:
    """Run the command line; what went wrong is one sentence on stderr."""
    from autograder.build import BuildError

    try:
        app()
    except SystemExit as end:
        if end.code == 130:  # Ctrl-C, as typer reports it
            err.print("Interrupted; what was finished is kept.")
        raise
    except (BuildError, LookupError, RuntimeError, OSError) as error:
        err.print(str(error), style="red", markup=False)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
