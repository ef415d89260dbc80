"""The widgets of chapter 10: what comes next, what is left to draw from, and looking ahead."""

import html
from collections.abc import Callable, Mapping, Sequence

import ipywidgets
from IPython.display import display
from torch import Tensor

from llmkit import plots
from llmkit.widgets.live import LINE, WIDE, follow, written


def next_token_buttons(
    predict: Callable[[str], Mapping[str, float]], text: str, shown: int = 10
) -> None:
    """A text to type and the likeliest next tokens as buttons: a click appends one.

    predict:  text -> its next tokens with their probabilities, likeliest first
    """
    box = ipywidgets.Textarea(text, description="text", rows=3, **LINE)
    back = ipywidgets.Button(description="take back", icon="undo", tooltip="the last token clicked")
    buttons = [ipywidgets.Button(layout={"width": "12em"}) for _ in range(shown)]
    bars = [
        ipywidgets.FloatProgress(max=1, layout={"width": "min(24em, 40%)"}, bar_style="info")
        for _ in range(shown)
    ]
    shares = [ipywidgets.Label() for _ in range(shown)]
    appended: list[str] = []

    def draw(_: object = None) -> None:
        likeliest = list(predict(box.value).items())
        for row, (button, bar, share) in enumerate(zip(buttons, bars, shares, strict=True)):
            token, probability = likeliest[row] if row < len(likeliest) else ("", 0.0)
            button.description = token.replace(" ", "␣").replace("\n", "⏎")
            button.disabled = not token
            button.tooltip = token
            bar.value, share.value = probability, f"{probability:.1%}" if token else ""
        back.disabled = not (appended and box.value.endswith(appended[-1]))

    def append(button: ipywidgets.Button) -> None:
        appended.append(button.tooltip)
        box.value += button.tooltip

    def take_back(_: ipywidgets.Button) -> None:
        box.value = box.value.removesuffix(appended.pop())

    for button in buttons:
        button.on_click(append)
    back.on_click(take_back)
    box.observe(draw, "value")
    draw()
    rows = [ipywidgets.HBox(row) for row in zip(buttons, bars, shares, strict=True)]
    display(ipywidgets.VBox([box, back, *rows]))


def sampling_knobs(
    logits_of: Callable[[str], Tensor],
    names: Callable[[int], str],
    apply: Callable[[Tensor, float, int, float, float], Tensor],
    text: str,
    write: Callable[[str, Callable[[Tensor], Tensor], int], str] | None = None,
    shown: int = 12,
) -> None:
    """Sliders for temperature, k, p and min-p; bars show the likeliest tokens before and after.

    logits_of:  a text -> (V,), of the token after it
    names:      token -> its text
    apply:      (logits, temperature, k, p, min_p) -> filtered logits; a k, p or min-p that is off
                is 0, 1 and 0
    write:      (text, filter of the logits, seed) -> how the text goes on, drawn so
    """

    def picture() -> str:
        logits = logits_of(box.value)
        settings = [knob.value for knob in knobs]
        best = logits.topk(shown).indices
        tokens = [names(token) for token in best.tolist()]
        before, left = logits.softmax(-1), apply(logits, *settings).softmax(-1)
        number = int((left > 0).sum())
        said = (
            f"{number:,} of {len(left):,} tokens are left; the likeliest, {tokens[0]}, "
            f"goes from {before[best[0]]:.3f} to {left[best[0]]:.3f}"
        )
        drawn = plots.image(plots.filtered_bars(tokens, before[best], left[best]), said)
        page = f"{drawn}<p>{html.escape(said)}</p>"
        if write:
            page += written(box.value, write(box.value, lambda x: apply(x, *settings), seed.value))
        return page

    number = ipywidgets.FloatSlider
    box = ipywidgets.Text(text, description="text", continuous_update=False, **LINE)
    seed = ipywidgets.IntSlider(0, min=0, max=20, description="another draw", **WIDE)
    knobs: Sequence[ipywidgets.ValueWidget] = [
        number(1.0, min=0, max=2, step=0.1, description="temperature", **WIDE),
        ipywidgets.SelectionSlider(
            options=[("off", 0), *((str(k), k) for k in (1, 2, 3, 5, 10, 20, 50, 100))],
            description="top-k",
            **WIDE,
        ),
        number(0.9, min=0.05, max=1, step=0.05, description="top-p (1: off)", **WIDE),
        number(0.0, min=0, max=0.5, step=0.01, description="min-p (0: off)", **WIDE),
    ]
    follow([box, *knobs, *([seed] if write else [])], picture)


def beam_knobs(
    levels: Callable[[str, int, int], Sequence[Sequence[tuple[int, str, float, bool]]]],
    text: str,
) -> None:
    """A text, and sliders for the number of beams and of tokens; below, the tree of the search.

    levels:  (text, beams, tokens) -> of each length the candidates, as `plots.beam_tree` has them
    """

    def picture() -> str:
        tree = levels(box.value, beams.value, steps.value)
        kept = [beam for beam in tree[-1] if beam[3]]
        said = (
            f"{beams.value} beams, {steps.value} tokens: {sum(map(len, tree))} shown; "
            f"the best sequence has log-probability {kept[0][2]:.2f}"
        )
        return f"{plots.image(plots.beam_tree(tree), said)}<p>{said}</p>"

    box = ipywidgets.Text(text, description="text", continuous_update=False, **LINE)
    beams = ipywidgets.IntSlider(2, min=1, max=5, description="beams", **WIDE)
    steps = ipywidgets.IntSlider(4, min=1, max=6, description="tokens", **WIDE)
    follow([box, beams, steps], picture)


def speculative_replay(
    replay: Callable[[str, str, int], Sequence[tuple[Sequence[str], Sequence[str]]]],
    prompts: Mapping[str, str],
    drafts: Sequence[str],
) -> None:
    """Speculative decoding, pass by pass: what was guessed, what of it stands, what came instead.

    replay:   (prompt, draft, drafted tokens) -> of each pass of the model the tokens drafted, and
              those that the pass gained
    prompts:  name -> text
    """
    runs: dict[tuple[str, str, int], Sequence[tuple[Sequence[str], Sequence[str]]]] = {}

    def rounds() -> Sequence[tuple[Sequence[str], Sequence[str]]]:
        asked = prompts[prompt.value], draft.value, count.value
        if asked not in runs:
            runs[asked] = replay(*asked)
        return runs[asked]

    def picture() -> str:
        done = rounds()
        upto.max = play.max = len(done)
        return plots.drafted_tokens(prompts[prompt.value], done[: upto.value])

    prompt = ipywidgets.Dropdown(options=list(prompts), description="prompt", **WIDE)
    draft = ipywidgets.Dropdown(options=list(drafts), description="draft", **WIDE)
    count = ipywidgets.IntSlider(4, min=1, max=10, description="drafted tokens", **WIDE)
    upto = ipywidgets.IntSlider(3, min=0, max=100, description="passes", **WIDE)
    play = ipywidgets.Play(3, min=0, max=100, interval=700)
    ipywidgets.jslink((play, "value"), (upto, "value"))
    display(play)
    follow([prompt, draft, upto, count], picture)
