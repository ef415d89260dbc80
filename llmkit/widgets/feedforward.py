"""The widget of chapter 07: one gated neuron."""

from collections.abc import Callable

import ipywidgets
import torch
from torch import Tensor

from llmkit import plots
from llmkit.widgets.live import follow


def gate_knobs(bend: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> None:
    """Sliders for the two inputs of a gated neuron; below, the gate, its slope and the product.

    `bend` and `slope` are elementwise: SiLU and its gradient.
    """

    def picture() -> str:
        g, u = torch.tensor(gate.value), up.value
        across = torch.linspace(-8, 8, 321)
        figure = plots.gated_neuron(across, bend(across), slope(across), gate.value, u)
        opened, steep = float(bend(g)), float(slope(g))
        words = f"gate {gate.value:g} becomes {opened:.4f}, with the slope {steep:.4f}; "
        return plots.image(figure, words + f"times {u:g} gives {opened * u:.4f}")

    wide = {"style": {"description_width": "9em"}, "layout": {"width": "32em"}}
    gate = ipywidgets.FloatSlider(2.0, min=-8, max=8, step=0.1, description="gate's input", **wide)
    up = ipywidgets.FloatSlider(3.0, min=-5, max=5, step=0.1, description="up branch", **wide)
    follow([gate, up], picture)
