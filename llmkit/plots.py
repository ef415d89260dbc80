"""The figures of the course: one function each, from computed values to a Matplotlib figure.

They share one look: an opaque white card, so that light and dark themes show the same, and the
colours of Okabe and Ito, which colour-blind readers can tell apart.
"""

import base64
import html
import io
import math

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = [
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
]
SEQUENTIAL, DIVERGING, CYCLIC = "cividis", "RdBu_r", "twilight"  # colour maps by their use


def show(figure: Figure, alt: str) -> None:
    """Display a figure in a notebook, with `alt` for readers who do not see it."""
    from IPython.display import display

    display({"text/html": image(figure, alt), "text/plain": alt}, raw=True)


def image(figure: Figure, alt: str) -> str:
    """The figure as an HTML image that needs no other file."""
    width = round(figure.get_figwidth() * 96)  # CSS pixels; the image has twice as many
    return (
        f'<img src="data:image/png;base64,{base64.b64encode(png(figure)).decode()}" '
        f'alt="{html.escape(alt)}" style="width: {width}px; max-width: 100%; background: white">'
    )


def png(figure: Figure) -> bytes:
    """The figure as an opaque PNG image."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=192, facecolor="white")
    return buffer.getvalue()


def card(width: float = 6.5, height: float = 3.2, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure of that size in inches, with a row of axes."""
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


# 02-losses


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


# 04-positions


def position_codes(codes: dict[str, Tensor], first: int = 0) -> Figure:
    """Codes of positions side by side, a row for each position: title -> (T, D).

    `first` is the position of the first row.
    """
    figure, axes = card(8.0, 3.6, columns=len(codes))
    for ax, (title, code) in zip(axes, codes.items(), strict=True):
        last = first + len(code)
        extent = (-0.5, code.shape[1] - 0.5, last - 0.5, first - 0.5)
        drawn = ax.imshow(
            code, cmap=SEQUENTIAL, aspect="auto", interpolation="nearest", extent=extent
        )
        ax.set(title=title, xlabel="column", ylabel="position")
        ax.xaxis.get_major_locator().set_params(integer=True)
        figure.colorbar(drawn, ax=ax, shrink=0.8)
    return figure


def turned_arrows(arrows: Tensor) -> Figure:
    """One arrow in the plane, turned once for each position: (T, 2)."""
    figure, (ax,) = card(4.2, 3.6)
    for position, (x, y) in enumerate(arrows.tolist()):
        colour = VERMILION if position == 0 else BLUE
        ax.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2})
        ax.text(1.12 * x, 1.12 * y, str(position), color=colour, ha="center", va="center")
    reach = 1.3 * float(arrows.norm(dim=-1).max())
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    ax.set(title="one arrow at positions 0, 1, 2, …", xlabel="first number", ylabel="second number")
    ax.axhline(0, color="0.85", lw=1, zorder=0)
    ax.axvline(0, color="0.85", lw=1, zorder=0)
    return figure


def dials(vector: Tensor, turned: Tensor, position: int) -> Figure:
    """A head as dials, one for each pair (i, i + d/2): before (grey) and after (blue) turning.

    Shapes: vector and turned (d,).
    """
    pairs = len(vector) // 2
    figure, axes = card(1.8 * pairs, 2.3, columns=pairs)
    for i, ax in enumerate(axes):
        reach = 1.15 * float(vector[[i, i + pairs]].norm())
        for x, colour, width in ((vector, "0.6", 2), (turned, BLUE, 3)):
            tip = x[[i, i + pairs]].tolist()
            arrow = {"arrowstyle": "-|>", "color": colour, "lw": width}
            ax.annotate("", tip, (0, 0), arrowprops=arrow)
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
        ax.set_title(f"features {i} and {i + pairs}", fontsize=9)
        ax.spines[["top", "right"]].set_visible(True)
    figure.suptitle(f"position {position}", color=BLUE)
    return figure


def score_matrices(scores: dict[str, Tensor]) -> Figure:
    """Scores of one query with one key at every pair of positions: title -> (M, N)."""
    figure, axes = card(8.0, 3.6, columns=len(scores))
    for ax, (title, score) in zip(axes, scores.items(), strict=True):
        reach = float(score.abs().max())
        drawn = ax.imshow(score, cmap=DIVERGING, vmin=-reach, vmax=reach)
        ax.set(title=title, xlabel="position n of the key", ylabel="position m of the query")
        figure.colorbar(drawn, ax=ax, shrink=0.8)
    return figure


def rope_phases(angles: Tensor) -> Figure:
    """The angle of every pair at every position: (T, d/2) in radians."""
    figure, (ax,) = card(8.0, 3.8)
    turn = 2 * math.pi
    drawn = ax.imshow(
        angles.T % turn, cmap=CYCLIC, vmin=0, vmax=turn, aspect="auto", interpolation="nearest"
    )
    ax.set(title="how far each pair is turned", xlabel="position", ylabel="pair i")
    bar = figure.colorbar(drawn, ax=ax, ticks=[0, turn / 4, turn / 2, 3 * turn / 4, turn])
    bar.ax.set_yticklabels(["0", "¼", "½", "¾", "1"])
    bar.set_label("turn, modulo 1")
    return figure


def llama3_bands(
    before: Tensor,
    after: Tensor,
    original_context: int,
    low_freq_factor: float,
    high_freq_factor: float,
) -> Figure:
    """Wavelength of each pair after scaling (and before, in grey); the bands in three colours.

    Shapes: before and after (d/2,), angular frequencies in radians per position.
    """
    figure, (ax,) = card(8.0, 4.2)
    turns = original_context * before / (2 * math.pi)
    wavelengths, stretched = 2 * math.pi / before, 2 * math.pi / after
    pair = torch.arange(len(before))
    if not torch.equal(before, after):
        ax.plot(pair, wavelengths, "o", color="0.6", mfc="none", label="before")
    bands = {
        "fast": (turns >= high_freq_factor, BLUE, "s"),
        "in between": ((turns < high_freq_factor) & (turns > low_freq_factor), ORANGE, "D"),
        "slow": (turns <= low_freq_factor, VERMILION, "^"),
    }
    for name, (members, colour, marker) in bands.items():
        label = f"{name}: {int(members.sum())} pairs"
        ax.plot(pair[members], stretched[members], marker, color=colour, ms=5, label=label)
    for factor in (low_freq_factor, high_freq_factor):
        ax.axhline(original_context / factor, color="0.4", lw=1, ls="--")
        turned = "1 turn" if factor == 1 else f"{factor:g} turns"
        ax.text(
            len(before) - 1,
            original_context / factor,
            f"{turned} in {original_context:,} positions",
            ha="right",
            va="bottom",
            fontsize=8,
            color="0.3",
        )
    ax.set_yscale("log")
    ax.set(xlabel="pair i", ylabel="positions for one full turn")
    ax.legend(frameon=False)
    return figure
