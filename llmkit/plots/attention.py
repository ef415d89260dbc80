"""The figures of chapter 05: attention and the KV cache."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from torch import Tensor

from llmkit.plots.ngrams import visible
from llmkit.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SEQUENTIAL,
    SKY,
    VERMILION,
    YELLOW,
    card,
)

TINTS = (SKY, ORANGE, GREEN, YELLOW, PURPLE)  # one for each head, then from the start again


def soft_lookup(query: str, weights: Mapping[str, float]) -> Figure:
    """A token that asks, and a line to each token that answers, as thick as its weight."""
    figure, (ax,) = card(6.5, 2.5)
    names = list(weights)
    for place, (name, weight) in enumerate(weights.items()):
        ax.add_patch(
            FancyArrowPatch(
                (place, 0.2),
                (len(names), 0.2),
                connectionstyle="arc3,rad=-0.35",
                arrowstyle="-",
                color=BLUE,
                lw=0.8 + 9 * weight,
                alpha=0.8,
            )
        )
        ax.text(place, 0, name, ha="center", va="center", fontsize=12)
        ax.text(place, -0.35, f"weight {weight:.3f}", ha="center", va="center", color=BLUE)
    ax.text(len(names), 0, query, ha="center", va="center", fontsize=12, color=VERMILION)
    ax.text(len(names), -0.35, "asks", ha="center", va="center", color=VERMILION)
    ax.set(xlim=(-0.5, len(names) + 0.5), ylim=(-0.5, 1.1))
    ax.axis("off")
    return figure


def sorted_weights(panels: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Attention weights from the largest to the smallest: title -> name -> (S,)."""
    figure, axes = card(8.0, 3.0, len(panels))
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        for (name, weights), colour, marker in zip(
            curves.items(), (BLUE, VERMILION, GREEN), "os^", strict=False
        ):
            falling = weights.sort(descending=True).values
            rank = torch.arange(1, len(falling) + 1)
            ax.plot(rank, falling, marker + "-", color=colour, ms=4, label=name)
        ax.set(xlabel="keys, from the best match to the worst", ylim=(-0.03, 1.03))
        ax.set_xticks([1, *range(4, len(falling) + 1, 4)])
        ax.set_title(title, fontsize=10)
        ax.legend(frameon=False, fontsize=9)
    axes[0].set_ylabel("weight (mean of many draws)")
    return figure


def masks(drawn: Mapping[str, Tensor]) -> Figure:
    """Masks as grids: a cell is blue where the query of its row may look: title -> (T, S).

    The last query stands at the position of the last key.
    """
    widest = max(mask.shape[1] for mask in drawn.values())
    tallest = max(len(mask) for mask in drawn.values())
    figure, axes = card(2.4 + 0.3 * widest * len(drawn), 1.5 + 0.3 * tallest, len(drawn))
    for ax, (title, mask) in zip(axes, drawn.items(), strict=True):
        _grid(ax, mask)
        ax.set_title(title, fontsize=10)
        ax.set(xlabel="position of the key", ylabel="position of the query")
        ax.set_yticks(range(len(mask)), range(mask.shape[1] - len(mask), mask.shape[1]))
    return figure


def _grid(ax: Axes, mask: Tensor) -> None:
    rows, columns = mask.shape
    for i, j in torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).tolist():
        colour, sign = (SKY, "✓") if mask[i, j] else ("0.93", "")
        ax.add_patch(_square(j, i, colour))
        ax.text(j, i, sign, ha="center", va="center", fontsize=9)
    ax.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), aspect="equal")
    ax.set(xticks=range(columns), yticks=range(rows))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _square(x: float, y: float, colour: str) -> Rectangle:
    return Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, facecolor=colour)


