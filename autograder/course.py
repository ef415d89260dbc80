"""The chapters of the course, in order: their modules, their exercises, their files.

The order is the dependency order of `llmkit`: a chapter may use what earlier chapters taught.
Nothing here needs the course's folder, so that an installed package can grade by itself.
"""

import ast
import difflib
import functools
import importlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from autograder.check import Check, Exercise, Question

SOLUTION = "-solution"  # the grade_id of a solution cell is the exercise's name with this behind it
FIRST_CELL = "find_course"  # the grade_id of the cell that finds the course
DEMO = "demo"  # the tag of cells that are heavy or need assets: grading skips them

# What pip installs the course from in Colab: "git+https://github.com/ada/course", or a wheel's
# address. It stands in the first cell of every notebook, so build them again.
ADDRESS = ""


@dataclass(frozen=True)
class Chapter:
    """One chapter; `slug` is "02-losses", `modules` are the modules of llmkit that it teaches."""

    slug: str
    modules: tuple[str, ...]

    @property
    def topic(self) -> str:
        return self.slug[3:]

    def source(self, course: Path) -> Path:
        return course / "solutions" / self.slug / f"{self.slug}.md"

    def instructor_notebook(self, course: Path) -> Path:
        return course / "solutions" / self.slug / f"{self.slug}.ipynb"

    def release(self, course: Path) -> Path:
        return course / "notebooks" / self.slug / f"{self.slug}.ipynb"


CHAPTERS = (
    Chapter("01-ngrams", ("ngrams",)),
    Chapter("02-losses", ("losses",)),
    Chapter("03-tokenization", ("tokenization", "bpe")),
    Chapter("04-positions", ("positions",)),
    Chapter("05-attention", ("attention",)),
    Chapter("06-norms", ("norms",)),
    Chapter("07-feedforward", ("feedforward",)),
    Chapter("08-transformer", ("transformer", "bert", "checkpoints")),
    Chapter("09-pretraining", ("rnn", "pretraining", "distributed", "training")),
    Chapter("10-decoding", ("sampling", "search", "speculative", "decoding")),
    Chapter("11-prompting", ("prompting",)),
    Chapter("12-finetuning", ("lora", "finetuning")),
    Chapter("13-efficiency", ("native", "quantization", "efficiency")),
)


def chapters(course: Path) -> list[Chapter]:
    """The chapters whose source is in the course's folder, in order."""
    return [chapter for chapter in CHAPTERS if chapter.source(course).is_file()]


def find_chapter(name: str) -> Chapter:
    """The chapter called "02-losses", "losses" or "02".

    Raises LookupError, naming the nearest, if there is none.
    """
    for chapter in CHAPTERS:
        if name in (chapter.slug, chapter.topic, chapter.slug[:2]):
            return chapter
    raise LookupError(f"There is no chapter {name!r}{_nearest(name, (c.slug for c in CHAPTERS))}")


@functools.cache
def checks_of(chapter: str) -> dict[str, Exercise]:
    """The chapter's exercises by name, as `autograder.checks` defines them, in that order.

    Empty for a chapter that is not written yet. Raises ValueError if two share a name.
    """
    module = f"autograder.checks.{find_chapter(chapter).topic}"
    if importlib.util.find_spec(module) is None:
        return {}
    exercises = {}
    for value in vars(importlib.import_module(module)).values():
        if not isinstance(value, Check | Question):
            continue
        if exercises.setdefault(value.name, value) is not value:
            raise ValueError(f"{module} defines two exercises named {value.name!r}: rename one.")
    return exercises


def find(name: str) -> Exercise:
    """The exercise of that name, wherever in the course it is.

    Raises LookupError, naming the nearest, if there is none.
    """
    for chapter in CHAPTERS:
        if name in checks_of(chapter.slug):
            return checks_of(chapter.slug)[name]
    names = (n for chapter in CHAPTERS for n in checks_of(chapter.slug))
    raise LookupError(f"There is no exercise {name!r}{_nearest(name, names)}")


@functools.cache
def allowed_modules(chapter: str) -> dict[str, str]:
    """What a student of this chapter may import from llmkit: {"llmkit/losses.py": source text}.

    Those are the modules taught before it, and `device` and `plots`, which belong to no chapter and
    reveal no answer; the chapter's own would be the answers. Read from the installed package, once:
    not to be changed.
    """
    taught = CHAPTERS[: CHAPTERS.index(find_chapter(chapter))]
    before = [module for earlier in taught for module in earlier.modules]
    package = resources.files("llmkit")
    files = [f"{module}.py" for module in ("__init__", *before, "device")]
    files += [f"plots/{file.name}" for file in (package / "plots").iterdir()]
    return {
        f"llmkit/{file}": (package / file).read_text(encoding="utf-8")
        for file in files
        if file.endswith(".py") and (package / file).is_file()
    }


def graded_call(source: str) -> tuple[str, str] | None:
    """What a graded cell asks for: (exercise, variable that holds the answer), else None.

    `check(one_hot)` gives ("one_hot", "one_hot"), `check_answer("best", answer)` gives
    ("best", "answer"). A graded cell holds that one call: anything else is not one.
    """
    try:
        match ast.parse(source).body:
            case [ast.Expr(ast.Call(ast.Name("check"), [ast.Name(name)], []))]:
                return name, name
            case [
                ast.Expr(
                    ast.Call(
                        ast.Name("check_answer"), [ast.Constant(str(name)), ast.Name(variable)], []
                    )
                )
            ]:
                return name, variable
    except (SyntaxError, ValueError):  # IPython's magics, for one, are not Python
        pass
    return None


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else "."
