"""The report: numbers computed by hand, text that stays text, a page that needs nothing else."""

import json
import random
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path
from statistics import mean, pstdev

import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from autograder.course import chapters, checks_of
from autograder.display import one_line
from autograder.graded import Graded
from autograder.places import Place, find_places
from autograder.report import (
    FEWEST,
    LONGEST,
    SHOWN,
    WEAK,
    as_data,
    print_report,
    summarize,
    write_report,
)
from autograder.verdict import Verdict

ROOT = Path(__file__).parents[2]


def right(name, points):
    return Verdict(name, points, points, "correct", 5, 5)


def wrong(name, points, misconception="", hint="", problem="the shape is (5, 3)", case="x = 3"):
    return Verdict(name, points, 0, "wrong", 5, 2, case, problem, "", misconception, hint)


def lost(name, points, status, problem):
    return Verdict(name, points, 0, status, problem=problem)


SHIFTED = "labels are shifted to the right", "Which token does position 0 predict?"
TWICE = "labels are shifted twice", "Does the loss shift them, too?"

# 02-losses: one_hot 2 + shift_labels 4 = 6 points; 04-positions: apply_rope 4 points.
CLASS = [
    Graded("ada", "02-losses", (right("one_hot", 2), right("shift_labels", 4))),  # 6
    Graded("ada", "04-positions", (right("apply_rope", 4),)),  # 4
    Graded("bob", "02-losses", (right("one_hot", 2), wrong("shift_labels", 4, *SHIFTED))),  # 2
    Graded(
        "bob",
        "04-positions",
        (lost("apply_rope", 4, "stopped", "ran longer than 10 s"),),  # 0
        ("Its cell was there twice.",),
    ),
    Graded(
        "cyd",  # handed in nothing of 04-positions
        "02-losses",
        (lost("one_hot", 2, "blank", "is not written yet"), wrong("shift_labels", 4, *SHIFTED)),
    ),
    Graded("dee", "02-losses", (wrong("one_hot", 2), wrong("shift_labels", 4, *TWICE))),
    Graded("dee", "04-positions", (right("apply_rope", 4),)),  # 4
]


def printed(graded, width=100):
    out = StringIO()
    print_report(graded, Console(file=out, width=width))
    return out.getvalue()


@pytest.fixture
def page(tmp_path):
    def write(graded):
        path = write_report(graded, tmp_path / "report.html")
        return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")

    return write


def text(element):
    return " ".join(element.get_text(" ").split())


def rows(table):
    return [[text(cell) for cell in row.find_all(["th", "td"])] for row in table.find_all("tr")]


# --- numbers ---------------------------------------------------------------------------------


def test_the_numbers_of_a_class_are_those_computed_by_hand():
    summary = summarize(CLASS)
    assert [(s.name, s.earned, s.points) for s in summary.students] == [
        ("ada", 10, 10),
        ("bob", 2, 10),
        ("cyd", 0, 10),
        ("dee", 4, 10),
    ]
    assert summary.notebooks == 7
    assert summary.mean == pytest.approx((1.0 + 0.2 + 0.0 + 0.4) / 4)
    assert summary.median == pytest.approx((0.2 + 0.4) / 2)
    assert summary.distribution == [1, 0, 1, 0, 1, 0, 0, 0, 0, 1]
    assert [(c.slug, c.points, c.mean) for c in summary.chapters] == [
        ("02-losses", 6, (6 + 2 + 0 + 0) / 4),
        ("04-positions", 4, (4 + 0 + 4) / 3),
    ]


def test_an_exercise_is_counted_over_the_notebooks_handed_in():
    one_hot, shift_labels, apply_rope = summarize(CLASS).items
    assert one_hot.shares() == [("correct", 2), ("wrong", 1), ("blank", 1)]
    assert shift_labels.shares() == [("correct", 1), ("diagnosed", 3)]
    assert apply_rope.shares() == [("correct", 2), ("stopped", 1)]
    assert (one_hot.rate, shift_labels.rate, apply_rope.rate) == (2 / 4, 1 / 4, 2 / 3)
    assert (one_hot.mean, shift_labels.mean, apply_rope.mean) == (4 / 4, 4 / 4, 8 / 3)
    assert [item.name for item in summarize(CLASS).hardest] == [
        "shift_labels",
        "one_hot",
        "apply_rope",
    ]


