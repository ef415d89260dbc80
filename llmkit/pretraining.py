"""Pretraining: labels made from raw text, and the steps that make their loss small.

First the two ways to make labels, next-token prediction and masked tokens; then the parts of an
optimizer step; then the step itself. `llmkit.training` runs it, on one device or on many.
"""

import math
from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from torch import Tensor, nn

from llmkit.losses import IGNORE_INDEX, cross_entropy

Batch = tuple[Tensor, Tensor]  # input ids and labels, both (B, T)


def pack_blocks(documents: Iterable[Sequence[int]], length: int, separator: int) -> Tensor:
    """Documents end to end, a separator after each, cut into blocks; what fills no block is left.

    Shapes: -> (number of blocks, length) of int64. Raises ValueError if there is no whole block.
    """
    stream = torch.tensor([token for document in documents for token in (*document, separator)])
    if length < 1 or len(stream) < length:
        raise ValueError(f"{len(stream)} tokens fill no block of length {length}.")
    return stream[: len(stream) // length * length].view(-1, length).long()


def clm_batch(tokens: Tensor, starts: Tensor, length: int) -> Batch:
    """Input ids and labels of causal language modelling: at each position, the token after it.

    Sequence b is tokens[starts[b] : starts[b] + length]; every position has a label.

    Shapes: tokens (N,) integers, starts (B,) -> two of (B, length) of int64.
    Raises ValueError if a sequence or its last label would leave the stream.
    """
    if len(starts) and not 0 <= int(starts.min()) <= int(starts.max()) < len(tokens) - length:
        raise ValueError(
            f"starts must lie in 0 … {len(tokens) - length - 1}, so that length {length} and one "
            f"more label fit into {len(tokens)} tokens."
        )
    positions = starts[:, None] + torch.arange(length, device=starts.device)
    return tokens[positions].long(), tokens[positions + 1].long()


def mask_tokens(
    input_ids: Tensor,
    mask_id: int,
    vocab_size: int,
    special_ids: Collection[int] = (),
    probability: float = 0.15,
    generator: torch.Generator | None = None,
) -> Batch:
    """Input ids and labels of masked language modelling (Devlin et al., 2019, §3.1).

    Each token that is not special is chosen with `probability`, and only chosen ones are labels;
    the rest are −100. Of the chosen, 80 % become the mask, 10 % a random token, 10 % stay.
    One draw decides each position's fate: u = torch.rand(shape) below 0.8 · probability is a mask,
    below 0.9 · probability a random token, below probability a token that stays. Then
    torch.randint(vocab_size, shape) draws the random tokens.

    Shapes: (...) integers -> two of (...) of int64.
    Raises ValueError for a probability outside 0 … 1, or a mask outside the vocabulary.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie in 0 … 1, not {probability}.")
    if not 0 <= mask_id < vocab_size:
        raise ValueError(f"mask_id must lie in 0 … {vocab_size - 1}, not {mask_id}.")
    where = {"device": input_ids.device, "generator": generator}
    input_ids = input_ids.long()
    u = torch.rand(input_ids.shape, **where)
    random_tokens = torch.randint(vocab_size, input_ids.shape, **where)
    special = torch.isin(input_ids, torch.tensor([*special_ids], device=input_ids.device).long())
    u = u.masked_fill(special, 1.0)  # no probability is above
    masked = torch.where(u < 0.9 * probability, random_tokens, input_ids)
    masked = masked.where(u >= 0.8 * probability, mask_id)
    return masked, input_ids.where(u < probability, IGNORE_INDEX)


def mlm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy at the chosen positions alone, averaged over them, in nats.

    Shapes: logits (..., V), labels (...), −100 where no token was chosen -> ().
    Raises ValueError if none was.
    """
    chosen = labels != IGNORE_INDEX
    return cross_entropy(logits[chosen], labels[chosen])  # no softmax where nothing is asked


def cosine_schedule(
    step: int, steps: int, peak: float, warmup_steps: int = 0, floor: float = 0.0
) -> float:
    """Learning rate of a step, counted from 0: up in a line, down in half a cosine.

    Warm-up: peak · (step + 1) / warmup_steps. Then floor + (peak − floor) · (1 + cos(π p)) / 2
    (Loshchilov & Hutter, 2017, eq. 5) for the part p of the other steps that is over; `floor` from
    `steps` on. Raises ValueError unless 0 ≤ step and 0 ≤ warmup_steps ≤ steps.
    """
    if step < 0 or not 0 <= warmup_steps <= steps:
        raise ValueError(
            f"step must be at least 0 and warmup_steps lie in 0 … {steps}, the number of steps, "
            f"not {step} and {warmup_steps}."
        )
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if step >= steps:
        return floor
    part = (step - warmup_steps) / (steps - warmup_steps)
    return floor + (peak - floor) * (1 + math.cos(math.pi * part)) / 2


def clip_gradients(gradients: Sequence[Tensor], max_norm: float) -> tuple[list[Tensor], Tensor]:
    """All gradients scaled so that their joint norm is at most `max_norm`; and what it was before.

    One factor for all (Pascanu et al., 2013, algorithm 1): the direction stays. Below the limit
    nothing happens. The norm is the root of the sum of all squares, as of one long vector.

    Shapes: any -> the same, and (). Raises ValueError unless max_norm is above 0.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be above 0, not {max_norm}.")
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    scale = (max_norm / norm).clamp(max=1.0)
    return [gradient * scale for gradient in gradients], norm


def adamw_step(
    parameter: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of AdamW (Loshchilov & Hutter, 2019, algorithm 2): new parameter, mean and square.

    `mean` and `square` are moving averages of the gradient and its square that start at 0; `step`
    counts from 1 and undoes that start. Decay is decoupled: it shrinks the parameter itself, and
    goes through neither average. `torch.optim.AdamW` computes the same, for a whole model.

    Shapes: four of any shape -> three of it. Raises ValueError for a step below 1.
    """
    if step < 1:
        raise ValueError(f"step counts from 1, but is {step}.")
    mean = betas[0] * mean + (1 - betas[0]) * gradient
    square = betas[1] * square + (1 - betas[1]) * gradient**2
    unbiased_mean = mean / (1 - betas[0] ** step)
    unbiased_square = square / (1 - betas[1] ** step)
    decayed = parameter * (1 - lr * weight_decay)
    return decayed - lr * unbiased_mean / (unbiased_square.sqrt() + eps), mean, square


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """The optimizer's parameter groups: matrices decay, gains and biases do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def train_step(
    model: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    micro_batches: Iterable[Batch],
    max_norm: float = 1.0,
    num_targets: float | None = None,
) -> tuple[float, float]:
    """One optimizer step on several micro-batches as on one big batch: its loss, gradient norm.

    A target counts the same in whatever micro-batch it stands: the sum of losses is divided by all
    targets, not each micro-batch's mean by their number. `num_targets` is that count where
    the caller knows it, as it must if other processes hold some: their gradients are averaged, so
    it is then all processes' targets over the number of processes.

    Raises ValueError if there is no target, FloatingPointError if the gradient is not finite; the
    weights are then as before.
    """
    if num_targets is None:
        micro_batches = list(micro_batches)
        num_targets = sum(int((labels != IGNORE_INDEX).sum()) for _, labels in micro_batches)
    if not num_targets:
        raise ValueError("The micro-batches hold no target, so there is nothing to learn.")
    optimizer.zero_grad()
    total = 0.0
    for input_ids, labels in micro_batches:
        logits = model(input_ids)
        count = int((labels != IGNORE_INDEX).sum())
        # a micro-batch without targets still takes part: other processes wait for its gradients
        share = cross_entropy(logits, labels) * (count / num_targets) if count else 0 * logits.sum()
        share.backward()
        total += share.item()
    used = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    clipped, norm = clip_gradients([p.grad for p in used], max_norm)
    if hasattr(norm, "full_tensor"):  # each process holds a share of the gradients
        norm = norm.full_tensor()
    if not norm.isfinite():
        raise FloatingPointError(
            f"The gradient's norm is {norm.item()} at a loss of {total}: lower the learning rate."
        )
    for parameter, gradient in zip(used, clipped, strict=True):
        parameter.grad = gradient
    optimizer.step()
    return total, norm.item()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    tokens: Tensor,
    length: int,
    max_sequences: int | None = None,
    mask: Callable[..., Batch] | None = None,
    batch_size: int = 32,
) -> float:
    """Mean loss over a stream (N,) cut into sequences, or over `max_sequences` spread evenly.

    The model is left in the mode it was in. `mask` as in `pretrain`, the same at every call.
    In nats per target. Raises ValueError for a stream that holds no sequence or no target.
    """
    num_blocks = (len(tokens) - 1) // length
    if num_blocks < 1:
        raise ValueError(f"{len(tokens)} tokens hold no sequence of length {length} and a label.")
    count = min(num_blocks, max_sequences or num_blocks)
    starts = torch.arange(count) * num_blocks // count * length
    generator = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    was_training, total, targets = model.training, 0.0, 0
    model.eval()
    try:
        for some in starts.split(batch_size):
            input_ids, labels = clm_batch(tokens, some, length)
            if mask is not None:
                input_ids, labels = mask(input_ids, generator=generator)
            logits, labels = model(input_ids.to(device)), labels.to(device)
            if number := int((labels != IGNORE_INDEX).sum()):
                total += cross_entropy(logits.float(), labels).item() * number
                targets += number
    finally:
        model.train(was_training)
    if not targets:
        raise ValueError("No token was masked, so there is no loss: measure on a longer stream.")
    return total / targets
