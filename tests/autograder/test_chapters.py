"""Every chapter that is there keeps the course's promises."""

import doctest
import io
import re
from contextlib import redirect_stdout
from difflib import SequenceMatcher
from functools import cache
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest

from autograder.build import BEGIN, END, build, instructor_notebook
from autograder.check import Check, Question
from autograder.course import FIRST_CELL, SOLUTION, chapters, checks_of
from autograder.first_cell import first_cell

ROOT = Path(__file__).parents[2]
CHAPTERS = chapters(ROOT)

HEADING = re.compile(r"^### Exercise (\d+) · `(\w+)`$", re.MULTILINE)
FACTS = re.compile(
    r"Difficulty ([●○]{5}) · Importance ([●○]{5}) · (\d+) minutes? · (\d+) points?\s*$"
)
QUESTION = re.compile(r"^### Question \d+ · `(\w+)`\n+(\d+) points?$", re.MULTILINE)
REGION = re.compile(rf"{BEGIN}\n(.*?)\s*{END}", re.DOTALL)
FOLD = re.compile(r"<details.*?</details>", re.DOTALL)
TELLING = 25  # characters besides blanks: a line this long is not in two places by chance

each_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.slug)


@cache
def solved(chapter):
    source = chapter.source(ROOT).read_text(encoding="utf-8")
    return instructor_notebook(source, checks_of(chapter.slug), chapter.slug)


@cache
def released(chapter):
    return nbformat.read(chapter.release(ROOT), 4)


def squeeze(line: str) -> str:
    return re.sub(r"\s", "", line)


def solution_lines(chapter) -> dict[str, list[str]]:
    """The squeezed lines of each solution region, by grade_id."""
    return {
        cell.metadata.nbgrader.grade_id: [
            line
            for region in REGION.findall(cell.source)
            for line in map(squeeze, region.split("\n"))
        ]
        for cell in solved(chapter).cells
        if cell.metadata.get("nbgrader", {}).get("solution")
    }


def test_the_notebooks_are_exactly_what_the_sources_build():
    stale = [str(path.relative_to(ROOT)) for path in build(ROOT, check=True)]
    assert stale == [], "run `autograder build`"


@each_chapter
def test_the_cell_that_finds_the_course_stands_behind_the_title(chapter):
    for notebook in (solved(chapter), released(chapter)):
        title, first, *others = notebook.cells
        assert title.source.startswith("# ") and first.source == first_cell()
        assert first.id == FIRST_CELL and "demo" in first.metadata.tags  # grading skips it
        assert all("find_course" not in cell.source for cell in others)
    assert first.metadata.editable is first.metadata.deletable is False


@each_chapter
def test_the_release_holds_no_answer(chapter):
    text = "\n".join(cell.source for cell in released(chapter).cells)
    assert "SOLUTION" not in text
    lines = set(map(squeeze, text.split("\n")))
    for grade_id, answer in solution_lines(chapter).items():
        leaked = [line for line in answer if len(line) >= TELLING and line in lines]
        assert not leaked, f"{grade_id}: the release holds {leaked}"


@each_chapter
def test_the_release_has_no_outputs(chapter):
    for cell in released(chapter).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@each_chapter
def test_the_last_hint_is_not_the_solution(chapter):
    for name, _, text in exercises(chapter):
        answer = "\n".join(filter(None, solution_lines(chapter)[name + SOLUTION]))
        for fold in FOLD.findall(text):
            hint = "\n".join(filter(None, map(squeeze, fold.split("\n"))))
            size = max(len(answer), 1)
            same = SequenceMatcher(None, hint, answer, autojunk=False).find_longest_match().size
            assert same < max(TELLING, 0.5 * size), f"{name}: the hint spells the solution out"


def exercises(chapter) -> list[tuple[str, tuple[str, ...], str]]:
    """(name, (number, difficulty, importance, minutes, points), text up to the next heading)."""
    text = "\n\n".join(
        cell.source if cell.cell_type == "markdown" else "" for cell in solved(chapter).cells
    )
    found = []
    starts = [*HEADING.finditer(text), None]
    for start, following in pairwise(starts):
        part = text[start.end() : following.start() if following else None]
        facts = FACTS.match(part.strip().split("\n")[0])
        assert facts, f"exercise {start[1]}: no 'Difficulty ●●○○○ · Importance …' under its heading"
        found.append((start[2], (start[1], *facts.groups()), part))
    return found


@each_chapter
def test_headings_carry_number_difficulty_importance_minutes_and_points(chapter):
    checks = checks_of(chapter.slug)
    functions = [name for name, check in checks.items() if isinstance(check, Check)]
    found = exercises(chapter)
    assert sorted(name for name, _, _ in found if name in functions) == sorted(functions)
    for position, (name, facts, text) in enumerate(found, start=1):
        number, difficulty, importance, minutes, points = facts
        assert int(number) == position
        for circles in (difficulty, importance):
            assert re.fullmatch("●{1,5}○*", circles), f"{name}: {circles}"
        assert 1 <= int(minutes) <= 90
        assert int(points) == checks[name].points, name
        assert FOLD.search(text) or name not in functions, f"{name}: no hint to fold open"


@each_chapter
def test_questions_state_the_points_of_their_checks(chapter):
    text = "\n".join(cell.source for cell in solved(chapter).cells)
    stated = {name: int(points) for name, points in QUESTION.findall(text)}
    checks = checks_of(chapter.slug)
    assert stated == {n: c.points for n, c in checks.items() if isinstance(c, Question)}


@each_chapter
def test_the_examples_in_docstrings_are_what_the_solutions_give(chapter):
    scope: dict = {}
    examples = 0
    for cell in solved(chapter).cells:
        kind = cell.metadata.get("nbgrader", {})
        if cell.cell_type != "code" or kind.get("grade") or "demo" in cell.metadata.get("tags", ()):
            continue
        with redirect_stdout(io.StringIO()):
            exec(cell.source, scope)
        function = scope.get(kind.get("grade_id", "").removesuffix(SOLUTION))
        if callable(function):
            for test in doctest.DocTestFinder().find(function, function.__name__, globs=scope):
                examples += len(test.examples)
                runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
                assert runner.run(test).failed == 0, f"{function.__name__}: see above"
    assert examples >= 6


@each_chapter
def test_there_is_enough_to_do(chapter):
    checks = checks_of(chapter.slug).values()
    functions = [check for check in checks if isinstance(check, Check)]
    questions = [check for check in checks if isinstance(check, Question)]
    written = [
        cell
        for cell in solved(chapter).cells
        if cell.cell_type == "markdown" and cell.metadata.get("nbgrader", {}).get("grade")
    ]
    assert len(functions) >= 6
    assert len(questions) >= 2
    assert len(written) == 1
    for check in functions:
        assert len(check.misconceptions) >= 4, check.name
        assert len(check.variants) >= 3, check.name
    for question in questions:
        assert question.misconceptions, question.name


@each_chapter
def test_a_rubric_stands_before_the_written_answer(chapter):
    for before, cell in pairwise(solved(chapter).cells):
        if cell.cell_type == "markdown" and cell.metadata.get("nbgrader", {}).get("grade"):
            assert "point" in before.source, "say what earns the points"


@each_chapter
def test_titles_of_misconceptions_are_told_apart_and_hints_end_as_sentences(chapter):
    for exercise in checks_of(chapter.slug).values():
        titles = [misconception.title for misconception in exercise.misconceptions]
        assert len(set(titles)) == len(titles), exercise.name
        for misconception in exercise.misconceptions:
            assert misconception.hint.rstrip("`)")[-1] in ".?!", misconception.title
