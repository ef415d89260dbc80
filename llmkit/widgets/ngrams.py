"""The widget of chapter 01: what comes next."""

import html
from collections.abc import Callable, Mapping

import ipywidgets

from llmkit import plots
from llmkit.widgets.live import follow, written


def next_character_explorer(
    predict: Callable[[int, str], Mapping[str, float]],
    write: Callable[[int, str], str],
    text: str = "To be or not t",
    start: int = 3,
    largest: int = 6,
) -> None:
    """A text to type and a slider for n; below, what may come next, and how the model goes on.

    predict:  n and the text -> probability of each next character; empty if it has nothing to say
    write:    n and the text -> the text that the model writes after it
    """

    def picture() -> str:
        n, typed = slider.value, box.value
        probabilities = predict(n, typed)
        context = typed[len(typed) - n + 1 :] if len(typed) >= n - 1 else typed
        shown = plots.visible(context) or "nothing"
        if probabilities:
            said = ", ".join(
                f"{plots.visible(token)} {p:.3f}"
                for token, p in sorted(probabilities.items(), key=lambda pair: -pair[1])[:3]
            )
            title = f"n = {n}: the model sees {shown}"
            figure = plots.next_tokens(probabilities, title)
            drawn = plots.image(figure, f"{title}; likeliest next: {said}")
        else:
            drawn = f"<p>n = {n}: the model has never seen <code>{html.escape(shown)}</code>.</p>"
        return drawn + written(typed, write(n, typed))

    box = ipywidgets.Text(text, description="text")
    slider = ipywidgets.IntSlider(start, 1, largest, description="n")
    follow([box, slider], picture)
