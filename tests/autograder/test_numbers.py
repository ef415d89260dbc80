"""The prose of a chapter states the numbers that it computes.

`make notebooks` runs every chapter from top to bottom for it, which takes too long for `make test`.
"""

import ast
import math
import re
from collections.abc import Container, Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from autograder.build import execute
from autograder.course import chapters
from llmkit.assets import ASSETS

ROOT = Path(__file__).parents[2]

DIGITS = r"[−-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
STATED = re.compile(
    rf"(?<![\w.,^_/−-])({DIGITS})(?![\w/^]|,\d|\.\d)\s?(%|(?:[mb]illion|[kMG]B)\b)?"
)
COMPUTED = re.compile(rf"{DIGITS}(?:e[+-]?\d+)?")
DOWNLOADS = [asset.archive_bytes for asset in ASSETS.values()]
UNITS = {"%": 1e-2, "million": 1e6, "billion": 1e9, "kB": 1e3, "MB": 1e6, "GB": 1e9}
# Numbers that state nothing: in code and formulas set apart, links, headings, what names a thing.
SILENT = re.compile(
    r"```.*?```|`[^`\n]*`|\$\$.*?\$\$|<[^>]*>|\]\([^)]*\)"
    r"|^(?:#|Difficulty|\*\*Time)[^\n]*$|^\d+ points?$"
    r"|(?:Llama|LLaMA|GPT|SmolLM|Python|arXiv|§§?|footnote|Appendix"
    r"|(?:[Cc]hapter|[Ss]ection|[Tt]oken|[Pp]osition|Exercise|Question|Table|Figure|Equation)s?)"
    r"[ :\u00a0-]*[\d.]+[\w.]*(?:(?:, | and | to |–| … )[\d.]+)*"
    r"|\b(?:1[89]|20)\d\d\b(?!,\d| points| bytes| tokens| numbers)",
    re.DOTALL | re.MULTILINE,
)
# What every chapter may state: constants, SmolLM2's parameters, the bytes that are downloaded.
KNOWN = {math.e, math.tau, 134_515_008, *DOWNLOADS, sum(DOWNLOADS)}
# Numbers that a chapter may state though no cell of it computes them, and where they are from.
SUPPOSED = "a question supposes it"
GIVEN = {
    "01-ngrams": {"1,000": SUPPOSED, "1.1": SUPPOSED, "25": SUPPOSED},
    "02-losses": {"3.4": SUPPOSED, "2.08": SUPPOSED},
    "03-tokenization": {
        "255": "the largest byte",
        "104": "the byte of h",
        "32,000": "LLaMA, 2023, and Llama 2, 2023",
        "128,000": "Llama 3, 2024",
    },
    "04-positions": {
        "1024": "GPT-2, 2019",
        "131,072": "Llama 3.1's config.json",
        "1099": SUPPOSED,
        "17": SUPPOSED,
    },
    "05-attention": dict.fromkeys(("6.7", "32.5", "65.2"), "LLaMA, 2023, Table 2"),
    "06-norms": dict.fromkeys(("0.25", "0.4167"), "the steps of a docstring's example"),
    "07-feedforward": {"524,288": "the steps of Shazeer, 2020"},
    "10-decoding": {"40,000": "the draws of a check", "0.0001": SUPPOSED, "0.005": SUPPOSED},
    "12-finetuning": {"1,000": "LIMA, 2023"},
}


def prose(notebook: NotebookNode) -> Iterator[str]:
    """What a reader is told in words: texts, up to the sources, and what figures show."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text, sources, _ = cell.source.partition("## Sources\n")
            yield text
            if sources:
                return
        elif cell.cell_type == "code":
            for node in ast.walk(_tree(cell)):
                if isinstance(node, ast.keyword) and node.arg == "alt":
                    yield from (n.value for n in ast.walk(node) if _is_text(n))


def stated(text: str) -> Iterator[tuple[str, str, str]]:
    """The numbers that a text states, as they stand there, each with its unit and its place."""
    text = SILENT.sub(" ", text).replace("{,}", ",")
    for match in STATED.finditer(text):
        place = text[max(match.start() - 40, 0) : match.end() + 40]
        yield *match.groups(""), " ".join(place.split())


def computed(notebook: NotebookNode) -> Iterator[float]:
    """The numbers that cells print, that their code holds, and that their docstrings promise."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        for node in ast.walk(_tree(cell)):
            if isinstance(node, ast.Constant) and type(node.value) in (int, float):
                yield node.value
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield from map(_value, COMPUTED.findall(ast.get_docstring(node) or ""))
        for output in cell.outputs:
            shown = output.get("text") or output.get("data", {}).get("text/plain", "")
            yield from map(_value, COMPUTED.findall(shown))


def agrees(number: str, unit: str, values: set[float]) -> bool:
    """Whether a value, rounded as the number is, is that number; signs aside."""
    wanted, decimals = abs(_value(number)), len(number.partition(".")[2])
    nearest = 0.5000001 * 10**-decimals
    scales = (1.0, UNITS.get(unit, 1.0))
    return any(abs(abs(value) / scale - wanted) <= nearest for value in values for scale in scales)


def unfounded(notebook: NotebookNode, given: Container[str] = ()) -> list[str]:
    """The numbers in the prose that nothing in the notebook gives."""
    values = KNOWN | set(computed(notebook))
    return [
        f"{number}{unit}: … {place} …"
        for text in prose(notebook)
        for number, unit, place in stated(text)
        if number not in given and not agrees(number, unit, values)
    ]


def _value(number: str) -> float:
    return float(number.replace(",", "").replace("−", "-"))


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _tree(cell: NotebookNode) -> ast.Module:
    return ast.parse(re.sub(r"^[%!].*$", "", cell.source, flags=re.MULTILINE))


@pytest.mark.notebooks
@pytest.mark.parametrize("chapter", chapters(ROOT), ids=lambda chapter: chapter.slug)
def test_a_chapter_runs_and_its_prose_states_what_it_computes(chapter):
    execute(ROOT, chapter)
    done = nbformat.read(ROOT / "build" / "executed" / f"{chapter.slug}.ipynb", 4)
    assert unfounded(done, GIVEN.get(chapter.slug, ())) == []


def test_a_number_that_nothing_computes_is_found():
    printed = new_output("stream", text="loss 1.2345, 134,515,008 parameters, share 0.247")
    cells = [
        new_markdown_cell("The loss is 1.23 or 1.24. Of 135 million, 25 % or 24 %; `7` − 3.2."),
        new_code_cell(
            'plots.show(figure, alt="The curve ends at 1.2 " "of 9.")', outputs=[printed]
        ),
        new_code_cell("half = 3.2"),
        new_markdown_cell("## Sources\n\n- pp. 79–86"),
    ]
    found = unfounded(new_notebook(cells=cells))
    assert [line.split(":")[0] for line in found] == ["1.24", "24%", "9"]