def test_misconceptions_are_ranked_and_say_who_holds_them():
    found = [
        (item.name, held.letter, held.title, held.hint, [student.name for student in held.students])
        for item, held in summarize(CLASS).misunderstandings
    ]
    assert found == [
        ("shift_labels", "a", *SHIFTED, ["bob", "cyd"]),
        ("shift_labels", "b", *TWICE, ["dee"]),
    ]


def test_what_needs_a_look_is_a_problem_of_the_file_and_a_worker_that_ended():
    ((student, chapter, reasons),) = summarize(CLASS).needs_a_look
    assert (student.name, chapter) == ("bob", "04-positions")
    assert reasons == ["Its cell was there twice.", "apply_rope: ran longer than 10 s"]


def test_the_difficulty_is_the_share_of_the_points_that_the_class_earned():
    items = {item.name: item for item in summarize(CLASS).items}
    assert items["one_hot"].difficulty == 4 / 8
    assert items["apply_rope"].difficulty == 8 / 12
    half = Verdict("f", 4, 1, "partial", problem="the shape is (5, 3)")
    graded = [Graded("ada", "c", (half,)), Graded("bob", "c", (right("f", 4),))]
    assert summarize(graded).items[0].difficulty == (1 + 4) / 8
    assert summarize(graded).items[0].rate == 1 / 2


def test_discrimination_is_the_correlation_with_the_rest_of_the_chapter():
    """Against the textbook's point-biserial formula, on a class drawn at random."""
    draw = random.Random(0)
    able = [draw.random() for _ in range(40)]
    answers = {f"e{i}": [draw.random() < a for a in able] for i in range(6)}
    answers["luck"] = [draw.random() < 0.5 for _ in able]
    answers["upside_down"] = [a < 0.4 for a in able]
    graded = [
        Graded(f"student {s}", "c", tuple(_answer(e, right_) for e, right_ in _of(answers, s)))
        for s in range(len(able))
    ]
    items = {item.name: item for item in summarize(graded).items}
    for name, solved in answers.items():
        rest = [
            2 * sum(answers[other][s] for other in answers if other != name)
            for s in range(len(able))
        ]
        of_right = [points for points, yes in zip(rest, solved, strict=True) if yes]
        of_wrong = [points for points, yes in zip(rest, solved, strict=True) if not yes]
        p = len(of_right) / len(able)
        r = (mean(of_right) - mean(of_wrong)) / pstdev(rest) * (p * (1 - p)) ** 0.5
        assert items[name].discrimination == pytest.approx(r)
    assert all((item.remark == "") == (item.discrimination >= WEAK) for item in items.values())
    assert items["upside_down"].remark.startswith("the stronger students fail it")


def _of(answers, student):
    return [(name, solved[student]) for name, solved in answers.items()]


def _answer(name, solved):
    return right(name, 2) if solved else wrong(name, 2)


def test_nothing_is_said_of_discrimination_where_there_is_too_little_to_say_it_from():
    few = [Graded(f"s{i}", "c", (_answer("f", i % 2), right("g", 2))) for i in range(FEWEST)]
    items = {item.name: item for item in summarize(few).items}
    assert items["f"].discrimination is None  # everybody earned the same in the rest
    assert items["g"].discrimination is None and items["g"].remark == ""
    assert all(item.discrimination is None for item in summarize(CLASS).items)


def test_what_the_grader_failed_at_is_nobodys_failure():
    reason = "not graded, for the grader itself failed: OSError: the disk is full"
    verdicts = (lost("one_hot", 2, "ungraded", reason), lost("shift_labels", 4, "ungraded", reason))
    unlucky = Graded("eve", "02-losses", verdicts, (reason,))
    before, after = summarize(CLASS), summarize([*CLASS, unlucky])
    assert [(s.name, chapter, r) for s, chapter, r in after.ungraded] == [
        ("eve", "02-losses", reason)
    ]
    assert [item.shares() for item in after.items] == [item.shares() for item in before.items]
    assert [c.mean for c in after.chapters] == [c.mean for c in before.chapters]
    assert [who.name for who, _, _ in after.needs_a_look] == ["bob"]
    eve = after.students[-1]
    assert (eve.earned, eve.points) == (0, 4)  # the other chapter was not handed in
    alone = summarize([unlucky])
    assert (alone.mean, alone.struggling, alone.distribution) == (0, [], [0] * 10)
    assert "Not graded: the grader failed, not the student" in printed([unlucky])


