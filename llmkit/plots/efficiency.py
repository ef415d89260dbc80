"""The figures of chapter 13: what a language model costs."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from llmkit.plots.style import BLACK, BLUE, GREEN, ORANGE, SKY, VERMILION, card


def roofline_chart(
    peak_flops: float,
    bandwidth: float,
    points: Mapping[str, tuple[float, float | None]],
    title: str = "",
) -> Figure:
    """Two roofs, memory's and arithmetic's, against the intensity, on logarithmic axes.

    points: name -> (intensity, FLOP/s that were measured); without a measurement the point lies on
    the roof. Bandwidth in bytes/s, intensity in FLOPs per byte.
    """
    unit, scale = ("GFLOP/s", 1e9) if peak_flops >= 1e6 else ("FLOP/s", 1.0)
    peak, bandwidth, ridge = peak_flops / scale, bandwidth / scale, peak_flops / bandwidth
    reached = {
        name: (intensity, min(peak, intensity * bandwidth) if flops is None else flops / scale)
        for name, (intensity, flops) in points.items()
    }
    intensities, heights = zip(*reached.values(), strict=True)
    left, right = min(0.1, *intensities) / 2, max(20 * ridge, *intensities) * 2
    floor = left * bandwidth
    figure, (ax,) = card(6.5, 3.6)
    ax.plot([left, ridge], [floor, peak], color=VERMILION, lw=2)
    ax.plot([ridge, right], [peak, peak], color=BLUE, lw=2)
    ax.axvline(ridge, color="0.5", lw=1, ls=":")
    ax.text(ridge * 1.08, floor * 1.2, f"ridge: {ridge:.3g}", fontsize=9, va="bottom")
    ax.text(right, peak * 1.1, "arithmetic", color=BLUE, ha="right", fontsize=9)
    ax.text(4 * left, 6 * floor, "memory", color=VERMILION, ha="right", fontsize=9)
    ax.plot(intensities, heights, "o", color=BLACK, ms=5)
    for name, at in reached.items():
        ax.annotate(name, at, (6, -11), textcoords="offset points", fontsize=9)
    ax.set(xscale="log", yscale="log", xlim=(left, right))
    ax.set_ylim(floor, 2.5 * max(peak, *heights))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
    ax.set(xlabel="intensity (FLOPs per byte)", ylabel=unit)
    ax.set_title(title, fontsize=10)
    return figure


def snapped_to_steps(weights: Tensor, scale: float, levels: int) -> Figure:
    """A row of weights (K,) on a line, and the step of width `scale` that each is moved to.

    The steps are the whole numbers from -levels to levels.
    """
    figure, (ax,) = card(6.5, 1.9)
    steps = torch.arange(-levels, levels + 1)
    ax.vlines(scale * steps, -0.12, 0.12, color="0.5", lw=1)
    ax.hlines(0, -1.05 * scale * levels, 1.05 * scale * levels, color="0.5", lw=0.8)
    for weight in weights.tolist():
        step = round(weight / scale)
        ax.annotate(
            "", (scale * step, 0.03), (weight, 0.8), arrowprops={"arrowstyle": "->", "color": BLUE}
        )
        ax.plot(weight, 0.85, "o", color=VERMILION, ms=5)
    for step in steps.tolist():
        ax.text(scale * step, -0.22, f"{step}".replace("-", "−"), ha="center", va="top", fontsize=9)
    ax.text(scale * levels * 1.08, 0.85, "weights", color=VERMILION, va="center", fontsize=9)
    ax.text(scale * levels * 1.08, 0.0, "steps", color="0.3", va="center", fontsize=9)
    ax.set(xlim=(-1.1 * scale * levels, 1.25 * scale * levels), ylim=(-0.5, 1.1))
    ax.axis("off")
    return figure


def rounding_errors(errors: Tensor) -> Figure:
    """How often a weight moves by how much, in steps of its own row: errors (N,)."""
    figure, (ax,) = card(6.5, 2.8)
    ax.hist(errors.flatten().numpy(), bins=60, range=(-0.75, 0.75), density=True, color=SKY)
    ax.plot([-0.5, -0.5, 0.5, 0.5], [0, 1, 1, 0], color=VERMILION, lw=2)
    ax.text(0.52, 0.9, "uniform", color=VERMILION, fontsize=9)
    ax.set(xlabel="how far a weight moves (steps)", ylabel="density")
    return figure


def divergence_by_bits(bits: Sequence[int], curves: Mapping[str, Sequence[float]]) -> Figure:
    """The KL divergence (nats) against the bits of a weight: how scales are shared -> measured.

    The lines start from the first point, and grow by a factor of four for each bit less.
    """
    figure, (ax,) = card(6.5, 3.2)
    for (name, measured), colour, marker in zip(
        curves.items(), (VERMILION, BLUE, GREEN), "so^", strict=False
    ):
        predicted = [measured[0] * 4.0 ** (bits[0] - b) for b in bits]
        (line,) = ax.plot(bits, predicted, "--", color="0.45", lw=1.2)
        ax.plot(bits, measured, marker, color=colour, ms=6, label=f"measured: {name}")
    line.set_label(f"predicted from {bits[0]} bits: 4 times as much for each bit less")
    ax.set(yscale="log", xlabel="bits of a weight", ylabel="KL divergence (nats per token)")
    ax.set_xticks(bits)
    ax.yaxis.set_major_formatter("{x:g}")
    ax.legend(frameon=False, fontsize=9)
    return figure


def predicted_and_measured(
    names: Sequence[str], series: Mapping[str, Sequence[float]], unit: str
) -> Figure:
    """Bars side by side for each of the names: series -> a value for each name."""
    figure, (ax,) = card(6.5, 3.0)
    width = 0.8 / len(series)
    places = torch.arange(len(names)).float()
    for i, ((name, values), colour) in enumerate(
        zip(series.items(), (SKY, ORANGE, GREEN), strict=False)
    ):
        at = places + (i - (len(series) - 1) / 2) * width
        bars = ax.bar(at, values, 0.92 * width, color=colour, label=name)
        ax.bar_label(bars, [f"{value:.3g}" for value in values], fontsize=9, padding=2)
    ax.set_xticks(places, names)
    ax.set_ylabel(unit)
    ax.margins(y=0.15)
    ax.legend(frameon=False, fontsize=9)
    return figure
