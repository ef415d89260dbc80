"""The widget of chapter 02: cross-entropy."""

from collections.abc import Callable

import ipywidgets
import torch
from torch import Tensor

from llmkit import plots
from llmkit.widgets.live import follow


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
