"""The widgets of chapter 09: a learning rate's way up and down, and training seen live."""

import time
from collections.abc import Callable, Iterator

import ipywidgets

from llmkit import plots
from llmkit.widgets.live import follow, written


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


def training_player(losses: Iterator[float], steps: int, write: Callable[[], str]) -> None:
    """A play button that trains: the curve so far, and what the model writes by now.

    losses:  does one step of training for each loss that is taken from it, at most `steps`
    write:   a text by the model as it is
    """
    done: list[float] = []
    pause, busy = 1.0, 0.5  # seconds from one picture to the next, and those of them for training

    def picture() -> str:
        end = time.perf_counter() + busy
        while play.value and time.perf_counter() < end and (loss := next(losses, None)) is not None:
            done.append(loss)
        if not done:
            return "<p>Press ▶ to train.</p>" + written("", write())
        said = f"step {len(done)} of {steps}: loss {sum(done[-10:]) / len(done[-10:]):.2f}"
        figure = plots.learning_curve(done, [], {}, steps)
        return f"{plots.image(figure, said)}<p>{said} nats per byte</p>{written('', write())}"

    play = ipywidgets.Play(0, min=0, max=10**6, interval=round(1000 * pause), show_repeat=False)
    follow([play], picture)
