"""The README's pictures, drawn by the project itself: `make pictures` writes them to docs/_static/.

Needs Chromium, which the tests' own driver (tests/browser.py) speaks to, and the grader's sandbox.
"""

import base64
import copy
import dataclasses
import io
import json
import random
import shutil
import tempfile
from pathlib import Path

import jupytext
import nbformat
from PIL import Image, ImageOps

from autograder.demo import Synthetic, make_class, write_class
from autograder.grade import grade_class
from autograder.places import find_places
from autograder.report import write_report
from tests.browser import Page, chromium, free_port, serving

COURSE = Path(__file__).parents[1]
PICTURES = COURSE / "docs" / "_static"
SHARPNESS = 1.5  # pixels of a picture for each of the page's
FRAME = 16  # white ones around it

CHAPTER, EXERCISE = "02-losses", "cross_entropy"
MISTAKE = """\
    counted = targets != ignore_index
    if not counted.any():
        raise ValueError("no target counts")
    picked = targets.where(counted, 0)[..., None]
    losses = -torch.log_softmax(logits, -1).gather(-1, picked)[..., 0]
    return (losses * counted).mean()"""

CLASS = "05-attention"
NAMES = (
    "ada alan andrey anita barbara claude dennis donald edsger emmy frances grace hedy ida "
    "james joan john karen katherine ken leslie margaret niklaus radia shafi sophie tony vint"
)


def check(page: Page, folder: Path) -> None:
    """A wrong answer in JupyterLab, and what its check says."""
    notebook = nbformat.read(COURSE / "notebooks" / CHAPTER / f"{CHAPTER}.ipynb", 4)
    place = [cell.source for cell in notebook.cells].index(f"check({EXERCISE})")
    exercise, call = notebook.cells[place - 1 : place + 1]
    exercise.source = exercise.source.partition("    # YOUR CODE HERE")[0] + MISTAKE
    imports = next(cell for cell in notebook.cells if "import check" in cell.source)
    notebook.cells = [imports, exercise, call, nbformat.v4.new_code_cell()]
    nbformat.write(notebook, folder / "chapter.ipynb")

    port = free_port()
    options = ["--no-browser", "--allow-root", f"--port={port}", "--IdentityProvider.token="]
    options += [f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True"]
    home = {name: str(folder) for name in ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
    url = f"http://localhost:{port}"
    with serving(["jupyterlab", *options], f"{url}/api/status", COURSE, home):
        show(page, f"{url}/lab/tree/chapter.ipynb", width=1020)
        page.wait("document.body.innerText.includes('| Idle')")
        for command in ("application:toggle-left-area", "notebook:run-all-cells"):
            page.evaluate(f"jupyterapp.commands.execute('{command}').then(() => null)")
        page.wait("document.body.innerText.includes('Diagnosis:')")
        cell = ".jp-Cell[data-windowed-list-index='{}'] .jp-Cell-{}Wrapper"
        save(page, "check.png", cell.format(1, "input"), cell.format(2, "output"))


def report(page: Page, folder: Path) -> None:
    """The first screen of a class's report."""
    write_class(COURSE, folder, synthetic_class())
    graded = grade_class(folder, CLASS)
    path = write_report(graded, folder / "report.html", find_places(COURSE))
    show(page, path.as_uri(), width=1180)
    save(page, "report.png", "header", ".two", "[aria-labelledby=misunderstood] tr:nth-child(3) td")


def synthetic_class() -> list[Synthetic]:
    """Students of one chapter: right but for some mistakes, of which some are more common."""
    made = [one for one in make_class(COURSE) if one.chapter == CLASS]
    right = next(one for one in made if one.kind == "style")
    mistaken = [one.notebook.cells for one in made if one.kind == "misconception"]
    chance, students = random.Random(1), []
    for name in NAMES.split():
        notebook, skill = copy.deepcopy(right.notebook), chance.betavariate(4, 2)
        for place, cell in enumerate(notebook.cells):
            if chance.random() > skill:
                which = int(chance.expovariate(0.5))
                cell.source = mistaken[which % len(mistaken)][place].source
        students.append(dataclasses.replace(right, student=name, notebook=notebook))
    return students


def demo(page: Page, folder: Path) -> None:
    """A demo of a lecture, as `make demos` serves it."""
    folder = folder / "demos"
    shutil.copytree(COURSE / "demos", folder, ignore=shutil.ignore_patterns("*.ipynb"))
    jupytext.write(jupytext.read(folder / "sampling.md"), folder / "sampling.ipynb")
    port = free_port()
    url = f"http://localhost:{port}"
    paths = {"JUPYTER_PATH": ".", "PYTHONPATH": str(COURSE)}
    with serving(["voila", "--no-browser", f"--port={port}"], url, folder, paths):
        show(page, f"{url}/voila/render/sampling.ipynb", width=820)
        page.wait("document.body.innerText.includes('tokens are left')")
        save(page, "demo.png", ".widget-vbox", ".widget-html-content:has(img, svg)")


def show(page: Page, url: str, width: int, height: int = 1400) -> None:
    """Open a page in a window of this size, as sharp as the pictures are to be."""
    page.open(url, width, height)
    size = {"width": width, "height": height, "deviceScaleFactor": SHARPNESS, "mobile": False}
    page.call("Emulation.setDeviceMetricsOverride", **size)


def save(page: Page, name: str, *selectors: str) -> None:
    """Write the part of the window that holds the first element of each selector as a picture."""
    boxes = page.evaluate(
        f"{json.dumps(selectors)}.map(s => document.querySelector(s).getBoundingClientRect())"
        ".map(box => [box.left, box.top, box.right, box.bottom])"
    )
    left, top, right, bottom = zip(*boxes, strict=True)
    clip = {"x": min(left), "y": min(top), "scale": 1}
    clip |= {"width": max(right) - min(left), "height": max(bottom) - min(top)}
    shot = page.call("Page.captureScreenshot", clip=clip)["data"]
    image = Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB")
    image = ImageOps.expand(image, FRAME, "white").quantize(128, dither=Image.Dither.NONE)
    image.save(PICTURES / name, optimize=True)
    print(PICTURES / name)


if __name__ == "__main__":
    for draw in (check, report, demo):
        with tempfile.TemporaryDirectory() as folder, chromium() as page:
            draw(page, Path(folder))
