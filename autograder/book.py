"""A chapter of the book: the students' notebook with the outputs of a run, and without answers."""

import ast
import re
from collections.abc import Mapping

import nbformat
from nbformat import NotebookNode

from autograder.build import release
from autograder.course import graded_call

WIDGET = "application/vnd.jupyter.widget-view+json"
MENTION = re.compile(r"\b[Cc]hapters?[ \n]\d\d(?:(?:,? and |,? or |, | to |–)\d\d)*\b")


def chapter_of_book(executed: NotebookNode) -> NotebookNode:
    """What students get, with the outputs of the instructor's notebook where they tell no answer.

    Gone are the outputs of exercises and of their checks, and of cells that use the answer of a
    question. Of a widget its picture is left.
    """
    page = release(executed)
    code = [cell.source for cell in executed.cells if cell.cell_type == "code"]
    answers = {graded_call(text)[1] for text in code if text.startswith("check_answer(")}
    for cell, solved in zip(page.cells, executed.cells, strict=True):
        if cell.cell_type == "code" and "nbgrader" not in cell.metadata:
            used = {node.id for node in ast.walk(_tree(solved)) if isinstance(node, ast.Name)}
            if not used & answers:
                cell.outputs = [nbformat.from_dict(output) for output in solved.outputs]
            for output in cell.outputs:
                output.get("data", {}).pop(WIDGET, None)
    return page


def link_chapters(text: str, pages: Mapping[str, str]) -> str:
    """Make links of the numbers in "chapter 05" and "chapters 05 and 08", but not in code.

    pages:  number -> what the link points to
    """

    def link(mention: re.Match) -> str:
        number = lambda found: f"[{found[0]}]({pages[found[0]]})" if found[0] in pages else found[0]
        return re.sub(r"\d\d", number, mention[0])

    parts = re.split(r"(^```.*?^```|`[^`]*`)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if i % 2 else MENTION.sub(link, part) for i, part in enumerate(parts))


def _tree(cell: NotebookNode) -> ast.Module:
    return ast.parse(re.sub(r"^[%!].*$", "", cell.source, flags=re.MULTILINE))
