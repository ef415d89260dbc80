"""Who is alike: copies are found whatever disguises them, and a class that learned together is not.

The class is drawn from what the checks hold (references, variants, wrong solutions), so that many
write the same; `ANN` has a way of her own.
"""

import ast
import copy
import json
import random
import re
import shutil
from pathlib import Path

import nbformat
import nbformat.v4 as v4
import pytest
from bs4 import BeautifulSoup

from autograder.build import build, instructor_notebook, release
from autograder.cells import source_of
from autograder.check import Check
from autograder.course import SOLUTION, checks_of, find_chapter
from autograder.similar import (
    AGREE,
    GRAM,
    LEAST,
    REFERENCE,
    as_data,
    find_similar,
    runs,
    write_page,
)

ROOT = Path(__file__).parents[2]
CHAPTER = find_chapter("losses")
TEXT = CHAPTER.source(ROOT).read_text(encoding="utf-8")
SOLVED = instructor_notebook(TEXT, checks_of(CHAPTER.slug), "02-losses.md")
BLANK = release(SOLVED)
CHECKS = [check for check in checks_of(CHAPTER.slug).values() if isinstance(check, Check)]
POOL = {
    check.name: [
        source_of(function, check.name)
        for function in (
            check.reference,
            *check.variants,
            *(misconception.wrong for misconception in check.misconceptions),
        )
    ]
    for check in CHECKS
}
ANN = {
    "one_hot": """
def one_hot(targets, num_classes):
    rows = []
    for entry in targets.reshape(-1).tolist():
        row = [0.0] * num_classes
        row[entry] += 1.0
        rows.append(row)
    return torch.tensor(rows).reshape(tuple(targets.shape) + (num_classes,))
""",
    "kl_divergence": """
def kl_divergence(p, q):
    pieces = []
    for left, right in zip(p.unbind(-1), q.unbind(-1)):
        piece = left * (left / right).log()
        pieces.append(torch.nan_to_num(piece, nan=0.0))
    return torch.stack(pieces, 0).sum(0)
""",
    "log_softmax": """
def log_softmax(logits, dim=-1):
    biggest = torch.max(logits, dim, keepdim=True)[0]
    while biggest.dim() < logits.dim():
        biggest = biggest[..., None]
    moved = logits - biggest
    return moved - torch.log(torch.sum(torch.exp(moved), dim, True))
""",
}


@pytest.fixture
def course(tmp_path):
    """A course's folder to which submissions can be handed in."""
    source = CHAPTER.source(tmp_path)
    source.parent.mkdir(parents=True)
    shutil.copy(CHAPTER.source(ROOT), source)
    build(tmp_path)
    return tmp_path


def hand_in(course: Path, student: str, solutions: dict[str, str]) -> None:
    notebook = copy.deepcopy(BLANK)
    for cell in notebook.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id", "").removesuffix(SOLUTION)
        if cell.cell_type == "code" and cell.metadata.get("nbgrader", {}).get("solution"):
            cell.source = solutions.get(name, cell.source)
    path = course / "submitted" / student / CHAPTER.slug / f"{CHAPTER.slug}.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(notebook))


def hand_in_class(course: Path, students: int, seed: int = 0) -> None:
    """Students of whom nobody has the reference: each solution is a variant, or wrong in a way."""
    draw = random.Random(seed)
    for i in range(students):
        hand_in(course, f"other{i}", {name: draw.choice(pool[1:8]) for name, pool in POOL.items()})


def who(pairs):
    return [pair.who for pair in pairs]


# --- disguises -------------------------------------------------------------------------------


class Rename(ast.NodeTransformer):
    """New names for all that a function takes and assigns."""

    def __init__(self, tree: ast.AST):
        arguments = [node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)]
        stores = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not is_load(n)]
        self.new = {name: f"zz_{i}" for i, name in enumerate(dict.fromkeys(arguments + stores))}

    def visit_Name(self, node):
        return ast.Name(self.new.get(node.id, node.id), node.ctx)

    def visit_arg(self, node):
        return ast.arg(self.new[node.arg], node.annotation)


def is_load(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Load)


