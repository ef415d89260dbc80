"""The figures of chapter 10: decoding."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from llmkit.plots.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, card

LOOKS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE)


def token_bars(names: Sequence[str], shares: Mapping[str, Tensor]) -> Figure:
    """The probability of each token in several distributions: name -> (V,)."""
    figure, (ax,) = card(7.2, 3.0)
    width = 0.84 / len(shares)
    for i, (label, values) in enumerate(shares.items()):
        places = torch.arange(len(names)) + (i - (len(shares) - 1) / 2) * width
        ax.bar(places, values, width * 0.95, color=LOOKS[i], label=label)
    ax.set_xticks(range(len(names)), names)
    ax.set(ylabel="probability", ylim=(0, 1))
    ax.legend(frameon=False, fontsize=9)
    return figure


def filtered_bars(names: Sequence[str], before: Tensor, after: Tensor) -> Figure:
    """The likeliest tokens: what the model says, and what is left to draw from. Shapes: (V,)."""
    figure, (ax,) = card(7.2, 0.6 + 0.27 * len(names))
    rows = torch.arange(len(names))
    ax.barh(rows + 0.2, before, 0.38, color=SKY, label="the model")
    ax.barh(rows - 0.2, after, 0.38, color=VERMILION, label="to draw from")
    for row, value in enumerate(after.tolist()):
        if value == 0:
            ax.text(0, row - 0.2, " ruled out", va="center", fontsize=8, color=VERMILION)
    ax.set_yticks(rows, names, fontsize=9)
    ax.invert_yaxis()
    ax.set(xlabel="probability", xlim=(0, 1.15 * max(before.max().item(), after.max().item())))
    ax.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def beam_tree(levels: Sequence[Sequence[tuple[int, str, float, bool]]]) -> Figure:
    """What a beam search looks at, from left to right.

    levels: of each length the candidates: (parent's place among the kept ones of the level before,
    token, log-probability of the whole sequence, whether it is kept).
    """
    figure, (ax,) = card(7.6, 3.6)
    kept = [(0.0, 0.0)]
    ax.text(0, 0, "start", ha="center", va="center", fontsize=9, bbox=_round("white"))
    for x, level in enumerate(levels, start=1):
        places = [
            1.6 * (i - (len(level) - 1) / 2) / max(len(level) - 1, 1) for i in range(len(level))
        ]
        following = []
        for y, (parent, token, total, stays) in zip(reversed(places), level, strict=True):
            x0, y0 = kept[parent]
            line = {"color": BLACK if stays else "0.7", "linewidth": 2 if stays else 1}
            ax.plot((x0, x), (y0, y), **line, zorder=0)
            look = _round(SKY if stays else "#eeeeee")
            text = f"{token} {total:.2f}"
            ax.text(x, y, text, ha="center", va="center", fontsize=8, bbox=look)
            if stays:
                following.append((x, y))
        kept = following
    ax.set(xlim=(-0.3, len(levels) + 0.4), ylim=(-1, 1))
    ax.axis("off")
    return figure


def overlap(names: Sequence[str], target: Tensor, draft: Tensor) -> Figure:
    """Two distributions; what they share, and what each has more than the other. Shapes: (V,)."""
    figure, (ax,) = card(7.2, 3.0)
    shared, rows = torch.minimum(target, draft), torch.arange(len(names))
    ax.bar(rows, shared, 0.6, color=SKY, label="min(p, q): stands")
    ax.bar(
        rows,
        target - shared,
        0.6,
        shared,
        color=GREEN,
        hatch="//",
        label="p − q: drawn after a fall",
    )
    ax.bar(rows, draft - shared, 0.6, shared, color=VERMILION, hatch="..", label="q − p: falls")
    ax.set_xticks(rows, names)
    ax.set_ylabel("probability")
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def acceptance(predicted: Mapping[str, float], measured: Mapping[str, float]) -> Figure:
    """The share of drafted tokens that stand, for several drafts: predicted and measured."""
    figure, (ax,) = card(7.0, 2.9)
    for shift, values, colour, label in (
        (-0.2, predicted, SKY, "predicted: Σ min(p, q)"),
        (0.2, measured, BLUE, "measured"),
    ):
        places = [i + shift for i in range(len(values))]
        ax.bar(places, list(values.values()), 0.38, color=colour, label=label)
        for place, value in zip(places, values.values(), strict=True):
            ax.text(place, value, f"{value:.2f}", ha="center", va="bottom", fontsize=8)
    ax.set_xticks(range(len(predicted)), list(predicted), fontsize=9)
    ax.set(ylabel="share of drafted tokens that stand", ylim=(0, 1.12))
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure


def _round(colour: str) -> dict[str, str]:
    return {"boxstyle": "round,pad=0.25", "facecolor": colour, "edgecolor": BLACK}