def test_who_could_use_help_has_less_than_half_of_the_points():
    found = summarize(CLASS).struggling
    assert [student.name for student in found] == ["cyd", "bob", "dee"]
    assert found[0].misconceptions == [("shift_labels", SHIFTED[0])]
    shown = printed(CLASS)
    assert "Could use help: less than 50% of the points" in shown
    assert next(
        line.split()[:4] for line in shown.splitlines() if line.split()[:2] == ["0%", "cyd"]
    ) == ["0%", "cyd", "04-positions", "shift_labels:"]


# --- where the course treats it --------------------------------------------------------------


def test_a_place_is_the_section_down_to_the_exercises_check():
    for (chapter, exercise), place in find_places(ROOT).items():
        lines = (ROOT / "solutions" / chapter / place.file).read_text().splitlines()
        assert lines[place.first - 1] == f"## {place.heading}"
        assert exercise in lines[place.last - 1] and lines[place.last - 1].startswith("check")
        assert not any(re.match("##? ", line) for line in _prose(lines[place.first : place.last]))
    exercises = {(c.slug, name) for c in chapters(ROOT) for name in checks_of(c.slug)}
    assert find_places(ROOT).keys() == exercises


def _prose(lines):
    code = False
    for line in lines:
        code ^= line.startswith("```")
        if not code:
            yield line


def test_a_misconception_is_shown_with_its_place(page, tmp_path):
    place = Place("3 · Shifting", "02-losses.md", 40, 77)
    places = {("02-losses", "shift_labels"): place}
    path = write_report(CLASS, tmp_path / "report.html", places)
    shown = text(BeautifulSoup(path.read_text(), "html.parser"))
    assert "Treated in “3 · Shifting”, 02-losses.md:40–77" in shown
    out = StringIO()
    print_report(CLASS, Console(file=out, width=120), places)
    assert "02-losses.md:40–77" in out.getvalue()


# --- for the class, and for machines ---------------------------------------------------------


def test_the_page_for_the_class_names_nobody(tmp_path):
    names = ["Ada Lovelace", "Bob Smith", "Cyd Charisse", "Dee Dee"]
    graded = [replace(one, student=names["abcd".index(one.student[0])]) for one in CLASS]
    graded.append(Graded("Eve Moneypenny", "02-losses", (lost("one_hot", 2, "ungraded", "x"),)))
    named = write_report(graded, tmp_path / "named.html").read_text()
    unnamed = write_report(graded, tmp_path / "class.html", names=False).read_text()
    for name in [*names, "Eve Moneypenny"]:
        assert name in named
        assert not any(part in unnamed for part in name.split())
    soup = BeautifulSoup(unnamed, "html.parser")
    assert SHIFTED[0] in text(soup) and SHIFTED[1] in text(soup)
    assert not soup.select("#students, #help, #look, #ungraded, table.grid, .who")
    targets = {link["href"].removeprefix("#") for link in soup.find_all("a")}
    assert all(soup.find(id=target) for target in targets)


def test_the_json_holds_every_verdict_and_the_same_numbers():
    data = json.loads(json.dumps(as_data(CLASS)))
    summary = summarize(CLASS)
    assert (data["format"], data["students"], data["points"]) == (1, 4, 10)
    assert data["mean"] == summary.mean and data["distribution"] == summary.distribution
    shift = next(one for one in data["exercises"] if one["exercise"] == "shift_labels")
    assert shift["endings"] == {"correct": 1, "diagnosed": 3}
    assert [(m["title"], m["students"]) for m in shift["misconceptions"]] == [
        (SHIFTED[0], 2),
        (TWICE[0], 1),
    ]
    bob = next(n for n in data["notebooks"] if (n["student"], n["chapter"][:2]) == ("bob", "04"))
    assert (bob["earned"], bob["points"], bob["ungraded"]) == (0, 4, False)
    assert bob["verdicts"][0]["problem"] == "ran longer than 10 s"
    assert as_data([])["mean"] is None


