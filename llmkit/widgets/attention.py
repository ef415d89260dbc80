"""The widgets of chapter 05: heads that share keys, where heads look, and what a cache takes."""

from collections.abc import Callable, Mapping, Sequence

import ipywidgets
from torch import Tensor

from llmkit import plots
from llmkit.widgets.live import LINE, WIDE, follow


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


def attention_explorer(
    look: Callable[[str], tuple[Tensor, Sequence[str]]],
    num_kv_heads: int,
    text: str,
    layer: int = 0,
    head: int = 0,
) -> None:
    """A text and sliders for layer and head: the head's map, and with whom it shares its keys.

    look:  text -> the weights of all heads (layers, heads, T, T), and the T tokens
    """
    seen: dict[str, tuple[Tensor, Sequence[str]]] = {}

    def picture() -> str:
        if box.value not in seen:
            seen[box.value] = look(box.value)
        weights, tokens = seen[box.value]
        weights, heads = weights[layers.value, which.value], weights.shape[1]
        first, before = weights[:, 0].mean(), weights.diagonal(-1).sum() / max(len(tokens) - 1, 1)
        shared = which.value * num_kv_heads // heads
        said = (
            f"layer {layers.value}, head {which.value}: on average {first:.0%} of its weight goes "
            f"to the first token, {before:.0%} to the token before"
        )
        kin = f"head {which.value} of {heads} shares key/value head {shared} of {num_kv_heads}"
        head_map = plots.attention_maps(
            {f"layer {layers.value}, head {which.value}": weights}, tokens
        )
        sharing = plots.shared_heads(heads, num_kv_heads, kin, marked=which.value)
        return f"{plots.image(head_map, said)}<p>{said}.</p>{plots.image(sharing, kin)}"

    weights, _ = seen[text] = look(text)
    box = ipywidgets.Text(text, description="text", continuous_update=False, **LINE)
    layers = ipywidgets.IntSlider(layer, 0, len(weights) - 1, description="layer", **WIDE)
    which = ipywidgets.IntSlider(head, 0, weights.shape[1] - 1, description="head", **WIDE)
    follow([box, layers, which], picture)


def cache_growth(
    models: Mapping[str, tuple[int, int, int, int]],
    cache_bytes: Callable[[int, int, int, int, int], int],
    lines: Mapping[str, float],
) -> None:
    """Sliders for the context and the number of texts; below, the cache of every model.

    models:       name -> layers, query heads, key/value heads, width of a head
    cache_bytes:  (layers, key/value heads, width, length, texts) -> bytes
    lines:        one or two amounts to hold against them, name -> bytes
    """

    def picture() -> str:
        sizes = {
            name: tuple(
                cache_bytes(layers, n, width, context.value, texts.value) for n in (kv, heads)
            )
            for name, (layers, heads, kv, width) in models.items()
        }
        tokens = context.value * texts.value
        largest = max(sizes, key=lambda name: sizes[name][0])
        said = (
            f"{tokens:,} tokens in all; the largest cache is that of "
            f"{largest}: {sizes[largest][0] / 1e9:,.1f} GB"
        )
        return f"{plots.image(plots.cache_sizes(sizes, tokens, lines), said)}<p>{said}.</p>"

    context = ipywidgets.SelectionSlider(
        options=[(f"{2**n:,}", 2**n) for n in range(7, 21)],
        value=8192,
        description="tokens in a text",
        **WIDE,
    )
    texts = ipywidgets.SelectionSlider(
        options=[2**n for n in range(9)], value=1, description="texts at once", **WIDE
    )
    follow([context, texts], picture)
