"""Cross-entropy and its relatives: what a language model is trained to make small.

Every logarithm is natural, so losses are in nats; divide by ln 2 for bits. Probabilities and logits
run along the last dimension, of size V (the vocabulary), unless a `dim` says otherwise.
"""

import torch
from torch import Tensor

IGNORE_INDEX = -100  # a target that does not count: padding, a prompt


def one_hot(targets: Tensor, num_classes: int) -> Tensor:
    """Each target as the distribution that is sure of it: 1 at the target, 0 elsewhere.

    Shapes: (...) integers -> (..., V) float32. Raises ValueError for a target outside 0 … V−1.
    """
    if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < num_classes:
        raise ValueError(f"targets must lie in 0 … {num_classes - 1}.")
    return (targets.unsqueeze(-1) == torch.arange(num_classes, device=targets.device)).float()


def cross_entropy_from_probabilities(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of given distributions, −ln p(target), averaged over the targets, in nats.

    Shapes: (..., V) probabilities, (...) targets -> ().
    """
    chosen = probabilities.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return -chosen.log().mean()


def entropy(probabilities: Tensor) -> Tensor:
    """H(p) = −Σ p ln p, in nats (Shannon, 1948, §6); an impossible outcome adds 0.

    Shapes: (..., V) -> (...).
    """
    return -torch.xlogy(probabilities, probabilities).sum(-1)


def log_softmax(logits: Tensor, dim: int = -1) -> Tensor:
    """ln softmax(x) = x − ln Σ exp(x), stable: the largest logit is subtracted first.

    Shapes: any -> the same.
    """
    shifted = logits - logits.amax(dim, keepdim=True)
    return shifted - shifted.exp().sum(dim, keepdim=True).log()


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Cross-entropy from logits, averaged over the targets that count, in nats.

    Targets equal to `ignore_index` add nothing, neither to the sum nor to the count.

    Shapes: (..., V) logits, (...) targets -> (). Raises ValueError if no target counts.
    """
    counted = targets != ignore_index
    if not counted.any():
        raise ValueError("Every target is ignored, so the mean loss is not defined.")
    chosen = targets.where(counted, 0).unsqueeze(-1)  # any valid index: it is left out below
    losses = -log_softmax(logits).gather(-1, chosen).squeeze(-1)
    return losses[counted].mean()


def cross_entropy_gradient(
    logits: Tensor, targets: Tensor, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    """∂ cross_entropy / ∂ logits = (softmax − one-hot) / N at the N targets that count, else 0.

    Shapes: (..., V) logits, (...) targets -> (..., V). Raises ValueError if no target counts.
    """
    counted = targets != ignore_index
    if not counted.any():
        raise ValueError("Every target is ignored, so the mean loss is not defined.")
    probabilities = log_softmax(logits).exp()
    expected = one_hot(targets.where(counted, 0), logits.shape[-1]).type_as(probabilities)
    return (probabilities - expected) * counted.unsqueeze(-1) / counted.sum()


def shift_labels(input_ids: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """The target at each position: the next token. The last position has none and is ignored.

    Shapes: (..., T) -> (..., T).
    """
    end = torch.full_like(input_ids[..., :1], ignore_index)
    return torch.cat([input_ids[..., 1:], end], dim=-1)


def perplexity_from_loss(loss: Tensor) -> Tensor:
    """exp(loss in nats): how many equally likely tokens the model hesitates between.

    Jelinek, Mercer, Bahl & Baker (1977). Shapes: (...) -> (...).
    """
    return loss.exp()


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ p ln(p / q), in nats: what believing q costs beyond the entropy of p.

    An outcome with p = 0 adds 0; one with p > 0 and q = 0 makes it infinite.

    Shapes: (..., V), (..., V) -> (...).
    """
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1)
