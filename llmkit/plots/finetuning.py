"""The figures of chapter 12: fine-tuning."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
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

SEGMENT_COLOURS = (SKY, ORANGE, GREEN, PURPLE, YELLOW, VERMILION)


def learned_tokens(tokens: Sequence[str], learned: Sequence[bool], across: int = 12) -> Figure:
    """A text's tokens in boxes, line after line; those whose loss counts are coloured."""
    lines = -(-len(tokens) // across)
    figure, (ax,) = card(8.0, 0.45 + 0.42 * lines)
    for i, (token, counts) in enumerate(zip(tokens, learned, strict=True)):
        line, place = divmod(i, across)
        box = (place, -line - 0.4)
        colour = YELLOW if counts else "#eeeeee"
        ax.add_patch(Rectangle(box, 0.94, 0.8, facecolor=colour, edgecolor=BLACK, linewidth=0.8))
        shown = token.strip(" ").replace("\n", "↵").replace("<|", "‹").replace("|>", "›")
        weight = "bold" if counts else "normal"
        ax.text(place + 0.47, -line, shown, ha="center", va="center", fontsize=8, weight=weight)
    ax.set(xlim=(-0.1, across + 0.1), ylim=(-lines + 0.4, 0.6))
    ax.axis("off")
    return figure


def packed_rows(segments: Tensor) -> Figure:
    """Where examples stand in packed rows, and who looks at whom in the first row.

    Shapes: (rows, T), 0 where there is padding.
    """
    figure, (left, right) = card(8.2, 3.4, 2)
    rows, length = segments.shape
    for i, row in enumerate(segments.tolist()):
        for t, number in enumerate(row):
            colour = SEGMENT_COLOURS[(number - 1) % 6] if number else "white"
            corner = (t - 0.5, i - 0.42)
            left.add_patch(
                Rectangle(corner, 1, 0.84, facecolor=colour, edgecolor=BLACK, linewidth=0.5)
            )
            if length <= 24:
                left.text(t, i, str(number), ha="center", va="center", fontsize=8)
    left.set(xlim=(-0.6, length - 0.4), ylim=(rows - 0.4, -0.6), yticks=range(rows))
    left.set(xlabel="position in the row", ylabel="row")
    left.set_title("segments (0: padding)", fontsize=10)
    first = segments[0]
    seen = (first[:, None] == first[None, :]) & (first != 0)[None, :]
    right.imshow(seen & torch.ones_like(seen).tril(), cmap=SEQUENTIAL, vmin=0, vmax=1)
    right.set(xlabel="position that is looked at", ylabel="position that looks")
    right.set_title("row 0: who may look at whom (bright: may)", fontsize=10)
    return figure


def low_rank(outputs: int, inputs: int, r: int) -> Figure:
    """A matrix W (out, in), and the two thin ones of its adapter, drawn to scale."""
    figure, (ax,) = card(7.0, 3.2)
    unit = 4.0 / max(outputs, inputs)
    tall, wide, thin = outputs * unit, inputs * unit, max(r * unit, 0.03)
    pieces = (
        (wide, tall, SKY, f"W, frozen\n{outputs} × {inputs} = {outputs * inputs:,}"),
        (thin, tall, ORANGE, f"B\n{outputs} × {r} = {outputs * r:,}"),
        (wide, thin, GREEN, f"A\n{r} × {inputs} = {r * inputs:,}"),
    )
    edge = 0.0
    for i, (width, height, colour, name) in enumerate(pieces):
        middle = edge + max(width, 2.2) / 2  # room for its name
        corner = (middle - width / 2, (tall - height) / 2)
        ax.add_patch(Rectangle(corner, width, height, facecolor=colour, edgecolor=BLACK))
        ax.text(middle, -0.25, name, ha="center", va="top", fontsize=9)
        edge = middle + max(width, 2.2) / 2 + 0.4
        if i == 0:
            ax.text(edge + 0.3, tall / 2, "+  α/r ·", ha="center", va="center", fontsize=11)
            edge += 0.3
    ax.set(xlim=(-0.2, edge), ylim=(-1.3, tall + 0.2), aspect="equal")
    ax.axis("off")
    return figure


def tuning(losses: Sequence[float], pairs: Mapping[str, tuple[float, float]]) -> Figure:
    """The loss of each step; beside it losses by name: (before, after) the training."""
    figure, (left, right) = card(8.2, 3.3, 2)
    left.plot(range(1, len(losses) + 1), losses, color=BLUE, marker="o", markersize=4)
    left.set(xlabel="step", ylabel="loss of the answers (nats per token)")
    left.set_title("while it learns", fontsize=10)
    left.set_ylim(bottom=0)
    for place, (before, after) in enumerate(pairs.values()):
        for shift, value, colour in ((-0.2, before, SKY), (0.2, after, VERMILION)):
            label = None if place else ("before" if shift < 0 else "after")
            right.bar(place + shift, value, 0.38, color=colour, label=label)
            right.text(place + shift, value, f"{value:.2f}", ha="center", va="bottom", fontsize=8)
    right.set_xticks(range(len(pairs)), list(pairs), fontsize=9)
    right.set_ylabel("loss (nats per token)")
    right.set_title("on texts that it was not trained on", fontsize=10)
    right.legend(frameon=False, fontsize=9)
    right.margins(y=0.12)
    return figure
