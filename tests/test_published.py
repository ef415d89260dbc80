"""What a teacher publishes: the book and the slides, whole, without answers and without network."""

import shutil
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from autograder.book import chapter_of_book, link_chapters
from autograder.build import build, executed, instructor_notebook
from autograder.course import CHAPTERS, checks_of
from autograder.slides import as_slides, write_slides
from tests.browser import PROGRAM, chromium

ROOT = Path(__file__).parents[1]
needs_browser = pytest.mark.skipif(not PROGRAM, reason="no Chromium is installed")
pytestmark = pytest.mark.xdist_group("published")
# formulas that MathJax drew, of all there are; those it could not read; dollars left in the text
FORMULAS = """MathJax.startup.promise.then(() => [
  document.querySelectorAll("mjx-container").length,
  document.querySelectorAll("[data-mml-node=merror], mjx-merror").length,
  [...document.querySelectorAll("p, li, td, h1, h2, h3")]
    .map(e => { const c = e.cloneNode(true);
                c.querySelectorAll("code, pre, mjx-container").forEach(x => x.remove());
                return c.textContent; })
    .filter(text => /\\$[^$]+\\$|\\\\\\(/.test(text)),
])"""


@pytest.fixture(scope="module")
def course(tmp_path_factory) -> Path:
    """The course, with its chapters as if they had been run: links and formulas need no outputs."""
    folder = tmp_path_factory.mktemp("published")
    for room in ("docs", "solutions"):
        ignored = shutil.ignore_patterns("chapters", "reference", "*.ipynb")
        shutil.copytree(ROOT / room, folder / room, ignore=ignored)
    (folder / "build" / "executed").mkdir(parents=True)
    for chapter in CHAPTERS:
        text = chapter.source(folder).read_text(encoding="utf-8")
        notebook = instructor_notebook(text, checks_of(chapter.slug), chapter.slug)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.execution_count = 1
        nbformat.write(notebook, folder / "build" / "executed" / f"{chapter.slug}.ipynb")
    return folder