def cut_into_heads(x: Tensor, heads: Mapping[str, Tensor]) -> Figure:
    """The rows of some tokens, coloured by head, and the heads that were cut from them.

    Each number keeps the colour of the place that it comes from, so that a wrong cut shows.

    Shapes: x (T, H*d), with no number twice; each of `heads` (H, T, d).
    """
    number, _, width = next(iter(heads.values())).shape
    colour_of = {
        value: TINTS[column // width % len(TINTS)]
        for row in x.tolist()
        for column, value in enumerate(row)
    }
    figure, axes = card(8.0, 3.1, 1 + len(heads))
    _numbers(axes[0], [x], colour_of)
    axes[0].set_title(f"{len(x)} tokens of {x.shape[1]} features", fontsize=10)
    axes[0].set_ylabel("token")
    for ax, (title, cut) in zip(axes[1:], heads.items(), strict=True):
        _numbers(ax, list(cut), colour_of)
        ax.set_title(title, fontsize=10)
        middles = [h * (cut.shape[1] + 0.6) + (cut.shape[1] - 1) / 2 for h in range(number)]
        ax.set_yticks(middles, [f"head {h}" for h in range(number)])
    return figure


def _numbers(ax: Axes, blocks: Sequence[Tensor], colour_of: Mapping[float, str]) -> None:
    top = 0.0
    for block in blocks:
        for i, row in enumerate(block.tolist()):
            for j, value in enumerate(row):
                ax.add_patch(_square(j, top + i, colour_of[value]))
                ax.text(j, top + i, f"{value:g}", ha="center", va="center", fontsize=9)
        top += len(block) + 0.6
    ax.set(xlim=(-0.6, blocks[0].shape[1] - 0.4), ylim=(top - 1.1, -0.6), aspect="equal")
    ax.set(xticks=[], yticks=range(len(blocks[0])) if len(blocks) == 1 else [])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def shared_heads(
    num_heads: int, num_kv_heads: int, title: str = "", marked: int | None = None
) -> Figure:
    """Which query heads share which key/value head, with a line from each to its own.

    marked: a query head to ring
    """
    figure, (ax,) = card(8.0, 2.6)
    groups = num_heads // num_kv_heads
    for head in range(num_heads):
        shared = head // groups
        colour = TINTS[shared % len(TINTS)]
        below = shared * groups + (groups - 1) / 2
        ax.plot([head, below], [1, 0], color=colour, lw=3, zorder=0)
        _disc(ax, head, 1, colour, str(head))
        if head == marked:
            ax.plot(head, 1, "o", ms=27, mec=BLACK, mew=2, fillstyle="none")
    for shared in range(num_kv_heads):
        _disc(
            ax,
            shared * groups + (groups - 1) / 2,
            0,
            TINTS[shared % len(TINTS)],
            str(shared),
            "s",
        )
    ax.text(-1.0, 1, "query heads", ha="right", va="center")
    ax.text(-1.0, 0, "key/value heads", ha="right", va="center")
    ax.set(xlim=(-3.6, num_heads - 0.3), ylim=(-0.45, 1.4))
    ax.set_title(title, fontsize=10)
    ax.axis("off")
    return figure


def _disc(ax: Axes, x: float, y: float, colour: str, text: str, marker: str = "o") -> None:
    ax.plot(x, y, marker, color=colour, ms=18, mec=BLACK, mew=0.8)
    ax.text(x, y, text, ha="center", va="center", fontsize=9)


def attention_maps(maps: Mapping[str, Tensor], tokens: Sequence[str]) -> Figure:
    """Attention weights as heat maps, two in a row: title -> (T, T), a row for each query."""
    columns = min(len(maps), 2)
    rows = -(-len(maps) // columns)
    size = 0.155 * len(tokens) + 1.0
    figure = Figure(figsize=(columns * size, rows * size), facecolor="white", layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    labels = [visible(token) for token in tokens]
    for ax, (title, weights) in zip(axes, maps.items(), strict=False):
        drawn = ax.imshow(weights, cmap=SEQUENTIAL, vmin=0, vmax=1)
        ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
        ax.set_yticks(range(len(labels)), labels, fontsize=8)
        ax.set_title(title, fontsize=10)
        ax.tick_params(length=0)
    for ax in axes[len(maps) :]:
        ax.axis("off")
    axes[0].set_ylabel("query: the token that looks")
    axes[columns * (rows - 1)].set_xlabel("key: the token that is looked at")
    figure.colorbar(drawn, ax=list(axes), shrink=0.5, label="weight")
    return figure


def seconds_per_token(lengths: Sequence[int], curves: Mapping[str, Sequence[float]]) -> Figure:
    """The time for one more token against the length of the text so far: name -> seconds."""
    figure, (ax,) = card(6.5, 3.2)
    for (name, seconds), colour, marker in zip(
        curves.items(), (VERMILION, BLUE, GREEN), "so^", strict=False
    ):
        ax.plot(lengths, [1000 * s for s in seconds], marker + "-", color=colour, lw=2)
        ax.annotate(
            name,
            (lengths[-1], 1000 * seconds[-1]),
            (-4, 8),
            textcoords="offset points",
            ha="right",
            color=colour,
        )
    ax.set(xlabel="tokens in the text so far", ylabel="milliseconds for the next token")
    ax.set(xlim=(0, 1.03 * lengths[-1]), ylim=(0, None))
    ax.margins(y=0.15)
    return figure


def cache_sizes(
    models: Mapping[str, tuple[float, float]], context: int, lines: Mapping[str, float]
) -> Figure:
    """The key/value caches of models as bars, and what MHA would take: name -> (bytes, as MHA).

    lines: one or two amounts to hold against them, name -> bytes
    """
    figure, (ax,) = card(8.0, 0.9 + 0.32 * len(models))
    for row, (size, as_mha) in enumerate(models.values()):
        ax.barh(row, as_mha, 0.7, color="0.88", edgecolor="0.6", hatch="//")
        ax.barh(row, size, 0.7, color=BLUE)
        label = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        ax.text(1.15 * max(size, as_mha), row, _size(size), va="center", fontsize=9, bbox=label)
    for (name, size), side in zip(lines.items(), ("right", "left"), strict=False):
        ax.axvline(size, color=VERMILION, lw=1.5, ls="--", zorder=0)
        ax.text(size, -0.75, f" {name} ", color=VERMILION, ha=side, va="bottom", fontsize=9)
    ax.set_yticks(range(len(models)), list(models), fontsize=9)
    ax.set(xscale="log", xlim=(1e6, 3e13), ylim=(len(models) - 0.4, -0.6))
    ax.set_xticks([10.0**n for n in range(6, 14, 3)], ["1 MB", "1 GB", "1 TB"])
    ax.set_xlabel(f"cache of {context:,} tokens, bfloat16; hatched: if each query head had its own")
    return figure


def _size(number: float) -> str:
    """A number of bytes as people say it."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number / 1e3:.3g} kB"


def share_by_layer(shares: Mapping[str, Tensor]) -> Figure:
    """A share of the attention weights, layer by layer: name -> (L,)."""
    figure, (ax,) = card(6.5, 2.8)
    for (name, share), colour, dash in zip(
        shares.items(), (BLUE, VERMILION, GREEN), ("-", "--", "-."), strict=False
    ):
        ax.plot(share, dash, color=colour, lw=2, label=name)
    ax.set(xlabel="layer", ylabel="share of all weight", ylim=(0, 1))
    ax.legend(frameon=False, fontsize=9)
    return figure
