"""Figures with a slider, for a live notebook; where nothing is live they are a still figure."""

from collections.abc import Callable, Sequence

import ipywidgets
import torch
from IPython.display import HTML, display
from torch import Tensor

from llmkit import plots


def follow(controls: Sequence[ipywidgets.ValueWidget], picture: Callable[[], str]) -> None:
    """Display the controls and, below, the HTML of `picture`, drawn anew whenever one is moved.

    The picture is an ordinary output, so where no kernel lives it stays, as a still.
    """
    live = ipywidgets.VBox(controls)._repr_mimebundle_()
    display(live | {"text/plain": "Run this cell to move its sliders."}, raw=True)
    page = display(HTML(picture()), display_id=True)
    for control in controls:
        control.observe(lambda _: page.update(HTML(picture())), "value")


# 02-losses


def loss_knobs(
    names: list[str], target: int, measure: Callable[[Tensor], tuple[Tensor, Tensor, float]]
) -> None:
    """A slider for each logit; below, the probabilities, the target, the gradient and the loss.

    `measure` turns logits (V,) into probabilities (V,), gradient (V,) and the loss of `target`.
    """

    def picture() -> str:
        probabilities, gradient, loss = measure(torch.tensor([s.value for s in sliders]))
        came = torch.eye(len(names))[target]
        rows = {"what it says": probabilities, "what came": came, "gradient": gradient}
        title = f"loss of {names[target]}: {loss:.4f} nats"
        said = ", ".join(f"{n} {p:.3f}" for n, p in zip(names, probabilities.tolist(), strict=True))
        return plots.image(plots.distribution_bars(names, rows, title), f"{said}; {title}")

    sliders = [
        ipywidgets.FloatSlider(start, min=-6, max=6, step=0.1, description=name)
        for name, start in zip(names, (-1.0, 1.0, 0.0), strict=True)
    ]
    follow(sliders, picture)


# 04-positions


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