def renamed(source: str) -> str:
    tree = ast.parse(source)
    return ast.unparse(Rename(tree).visit(tree))


def commented(source: str) -> str:
    return "\n".join(f"{line}  # I thought: {i}" for i, line in enumerate(source.splitlines()))


def respaced(source: str) -> str:
    wide = re.sub(r"([=+*/,-])(?!=)(?<![=+*/-]=)", r" \1  ", source.replace("    ", "        "))
    return re.sub(r"\n(?=\s)", "\n\n\n", wide.replace("\\", "\\"))


def documented(source: str) -> str:
    head, _, body = source.strip().partition("\n")
    return f'{head}\n    """All of this I wrote by myself, in the night."""\n{body}'


DISGUISES = {
    "none": lambda source: source,
    "renamed": renamed,
    "commented": commented,
    "respaced": respaced,
    "documented": documented,
    "all": lambda source: respaced(commented(documented(renamed(source)))),
}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_disguised_copy_is_found_and_nobody_else(disguise, course):
    hand_in_class(course, 10)
    others = {name: POOL[name][1] for name in POOL}
    copied = {name: DISGUISES[disguise](source) for name, source in ANN.items()}
    hand_in(course, "ann", others | ANN)
    hand_in(course, "ben", {name: POOL[name][2] for name in POOL} | copied)
    (pair,) = find_similar(course)
    assert pair.who == ("ann", "ben") and not pair.with_reference
    assert {alike.exercise for alike in pair.exercises} == set(ANN)
    assert pair.characters >= LEAST
    assert all(alike.share >= AGREE for alike in pair.exercises)
    assert {alike.verbatim for alike in pair.exercises} == {disguise == "none"}
    assert pair.compared == len(POOL)


@pytest.mark.parametrize("disguise", DISGUISES)
def test_names_comments_and_blanks_are_no_part_of_a_run(disguise):
    for source in ANN.values():
        shared = runs(source) & runs(DISGUISES[disguise](source))
        exact = disguise in ("none", "renamed", "commented", "respaced")
        assert len(shared) >= len(runs(source)) * (1 if exact else 0.8)


# --- a class that learned together -----------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_class_that_solves_in_the_known_ways_is_not_listed(seed, course):
    hand_in_class(course, 40, seed)
    assert find_similar(course) == []


def test_two_who_both_write_the_usual_solution_are_not_alike(course):
    for student in ("ann", "ben", "cyd"):
        hand_in(course, student, {name: pool[1] for name, pool in POOL.items()})
    assert find_similar(course) == []


def test_what_many_wrote_weighs_little(course):
    """The same three cells: alike for two in ten, and common property for all of ten."""
    for i in range(10):
        hand_in(course, f"student{i}", ANN)
    assert find_similar(course) == []


def test_a_clique_is_found_as_all_of_its_pairs(course):
    hand_in_class(course, 10)
    for student in ("ann", "ben", "cyd"):
        hand_in(course, student, ANN)
    assert who(find_similar(course, least=100)) == [("ann", "ben"), ("ann", "cyd"), ("ben", "cyd")]


def test_the_releases_own_text_is_nobodys(course):
    """Stubs, signatures, docstrings and the chapter's own cells, all pasted into one cell."""
    given = "\n".join(cell.source for cell in BLANK.cells if cell.cell_type == "code")
    for student in ("ann", "ben"):
        hand_in(course, student, {name: f"{given}\nx = {student!r}" for name in POOL})
    assert find_similar(course) == []


# --- the reference ---------------------------------------------------------------------------


def solved(name: str) -> str:
    return next(cell.source for cell in SOLVED.cells if cell.get("id") == name + SOLUTION)


@pytest.mark.parametrize("disguise", ["none", "renamed", "commented"])
def test_who_has_the_reference_is_told(disguise, course):
    hand_in_class(course, 10)
    hand_in(course, "ann", {name: DISGUISES[disguise](solved(name)) for name in POOL})
    (pair,) = find_similar(course, least=100)
    assert pair.who == ("ann", REFERENCE) and pair.with_reference
    assert len(pair.exercises) > len(POOL) / 2


