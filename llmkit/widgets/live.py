"""What all widgets share: a picture that follows its controls."""

from collections.abc import Callable, Sequence

import ipywidgets
from IPython.display import HTML, display


def follow(controls: Sequence[ipywidgets.ValueWidget], picture: Callable[[], str]) -> None:
    """Display the controls and, below, the HTML of `picture`, drawn anew whenever one is moved.

    The picture is an ordinary output, so where no kernel lives it stays, as a still.
    """
    live = ipywidgets.VBox(controls)._repr_mimebundle_()
    display(live | {"text/plain": "Run this cell to move its sliders."}, raw=True)
    page = display(HTML(picture()), display_id=True)
    for control in controls:
        control.observe(lambda _: page.update(HTML(picture())), "value")
