"""The figures of chapter 03: tokens and embeddings."""

import html
from collections.abc import Sequence

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
    SEQUENTIAL,
    SKY,
    VERMILION,
    YELLOW,
    card,
)

TINTS = (SKY, ORANGE, GREEN, YELLOW, PURPLE)  # neighbouring tokens never have the same


def token_rows(rows: dict[str, Sequence[bytes | str]]) -> str:
    """HTML of token sequences, one below the other: each token is a box, neighbours in other tints.

    A space is drawn as ␣ and a line break as ↵. Bytes that are no whole characters are written as
    two hexadecimal digits each.
    """
    lines = []
    for title, tokens in rows.items():
        boxes = "".join(_box(token, TINTS[i % len(TINTS)]) for i, token in enumerate(tokens))
        lines.append(
            '<div style="display: flex; gap: 0.8em; margin: 0.25em 0">'
            f'<div style="flex: 0 0 11em; color: #444">{html.escape(title)}</div>'
            f'<div style="font-family: monospace; line-height: 1.75">{boxes}</div></div>'
        )
    return f'<div style="background: white; color: black; padding: 0.8em">{"".join(lines)}</div>'


def lookup(one_hot: Tensor, table: Tensor, tokens: list[str], vocabulary: list[str]) -> Figure:
    """The embedding as a matrix product: one-hot rows, the table, and the rows that come out.

    Shapes: one_hot (T, V), table (V, D).
    """
    figure, axes = card(8.0, 3.0, columns=3)
    reach = 2 * float(table.abs().max())  # pale, so that the numbers can be read
    parts = (
        (one_hot, f"one-hot, {_shape(one_hot)}", tokens, vocabulary, ("Greys", 0, 1.6)),
        (table, f"table, {_shape(table)}", vocabulary, None, (DIVERGING, -reach, reach)),
        (one_hot @ table, "their product", tokens, None, (DIVERGING, -reach, reach)),
    )
    for ax, (values, title, rows, columns, (colours, low, high)) in zip(axes, parts, strict=True):
        ax.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")
        for (i, j), value in zip(
            torch.cartesian_prod(*map(torch.arange, values.shape)).tolist(),
            values.flatten().tolist(),
            strict=True,
        ):
            ax.text(j, i, f"{value:g}", ha="center", va="center", color=BLACK, fontsize=9)
        ax.set_yticks(range(len(rows)), rows)
        names = columns or [str(i) for i in range(values.shape[1])]
        ax.set_xticks(range(len(names)), names, rotation=30 if columns else 0)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("vocabulary" if columns else "feature")
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
    return figure


def compression_curves(merges: Sequence[int], curves: dict[str, Sequence[float]]) -> Figure:
    """Bytes per token against the number of merges, a curve for each text: name -> one per count.

    The first count may be 0; the axis is logarithmic from there on.
    """
    figure, (ax,) = card(7.0, 3.4)
    for (name, values), colour, marker in zip(
        curves.items(), (BLUE, VERMILION, GREEN, PURPLE), "osD^", strict=False
    ):
        ax.plot(merges, values, marker + "-", color=colour, ms=4)
        ax.annotate(
            name,
            (merges[-1], values[-1]),
            (6, 0),
            textcoords="offset points",
            color=colour,
            va="center",
        )
    ax.set_xscale("symlog", linthresh=max(min(m for m in merges if m), 1))
    ax.set_xticks(merges, [f"{m:,}" for m in merges], fontsize=8)
    ax.minorticks_off()
    ax.set(xlabel="merges", ylabel="bytes per token")
    ax.set_ylim(bottom=0)
    ax.margins(x=0.02)
    return figure


def similarity(rows: list[str], columns: list[str], cosines: Tensor) -> Figure:
    """Cosine similarity of each row's vector with each column's: (R, C)."""
    figure, (ax,) = card(6.6, 5.2)
    drawn = ax.imshow(cosines, cmap=SEQUENTIAL)
    ax.set_yticks(range(len(rows)), rows, fontsize=9)
    ax.set_xticks(range(len(columns)), columns, fontsize=9, rotation=60, ha="right")
    ax.spines[:].set_visible(False)
    figure.colorbar(drawn, ax=ax, shrink=0.8, label="cosine of the angle between the two vectors")
    return figure


def merges_undone(merges: Sequence[int], bits: Sequence[float]) -> Figure:
    """What a model pays for one text, in bits per byte, against how many merges made its tokens."""
    figure, (ax,) = card(7.0, 3.2)
    places = range(len(merges))
    bars = ax.bar(places, bits, color=[VERMILION] * (len(merges) - 1) + [BLUE])
    ax.bar_label(bars, [f"{x:.2f}" for x in bits], padding=2, fontsize=9)
    ax.set_xticks(places, [f"{m:,}" for m in merges])
    ax.set(xlabel="merges done, of those that it was trained with", ylabel="loss (bits per byte)")
    ax.margins(y=0.15)
    return figure


def _box(token: bytes | str, colour: str) -> str:
    style = (
        f"background: {_pale(colour)}; border-radius: 3px; padding: 2px 1px; margin: 0 1px; "
        "white-space: pre-wrap"
    )
    return f'<span style="{style}">{_shown(token)}</span>&#8203;'


def _shown(token: bytes | str) -> str:
    try:
        text = token if isinstance(token, str) else token.decode()
    except UnicodeDecodeError:
        return f'<small style="font-size: 85%">{token.hex(" ").upper()}</small>'
    text = html.escape(text).replace(" ", '<span style="color: #666">␣</span>')
    return text.replace("\n", '<span style="color: #666">↵</span>')


def _pale(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgb({','.join(str(round(255 - 0.45 * (255 - c))) for c in (red, green, blue))})"


def _shape(values: Tensor) -> str:
    return " × ".join(map(str, values.shape))
