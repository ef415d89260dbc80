"""What of a submission goes through nbgrader's own hands: files beside it, and its Markdown."""

import time
from pathlib import Path
from types import SimpleNamespace

import nbformat.v4 as nbf
import pytest
from nbconvert.exporters import HTMLExporter
from traitlets.config import PyFileConfigLoader

from autograder import nbgrader_plugin
from autograder.graded import Graded

ROOT = Path(__file__).parents[2]
WHO = {"nbgrader": {"student": "mallory", "assignment": "02-losses", "notebook": "02-losses"}}


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;"),
        ("<img src=x onerror=alert(1)>", "<img"),
        ("<svg onload=alert(1)>", "&lt;svg"),
        ("<iframe src=//example.org></iframe>", "&lt;iframe"),
        ("<form action=//example.org><input>", "&lt;form"),
        ("[click](javascript:alert(1))", "<a>click</a>"),
        ("[click](data:text/html,<script>alert(1)</script>)", "click"),
        ("[ok](https://example.org)", '<a href="https://example.org">ok</a>'),
        ("**bold** `a<b` $x<y$", "<strong>bold</strong> <code>a&lt;b</code> $x&lt;y$"),
        ("```python\nx = 1\n```", '<span class="n">x</span>'),
        ("<details><summary>Hint</summary>\n\nThink.\n</details>", "<summary>Hint</summary>"),
        ("| a |\n|---|\n| 1 |", "<td>1</td>"),
    ],
)
def test_a_written_answer_runs_nothing_in_the_page_that_shows_it(written, shown):
    config = PyFileConfigLoader("nbgrader_config.py", path=str(ROOT)).load_config()
    notebook = nbf.new_notebook(cells=[nbf.new_markdown_cell(f"«\n\n{written}\n\n»")])
    page = HTMLExporter(config=config).from_notebook_node(notebook)[0]
    answer = page[page.index("«") : page.index("»")]
    assert shown in answer
    for live in ("<script", "onerror=", "onload=alert(1)>", "<iframe", "<form", "javascript:"):
        assert live not in answer


SLOW = ["x" + "\n" * 600_000, " \n" * 300_000, "a." * 300_000, "a" + " " * 600_000 + "z"]
SLOW += [text * (600_000 // len(text)) for text in ("\n    ", "\n\t", r"\begin{a}", "<div>", "[")]


@pytest.mark.parametrize("source", SLOW, ids=lambda source: ascii(source[:8]))
def test_no_cell_takes_long_to_draw(source):
    """With nbconvert's own filters the first takes half a day, and formgrader stands still."""
    config = PyFileConfigLoader("nbgrader_config.py", path=str(ROOT)).load_config()
    kinds = nbf.new_code_cell, nbf.new_markdown_cell, nbf.new_raw_cell
    cells = [kind(text) for kind in kinds for text in (source[:6000], source)]
    notebook = nbf.new_notebook(cells=cells)
    notebook.metadata.language_info = {"name": "python", "pygments_lexer": "ipython3"}
    started = time.process_time()
    page = HTMLExporter(config=config).from_notebook_node(notebook)[0]
    assert time.process_time() - started < 30
    assert page.count("characters more]") == 3


@pytest.fixture
def handed_in(tmp_path, monkeypatch) -> Path:
    """A submission with links beside it, after nbgrader has copied what they lead to."""
    secret = tmp_path / "secret.txt"
    secret.write_text("the answers")
    submitted = tmp_path / "submitted" / "mallory" / "02-losses"
    copied = tmp_path / "autograded" / "mallory" / "02-losses"
    for folder in (submitted / "more", copied / "more"):
        folder.mkdir(parents=True)
    (submitted / "plot.png").write_text("mine")
    (submitted / "symbolic.txt").symlink_to(secret)
    (submitted / "more" / "hard.txt").hardlink_to(secret)
    (copied / "plot.png").write_text("mine")
    for name in ("symbolic.txt", "more/hard.txt"):
        (copied / name).write_text(secret.read_text())
    terms = SimpleNamespace(master=SimpleNamespace(exercises={}, label=""))
    monkeypatch.setattr(nbgrader_plugin, "_terms", lambda *_: {"02-losses": terms})
    monkeypatch.chdir(tmp_path)
    return copied


def test_what_links_lead_to_is_not_handed_back(handed_in, monkeypatch):
    graded = Graded("mallory", "02-losses", ())
    monkeypatch.setattr(nbgrader_plugin, "grade_notebook", lambda _: (graded, "judged"))
    assert nbgrader_plugin.Judge().preprocess(None, WHO)[0] == "judged"
    assert [path.name for path in handed_in.rglob("*") if path.is_file()] == ["plot.png"]


def test_a_folder_that_is_a_link_is_not_graded(handed_in):
    folder = Path("submitted/mallory/02-losses")
    folder.rename("elsewhere")
    folder.symlink_to(Path("elsewhere").resolve())
    with pytest.raises(ValueError, match="the folder is a symbolic link"):
        nbgrader_plugin.Judge().preprocess(None, WHO)
