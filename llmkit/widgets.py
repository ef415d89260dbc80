"""Figures with a slider, for a live notebook; where nothing is live they are a still figure."""

from collections.abc import Callable

import ipywidgets
import torch
from IPython.display import display
from torch import Tensor

from llmkit import plots


def show(box: ipywidgets.Widget, still: str) -> None:
    """Display the widget where it can live, and the HTML of `still` where it cannot."""
    display(box._repr_mimebundle_() | {"text/html": still}, raw=True)


# 02-losses


def loss_knobs(
    names: list[str], target: int, measure: Callable[[Tensor], tuple[Tensor, Tensor, float]]
) -> None:
    """A slider for each logit; below, the probabilities, the gradient and the loss they give.

    `measure` turns logits (V,) into probabilities (V,), gradient (V,) and the loss of `target`.
    """

    def picture(logits: list[float]) -> str:
        probabilities, gradient, loss = measure(torch.tensor(logits))
        rows = {f"probabilities, loss {loss:.4f} nats": probabilities, "gradient": gradient}
        alt = f"Bars of probabilities and gradient; the target is {names[target]}."
        return plots.image(plots.distribution_bars(names, rows, ""), alt)

    sliders = [
        ipywidgets.FloatSlider(start, min=-6, max=6, step=0.1, description=name)
        for name, start in zip(names, (-1.0, 1.0, 0.0), strict=True)
    ]
    page = ipywidgets.HTML(picture([slider.value for slider in sliders]))

    def turned(change: object) -> None:
        page.value = picture([slider.value for slider in sliders])

    for slider in sliders:
        slider.observe(turned, "value")
    show(ipywidgets.VBox([*sliders, page]), still=page.value)


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
