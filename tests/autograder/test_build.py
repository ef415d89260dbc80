"""Building: one source, two notebooks, the same bytes each time; and clear refusals."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbgrader.apps.api import NbGraderAPI
from nbgrader.coursedir import CourseDirectory
from traitlets.config import PyFileConfigLoader

from autograder import build as build_module
from autograder.build import BuildError, build, execute, instructor_notebook, release
from autograder.course import find_chapter
from tests.autograder.sample import EXERCISES, SOURCE

ROOT = Path(__file__).parents[2]
CHAPTER = find_chapter("02-losses")


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course whose only chapter is the sample."""
    monkeypatch.setattr(build_module, "checks_of", lambda slug: EXERCISES)
    path = CHAPTER.source(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text(SOURCE, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def solved():
    return instructor_notebook(SOURCE, EXERCISES, "sample.md")


def nbgrader_cells(notebook):
    return {
        cell.metadata.nbgrader.grade_id: cell
        for cell in notebook.cells
        if "nbgrader" in cell.metadata
    }


def test_metadata_follows_from_the_cells(solved):
    cells = nbgrader_cells(solved)
    assert list(cells) == [
        "find_course", "double-solution", "double", "best-solution", "best", "why",
        "square-solution", "square",
    ]  # fmt: skip
    flags = {
        name: tuple(cell.metadata.nbgrader[key] for key in ("solution", "grade", "locked"))
        for name, cell in cells.items()
    }
    assert flags["double-solution"] == (True, False, False)
    assert flags["double"] == (False, True, True)
    assert flags["why"] == (True, True, False)
    assert flags["find_course"] == (False, False, True)
    points = {n: c.metadata.nbgrader.get("points") for n, c in cells.items() if flags[n][1]}
    assert points == {"double": 4, "best": 2, "why": 3, "square": 1}


def test_the_release_keeps_signatures_and_loses_solutions(solved):
    cells = nbgrader_cells(release(solved))
    assert cells["double-solution"].source == (
        'def double(x):\n    """Twice x."""\n    # YOUR CODE HERE\n    raise NotImplementedError()'
    )
    assert cells["why"].source == "YOUR ANSWER HERE"
    assert cells["double"].metadata.editable is False
    assert cells["double-solution"].metadata.deletable is False
    assert "adding to itself" not in nbformat.writes(release(solved))


def test_building_leaves_the_instructors_notebook_whole(solved):
    before = nbformat.writes(solved)
    release(solved)
    assert nbformat.writes(solved) == before


def test_both_notebooks_are_valid_and_their_ids_unique(solved):
    for notebook in (solved, release(solved)):
        nbformat.validate(notebook)
        ids = [cell.id for cell in notebook.cells]
        assert len(set(ids)) == len(ids)


def test_an_id_outlives_an_edit_elsewhere(solved):
    edited = instructor_notebook("# First\n\n\n" + SOURCE, EXERCISES, "sample.md")
    known = {cell.id for cell in solved.cells}
    assert [cell.source for cell in edited.cells if cell.id not in known] == ["# First"]
    assert len(edited.cells) == len(solved.cells) + 1


def test_equal_cells_get_ids_of_their_own():
    notebook = instructor_notebook("One.\n\n\nOne.\n\n\nOne.\n", {}, "sample.md")
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells) == 4


def test_a_build_is_the_same_bytes_each_time(course):
    both = [CHAPTER.instructor_notebook(course), CHAPTER.release(course)]
    assert build(course) == both
    first = [path.read_bytes() for path in both]
    assert build(course) == []
    for path in both:
        path.unlink()
    assert build(course) == both
    assert [path.read_bytes() for path in both] == first


def test_check_says_what_is_out_of_date_and_writes_nothing(course):
    target = CHAPTER.release(course)
    assert build(course, check=True) == [target]
    assert not target.exists()
    build(course)
    assert build(course, check=True) == []
    target.write_text(target.read_text().replace("Double it.", "Double it!"))
    assert build(course, check=True) == [target]
    assert "Double it!" in target.read_text()


def test_a_release_without_a_source_is_reported(course):
    build(course)
    orphan = course / "notebooks" / "99-gone" / "99-gone.ipynb"
    orphan.parent.mkdir()
    orphan.write_text("{}")
    assert build(course, check=True) == [orphan]
    with pytest.raises(BuildError, match=r"99-gone\.ipynb: no chapter"):
        build(course)


def test_nbgraders_own_release_is_the_same(course, monkeypatch):
    """`nbgrader generate_assignment`, with the course's configuration, on the built notebook."""
    build(course)
    ours = CHAPTER.release(course).read_bytes()
    # nbgrader asks the `alembic` command for the gradebook's schema
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    config = PyFileConfigLoader("nbgrader_config.py", path=str(ROOT)).load_config()
    config.CourseDirectory.root = str(course)
    config.CourseDirectory.db_url = f"sqlite:///{course / 'gradebook.db'}"
    result = NbGraderAPI(CourseDirectory(config=config), config=config).generate_assignment(
        CHAPTER.slug
    )
    assert result["success"], result.get("error") or result.get("log")
    theirs = CHAPTER.release(course)
    assert list(theirs.parent.iterdir()) == [theirs], "a file beside the source was released"
    assert nbformat.read(theirs, 4) == nbformat.reads(ours.decode(), 4)


SOLUTION = "```python\ndef double(x):\n    ### BEGIN SOLUTION\n    x\n    ### END SOLUTION\n```\n\n"
CHECK = "```python\ncheck(double)\n```\n\n"
QUESTION = "```python\n### BEGIN SOLUTION\nanswer = 3\n### END SOLUTION\n```\n\n"
ONLY_DOUBLE = {"double": EXERCISES["double"]}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("Text.\n\n" + CHECK, "s.md:4: no solution cell stands before"),
        (SOLUTION + CHECK.replace("double", "duble"), "s.md:9: .* have no exercise 'duble'"),
        (SOLUTION + SOLUTION, r"s.md:2: no check\(...\) follows"),
        (SOLUTION, r"s.md:2: no check\(...\) follows"),
        (SOLUTION.replace("double", "twice") + CHECK,
         "s.md:9: checks 'double', which the solution cell at s.md:2 does not define"),
        (QUESTION + "```python\ncheck_answer('best', anser)\n```\n", "s.md:8: checks 'anser'"),
        (QUESTION + "```python\ncheck_answer('double', answer)\n```\n", "is for functions"),
        ((SOLUTION + CHECK) * 2, "s.md:20: 'double' is graded a sec"),
        (SOLUTION.replace("### END SOLUTION", ""), "s.md:2: each '### BEGIN SOLUTION' needs one"),
        (SOLUTION.replace("### BEGIN SOLUTION", ""), "s.md:2: each"),
        (SOLUTION.replace("### BEGIN", "# BEGIN"), "s.md:2: a marker stands alone"),
        (SOLUTION.replace("(x):", "(x") + CHECK, "s.md:2: the solution is not Python"),
        (SOLUTION.replace("```python", '```python tags=["demo"]'), "s.md:2: a solution cell"),
        (SOLUTION + CHECK.replace("check", "x = 1\ncheck"), "s.md:9: a graded cell holds nothing"),
        (SOLUTION + CHECK.replace("```python", '```python tags=["demo"]'), "s.md:9: a graded"),
        ("### BEGIN SOLUTION\nSecret.\n### END SOLUTION\n", "s.md:1: a written answer stands"),
        ("<!-- #region written=why -->\n### BEGIN SOLUTION\n### END SOLUTION\n<!-- #endregion -->",
         "s.md:2: the written answer 'why' needs its points"),
        ("<!-- #region written=why points=1 -->\nS.\n<!-- #endregion -->", "s.md:2: the model"),
        ("<!-- #region colour=red -->\nS.\n<!-- #endregion -->", "s.md:2: cannot read"),
        ("<details>\n\n```python\nx\n```\n\n</details>\n", "s.md:1: a <details> fold is cut"),
        ("Text.\n", "s.md: never checks double"),
    ],
)  # fmt: skip
def test_a_broken_source_is_refused_with_its_line(source, message):
    known = EXERCISES if "answer" in source else ONLY_DOUBLE
    with pytest.raises(BuildError, match=message):
        instructor_notebook(source, known, "s.md")


