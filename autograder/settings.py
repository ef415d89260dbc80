"""What a course's nbgrader_config.py says, for the steps that we take with nbgrader's own code."""

import sys
from pathlib import Path

from traitlets.config import Config, PyFileConfigLoader


class SettingsError(RuntimeError):
    """nbgrader_config.py cannot be read, or asks for something that does not exist."""


def nbgrader_settings(course: Path, db_url: str = "") -> Config:
    """The settings of the course in that folder, with its gradebook at `db_url`.

    Without a URL it is where the file says, or gradebook.db in the folder. As with nbgrader,
    modules beside the file (a plugin, say) can be named in it. Raises SettingsError.
    """
    if str(course) not in sys.path:
        sys.path.append(str(course))
    file, config = course / "nbgrader_config.py", Config()
    if file.is_file():
        try:
            config = PyFileConfigLoader(file.name, path=str(course)).load_config()
        except Exception as error:
            raise SettingsError(f"{file} failed: {type(error).__name__}: {error}") from error
    config.CourseDirectory.root = str(course)
    usual = config.CourseDirectory.get("db_url") or f"sqlite:///{course / 'gradebook.db'}"
    config.CourseDirectory.db_url = db_url or usual
    return config
