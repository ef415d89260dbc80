"""nbgrader's formgrader, in a real browser, on what the autograder graded: an instructor's desk."""

from collections.abc import Iterator

import pytest

from autograder.demo.synthetic import make_class
from tests.browser import PROGRAM, chromium, free_port, serving
from tests.grading import CHAPTER, ROOT, finish, start, write_small_class

pytestmark = pytest.mark.skipif(not PROGRAM, reason="no Chromium is installed")


@pytest.fixture
def formgrader(tmp_path) -> Iterator[str]:
    """The URL of formgrader over a class that was graded."""
    course = write_small_class(tmp_path / "class", KINDS)
    code, complaint = finish(start(course))
    assert code == 0, complaint
    port = free_port()
    home = {name: str(tmp_path) for name in ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
    url = f"http://localhost:{port}"
    options = ["--no-browser", "--allow-root", f"--port={port}", "--IdentityProvider.token="]
    with serving(
        ["jupyterlab", *options], f"{url}/api/status", course, home | {"PYTHONPATH": str(ROOT)}
    ):
        yield url


KINDS = ("perfect", "blank", "misconception")

# formgrader takes MathJax from afar and waits for it: here stands what it asks of it
MATHJAX = """
  window.MathJax = {Hub: {
    Config() {}, Queue() {},
    Startup: {signal: {Interest: heard => setTimeout(() => heard("End"), 100)}},
  }}
"""


def test_a_graded_submission_opens_with_its_scores_and_diagnosis(formgrader):
    text = "document.body.innerText"
    made = [s for s in make_class(ROOT) if s.chapter == CHAPTER and s.kind in KINDS]
    points = max(s.points for s in made)
    mistaken = next(s for s in made if s.diagnosis)
    with chromium() as page:
        page.call("Page.addScriptToEvaluateOnNewDocument", source=MATHJAX)
        page.open(f"{formgrader}/formgrader/gradebook/{CHAPTER}/{CHAPTER}")
        page.wait("document.querySelectorAll('tbody tr a').length > 0", seconds=30)
        rows = page.evaluate(
            "[...document.querySelectorAll('tbody tr')]"
            ".map(r => [r.children[3].innerText, r.querySelector('a').href])"
        )
        assert sorted(row[0] for row in rows) == sorted(f"{s.points} / {points}" for s in made)
        alike = [s for s in made if s.points == mistaken.points]
        links = [href for shown, href in rows if shown == f"{mistaken.points} / {points}"]
        found = []
        for link in links:  # formgrader does not say whose it is
            page.open(link)
            score = "[...document.querySelectorAll('input.score')].map(e => +e.placeholder)"
            page.wait(f"{score}.reduce((a, b) => a + b, 0) === {mistaken.points}", seconds=30)
            found.append(page.evaluate(text))
        for student in alike:
            told = [f"Diagnosis: {title}" for title in student.diagnosis.values()]
            assert any(all(line in shown for line in told) for shown in found)
        assert all("· all " in shown and "✗ " in shown for shown in found)
