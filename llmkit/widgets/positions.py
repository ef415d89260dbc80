"""The widget of chapter 04: positions."""

from collections.abc import Callable

import ipywidgets
from torch import Tensor

from llmkit import plots
from llmkit.widgets.live import follow


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
