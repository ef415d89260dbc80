"""Reading a submission: what counts is kept, whatever was done to the rest of the file."""

import copy
import json
import os
import random
import re
import time
from pathlib import Path

import nbformat
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autograder import submission as submission_module
from autograder.build import instructor_notebook, release
from autograder.submission import (
    MAX_CELLS,
    MAX_SOURCE,
    Submission,
    find_submissions,
    read_submission,
    valid_student_id,
)
from tests.autograder.sample import EXERCISES, SOURCE

SOLVED = instructor_notebook(SOURCE, EXERCISES, "sample.md")
RELEASE = release(SOLVED)
SOLUTIONS = {
    "double": "def double(x):\n    return x + x",
    "best": "answer = 3",
    "square": "def square(x):\n    return x * x",
}
ANSWER = "Because."
EVERY_FILE = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def solved() -> dict:
    """The file of a student who solved everything, as JSON."""
    notebook = json.loads(json.dumps(RELEASE))
    for name, source in SOLUTIONS.items():
        cell_of(notebook, f"{name}-solution")["source"] = source
    cell_of(notebook, "why")["source"] = ANSWER
    return notebook


def cell_of(notebook: dict, grade_id: str) -> dict:
    return next(
        cell
        for cell in notebook["cells"]
        if cell["metadata"].get("nbgrader", {}).get("grade_id") == grade_id
    )


def without(notebook: dict, grade_id: str) -> dict:
    notebook["cells"].remove(cell_of(notebook, grade_id))
    return notebook


def sources(submission: Submission) -> dict[str, str]:
    return {s.exercise: s.source for s in submission.steps if s.kind == "solution"}


@pytest.fixture
def read(tmp_path):
    """Write data to a file, if it is not text already, and read it as a submission."""

    def reads(data: dict | bytes) -> Submission:
        path = tmp_path / "02-losses.ipynb"
        path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
        return read_submission(path, RELEASE)

    return reads


def assert_unreadable(submission: Submission, reason: str) -> None:
    assert re.search(reason, submission.unreadable)
    assert submission.problems == [submission.unreadable]
    assert set(submission.missing) == {"double", "best", "why", "square"}
    assert not sources(submission) and submission.notebook == RELEASE
    assert [s.exercise for s in submission.steps if s.kind == "check"] == [
        "double", "best", "square"
    ]  # fmt: skip


# --- what an honest file gives ----------------------------------------------------------------


def test_an_honest_submission_is_its_solutions_in_the_releases_order(read):
    submission = read(solved())
    assert [(s.kind, s.exercise) for s in submission.steps] == [
        ("context", ""),
        ("solution", "double"),
        ("check", "double"),
        ("solution", "best"),
        ("check", "best"),
        ("context", ""),  # the demo before it is skipped
        ("solution", "square"),
        ("check", "square"),
    ]
    assert [s.variable for s in submission.steps if s.kind == "check"] == [
        "double", "answer", "square"
    ]  # fmt: skip
    assert sources(submission) == SOLUTIONS
    assert cell_of(submission.notebook, "why").source == ANSWER
    assert submission.problems == []


def test_source_as_a_list_of_lines_is_the_same(read):
    notebook = solved()
    for cell in notebook["cells"]:
        cell["source"] = cell["source"].splitlines(keepends=True)
    assert read(notebook) == read(solved())


def test_outputs_and_counts_make_no_difference(read):
    notebook = solved()
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["execution_count"] = 7
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x" * 10_000}]
    assert read(notebook).digest == read(solved()).digest


def test_another_solution_is_another_submission(read):
    notebook = solved()
    cell_of(notebook, "double-solution")["source"] += "  # again"
    assert read(notebook).digest != read(solved()).digest


def test_what_is_kept_is_the_release_with_the_students_sources(read):
    submission = read(solved())
    notebook = submission.notebook
    assert read(json.loads(json.dumps(notebook))) == submission
    for cell, released in zip(notebook.cells, RELEASE.cells, strict=True):
        assert cell.metadata == released.metadata
    assert read(b"").notebook == RELEASE


def test_the_instructors_notebook_is_refused_as_the_form_to_fill(tmp_path):
    with pytest.raises(ValueError, match="starts from the release"):
        read_submission(tmp_path / "any.ipynb", SOLVED)


# --- what was done to cells -------------------------------------------------------------------