def test_the_order_of_the_records_does_not_matter(tmp_path):
    forth = write_report(CLASS, tmp_path / "forth.html").read_bytes()
    back = write_report(CLASS[::-1], tmp_path / "back.html").read_bytes()
    assert forth == back
    assert printed(CLASS) == printed(CLASS[::-1])


# --- the terminal ----------------------------------------------------------------------------


def test_the_terminal_shows_gradebook_exercises_and_misconceptions():
    shown = printed(CLASS)
    lines = [line.split() for line in shown.splitlines()]
    assert ["bob", "2", "0", "2", "20%"] in lines
    assert ["cyd", "0", "–", "0", "0%"] in lines
    assert ["mean", "2.0", "2.7", "4.0", "40%"] in lines
    assert ["out", "of", "6", "4", "10"] in lines
    assert ["02-losses", "one_hot", "2/4", "█████", "1.0/2"] in lines
    assert ["2", "shift_labels", *SHIFTED[0].split()] in lines
    assert shown.endswith("4 students · 7 notebooks · mean 40% · median 30%\n")


def test_thirteen_chapters_fit_eighty_columns_with_every_number_whole():
    graded = [
        Graded("Maximiliana van der Westhuizen", f"{i:02d}-chapter", (right("f", 10 + i),))
        for i in range(1, 14)
    ]
    lines = printed(graded, width=80).splitlines()
    assert max(map(cell_len, lines)) <= 80
    row = next(line.split() for line in lines if "Maxi" in line)
    assert row[-15:] == [*(str(10 + i) for i in range(1, 14)), str(130 + 91), "100%"]


# --- the page --------------------------------------------------------------------------------


def test_the_grid_tells_the_five_endings_apart(page):
    losses, positions = (rows(grid) for grid in page(CLASS).select("table.grid"))
    assert losses == [
        ["Student", "one_hot", "shift_labels", "points"],
        ["ada", "✓", "✓", "6"],
        ["bob", "✓", "✗a", "2"],
        ["cyd", "–", "✗a", "0"],
        ["dee", "✗", "✗b", "0"],
    ]
    assert positions[1:] == [["ada", "✓", "4"], ["bob", "⚠", "0"], ["dee", "✓", "4"]]


def test_the_page_shows_the_same_gradebook(page):
    assert rows(page(CLASS).select_one("#students table")) == [
        ["Student", "02-losses", "04-positions", "total", "score"],
        ["ada", "6", "4", "10", "100 %"],
        ["bob", "2", "0", "2", "20 %"],
        ["cyd", "0", "–", "0", "0 %"],
        ["dee", "0", "4", "4", "40 %"],
        ["mean", "2.0", "2.7", "4.0", "40 %"],
        ["out of", "6", "4", "10", ""],
    ]


def test_a_misconception_comes_with_its_hint_and_names(page):
    table = page(CLASS).find(id="misunderstood").find_next("table")
    assert rows(table)[1] == ["2", f"{SHIFTED[0]} · shift_labels {SHIFTED[1]}", "bob , cyd"]


def test_every_link_leads_to_the_reasons(page):
    soup = page(CLASS)
    targets = {link["href"] for link in soup.find_all("a")}
    assert all(soup.find(id=target.removeprefix("#")) for target in targets)
    link = soup.select_one("table.grid").find("a", string="dee")
    reasons = text(soup.find(id=link["href"][1:]))
    assert (
        "one_hot the shape is (5, 3) (2 of 5 cases pass; the first that fails: x = 3 )" in reasons
    )
    assert f"Diagnosis: {TWICE[0]}" in reasons


def test_the_page_needs_no_script_no_network_and_no_other_file(page):
    soup = page(CLASS)
    assert not soup.find_all(["script", "link", "img", "iframe", "object", "embed", "base", "form"])
    assert not soup.find_all(src=True)
    assert all(link["href"].startswith("#") for link in soup.find_all(href=True))
    assert not re.search(r"https?:|//[a-z]|url\(|@import", str(soup))
    policy = soup.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_bars_and_tables_can_be_read_without_seeing_them(page):
    soup = page(CLASS)
    bars = [bar["aria-label"] for bar in soup.select("#hardest ~ div .bar")]
    assert bars[0] == "1 correct, 3 wrong, diagnosed"
    assert [bar["aria-label"] for bar in soup.select(".histogram li")][2] == (
        "20–30 % of the points: 1 student"
    )
    assert all(table.find("th") for table in soup.find_all("table"))


