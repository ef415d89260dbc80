"""The widget of chapter 03: tokens."""

from collections.abc import Callable

import ipywidgets

from llmkit import plots
from llmkit.widgets.live import follow


def merge_slider(
    text: str, last: int, tokens_after: Callable[[str, int], list[bytes]], start: int = 40
) -> None:
    """A box for a text and a slider for the number of merges; below, the text in its tokens.

    `tokens_after` gives the tokens of a text after so many merges, 0 … `last`.
    """

    def picture() -> str:
        tokens = tokens_after(box.value, slider.value)
        return plots.token_rows({f"{slider.value} merges, {len(tokens)} tokens": tokens})

    slider = ipywidgets.IntSlider(start, 0, last, description="merges")
    box = ipywidgets.Text(text, description="text", layout={"width": "90%"})
    follow([slider, box], picture)
