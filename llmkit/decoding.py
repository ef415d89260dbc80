"""Decoding: from a distribution over the next token to text.

The filters are pure functions from logits to logits, to be composed in the order temperature,
top-k, top-p; what they rule out gets -inf. `generate` puts them to work, one token at a time.
"""

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from llmkit.transformer import Llama


def greedy(logits: Tensor) -> Tensor:
    """The likeliest token, the one of lowest id among equals. Shapes: (..., V) -> (...)."""
    # argmax may return any of several maxima; the first True of a mask is certain
    return (logits == logits.amax(-1, keepdim=True)).int().argmax(-1)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature: below 1 the likely become likelier, above 1 all become more alike.

    At 0, the limit, only the greedy token is left. Raises ValueError below 0.

    Shapes: (..., V) -> (..., V).
    """
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 or a positive number, not {temperature}.")
    if temperature > 0:
        return logits / temperature
    best = torch.nn.functional.one_hot(greedy(logits), logits.shape[-1]).bool()
    return logits.masked_fill(~best, float("-inf"))


def top_k_filter(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest logits (Fan et al., 2018), and all that equal the k-th.

    Raises ValueError for k < 1. Shapes: (..., V) -> (..., V).
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}.")
    kth = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < kth, float("-inf"))


def top_p_filter(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probabilities sum to at least p.

    The nucleus of Holtzman et al. (2020); at least one token. Among equals at its edge those of
    lower id are kept, so the set is the smallest even then. Raises ValueError unless 0 < p ≤ 1.

    Shapes: (..., V) -> (..., V).
    """
    if not 0 < p <= 1:
        raise ValueError(f"p must be above 0 and at most 1, not {p}.")
    if p == 1:
        return logits
    ordered, ids = logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    mass_before = ordered.cumsum(-1) - ordered
    drop = torch.empty_like(ids, dtype=torch.bool).scatter_(-1, ids, mass_before >= p)
    return logits.masked_fill(drop, float("-inf"))


def warp(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Temperature, then top-k, then top-p. Shapes: (..., V) -> (..., V)."""
    logits = apply_temperature(logits, temperature)
    if top_k is not None:
        logits = top_k_filter(logits, top_k)
    if top_p is not None:
        logits = top_p_filter(logits, top_p)
    return logits


def sample(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw a token with probability softmax(logits). Shapes: (B, V) -> (B,), or (V,) -> ()."""
    return torch.multinomial(logits.float().softmax(-1), 1, generator=generator).squeeze(-1)


def generate(
    model: Llama,
    input_ids: Sequence[int] | Tensor,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_ids: Collection[int] = (),
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """Continue a sequence of token ids (T,), yielding each new one as soon as it is drawn.

    The prompt is read at once, then each step feeds one token and a KV cache remembers the rest.
    Ends at `max_tokens`, at a stop token (which is not yielded) or where the model's context is
    full. Temperature 0 is greedy. The same seeded generator (of the model's device) gives the
    same tokens. Raises ValueError for an empty or too long prompt and for settings out of range.
    """
    prompt = torch.as_tensor(input_ids, dtype=torch.long, device=model.lm_head.weight.device)
    context = model.config.max_position_embeddings
    if prompt.ndim != 1 or not 0 < len(prompt) <= context:
        raise ValueError(
            f"The prompt must be one sequence of 1 to {context} tokens, not {tuple(prompt.shape)}."
        )
    warp(torch.zeros(1), temperature, top_k, top_p)  # refuse bad settings now, not at first use
    max_tokens = min(max_tokens, context - len(prompt) + 1)
    return _generate(model, prompt, max_tokens, temperature, top_k, top_p, stop_ids, generator)


@torch.inference_mode()  # as a decorator it holds while the generator runs, not between tokens
def _generate(
    model: Llama,
    prompt: Tensor,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    stop_ids: Collection[int],
    generator: torch.Generator | None,
) -> Iterator[int]:
    cache = model.new_cache(capacity=len(prompt) + max_tokens - 1)
    tokens = prompt
    for _ in range(max_tokens):
        logits = model(tokens[None], cache=cache, logits_to_keep=1)[0, -1]
        if temperature == 0:
            tokens = greedy(logits)[None]
        else:
            tokens = sample(warp(logits, temperature, top_k, top_p), generator)[None]
        token = tokens.item()
        if token in stop_ids:
            return
        yield token
