"""What instructors and students open, in a real browser: headless Chromium, offline."""

import re
from pathlib import Path

import pytest

from autograder.graded import Graded
from autograder.places import Place
from autograder.report import write_report
from autograder.similar import Alike, Pair, write_page
from autograder.verdict import Verdict
from tests.browser import PROGRAM, chromium

pytestmark = pytest.mark.skipif(not PROGRAM, reason="no Chromium is installed")

HOSTILE_NAME = '<img src=x onerror="window.owned=1"> <b>Mallory</b>'
HOSTILE_ERROR = "</bdi></td><script>window.owned=1</script>{{ 7*7 }} javascript:alert(1) &lt;i&gt;"
WIDE, PHONE = 1200, 390


@pytest.fixture(scope="module")
def page():
    with chromium() as page:
        yield page


def verdicts(i: int) -> tuple[Verdict, ...]:
    """A student who solves the more, the higher the number."""
    found = []
    for exercise in range(9):
        name = f"a_function_with_a_long_name_{exercise}"
        if exercise * 3 < i:
            found.append(Verdict(name, 3, 3, "correct", 5, 5))
        else:
            title = f"misconception {i % 3} about the shape of what comes back"
            found.append(
                Verdict(name, 3, 0, "wrong", 5, 2, "x", "differs", "", title, "Why, do you think?")
            )
    return tuple(found)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    graded = [
        Graded(f"student {i}", f"{chapter:02d}-chapter", verdicts(i))
        for i in range(30)
        for chapter in (1, 2, 3)
    ]
    stopped = Verdict(verdicts(0)[0].exercise, 3, 0, "stopped", problem=HOSTILE_ERROR)
    wrong = Verdict(verdicts(0)[1].exercise, 3, 0, "wrong", 5, 1, HOSTILE_ERROR, HOSTILE_ERROR)
    failed = Verdict(verdicts(0)[0].exercise, 3, 0, "ungraded", problem=HOSTILE_ERROR)
    graded.append(Graded(HOSTILE_NAME, "01-chapter", (stopped, wrong), (HOSTILE_ERROR,)))
    graded.append(Graded(HOSTILE_NAME, "02-chapter", (failed,), (HOSTILE_ERROR,)))
    places = {
        ("01-chapter", one.exercise): Place("1 · Shapes", "01.md", 3, 40) for one in verdicts(0)
    }
    folder = tmp_path_factory.mktemp("pages")
    write_report(graded, folder / "class.html", places, names=False)
    return write_report(graded, folder / "report.html", places)


@pytest.fixture(scope="module")
def alike(tmp_path_factory) -> Path:
    source = f"def f(x):\n    return '{HOSTILE_ERROR}'  # {'wide ' * 60}"
    cell = Alike("f", 200.0, 1.0, True, (source, source), ((0, 1), (0, 1)))
    pairs = [Pair("01-chapter", who, 200.0, (cell,), 3) for who in ((HOSTILE_NAME, "bob"),)]
    return write_page(pairs, tmp_path_factory.mktemp("alike") / "similar.html")


@pytest.mark.parametrize("width", [WIDE, PHONE])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["report", "class", "alike"])
def test_a_page_renders_without_complaint_and_asks_for_nothing(name, dark, width, page, request):
    path = request.getfixturevalue("alike" if name == "alike" else "report")
    path = path.with_name("class.html") if name == "class" else path
    page.console.clear(), page.asked.clear()
    page.open(path, width, dark=dark)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.console == []
    assert page.asked == [path.as_uri()]
    assert page.evaluate("window.owned") is None
    assert page.evaluate("document.querySelectorAll('script, img, iframe').length") == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # no sideways scrolling
    assert page.evaluate("document.body.innerText.length") > 200
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red, green, blue = map(int, re.findall(r"\d+", background))
    assert max(red, green, blue) < 64 if dark else min(red, green, blue) > 192
    assert page.barriers() == []


def test_hostile_text_is_shown_as_text(page, report, alike):
    for path in (report, alike):
        page.open(path)
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        shown = page.evaluate("document.body.innerText")
        assert HOSTILE_NAME in shown
        assert HOSTILE_ERROR in shown
        assert page.evaluate("window.owned") is None


def test_pictures_have_height_and_marks_have_colour(page, report):
    page.open(report)
    bars = page.evaluate("[...document.querySelectorAll('.histogram i')].map(b => b.offsetHeight)")
    counts = page.evaluate(
        "[...document.querySelectorAll('.histogram li')].map(l => parseInt(l.firstChild.data) || 0)"
    )
    assert sum(counts) == 31 and max(bars) > 50
    for bar, count in zip(bars, counts, strict=True):
        assert bar == pytest.approx(max(bars) * count / max(counts), abs=1)
    dots = page.evaluate("document.querySelectorAll('svg.map circle').length")
    assert dots == 27  # nine exercises in each of three chapters
    inside = """
        [...document.querySelectorAll('svg.map circle')].every(dot => {
            const [a, b] = [dot, dot.closest('svg')].map(one => one.getBoundingClientRect())
            return a.top >= b.top && a.bottom <= b.bottom && a.left >= b.left && a.right <= b.right
        })
    """
    assert page.evaluate(inside) is True
    colours = page.evaluate(
        "[...document.querySelectorAll('.bar span')].map(s => getComputedStyle(s).backgroundColor)"
    )
    assert len(set(colours)) >= 3 and "rgba(0, 0, 0, 0)" not in colours


def test_a_link_opens_what_it_leads_to(page, report):
    page.open(report)
    link = "document.querySelector('table.grid a')"
    page.evaluate(f"{link}.click()")
    target = page.evaluate(f"{link}.getAttribute('href').slice(1)")
    assert page.evaluate(f"document.getElementById({target!r}).offsetHeight") > 0


def test_the_browser_would_have_complained(page, tmp_path):
    """The tests above see what they look for: a script, a request, text wider than the window."""
    bad = tmp_path / "bad.html"
    policy = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\">"
    bad.write_text(f"{policy}<script>window.owned=1</script><img src='nowhere.png'>")
    page.console.clear(), page.asked.clear()
    page.open(bad)
    assert len(page.console) >= 2 and page.evaluate("window.owned") is None
    bad.write_text("<script>window.owned=1; console.error('oh')</script><img src='nowhere.png'>")
    page.console.clear()
    page.open(bad)
    assert "['oh']" in page.console and page.evaluate("window.owned") == 1
    assert any(url.endswith("nowhere.png") for url in page.asked)
    bad.write_text(f"<meta name=viewport content='width=device-width'><pre>{'wide' * 200}</pre>")
    page.open(bad, PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") > PHONE