def test_without_nbgrader_the_error_says_what_to_install(solved, monkeypatch):
    monkeypatch.setitem(sys.modules, "nbgrader", None)
    with pytest.raises(RuntimeError, match=r"needs nbgrader.*pip install .*\[grader\]"):
        release(solved)


def test_a_chapter_runs_in_full_and_its_outputs_are_kept(course, monkeypatch):
    monkeypatch.setattr(build_module, "checks_of", lambda slug: {})
    CHAPTER.source(course).write_text("Text.\n\n```python\nprint(6 * 7)\n```\n")
    assert execute(course, CHAPTER, timeout=60) > 0
    executed = nbformat.read(course / "build" / "executed" / "02-losses.ipynb", 4)
    assert executed.cells[1].outputs == []  # all is well, says the first cell
    assert executed.cells[2].outputs[0].text == "42\n"


def test_a_failing_cell_is_named(course, monkeypatch):
    monkeypatch.setattr(build_module, "checks_of", lambda slug: {})
    CHAPTER.source(course).write_text("Text.\n\n```python\nx = 1\n```\n\n```python\nx / 0\n```\n")
    with pytest.raises(
        BuildError, match=r"02-losses: cell 4 \(.*02-losses\.md:8\) failed: ZeroDivisionError: div"
    ):
        execute(course, CHAPTER, timeout=60)
    assert (course / "build" / "executed" / "02-losses.ipynb").is_file()
