"""The widget of chapter 05: query heads that share key/value heads."""

from collections.abc import Callable

import ipywidgets

from llmkit import plots
from llmkit.widgets.live import follow


def shared_heads_slider(
    num_heads: int, cache_bytes: Callable[[int], int], start: int | None = None
) -> None:
    """A slider for the number of key/value heads: who shares which, and the cache's size.

    cache_bytes: number of key/value heads -> bytes per token.
    """

    def picture() -> str:
        kv_heads = slider.value
        size, whole = cache_bytes(kv_heads), cache_bytes(num_heads)
        kind = {num_heads: "MHA", 1: "MQA"}.get(kv_heads, "GQA")
        title = (
            f"{kind}: {num_heads} query heads, {kv_heads} key/value heads, "
            f"{num_heads // kv_heads} to a group; cache {size:,} bytes per token "
            f"({size / whole:.0%} of MHA's)"
        )
        return plots.image(plots.shared_heads(num_heads, kv_heads, title), title)

    slider = ipywidgets.SelectionSlider(
        options=[n for n in range(1, num_heads + 1) if num_heads % n == 0],
        value=start or num_heads,
        description="key/value heads",
        style={"description_width": "8em"},
    )
    follow([slider], picture)
