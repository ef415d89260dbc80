"""Sampling: from the logits of the next token to one token.

The filters are pure functions from logits to logits; what they rule out gets -inf. `warp` composes
them in their order: repetition penalty, temperature, top-k, top-p, min-p.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# (logits (N, V), the tokens so far (N, T)) -> filtered logits (N, V)
Filters = Callable[[Tensor, Tensor], Tensor]


class Token(int):
    """A token id that remembers how probable it was.

    `log_probability` is the natural logarithm of the probability that the model itself gave it,
    before any filter. In all else an int.
    """

    log_probability: float

    def __new__(cls, token: int, log_probability: float):
        self = super().__new__(cls, token)
        self.log_probability = log_probability
        return self

    def __getnewargs__(self):  # for copy and pickle
        return int(self), self.log_probability


def score_tokens(tokens: Tensor, logits: Tensor) -> list[Token]:
    """Tokens with the log-probabilities that logits give them. Shapes: (N,), (N, V) -> N tokens."""
    scores = logits.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    return [Token(*pair) for pair in zip(tokens.tolist(), scores.tolist(), strict=True)]


def greedy(logits: Tensor) -> Tensor:
    """The likeliest token, the one of lowest id among equals. Shapes: (..., V) -> (...)."""
    return logits.argmax(-1)


def sample(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw a token with probability softmax(logits). Shapes: (N, V) -> (N,), or (V,) -> ()."""
    return torch.multinomial(logits.float().softmax(-1), 1, generator=generator).squeeze(-1)


def apply_repetition_penalty(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Make the tokens in `ids` less likely (Keskar et al., 2019), however often they are there.

    A positive logit is divided by `penalty`, a negative one multiplied; 1 changes nothing, and
    below 1 repetition is rewarded. Raises ValueError unless penalty > 0.

    Shapes: logits (..., V), ids (..., T) -> (..., V).
    """
    if not 0 < penalty < math.inf:
        raise ValueError(f"repetition_penalty must be a positive number, not {penalty}.")
    seen = logits.gather(-1, ids)
    return logits.scatter(-1, ids, torch.where(seen > 0, seen / penalty, seen * penalty))


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature: below 1 the likely become likelier, above 1 all become more alike.

    At 0, the limit, only the greedy token is left. Raises ValueError below 0.

    Shapes: (..., V) -> (..., V).
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be 0 or a positive number, not {temperature}.")
    if temperature > 0:
        return logits / temperature
    best = F.one_hot(greedy(logits), logits.shape[-1]).bool()
    return logits.masked_fill(~best, -math.inf)


def top_k_filter(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest logits (Fan et al., 2018), and all that equal the k-th.

    Raises ValueError for k < 1. Shapes: (..., V) -> (..., V).
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}.")
    kth = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < kth, -math.inf)


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
    return logits.masked_fill(drop, -math.inf)


def min_p_filter(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens at least p times as likely as the likeliest (Nguyen et al., 2024).

    Sure of itself, a model is left few tokens; unsure, many. Raises ValueError unless 0 < p ≤ 1.

    Shapes: (..., V) -> (..., V).
    """
    if not 0 < p <= 1:
        raise ValueError(f"min_p must be above 0 and at most 1, not {p}.")
    # a ratio of probabilities is a difference of logits
    floor = logits.float().amax(-1, keepdim=True) + math.log(p)
    return logits.masked_fill(logits < floor, -math.inf)


def warp(
    logits: Tensor,
    ids: Tensor | None = None,
    *,
    repetition_penalty: float = 1.0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """All filters that are asked for, in their order: that of the arguments.

    `ids` are the tokens so far, for the repetition penalty.

    Shapes: logits (..., V), ids (..., T) -> (..., V).
    """
    if repetition_penalty != 1:
        logits = apply_repetition_penalty(logits, ids, repetition_penalty)
    logits = apply_temperature(logits, temperature)
    if top_k is not None:
        logits = top_k_filter(logits, top_k)
    if top_p is not None:
        logits = top_p_filter(logits, top_p)
    if min_p is not None:
        logits = min_p_filter(logits, min_p)
    return logits
