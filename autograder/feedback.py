"""Verdicts as the outputs of a notebook's graded cells.

nbgrader reads a score off a graded cell's outputs (an error is 0, a number as the cell's result is
partial credit, none is full marks), and its feedback and formgrader show them. So a judged notebook
is an ordinary autograded one.
"""

from collections.abc import Iterable

from nbformat import NotebookNode, from_dict

from autograder.display import as_html, as_text, printable
from autograder.verdict import Verdict


def with_verdicts(notebook: NotebookNode, verdicts: Iterable[Verdict]) -> NotebookNode:
    """Put each verdict under the graded cell of its exercise, and nothing under other cells."""
    by_exercise = {verdict.exercise: verdict for verdict in verdicts}
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        exercise = cell.metadata.get("nbgrader", {}).get("grade_id")
        verdict = by_exercise.get(exercise)
        cell.outputs = _outputs(verdict) if verdict else []
        cell.execution_count = None
    return notebook


def _outputs(verdict: Verdict) -> list[NotebookNode]:
    # Plain nodes: nbformat's own constructor validates each against its schema, which would take
    # longer than the judging.
    card = {"text/plain": as_text(verdict), "text/html": as_html(verdict)}
    outputs = [{"output_type": "display_data", "data": card, "metadata": {}}]
    if verdict.status == "partial":
        score = {"text/plain": repr(verdict.earned)}
        result = {"output_type": "execute_result", "execution_count": None, "metadata": {}}
        outputs.append(result | {"data": score})
    elif not verdict.correct:
        headline = printable(verdict.headline)
        message = f"CheckFailed: {headline}"
        error = {"ename": "CheckFailed", "evalue": headline, "traceback": [message]}
        outputs.append({"output_type": "error"} | error)
    return [from_dict(output) for output in outputs]