# --- hostile text ----------------------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "[red]all correct[/red] [link=https://example.org]here[/link]",
    "\x1b[2J\x1b[31mred\x1b]8;;https://example.org\x07link",
    "right\u202eot\u2066left\u200b",
    "two\nlines\r\u2028and\x85more",
    "half \ud800 a character",
    "{{ 7 * 7 }}{% raw %}",
    ":smile: & &lt;b&gt;",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_text_of_a_submission_arrives_as_text(hostile, page):
    verdicts = (
        wrong("f", 1, problem=hostile, case=hostile),
        lost("g", 1, "stopped", hostile),
    )
    graded = [Graded(hostile, "02-losses", verdicts, (f"problem {hostile}",))]
    soup = page(graded)
    harmless = one_line(hostile)
    assert soup.select_one("table.grid a").get_text() == harmless
    assert not soup.find_all(["script", "img"])
    assert not [tag for tag in soup.find_all() if any(a.startswith("on") for a in tag.attrs)]
    assert all(link["href"].startswith("#") for link in soup.find_all(href=True))

    out = StringIO()
    console = Console(file=out, width=300, force_terminal=True, color_system="truecolor")
    print_report(graded, console)
    plain = re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())  # the report's own bold and colours
    assert all(c.isprintable() or c == "\n" for c in plain)
    assert harmless in plain
    assert f"problem {harmless}" in plain


def test_names_that_look_alike_when_harmless_stay_two_students():
    graded = [Graded(name, "02-losses", (right("f", 1),)) for name in ("a\x00", "a\x01")]
    assert [s.name for s in summarize(graded).students] == ["a�", "a�"]


@given(st.text())
def test_one_line_is_one_printable_line_and_leaves_plain_text_alone(string):
    line = one_line(string)
    assert line.isprintable()
    assert one_line(line) == line
    if string.isprintable() and "  " not in f" {string} ":
        assert line == string


def test_a_long_error_message_is_shortened(page):
    soup = page([Graded("ada", "02-losses", (wrong("f", 1, problem="x" * 2_000),))])
    assert max(len(run) for run in re.findall("x+", soup.get_text())) == LONGEST - 1


# --- sizes -----------------------------------------------------------------------------------


def test_an_empty_class_says_so(page):
    sentence = "Nothing is graded yet: there is no submission to report on."
    assert sentence in page([]).get_text()
    assert printed([]).strip() == sentence


def test_one_student_with_everything_correct(page):
    graded = [Graded("ada", "02-losses", (right("f", 1),))]
    words = text(page(graded))
    assert "1 student 1 notebook 100 % mean" in words
    assert "Everybody solved every exercise." in words
    assert printed(graded).endswith("1 student · 1 notebook · mean 100% · median 100%\n")


def test_long_lists_are_folded_not_lost(page):
    names = [f"student {i}" for i in range(SHOWN + 5)]
    graded = [Graded(name, "02-losses", (wrong("f", 1, *SHIFTED),)) for name in names]
    who = page(graded).find(id="misunderstood").find_next("td", class_="who")
    assert "and 5 more" in text(who)
    assert {link.get_text() for link in who.find_all("a")} == set(names)


def test_a_large_course_stays_small_enough_to_open(tmp_path):
    def verdict(i):
        return wrong(f"exercise_{i}", 3, *SHIFTED) if i % 3 == 0 else right(f"exercise_{i}", 3)

    verdicts = tuple(verdict(i) for i in range(10))
    graded = [
        Graded(f"student {i}", f"{chapter:02d}-chapter", verdicts)
        for i in range(100)
        for chapter in range(1, 14)
    ]
    size = write_report(graded, tmp_path / "report.html").stat().st_size
    assert size < 200 * len(graded) * len(verdicts)  # 26 MB where 1,000 do as badly as these
