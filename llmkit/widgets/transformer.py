"""The widget of chapter 08: where the parameters of a Llama are."""

from collections.abc import Callable

import ipywidgets

from llmkit import plots
from llmkit.widgets.live import follow


def llama_knobs(parts: Callable[..., dict[str, int]]) -> None:
    """Sliders for the sizes of a Llama; bars show the share of each part.

    parts: (layers, width, hidden, kv_share, vocabulary, tied) -> part -> number of parameters.
    """

    def picture() -> str:
        counted = parts(*(knob.value for knob in knobs))
        whole = sum(counted.values())
        words = ", ".join(f"{part} {number / whole:.0%}" for part, number in counted.items())
        return plots.image(plots.parameter_shares({"your Llama": counted}), words)

    wide = {"style": {"description_width": "13em"}, "layout": {"width": "34em"}}
    whole_number, choice = ipywidgets.IntSlider, ipywidgets.SelectionSlider
    knobs = [
        whole_number(30, min=1, max=128, description="layers", **wide),
        whole_number(576, min=192, max=8064, step=192, description="width", **wide),
        whole_number(1536, min=128, max=28672, step=128, description="feed-forward width", **wide),
        choice(value=3, options=[1, 2, 3, 4, 8], description="query heads per kv head", **wide),
        whole_number(
            49152, min=1024, max=131072, step=1024, description="tokens in the vocabulary", **wide
        ),
        ipywidgets.Checkbox(True, description="tied embeddings", **wide),
    ]
    follow(knobs, picture)
