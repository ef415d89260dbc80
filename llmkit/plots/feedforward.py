"""The figures of chapter 07: the feed-forward layer and its gate."""

from itertools import pairwise

import torch
from matplotlib.figure import Figure
from torch import Tensor

from llmkit.plots.style import (
    BLACK,
    BLUE,
    DIVERGING,
    GREEN,
    ORANGE,
    PURPLE,
    VERMILION,
    card,
)

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE)
DASHES = ("-", "--", "-.", ":", "-")


def bends(x: Tensor, panels: dict[str, dict[str, Tensor]]) -> Figure:
    """Elementwise functions of x, a panel for each title, a curve for each name: (N,) each."""
    figure, axes = card(4.2 * max(len(panels), 1.4), 3.2, len(panels))
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        ax.axhline(0, color="0.8", linewidth=0.8)
        ax.axvline(0, color="0.8", linewidth=0.8)
        for (name, y), colour, dash in zip(curves.items(), COLOURS, DASHES, strict=False):
            ax.plot(x, y, color=colour, linestyle=dash, linewidth=2, label=name)
        ax.set_title(title, fontsize=10)
        ax.set(xlabel="x", ylabel="value")
        ax.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def gated_neuron(across: Tensor, bent: Tensor, slope: Tensor, gate: float, up: float) -> Figure:
    """A gated neuron at one gate and one up value: SiLU of the gate, its slope, the product.

    Shapes: across, bent and slope (N,), the two functions at the gates `across`.
    """
    figure, axes = card(8.4, 2.9, 3)
    at = int((across - gate).abs().argmin())
    panels = (
        ("silu(gate)", bent, BLUE, (-1.5, 8.5)),
        ("its slope", slope, GREEN, (-0.3, 1.3)),
        (f"silu(gate) · up, up = {up:g}", up * bent, VERMILION, (-42, 42)),
    )
    for ax, (title, y, colour, limits) in zip(axes, panels, strict=True):
        ax.axhline(0, color="0.8", linewidth=0.8)
        ax.axvline(gate, color="0.6", linewidth=1, linestyle=":")
        ax.plot(across, y, color=colour, linewidth=2)
        ax.plot(gate, float(y[at]), "o", color=BLACK, markersize=7)
        ax.set_title(f"{title}\n{float(y[at]):.4f}", fontsize=10)
        ax.set(xlabel="gate's input", ylim=limits)
    axes[0].set_ylabel("value")
    return figure


def neuron_maps(across: Tensor, maps: dict[str, Tensor], labels: tuple[str, str]) -> Figure:
    """What a neuron says for every pair of inputs, as colours: title -> (N, N).

    Rows of a map belong to the second input, columns to the first; both run over `across` (N,).
    Each map has a scale of its own, beside it.
    """
    figure, axes = card(4.0 * len(maps), 3.4, len(maps))
    low, high = float(across[0]), float(across[-1])
    for ax, (title, values) in zip(axes, maps.items(), strict=True):
        reach = float(values.abs().max())
        drawn = ax.imshow(
            values,
            cmap=DIVERGING,
            vmin=-reach,
            vmax=reach,
            origin="lower",
            extent=(low, high, low, high),
        )
        ax.contour(across, across, values, levels=[0.0], colors=BLACK, linewidths=1)
        ax.set_title(title, fontsize=10)
        ax.set(xlabel=labels[0], ylabel=labels[1])
        figure.colorbar(drawn, ax=ax, shrink=0.85)
    return figure


def arrows_added(contributions: Tensor) -> Figure:
    """What each neuron adds, as arrows laid tip to tail, and their sum: (F, 2)."""
    figure, (ax,) = card(6.0, 3.4)
    tips = torch.cat((torch.zeros(1, 2), contributions.cumsum(0))).tolist()

    def arrow(start: list[float], end: list[float], colour: str, width: float) -> None:
        style = {"arrowstyle": "-|>", "color": colour, "lw": width, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", end, start, arrowprops=style)

    for f, (start, end) in enumerate(pairwise(tips)):
        colour = COLOURS[f % len(COLOURS)]
        if start == end:
            ax.plot(*start, "o", color=colour, markersize=7)
        else:
            arrow(start, end, colour, 2.5)
        middle = [(a + b) / 2 for a, b in zip(start, end, strict=True)]
        ax.annotate(
            f"neuron {f}", middle, (14, 6), textcoords="offset points", color=colour, fontsize=10
        )
    arrow(tips[0], tips[-1], BLACK, 1.2)
    half = [value / 2 for value in tips[-1]]
    ax.annotate("sum", half, (-34, -16), textcoords="offset points", color=BLACK, fontsize=10)
    xs, ys = zip(*tips, strict=True)
    ax.set(xlim=(min(xs) - 0.6, max(xs) + 1.0), ylim=(min(ys) - 0.6, max(ys) + 0.8))
    ax.set(xlabel="feature 0", ylabel="feature 1")
    return figure


def losses_by_seed(losses: dict[str, list[float]]) -> Figure:
    """The held-out loss of each run: a row for a kind, a dot for a seed, a bar at the mean."""
    figure, (ax,) = card(6.5, 0.6 + 0.55 * len(losses))
    for row, (values, colour) in enumerate(zip(losses.values(), COLOURS, strict=False)):
        mean = sum(values) / len(values)
        ax.plot(values, [row] * len(values), "o", color=colour, alpha=0.7, markersize=7)
        ax.plot([mean, mean], [row - 0.3, row + 0.3], color=BLACK, linewidth=2)
    ax.set(yticks=range(len(losses)), yticklabels=list(losses), ylim=(len(losses) - 0.4, -0.6))
    ax.set_xlabel("held-out loss (nats per character); bar: mean")
    ax.grid(axis="x", color="0.9")
    return figure


def running_share(shares: dict[str, Tensor]) -> Figure:
    """How much the loudest neurons hold together, of all: name -> (F,), rising to 1."""
    figure, (ax,) = card(6.5, 3.2)
    for (name, share), colour, dash in zip(shares.items(), COLOURS, DASHES, strict=False):
        percent = 100 * torch.arange(1, len(share) + 1) / len(share)
        ax.plot(percent, 100 * share, color=colour, linestyle=dash, linewidth=2, label=name)
    ax.set(xlabel="loudest neurons of a token (% of all)", ylabel="share of the squares (%)")
    ax.set(xlim=(0, 100), ylim=(0, 102))
    ax.legend(frameon=False, fontsize=9, loc="lower right")
    return figure
