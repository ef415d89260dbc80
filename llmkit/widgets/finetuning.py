"""The widget of chapter 12: how small an adapter is."""

from collections.abc import Callable, Mapping, Sequence

import ipywidgets

from llmkit import plots
from llmkit.widgets.live import follow


def adapter_knobs(
    count: Callable[[Sequence[str], int], int],
    choices: Mapping[str, Sequence[str]],
    shape: tuple[int, int],
    whole: int,
) -> None:
    """A slider for the rank and a choice of layers; below, one adapter drawn to scale.

    count:    (targets, r) -> number of parameters that learn
    choices:  what the reader sees -> the targets
    shape:    (out, in) of the matrix that is drawn
    whole:    number of the model's parameters
    """

    def picture() -> str:
        number = count(choices[layers.value], rank.value)
        said = (
            f"{number:,} numbers learn, {number / whole:.2%} of the model's; "
            f"weights, gradients and AdamW's two moments: {16 * number / 1e6:,.1f} MB, "
            f"where all of the model would take {16 * whole / 1e6:,.0f} MB"
        )
        figure = plots.low_rank(*shape, rank.value)
        return f"{plots.image(figure, said)}<p>{said}</p>"

    style = {"description_width": "8em"}
    rank = ipywidgets.SelectionSlider(
        value=8, options=[1, 2, 4, 8, 16, 32, 64, 128, 256], description="rank r", style=style
    )
    layers = ipywidgets.Dropdown(options=list(choices), description="layers", style=style)
    follow([rank, layers], picture)
