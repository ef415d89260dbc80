"""The order of the course is the dependency order of the package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import llmkit
from autograder.course import CHAPTERS

FLOORS = [module for chapter in CHAPTERS for module in chapter.modules]
SHARED = ["assets", "device", "plots", "widgets"]
ROOT = Path(llmkit.__file__).parent
FILES = [
    path.relative_to(ROOT)
    for path in ROOT.rglob("*.py")
    if path.parent != ROOT or path.stem[0] != "_"
]


def imported(source: str) -> set[str]:
    """Every dotted name that a source imports, at the top or within."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def rooms(source: str) -> set[str]:
    """The modules of llmkit that a source imports."""
    return {name.split(".")[1] for name in imported(source) if name.startswith("llmkit.")}


def test_every_module_has_a_floor():
    assert {path.parts[0].removesuffix(".py") for path in FILES} <= {*FLOORS, *SHARED}


@pytest.mark.parametrize("path", sorted(FILES), ids=str)
def test_module_imports_only_from_floors_below(path):
    module = path.parts[0].removesuffix(".py")
    below = FLOORS[: FLOORS.index(module)] if module in FLOORS else []
    source = (ROOT / path).read_text(encoding="utf-8")
    assert rooms(source) <= {*below, *SHARED}
    assert not [name for name in imported(source) if name.startswith(("autograder", "."))]


def test_transformers_is_for_tests_only():
    for path in ROOT.rglob("*.py"):
        names = imported(path.read_text(encoding="utf-8"))
        assert not [name for name in names if name.split(".")[0] == "transformers"], path


def test_the_reader_of_imports_sees_every_spelling():
    source = "import llmkit.a\nfrom llmkit import b\ndef f():\n    from llmkit.c import x as y\n"
    assert rooms(source) == {"a", "b", "c"}


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, llmkit; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_file_can_be_read_in_one_sitting():
    assert {
        str(path): n for path in FILES if (n := len((ROOT / path).read_text().splitlines())) > 400
    } == {}
