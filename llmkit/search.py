"""Search: decoding that looks ahead before it chooses.

Beam search follows several sequences and returns the likeliest whole one; contrastive search tries
each likely token and takes one that is not too like what was said before.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.sampling import Token, greedy
from llmkit.transformer import Llama

EarlyStopping = bool | Literal["never"]


def beam_search(
    logits: Tensor,
    step: Callable[[Tensor, Tensor], Tensor],
    num_beams: int,
    max_tokens: int,
    stop_ids: Collection[int] = (),
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
) -> list[tuple[list[Token], float]]:
    """The likeliest continuations of a prompt, best first, each with its score.

    `logits` follow the prompt; `step(parents, tokens)` appends a token to each of the chosen beams
    (a beam may be chosen more than once) and returns the logits that follow.

    score = Σ log p / length^length_penalty, over the generated tokens only, a stop token included.
    A beam ends with a stop token, if then it is among the `num_beams` best, or at `max_tokens`.
    With `num_beams` ended ones in hand, the search stops (Hugging Face's three rules):
      True     at once;
      False    when the best open beam, scored at its present length, beats none of them;
      "never"  when it could beat none at any length, had it no more log-probability to lose.

    Shapes: logits (V,); step (N,), (N,) -> (N, V), with N ≤ num_beams.
    """
    scores, beams, logits = logits.new_zeros(1, dtype=torch.float), [[]], logits[None]
    ended: list[tuple[list[Token], float]] = []
    vocabulary = logits.shape[-1]
    for length in range(1, max_tokens + 1):
        log_probs = logits.float().log_softmax(-1)
        totals = (scores[:, None] + log_probs).flatten()
        # even if each beam's every stop token is among so many, num_beams others are too
        best = totals.topk(min(num_beams * (1 + len(stop_ids)), len(totals)))
        parents, tokens = best.indices // vocabulary, best.indices % vocabulary
        log_probs = log_probs[parents, tokens]
        new = zip(parents.tolist(), tokens.tolist(), log_probs.tolist(), strict=True)
        extended = [[*beams[parent], Token(token, score)] for parent, token, score in new]
        ends = [length == max_tokens or beam[-1] in stop_ids for beam in extended]
        ended += [
            (extended[i], total / length**length_penalty)
            for i, total in enumerate(best.values[:num_beams].tolist())
            if ends[i]
        ]
        ended = sorted(ended, key=lambda beam: -beam[1])[:num_beams]
        goes_on = [i for i, end in enumerate(ends) if not end][:num_beams]
        if not goes_on:
            break
        scores, beams = best.values[goes_on], [extended[i] for i in goes_on]
        if len(ended) == num_beams:
            to_the_end = early_stopping == "never" and length_penalty > 0
            hope = scores[0].item() / (max_tokens if to_the_end else length) ** length_penalty
            if early_stopping is True or hope <= ended[-1][1]:
                break
        logits = step(parents[goes_on], tokens[goes_on])
    return ended


@torch.inference_mode()
def beam_tokens(
    model: Llama,
    prompt: Tensor,
    limit: int,
    num_beams: int,
    stop_ids: Collection[int] = (),
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
) -> Iterator[Token]:
    """The best continuation that `beam_search` finds, once it has: prompt (T,)."""
    cache = model.new_cache(capacity=len(prompt) + limit - 1)

    def step(parents: Tensor, tokens: Tensor) -> Tensor:
        for layer in cache:
            layer.select(parents)
        return model(tokens[:, None], cache=cache)[:, -1]

    logits = model(prompt[None], cache=cache, logits_to_keep=1)[0, -1]
    beams = beam_search(logits, step, num_beams, limit, stop_ids, length_penalty, early_stopping)
    yield from beams[0][0]


def contrastive_step(
    probabilities: Tensor, candidates: Tensor, context: Tensor, alpha: float
) -> Tensor:
    """Which of k candidate tokens contrastive search takes (Su et al., 2022, eq. 5).

    The one of highest (1 - α) · p - α · max cos(h, h_j): likely, and with a hidden state h unlike
    that of any position j before it. α = 0 is greedy.

    Shapes: probabilities (k,), candidates (k, D), context (T, D) -> (), an index.
    """
    cosines = F.normalize(candidates, dim=-1) @ F.normalize(context, dim=-1).T
    return greedy((1 - alpha) * probabilities - alpha * cosines.amax(-1))


@torch.inference_mode()
def contrastive_tokens(
    model: Llama, prompt: Tensor, limit: int, alpha: float, k: int
) -> Iterator[Token]:
    """Contrastive search among the k likeliest tokens: prompt (T,).

    A token is fed before it is chosen, so the last one, too, must have room in the context.
    """
    limit = min(limit, model.config.max_position_embeddings - len(prompt))
    cache = model.new_cache(capacity=len(prompt) + limit)
    context = model.model(prompt[None], cache)[0]
    chosen = torch.zeros((), dtype=torch.long, device=prompt.device)
    for _ in range(limit):
        log_probs = model.lm_head(context[-1]).float().log_softmax(-1)
        best = log_probs.topk(min(k, len(log_probs)))
        for layer in cache:
            layer.select(chosen.expand(len(best.indices)))
        candidates = model.model(best.indices[:, None], cache)[:, -1]
        chosen = contrastive_step(best.values.exp(), candidates.float(), context.float(), alpha)
        yield Token(best.indices[chosen].item(), best.values[chosen].item())
        context = torch.cat([context, candidates[chosen][None]])