def test_a_deleted_cell_costs_its_own_exercise(read):
    submission = read(without(solved(), "double-solution"))
    assert submission.missing == {"double": "its cell is missing from the submission"}
    assert sources(submission) == {k: v for k, v in SOLUTIONS.items() if k != "double"}


def test_a_deleted_written_answer_is_missing(read):
    submission = read(without(solved(), "why"))
    assert list(submission.missing) == ["why"]
    assert cell_of(submission.notebook, "why") == cell_of(RELEASE, "why")


@pytest.mark.parametrize("grade_id", ["double", "best", "square"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda cell: cell.update(source="raise SystemExit"),
        lambda cell: cell.update(cell_type="markdown"),
        lambda cell: cell["metadata"].update(tags=["skip-execution"]),
        lambda cell: cell["metadata"]["nbgrader"].update(points=1_000_000),
        lambda cell: cell["metadata"]["nbgrader"].update(grade=False, solution=True),
        lambda cell: cell["metadata"]["nbgrader"].update(grade_id="double-solutions"),
        lambda cell: cell["metadata"].pop("nbgrader"),
        lambda cell: cell.clear(),
    ],
)
def test_what_is_done_to_a_graded_cell_has_no_effect(read, damage, grade_id):
    notebook = solved()
    damage(cell_of(notebook, grade_id))
    submission = read(notebook)
    assert submission.steps == read(solved()).steps
    assert not submission.missing


def test_graded_cells_deleted_or_doubled_have_no_effect(read):
    notebook = without(solved(), "double")
    notebook["cells"] += [cell_of(notebook, "square")] * 3
    assert read(notebook).steps == read(solved()).steps


def test_tags_on_a_solution_cell_have_no_effect(read):
    notebook = solved()
    for cell in notebook["cells"]:
        cell["metadata"]["tags"] = ["skip-execution", "demo", "raises-exception"]
    assert read(notebook) == read(solved())


@pytest.mark.parametrize("kind", ["markdown", "raw"])
def test_a_retyped_cell_is_read_as_what_it_was(read, kind):
    notebook = solved()
    cell_of(notebook, "double-solution")["cell_type"] = kind
    submission = read(notebook)
    assert sources(submission) == SOLUTIONS
    assert submission.notes == (f"double: its cell became {kind}; it was read as code",)


def test_order_is_the_releases(read):
    notebook = solved()
    notebook["cells"].reverse()
    assert read(notebook) == read(solved())


def test_of_two_copies_the_last_counts(read):
    notebook = solved()
    again = copy.deepcopy(cell_of(notebook, "double-solution"))
    again["source"] = "def double(x):\n    return 2 * x"
    notebook["cells"].append(again)
    submission = read(notebook)
    assert sources(submission) == SOLUTIONS | {"double": again["source"]}
    assert "double: its cell is there 2 times" in submission.notes[0]


@pytest.mark.parametrize("source", ["", "  \n", cell_of(RELEASE, "double-solution").source])
def test_a_copy_left_as_it_was_does_not_hide_the_solution(read, source):
    notebook = solved()
    stub = copy.deepcopy(cell_of(notebook, "double-solution"))
    notebook["cells"].append(stub | {"source": source})
    assert sources(read(notebook)) == SOLUTIONS


def test_a_cell_that_lost_its_metadata_is_known_by_its_id(read):
    notebook = solved()
    for cell in notebook["cells"]:
        cell["metadata"] = {}
    assert read(notebook) == read(solved())


def test_code_outside_the_solution_cells_is_not_run_and_the_student_is_told(read):
    notebook = solved()
    extra = {"cell_type": "code", "metadata": {}, "source": "check = print", "outputs": []}
    notebook["cells"].insert(0, extra)
    notebook["cells"][1]["source"] = "check = print"
    submission = read(notebook)
    assert submission.steps == read(solved()).steps
    assert submission.notes[0].startswith("1 code cell was added or changed")


def test_the_cell_that_finds_the_course_may_be_of_another_version_or_not_there(read):
    notebook = solved()
    cell_of(notebook, "find_course")["source"] += "  # of another version"
    assert read(notebook) == read(solved())
    assert read(without(notebook, "find_course")) == read(solved())


@pytest.mark.parametrize("source", [None, 5, {"a": 1}, ["x = 1", 2], [["x"]]])
def test_a_source_that_is_no_text_costs_its_own_exercise(read, source):
    notebook = solved()
    cell_of(notebook, "double-solution")["source"] = source
    submission = read(notebook)
    assert submission.missing == {"double": "its cell has no readable source"}
    assert set(sources(submission)) == {"best", "square"}


