"""Prompting: tasks put into words, and what a model makes of them with no weight changed.

From a task to a prompt (`few_shot_prompt`), from a prompt to an answer (`score_choices`), from
answers to an accuracy with its uncertainty (`accuracy_by_shots`), and to the attention heads that
carry in-context learning (`induction_score`).
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from llmkit.attention import (
    repeat_kv,
    scaled_dot_product_attention,
    sliding_window_mask,
    split_heads,
)
from llmkit.losses import log_softmax
from llmkit.positions import rotate
from llmkit.tokenization import Tokenizer
from llmkit.transformer import Llama

Example = tuple[str, str]  # a text and its answer

# {text} and {answer} are filled in; whatever stands between them parts question from answer
TEMPLATE = "Text: {text}\nAnswer: {answer}"
TEMPLATES = {
    "text": TEMPLATE,
    "question": "Question: {text}\nAnswer: {answer}",
    "review": "Review: {text}\nSentiment: {answer}",
    "arrow": "{text} -> {answer}",
}
BETWEEN = "\n\n"  # stands between the instruction, the demonstrations and the query


def zero_shot_prompt(query: str, instruction: str = "", template: str = TEMPLATE) -> str:
    """The instruction, if any, and the query: all but the answer, for the model to go on with.

    It ends before the space that precedes an answer: tokens carry their space in front, and
    " yes" is one token where " " and "yes" are two that the model rarely saw.
    """
    open_question, _ = _fill(template, query)
    return BETWEEN.join([instruction, open_question] if instruction else [open_question])


def few_shot_prompt(
    demonstrations: Sequence[Example],
    query: str,
    instruction: str = "",
    template: str = TEMPLATE,
) -> str:
    """As `zero_shot_prompt`, with solved examples, in their order, before the query.

    A demonstration of the query itself is left out: it would give the answer away.
    """
    solved = [
        "".join(_fill(template, text, answer)) for text, answer in demonstrations if text != query
    ]
    head = [instruction] if instruction else []
    return BETWEEN.join([*head, *solved, zero_shot_prompt(query, template=template)])


def _fill(template: str, text: str, answer: str = "") -> tuple[str, str]:
    """A template filled in, cut where the prompt ends and the answer, with its space, begins."""
    if template.count("{text}") != 1 or template.count("{answer}") != 1:
        raise ValueError(f"template must hold {{text}} and {{answer}} once each, not {template!r}.")
    # cut before filling in: a text may hold "{answer}" itself
    before, after = template.split("{answer}")
    if "{text}" not in before:
        raise ValueError(f"template must hold {{text}} before {{answer}}, not {template!r}.")
    prompt = before.rstrip(" ")
    return prompt.replace("{text}", text), before[len(prompt) :] + answer + after


# scoring


def choice_batch(
    prompt: Sequence[int], choices: Sequence[Sequence[int]], pad: int = 0
) -> tuple[Tensor, Tensor]:
    """Prompt and choice as one row of tokens, for each choice; and where the choice's own stand.

    Shorter rows are padded on the right: the model is causal, so no token sees the padding.

    Shapes: prompt of P tokens, N choices -> input_ids (N, T) of int64, is_choice (N, T) of bool.
    """
    width = len(prompt) + max(map(len, choices))
    input_ids = torch.full((len(choices), width), pad)
    is_choice = torch.zeros(len(choices), width, dtype=torch.bool)
    for row, choice in enumerate(choices):
        end = len(prompt) + len(choice)
        input_ids[row, :end] = torch.tensor([*prompt, *choice])
        is_choice[row, len(prompt) : end] = True
    return input_ids, is_choice


def score_choices(logits: Tensor, input_ids: Tensor, is_choice: Tensor) -> tuple[Tensor, Tensor]:
    """Log-likelihood of each choice given its prompt: its sum, and its mean per token, in nats.

    Row n is the prompt followed by choice n; `is_choice` is True at the choice's own tokens: those
    of the prompt, and padding, do not count. The sum is ln P(choice | prompt), so longer choices
    tend to lose; the mean makes up for length.

    Shapes: logits (N, T, V), input_ids (N, T), is_choice (N, T) of bool -> (N,), (N,). The logits
    at the last position predict nothing here and may be left out.
    Raises ValueError for a row without a choice, or one at position 0, which nothing predicts.
    """
    if is_choice[:, 0].any():
        raise ValueError("A choice begins at position 0, where nothing predicts it: give a prompt.")
    counts = is_choice.sum(-1)
    if not counts.all():
        raise ValueError("A choice has no token, so it has no likelihood.")
    log_probs = log_softmax(logits[:, : input_ids.shape[1] - 1].float())
    chosen = log_probs.gather(-1, input_ids[:, 1:, None]).squeeze(-1)
    sums = chosen.where(is_choice[:, 1:], 0.0).sum(-1)
    return sums, sums / counts


@torch.inference_mode()
def log_likelihoods(
    model: Llama, tokenizer: Tokenizer, prompt: str, choices: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """`score_choices` of texts: how likely the model finds each to follow the prompt.

    A choice usually begins with its space: " Paris". Prompt and choice are encoded as one text.
    Where their border falls within a token ("un" + "happy" → "unhappy"), that token counts as
    the choice's, and for all choices alike, so that each is scored given the very same tokens. The
    prompt is computed once, the choices in one batch; choices of one token cost nothing more.

    Shapes: -> sums (N,), means (N,), in nats, on the CPU.
    Raises ValueError for no choices, an empty one, no prompt or more tokens than the context holds.
    """
    rows, start = _tokens_of_choices(tokenizer, prompt, choices)
    width, limit = max(len(row) for row in rows), model.config.max_position_embeddings
    if width > limit:
        raise ValueError(f"prompt and choice have {width} tokens, but the context holds {limit}.")
    device = model.model.embed_tokens.weight.device
    batch, is_choice = choice_batch(rows[0][:start], [row[start:] for row in rows])
    batch, is_choice = batch.to(device), is_choice.to(device)

    cache = model.new_cache(width)
    logits = model(batch[:1, :start], cache, logits_to_keep=1)  # about each choice's first token
    logits = logits.expand(len(rows), -1, -1)
    if start + 1 < width:
        for layer in cache:
            layer.select(torch.zeros(len(rows), dtype=torch.long, device=device))
        logits = torch.cat((logits, model(batch[:, start:-1], cache)), dim=1)
    sums, means = score_choices(logits, batch[:, start - 1 :], is_choice[:, start - 1 :])
    return sums.cpu(), means.cpu()


def pmi_choice(sums: Tensor, priors: Tensor) -> Tensor:
    """Which choice the prompt raises most: the argmax of ln P(choice | prompt) − ln P(choice).

    The difference is their pointwise mutual information (Holtzman et al., 2021, §3): it takes away
    what a model says of a choice before it has seen the question, as `priors` have it.

    Shapes: sums (..., N) for N choices, priors (N,), in nats -> (...) of int64.
    """
    return (sums - priors).argmax(-1)


def _tokens_of_choices(
    tokenizer: Tokenizer, prompt: str, choices: Sequence[str]
) -> tuple[list[list[int]], int]:
    """Prompt and choice as tokens, for each choice; and where, in all of them, the choice begins.

    There begins the first token that any choice makes differ from the prompt's own.
    """
    if not choices or not all(choices):
        raise ValueError(f"choices must be one or more texts, none empty, not {choices!r}.")
    own = tokenizer.encode(prompt)
    rows = [tokenizer.encode(prompt + choice) for choice in choices]
    start = min(
        next((i for i, (a, b) in enumerate(zip(own, row, strict=False)) if a != b), len(own))
        for row in rows
    )
    if start == 0:
        raise ValueError(f"The prompt {prompt!r} has no token before the choices: lengthen it.")
    return rows, start


# few-shot evaluation


def demonstrations_for(
    query: int, examples: Sequence[Example], shots: int, generator: torch.Generator
) -> list[Example]:
    """`shots` examples in random order, drawn without replacement from those with other text.

    With the same seed, fewer shots are the last of more: they stand next to the query.
    Raises ValueError if there are not so many.
    """
    others = [example for example in examples if example[0] != examples[query][0]]
    if not 0 <= shots <= len(others):
        raise ValueError(f"shots must lie in 0 … {len(others)}, the other examples, not {shots}.")
    order = torch.randperm(len(others), generator=generator)[:shots].tolist()
    return [others[i] for i in reversed(order)]


def few_shot_trials(
    model: Llama,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    shots: Sequence[int] = (0, 1, 2, 4, 8),
    choices: Sequence[str] | None = None,
    instruction: str = "",
    template: str = TEMPLATE,
    normalize: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> dict[int, list[bool]]:
    """Whether the model answers each example rightly, for each number of demonstrations.

    Every example is the query once, with its own draw of demonstrations from the others (as in
    Brown et al., 2020, §2.4): so the trials of one number of shots are as good as independent.
    The answer is the choice of highest log-likelihood, or, to `normalize`, highest mean. The
    choices are all answers of the examples, unless given. For `accuracy_by_shots`.

    Raises ValueError for no examples, an answer that is no choice, or too many shots.
    """
    choices = sorted({answer for _, answer in examples}) if choices is None else list(choices)
    if not examples or not {answer for _, answer in examples} <= set(choices):
        raise ValueError("examples must be one or more, each with an answer among the choices.")
    endings = [_fill(template, "", choice)[1] for choice in choices]
    bar = tqdm(
        total=len(shots) * len(examples), desc="few-shot", unit="query", disable=not progress
    )
    trials: dict[int, list[bool]] = {}
    with bar:
        for number in shots:
            generator = torch.Generator().manual_seed(seed)  # the same draws, more or fewer of each
            trials[number] = []
            for query, (text, answer) in enumerate(examples):
                drawn = demonstrations_for(query, examples, number, generator)
                prompt = few_shot_prompt(drawn, text, instruction, template)
                scores = log_likelihoods(model, tokenizer, prompt, endings)[normalize]
                trials[number].append(choices[int(scores.argmax())] == answer)
                bar.update()
    return trials


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Confidence interval of a proportion (Wilson, 1927), 95 % with the default z.

    Unlike p ± z·√(p(1−p)/n) it stays within 0 … 1, and is no point when all or none succeed.

    (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n) with p = successes / n.
    Raises ValueError unless 0 ≤ successes ≤ trials and trials ≥ 1.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"successes must lie in 0 … trials ≥ 1, not {successes} of {trials}.")
    p, n = successes / trials, trials
    center = p + z**2 / (2 * n)
    reach = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = ((center + sign * reach) / (1 + z**2 / n) for sign in (-1, 1))
    return max(low, 0.0), min(high, 1.0)


def accuracy_by_shots(
    correct: Mapping[int, Sequence[bool]], z: float = 1.959964
) -> dict[int, tuple[float, float, float]]:
    """Accuracy for each number of shots, with its Wilson interval: {shots: (accuracy, low, high)}.

    `correct` says of every trial whether the answer was right, by number of shots; the result is
    in rising order of shots. Raises ValueError for a number of shots without trials.
    """
    return {
        shots: (
            sum(correct[shots]) / max(len(correct[shots]), 1),
            *wilson_interval(sum(correct[shots]), len(correct[shots]), z),
        )
        for shots in sorted(correct)
    }


# induction heads


def induction_guess(tokens: Sequence[int]) -> int | None:
    """The token that followed the last one of `tokens` when it last stood before, or None.

    What a perfect induction head predicts: "A B … A" goes on with "B" (Olsson et al., 2022).
    """
    for position in range(len(tokens) - 2, -1, -1):
        if tokens[position] == tokens[-1]:
            return tokens[position + 1]
    return None


def induction_score(weights: Tensor, period: int) -> Tensor:
    """How much an attention head, in a text that repeats, looks at what came next last time.

    The text is one sequence of `period` random tokens, again and again. Its token at position
    t ≥ period stood at t − period before; an induction head (Olsson et al., 2022) looks at
    t − period + 1, the token that followed, and so predicts the next. The score is the attention to
    those positions (of all earlier rounds), averaged over t: 1 for a perfect induction head, about
    1/T for a head that looks everywhere.

    Shapes: weights (..., T, T), rows the queries -> (...). Raises ValueError unless 1 ≤ period < T.
    """
    length = weights.shape[-1]
    if not 1 <= period < length:
        raise ValueError(f"period must lie in 1 … {length - 1}, not {period}.")
    queries = torch.arange(length, device=weights.device)[:, None]
    back = queries + 1 - torch.arange(length, device=weights.device)  # a multiple of the period
    followed = (back >= period) & (back <= queries) & (back % period == 0)
    return weights.where(followed, 0.0).sum((-2, -1)) / (length - period)


@torch.inference_mode()
def attention_weights(model: Llama, input_ids: Tensor) -> Tensor:
    """What every head of every layer looks at: L layers, H query heads.

    Shapes: input_ids (T,) -> (L, H, T, T), rows the queries, each summing to 1.
    """
    if input_ids.ndim != 1 or not len(input_ids):
        raise ValueError(f"input_ids must be one sequence, not {tuple(input_ids.shape)}.")
    length, weights = len(input_ids), []

    def watch(attention: torch.nn.Module, inputs: tuple) -> None:
        x, rope = inputs[:2]
        query = rotate(split_heads(attention.q_proj(x), attention.num_heads), *rope)
        key = rotate(split_heads(attention.k_proj(x), attention.num_kv_heads), *rope)
        key = repeat_kv(key, attention.num_heads // attention.num_kv_heads)
        # the identity for values: what comes out is the weights themselves
        values = torch.eye(length, device=x.device)
        # no window is one as wide as the text
        mask = sliding_window_mask(length, length, attention.window or length, device=x.device)
        weights.append(scaled_dot_product_attention(query.float(), key.float(), values, mask)[0])

    hooks = [layer.self_attn.register_forward_pre_hook(watch) for layer in model.model.layers]
    try:
        model.model(input_ids[None].to(model.model.embed_tokens.weight.device))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(weights)


def induction_scores(model: Llama, period: int = 50, seed: int = 0) -> Tensor:
    """`induction_score` of every head, on random tokens said twice. Shapes: -> (L, H)."""
    generator = torch.Generator().manual_seed(seed)
    once = torch.randint(model.config.vocab_size, (period,), generator=generator)
    return induction_score(attention_weights(model, once.repeat(2)), period)
