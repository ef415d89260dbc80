"""The widget of chapter 13: the roofline."""

from collections.abc import Callable

import ipywidgets

from llmkit import plots
from llmkit.widgets.live import follow


def roofline_knobs(
    peak_flops: float, bandwidth: float, intensity: Callable[[int, float], float]
) -> None:
    """A slider for the tokens at once and one for the bytes of a weight: where work lies then.

    intensity: (tokens at once, bytes per weight) -> FLOPs per byte. Bandwidth in bytes/s.
    """

    def picture() -> str:
        found = intensity(tokens.value, size.value)
        reached = min(peak_flops, found * bandwidth)
        waits = "arithmetic" if found * bandwidth > peak_flops else "memory"
        title = (
            f"{found:.3g} FLOPs per byte: at most {reached / 1e9:.3g} GFLOP/s, "
            f"{reached / peak_flops:.0%} of the peak, waiting for {waits}"
        )
        chart = plots.roofline_chart(peak_flops, bandwidth, {"here": (found, None)}, title)
        return plots.image(chart, title)

    tokens = ipywidgets.SelectionSlider(
        options=[2**i for i in range(11)],
        value=1,
        description="tokens at once",
        style={"description_width": "8em"},
    )
    size = ipywidgets.SelectionSlider(
        options=[0.5, 1, 2, 4],
        value=4,
        description="bytes per weight",
        style={"description_width": "8em"},
    )
    follow([tokens, size], picture)