def test_an_endless_source_costs_its_own_exercise(read):
    notebook = solved()
    cell_of(notebook, "double-solution")["source"] = "#" * (MAX_SOURCE + 1)
    assert read(notebook).missing == {
        "double": f"its cell is longer than {MAX_SOURCE:,} characters"
    }


def test_half_a_character_can_be_written_again(read):
    notebook = solved()
    cell_of(notebook, "double-solution")["source"] = "x = '\ud800'"
    assert sources(read(notebook))["double"] == "x = '?'"


MUTATIONS = {
    "delete": lambda cells, i, rng: cells.pop(i),
    "double": lambda cells, i, rng: cells.insert(rng.randrange(len(cells)), dict(cells[i])),
    "move": lambda cells, i, rng: cells.insert(rng.randrange(len(cells)), cells.pop(i)),
    "retype": lambda cells, i, rng: cells[i].update(cell_type=rng.choice(["raw", "markdown", 3])),
    "edit": lambda cells, i, rng: cells[i].update(source=rng.choice(["1/0", "", None, [1]])),
    "strip": lambda cells, i, rng: cells[i].update(metadata=rng.choice([{}, None, [], "x"])),
    "forget": lambda cells, i, rng: cells[i].update(id=rng.choice(["", None, 4, "double"])),
    "rename": lambda cells, i, rng: cells[i].update(
        metadata={"nbgrader": {"grade_id": rng.choice(["double", [], None, "nothing"])}}
    ),
    "ruin": lambda cells, i, rng: cells.__setitem__(i, rng.choice([None, 1, "x", [], {}])),
}


@EVERY_FILE
@given(
    spared=st.sampled_from(sorted(SOLUTIONS)),
    seed=st.integers(0, 2**32),
    kinds=st.lists(st.sampled_from(sorted(MUTATIONS)), max_size=30),
)
def test_whatever_is_done_to_other_cells_an_untouched_solution_counts(read, spared, seed, kinds):
    rng = random.Random(seed)
    notebook = solved()
    kept = cell_of(notebook, f"{spared}-solution")
    cells = [cell for cell in notebook["cells"] if cell is not kept]
    for kind in kinds:
        unruined = [i for i, cell in enumerate(cells) if isinstance(cell, dict)]
        if unruined:
            MUTATIONS[kind](cells, rng.choice(unruined), rng)
    cells.insert(rng.randrange(len(cells) + 1), kept)
    notebook["cells"] = cells
    submission = read(notebook)
    assert sources(submission)[spared] == SOLUTIONS[spared]
    order = [s.exercise for s in submission.steps if s.kind == "check"]
    assert order == ["double", "best", "square"]


@EVERY_FILE
@given(seed=st.integers(0, 2**32), kinds=st.lists(st.sampled_from(sorted(MUTATIONS)), max_size=30))
def test_with_own_cells_every_released_cell_is_there_once_as_released(tmp_path, seed, kinds):
    rng, notebook = random.Random(seed), solved()
    for kind in kinds:
        unruined = [i for i, cell in enumerate(notebook["cells"]) if isinstance(cell, dict)]
        if unruined:
            MUTATIONS[kind](notebook["cells"], rng.choice(unruined), rng)
    (tmp_path / "any.ipynb").write_text(json.dumps(notebook))
    submission = read_submission(tmp_path / "any.ipynb", RELEASE, own_cells=True)
    marked = [c for c in submission.notebook.cells if "nbgrader" in c.metadata]
    released = [c for c in RELEASE.cells if "nbgrader" in c.metadata]
    ids = [c.metadata.nbgrader.grade_id for c in marked]
    assert sorted(ids) == sorted(c.metadata.nbgrader.grade_id for c in released)
    for cell in released:
        kept = cell_of(submission.notebook, cell.metadata.nbgrader.grade_id)
        assert kept.metadata == cell.metadata and kept.cell_type == cell.cell_type
        assert cell.metadata.nbgrader.solution or kept.source == cell.source
    checks = [s.exercise for s in submission.steps if s.kind == "check"]
    assert sorted(checks) == ["best", "double", "square"]
    nbformat.validate(json.loads(json.dumps(submission.notebook)))


