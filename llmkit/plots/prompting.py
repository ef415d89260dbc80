"""The figures of chapter 11: prompting."""

from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from torch import Tensor

from llmkit.plots.style import BLACK, BLUE, GREEN, ORANGE, SEQUENTIAL, VERMILION, card

Estimate = tuple[float, float, float]  # a share, and the lower and the upper end of its interval


def accuracy_curves(
    tasks: Mapping[str, Mapping[int, Estimate]], chance: Mapping[str, float]
) -> Figure:
    """Accuracy against shots, with intervals: task -> {shots: (accuracy, low, high)}.

    The shots stand side by side at equal distances; `chance` is what guessing gives, dashed.
    """
    figure, (ax,) = card()
    shots = sorted({number for table in tasks.values() for number in table})
    for i, ((task, table), colour, marker) in enumerate(
        zip(tasks.items(), (BLUE, VERMILION, GREEN), "os^", strict=False)
    ):
        places = torch.tensor([shots.index(number) for number in table]) + 0.06 * i
        middle, low, high = torch.tensor(list(table.values())).T
        reach = torch.stack((middle - low, high - middle))
        ax.errorbar(
            places, middle, reach, marker=marker, color=colour, capsize=4, label=f"{task}, measured"
        )
        ax.axhline(
            chance[task], color=colour, linestyle="--", linewidth=1, label=f"{task}, by chance"
        )
    ax.set_xticks(range(len(shots)), [str(number) for number in shots])
    ax.set(xlabel="demonstrations in the prompt (shots)", ylabel="accuracy", ylim=(0, 1.03))
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    return figure


def head_map(scores: Tensor) -> Figure:
    """A score from 0 to 1 of each head, as a heat map: a column for each layer. Shapes: (L, H)."""
    figure, (ax,) = card(6.5, 2.6)
    layers, heads = scores.shape
    drawn = ax.imshow(scores.T, cmap=SEQUENTIAL, vmin=0, vmax=1)
    ax.set_xticks(range(0, layers, max(layers // 10, 1)))
    ax.set_yticks(range(heads))
    ax.set(xlabel="layer", ylabel="head")
    figure.colorbar(drawn, ax=ax, label="induction score", shrink=0.8)
    return figure


def copying_losses(curves: Mapping[str, Tensor], period: int) -> Figure:
    """The loss at each position of a text said twice: name -> (T − 1,), from position 1 on."""
    figure, (ax,) = card()
    for (name, losses), colour, width in zip(
        curves.items(), (BLUE, VERMILION, GREEN, ORANGE), (2.2, 1.6, 1.6, 1.2), strict=False
    ):
        ax.plot(range(1, len(losses) + 1), losses, color=colour, linewidth=width, label=name)
    ax.axvline(period, color="0.4", linestyle="--", linewidth=1)
    ax.annotate("second round", (period + 0.5, 0.98), xycoords=("data", "axes fraction"), va="top")
    ax.set(xlabel="position of the token", ylabel="loss (nats)")
    ax.set_ylim(bottom=0)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure


def accuracy_intervals(
    share: float, ends: Mapping[int, tuple[float, float]], chosen: int
) -> Figure:
    """Intervals of one measured share for several numbers of trials, one of them set apart."""
    figure, (ax,) = card(6.5, 2.6)
    for row, (number, (low, high)) in enumerate(ends.items()):
        colour = VERMILION if number == chosen else BLUE
        ax.plot((low, high), (row, row), color=colour, linewidth=6, solid_capstyle="butt")
        ax.annotate(f"{low:.2f} to {high:.2f}", (high + 0.01, row), va="center", fontsize=9)
    ax.axvline(share, color=BLACK, linewidth=1, linestyle=":")
    ax.set_yticks(range(len(ends)), [f"{number:,} queries" for number in ends])
    ax.set_ylim(len(ends) - 0.5, -0.5)
    ax.set(xlabel="accuracy (dotted: measured; bars: 95 % intervals)", xlim=(0, 1.2))
    ax.set_xticks((0, 0.2, 0.4, 0.6, 0.8, 1.0))
    return figure