@pytest.fixture(scope="module")
def book(course: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", "build/book"],
        cwd=course,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return course / "build" / "book"


def test_the_book_has_no_dead_link(book):
    pages = {path: BeautifulSoup(path.read_text(), "html.parser") for path in book.rglob("*.html")}
    pages = {path: page for path, page in pages.items() if "_static" not in path.parts}
    anchors = {path: {e["id"] for e in page.find_all(id=True)} for path, page in pages.items()}
    assert len(pages) > len(CHAPTERS) + 25
    checked = 0
    for path, page in pages.items():
        for element in page.find_all(["a", "link", "script", "img"]):
            url = urlsplit(element.get("href") or element.get("src") or "")
            if url.scheme or url.netloc:
                assert element.name == "a" or url.scheme == "data", f"{path} fetches {url.geturl()}"
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            assert target.is_file(), f"{path}: {element}"
            if url.fragment and target in anchors:
                assert unquote(url.fragment) in anchors[target], f"{path}: {element}"
            checked += 1
    assert checked > 1000


def test_the_book_tells_no_answer(book):
    for path in (book / "chapters").glob("*.html"):
        assert "BEGIN SOLUTION" not in path.read_text(encoding="utf-8")
    chapter = (book / "chapters" / "10-decoding.html").read_text(encoding="utf-8")
    assert "YOUR CODE HERE" in chapter and "bad_draft" in chapter
    assert 'chapters <a class="reference' in chapter or 'chapter <a class="reference' in chapter


@needs_browser
def test_every_formula_of_the_book_is_drawn(book):
    with served(book) as url, chromium() as page:
        for chapter in CHAPTERS:
            page.open(f"{url}/chapters/{chapter.slug}.html")
            text = (book / "chapters" / f"{chapter.slug}.html").read_text(encoding="utf-8")
            drawn, errors, left = page.evaluate(FORMULAS)
            assert drawn == len(BeautifulSoup(text, "html.parser").select(".math")) > 0
            assert (errors, left) == (0, []), chapter
        assert page.console == []
        assert [asked for asked in page.asked if not asked.startswith((url, "data:"))] == []


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_book_shuts_nobody_out_and_can_be_searched(book, dark):
    with served(book) as url, chromium() as page:
        for name in ("index", "chapters/05-attention", "reference/llmkit.decoding", "students"):
            page.open(f"{url}/{name}.html", dark=dark)
            assert page.barriers() == []
            page.open(f"{url}/{name}.html", width=360, dark=dark)
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, name
        page.open(f"{url}/search.html?q=rotary")
        page.wait("document.querySelectorAll('#search-results li').length > 0", seconds=30)
        assert page.console == []


@needs_browser
def test_slides_of_every_chapter(course):
    folder = course / "build" / "slides"
    with served(course) as url, chromium() as page:
        for chapter in CHAPTERS:
            source = write_slides(course, chapter, folder).read_text(encoding="utf-8")
            assert "### BEGIN SOLUTION" not in source
            page.open(f"{url}/build/slides/{chapter.slug}.html")
            page.wait("window.Reveal && Reveal.isReady()")
            _, errors, left = page.evaluate(FORMULAS)
            assert (errors, left) == (0, []), chapter
            assert page.evaluate("Reveal.getTotalSlides()") > 20
            heading = "Reveal.getCurrentSlide().querySelector('h1, h2').textContent"
            assert page.evaluate(heading).startswith(chapter.slug[:2])
            page.press("ArrowRight", 39)
            page.wait(f"!{heading}.startsWith('{chapter.slug[:2]}')", seconds=10)
        assert page.console == []
        assert [asked for asked in page.asked if not asked.startswith((url, "data:"))] == []


def test_slides_are_cut_at_headings():
    picture = new_output("display_data", {"text/html": "<img>"})
    cells = [
        new_markdown_cell("# 01 · Title\n\nWords."),
        new_code_cell("import math"),
        new_markdown_cell(
            "## 1 · Section\n\nWords.\n\n### Exercise 1\n\n```text\n# a comment\n```"
        ),
        new_code_cell("def f():\n    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION"),
        new_markdown_cell("Look:"),
        new_code_cell("plots.show(1)", outputs=[picture]),
        new_markdown_cell("What you see."),
        new_markdown_cell("## 2 · Section"),
    ]
    slides = as_slides(new_notebook(cells=cells)).cells
    assert [cell.metadata.get("slideshow", {}).get("slide_type") for cell in slides] == [
        *("slide", None, "slide", "subslide", None, "subslide", None, None, "slide")
    ]
    assert slides[4].source == "def f():\n    return 1\n"
    assert slides[6].metadata.transient.remove_source and slides[6].outputs


def test_a_chapter_of_the_book_shows_outputs_but_no_answer(tmp_path):
    source = tmp_path / "solutions" / "02-losses" / "02-losses.md"
    source.parent.mkdir(parents=True)
    shutil.copy(CHAPTERS[1].source(ROOT), source)
    build(tmp_path)
    notebook = nbformat.read(source.with_suffix(".ipynb"), 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [new_output("stream", text=f"out of {cell.source}")]
    page = chapter_of_book(notebook)
    shown = {cell.source for cell in page.cells if cell.get("outputs")}
    assert any("surprise_curve" in source for source in shown)
    assert not any("cherry_bits" in source or "YOUR CODE" in source for source in shown)
    assert "check(one_hot)" not in shown


def test_an_earlier_run_is_taken_if_the_chapter_is_as_it_was(course, monkeypatch):
    ran = []
    monkeypatch.setattr("autograder.build.execute", lambda *given: ran.append(given))
    chapter = CHAPTERS[1]
    executed(course, chapter)
    assert ran == []
    source = chapter.source(course)
    text = source.read_text(encoding="utf-8")
    source.write_text(text.replace("Why a logarithm?", "Why logarithms?"), encoding="utf-8")
    executed(course, chapter)
    assert ran == [(course, chapter)]
    source.write_text(text, encoding="utf-8")


def test_chapters_that_are_named_become_links():
    pages = {"05": "five", "08": "eight"}
    assert link_chapters("See chapters 05 and 08, `chapter 05`.", pages) == (
        "See chapters [05](five) and [08](eight), `chapter 05`."
    )
    assert link_chapters("```text\nchapter 05\n```\nIn 05, chapter 99", pages) == (
        "```text\nchapter 05\n```\nIn 05, chapter 99"
    )


class served:
    """A folder at a URL of this machine's."""

    def __init__(self, folder: Path):
        quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(folder)))

    def __enter__(self) -> str:
        Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