# --- what was done to the file ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"not a notebook", "not valid JSON"),
        (b"1" * 10_000, "not valid JSON"),
        (b'{"cells": "\xff"}', "not UTF-8"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b"\x1f\x8b\x08\x00" + bytes(100), "not UTF-8"),
        (b"[]", "names no notebook format"),
        (b"{}", "names no notebook format"),
        (b'{"nbformat": "4"}', "names no notebook format"),
        (b'{"nbformat": true}', "names no notebook format"),
        (b'{"nbformat": -1e999}', "names no notebook format"),
        (b'{"nbformat": 3, "worksheets": []}', "format 3; open it in JupyterLab"),
        (b'{"nbformat": 5}', "format 5"),
        (b'{"nbformat": 4}', "no list of cells"),
        (b'{"nbformat": 4, "cells": {}}', "no list of cells"),
    ],
)
def test_what_is_not_a_notebook_is_a_sentence(read, data, reason):
    assert_unreadable(read(data), reason)


@pytest.mark.parametrize("depth", [100_000, 10_000_000])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_nesting_is_a_sentence(read, opening, depth):
    depth = min(depth, submission_module.MAX_BYTES // len(opening))
    assert_unreadable(read((opening * depth).encode()), "nested too deeply")


def test_deep_nesting_in_a_cell_is_a_sentence(read):
    text = json.dumps(solved()).replace('"kernelspec":', '"deep": DEEP, "kernelspec":')
    deep = "[" * 100_000 + "]" * 100_000
    assert_unreadable(read(text.replace("DEEP", deep).encode()), "nested too deeply")


def test_a_byte_order_mark_is_no_obstacle(read):
    assert read(b"\xef\xbb\xbf" + json.dumps(solved()).encode()) == read(solved())


def test_a_hundred_thousand_cells_are_a_sentence(read):
    notebook = solved()
    notebook["cells"] += [{"cell_type": "code", "source": ""}] * 100_000
    assert_unreadable(read(notebook), "has 100,0.. cells; at most 5,000")


def test_as_many_cells_as_are_allowed_are_read_quickly(read):
    notebook = solved()
    copies = [cell_of(notebook, "double-solution")] * (MAX_CELLS - len(notebook["cells"]))
    notebook["cells"] += copies
    start = time.perf_counter()
    assert sources(read(notebook)) == SOLUTIONS
    assert time.perf_counter() - start < 5


def test_a_gigabyte_is_not_read(tmp_path):
    path = tmp_path / "02-losses.ipynb"
    path.touch()
    os.truncate(path, 2**30)
    start = time.perf_counter()
    assert_unreadable(read_submission(path, RELEASE), "larger than 20 MiB")
    assert time.perf_counter() - start < 1


def test_no_file_is_a_sentence(tmp_path):
    assert_unreadable(
        read_submission(tmp_path / "02-losses.ipynb", RELEASE), r"no file 02-losses\.ipynb"
    )


def test_a_symbolic_link_is_not_followed(tmp_path):
    (tmp_path / "secret.ipynb").write_text(json.dumps(solved()))
    (tmp_path / "02-losses.ipynb").symlink_to(tmp_path / "secret.ipynb")
    assert_unreadable(read_submission(tmp_path / "02-losses.ipynb", RELEASE), "symbolic link")


def test_a_hard_link_is_not_read(tmp_path):
    (tmp_path / "secret.ipynb").write_text(json.dumps(solved()))
    os.link(tmp_path / "secret.ipynb", tmp_path / "02-losses.ipynb")
    assert_unreadable(read_submission(tmp_path / "02-losses.ipynb", RELEASE), "hard link")


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "02-losses.ipynb")
    assert_unreadable(
        read_submission(tmp_path / "02-losses.ipynb", RELEASE), "not an ordinary file"
    )


def test_a_folder_is_not_a_notebook(tmp_path):
    (tmp_path / "02-losses.ipynb").mkdir()
    assert_unreadable(
        read_submission(tmp_path / "02-losses.ipynb", RELEASE), "not an ordinary file"
    )


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/tty"])
def test_a_device_is_not_read(device):
    reason = "not an ordinary file|cannot be read"
    assert_unreadable(read_submission(Path(device), RELEASE), reason)


def test_a_file_that_changes_while_it_is_read_is_judged_as_what_was_read(tmp_path, monkeypatch):
    path = tmp_path / "02-losses.ipynb"
    path.write_text(json.dumps(solved()))
    read_bytes = submission_module.read_bytes

    def then_overwrite(path):
        data = read_bytes(path)
        path.write_bytes(b"")
        return data

    monkeypatch.setattr(submission_module, "read_bytes", then_overwrite)
    assert sources(read_submission(path, RELEASE)) == SOLUTIONS


