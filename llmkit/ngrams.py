"""N-grams: the language models that only count (Shannon, 1948; Jurafsky & Martin, ch. 3).

A language model gives the next token a probability, given the tokens before it. An n-gram model
looks back n−1 tokens, its context, and counts what followed that context in a text. Tokens may be
characters (a `str` is a sequence of them), words, or anything else that a dict can hold.

Logarithms are natural, so log-probabilities are in nats.
"""

import math
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from itertools import accumulate, pairwise
from typing import TypeVar

import torch
from torch import Tensor

Token = TypeVar("Token", bound=Hashable)
Counts = dict[tuple[Token, ...], dict[Token, int]]  # context -> next token -> how often


def count_bigram(tokens: Sequence[Token], first: Token, second: Token) -> int:
    """How often `second` comes directly after `first`."""
    return sum(pair == (first, second) for pair in pairwise(tokens))


def context_of(tokens: Sequence[Token], n: int) -> tuple[Token, ...]:
    """What an n-gram model sees of a text: its last n−1 tokens. For n = 1 that is nothing, ().

    Raises ValueError if the text has fewer.
    """
    if len(tokens) < n - 1:
        raise ValueError(f"tokens must hold at least {n - 1}, but hold {len(tokens)}.")
    return tuple(tokens[len(tokens) - n + 1 :])


def count_ngrams(tokens: Sequence[Token], n: int) -> Counts[Token]:
    """How often each token followed each context of n−1 tokens: {context: {token: count}}.

    Contexts and tokens stand in the order in which the text first has them. A text shorter than n
    has none. Raises ValueError if n is less than 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, but is {n}.")
    counts: Counts[Token] = {}
    for ngram, count in Counter(zip(*(tokens[i:] for i in range(n)), strict=False)).items():
        counts.setdefault(ngram[:-1], {})[ngram[-1]] = count
    return counts


def smooth(count: int, total: int, vocab_size: int, k: float = 1.0) -> float:
    """Add-k: the probability (count + k) / (total + k·V) of a token seen `count` times of `total`.

    Each of the V tokens is taken to have been seen k more times than it was (k = 1: Laplace's rule
    of succession), so that none is impossible. With k = 0 this is the relative frequency; a
    context that was never seen then leaves every token at 0.

    Raises ValueError if k is negative or V is less than 1.
    """
    if k < 0:
        raise ValueError(f"k must not be negative, but is {k}.")
    if vocab_size < 1:
        raise ValueError(f"vocab_size must be at least 1, but is {vocab_size}.")
    return (count + k) / (total + k * vocab_size) if total or k else 0.0


def next_token_probabilities(
    counts: Counts[Token], context: Sequence[Token], vocabulary: Collection[Token], k: float = 0.0
) -> dict[Token, float]:
    """The probability of every token of the vocabulary after a context of n−1 tokens, add-k.

    They sum to 1, unless k = 0 and the context was never seen: then all are 0. Raises ValueError
    if the context has another length than those counted.
    """
    length = len(next(iter(counts), context))
    if len(context) != length:
        raise ValueError(f"context must hold {length} tokens, but holds {len(context)}.")
    seen = counts.get(tuple(context), {})
    total = sum(seen.values())
    return {token: smooth(seen.get(token, 0), total, len(vocabulary), k) for token in vocabulary}


def sequence_log_probability(
    tokens: Sequence[Token], counts: Counts[Token], n: int, vocab_size: int, k: float = 0.0
) -> float:
    """ln p(tokens) by the chain rule: the sum of ln p(token | its context) over the sequence.

    The first n−1 tokens have no whole context: they are given, not predicted. −inf if some token
    has probability 0. Every token must be one of the vocabulary's V.
    """
    logs = []
    for context, followers in count_ngrams(tokens, n).items():  # what is said twice is asked once
        seen = counts.get(context, {})
        total = sum(seen.values())
        for token, times in followers.items():
            probability = smooth(seen.get(token, 0), total, vocab_size, k)
            logs.append(times * math.log(probability) if probability else -math.inf)
    return math.fsum(logs)


def perplexity(log_probability: float, num_tokens: int) -> float:
    """exp(−ln p / N): how many equally likely tokens the model hesitates between.

    `num_tokens` counts the N predicted tokens. Infinite if the sequence has probability 0.
    Jelinek, Mercer, Bahl & Baker (1977). Raises ValueError if N is less than 1.
    """
    if num_tokens < 1:
        raise ValueError(f"num_tokens must be at least 1, but is {num_tokens}.")
    try:
        return math.exp(-log_probability / num_tokens)
    except OverflowError:
        return math.inf


def bits_per_byte(log_probability: float, text: str) -> float:
    """−log₂ p / (bytes of the text in UTF-8): comparable whatever the tokens are.

    `text` is what was predicted. Half as many bits: the text compressed to half the size.
    Raises ValueError for an empty text.
    """
    if not text:
        raise ValueError("text must not be empty.")
    return -log_probability / math.log(2) / len(text.encode())


def sample_sequence(
    counts: Counts[Token], n: int, start: Sequence[Token], draws: Sequence[float]
) -> list[Token]:
    """A sequence that begins with `start` and goes on with one token for each draw.

    A draw u from [0, 1) takes the first token, in the order of `counts`, at which the summed
    probabilities exceed u. The sequence ends early at a context that was never seen.

    Raises ValueError if `start` is shorter than n−1 or a draw lies outside [0, 1).
    """
    if len(start) < n - 1:
        raise ValueError(f"start must hold at least {n - 1} tokens, but holds {len(start)}.")
    sequence = list(start)
    for draw in draws:
        if not 0 <= draw < 1:
            raise ValueError(f"draws must lie in [0, 1), but one is {draw}.")
        seen = counts.get(context_of(sequence, n))
        if seen is None:
            break
        threshold = draw * sum(seen.values())
        reached = zip(seen, accumulate(seen.values()), strict=True)
        sequence.append(next(token for token, total in reached if total > threshold))
    return sequence


def probability_table(counts: Tensor, k: float = 0.0) -> Tensor:
    """Counts as a table, with a row for each context, turned into probabilities by add-k.

    Each row sums to 1; with k = 0, a row that was never counted stays 0, as with `smooth`.

    Shapes: (M, V) counts of any dtype -> (M, V), whole numbers as float32.
    """
    smoothed = counts + k
    total = smoothed.sum(-1, keepdim=True)
    return torch.where(total > 0, smoothed / total, 0.0)
