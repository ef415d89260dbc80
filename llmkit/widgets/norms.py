"""The widget of chapter 06: what each norm does to one sample."""

from collections.abc import Callable

import ipywidgets
from torch import Tensor

from llmkit import plots
from llmkit.widgets.live import follow


def norm_knobs(batch: Tensor, norms: dict[str, Callable[[Tensor], Tensor]]) -> None:
    """Sliders that scale and shift the first sample, and move a feature of the second.

    Shapes: batch (B, D); each norm (B, D) -> (B, D).
    """

    def picture() -> str:
        moved = batch.clone()
        moved[0] = scale.value * batch[0] + shift.value
        moved[1, 0] = mate.value
        rows = {"the sample": moved[0]}
        rows |= {name: norm(moved)[0] for name, norm in norms.items()}
        words = (
            f"{name}: {', '.join(f'{value:.2f}' for value in row.tolist())}"
            for name, row in rows.items()
        )
        title = f"batch-mate's feature 0: {mate.value:g}"
        return plots.image(plots.one_sample(rows, title, reach=2.0), "; ".join(words))

    wide = {"style": {"description_width": "11em"}, "layout": {"width": "32em"}}
    scale = ipywidgets.FloatSlider(1.0, min=0.1, max=10, step=0.1, description="scale", **wide)
    shift = ipywidgets.FloatSlider(0.0, min=-10, max=10, step=0.5, description="shift", **wide)
    mate = ipywidgets.FloatSlider(
        float(batch[1, 0]), min=-30, max=30, step=0.5, description="batch-mate's feature 0", **wide
    )
    follow([scale, shift, mate], picture)
