"""The demos of a lecture, in a real browser: each opens, and its picture follows its controls."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import jupytext
import pytest

from tests.browser import PROGRAM, Page, chromium, free_port, serving

DEMOS = Path(__file__).parents[1] / "demos"
NAMES = sorted(path.stem for path in DEMOS.glob("*.md"))
PICTURE = "document.querySelector('.widget-html-content').innerHTML"
pytestmark = [
    pytest.mark.skipif(not PROGRAM, reason="no Chromium is installed"),
    pytest.mark.xdist_group("demos"),
]


@pytest.fixture(scope="module")
def voila(tmp_path_factory) -> Iterator[str]:
    """The URL of the demos as `make demos` serves them."""
    folder = tmp_path_factory.mktemp("lecture") / "demos"
    shutil.copytree(DEMOS, folder, ignore=shutil.ignore_patterns("*.ipynb"))
    for source in folder.glob("*.md"):
        jupytext.write(jupytext.read(source), source.with_suffix(".ipynb"))
    port = free_port()
    python_path = os.pathsep.join([str(DEMOS.parent), os.environ.get("PYTHONPATH", "")])
    url = f"http://localhost:{port}"
    paths = {"JUPYTER_PATH": ".", "PYTHONPATH": python_path}
    with serving(["voila", "--no-browser", f"--port={port}"], url, folder, paths):
        yield url


def opened(page: Page, url: str, name: str) -> None:
    page.open(f"{url}/voila/render/{name}.ipynb", height=1400)
    page.wait("document.querySelector('.jupyter-widgets') !== null")


def test_the_first_page_leads_to_every_demo(voila):
    with chromium() as page:
        page.open(voila)
        links = page.evaluate("[...document.querySelectorAll('a')].map(a => a.href)")
        assert sorted(links) == [f"{voila}/voila/render/{name}.ipynb" for name in NAMES]
        assert page.barriers() == []


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in ("next-token", "pretraining")]
)
def test_a_slider_moves_the_picture(voila, name):
    with chromium() as page:
        opened(page, voila, name)
        page.wait("document.querySelector('.widget-html-content') !== null")
        page.evaluate(f"window.before = {PICTURE}; null")
        deadline = time.monotonic() + 20
        while not page.evaluate(f"{PICTURE} !== window.before"):
            assert time.monotonic() < deadline, "the picture stays as it was"
            page.evaluate("document.querySelector('.noUi-handle').focus()")
            page.press("Home", 36)
            time.sleep(0.5)
        assert page.barriers() == []
        assert page.console == []
        assert [url for url in page.asked if not url.startswith((voila, "data:", "blob:"))] == []


def test_a_click_appends_a_token(voila):
    with chromium() as page:
        opened(page, voila, "next-token")
        text = "document.querySelector('textarea').value"
        assert page.evaluate(text) == "The capital of France is"
        first = "[...document.querySelectorAll('button')].find(b => b.innerText.includes('Paris'))"
        page.evaluate(f"{first}.click()")
        page.wait(f"{text} === 'The capital of France is Paris'", seconds=20)
        page.wait(f"!({first})", seconds=20)  # Paris is not what comes next now
        page.wait("!document.querySelector('button').disabled", seconds=20)
        page.evaluate("document.querySelector('button').click()")
        page.wait(f"{text} === 'The capital of France is'", seconds=20)
        assert page.barriers() == []
        assert page.console == []


def test_play_trains(voila):
    with chromium() as page:
        opened(page, voila, "pretraining")
        page.evaluate("document.querySelector('button').click()")
        page.wait("document.body.innerText.includes('of 1000: loss 3.')", seconds=60)
        page.evaluate("document.querySelector('button').click()")
        assert page.barriers() == []
        assert page.console == []
