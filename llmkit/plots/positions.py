"""The figures of chapter 04: positions."""

import math
from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from torch import Tensor

from llmkit.plots.style import BLACK, BLUE, CYCLIC, DIVERGING, ORANGE, SEQUENTIAL, VERMILION, card


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


def turned_pair(
    query: Tensor, key: Tensor, distance: int, scores: Mapping[int, float], title: str
) -> Figure:
    """A turned query and key as dials, one for each pair of features; below, score by distance.

    Shapes: query and key (d,).
    """
    pairs = len(query) // 2
    figure = Figure(figsize=(max(6.5, 1.6 * pairs), 4.4), facecolor="white", layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    upper.suptitle(title, fontsize=11)
    for i, ax in enumerate(upper.subplots(1, pairs, squeeze=False)[0]):
        reach = 1.15 * max(x[[i, i + pairs]].norm().item() for x in (query, key))
        for x, colour in ((query, BLUE), (key, VERMILION)):
            arrow = {"arrowstyle": "-|>", "color": colour, "lw": 2.5}
            ax.annotate("", x[[i, i + pairs]].tolist(), (0, 0), arrowprops=arrow)
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
        ax.set_title(f"features {i} and {i + pairs}", fontsize=9)
    ax = lower.subplots()
    ax.spines[["top", "right"]].set_visible(False)
    ax.plot(scores.keys(), scores.values(), color="0.5", lw=1.5)
    ax.plot(distance, (query @ key).item(), "o", color=BLACK, ms=9)
    reach = 1.1 * max(abs(score) for score in scores.values())
    ax.set(xlabel="query's position − key's position", ylabel="score q · k", ylim=(-reach, reach))
    ax.text(0.99, 0.97, "blue: query, red: key", transform=ax.transAxes, ha="right", va="top")
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
