"""The figures of chapter 01: counting what follows what."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch
from torch import Tensor

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


def next_tokens(probabilities: Mapping[str, float], title: str, top: int = 12) -> Figure:
    """The probability of each next token as a bar, the likeliest `top` of them, likeliest first."""
    possible = [(token, p) for token, p in probabilities.items() if p > 0]
    likeliest = sorted(possible, key=lambda pair: -pair[1])[:top]
    names = [visible(token) for token, _ in likeliest]
    values = [probability for _, probability in likeliest]
    figure, (ax,) = card(6.5, 2.6)
    bars = ax.bar(range(len(names)), values, color=BLUE)
    labels = [f"{value:.2g}" if value >= 0.001 else "<.001" for value in values]
    ax.bar_label(bars, labels, fontsize=8, padding=2)
    ax.set_xticks(range(len(names)), names)
    ax.set(title=title, ylabel="probability", xlabel="next token", ylim=(0, 1.08))
    return figure


def smoothing(rows: Mapping[str, Mapping[str, float]]) -> Figure:
    """Distributions over the same tokens side by side: title -> token -> probability."""
    figure, axes = card(8.0, 2.5, columns=len(rows))
    for ax, (title, probabilities) in zip(axes, rows.items(), strict=True):
        names = [visible(token) for token in probabilities]
        bars = ax.bar(names, probabilities.values(), color=BLUE)
        ax.bar_label(bars, [f"{p:.2g}" for p in probabilities.values()], fontsize=8, padding=2)
        ax.set_title(title, fontsize=10)
        ax.set(ylim=(0, 0.6), yticks=(0, 0.5))
        ax.tick_params("x", labelsize=8, rotation=60)
    axes[0].set_ylabel("probability")
    return figure


def word_map(
    places: Mapping[str, tuple[float, float]],
    arrows: Mapping[tuple[str, str], float],
    bends: Mapping[tuple[str, str], float] | None = None,
) -> Figure:
    """Words as circles, and an arrow from each word to each that may follow, with its probability.

    places:  word -> the centre of its circle, which has a radius of 0.4
    arrows:  (word, next word) -> probability
    bends:   (word, next word) -> how far its arrow bends, to the right of its way; 0.1 without it
    """
    figure, (ax,) = card(7.0, 4.4)
    circles = {
        word: Circle(place, 0.4, facecolor="white", edgecolor=BLACK, zorder=3)
        for word, place in places.items()
    }
    for word, circle in circles.items():
        ax.add_patch(circle)
        ax.text(*places[word], word, ha="center", va="center", fontsize=10, zorder=4)
    for (before, after), probability in arrows.items():
        (x, y), (u, v) = places[before], places[after]
        bend = (bends or {}).get((before, after), 0.1)
        ax.add_patch(
            FancyArrowPatch(
                (x, y),
                (u, v),
                patchA=circles[before],
                patchB=circles[after],
                connectionstyle=f"arc3,rad={bend}",
                arrowstyle="-|>",
                mutation_scale=14,
                color=BLUE,
                lw=0.8 + 2.5 * probability,
            )
        )
        # the middle of the arc: half of the bend, at right angles to the straight line
        middle = (x + u) / 2 + bend / 2 * (v - y), (y + v) / 2 - bend / 2 * (u - x)
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        ax.text(*middle, f"{probability:.2g}", ha="center", va="center", fontsize=9, bbox=paper)
    across, up = zip(*places.values(), strict=True)
    ax.set(xlim=(min(across) - 0.6, max(across) + 1.2), ylim=(min(up) - 1.1, max(up) + 0.7))
    ax.set_aspect("equal")
    ax.axis("off")
    return figure


def ruler(probabilities: Mapping[str, float], draws: Sequence[float]) -> Figure:
    """The probabilities laid end to end from 0 to 1, and draws that fall on them."""
    figure, (ax,) = card(6.5, 1.7)
    colours = (SKY, YELLOW, GREEN, ORANGE, PURPLE)
    reached = 0.0
    for i, (token, probability) in enumerate(probabilities.items()):
        ax.barh(0, probability, left=reached, color=colours[i % 5], edgecolor="white", height=0.6)
        ax.text(reached + probability / 2, 0, visible(token), ha="center", va="center")
        reached += probability
    for draw in draws:
        ax.annotate(
            f"{draw:.2f}",
            (draw, 0.3),
            (draw, 0.85),
            ha="center",
            color=VERMILION,
            arrowprops={"arrowstyle": "-|>", "color": VERMILION},
        )
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.35, 1.15), yticks=[], xlabel="draw")
    ax.set_xticks([0, *(round(x, 3) for x in _sums(probabilities))])
    ax.spines["left"].set_visible(False)
    return figure


def end_to_end(steps: Sequence[tuple[str, float]]) -> Figure:
    """Each token's −ln p as a bar that begins where the last one ended: (token, probability)."""
    figure, (ax,) = card(6.5, 0.9 + 0.36 * len(steps))
    reached = 0.0
    for i, (_, probability) in enumerate(steps):
        cost = -math.log(probability) + 0.0  # never minus zero
        ax.barh(i, cost, left=reached, color=BLUE)
        ax.plot([reached + cost] * 2, [i, len(steps) - 0.6], color="0.6", lw=0.8, ls=":", zorder=0)
        label = f" −ln {probability:.2g} = {cost:.3f}"
        ax.text(reached + cost, i, label, va="center", fontsize=9)
        reached += cost
    ax.set_yticks(range(len(steps)), [token for token, _ in steps])
    ax.invert_yaxis()
    ax.set(xlabel=f"−ln p (nats); all together {reached:.3f}", xlim=(0, 1.25 * reached))
    return figure


