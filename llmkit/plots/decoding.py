"""The figures of chapter 10: decoding."""

import html
from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from llmkit.plots.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, card

LOOKS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE)


def token_bars(names: Sequence[str], shares: Mapping[str, Tensor]) -> Figure:
    """The probability of each token in several distributions: name -> (V,)."""
    figure, (ax,) = card(7.2, 3.0)
    width = 0.84 / len(shares)
    for i, (label, values) in enumerate(shares.items()):
        places = torch.arange(len(names)) + (i - (len(shares) - 1) / 2) * width
        ax.bar(places, values, width * 0.95, color=LOOKS[i], label=label)
    ax.set_xticks(range(len(names)), names)
    ax.set(ylabel="probability", ylim=(0, 1))
    ax.legend(frameon=False, fontsize=9)
    return figure


def filtered_bars(names: Sequence[str], before: Tensor, after: Tensor) -> Figure:
    """The likeliest tokens: what the model says, and what is left to draw from. Shapes: (V,)."""
    figure, (ax,) = card(7.2, 0.6 + 0.27 * len(names))
    rows = torch.arange(len(names))
    ax.barh(rows + 0.2, before, 0.38, color=SKY, label="the model")
    ax.barh(rows - 0.2, after, 0.38, color=VERMILION, label="to draw from")
    for row, value in enumerate(after.tolist()):
        if value == 0:
            ax.text(0, row - 0.2, " ruled out", va="center", fontsize=8, color=VERMILION)
    ax.set_yticks(rows, names, fontsize=9)
    ax.invert_yaxis()
    ax.set(xlabel="probability", xlim=(0, 1.15 * max(before.max().item(), after.max().item())))
    ax.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def beam_tree(levels: Sequence[Sequence[tuple[int, str, float, bool]]]) -> Figure:
    """What a beam search looks at, from left to right.

    levels: of each length the candidates: (parent's place among the kept ones of the level before,
    token, log-probability of the whole sequence, whether it is kept).
    """
    most = max(map(len, levels))
    figure, (ax,) = card(max(7.6, 1.6 * len(levels) + 1), max(3.6, 0.5 * most))
    kept = [(0.0, 0.0)]
    ax.text(0, 0, "start", ha="center", va="center", fontsize=9, bbox=_round("white"))
    for x, level in enumerate(levels, start=1):
        places = [
            1.6 * (i - (len(level) - 1) / 2) / max(len(level) - 1, 1) for i in range(len(level))
        ]
        following = []
        for y, (parent, token, total, stays) in zip(reversed(places), level, strict=True):
            x0, y0 = kept[parent]
            line = {"color": BLACK if stays else "0.7", "linewidth": 2 if stays else 1}
            ax.plot((x0, x), (y0, y), **line, zorder=0)
            look = _round(SKY if stays else "#eeeeee")
            text = f"{token} {total:.2f}"
            ax.text(x, y, text, ha="center", va="center", fontsize=8, bbox=look)
            if stays:
                following.append((x, y))
        kept = following
    ax.set(xlim=(-0.3, len(levels) + 0.4), ylim=(-1, 1))
    ax.axis("off")
    return figure


def drafted_tokens(prompt: str, passes: Sequence[tuple[Sequence[str], Sequence[str]]]) -> str:
    """HTML of speculative decoding: the text so far, and what each pass of the model did.

    passes: of each the tokens that were drafted, and those that it gained: the drafted ones that
    stand, and one of the model's own.
    """
    written, lines = "", ""
    for number, (drafted, gained) in enumerate(passes, 1):
        stands, own = gained[:-1], gained[-1]
        marked = [_token(token, GREEN) for token in stands]
        fallen = [_token(token, VERMILION, "line-through") for token in drafted[len(stands) :]]
        mine = _token(own, SKY)
        written += "".join(marked) + mine
        lines += (
            f"<tr><th scope=row style='text-align: right'>{number}</th>"
            f"<td style='text-align: left'>{''.join(marked + fallen)} {mine}</td></tr>"
        )
    tokens = sum(len(gained) for _, gained in passes)
    told = f"{tokens} tokens in {len(passes)} passes of the model"
    told += f": {tokens / len(passes):.2f} a pass" if passes else ""
    key = " ".join(
        _token(word, colour, line)
        for word, colour, line in (
            ("drafted, and it stands", GREEN, "none"),
            ("drafted, and it falls", VERMILION, "line-through"),
            ("the model's own", SKY, "none"),
        )
    )
    return (
        '<div style="background: white; color: black; padding: 0.8em; font-family: monospace; '
        f'line-height: 1.75"><p>{key}</p><p style="white-space: pre-wrap"><b>'
        f"{html.escape(prompt)}</b>{written}</p><p>{told}</p>"
        f"<table><caption>pass by pass</caption>{lines}</table></div>"
    )


def _token(text: str, colour: str, line: str = "none") -> str:
    style = (
        f"background: color-mix(in srgb, {colour} 35%, white); border-radius: 3px; "
        f"padding: 2px 1px; white-space: pre-wrap; text-decoration: {line}"
    )
    shown = html.escape(text).replace("\n", "⏎\n")
    return f'<span style="{style}">{shown}</span>&#8203;'


def overlap(names: Sequence[str], target: Tensor, draft: Tensor) -> Figure:
    """Two distributions; what they share, and what each has more than the other. Shapes: (V,)."""
    figure, (ax,) = card(7.2, 3.0)
    shared, rows = torch.minimum(target, draft), torch.arange(len(names))
    ax.bar(rows, shared, 0.6, color=SKY, label="min(p, q): stands")
    ax.bar(
        rows,
        target - shared,
        0.6,
        shared,
        color=GREEN,
        hatch="//",
        label="p − q: drawn after a fall",
    )
    ax.bar(rows, draft - shared, 0.6, shared, color=VERMILION, hatch="..", label="q − p: falls")
    ax.set_xticks(rows, names)
    ax.set_ylabel("probability")
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def acceptance(predicted: Mapping[str, float], measured: Mapping[str, float]) -> Figure:
    """The share of drafted tokens that stand, for several drafts: predicted and measured."""
    figure, (ax,) = card(7.0, 2.9)
    for shift, values, colour, label in (
        (-0.2, predicted, SKY, "predicted: Σ min(p, q)"),
        (0.2, measured, BLUE, "measured"),
    ):
        places = [i + shift for i in range(len(values))]
        ax.bar(places, list(values.values()), 0.38, color=colour, label=label)
        for place, value in zip(places, values.values(), strict=True):
            ax.text(place, value, f"{value:.2f}", ha="center", va="bottom", fontsize=8)
    ax.set_xticks(range(len(predicted)), list(predicted), fontsize=9)
    ax.set(ylabel="share of drafted tokens that stand", ylim=(0, 1.12))
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure


def _round(colour: str) -> dict[str, str]:
    return {"boxstyle": "round,pad=0.25", "facecolor": colour, "edgecolor": BLACK}
