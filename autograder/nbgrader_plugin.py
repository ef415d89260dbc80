"""The judge inside `nbgrader autograde`: it takes the place of sanitizing and of `Execute`.

    c.Autograde.sanitize_preprocessors = ["autograder.nbgrader_plugin.Judge"]

Formgrader, feedback and export work unchanged. The submitted file is read again, as data: what
nbgrader read of it does not count.
"""

from pathlib import Path

from nbconvert.exporters.exporter import ResourcesDict
from nbformat import NotebookNode
from nbgrader.preprocessors import NbGraderPreprocessor

from autograder.course import find_chapter
from autograder.grade import grade_notebook, job_of
from autograder.sandbox import Limits
from autograder.submission import Found


class Judge(NbGraderPreprocessor):
    """Replaces the notebook by the release with the student's sources and the judge's verdicts."""

    def preprocess(
        self, nb: NotebookNode, resources: ResourcesDict
    ) -> tuple[NotebookNode, ResourcesDict]:
        who = resources["nbgrader"]
        student, chapter = who["student"], find_chapter(who["assignment"])
        course = Path.cwd()  # where nbgrader stands while it converts
        submitted = course / "submitted" / student / chapter.slug / f"{chapter.slug}.ipynb"
        job = job_of(course, chapter, Limits())(Found(student, chapter.slug, submitted))
        graded, notebook = grade_notebook(job)
        self.log.info("%s earned %d of %d points", student, graded.earned, graded.points)
        return notebook, resources
