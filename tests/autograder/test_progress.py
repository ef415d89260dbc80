"""What a student's saved notebooks say of their progress, and what is made of it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest

from autograder.check import Check
from autograder.course import checks_of
from autograder.display import as_text
from autograder.inside.outcome import Outcome
from autograder.lab import open_lab
from autograder.practice import PRACTICE_SEED, practise
from autograder.progress import as_page, standings, what_next
from autograder.verdict import Part, judge

ROOT = Path(__file__).parents[2]
CHAPTERS = ("01-ngrams", "02-losses")


@pytest.fixture
def folder(tmp_path):
    for chapter in CHAPTERS:
        shutil.copytree(ROOT / "notebooks" / chapter, tmp_path / chapter)
    return tmp_path


def save(folder: Path, chapter: str, outputs: dict[str, list]) -> None:
    """Save these outputs under the check cells of the exercises."""
    path = folder / chapter / f"{chapter}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id")
        if name in outputs:
            cell.outputs = outputs[name]
    nbformat.write(notebook, path)


def shown(verdict) -> list:
    return [nbformat.v4.new_output("display_data", {"text/plain": as_text(verdict)})]


def test_a_new_course_is_all_open(folder):
    first, second = standings(folder)
    assert (first.chapter, first.title, first.earned) == ("01-ngrams", "01 · N-grams", 0)
    for one in (first, second):
        exercises = checks_of(one.chapter)
        assert {task.name for task in one.tasks} == set(exercises)
        assert one.points == sum(exercise.points for exercise in exercises.values())
        timed = {task.name for task in one.tasks if task.minutes}
        assert timed == {name for name, one in exercises.items() if isinstance(one, Check)}
    assert what_next([first, second]) == "Next: count_bigram in 01-ngrams, about 5 minutes."
    question = next(task for task in second.tasks if not task.minutes)
    alone = replace(second, tasks=(question,))
    assert what_next([alone]) == f"Next: {question.name} in 02-losses."


def test_saved_verdicts_count_and_wrong_ones_do_not(folder):
    checks = [c for c in checks_of("02-losses").values() if isinstance(c, Check)]
    right, wrong = (practise(c, c.reference) for c in checks[:2]), checks[2]
    mistaken = practise(wrong, wrong.misconceptions[0].wrong)
    given = {verdict.exercise: shown(verdict) for verdict in (*right, mistaken)}
    save(folder, "02-losses", given)
    _, losses = standings(folder)
    assert [task.name for task in losses.tasks if task.solved] == [c.name for c in checks[:2]]
    assert losses.earned == sum(c.points for c in checks[:2])
    # what comes next is looked for where the student is, not where they were not
    assert what_next(standings(folder)).startswith(f"Next: {losses.next.name} in 02-losses")


def test_part_of_the_points(folder):
    check = next(c for c in checks_of("01-ngrams").values() if c.points == 4)
    parts = (Part("one", 3, 3), Part("another", 1, 0))
    verdict = replace(practise(check, check.reference), status="partial", earned=3, parts=parts)
    save(folder, "01-ngrams", {check.name: shown(verdict)})
    (task,) = (task for task in standings(folder)[0].tasks if task.earned)
    assert (task.name, task.earned, task.solved) == (check.name, 3, False)


def test_answers_to_questions_count(folder):
    question = next(q for q in checks_of("01-ngrams").values() if not isinstance(q, Check))
    verdict = judge(question, [Outcome(question.answer)], PRACTICE_SEED)
    save(folder, "01-ngrams", {question.name: shown(verdict)})
    assert [task.name for task in standings(folder)[0].tasks if task.solved] == [question.name]


def test_the_verdict_of_another_exercise_is_none_of_this(folder):
    other = next(iter(checks_of("02-losses").values()))
    save(folder, "01-ngrams", {"count_bigram": shown(practise(other, other.reference))})
    assert standings(folder)[0].earned == 0


def test_everything_solved(folder):
    for chapter in CHAPTERS:
        names = checks_of(chapter)
        save(folder, chapter, {n: [nbformat.v4.new_output("stream", text=f"✓ {n}")] for n in names})
    assert what_next(standings(folder)) == "Every exercise is solved."


def test_the_page_escapes_what_a_notebook_says(folder):
    path = folder / "01-ngrams" / "01-ngrams.ipynb"
    notebook = json.loads(path.read_text("utf-8"))
    notebook["cells"][0]["source"] = "# <script>alert(1)</script>"
    path.write_text(json.dumps(notebook), "utf-8")
    page = as_page(standings(folder))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_what_is_no_course_is_told(folder, tmp_path_factory):
    with pytest.raises(LookupError, match="There is no chapter in"):
        standings(tmp_path_factory.mktemp("empty"))
    (folder / "02-losses" / "02-losses.ipynb").write_text("{")
    with pytest.raises(RuntimeError, match=r"02-losses\.ipynb cannot be read as a notebook"):
        standings(folder)


def test_the_lab_opens_where_the_student_is(folder, monkeypatch):
    solved = checks_of("01-ngrams")
    save(
        folder, "01-ngrams", {n: [nbformat.v4.new_output("stream", text=f"✓ {n}")] for n in solved}
    )
    calls = []

    class Done:
        returncode = 0

    run = lambda command, **settings: calls.append((command, settings["env"])) or Done()
    monkeypatch.setattr("autograder.lab.subprocess.run", run)
    assert open_lab(folder, ["--no-browser"]) == 0
    (_, _), (command, environment) = calls
    assert command[-1] == "--no-browser"
    layout = json.loads((folder / ".lab" / "layout.json").read_text())["data"]
    current = layout["layout-restorer:data"]["main"]["dock"]["children"][0]["widgets"]
    assert current == ["notebook:02-losses/02-losses.ipynb"]
    assert environment["JUPYTERLAB_WORKSPACES_DIR"] == str(folder / ".lab")
    assert "Next: one_hot in 02-losses" in (folder / "progress.html").read_text("utf-8")
