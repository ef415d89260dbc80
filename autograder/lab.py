"""JupyterLab, opened where the student has got to, with the progress page beside the notebook."""

import json
import os
import subprocess
import sys
from pathlib import Path

from autograder.progress import Standing, as_page, standings

PAGE, WORKSPACE = "progress.html", "course"
# else the first thing that a student reads is an offer of news
PAGE_CONFIG = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}


def open_lab(folder: Path, arguments: list[str]) -> int:
    """Start JupyterLab in `folder`, and return its exit status when it ends.

    Raises LookupError if there is no chapter in `folder`, RuntimeError if one cannot be read.
    """
    found = standings(folder)
    (folder / PAGE).write_text(as_page(found), encoding="utf-8")
    here = folder.resolve() / ".lab"
    here.mkdir(exist_ok=True)
    layout = here / "layout.json"
    layout.write_text(json.dumps(_workspace(_current(found))), encoding="utf-8")
    (here / "labconfig").mkdir(exist_ok=True)
    (here / "labconfig" / "page_config.json").write_text(json.dumps(PAGE_CONFIG), encoding="utf-8")
    paths = [str(here), *filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")])]
    environment = os.environ | {
        "JUPYTERLAB_WORKSPACES_DIR": str(here),
        "JUPYTER_CONFIG_PATH": os.pathsep.join(paths),
    }
    lab = [sys.executable, "-m", "jupyterlab"]
    subprocess.run(
        [sys.executable, "-m", "jupyterlab.labapp", "workspaces", "import", str(layout)],
        env=environment,
        check=True,
        capture_output=True,
    )
    options = [
        f"--ServerApp.root_dir={folder.resolve()}",
        f"--LabApp.default_url=/lab/workspaces/{WORKSPACE}",
    ]
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # a container's only user, as a rule
        options.append("--allow-root")
    return subprocess.run([*lab, *options, *arguments], env=environment).returncode


def _current(found: list[Standing]) -> str:
    """The chapter that was last worked on, or the one after it if that is solved."""
    begun = [i for i, one in enumerate(found) if one.earned]
    after = found[begun[-1] :] if begun else found
    return next((one.chapter for one in after if one.next), found[0].chapter)


def _workspace(chapter: str) -> dict:
    """The notebook of the chapter on the left, the progress page on the right."""
    notebook = f"{chapter}/{chapter}.ipynb"
    tabs = [
        {"type": "tab-area", "currentIndex": 0, "widgets": [name]}
        for name in (f"notebook:{notebook}", f"htmlviewer:{PAGE}")
    ]
    area = {
        "type": "split-area",
        "orientation": "horizontal",
        "sizes": [0.7, 0.3],
        "children": tabs,
    }
    return {
        "data": {
            "layout-restorer:data": {"main": {"dock": area, "current": tabs[0]["widgets"][0]}},
            f"notebook:{notebook}": {"data": {"path": notebook, "factory": "Notebook"}},
            f"htmlviewer:{PAGE}": {"data": {"path": PAGE, "factory": "HTML Viewer"}},
        },
        "metadata": {"id": WORKSPACE},
    }
