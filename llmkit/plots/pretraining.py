"""The figures of chapter 09: labels, learning rates, losses, and who waits for whom."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from llmkit.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SEQUENTIAL,
    VERMILION,
    card,
)

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE)
DASHES = ("-", "--", "-.", ":", "-")
MARKS = ("o", "s", "^", "D", "v")


def token_table(rows: dict[str, Sequence[str]], marked: Sequence[int] = ()) -> Figure:
    """Rows of tokens below one another, a box each; the columns in `marked` are coloured."""
    columns = max(len(tokens) for tokens in rows.values())
    figure, (ax,) = card(1.6 + 0.85 * columns, 0.5 + 0.5 * len(rows))
    for row, tokens in enumerate(rows.values()):
        for column, token in enumerate(tokens):
            face = ORANGE if column in marked else "white"
            box = {"boxstyle": "square,pad=0.35", "facecolor": face, "edgecolor": "0.6"}
            ax.text(column, row, token, ha="center", va="center", fontsize=10, bbox=box)
    ax.set(xlim=(-0.6, columns - 0.4), ylim=(len(rows) - 0.4, -0.6), xticks=[])
    ax.set_yticks(range(len(rows)), list(rows), fontsize=10)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return figure


def learning_rates(curves: dict[str, Sequence[float]]) -> Figure:
    """The learning rate of each step, a curve for each name."""
    figure, (ax,) = card(6.5, 3.0)
    for (name, rates), colour, dash in zip(curves.items(), COLOURS, DASHES, strict=False):
        ax.plot(rates, color=colour, linestyle=dash, linewidth=2, label=name)
    ax.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    ax.legend(frameon=False, fontsize=9)
    return figure


def learning_curve(
    losses: Sequence[float],
    held_out: Sequence[tuple[int, float]],
    levels: dict[str, float],
    steps: int,
    *,
    logarithmic: bool = False,
) -> Figure:
    """The loss of each step so far, held-out losses as (step, loss), and levels to compare with.

    `logarithmic` spreads the first steps out.
    """
    figure, (ax,) = card(6.5, 3.4)
    ax.plot(range(1, len(losses) + 1), losses, color=BLUE, alpha=0.5, linewidth=1, label="training")
    if held_out:
        ax.plot(*zip(*held_out, strict=True), "o-", color=VERMILION, markersize=5, label="held out")
    at, side = (1, "left") if logarithmic else (steps, "right")  # where the curve is not
    for name, level in levels.items():
        ax.axhline(level, color="0.4", linewidth=1, linestyle=":")
        ax.text(at, level, f" {name} ", ha=side, va="bottom", fontsize=9, color="0.3")
    top = max([*levels.values(), *losses[:1]], default=1.0)
    ax.set(xlabel="step", ylabel="loss (nats per byte)", xlim=(0, steps), ylim=(0, 1.08 * top))
    if logarithmic:
        ax.set_xscale("log")
        ax.set_xlim(1, steps)
    ax.legend(frameon=False, fontsize=9, loc="lower left")
    return figure


def waiting(panels: dict[str, Sequence[Sequence[int]]]) -> Figure:
    """When each layer computes each position: title -> rows from the first layer up, of steps."""
    figure, axes = card(3.1 * len(panels), 2.6, len(panels))
    last = max(step for rows in panels.values() for row in rows for step in row)
    for ax, (title, rows) in zip(axes, panels.items(), strict=True):
        ax.imshow(rows, cmap=SEQUENTIAL, vmin=1, vmax=last, origin="lower", aspect="auto")
        for layer, row in enumerate(rows):
            for position, step in enumerate(row):
                colour = BLACK if step > 0.55 * last else "white"
                ax.text(position, layer, step, ha="center", va="center", color=colour, fontsize=11)
        ax.set_title(title, fontsize=10)
        ax.set(xlabel="position", xticks=range(len(rows[0])))
        ax.set_yticks(range(len(rows)), [f"layer {n}" for n in range(len(rows))])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    return figure


def by_length(
    lengths: Sequence[int],
    panels: dict[str, dict[str, Sequence[float]]],
    unit: str,
    *,
    equal: bool = False,
) -> Figure:
    """Something measured against the sequence length, both axes logarithmic.

    A panel for each title, a curve for each name; `equal` gives all panels one scale.
    """
    figure, axes = card(max(6.5, 4.1 * len(panels)), 3.3, len(panels))
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        for (name, values), colour, dash, mark in zip(
            curves.items(), COLOURS, DASHES, MARKS, strict=False
        ):
            ax.plot(lengths, values, color=colour, linestyle=dash, marker=mark, label=name)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(lengths, [str(length) for length in lengths])
        ax.set_title(title, fontsize=10)
        ax.set(xlabel="sequence length (tokens)", ylabel=unit)
        ax.grid(color="0.92")
        ax.legend(frameon=False, fontsize=9)
    if equal:
        bottom = min(ax.get_ylim()[0] for ax in axes)
        top = max(ax.get_ylim()[1] for ax in axes)
        for ax in axes:
            ax.set_ylim(bottom, top)
    return figure
