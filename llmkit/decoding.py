"""Decoding: from a prompt to text, whatever the strategy.

`generate` is the front door: one prompt, any strategy, each token as soon as it is certain.
`generate_batch` continues several prompts side by side; `generate_text` speaks text, and ends at
stop strings. All refuse bad input when they are called, not at the first token.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, takewhile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.sampling import Filters, Token, greedy, sample, score_tokens, warp
from llmkit.search import EarlyStopping, beam_tokens, contrastive_tokens
from llmkit.speculative import look_up_draft, model_draft, speculative_rounds
from llmkit.tokenization import Tokenizer
from llmkit.transformer import Llama


def generate(
    model: Llama,
    input_ids: Sequence[int] | Tensor,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_ids: Collection[int] = (),
    generator: torch.Generator | None = None,
    *,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
    penalty_alpha: float | None = None,
    draft: Llama | None = None,
    prompt_lookup: bool = False,
    draft_tokens: int = 5,
) -> Iterator[Token]:
    """Continue a sequence of token ids (T,), yielding each new one as soon as it is certain.

    A token is an int that knows its `log_probability`. Ends at `max_tokens`, at a stop token
    (which is not yielded) or where the model's context is full. The settings choose the strategy:

    greedy       The likeliest token, each time: temperature 0, the default.
    sampling     A temperature above 0, filtered by `top_k`, `top_p`, `min_p`. The same seeded
                 `generator` (of the model's device) gives the same tokens.
    beam         `num_beams` above 1, with `length_penalty` and `early_stopping` as in
                 `llmkit.search.beam_search`. All tokens come at once, at the end.
    contrastive  `penalty_alpha` from 0 to 1, among the `top_k` likeliest tokens (5 if not given).
    speculative  A `draft`, a smaller model of the same vocabulary, or `prompt_lookup` guesses
                 `draft_tokens` tokens ahead. Changes the speed of greedy or sampling, not what
                 they give.

    `repetition_penalty` above 1 makes the tokens seen so far less likely, in all but the searches.
    Raises ValueError for an empty or too long prompt, for settings out of range and for settings
    that do not go together.
    """
    prompt = _checked_prompt(model, input_ids)
    limit = _checked_limit(model, len(prompt), max_tokens)
    filters = _checked_filters(temperature, top_k, top_p, min_p, repetition_penalty)
    draw = _checked_draw(temperature, generator, prompt.device)
    stops = frozenset(stop_ids)
    _check_strategy(
        {
            "num_beams": num_beams != 1,
            "penalty_alpha": penalty_alpha is not None,
            "draft": draft is not None,
            "prompt_lookup": prompt_lookup,
        },
        {
            "temperature": temperature != 0,
            "top_k": top_k is not None and penalty_alpha is None,
            "top_p": top_p is not None,
            "min_p": min_p is not None,
            "repetition_penalty": repetition_penalty != 1,
        },
    )
    if num_beams != 1:
        _require(num_beams > 1, f"num_beams must be at least 1, not {num_beams}.")
        _require(
            math.isfinite(length_penalty), f"length_penalty must be finite, not {length_penalty}."
        )
        _require(
            early_stopping in (False, True, "never"),
            f'early_stopping must be False, True or "never", not {early_stopping!r}.',
        )
        stream = beam_tokens(model, prompt, limit, num_beams, stops, length_penalty, early_stopping)
    elif penalty_alpha is not None:
        _require(
            0 <= penalty_alpha <= 1, f"penalty_alpha must be from 0 to 1, not {penalty_alpha}."
        )
        stream = contrastive_tokens(model, prompt, limit, penalty_alpha, top_k or 5)
    elif draft is not None or prompt_lookup:
        _require(draft_tokens >= 1, f"draft_tokens must be at least 1, not {draft_tokens}.")
        if prompt_lookup:
            propose = look_up_draft(model.config.vocab_size)
        else:
            _check_draft(model, draft)
            propose = model_draft(draft, len(prompt) + limit, filters, generator)
        stream = chain.from_iterable(
            speculative_rounds(model, prompt, limit, propose, draft_tokens, filters, generator)
        )
    else:
        stream = chain.from_iterable(_sample_steps(model, [prompt], limit, filters, draw))
    return takewhile(lambda token: token not in stops, stream)


def generate_batch(
    model: Llama,
    prompts: Sequence[Sequence[int] | Tensor],
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_ids: Collection[int] = (),
    generator: torch.Generator | None = None,
    *,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
) -> Iterator[list[Token | None]]:
    """Continue several prompts of any lengths at once, greedily or by sampling, as `generate` does.

    Each step yields one token for each prompt, None for those that have ended. All end where the
    longest one fills the model's context.
    """
    _require(len(prompts) > 0, "prompts is empty: give at least one.")
    rows = [_checked_prompt(model, ids, f"prompts[{i}]") for i, ids in enumerate(prompts)]
    limit = _checked_limit(model, max(map(len, rows)), max_tokens)
    filters = _checked_filters(temperature, top_k, top_p, min_p, repetition_penalty)
    draw = _checked_draw(temperature, generator, rows[0].device)
    return _until_all_stop(
        _sample_steps(model, rows, limit, filters, draw), len(rows), frozenset(stop_ids)
    )


def generate_text(
    model: Llama, tokenizer: Tokenizer, prompt: str, stop: Collection[str] = (), **settings: Any
) -> Iterator[str]:
    """Continue a text, piece by piece; it ends before the first of the strings in `stop`.

    The settings are those of `generate`; `stop_ids` are the tokenizer's unless given.
    """
    settings = {"stop_ids": tokenizer.stop_ids, **settings}
    tokens = generate(model, tokenizer.encode(prompt), **settings)
    return stop_at(tokenizer.decode_stream(tokens), stop)


def stop_at(pieces: Iterable[str], stop: Collection[str]) -> Iterator[str]:
    """Pass on a text that comes in pieces, up to the first stop string, wherever it was cut.

    Text that may yet prove to be the start of a stop string waits. The first stop string is the
    one that is complete first, the longest of those that end together. Raises ValueError if one
    is empty, TypeError if `stop` is a string itself.
    """
    if isinstance(stop, str):
        raise TypeError(f"stop must be a list of strings, not the string {stop!r}.")
    _require(all(stop), "stop holds an empty string, which would stop everything.")
    return _stop_at(pieces, stop)


def _stop_at(pieces: Iterable[str], stop: Collection[str]) -> Iterator[str]:
    waiting = ""
    for piece in pieces:
        waiting += piece
        found = [(at + len(s), at) for s in stop if (at := waiting.find(s)) >= 0]
        if found:
            if text := waiting[: min(found)[1]]:
                yield text
            return
        starts = (s[:n] for s in stop for n in range(1, len(s)))
        hold = max((len(start) for start in starts if waiting.endswith(start)), default=0)
        text, waiting = waiting[: len(waiting) - hold], waiting[len(waiting) - hold :]
        if text:
            yield text
    if waiting:
        yield waiting


def pad_left(prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Sequences of any lengths as one batch, and which of its tokens are real (None: all).

    Padding is on the left, so that all go on at the same place.

    Shapes: B of (T_i,) -> ids (B, T) and mask (B, T).
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=prompts[0].device)
    longest = int(lengths.max())
    # a row is padded with its own first token, which a repetition penalty has seen anyway
    rows = [torch.cat([p[:1].expand(longest - len(p)), p]) for p in prompts]
    mask = torch.arange(longest, device=lengths.device) >= longest - lengths[:, None]
    return torch.stack(rows), None if mask.all() else mask


@torch.inference_mode()  # as a decorator it holds while the generator runs, not between tokens
def _sample_steps(
    model: Llama,
    prompts: Sequence[Tensor],
    limit: int,
    filters: Filters,
    draw: Callable[[Tensor], Tensor],
) -> Iterator[list[Token]]:
    """One token for each prompt, `limit` times.

    The prompts are read at once, then each step feeds one token, and a KV cache remembers the rest.
    """
    ids, mask = pad_left(prompts)
    cache = model.new_cache(ids.shape[1] + limit - 1, len(prompts))
    fresh = ids
    for _ in range(limit):
        logits = model(fresh, cache, mask, logits_to_keep=1)[:, -1].float()
        tokens = draw(filters(logits, ids))
        yield score_tokens(tokens, logits)
        fresh = tokens[:, None]
        ids = torch.cat([ids, fresh], 1)
        mask = None if mask is None else F.pad(mask, (0, 1), value=True)


def _until_all_stop(
    steps: Iterator[list[Token]], count: int, stops: frozenset[int]
) -> Iterator[list[Token | None]]:
    going = [True] * count
    for tokens in steps:
        going = [on and token not in stops for on, token in zip(going, tokens, strict=True)]
        if not any(going):
            return
        yield [token if on else None for on, token in zip(going, tokens, strict=True)]


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _checked_prompt(
    model: Llama, input_ids: Sequence[int] | Tensor, name: str = "The prompt"
) -> Tensor:
    context, vocabulary = model.config.max_position_embeddings, model.config.vocab_size
    try:
        ids = torch.as_tensor(input_ids)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a sequence of token ids, not {input_ids!r:.50}.") from None
    _require(
        ids.ndim == 1 and 0 < len(ids) <= context,
        f"{name} must be one sequence of 1 to {context} tokens, not {tuple(ids.shape)}.",
    )
    if ids.dtype == torch.bool or ids.is_floating_point() or ids.is_complex():
        raise TypeError(f"{name} must be whole numbers, token ids, not {ids.dtype}.")
    _require(
        ids.min() >= 0 and ids.max() < vocabulary,
        f"{name} has token ids from {ids.min()} to {ids.max()}; "
        f"the model knows 0 to {vocabulary - 1}.",
    )
    return ids.to(model.model.embed_tokens.weight.device, torch.long)


def _checked_limit(model: Llama, longest: int, max_tokens: int) -> int:
    """How many tokens there is room for. The last one is never fed, and so needs none."""
    _require(max_tokens >= 1, f"max_tokens must be at least 1, not {max_tokens}.")
    return min(max_tokens, model.config.max_position_embeddings - longest + 1)


def _checked_filters(
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float,
) -> Filters:
    filters = partial(
        warp,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    filters(torch.zeros(1), torch.zeros(1, dtype=torch.long))  # refuse bad settings now
    return filters


def _checked_draw(
    temperature: float, generator: torch.Generator | None, device: torch.device
) -> Callable[[Tensor], Tensor]:
    _require(
        generator is None or generator.device.type == device.type,
        f"The generator is on {generator and generator.device}, the model on {device}: "
        f"use torch.Generator({str(device)!r}).",
    )
    return greedy if temperature == 0 else partial(sample, generator=generator)


def _check_strategy(strategies: dict[str, bool], filters: dict[str, bool]) -> None:
    strategy = [name for name, given in strategies.items() if given]
    filters = [name for name, given in filters.items() if given]
    _require(len(strategy) <= 1, f"{' and '.join(strategy)} are different strategies: choose one.")
    _require(
        not filters or strategy not in (["num_beams"], ["penalty_alpha"]),
        f"The search that {''.join(strategy)} asks for takes no {' and no '.join(filters)}.",
    )


def _check_draft(model: Llama, draft: Llama) -> None:
    sizes = draft.config.vocab_size, model.config.vocab_size
    _require(
        sizes[0] == sizes[1],
        f"The draft has a vocabulary of {sizes[0]} tokens, the model one of {sizes[1]}: "
        "they must share one.",
    )
    devices = [each.model.embed_tokens.weight.device for each in (draft, model)]
    _require(
        devices[0] == devices[1],
        f"The draft is on {devices[0]}, the model on {devices[1]}: move one to the other.",
    )