@EVERY_FILE
@given(st.binary(max_size=200))
def test_no_bytes_raise(read, data):
    assert isinstance(read(data), Submission)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["cells", "source", "metadata", "nbgrader", "grade_id", "id", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@EVERY_FILE
@given(cells=st.lists(JSON, max_size=5), metadata=JSON)
def test_no_json_raises(read, tmp_path, cells, metadata):
    submission = read({"nbformat": 4, "metadata": metadata, "cells": cells})
    assert set(submission.missing) == {"double", "best", "why", "square"}
    with_own = read_submission(tmp_path / "02-losses.ipynb", RELEASE, own_cells=True)
    assert with_own.unreadable or len(with_own.missing) == 4


# --- whose it is ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["ada", "a.turing@example.edu", "José", "Jose\u0301", "O'Brien, Anne", "_x", "學生7", "7"],
)
def test_ordinary_student_ids_are_valid(name):
    assert valid_student_id(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "../ada", "/etc", "a/b", "a\\b", "-rf", ".hidden", "a\nb", "a\0b", "a\tb",
        "a" * 65, "a\u202eb", "a\udcffb", "*", "a[b]", "a?", "{student_id}", "=1+1", "@x", "+1",
        " a", "a ", "a.", "a;b", "a|b", "$HOME", "`id`", "<b>", 'a"b', "C:", "a\u2028b",
    ],
)  # fmt: skip
def test_odd_student_ids_are_refused_with_a_printable_sentence(name):
    with pytest.raises(ValueError, match="the student id") as error:
        valid_student_id(name)
    assert str(error.value).isascii() and str(error.value).isprintable()


@given(st.text(max_size=80))
def test_a_valid_student_id_is_one_folder_below(name):
    try:
        valid_student_id(name)
    except ValueError:
        return
    assert Path("submitted", name).parent == Path("submitted")
    assert name.isprintable() and name[0] not in "-.=+@" and len(name) <= 64
    assert not set(name) & set('*?[]{}/\\"$`<>|:;')


@pytest.fixture
def course(tmp_path):
    for place in ("ada/02-losses", "ada/04-positions", "bob/02-losses"):
        folder = tmp_path / "submitted" / place
        folder.mkdir(parents=True)
        (folder / f"{folder.name}.ipynb").write_text("{}")
    return tmp_path


def test_submissions_are_found_in_order(course):
    found = list(find_submissions(course))
    assert [(f.student, f.chapter) for f in found] == [
        ("ada", "02-losses"), ("ada", "04-positions"), ("bob", "02-losses")
    ]  # fmt: skip
    assert all(f.path.is_file() and not f.problem for f in found)
    assert [f.student for f in find_submissions(course, "02-losses")] == ["ada", "bob"]


def test_no_submissions_are_none(tmp_path):
    assert list(find_submissions(tmp_path)) == []


def test_linked_folders_are_found_but_not_entered(course):
    (course / "submitted" / "eve").symlink_to(course / "submitted" / "ada")
    (course / "submitted" / "mallory").mkdir()
    (course / "submitted" / "mallory" / "02-losses").symlink_to(
        course / "submitted" / "bob" / "02-losses"
    )
    linked = [f for f in find_submissions(course) if f.problem]
    assert [f.student for f in linked] == ["eve", "mallory"]
    assert all("symbolic link" in f.problem for f in linked)


def test_odd_names_are_found_with_their_problem(course):
    for name in (b"-rf", b"..hidden", b"a\nb", b"\xff\xfe"):
        os.makedirs(os.path.join(os.fsencode(course), b"submitted", name, b"02-losses"))
    (course / "submitted" / "ada" / "02-loses").mkdir()
    (course / "submitted" / "ada" / "losses").mkdir()
    (course / "submitted" / "ada" / ".ipynb_checkpoints").mkdir()
    (course / "submitted" / "a stray file").touch()
    found = list(find_submissions(course))
    problems = {(f.student, f.chapter): f.problem for f in found if f.problem}
    assert len(problems) == 6
    assert "did you mean '02-losses'" in problems["ada", "02-loses"]
    assert "the chapter's full name" in problems["ada", "losses"]
    assert all(problem.isprintable() for problem in problems.values())
    assert sum(not f.problem for f in found) == 3
