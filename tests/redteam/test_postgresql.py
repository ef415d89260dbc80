"""The gradebook in PostgreSQL, on a real server: the same grades, whatever happens to it."""

import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from autograder.__main__ import main
from autograder.grade import grade_class
from autograder.gradebook import GradebookError, open_gradebook
from autograder.sandbox import Limits
from tests.grading import CHAPTER, finish, scores, start, write_small_class
from tests.postgresql import PASSWORD, USER, Server, running_server

LIMITS = Limits()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def url(server) -> str:
    return server.new_database()


@pytest.fixture(scope="module")
def opened(server) -> str:
    """A database that holds a gradebook."""
    url = server.new_database()
    with open_gradebook(url):
        return url


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Path:
    return write_small_class(tmp_path_factory.mktemp("fresh"))


@pytest.fixture
def course(fresh, tmp_path) -> Path:
    return shutil.copytree(fresh, tmp_path / "course")


@pytest.fixture(scope="module")
def undisturbed(fresh, tmp_path_factory) -> Path:
    """The same class, graded into SQLite."""
    course = shutil.copytree(fresh, tmp_path_factory.mktemp("undisturbed") / "course")
    grade_class(course, CHAPTER, limits=LIMITS)
    return course


def command(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line."""
    monkeypatch.setattr(sys, "argv", ["autograder", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    return end.value.code or 0, said.out, said.err


def test_every_step_of_a_term_says_the_same_as_with_sqlite(
    url, course, undisturbed, tmp_path, monkeypatch, capsys
):
    grade_class(course, CHAPTER, db_url=url, limits=LIMITS)
    assert not list(course.glob("*.db"))
    assert scores(course, url) == scores(undisturbed)
    roster = tmp_path / "roster.csv"
    roster.write_text(f"id,first_name\nperfect-{CHAPTER[:2]},Ada\n")
    sqlite = shutil.copytree(undisturbed, tmp_path / "sqlite")
    tables = []
    for where in (["-C", str(course), "--db", url], ["-C", str(sqlite)]):
        for step in (
            ["roster", str(roster)],
            ["due", CHAPTER, "2026-01-01 12:00 UTC"],
            ["extend", CHAPTER, f"perfect-{CHAPTER[:2]}", "--days", "1"],
        ):
            code, _, complaint = command(monkeypatch, capsys, *step, *where)
            assert code == 0, complaint
        code, table, complaint = command(monkeypatch, capsys, "export", CHAPTER, *where)
        assert code == 0, complaint
        tables.append(sorted(table.splitlines()))
    assert tables[0] == tables[1] and "Ada" in "".join(tables[0])


def test_two_graders_on_one_new_database_end_as_one_would(url, course, undisturbed):
    for process in [start(course, "--db", url), start(course, "--db", url)]:
        code, complaint = finish(process)
        assert code == 0, complaint
    assert scores(course, url) == scores(undisturbed)


def test_graders_that_open_a_new_database_at_once_make_its_tables_once(url):
    def look() -> int:
        with open_gradebook(url) as gradebook:
            return len(gradebook.assignments)

    with ThreadPoolExecutor(4) as pool:
        assert [seen.result() for seen in [pool.submit(look) for _ in range(4)]] == [0] * 4


def test_a_server_that_goes_away_in_the_middle_costs_no_grade(server, url, course, undisturbed):
    def kill(graded: object, done: int, total: int) -> None:
        if done == 2:
            server.kill()

    with pytest.raises(GradebookError) as failure:
        grade_class(course, CHAPTER, db_url=url, limits=LIMITS, progress=kill)
    assert "failed: " in str(failure.value) and "it goes on from there" in str(failure.value)
    assert "\n" not in str(failure.value) and PASSWORD not in str(failure.value)
    with pytest.raises(GradebookError, match="refused"), open_gradebook(url):
        pass  # it is still away
    assert len(list(course.glob("verdicts/*/*.json"))) == 2
    server.start()
    kept = {student for student, _, _ in scores(course, url)}
    assert {path.stem for path in course.glob("verdicts/*/*.json")} <= kept
    grade_class(course, CHAPTER, db_url=url, limits=LIMITS)
    assert scores(course, url) == scores(undisturbed)


def test_a_wrong_password_host_or_database_is_a_sentence(server, opened):
    wrong = opened.replace(PASSWORD, "wrong-" + PASSWORD)
    for address, reason in {
        wrong: "password authentication failed",
        opened + "_not": "does not exist",
        opened.replace("127.0.0.1", "no.such.host.invalid"): "no.such.host.invalid",
        opened.replace(str(server.port), str(unused_port())): "refused",
    }.items():
        begun = time.monotonic()
        with pytest.raises(GradebookError, match=reason) as failure, open_gradebook(address):
            pass
        assert PASSWORD not in str(failure.value) and "\n" not in str(failure.value)
        assert f"{USER}:***@" in str(failure.value)
        assert time.monotonic() - begun < 15


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("gradebook.db", "cannot be read"),
        (f"grader:{PASSWORD}@localhost/class", "cannot be read"),
        (f"postgresql://grader:{PASSWORD}@localhost:port/class", "cannot be read"),
        (f"oracle9://grader:{PASSWORD}@localhost/class", "'oracle9' is no database"),
        (f"postgresql+psycopg4://grader:{PASSWORD}@localhost/class", "is no database"),
        (f"postgresql+pg8000://grader:{PASSWORD}@localhost/class", r"psycopg\[binary\]"),
        (f"mysql+pymysql://grader:{PASSWORD}@localhost/class", "pip install pymysql"),
        (f"postgresql+psycopg://grader:half@{PASSWORD}@localhost/class", "write %40"),
        (f"postgresql+psycopg://grader@localhost:1/class?password={PASSWORD}", "refused"),
        ("sqlite:////no/such/folder/gradebook.db", "no gradebook /no/such"),
    ],
)
def test_a_wrong_url_is_a_sentence_and_no_file(wrong, reason, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, complaint = command(monkeypatch, capsys, "export", "--db", wrong)
    assert code == 1
    complaint = " ".join(complaint.split())
    assert re.search(reason, complaint), complaint
    assert "Traceback" not in complaint and PASSWORD not in complaint
    assert list(tmp_path.iterdir()) == []


def test_a_gradebook_is_made_in_no_folder_that_is_not_there():
    absent = open_gradebook("sqlite:////no/such/folder/gradebook.db")
    with pytest.raises(GradebookError, match="There is no folder"), absent:
        pass


def test_a_password_may_hold_what_a_url_escapes(server, opened):
    with psycopg.connect(server.conninfo("postgres"), autocommit=True) as connection:
        connection.execute("create role odd superuser login password 'p@s/s:%w'")
    odd = opened.replace(f"{USER}:{PASSWORD}", f"odd:{quote('p@s/s:%w', safe='')}")
    with open_gradebook(odd) as gradebook:
        assert gradebook.assignments == []


def test_a_plain_url_works(opened):
    with open_gradebook(opened.replace("+psycopg", "")) as gradebook:
        assert gradebook.assignments == []


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
