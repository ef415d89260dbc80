"""What all widgets share: a picture that follows its controls."""

import html
import os
from collections.abc import Callable, Sequence

import ipywidgets
from IPython.display import HTML, display

# the looks of a control: a slider, and a line of text
WIDE = {"style": {"description_width": "9em"}, "layout": {"width": "min(34em, 95%)"}}
LINE = {"style": {"description_width": "9em"}, "layout": {"width": "95%"}}

VIEW = "application/vnd.jupyter.widget-view+json"


def live_picture(picture: Callable[[], str]) -> Callable[[], None]:
    """Display the HTML of `picture`; the function returned draws it anew, in the same place.

    The picture is an ordinary output, so where no kernel lives it stays, as a still. A page of
    Voilà's keeps nothing up to date but widgets, so there it is one.
    """
    if os.environ.get("SERVER_SOFTWARE", "").startswith("voila/"):
        widget = ipywidgets.HTML(picture())
        display(widget)
        return lambda: setattr(widget, "value", picture())
    page = display(HTML(picture()), display_id=True)
    return lambda: page.update(HTML(picture()))


def follow(controls: Sequence[ipywidgets.ValueWidget], picture: Callable[[], str]) -> None:
    """Display the controls and, below, the HTML of `picture`, drawn anew when one is moved."""
    # Written by hand: ipywidgets 7, which Colab has, and 8 make it in different ways.
    box = ipywidgets.VBox(controls)
    view = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    display({VIEW: view, "text/plain": "Run this cell to move its sliders."}, raw=True)
    redraw = live_picture(picture)
    for control in controls:
        control.observe(lambda _: redraw(), "value")


def written(prompt: str, text: str) -> str:
    """HTML of a prompt, in bold, and what a model wrote after it."""
    style = "background: white; color: black; padding: 0.6em; white-space: pre-wrap"
    style += "; word-break: normal; overflow-wrap: anywhere"  # Jupyter's breaks words
    return f'<pre style="{style}"><b>{html.escape(prompt)}</b>{html.escape(text)}</pre>'
