"""The widget of chapter 10: what is left to draw from."""

from collections.abc import Callable, Sequence

import ipywidgets
from torch import Tensor

from llmkit import plots
from llmkit.widgets.live import follow


def sampling_knobs(
    logits: Tensor,
    names: Callable[[int], str],
    apply: Callable[[Tensor, float, int, float, float], Tensor],
    shown: int = 12,
) -> None:
    """Sliders for temperature, k, p and min-p; bars show the likeliest tokens before and after.

    logits:  (V,), of the next token
    names:   token -> its text
    apply:   (logits, temperature, k, p, min_p) -> filtered logits; a k, p or min-p that is off is
             0, 1 and 0
    """
    best = logits.topk(shown).indices
    tokens = [names(token) for token in best.tolist()]
    before = logits.softmax(-1)

    def picture() -> str:
        left = apply(logits, *(knob.value for knob in knobs)).softmax(-1)
        number = int((left > 0).sum())
        said = (
            f"{number:,} of {len(left):,} tokens are left; the likeliest, {tokens[0]}, "
            f"goes from {before[best[0]]:.3f} to {left[best[0]]:.3f}"
        )
        image = plots.image(plots.filtered_bars(tokens, before[best], left[best]), said)
        return f"{image}<p>{said}</p>"

    style = {"description_width": "8em"}
    number = ipywidgets.FloatSlider
    knobs: Sequence[ipywidgets.ValueWidget] = [
        number(1.0, min=0, max=2, step=0.1, description="temperature", style=style),
        ipywidgets.SelectionSlider(
            options=[("off", 0), *((str(k), k) for k in (1, 2, 3, 5, 10, 20, 50, 100))],
            description="top-k",
            style=style,
        ),
        number(0.9, min=0.05, max=1, step=0.05, description="top-p (1: off)", style=style),
        number(0.0, min=0, max=0.5, step=0.01, description="min-p (0: off)", style=style),
    ]
    follow(knobs, picture)
