"""The widget of chapter 04: positions."""

from collections.abc import Callable

import ipywidgets
from torch import Tensor

from llmkit import plots
from llmkit.widgets.live import WIDE, follow


def turning_dials(
    vector: Tensor, turn: Callable[[int], Tensor], last: int = 64, start: int = 5
) -> None:
    """Dials of a vector with a slider for its position, which `turn` turns it by.

    Shapes: vector (d,); turn: position -> (d,).
    """

    def picture() -> str:
        position = slider.value
        alt = f"Dials of {len(vector) // 2} pairs of features, turned to position {position}."
        return plots.image(plots.dials(vector, turn(position), position), alt)

    slider = ipywidgets.IntSlider(start, 0, last, description="position")
    follow([slider], picture)


def turning_pair(query: Tensor, key: Tensor, turn: Callable[[Tensor, int], Tensor]) -> None:
    """A query and a key, each with a slider for its position: their dials and their score.

    Shapes: query and key (d,); turn: vector, position -> (d,).
    """
    last = 40
    scores = {d: (turn(query, d) @ key).item() for d in range(-last, last + 1)}

    def picture() -> str:
        m, n = at_query.value, at_key.value
        turned = turn(query, m), turn(key, n)
        said = f"query at {m}, key at {n}: distance {m - n}, score {turned[0] @ turned[1]:.3f}"
        return plots.image(plots.turned_pair(*turned, m - n, scores, said), said)

    at_query = ipywidgets.IntSlider(12, 0, last, description="query's position", **WIDE)
    at_key = ipywidgets.IntSlider(4, 0, last, description="key's position", **WIDE)
    follow([at_query, at_key], picture)
