"""The figures of chapter 08: a whole Llama."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
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

PART_COLOURS = (BLUE, ORANGE, GREEN, PURPLE)


def residual_stream() -> Figure:
    """A Llama from left to right: one stream, from which each sublayer reads a copy and adds."""
    figure, (ax,) = card(8.2, 2.9)
    ax.set(xlim=(-1.2, 14.6), ylim=(-0.9, 3.3))
    ax.axis("off")
    ax.annotate("", (13.5, 0), (0.9, 0), arrowprops={"arrowstyle": "-|>", "linewidth": 4})
    ax.annotate("", (0.1, 0), (-0.45, 0), arrowprops={"arrowstyle": "-|>", "linewidth": 1.5})
    ax.text(-0.5, 0, "ids", ha="right", va="center", fontsize=9)
    ax.text(13.55, 0, "logits", ha="left", va="center", fontsize=9)
    ax.text(5.65, -0.8, "residual stream: one row of D numbers for each token", ha="center")
    _box(ax, 0.9, 0, "embedding", YELLOW)
    for centre, name, colour in ((4.1, "attention", SKY), (7.5, "feed-forward", ORANGE)):
        _sublayer(ax, centre, name, colour)
    ax.add_patch(Rectangle((2.2, -0.42), 6.9, 3.2, facecolor="#eeeeee", edgecolor="none", zorder=0))
    ax.text(5.65, 2.95, "one block, repeated for every layer", ha="center", fontsize=9)
    _box(ax, 10.6, 0, "norm", "white", width=1.1)
    _box(ax, 12.0, 0, "head", YELLOW, width=1.1)
    return figure


def _box(ax: Axes, x: float, y: float, text: str, colour: str, width: float = 1.6) -> None:
    corner = (x - width / 2, y - 0.28)
    ax.add_patch(
        FancyBboxPatch(
            corner,
            width,
            0.56,
            boxstyle="round,pad=0.05",
            facecolor=colour,
            edgecolor=BLACK,
            zorder=5,  # above the stream
        )
    )
    ax.text(x, y, text, ha="center", va="center", fontsize=9, zorder=6)


def _sublayer(ax: Axes, centre: float, name: str, colour: str) -> None:
    left, right = centre - 1.15, centre + 1.15
    arrow = {"arrowstyle": "-|>", "linewidth": 1.5}
    ax.plot([left, left], [0, 0.75], color=BLACK, linewidth=1.5)
    _box(ax, left, 1.05, "norm", "white", width=1.1)
    ax.plot([left, left, centre - 0.9], [1.4, 2.2, 2.2], color=BLACK, linewidth=1.5)
    _box(ax, centre, 2.2, name, colour, width=1.75)
    ax.plot([centre + 0.95, right, right], [2.2, 2.2, 0.6], color=BLACK, linewidth=1.5)
    ax.annotate("", (right, 0.2), (right, 0.65), arrowprops=arrow)
    ax.plot(right, 0, "o", markersize=14, color="white", markeredgecolor=BLACK, zorder=5)
    ax.text(right, 0, "+", ha="center", va="center", fontsize=12, zorder=6)


def parameter_shares(models: dict[str, dict[str, int]], title: str = "") -> Figure:
    """Where the parameters of each model are, as shares of the whole: model -> part -> number."""
    figure, (ax,) = card(7.5, 1.3 + 0.42 * len(models))
    for row, counted in enumerate(models.values()):
        whole, left = sum(counted.values()), 0.0
        for (part, number), colour in zip(counted.items(), PART_COLOURS, strict=False):
            share = 100 * number / whole
            label = part if row == 0 else None
            ax.barh(row, share, left=left, color=colour, label=label, height=0.7)
            if share > 5:
                light = "white" if colour in (BLUE, GREEN) else BLACK
                middle = left + share / 2
                ax.text(
                    middle, row, f"{share:.0f} %", color=light, ha="center", va="center", fontsize=9
                )
            left += share
    names = [f"{name}\n{sum(counted.values()):,}" for name, counted in models.items()]
    ax.set_yticks(range(len(models)), names, fontsize=8)
    ax.invert_yaxis()
    ax.set(xlabel="share of the parameters (%)", xlim=(0, 100))
    ax.set_title(title, fontsize=10)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def influence_maps(maps: dict[str, Tensor]) -> Figure:
    """How far each output moves when one token is changed: name -> (T, T), row = output."""
    figure, axes = card(3.9 * len(maps), 3.6, len(maps))
    for ax, (name, moved) in zip(axes, maps.items(), strict=True):
        image = ax.imshow(moved / moved.max(), cmap=SEQUENTIAL, vmin=0, vmax=1)
        for t, row in enumerate(moved.tolist()):
            for s, value in enumerate(row):
                if value == 0:
                    ax.text(s, t, "0", ha="center", va="center", color="white", fontsize=9)
        ticks = range(len(moved))
        ax.set_title(name, fontsize=10)
        ax.set(xlabel="token that is changed", ylabel="output position", xticks=ticks, yticks=ticks)
    figure.colorbar(image, ax=axes, label="change, largest = 1", shrink=0.8)
    return figure


def depth_curves(curves: dict[str, list[float]], ylabel: str) -> Figure:
    """A number after each layer: name -> one number for each depth, 0 being the embedding."""
    figure, (ax,) = card(7.0, 3.2)
    looks = ((BLUE, "-"), (VERMILION, "--"), (GREEN, "-."), (PURPLE, ":"))
    for (name, values), (colour, dash) in zip(curves.items(), looks, strict=False):
        ax.plot(values, color=colour, linestyle=dash, linewidth=2, label=name)
    ax.set(xlabel="layers done", ylabel=ylabel)
    ax.legend(frameon=False, fontsize=9)
    return figure


def without_each_layer(losses: list[float], whole: float) -> Figure:
    """The loss of a model when one layer is left out, for each layer, and of the whole model."""
    figure, (ax,) = card(7.0, 3.0)
    ax.bar(range(len(losses)), losses, color=SKY)
    ax.axhline(whole, color=BLACK, linestyle="--", linewidth=1.5, label="all layers")
    ax.set(xlabel="layer that is left out", ylabel="loss (nats per token)")
    ax.legend(frameon=False, fontsize=9)
    return figure
