"""The figures of chapter 02: cross-entropy."""

import html
import math

import torch
from matplotlib.figure import Figure
from torch import Tensor

from llmkit.plots.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, card


def surprise_curve(marked: dict[str, float]) -> Figure:
    """The loss −ln p against p, with some named probabilities marked on it."""
    figure, (ax,) = card()
    p = torch.linspace(0.01, 1, 400)
    ax.plot(p, -p.log(), color=BLUE)
    for (name, value), colour in zip(marked.items(), (VERMILION, GREEN, PURPLE), strict=False):
        loss = -math.log(value)
        ax.plot([value, value, 0], [0, loss, loss], color=colour, linestyle=":", linewidth=1)
        ax.plot(value, loss, "o", color=colour)
        ax.annotate(f"{name}: p = {value:g}, loss {loss:.4f}", (value + 0.02, loss + 0.12))
    ax.set(xlabel="probability p given to the token that came", ylabel="loss −ln p (nats)")
    ax.set(xlim=(0, 1.02), ylim=(0, 4.7))
    return figure


def distribution_bars(names: list[str], rows: dict[str, Tensor], title: str = "") -> Figure:
    """A row of bars for each named distribution (or gradient) over the same outcomes.

    Each has the scale −1 … 1, so that rows, and figures, can be compared by eye.

    Shapes: each row (V,).
    """
    figure, axes = card(6.5, 2.6, len(rows))
    for ax, (name, values), colour in zip(axes, rows.items(), (BLUE, ORANGE, GREEN), strict=False):
        bars = ax.bar(names, values, color=colour)
        ax.bar_label(bars, [f"{value:.3g}" for value in values.tolist()], fontsize=8, padding=2)
        ax.axhline(0, color=BLACK, linewidth=0.8)
        ax.set_title(name, fontsize=10)
        ax.set(ylim=(-1.25, 1.25), yticks=(-1, 0, 1))
    figure.suptitle(title, fontsize=11)
    return figure


def loss_parts(names: list[str], entropy: Tensor, divergence: Tensor) -> Figure:
    """Cross-entropy of several models as a stack: the data's entropy below, the KL above it.

    Shapes: (N,), (N,) for N models.
    """
    figure, (ax,) = card()
    ax.bar(names, entropy, color=SKY, label="entropy of the data")
    bars = ax.bar(names, divergence, bottom=entropy, color=VERMILION, label="KL divergence")
    ax.bar_label(bars, [f"{x:.3f}" for x in (entropy + divergence).tolist()], padding=2)
    ax.set_ylabel("cross-entropy (nats)")
    ax.margins(y=0.15)
    ax.legend(frameon=False, loc="upper left")
    return figure


def loss_curves(curves: dict[str, list[float]], levels: dict[str, float]) -> Figure:
    """Losses against the training step, and levels to compare them with as dashed lines."""
    figure, (ax,) = card()
    for (name, losses), colour in zip(curves.items(), (BLUE, VERMILION), strict=False):
        ax.plot(losses, color=colour, linewidth=2)
        place = len(losses) // 3
        ax.annotate(name, (place, losses[place] + 0.1), color=colour)
    last = max(map(len, curves.values())) - 1
    for name, level in levels.items():
        ax.axhline(level, color="0.4", linewidth=1, linestyle="--")
        ax.annotate(f"{name} = {level:.3f}", (last, level - 0.07), ha="right", va="top")
    ax.set(xlabel="training step", ylabel="loss (nats)")
    ax.set_ylim(0, 1.05 * max(max(losses) for losses in curves.values()))
    return figure


def coloured_tokens(tokens: list[str], losses: Tensor, top: float = 12.0) -> str:
    """HTML of a text in which each token has its loss for a background: pale is expected.

    The first token is predicted from nothing, so it has no loss: losses (T−1,) for T tokens.
    """
    cell = "display: inline-block; white-space: pre; text-align: center; line-height: 1.3"
    cells = []
    for token, loss in zip(tokens, [None, *losses.tolist()], strict=True):
        strength = min((loss or 0.0) / top, 1.0)
        red, green, blue = (round(255 + strength * (c - 255)) for c in (230, 120, 40))
        number = "" if loss is None else f"{loss:.1f}"
        cells.append(
            f'<span style="{cell}; margin: 2px; padding: 1px 3px; border: 1px solid #ddd; '
            f'background: rgb({red},{green},{blue})">{html.escape(token)}<br>'
            f'<small style="font-size: 75%">{number}&nbsp;</small></span>'
        )
    return f'<div style="background: white; color: black; padding: 0.8em">{"".join(cells)}</div>'
