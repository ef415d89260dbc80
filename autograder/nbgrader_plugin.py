"""The judge inside `nbgrader autograde`: it takes the place of sanitizing and of `Execute`.

    c.Autograde.sanitize_preprocessors = ["autograder.nbgrader_plugin.Judge"]
    c.HTMLExporter.filters = {"markdown2html": "autograder.nbgrader_plugin.harmless_markdown"}

Formgrader, feedback and export work unchanged. The submitted file is read again, as data: what
nbgrader read of it does not count.
"""

from pathlib import Path

from nbconvert.exporters.exporter import ResourcesDict
from nbconvert.filters import markdown2html
from nbconvert.preprocessors.sanitize import SanitizeHTML
from nbformat import NotebookNode
from nbgrader.preprocessors import NbGraderPreprocessor

from autograder.course import find_chapter
from autograder.grade import grade_notebook, job_of
from autograder.sandbox import Limits
from autograder.submission import find_submissions

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

    def preprocess(
        self, nb: NotebookNode, resources: ResourcesDict
    ) -> tuple[NotebookNode, ResourcesDict]:
        who = resources["nbgrader"]
        student, chapter = who["student"], find_chapter(who["assignment"])
        course = Path.cwd()  # where nbgrader stands while it converts
        found = next(f for f in find_submissions(course, chapter.slug) if f.student == student)
        _drop_links(found.path.parent, course / "autograded" / student / chapter.slug)
        graded, notebook = grade_notebook(job_of(course, chapter, Limits())(found))
        if notebook is None:
            raise ValueError(f"{student} cannot be graded: {graded.problems[0]}.")
        self.log.info("%s earned %d of %d points", student, graded.earned, graded.points)
        return notebook, resources


def harmless_markdown(source: str) -> str:
    """Markdown as HTML that runs nothing: formgrader shows it in the instructor's browser."""
    return _HARMLESS.sanitize_html_tags(markdown2html(source))


def _drop_links(submitted: Path, copied: Path) -> None:
    """nbgrader has copied what lies beside the notebook, and what links there lead to. That goes:
    it need not be the student's, and would be handed back as feedback."""
    for path in submitted.rglob("*"):
        if path.is_symlink() or (path.is_file() and path.stat().st_nlink != 1):
            (copied / path.relative_to(submitted)).unlink(missing_ok=True)
