# nbgrader's settings: solutions/ is the source, notebooks/ the release, and our judge runs nothing
# of a submission outside the sandbox.
c = get_config()  # noqa: F821 - nbgrader defines it

c.CourseDirectory.course_id = "llm"
c.CourseDirectory.source_directory = "solutions"
c.CourseDirectory.release_directory = "notebooks"
# Files beside a source notebook would be copied into the release and over every submission: the
# .md beside it holds the solutions.
c.CourseDirectory.ignore = [".ipynb_checkpoints", "__pycache__", "*.pyc", "*.md", "feedback"]

# nbgrader's own list, with the judge in the place of Execute.
c.Autograde.autograde_preprocessors = [
    "autograder.nbgrader_plugin.Judge",
    "nbgrader.preprocessors.IgnorePattern",
    "nbconvert.preprocessors.ClearMetadataPreprocessor",
    "nbgrader.preprocessors.LimitOutput",
    "nbgrader.preprocessors.SaveAutoGrades",
    "nbgrader.preprocessors.AssignLatePenalties",
    "nbgrader.preprocessors.CheckCellMetadata",
]
