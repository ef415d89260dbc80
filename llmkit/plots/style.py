"""The one look of all figures: an opaque white card, so that light and dark themes show the same,
and the colours of Okabe and Ito, which colour-blind readers can tell apart.
"""

import base64
import html
import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
