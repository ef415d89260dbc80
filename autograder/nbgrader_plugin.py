"""The judge inside `nbgrader autograde`: it takes the place of sanitizing and of `Execute`.

    c.Autograde.sanitize_preprocessors = ["autograder.nbgrader_plugin.Judge"]
    c.HTMLExporter.filters = {
        "markdown2html": "autograder.nbgrader_plugin.harmless_markdown",
        "highlight_code": "autograder.nbgrader_plugin.harmless_code",
        "clean_html": "autograder.nbgrader_plugin.harmless_html",
    }

Formgrader, feedback and export work unchanged. The submitted file is read again, as data: what
nbgrader read of it does not count.
"""

from functools import cache, lru_cache
from html import escape
from pathlib import Path

from nbconvert.exporters.exporter import ResourcesDict
from nbconvert.filters import Highlight2HTML, clean_html, markdown2html
from nbconvert.preprocessors.sanitize import SanitizeHTML
from nbformat import NotebookNode
from nbgrader.preprocessors import NbGraderPreprocessor
from traitlets import Dict

from autograder.grade import Job, Terms, course_limits, grade_notebook, terms_of
from autograder.masters import masters
from autograder.sandbox import Limits
from autograder.submission import find_submissions

# Characters of a cell that are rendered: of a longer one the beginning is shown as it is. What
# renders takes a time that grows as the square, hours for a cell of nothing but line breaks.
LONGEST_MARKDOWN = 20_000
LONGEST_CODE = 6_000
LONGEST_HTML = 200_000

# Not IPython's lexer: it is ten times as slow at the worst, for a magic's colour.
_PYTHON = Highlight2HTML(pygments_lexer="python3")

# What Markdown makes, pygments' classes included, and nothing that runs.
_HARMLESS = SanitizeHTML(
    tags=[
        *("a", "abbr", "b", "blockquote", "br", "code", "del", "details", "div", "em", "hr", "i"),
        *("h1", "h2", "h3", "h4", "h5", "h6", "img", "li", "ol", "p", "pre", "span", "strong"),
        *("sub", "summary", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul"),
    ],
    attributes={"a": ["href"], "div": ["class"], "img": ["src", "alt"], "span": ["class"]},
)


class Judge(NbGraderPreprocessor):
    """Replaces the notebook by the release with the student's sources and the judge's verdicts.

    Raises ValueError, at which nbgrader leaves out the submission and goes on, if it cannot be
    graded: a link in its place, say, could lead to another's.
    """

    limits = Dict(help="What a submission may use: {'wall_per_cell': 30}").tag(config=True)

    def preprocess(
        self, nb: NotebookNode, resources: ResourcesDict
    ) -> tuple[NotebookNode, ResourcesDict]:
        who = resources["nbgrader"]
        student, assignment, name = who["student"], who["assignment"], who["notebook"]
        course = Path.cwd()  # where nbgrader stands while it converts
        submissions = find_submissions(course, assignment, name)
        found = next(f for f in submissions if f.student == student)
        _drop_links(found.path.parent, course / "autograded" / student / assignment)
        terms = _terms(course, assignment, course_limits(course, self.limits))[name]
        graded, notebook = grade_notebook(Job(found, terms))
        if notebook is None:
            raise ValueError(f"{student} cannot be graded: {graded.problems[0]}.")
        self.log.info("%s earned %g of %g points", student, graded.earned, graded.points)
        return notebook, resources


@cache
def _terms(course: Path, assignment: str, limits: Limits) -> dict[str, Terms]:
    return {m.name: terms_of(course, m, limits) for m in masters(course, assignment)}


@lru_cache(4096)  # a class's notebooks share nearly all of their text
def harmless_markdown(source: str) -> str:
    """Markdown as HTML that runs nothing: formgrader shows it in the instructor's browser."""
    if len(source) > LONGEST_MARKDOWN:
        return _beginning(source)
    return _HARMLESS.sanitize_html_tags(markdown2html(source))


def harmless_code(source: str, language: str = "", metadata: dict | None = None) -> str:
    """A cell's Python in colours, in a time that a student cannot stretch."""
    return _beginning(source) if len(source) > LONGEST_CODE else _PYTHON(source)


def harmless_html(source: str) -> str:
    """What nbconvert makes of HTML that it does not trust, of a raw cell say, if it is not long."""
    return _beginning(source) if len(source) > LONGEST_HTML else clean_html(source)


def _beginning(source: str) -> str:
    more = len(source) - LONGEST_MARKDOWN
    words = f"\n[{more:,} characters more]" if more > 0 else ""
    return f'<div class="highlight"><pre>{escape(source[:LONGEST_MARKDOWN])}{words}</pre></div>'


def _drop_links(submitted: Path, copied: Path) -> None:
    """nbgrader has copied what lies beside the notebook, and what links there lead to. That goes:
    it need not be the student's, and would be handed back as feedback."""
    for path in submitted.rglob("*"):
        if path.is_symlink() or (path.is_file() and path.stat().st_nlink != 1):
            (copied / path.relative_to(submitted)).unlink(missing_ok=True)