def test_llmkits_text_is_the_reference_too(course):
    hand_in_class(course, 10)
    hand_in(course, "ann", {name: pool[0] for name, pool in POOL.items()})
    assert ("ann", REFERENCE) in who(find_similar(course, least=60))


# --- any nbgrader assignment -----------------------------------------------------------------


def test_notebooks_of_an_nbgrader_assignment_are_compared_one_by_one(tmp_path):
    def cell(source: str, **flags: bool) -> nbformat.NotebookNode:
        marks = {"grade_id": "f", "schema_version": 3, "task": False, "locked": False}
        return v4.new_code_cell(source, metadata={"nbgrader": marks | flags})

    def write(path: Path, source: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        solution = cell(source, grade=False, solution=True)
        nbformat.write(v4.new_notebook(cells=[v4.new_code_cell("import torch"), solution]), path)

    solved = "def f(x):\n    ### BEGIN SOLUTION\n    return x\n    ### END SOLUTION"
    whole = "\n".join(ANN.values())
    for name in ("one", "two"):
        write(tmp_path / "source" / "ps1" / f"{name}.ipynb", solved)
        for student in ("ann", "ben", "cyd"):
            alike = name == "two" and student != "cyd"
            source = whole if alike else f"def f(x):\n    return x + {student!r}"
            write(tmp_path / "submitted" / student / "ps1" / f"{name}.ipynb", source)
    (pair,) = find_similar(tmp_path)
    assert (pair.chapter, pair.who) == ("ps1/two", ("ann", "ben"))
    assert find_similar(tmp_path, "ps1") == [pair]


# --- what is shown ---------------------------------------------------------------------------


def test_marked_lines_are_those_in_common(course):
    hand_in_class(course, 5)
    other = ANN["one_hot"].replace("row[entry] += 1.0", "assert entry in range(num_classes), entry")
    hand_in(course, "ann", ANN)
    hand_in(course, "ben", ANN | {"one_hot": other})
    (pair,) = find_similar(course)
    (alike,) = (a for a in pair.exercises if a.exercise == "one_hot")
    different = other.splitlines().index("        assert entry in range(num_classes), entry")
    assert different not in alike.lines[1]
    assert {3, 4, 7} <= set(alike.lines[0]) & set(alike.lines[1])


def test_the_page_and_the_json_hold_the_text_as_text(course, tmp_path):
    hostile = "\n# </pre><script>alert(1)</script> \u202e\x1b[2J"
    mine = {name: source + hostile for name, source in ANN.items()}
    for student in ("ann", "ben"):
        hand_in(course, student, mine)
    pairs = find_similar(course)
    soup = BeautifulSoup(write_page(pairs, tmp_path / "s.html").read_text(), "html.parser")
    assert not soup.find_all(["script", "link", "img", "iframe"]) and not soup.find_all(src=True)
    cells = [cell.get_text() for cell in soup.find_all("pre")]
    assert len(cells) == 2 * len(pairs[0].exercises)
    assert all("</pre><script>alert(1)</script> �" in cell for cell in cells)
    assert all(c.isprintable() or c == "\n" for cell in cells for c in cell)
    assert "row[entry] += 1.0" in {line.get_text().strip() for line in soup.select(".alike")}
    (data,) = json.loads(json.dumps(as_data(pairs)))
    assert data["who"] == ["ann", "ben"] and data["with_reference"] is False
    assert data["exercises"][0]["sources"][0].endswith(hostile)


def test_odd_submissions_are_passed_over(course):
    hand_in(course, "ann", ANN)
    hand_in(course, "=bad", ANN)
    for student, text in (("ben", "not JSON"), ("cyd", '{"nbformat": 4, "cells": []}')):
        path = course / "submitted" / student / CHAPTER.slug / f"{CHAPTER.slug}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    hand_in(course, "dee", {name: "def" * 7_000 for name in POOL})
    hand_in(course, "eve", {name: "((((" for name in POOL})
    assert find_similar(course) == []


def test_a_text_shorter_than_a_run_has_none():
    assert runs("") == runs("x = 1") == frozenset()
    assert len(runs("x = 1 + 2 + 3 + 4 + 5 + 6 + 7 + 8")) > 0
    assert GRAM == 16