def losses_by_n(curves: Mapping[str, Sequence[float]], levels: Mapping[str, float]) -> Figure:
    """A loss for each n = 1, 2, … of several texts; levels to compare with, as dashed lines."""
    figure, (ax,) = card(6.5, 3.4)
    styles = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "^"), (PURPLE, "D"))
    last = 0
    for (name, losses), (colour, marker) in zip(curves.items(), styles, strict=False):
        last = len(losses)
        ax.plot(range(1, last + 1), losses, marker=marker, color=colour, lw=2)
        ax.annotate(name, (last + 0.1, losses[-1]), color=colour, va="center")
    for name, level in levels.items():
        ax.axhline(level, color="0.4", lw=1, ls="--")
        ax.annotate(f"{name} = {level:.3f}", (last, level - 0.08), ha="right", va="top")
    ax.set(xlabel="n", ylabel="loss (nats per character)", xticks=range(1, last + 1))
    ax.set(xlim=(0.8, last + 1.5), ylim=(0, None))
    return figure


def perplexity_by_k(ks: Sequence[float], perplexities: Sequence[float], uniform: float) -> Figure:
    """Perplexity of a held-out text against k (both logarithmic), and that of guessing."""
    figure, (ax,) = card()
    ax.loglog(ks, perplexities, "o-", color=VERMILION, lw=2)
    ax.axhline(uniform, color="0.4", lw=1, ls="--")
    label = f"every character equally likely: {uniform:.0f}"
    ax.annotate(label, (max(ks), 0.95 * uniform), ha="right", va="top")
    low = min(perplexities)
    best = ks[list(perplexities).index(low)]
    ax.annotate(f"{low:.2f} at k = {best:g}", (best, 0.93 * low), ha="center", va="top")
    ticks = [tick for tick in (5, 10, 20, 50, 100, 200) if 0.6 * low <= tick <= 1.3 * uniform]
    ax.set_yticks(ticks, map(str, ticks))
    ax.minorticks_off()
    ax.set(xlabel="k", ylabel="held-out perplexity", ylim=(0.7 * low, 1.3 * uniform))
    return figure


def follower_table(table: Tensor, names: Sequence[str]) -> Figure:
    """A table of probabilities as a heat map: a row for each context, a column for each token.

    Shapes: (V, V) for V names.
    """
    figure, (ax,) = card(7.2, 6.0)
    scale = PowerNorm(0.5, vmin=0, vmax=float(table.max()))  # so that small ones show, too
    drawn = ax.imshow(table, cmap=SEQUENTIAL, norm=scale)
    labels = [visible(name) for name in names]
    ax.set_xticks(range(len(names)), labels, fontsize=8)
    ax.set_yticks(range(len(names)), labels, fontsize=8)
    ax.set(xlabel="next character", ylabel="character before it")
    figure.colorbar(drawn, ax=ax, shrink=0.8, label="probability")
    return figure


def visible(token: str) -> str:
    """A token as a figure can show it: blanks and line breaks as signs, dollars as they are."""
    return token.replace(" ", "␣").replace("\n", "⏎").replace("$", r"\$")


def _sums(probabilities: Mapping[str, float]) -> list[float]:
    values = list(probabilities.values())
    return [sum(values[: i + 1]) for i in range(len(values))]
