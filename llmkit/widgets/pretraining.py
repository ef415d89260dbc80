"""The widget of chapter 09: a learning rate's way up and down; and a picture drawn live."""

from collections.abc import Callable

import ipywidgets
from IPython.display import HTML, display

from llmkit import plots
from llmkit.widgets.live import follow


def schedule_knobs(schedule: Callable[[int, int, float, int, float], float]) -> None:
    """Sliders for the warm-up, the peak and the floor of a learning rate; below, its curve.

    `schedule` is `cosine_schedule`: (step, steps, peak, warmup_steps, floor) -> learning rate.
    """
    steps = 100

    def picture() -> str:
        given = (steps, peak.value, warmup.value, floor.value * peak.value)
        rates = [schedule(step, *given) for step in range(steps)]
        figure = plots.learning_rates({"learning rate": rates})
        words = f"The rate starts at {rates[0]:.4g}, is largest at {max(rates):.4g} in step "
        words += f"{rates.index(max(rates))}, and ends at {rates[-1]:.4g}"
        return plots.image(figure, words)

    wide = {"style": {"description_width": "9em"}, "layout": {"width": "32em"}}
    warmup = ipywidgets.IntSlider(10, min=0, max=100, description="warm-up steps", **wide)
    peak = ipywidgets.FloatSlider(
        0.006, min=0.001, max=0.01, step=0.001, readout_format=".3f", description="peak", **wide
    )
    floor = ipywidgets.FloatSlider(
        0.05, min=0, max=1, step=0.05, description="floor (of peak)", **wide
    )
    follow([warmup, peak, floor], picture)


def live_picture(picture: Callable[[], str]) -> Callable[[], None]:
    """Display the HTML of `picture`; the function returned draws it anew, in the same place."""
    page = display(HTML(picture()), display_id=True)
    return lambda: page.update(HTML(picture()))
