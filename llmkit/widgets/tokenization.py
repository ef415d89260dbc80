"""The widgets of chapter 03: tokens."""

from collections.abc import Callable, Mapping

import ipywidgets
from IPython.display import display

from llmkit import plots
from llmkit.widgets.live import LINE, WIDE, follow


def merge_slider(
    text: str, last: int, tokens_after: Callable[[str, int], list[bytes]], start: int = 40
) -> None:
    """A box for a text and a slider for the number of merges; below, the text in its tokens.

    `tokens_after` gives the tokens of a text after so many merges, 0 … `last`.
    """

    def picture() -> str:
        tokens = tokens_after(box.value, slider.value)
        return plots.token_rows({f"{slider.value} merges, {len(tokens)} tokens": tokens})

    slider = ipywidgets.IntSlider(start, 0, last, description="merges")
    box = ipywidgets.Text(text, description="text", layout={"width": "90%"})
    follow([slider, box], picture)


def tokenizer_playground(
    examples: Mapping[str, str],
    tokens_after: Callable[[str, int], list[bytes]],
    last: int,
    others: Mapping[str, Callable[[str], list[bytes]]],
) -> None:
    """A text, one of the examples or typed, in the tokens of several tokenizers.

    examples:      name -> text
    tokens_after:  (text, merges) -> tokens by the first so many merges, 0 … `last`
    others:        name of a tokenizer -> text -> tokens
    """

    def picture() -> str:
        rows = {f"own, {merges.value} merges": tokens_after(box.value, merges.value)}
        rows |= {name: split(box.value) for name, split in others.items()}
        size = max(len(box.value.encode()), 1)
        return plots.token_rows(
            {
                f"{name}: {len(tokens)} tokens, {size / max(len(tokens), 1):.1f} bytes each": tokens
                for name, tokens in rows.items()
            }
        )

    def take(_: object) -> None:
        box.value = examples[example.value]

    example = ipywidgets.ToggleButtons(options=list(examples), description="example", **LINE)
    box = ipywidgets.Textarea(examples[example.value], description="text", rows=3, **LINE)
    merges = ipywidgets.IntSlider(last, 0, last, description="merges", **WIDE)
    example.observe(take, "value")
    display(example)
    follow([box, merges], picture)
