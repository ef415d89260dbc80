"""Figures with a slider, for a live notebook; where nothing is live they are a still figure."""

from collections.abc import Callable

import ipywidgets
from IPython.display import display
from torch import Tensor

from llmkit import plots


def show(box: ipywidgets.Widget, still: str) -> None:
    """Display the widget where it can live, and the HTML of `still` where it cannot."""
    display(box._repr_mimebundle_() | {"text/html": still}, raw=True)


# 04-positions


def turning_dials(
    vector: Tensor, turn: Callable[[int], Tensor], last: int = 64, start: int = 5
) -> None:
    """Dials of a vector with a slider for its position, which `turn` turns it by.

    Shapes: vector (d,); turn: position -> (d,).
    """

    def picture(position: int) -> str:
        alt = f"Dials of {len(vector) // 2} pairs of features, turned to position {position}."
        return plots.image(plots.dials(vector, turn(position), position), alt)

    slider = ipywidgets.IntSlider(start, 0, last, description="position")
    page = ipywidgets.HTML(picture(start))
    slider.observe(lambda change: setattr(page, "value", picture(change["new"])), "value")
    show(ipywidgets.VBox([slider, page]), still=page.value)
