"""A chapter in JupyterLab, in a real browser: a wrong answer is told why, a right one passes."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from autograder.cells import source_of
from autograder.course import checks_of
from tests.browser import PROGRAM, Page, chromium, free_port, serving

ROOT = Path(__file__).parents[1]
CHAPTER, EXERCISE = "01-ngrams", "count_bigram"
CELLS_BEFORE = 13  # the exercise's solution cell


@pytest.fixture
def lab(tmp_path) -> Iterator[str]:
    """The URL of JupyterLab as `autograder lab` starts it, in a folder with one chapter."""
    folder = tmp_path / "notebooks"
    shutil.copytree(ROOT / "notebooks" / CHAPTER, folder / CHAPTER)
    port = free_port()
    options = ["--no-browser", f"--port={port}", "--IdentityProvider.token=t"]
    home = {name: str(tmp_path) for name in ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
    url = f"http://localhost:{port}"
    with serving(
        ["autograder", "lab", str(folder), *options],
        f"{url}/api/status?token=t",
        ROOT,
        home | {"PYTHONPATH": str(ROOT)},
    ):
        yield f"{url}/lab/workspaces/course?token=t"


def answer(page: Page, source: str) -> None:
    """Fill the selected cell and run it, and the check below it."""
    page.press("Enter", 13)
    page.press("a", 65, modifiers=2)
    page.call("Input.insertText", text=source)
    for _ in range(2):
        page.press("Enter", 13, modifiers=8)


@pytest.mark.skipif(not PROGRAM, reason="no Chromium is installed")
def test_a_chapter_answers_in_jupyterlab(lab):
    check = checks_of(CHAPTER)[EXERCISE]
    mistake = check.misconceptions[0]
    text = "document.body.innerText"
    with chromium() as page:
        page.open(lab, width=1400, height=1000)
        page.wait("document.querySelector('.jp-Notebook .jp-CodeCell') !== null")
        page.wait("document.querySelector('iframe') !== null")  # the progress page beside it
        page.wait(f"{text}.includes('| Idle')")  # the kernel
        assert not page.evaluate(f"{text}.includes('Jupyter news')")
        page.evaluate("document.querySelector('.jp-Notebook').focus()")
        for _ in range(CELLS_BEFORE):
            page.press("Enter", 13, modifiers=8)
        answer(page, source_of(mistake.wrong, EXERCISE))
        page.wait(f"{text}.includes({mistake.title!r})")
        assert page.evaluate(f"{text}.includes({mistake.hint!r})")
        assert not page.evaluate(f"{text}.includes('✓ {EXERCISE}')")
        for _ in range(2):
            page.press("ArrowUp", 38)
        answer(page, source_of(check.reference, EXERCISE))
        page.wait(f"{text}.includes('{check.points} point')")
