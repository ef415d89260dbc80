"""The figures of chapter 06: layer, batch and RMS normalization."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from llmkit.plots.style import (
    BLACK,
    BLUE,
    DIVERGING,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    card,
)

LOOKS = ((BLUE, "-"), (VERMILION, "--"), (GREEN, "-."), (PURPLE, ":"), (ORANGE, "-"))


def sizes_by_depth(
    panels: dict[str, dict[str, Tensor]], across: str = "layer", size: str = "root mean square"
) -> Figure:
    """How large the numbers are after each layer, on a logarithmic scale: a curve for each name.

    panels: title -> name -> (L,). What is not finite is left out.
    """
    width = 6.5 if len(panels) == 1 else 8.0
    figure, axes = card(width, 3.4, len(panels))
    for ax in axes[1:]:
        ax.sharey(axes[0])  # so that a flat curve looks flat
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        for (name, sizes), (colour, dash) in zip(curves.items(), LOOKS, strict=False):
            finite = torch.where(sizes.isfinite() & (sizes > 0), sizes, torch.nan)
            ax.plot(finite, color=colour, linestyle=dash, linewidth=2, label=name)
        ax.set(yscale="log", xlabel=across, ylabel=size)
        ax.set_title(title, fontsize=10)
        ax.margins(y=0.1)
        ax.legend(frameon=False, fontsize=8)
    return figure


def normed_groups(table: Tensor, row: int = 1, column: int = 2) -> Figure:
    """The same table of numbers twice: the row that LayerNorm normalizes, BatchNorm's column.

    Shapes: (B, D).
    """
    figure, axes = card(7.5, 2.9, 2)
    samples, features = table.shape
    reach = 1.6 * float(table.abs().max())
    groups = {
        "LayerNorm, RMSNorm: each sample by itself": ((-0.5, row - 0.5), features, 1),
        "BatchNorm: each feature by itself": ((column - 0.5, -0.5), 1, samples),
    }
    for ax, (title, (corner, wide, high)) in zip(axes, groups.items(), strict=True):
        ax.imshow(table, cmap=DIVERGING, vmin=-reach, vmax=reach, aspect="auto")
        for b in range(samples):
            for d in range(features):
                ax.text(d, b, f"{table[b, d]:g}", ha="center", va="center", color=BLACK)
        ax.add_patch(Rectangle(corner, wide, high, fill=False, edgecolor=BLACK, linewidth=3))
        ax.set_title(title, fontsize=10)
        ax.set(xlabel="feature", ylabel="sample", xticks=range(features), yticks=range(samples))
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
    return figure


def one_sample(rows: dict[str, Tensor], title: str = "", reach: float = 0.0) -> Figure:
    """One sample's features as bars, before and after each norm: name -> (D,).

    The first row has a scale of its own, the others share one, from -reach to reach.
    """
    figure, axes = card(2.1 * len(rows), 2.5, len(rows))
    first, *others = rows.values()
    reach = reach or 1.3 * max(float(values.abs().max()) for values in others)
    scales = [1.35 * max(float(first.abs().max()), 1e-3), *[reach] * len(others)]
    for ax, (name, values), scale, colour in zip(
        axes, rows.items(), scales, (SKY, BLUE, VERMILION, GREEN), strict=False
    ):
        bars = ax.bar(range(len(values)), values.clamp(-scale, scale), color=colour)
        labels = [f"{value:.3g}" for value in values.tolist()]
        ax.bar_label(bars, labels, fontsize=8, padding=2)
        ax.axhline(0, color=BLACK, linewidth=0.8)
        ax.set_title(name, fontsize=10)
        ax.set(ylim=(-1.2 * scale, 1.2 * scale), xlabel="feature", xticks=range(len(values)))
    axes[0].set_ylabel("value")
    figure.suptitle(title, fontsize=11)
    return figure


def batch_mates(outputs: dict[str, Tensor]) -> Figure:
    """One sample's features after two norms, once for every batch it stood in: name -> (N, D)."""
    figure, axes = card(8.0, 3.2, len(outputs))
    reach = 1.15 * max(float(values.abs().max()) for values in outputs.values())
    for ax, (name, values), colour in zip(axes, outputs.items(), (BLUE, GREEN), strict=True):
        _dots(ax, values, colour)
        ax.axhline(0, color="0.6", linewidth=0.8)
        ax.set_title(name, fontsize=10)
        ax.set(xlabel="feature", xticks=range(values.shape[1]), ylim=(-reach, reach))
    axes[0].set_ylabel("normalized value of one sample")
    return figure


def _dots(ax: Axes, values: Tensor, colour: str) -> None:
    number = len(values)
    aside = torch.linspace(-0.3, 0.3, number)
    for feature, column in enumerate(values.T):
        ax.plot(feature + aside, column, "o", color=colour, markersize=3, alpha=0.7)


def training_losses(curves: dict[str, list[float]], levels: dict[str, float]) -> Figure:
    """Losses against the training step; a cross marks where one stopped being a finite number."""
    figure, (ax,) = card(7.0, 3.4)
    top = 1.6 * max(levels.values())
    last = max(map(len, curves.values()))
    for (name, losses), (colour, dash) in zip(curves.items(), LOOKS, strict=False):
        finite = [loss for loss in losses if abs(loss) < float("inf")]
        ax.plot(finite, color=colour, linestyle=dash, linewidth=2, label=name)
        if len(finite) < last:
            height = min(finite[-1], top) if finite else top
            ax.plot(
                max(len(finite) - 1, 0), height, "X", color=colour, markersize=10, clip_on=False
            )
    for name, level in levels.items():
        ax.axhline(level, color="0.4", linewidth=1, linestyle=(0, (1, 3)))
        ax.annotate(f"{name} = {level:.2f}", (last, level), ha="right", va="bottom", fontsize=9)
    ax.set(xlabel="training step", ylabel="loss (nats)", ylim=(0, 1.05 * top), xlim=(-1, last))
    ax.legend(frameon=False, fontsize=8, loc="lower left")
    return figure
