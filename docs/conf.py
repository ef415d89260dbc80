"""The book, for Sphinx: the guides beside this file, the chapters as they ran, llmkit's docstrings.

`make book` runs chapters that have changed since their last run.
"""

import re
import sys
from importlib import resources
from pathlib import Path

import nbformat
from sphinx.application import Sphinx

DOCS = Path(__file__).parent
COURSE = DOCS.parent
sys.path.insert(0, str(COURSE))

from autograder.book import chapter_of_book, link_chapters  # noqa: E402
from autograder.build import executed  # noqa: E402
from autograder.course import chapters  # noqa: E402

project = "Large language models, from scratch and graded"
author = "the authors of llmkit"
language = "en"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.mathjax"]

html_theme = "pydata_sphinx_theme"
# a guide is one page: a list of its part would be empty
GUIDES = ("index", "students", "instructors", "architecture", "performance")
html_sidebars = {name: [] for name in GUIDES}
html_title = "LLMs, from scratch and graded"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": True}
html_context = {"default_mode": "auto"}
html_favicon = "_static/favicon.svg"
html_show_sourcelink = False
html_copy_source = False
html_css_files = ["book.css"]
# MathJax lies beside the pages, which so need no network.
mathjax_path = "tex-svg.js"
html_static_path = [
    "_static",
    str(resources.files("mathjax") / "static" / "mathjax" / "es5" / "tex-svg.js"),
]

nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}  # no widget lives here
myst_enable_extensions = ["dollarmath"]
myst_disable_syntax = ["footnote_ref", "footnote_def"]  # the chapters write [^…], of patterns
myst_heading_anchors = 3

templates_path = ["_templates"]
autodoc_member_order = "bysource"
default_role = "code"


def write_chapters(app: Sphinx) -> None:
    folder = DOCS / "chapters"
    folder.mkdir(exist_ok=True)
    for chapter in chapters(COURSE):
        page = chapter_of_book(executed(COURSE, chapter))
        for cell in page.cells:
            if cell.cell_type == "markdown":
                cell.source = link_chapters(cell.source, PAGES)
        nbformat.write(page, folder / f"{chapter.slug}.ipynb")


def link_guides(app: Sphinx, docname: str, content: list[str]) -> None:
    if not docname.startswith("chapters/"):
        content[0] = link_chapters(content[0], {n: f"chapters/{page}" for n, page in PAGES.items()})


PAGES = {chapter.slug[:2]: f"{chapter.slug}.ipynb" for chapter in chapters(COURSE)}


def as_rst(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list) -> None:
    """A docstring is plain text, with tables of names; write it as Sphinx's markup."""
    paragraphs = "\n".join(lines).strip().split("\n\n")
    lines[:] = "\n\n".join(map(_as_rst, paragraphs)).split("\n")


def _as_rst(paragraph: str) -> str:
    escaped = "".join(
        part if part.startswith("`") else re.sub(r"[*|\\]|_(?!\w)", r"\\\g<0>", part)
        for part in re.split(r"(`[^`]*`)", paragraph)
    )
    if not re.search(r"^\s*\S+:? {2,}\S", paragraph, re.MULTILINE):
        return escaped
    found, inside = [], False
    for line in escaped.splitlines():
        indent = len(line) - len(line.lstrip())
        if entry := re.match(r" {0,2}(\S.*?)(?::  *|  +)(\S.*)$", line):
            found += ([] if inside else [""]) + [entry[1], f"    {entry[2]}"]
            inside = True
        else:
            found.append(f"    {line.strip()}" if indent else line)
    return "\n".join(found)


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", write_chapters)
    app.connect("autodoc-process-docstring", as_rst)
    app.connect("source-read", link_guides)
