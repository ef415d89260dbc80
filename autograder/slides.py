"""A chapter as slides: the instructor's notebook with its outputs, one HTML file for a browser.

    executed notebook ──► pieces with slide types ──► nbconvert ──► build/slides/10-decoding.html

nbconvert's would fetch reveal.js and MathJax from afar. A lecture hall may have no network, so both
lie beside the slides.
"""

import re
import shutil
from importlib import resources
from pathlib import Path

from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from autograder.build import BEGIN, END, executed
from autograder.course import Chapter

HEADING = re.compile(r"(?:^|\n\n)(?=#{1,3} )")
DRAWS = re.compile(r"^(?:plots\.show|widgets\.\w+)\(", re.MULTILINE)
MARKERS = re.compile(rf"^\s*(?:{BEGIN}|{END})\n?", re.MULTILINE)


def write_slides(course: Path, chapter: Chapter, folder: Path) -> Path:
    """Write the slides of a chapter into `folder`, run it first if need be, and return the file.

    Raises BuildError if the chapter does not run, RuntimeError where a package is missing.
    """
    try:
        from nbconvert import SlidesExporter

        reveal = resources.files("sphinx_revealjs") / "_static" / "revealjs"
        mathjax = resources.files("mathjax") / "static" / "mathjax" / "es5" / "tex-svg.js"
    except ImportError as error:
        raise RuntimeError(
            f"Slides need {error.name}, which is not installed: pip install 'llmkit-course[teach]'."
        ) from None
    notebook = as_slides(executed(course, chapter))
    shutil.copytree(str(reveal), folder / "reveal.js", dirs_exist_ok=True)
    shutil.copy(str(mathjax), folder / "mathjax.js")
    with resources.as_file(resources.files("autograder") / "templates") as templates:
        exporter = SlidesExporter(
            template_name="slides",
            extra_template_basedirs=[str(templates)],
            reveal_url_prefix="reveal.js",
            reveal_theme="white",
            mathjax_url="mathjax.js",
        )
        page, _ = exporter.from_notebook_node(notebook)
    target = folder / f"{chapter.slug}.html"
    target.write_text(page, encoding="utf-8")
    return target


def as_slides(notebook: NotebookNode) -> NotebookNode:
    """The notebook cut into slides at its headings: a section begins one, other text a page below.

    Code stays on the page of the text before it, and the last words of a section on its last page.
    Of a cell that draws, the picture is shown. nbgrader's markers are left out.
    """
    pieces = []
    for cell in notebook.cells:
        cell.source = MARKERS.sub("", cell.source)
        if cell.cell_type == "markdown":
            texts = filter(str.strip, HEADING.split(cell.source))
            pieces += [new_markdown_cell(text.strip()) for text in texts]
        else:
            if DRAWS.search(cell.source):
                cell.metadata["transient"] = {"remove_source": True}
            pieces.append(cell)
    levels = [re.match("#{1,3} |", cell.source)[0].count("#") for cell in pieces]
    for cell, level, after in zip(pieces, levels, [*levels[1:], 1], strict=True):
        if cell.cell_type == "markdown" and (level or not after):
            kind = "slide" if level in (1, 2) else "subslide"
            cell.metadata["slideshow"] = {"slide_type": kind}
    notebook.cells = pieces
    return notebook
