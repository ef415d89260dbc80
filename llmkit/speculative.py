"""Speculative decoding: guess several tokens cheaply, check them all in one pass.

The tokens follow the target model's own distribution, whoever guesses: a good draft makes them come
faster, a bad one slower, neither other. A draft proposes; `speculative_accept` disposes.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.attention import KVCache
from llmkit.sampling import Filters, Token, sample, score_tokens
from llmkit.transformer import Llama

# (the tokens so far (T,), how many) -> up to so many drafted tokens (n,), and the distributions
# that they were drawn from (n, V)
Draft = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def speculative_accept(target: Tensor, draft: Tensor, tokens: Tensor, uniforms: Tensor) -> Tensor:
    """The drafted tokens that stand, and one more (Leviathan et al., 2023, algorithm 1).

    A token x stands with probability min(1, p(x) / q(x)), where p is the target's distribution and
    q that which x was drawn from. In the place of the first that falls comes one drawn from
    max(0, p - q), renormalized; after the last, if all stand, one drawn from p. The result is
    distributed exactly as p. If p and q are one-hot (greedy), a token stands if they agree.

    Shapes: target (n + 1, V) and draft (n, V), probabilities; tokens (n,); uniforms (n + 1,), drawn
    from [0, 1), one for each decision and the last for the draw -> (m,) with 1 ≤ m ≤ n + 1.
    """
    p, q = (rows.gather(1, tokens[:, None])[:, 0] for rows in (target[:-1], draft))
    stands = uniforms[:-1] * q < p
    count = int(stands.long().cumprod(0).sum())
    residual = target[count]
    if count < len(tokens):
        residual = (residual - draft[count]).clamp(min=0)
        # p and q may differ by no more than their rounding, so that nothing is left
        residual = torch.where(residual.any(), residual, target[count])
    cumulative = residual.cumsum(0)
    drawn = (cumulative <= uniforms[-1] * cumulative[-1]).sum()
    return torch.cat([tokens[:count], drawn[None]])


def look_up(ids: Sequence[int], count: int, longest: int = 3) -> list[int]:
    """The `count` tokens that followed the last ones when these last stood in `ids` before.

    Matches the longest tail that it can, of at most `longest` tokens; without a match, []. Text
    that quotes or edits its prompt repeats itself often (Saxena, 2023: prompt look-up decoding).
    """
    known = list(ids)
    for length in range(min(longest, len(ids) - 1), 0, -1):
        for start in range(len(ids) - length - 1, -1, -1):
            if known[start : start + length] == known[-length:]:
                # past its end the text goes on with what has just been copied, as in LZ77
                for i in range(start + length, start + length + count):
                    known.append(known[i])
                return known[len(ids) :]
    return []


def look_up_draft(vocab_size: int) -> Draft:
    """A draft that needs no model: it is certain of what `look_up` finds."""

    def propose(ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
        tokens = ids.new_tensor(look_up(ids.tolist(), count))
        return tokens, F.one_hot(tokens, vocab_size).float()

    return propose


def model_draft(
    model: Llama, capacity: int, filters: Filters, generator: torch.Generator | None = None
) -> Draft:
    """A draft by a smaller model of the same vocabulary, for sequences of up to `capacity` tokens.

    Where its own context is full it proposes nothing.
    """
    capacity = min(capacity, model.config.max_position_embeddings)
    cache = model.new_cache(capacity)

    def propose(ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
        before = len(ids)
        count = max(0, min(count, capacity + 1 - before))
        q = torch.zeros(count, model.config.vocab_size, device=ids.device)
        for i in range(count):
            logits = filters(_read(model, cache, ids, keep=1), ids[None])
            q[i] = logits.softmax(-1)
            ids = torch.cat([ids, sample(logits, generator)])
        return ids[before:], q

    return propose


@torch.inference_mode()
def speculative_rounds(
    model: Llama,
    prompt: Tensor,
    limit: int,
    propose: Draft,
    draft_tokens: int,
    filters: Filters,
    generator: torch.Generator | None = None,
) -> Iterator[list[Token]]:
    """Speculative generation of `limit` tokens: of each pass of the model, what it gains.

    That is the drafted tokens that stand, at most `draft_tokens`, and one more. The first pass
    reads the prompt alone, as it is read without a draft: int8 weights round many tokens more
    coarsely than few. A model's draft must have had the same filters as here: prompt (T,).
    """
    end = len(prompt) + limit
    cache = model.new_cache(capacity=end - 1)
    ids = prompt
    while len(ids) < end:
        most = draft_tokens if cache[0].offset else 0
        drafted, q = propose(ids, min(most, end - len(ids) - 1))
        count = len(drafted) + 1
        guess = torch.cat([ids, drafted])
        logits = _read(model, cache, guess, keep=count)
        p = filters(logits, _prefixes(guess, count)).softmax(-1)
        uniforms = torch.rand(count, generator=generator, device=ids.device)
        tokens = speculative_accept(p, q, drafted, uniforms)
        yield score_tokens(tokens, logits[: len(tokens)])
        ids = torch.cat([ids, tokens])


def _read(model: Llama, cache: list[KVCache], ids: Tensor, keep: int) -> Tensor:
    """The last `keep` logits of a sequence, of which the cache may know a part.

    It may hold wrong tokens too, but only in those last places. Shapes: (T,) -> (keep, V).
    """
    known = min(cache[0].offset, len(ids) - keep)
    for layer in cache:
        layer.crop(known)
    return model(ids[None, known:], cache=cache, logits_to_keep=keep)[0].float()


def _prefixes(ids: Tensor, count: int) -> Tensor:
    """The last `count` prefixes of a sequence, each filled up with its first token."""
    lengths = len(ids) - torch.arange(count, device=ids.device).flip(0)
    within = torch.arange(len(ids), device=ids.device) < lengths[:, None]
    return torch.where(within, ids, ids[0])
