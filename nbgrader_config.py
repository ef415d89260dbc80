# nbgrader's settings: solutions/ is the source, notebooks/ the release, and our judge runs nothing
# of a submission outside the sandbox.
c = get_config()  # noqa: F821 - nbgrader defines it

c.CourseDirectory.course_id = "llm"
c.CourseDirectory.source_directory = "solutions"
c.CourseDirectory.release_directory = "notebooks"
# Files beside a source notebook would be copied into the release and over every submission: the
# .md beside it holds the solutions.
c.CourseDirectory.ignore = [".ipynb_checkpoints", "__pycache__", "*.pyc", "*.md", "feedback"]

# The judge comes first: it reads the submitted file as data and puts the release with the student's
# sources and the verdicts in its place, so nothing else of the submission goes any further. What
# follows is nbgrader's own list without Execute.
c.Autograde.sanitize_preprocessors = ["autograder.nbgrader_plugin.Judge"]
c.Autograde.autograde_preprocessors = [
    "nbgrader.preprocessors.LimitOutput",
    "nbgrader.preprocessors.SaveAutoGrades",
    "nbgrader.preprocessors.AssignLatePenalties",
    "nbgrader.preprocessors.CheckCellMetadata",
]

# What lateness costs: "none", "zero" for all, or say with AssignLatePenalties.plugin_class.
c.LateSubmissionPlugin.penalty_method = "none"

# Formgrader and feedback would show a written answer's HTML as it is, scripts included, and colour
# a cell for as long as that takes.
c.HTMLExporter.filters = {
    "markdown2html": "autograder.nbgrader_plugin.harmless_markdown",
    "highlight_code": "autograder.nbgrader_plugin.harmless_code",
    "clean_html": "autograder.nbgrader_plugin.harmless_html",
}
