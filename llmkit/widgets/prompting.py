"""The widget of chapter 11: how sure an accuracy is."""

from collections.abc import Callable

import ipywidgets

from llmkit import plots
from llmkit.widgets.live import follow


def interval_sliders(interval: Callable[[int, int], tuple[float, float]]) -> None:
    """Sliders for a measured accuracy and its number of queries; below, how far it may be off.

    interval: (successes, trials) -> lower end, upper end.
    """

    def picture() -> str:
        trials = {number.value, number.value * 4, number.value * 16}
        right = round(accuracy.value * number.value)
        share = right / number.value
        ends = {n: interval(right * n // number.value, n) for n in sorted(trials)}
        low, high = ends[number.value]
        said = (
            f"{right} of {number.value} right: {share:.0%}, 95 % interval {low:.2f} to {high:.2f}; "
            "with four times as many queries about half as wide"
        )
        return plots.image(plots.accuracy_intervals(share, ends, number.value), said)

    style = {"description_width": "8em"}
    number = ipywidgets.IntSlider(40, min=10, max=400, step=10, description="queries", style=style)
    accuracy = ipywidgets.FloatSlider(
        0.95, min=0, max=1, step=0.05, description="right answers", style=style
    )
    follow([number, accuracy], picture)
