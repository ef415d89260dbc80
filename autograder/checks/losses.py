"""Chapter 02: what a language model is trained to make small."""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from autograder.check import Case, Check, Misconception, Question
from llmkit import losses as reference

# Wrong solutions and variants are written as a student would write them, each whole in itself,
# without llmkit: a class of synthetic students is made of their source.

FRUITS = (0.1, 0.7, 0.2)  # what the chapter's first model says of Apple, Banana, Cherry


def normal(rng: Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=rng).to(dtype)


def whole(rng: Generator, high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=rng)


def distributions(rng: Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return normal(rng, *shape, dtype=dtype).softmax(-1)


def transposed_distributions(rng: Generator, rows: int, columns: int) -> Tensor:
    """Distributions along the last dimension, in float64 and not contiguous in memory."""
    return normal(rng, columns, rows, dtype=torch.float64).softmax(0).T


# one_hot -----------------------------------------------------------------------------------------


def one_hot_cases(rng: Generator) -> list[Case]:
    return [
        Case(torch.tensor([2, 0]), 3).titled("Cherry, then Apple"),
        Case(whole(rng, 7, 5), 7).titled("five targets"),
        Case(whole(rng, 5, 1)[0], 8).titled("a single target, of shape ()"),
        Case(whole(rng, 4, 2, 3), 9).titled("two texts, and words that never come"),
        Case(whole(rng, 5, 4, 3).T, 6).titled("transposed in memory"),
    ]


def one_hot_integers(targets: Tensor, num_classes: int) -> Tensor:
    return F.one_hot(targets, num_classes)


def one_hot_booleans(targets: Tensor, num_classes: int) -> Tensor:
    return targets.unsqueeze(-1) == torch.arange(num_classes)


def one_hot_as_wide_as_needed(targets: Tensor, num_classes: int) -> Tensor:
    return F.one_hot(targets).float()


def one_hot_counting_from_one(targets: Tensor, num_classes: int) -> Tensor:
    return torch.eye(num_classes)[targets - 1]


def one_hot_classes_first(targets: Tensor, num_classes: int) -> Tensor:
    return F.one_hot(targets, num_classes).float().movedim(-1, 0)


def one_hot_flattened(targets: Tensor, num_classes: int) -> Tensor:
    return torch.eye(num_classes)[targets.flatten()]


def one_hot_eye(targets: Tensor, num_classes: int) -> Tensor:
    return torch.eye(num_classes)[targets]


def one_hot_scatter(targets: Tensor, num_classes: int) -> Tensor:
    return torch.zeros(*targets.shape, num_classes).scatter_(-1, targets.unsqueeze(-1), 1.0)


def one_hot_built_in(targets: Tensor, num_classes: int) -> Tensor:
    return F.one_hot(targets, num_classes).float()


def one_hot_loop(targets: Tensor, num_classes: int) -> Tensor:
    rows = [[float(t == v) for v in range(num_classes)] for t in targets.flatten().tolist()]
    return torch.tensor(rows).reshape(*targets.shape, num_classes)


ONE_HOT = Check(
    reference=reference.one_hot,
    points=2,
    cases=one_hot_cases,
    misconceptions=[
        Misconception(
            "the result holds integers, not float32",
            one_hot_integers,
            "These are probabilities, soon to be multiplied by others. Which dtype have those?",
        ),
        Misconception(
            "the result holds True and False, not float32",
            one_hot_booleans,
            "A comparison gives True and False. What turns them into the numbers 1 and 0?",
        ),
        Misconception(
            "num_classes is not used: the width follows from the largest target",
            one_hot_as_wide_as_needed,
            "If no target is the last word of the vocabulary, how many columns do you make?",
        ),
        Misconception(
            "the classes are counted from 1",
            one_hot_counting_from_one,
            "Which index has Apple, the first word of the vocabulary?",
        ),
        Misconception(
            "the classes run along the first dimension, not the last",
            one_hot_classes_first,
            "For targets of shape (5,) and 7 classes: is your result (5, 7), or (7, 5)?",
        ),
        Misconception(
            "the targets' shape is lost: all rows stand in one list",
            one_hot_flattened,
            "For targets of shape (2, 3) and 9 classes, how many dimensions has the result?",
        ),
    ],
    variants=[one_hot_eye, one_hot_scatter, one_hot_built_in, one_hot_loop],
)


# cross_entropy_from_probabilities ----------------------------------------------------------------


def from_probabilities_cases(rng: Generator) -> list[Case]:
    fruits = torch.tensor([FRUITS])
    impossible = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.0, 0.75]])
    return [
        Case(fruits, torch.tensor([2])).titled("the fruits: Cherry comes"),
        Case(fruits.expand(2, 3), torch.tensor([1, 2])).titled("Banana comes, then Cherry"),
        Case(distributions(rng, 6, 5), whole(rng, 5, 6)).titled("six words"),
        Case(distributions(rng, 2, 3, 7), whole(rng, 7, 2, 3)).titled("two texts of three words"),
        Case(impossible, torch.tensor([0, 2])).titled("a word of probability 0 does not come"),
        Case(impossible, torch.tensor([0, 1])).titled("a word of probability 0 comes"),
        Case(transposed_distributions(rng, 4, 6), whole(rng, 6, 4)).titled(
            "float64, transposed in memory"
        ),
    ]


def from_probabilities_bits(probabilities: Tensor, targets: Tensor) -> Tensor:
    return -probabilities.gather(-1, targets.unsqueeze(-1)).log2().mean()


def from_probabilities_base_ten(probabilities: Tensor, targets: Tensor) -> Tensor:
    return -probabilities.gather(-1, targets.unsqueeze(-1)).log10().mean()


def from_probabilities_summed(probabilities: Tensor, targets: Tensor) -> Tensor:
    return -probabilities.gather(-1, targets.unsqueeze(-1)).log().sum()


def from_probabilities_positive(probabilities: Tensor, targets: Tensor) -> Tensor:
    return probabilities.gather(-1, targets.unsqueeze(-1)).log().mean()


def from_probabilities_mean_first(probabilities: Tensor, targets: Tensor) -> Tensor:
    return -probabilities.gather(-1, targets.unsqueeze(-1)).mean().log()


def from_probabilities_unreduced(probabilities: Tensor, targets: Tensor) -> Tensor:
    return -probabilities.gather(-1, targets.unsqueeze(-1)).squeeze(-1).log()


def from_probabilities_shortfall(probabilities: Tensor, targets: Tensor) -> Tensor:
    return (1 - probabilities.gather(-1, targets.unsqueeze(-1))).mean()


def from_probabilities_mean_over_vocabulary(probabilities: Tensor, targets: Tensor) -> Tensor:
    picked = probabilities.gather(-1, targets.unsqueeze(-1))
    return -picked.log().sum() / probabilities.numel()


def from_probabilities_every_pair(probabilities: Tensor, targets: Tensor) -> Tensor:
    return -probabilities[..., targets].log().mean()


def from_probabilities_zero_times_infinity(probabilities: Tensor, targets: Tensor) -> Tensor:
    expected = F.one_hot(targets, probabilities.shape[-1])
    return -(expected * probabilities.log()).sum(-1).mean()


def from_probabilities_with_epsilon(probabilities: Tensor, targets: Tensor) -> Tensor:
    picked = probabilities.gather(-1, targets.unsqueeze(-1))
    return -(picked + 1e-8).log().mean()


def from_probabilities_index(probabilities: Tensor, targets: Tensor) -> Tensor:
    rows = probabilities.reshape(-1, probabilities.shape[-1])
    return -torch.log(rows[torch.arange(len(rows)), targets.flatten()]).mean()


def from_probabilities_one_hot(probabilities: Tensor, targets: Tensor) -> Tensor:
    expected = F.one_hot(targets, probabilities.shape[-1]).to(probabilities.dtype)
    return -torch.einsum("...v,...v->...", expected, probabilities).log().mean()


def from_probabilities_xlogy(probabilities: Tensor, targets: Tensor) -> Tensor:
    expected = torch.eye(probabilities.shape[-1], dtype=probabilities.dtype)[targets]
    return -torch.xlogy(expected, probabilities).sum() / targets.numel()


def from_probabilities_built_in(probabilities: Tensor, targets: Tensor) -> Tensor:
    rows = probabilities.reshape(-1, probabilities.shape[-1])
    return F.nll_loss(rows.log(), targets.flatten())


def from_probabilities_loop(probabilities: Tensor, targets: Tensor) -> Tensor:
    rows = probabilities.reshape(-1, probabilities.shape[-1])
    losses = [-row[t].log() for row, t in zip(rows, targets.flatten().tolist(), strict=True)]
    return sum(losses) / len(losses)


CROSS_ENTROPY_FROM_PROBABILITIES = Check(
    reference=reference.cross_entropy_from_probabilities,
    points=3,
    cases=from_probabilities_cases,
    misconceptions=[
        Misconception(
            "the logarithm has base 2: these are bits, not nats",
            from_probabilities_bits,
            "Cherry must cost 1.6094. Which logarithm of 0.2 is that: torch.log or torch.log2?",
        ),
        Misconception(
            "the logarithm has base 10",
            from_probabilities_base_ten,
            "Cherry must cost 1.6094. What is torch.log10 of 0.2, and what is torch.log of it?",
        ),
        Misconception(
            "the losses are summed, not averaged",
            from_probabilities_summed,
            "If a text were repeated twice, should your number double?",
        ),
        Misconception(
            "the minus sign is missing",
            from_probabilities_positive,
            "Is the logarithm of a number below 1 positive? Should a loss be?",
        ),
        Misconception(
            "the probabilities are averaged first, and the logarithm is taken last",
            from_probabilities_mean_first,
            "Is ln of a mean the mean of the ln? Try it with 0.7 and 0.2.",
        ),
        Misconception(
            "one loss is returned for each target, not their mean",
            from_probabilities_unreduced,
            "The result has shape (). Which step takes many losses to one number?",
        ),
        Misconception(
            "the loss is 1 - p, without a logarithm",
            from_probabilities_shortfall,
            "What should a model pay that gave 0 to the word that came: 1, or without bound?",
        ),
        Misconception(
            "the mean runs over the vocabulary too: the sum is divided by N·V",
            from_probabilities_mean_over_vocabulary,
            "How many words came? By how many did you divide?",
        ),
        Misconception(
            "every target is looked up in every row",
            from_probabilities_every_pair,
            "What shape has probabilities[..., targets]? How many numbers of it do you want?",
        ),
        Misconception(
            "0 · ln 0 is computed and gives NaN",
            from_probabilities_zero_times_infinity,
            "What is 0 times minus infinity to a computer? Must the other words be looked at?",
        ),
        Misconception(
            "a small number is added before the logarithm, which hides an infinite loss",
            from_probabilities_with_epsilon,
            "The model called the word impossible, and it came. What is -ln 0?",
        ),
    ],
    variants=[
        from_probabilities_index,
        from_probabilities_one_hot,
        from_probabilities_xlogy,
        from_probabilities_built_in,
        from_probabilities_loop,
    ],
)


# entropy -----------------------------------------------------------------------------------------


def entropy_cases(rng: Generator) -> list[Case]:
    return [
        Case(torch.tensor([0.1, 0.6, 0.3])).titled("the fruits as they really come"),
        Case(distributions(rng, 4, 5)).titled("four distributions"),
        Case(distributions(rng, 2, 3, 7)).titled("two texts of three positions"),
        Case(torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])).titled("outcomes that never happen"),
        Case(transposed_distributions(rng, 3, 6)).titled("float64, transposed in memory"),
    ]


def entropy_in_bits(probabilities: Tensor) -> Tensor:
    return -torch.xlogy(probabilities, probabilities).sum(-1) / math.log(2)


def entropy_positive(probabilities: Tensor) -> Tensor:
    return torch.xlogy(probabilities, probabilities).sum(-1)


def entropy_zero_times_infinity(probabilities: Tensor) -> Tensor:
    return -(probabilities * probabilities.log()).sum(-1)


def entropy_of_all_rows(probabilities: Tensor) -> Tensor:
    return -torch.xlogy(probabilities, probabilities).sum()


def entropy_first_dimension(probabilities: Tensor) -> Tensor:
    return -torch.xlogy(probabilities, probabilities).sum(0)


def entropy_averaged(probabilities: Tensor) -> Tensor:
    return -torch.xlogy(probabilities, probabilities).mean(-1)


def entropy_unweighted(probabilities: Tensor) -> Tensor:
    return -probabilities.log().sum(-1)


def entropy_as_share(probabilities: Tensor) -> Tensor:
    most = math.log(probabilities.shape[-1])
    return -torch.xlogy(probabilities, probabilities).sum(-1) / most


def entropy_where(probabilities: Tensor) -> Tensor:
    possible = probabilities > 0
    surprise = -torch.where(possible, probabilities, 1.0).log()
    return torch.where(possible, probabilities * surprise, 0.0).sum(dim=-1)


def entropy_built_in(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities).sum(-1)


def entropy_einsum(probabilities: Tensor) -> Tensor:
    return -torch.einsum("...v,...v->...", probabilities, probabilities.clamp_min(1e-30).log())


def entropy_nansum(probabilities: Tensor) -> Tensor:
    return -(probabilities * probabilities.log()).nansum(-1)


def entropy_loop(probabilities: Tensor) -> Tensor:
    rows = probabilities.reshape(-1, probabilities.shape[-1])
    found = [-sum(p * math.log(p) for p in row if p > 0) for row in rows.tolist()]
    return torch.tensor(found, dtype=probabilities.dtype).reshape(probabilities.shape[:-1])


ENTROPY = Check(
    reference=reference.entropy,
    points=3,
    cases=entropy_cases,
    misconceptions=[
        Misconception(
            "the logarithm has base 2: these are bits, not nats",
            entropy_in_bits,
            "Two equally likely outcomes have 0.6931 nats. Which logarithm of 2 is that?",
        ),
        Misconception(
            "the minus sign is missing",
            entropy_positive,
            "A mean surprise is never negative. What sign has ln p?",
        ),
        Misconception(
            "0 · ln 0 is computed and gives NaN",
            entropy_zero_times_infinity,
            "What never happens never surprises. What does your expression give at p = 0?",
        ),
        Misconception(
            "all rows are summed into one number",
            entropy_of_all_rows,
            "Each row has an entropy of its own. Along which dimension do you sum?",
        ),
        Misconception(
            "the sum runs along the first dimension, not the last",
            entropy_first_dimension,
            "Which dimension of your input sums to 1?",
        ),
        Misconception(
            "the mean of the V terms is taken, not their sum",
            entropy_averaged,
            "The probabilities already are the weights of a mean. Why divide by V as well?",
        ),
        Misconception(
            "the surprises are not weighted by how often they happen",
            entropy_unweighted,
            "A word that comes once in a thousand: how much of an average text does it make up?",
        ),
        Misconception(
            "the entropy is divided by ln V, its largest possible value",
            entropy_as_share,
            "What should two equally likely outcomes give: ln 2 = 0.6931, or 1?",
        ),
    ],
    variants=[entropy_where, entropy_built_in, entropy_einsum, entropy_nansum, entropy_loop],
)


# kl_divergence -----------------------------------------------------------------------------------


def divergence_cases(rng: Generator) -> list[Case]:
    p = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.75, 0.25]])
    return [
        Case(torch.tensor([0.1, 0.6, 0.3]), torch.tensor(FRUITS)).titled("the fruits"),
        Case(distributions(rng, 4, 5), distributions(rng, 4, 5)).titled("four pairs"),
        Case(distributions(rng, 2, 3, 7), distributions(rng, 2, 3, 7)).titled(
            "two texts of three positions"
        ),
        Case(p, distributions(rng, 2, 3)).titled("outcomes that never happen"),
        Case(p, torch.tensor([[0.2, 0.8, 0.0], [0.0, 0.4, 0.6]])).titled(
            "impossible for the data and for the model"
        ),
        Case(p, torch.tensor([[0.0, 0.9, 0.1], [0.3, 0.3, 0.4]])).titled(
            "the model calls possible things impossible"
        ),
        Case(transposed_distributions(rng, 3, 6), transposed_distributions(rng, 3, 6)).titled(
            "float64, transposed in memory"
        ),
    ]


def divergence_swapped(p: Tensor, q: Tensor) -> Tensor:
    return (torch.xlogy(q, q) - torch.xlogy(q, p)).sum(-1)


def divergence_weighted_by_q(p: Tensor, q: Tensor) -> Tensor:
    return (torch.xlogy(q, p) - torch.xlogy(q, q)).sum(-1)


def divergence_negative(p: Tensor, q: Tensor) -> Tensor:
    return (torch.xlogy(p, q) - torch.xlogy(p, p)).sum(-1)


def divergence_in_bits(p: Tensor, q: Tensor) -> Tensor:
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1) / math.log(2)


def divergence_without_entropy(p: Tensor, q: Tensor) -> Tensor:
    return -torch.xlogy(p, q).sum(-1)


def divergence_zero_times_infinity(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


def divergence_infinity_hidden(p: Tensor, q: Tensor) -> Tensor:
    return (torch.xlogy(p, p) - torch.xlogy(p, q.clamp_min(1e-8))).sum(-1)


def divergence_averaged(p: Tensor, q: Tensor) -> Tensor:
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).mean(-1)


def divergence_of_all_rows(p: Tensor, q: Tensor) -> Tensor:
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum()


def divergence_where(p: Tensor, q: Tensor) -> Tensor:
    return torch.where(p > 0, p * (p.log() - q.log()), 0.0).sum(dim=-1)


def divergence_nansum(p: Tensor, q: Tensor) -> Tensor:
    return (p * torch.log(p / q)).nansum(-1)


def divergence_cross_entropy_less_entropy(p: Tensor, q: Tensor) -> Tensor:
    return -torch.xlogy(p, q).sum(-1) - torch.special.entr(p).sum(-1)


def divergence_loop(p: Tensor, q: Tensor) -> Tensor:
    found = []
    width = p.shape[-1]
    for ps, qs in zip(p.reshape(-1, width).tolist(), q.reshape(-1, width).tolist(), strict=True):
        total = 0.0
        for pv, qv in zip(ps, qs, strict=True):
            if pv > 0:
                total += pv * math.log(pv / qv) if qv > 0 else math.inf
        found.append(total)
    return torch.tensor(found, dtype=p.dtype).reshape(p.shape[:-1])


KL_DIVERGENCE = Check(
    reference=reference.kl_divergence,
    points=4,
    cases=divergence_cases,
    misconceptions=[
        Misconception(
            "p and q are swapped: this is KL(q ‖ p)",
            divergence_swapped,
            "Words come as the data p has it. So by which of the two is a surprise weighted?",
        ),
        Misconception(
            "the terms are weighted by the model q, not by the data p",
            divergence_weighted_by_q,
            "How often does outcome v really happen: p_v or q_v of the time?",
        ),
        Misconception(
            "the sign is turned round: ln(q/p) stands for ln(p/q)",
            divergence_negative,
            "A divergence is never negative. Which of p and q stands on top of the fraction?",
        ),
        Misconception(
            "the logarithm has base 2: these are bits, not nats",
            divergence_in_bits,
            "In which unit are the losses of this chapter? Which logarithm gives it?",
        ),
        Misconception(
            "this is the cross-entropy: the entropy of p is not taken off",
            divergence_without_entropy,
            "What should KL(p ‖ p) be? What does your function give for it?",
        ),
        Misconception(
            "0 · ln 0 is computed and gives NaN",
            divergence_zero_times_infinity,
            "An outcome with p = 0 must add nothing. What does your expression give there?",
        ),
        Misconception(
            "the infinite divergence is hidden by a smallest value for q",
            divergence_infinity_hidden,
            "The model gave 0 to something that happens. What is its loss when it happens?",
        ),
        Misconception(
            "the mean of the V terms is taken, not their sum",
            divergence_averaged,
            "p already holds the weights of a mean. Why divide by V as well?",
        ),
        Misconception(
            "all rows are summed into one number",
            divergence_of_all_rows,
            "Each row is a pair of distributions of its own. Along which dimension do you sum?",
        ),
    ],
    variants=[
        divergence_where,
        divergence_nansum,
        divergence_cross_entropy_less_entropy,
        divergence_loop,
    ],
)


# log_softmax -------------------------------------------------------------------------------------


def log_softmax_cases(rng: Generator) -> list[Case]:
    rows_apart = normal(rng, 3, 5) + torch.tensor([[-500.0], [0.0], [500.0]])
    return [
        Case(normal(rng, 7)).titled("seven logits"),
        Case(normal(rng, 4, 7)).titled("four rows"),
        Case(normal(rng, 5, 3), dim=0).titled("along the first dimension"),
        Case(normal(rng, 2, 6, 3), dim=-2).titled("along the middle dimension"),
        Case(1000 * normal(rng, 3, 5)).titled("logits of 1000 and -1000"),
        Case(normal(rng, 4, 5) - 1000).titled("all logits near -1000"),
        Case(rows_apart).titled("rows of very different size"),
        Case(normal(rng, 6, 4, dtype=torch.float64).T).titled("float64, transposed in memory"),
    ]


def log_softmax_overflowing(logits: Tensor, dim: int = -1) -> Tensor:
    return logits - logits.exp().sum(dim, keepdim=True).log()


def log_softmax_of_rounded(logits: Tensor, dim: int = -1) -> Tensor:
    return torch.softmax(logits, dim).log()


def log_softmax_last_dimension(logits: Tensor, dim: int = -1) -> Tensor:
    return torch.log_softmax(logits, -1)


def log_softmax_without_log(logits: Tensor, dim: int = -1) -> Tensor:
    return torch.softmax(logits, dim)


def log_softmax_in_bits(logits: Tensor, dim: int = -1) -> Tensor:
    return torch.log_softmax(logits, dim) / math.log(2)


def log_softmax_one_largest(logits: Tensor, dim: int = -1) -> Tensor:
    shifted = logits - logits.max()
    return shifted - shifted.exp().sum(dim, keepdim=True).log()


def log_softmax_over_everything(logits: Tensor, dim: int = -1) -> Tensor:
    shifted = logits - logits.max()
    return shifted - shifted.exp().sum().log()


def log_softmax_sum_without_log(logits: Tensor, dim: int = -1) -> Tensor:
    shifted = logits - logits.amax(dim, keepdim=True)
    return shifted - shifted.exp().sum(dim, keepdim=True)


def log_softmax_shifted_once(logits: Tensor, dim: int = -1) -> Tensor:
    shifted = logits - logits.amax(dim, keepdim=True)
    return logits - shifted.exp().sum(dim, keepdim=True).log()


def log_softmax_built_in(logits: Tensor, dim: int = -1) -> Tensor:
    return F.log_softmax(logits, dim=dim)


def log_softmax_logsumexp(logits: Tensor, dim: int = -1) -> Tensor:
    return logits - torch.logsumexp(logits, dim, keepdim=True)


def log_softmax_moved(logits: Tensor, dim: int = -1) -> Tensor:
    rows = logits.movedim(dim, -1)
    largest = rows.max(-1, keepdim=True).values
    total = torch.einsum("...v->...", torch.exp(rows - largest)).unsqueeze(-1)
    return (rows - largest - total.log()).movedim(-1, dim)


def log_softmax_pairwise(logits: Tensor, dim: int = -1) -> Tensor:
    slices = logits.unbind(dim)
    total = slices[0]
    for row in slices[1:]:
        total = torch.logaddexp(total, row)
    return torch.stack([row - total for row in slices], dim)


LOG_SOFTMAX = Check(
    reference=reference.log_softmax,
    points=4,
    cases=log_softmax_cases,
    # x - logsumexp(x) is as right, and near 3000 a float32 is only exact to 1e-4
    tolerance=(1e-4, 1e-3),
    misconceptions=[
        Misconception(
            "exp overflows: the largest logit is not subtracted first",
            log_softmax_overflowing,
            "What is exp(1000) in float32? What may be taken from all logits without a change?",
        ),
        Misconception(
            "the logarithm is taken of probabilities that were rounded to 0",
            log_softmax_of_rounded,
            "What is exp(-1000) in float32, and its logarithm? Must you pass through it?",
        ),
        Misconception(
            "always the last dimension: the argument dim is ignored",
            log_softmax_last_dimension,
            "What does your function do when it is called with dim=0?",
        ),
        Misconception(
            "this is softmax: the logarithm is missing",
            log_softmax_without_log,
            "A probability lies between 0 and 1. Where must its logarithm lie?",
        ),
        Misconception(
            "the logarithm has base 2",
            log_softmax_in_bits,
            "exp of your result should be the probabilities. Is it, or is 2 to its power?",
        ),
        Misconception(
            "one largest logit is subtracted from all rows, not each row's own",
            log_softmax_one_largest,
            "One row near -500, another near 500: what is left of exp in the first?",
        ),
        Misconception(
            "the sum runs over the whole tensor, not along dim",
            log_softmax_over_everything,
            "exp of the result should sum to 1 in each row. Does it, or only over all rows?",
        ),
        Misconception(
            "the sum of exponentials is subtracted without its logarithm",
            log_softmax_sum_without_log,
            "ln(a/b) is ln a - ln b. Here b is the sum. Where is its ln?",
        ),
        Misconception(
            "the largest logit is subtracted inside the sum, but not outside it",
            log_softmax_shifted_once,
            "The formula holds the logits twice. Which of the two did you shift?",
        ),
    ],
    variants=[
        log_softmax_built_in,
        log_softmax_logsumexp,
        log_softmax_moved,
        log_softmax_pairwise,
    ],
)


# cross_entropy -----------------------------------------------------------------------------------


def logit_cases(rng: Generator) -> list[Case]:
    """For the loss and for its gradient."""
    padded = whole(rng, 7, 2, 4)
    padded[1, 1:] = -100
    other_index = torch.cat([whole(rng, 5, 4), torch.tensor([-1, -1])])
    valid_index = torch.cat([torch.tensor([3, 0, 3]), whole(rng, 5, 3)])
    far = torch.tensor([[2.0, 0.0, -1.0], [1.0, 3.0, 0.5]]) * 1000
    return [
        Case(normal(rng, 6, 5), whole(rng, 5, 6)).titled("six words, all counted"),
        Case(normal(rng, 2, 4, 7), padded).titled("two texts, the second one padded"),
        Case(normal(rng, 6, 5), other_index, ignore_index=-1).titled("ignore_index = -1"),
        Case(normal(rng, 6, 5), valid_index, ignore_index=3).titled(
            "ignore_index = 3, the index of a word"
        ),
        Case(far, torch.tensor([1, 0])).titled("logits of 1000"),
        Case(normal(rng, 2, 3, 4), torch.full((2, 3), -100)).titled("every target is ignored"),
        Case(normal(rng, 7, 4, dtype=torch.float64).T, whole(rng, 7, 4)).titled(
            "float64, transposed in memory"
        ),
    ]


def cross_entropy_mean_over_all(
    logits: Tensor, targets: Tensor, ignore_index: int = -100
) -> Tensor:
    counted = targets != ignore_index
    if not counted.any():
        raise ValueError("no target counts")
    losses = -torch.log_softmax(logits, -1).gather(-1, targets.where(counted, 0).unsqueeze(-1))
    return (losses.squeeze(-1) * counted).mean()


def cross_entropy_summed(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    counted = targets != ignore_index
    if not counted.any():
        raise ValueError("no target counts")
    return F.cross_entropy(logits[counted], targets[counted], reduction="sum")


def cross_entropy_silent_nan(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    rows = logits.reshape(-1, logits.shape[-1])
    return F.cross_entropy(rows, targets.flatten(), ignore_index=ignore_index)


def cross_entropy_silent_zero(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    counted = targets != ignore_index
    losses = F.cross_entropy(logits[counted], targets[counted], reduction="sum")
    return losses / counted.sum().clamp_min(1)


def cross_entropy_softmax_twice(
    logits: Tensor, targets: Tensor, ignore_index: int = -100
) -> Tensor:
    counted = targets != ignore_index
    if not counted.any():
        raise ValueError("no target counts")
    return F.cross_entropy(torch.softmax(logits, -1)[counted], targets[counted])


def cross_entropy_in_bits(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    counted = targets != ignore_index
    if not counted.any():
        raise ValueError("no target counts")
    return F.cross_entropy(logits[counted], targets[counted]) / math.log(2)


def cross_entropy_overflowing(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    counted = targets != ignore_index
    if not counted.any():
        raise ValueError("no target counts")
    rows, index = logits[counted], targets[counted].unsqueeze(-1)
    probabilities = rows.exp() / rows.exp().sum(-1, keepdim=True)
    return -probabilities.gather(-1, index).log().mean()


def cross_entropy_fixed_index(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    counted = targets != -100
    if not counted.any():
        raise ValueError("no target counts")
    rows, index = torch.log_softmax(logits, -1)[counted], targets[counted]
    return -rows[torch.arange(len(rows)), index].mean()


def cross_entropy_negative(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    counted = targets != ignore_index
    if not counted.any():
        raise ValueError("no target counts")
    return -F.cross_entropy(logits[counted], targets[counted])


def cross_entropy_ignored_as_zero(
    logits: Tensor, targets: Tensor, ignore_index: int = -100
) -> Tensor:
    counted = targets != ignore_index
    if not counted.any():
        raise ValueError("no target counts")
    index = targets.where(counted, 0).unsqueeze(-1)
    return -torch.log_softmax(logits, -1).gather(-1, index).mean()


def cross_entropy_dimension_one(
    logits: Tensor, targets: Tensor, ignore_index: int = -100
) -> Tensor:
    counted = targets != ignore_index
    if not counted.any():
        raise ValueError("no target counts")
    index = targets.where(counted, 0).unsqueeze(-1)
    return -torch.log_softmax(logits, 1).gather(-1, index).squeeze(-1)[counted].mean()


def cross_entropy_mean_of_means(
    logits: Tensor, targets: Tensor, ignore_index: int = -100
) -> Tensor:
    counted = targets != ignore_index
    if not counted.any():
        raise ValueError("no target counts")
    index = targets.where(counted, 0).unsqueeze(-1)
    losses = -torch.log_softmax(logits, -1).gather(-1, index).squeeze(-1)
    return ((losses * counted).sum(-1) / counted.sum(-1)).mean()


def cross_entropy_built_in(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    if (targets == ignore_index).all():
        raise ValueError("there is nothing to average")
    rows = logits.reshape(-1, logits.shape[-1])
    return F.cross_entropy(rows, targets.reshape(-1), ignore_index=ignore_index)


def cross_entropy_logsumexp(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    counted = targets != ignore_index
    if counted.sum() == 0:
        raise ValueError("there is nothing to average")
    rows, index = logits[counted], targets[counted]
    return (rows.logsumexp(-1) - rows.gather(-1, index[:, None])[:, 0]).mean()


def cross_entropy_einsum(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    counted = (targets != ignore_index).to(logits.dtype)
    if not counted.any():
        raise ValueError("there is nothing to average")
    eye = torch.eye(logits.shape[-1], dtype=logits.dtype)
    expected = eye[targets.masked_fill(counted == 0, 0)] * counted.unsqueeze(-1)
    total = torch.einsum("...v,...v->...", expected, torch.log_softmax(logits, -1)).sum()
    return -total / counted.sum()


def cross_entropy_loop(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    total, count = torch.zeros((), dtype=logits.dtype), 0
    for row, target in zip(
        logits.reshape(-1, logits.shape[-1]), targets.flatten().tolist(), strict=True
    ):
        if target == ignore_index:
            continue
        largest = row.max()
        total += largest + (row - largest).exp().sum().log() - row[target]
        count += 1
    if count == 0:
        raise ValueError("there is nothing to average")
    return total / count


CROSS_ENTROPY = Check(
    reference=reference.cross_entropy,
    points=5,
    cases=logit_cases,
    misconceptions=[
        Misconception(
            "the mean runs over all targets: the ignored ones are counted, too",
            cross_entropy_mean_over_all,
            "If more padding is added to a batch, should its loss fall?",
        ),
        Misconception(
            "the losses are summed, not averaged",
            cross_entropy_summed,
            "Should a batch twice as long have twice the loss?",
        ),
        Misconception(
            "when every target is ignored, NaN is returned without a word",
            cross_entropy_silent_nan,
            "What is 0 divided by 0, and who will notice it in a training run?",
        ),
        Misconception(
            "when every target is ignored, a loss of 0 is returned",
            cross_entropy_silent_zero,
            "A loss of 0 says that every prediction was perfect. Was there any prediction?",
        ),
        Misconception(
            "softmax is applied twice: probabilities are taken for logits",
            cross_entropy_softmax_twice,
            "Log-softmax begins with a softmax. Was there one before it already?",
        ),
        Misconception(
            "the logarithm has base 2: these are bits, not nats",
            cross_entropy_in_bits,
            "With V equal logits the loss is ln V. Which logarithm of V do you get?",
        ),
        Misconception(
            "exp overflows: the largest logit is not subtracted first",
            cross_entropy_overflowing,
            "What is exp(1000) in float32? Which function did you write against it?",
        ),
        Misconception(
            "ignore_index is always -100: the argument is not used",
            cross_entropy_fixed_index,
            "What does your function do when it is called with ignore_index=3?",
        ),
        Misconception(
            "the minus sign is missing",
            cross_entropy_negative,
            "The logarithm of a probability is below 0. Should a loss be?",
        ),
        Misconception(
            "an ignored target is counted as word 0",
            cross_entropy_ignored_as_zero,
            "Where a target is replaced so that the lookup works, what removes its loss later?",
        ),
        Misconception(
            "softmax runs over dimension 1, not over the vocabulary",
            cross_entropy_dimension_one,
            "Of logits (B, T, V), which dimension must sum to 1 after softmax?",
        ),
        Misconception(
            "each text is averaged first, and then the texts",
            cross_entropy_mean_of_means,
            "A text of 1 token beside one of 4: does each token weigh the same in your mean?",
        ),
    ],
    variants=[
        cross_entropy_built_in,
        cross_entropy_logsumexp,
        cross_entropy_einsum,
        cross_entropy_loop,
    ],
)


# cross_entropy_gradient --------------------------------------------------------------------------


def gradient_not_divided(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    counted = targets != ignore_index
    if not counted.any():
        raise ValueError("no target counts")
    expected = F.one_hot(targets.where(counted, 0), logits.shape[-1])
    return (torch.softmax(logits, -1) - expected) * counted.unsqueeze(-1)


def gradient_divided_by_all(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    counted = targets != ignore_index
    if not counted.any():
        raise ValueError("no target counts")
    expected = F.one_hot(targets.where(counted, 0), logits.shape[-1])
    return (torch.softmax(logits, -1) - expected) * counted.unsqueeze(-1) / targets.numel()


def gradient_at_ignored(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    counted = targets != ignore_index
    if not counted.any():
        raise ValueError("no target counts")
    expected = F.one_hot(targets.where(counted, 0), logits.shape[-1]) * counted.unsqueeze(-1)
    return (torch.softmax(logits, -1) - expected) / counted.sum()


def gradient_ignored_as_zero(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    counted = targets != ignore_index
    if not counted.any():
        raise ValueError("no target counts")
    expected = F.one_hot(targets.where(counted, 0), logits.shape[-1])
    return (torch.softmax(logits, -1) - expected) / counted.sum()


def gradient_reversed(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    counted = targets != ignore_index
    if not counted.any():
        raise ValueError("no target counts")
    expected = F.one_hot(targets.where(counted, 0), logits.shape[-1])
    return (expected - torch.softmax(logits, -1)) * counted.unsqueeze(-1) / counted.sum()


def gradient_of_target_only(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    counted = targets != ignore_index
    if not counted.any():
        raise ValueError("no target counts")
    expected = F.one_hot(targets.where(counted, 0), logits.shape[-1])
    difference = (torch.softmax(logits, -1) - expected) * expected
    return difference * counted.unsqueeze(-1) / counted.sum()


def gradient_without_target(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    counted = targets != ignore_index
    if not counted.any():
        raise ValueError("no target counts")
    return torch.softmax(logits, -1) * counted.unsqueeze(-1) / counted.sum()


def gradient_of_logits(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    counted = targets != ignore_index
    if not counted.any():
        raise ValueError("no target counts")
    expected = F.one_hot(targets.where(counted, 0), logits.shape[-1])
    return (logits - expected) * counted.unsqueeze(-1) / counted.sum()


def gradient_overflowing(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    counted = targets != ignore_index
    if not counted.any():
        raise ValueError("no target counts")
    expected = F.one_hot(targets.where(counted, 0), logits.shape[-1])
    probabilities = logits.exp() / logits.exp().sum(-1, keepdim=True)
    return (probabilities - expected) * counted.unsqueeze(-1) / counted.sum()


def gradient_silent_nan(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    counted = targets != ignore_index
    expected = F.one_hot(targets.where(counted, 0), logits.shape[-1])
    return (torch.softmax(logits, -1) - expected) * counted.unsqueeze(-1) / counted.sum()


def gradient_silent_zero(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    counted = targets != ignore_index
    expected = F.one_hot(targets.where(counted, 0), logits.shape[-1])
    difference = (torch.softmax(logits, -1) - expected) * counted.unsqueeze(-1)
    return difference / counted.sum().clamp_min(1)


def gradient_dimension_one(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    counted = targets != ignore_index
    if not counted.any():
        raise ValueError("no target counts")
    expected = F.one_hot(targets.where(counted, 0), logits.shape[-1])
    return (torch.softmax(logits, 1) - expected) * counted.unsqueeze(-1) / counted.sum()


def gradient_fixed_index(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    counted = targets != -100
    if not counted.any():
        raise ValueError("no target counts")
    expected = torch.eye(logits.shape[-1])[targets.where(counted, 0)]
    difference = torch.softmax(logits, -1) - expected.to(logits.dtype)
    return difference * counted.unsqueeze(-1) / counted.sum()


def gradient_by_autograd(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    if (targets == ignore_index).all():
        raise ValueError("there is nothing to average")
    leaf = logits.detach().clone().requires_grad_(True)
    rows = leaf.reshape(-1, leaf.shape[-1])
    F.cross_entropy(rows, targets.flatten(), ignore_index=ignore_index).backward()
    return leaf.grad


def gradient_in_place(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    counted = targets != ignore_index
    if not counted.any():
        raise ValueError("there is nothing to average")
    gradient = torch.zeros_like(logits)
    rows = torch.softmax(logits[counted], -1)
    rows[torch.arange(len(rows)), targets[counted]] -= 1
    gradient[counted] = rows / len(rows)
    return gradient


def gradient_by_where(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    counted = (targets != ignore_index).unsqueeze(-1)
    if not counted.any():
        raise ValueError("there is nothing to average")
    is_target = targets.unsqueeze(-1) == torch.arange(logits.shape[-1])
    probabilities = torch.exp(logits - logits.logsumexp(-1, keepdim=True))
    difference = torch.where(is_target, probabilities - 1, probabilities)
    return difference.masked_fill(~counted, 0.0) / counted.sum()


def gradient_loop(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    flat, rows = targets.flatten().tolist(), logits.reshape(-1, logits.shape[-1])
    count = sum(target != ignore_index for target in flat)
    if count == 0:
        raise ValueError("there is nothing to average")
    found = []
    for row, target in zip(rows, flat, strict=True):
        gradient = torch.zeros_like(row)
        if target != ignore_index:
            gradient = row.softmax(0)
            gradient[target] -= 1
        found.append(gradient / count)
    return torch.stack(found).reshape(logits.shape)


CROSS_ENTROPY_GRADIENT = Check(
    reference=reference.cross_entropy_gradient,
    points=5,
    cases=logit_cases,
    misconceptions=[
        Misconception(
            "the gradient is not divided by the number of counted targets",
            gradient_not_divided,
            "The loss is a mean over N targets. What factor does that put before each one?",
        ),
        Misconception(
            "the gradient is divided by the number of all targets, ignored ones included",
            gradient_divided_by_all,
            "By which number does the loss divide? Is it in your gradient, too?",
        ),
        Misconception(
            "ignored rows have a gradient: their probabilities",
            gradient_at_ignored,
            "If you change a logit of an ignored row, how much does the loss change?",
        ),
        Misconception(
            "ignored rows have a gradient: they are pulled towards word 0",
            gradient_ignored_as_zero,
            "Where a target is replaced by a valid index, what removes that row's gradient?",
        ),
        Misconception(
            "the sign is turned round: one-hot minus softmax",
            gradient_reversed,
            "If the target's logit grows, does the loss grow? Which sign has its gradient, then?",
        ),
        Misconception(
            "only the target's logit has a gradient",
            gradient_of_target_only,
            "If Banana's logit grows, what becomes of Cherry's probability, and of the loss?",
        ),
        Misconception(
            "the one-hot target is not subtracted",
            gradient_without_target,
            "What should the gradients of one row sum to? What do yours sum to?",
        ),
        Misconception(
            "the one-hot target is subtracted from the logits, not from their softmax",
            gradient_of_logits,
            "What the model said, minus what came: in which form did it say it?",
        ),
        Misconception(
            "exp overflows: the softmax is not stable",
            gradient_overflowing,
            "What is exp(1000) in float32? How did you get round it in log_softmax?",
        ),
        Misconception(
            "when every target is ignored, NaN is returned without a word",
            gradient_silent_nan,
            "What is 0 divided by 0, and what does one step with it do to the weights?",
        ),
        Misconception(
            "when every target is ignored, a gradient of 0 is returned",
            gradient_silent_zero,
            "The loss refuses such a batch. Should its gradient accept it?",
        ),
        Misconception(
            "softmax runs over dimension 1, not over the vocabulary",
            gradient_dimension_one,
            "Of logits (B, T, V), which dimension must sum to 1 after softmax?",
        ),
        Misconception(
            "ignore_index is always -100: the argument is not used",
            gradient_fixed_index,
            "What does your function do when it is called with ignore_index=3?",
        ),
    ],
    variants=[gradient_by_autograd, gradient_in_place, gradient_by_where, gradient_loop],
)


# shift_labels ------------------------------------------------------------------------------------


def shift_cases(rng: Generator) -> list[Case]:
    return [
        Case(torch.tensor([[7, 3, 9]])).titled("one text of three tokens"),
        Case(1 + whole(rng, 50, 6)).titled("one text, without a batch"),
        Case(1 + whole(rng, 50, 3, 5)).titled("three texts"),
        Case(1 + whole(rng, 50, 2, 4), ignore_index=-1).titled("ignore_index = -1"),
        Case(1 + whole(rng, 50, 2, 3, 4)).titled("a batch of batches"),
        Case(1 + whole(rng, 50, 2, 1)).titled("texts of a single token"),
        Case(1 + whole(rng, 50, 6, 4).T).titled("transposed in memory"),
    ]


def shift_backward(input_ids: Tensor, ignore_index: int = -100) -> Tensor:
    return F.pad(input_ids[..., :-1], (1, 0), value=ignore_index)


def shift_nothing(input_ids: Tensor, ignore_index: int = -100) -> Tensor:
    return input_ids.clone()


def shift_nothing_but_the_end(input_ids: Tensor, ignore_index: int = -100) -> Tensor:
    return F.pad(input_ids[..., :-1], (0, 1), value=ignore_index)


def shift_around(input_ids: Tensor, ignore_index: int = -100) -> Tensor:
    return input_ids.roll(-1, dims=-1)


def shift_into_the_next_text(input_ids: Tensor, ignore_index: int = -100) -> Tensor:
    flat = input_ids.flatten()
    return F.pad(flat[1:], (0, 1), value=ignore_index).reshape(input_ids.shape)


def shift_and_shorten(input_ids: Tensor, ignore_index: int = -100) -> Tensor:
    return input_ids[..., 1:]


def shift_by_two(input_ids: Tensor, ignore_index: int = -100) -> Tensor:
    length = input_ids.shape[-1]
    return F.pad(input_ids[..., 2:], (0, min(2, length)), value=ignore_index)


def shift_and_fill_with_zero(input_ids: Tensor, ignore_index: int = -100) -> Tensor:
    return F.pad(input_ids[..., 1:], (0, 1))


def shift_with_fixed_index(input_ids: Tensor, ignore_index: int = -100) -> Tensor:
    return F.pad(input_ids[..., 1:], (0, 1), value=-100)


def shift_along_the_batch(input_ids: Tensor, ignore_index: int = -100) -> Tensor:
    labels = torch.full_like(input_ids, ignore_index)
    labels[:-1] = input_ids[1:]
    return labels


def shift_padded(input_ids: Tensor, ignore_index: int = -100) -> Tensor:
    return F.pad(input_ids, (0, 1), value=ignore_index)[..., 1:]


def shift_rolled(input_ids: Tensor, ignore_index: int = -100) -> Tensor:
    labels = torch.roll(input_ids, -1, dims=-1)
    labels[..., -1] = ignore_index
    return labels


def shift_joined(input_ids: Tensor, ignore_index: int = -100) -> Tensor:
    last = torch.full((*input_ids.shape[:-1], 1), ignore_index)
    return torch.cat((input_ids[..., 1:], last), dim=-1)


def shift_loop(input_ids: Tensor, ignore_index: int = -100) -> Tensor:
    rows = input_ids.reshape(-1, input_ids.shape[-1]).tolist()
    return torch.tensor([[*row[1:], ignore_index] for row in rows]).reshape(input_ids.shape)


SHIFT_LABELS = Check(
    reference=reference.shift_labels,
    points=3,
    cases=shift_cases,
    misconceptions=[
        Misconception(
            "the labels are shifted the wrong way: each target is the token before",
            shift_backward,
            "After 'the dog', should the model predict 'chased', or 'the' once more?",
        ),
        Misconception(
            "nothing is shifted: each token is its own target",
            shift_nothing,
            "The model sees the token at its position. What is left to predict?",
        ),
        Misconception(
            "nothing is shifted, only the end is ignored: each token is its own target",
            shift_nothing_but_the_end,
            "The model sees the token at its position. What is left to predict?",
        ),
        Misconception(
            "the first token of a text is the target of its last one",
            shift_around,
            "What comes after the last token of a text? Do you know?",
        ),
        Misconception(
            "the first token of the next text is the target of the last one",
            shift_into_the_next_text,
            "Two texts stand in a batch by chance. Does one continue the other?",
        ),
        Misconception(
            "the labels are one shorter than the inputs",
            shift_and_shorten,
            "T inputs need T targets. What fills the place after the last known one?",
        ),
        Misconception(
            "the labels are shifted by two",
            shift_by_two,
            "Position 0 holds the first token. Which token does the model predict there?",
        ),
        Misconception(
            "the last target is 0, which is a token, not ignore_index",
            shift_and_fill_with_zero,
            "Which value tells the loss that a target does not count? Does 0 tell it?",
        ),
        Misconception(
            "ignore_index is always -100: the argument is not used",
            shift_with_fixed_index,
            "What does your function do when it is called with ignore_index=-1?",
        ),
        Misconception(
            "the shift runs along the first dimension, from text to text",
            shift_along_the_batch,
            "Of (B, T), along which dimension does a text go on?",
        ),
    ],
    variants=[shift_padded, shift_rolled, shift_joined, shift_loop],
)


# perplexity_from_loss ----------------------------------------------------------------------------


def perplexity_cases(rng: Generator) -> list[Case]:
    return [
        Case(torch.tensor(math.log(3))).titled("a loss of ln 3"),
        Case(8 * torch.rand(5, generator=rng)).titled("the losses of five texts"),
        Case(torch.tensor([0.0, math.inf])).titled("sure and right; sure and wrong"),
        Case((3 * torch.rand(4, 2, generator=rng)).double().T).titled(
            "float64, transposed in memory"
        ),
    ]


def perplexity_of_bits(loss: Tensor) -> Tensor:
    return 2**loss


def perplexity_base_ten(loss: Tensor) -> Tensor:
    return 10**loss


def perplexity_as_probability(loss: Tensor) -> Tensor:
    return torch.exp(-loss)


def perplexity_of_the_mean(loss: Tensor) -> Tensor:
    return loss.mean().exp()


def perplexity_in_bits(loss: Tensor) -> Tensor:
    return loss / math.log(2)


def perplexity_converted_first(loss: Tensor) -> Tensor:
    return torch.exp(loss / math.log(2))


def perplexity_exp(loss: Tensor) -> Tensor:
    return torch.exp(loss)


def perplexity_power_of_e(loss: Tensor) -> Tensor:
    return math.e**loss


def perplexity_through_bits(loss: Tensor) -> Tensor:
    return torch.exp2(loss / math.log(2))


def perplexity_loop(loss: Tensor) -> Tensor:
    found = [math.exp(number) for number in loss.flatten().tolist()]
    return torch.tensor(found, dtype=loss.dtype).reshape(loss.shape)


PERPLEXITY_FROM_LOSS = Check(
    reference=reference.perplexity_from_loss,
    points=2,
    cases=perplexity_cases,
    misconceptions=[
        Misconception(
            "2 to the power of the loss: that is for a loss in bits",
            perplexity_of_bits,
            "The loss was made with ln. Which power undoes ln?",
        ),
        Misconception(
            "10 to the power of the loss",
            perplexity_base_ten,
            "The loss was made with ln. Which power undoes ln?",
        ),
        Misconception(
            "this is the probability, not its inverse: the sign is turned round",
            perplexity_as_probability,
            "Can a model hesitate between fewer than one word?",
        ),
        Misconception(
            "several losses are averaged into one",
            perplexity_of_the_mean,
            "Five texts have five losses. How many perplexities have they?",
        ),
        Misconception(
            "the loss is converted into bits, and left there",
            perplexity_in_bits,
            "A loss of ln 3 should give 3 words. Which function takes ln 3 to 3?",
        ),
        Misconception(
            "the loss is converted into bits first, and then e is raised to it",
            perplexity_converted_first,
            "Which base belongs to bits, and which to nats? Do your two steps use the same?",
        ),
    ],
    variants=[perplexity_exp, perplexity_power_of_e, perplexity_through_bits, perplexity_loop],
)


# Questions ---------------------------------------------------------------------------------------

CHERRY_BITS = Question(
    "cherry_bits",
    answer=-math.log2(0.2),
    tolerance=(1e-3, 0.0),
    misconceptions=[
        Misconception(
            "these are still nats",
            -math.log(0.2),
            "Which base has the logarithm in nats, and which in bits?",
        ),
        Misconception(
            "nats are multiplied by ln 2, not divided by it",
            -math.log(0.2) * math.log(2),
            "One bit is ln 2 = 0.69 nats, so less than a nat. Are there more bits, or fewer?",
        ),
        Misconception(
            "the logarithm has base 10",
            -math.log10(0.2),
            "A bit is one question with two answers. Which base is that?",
        ),
        Misconception(
            "the minus sign is missing",
            math.log2(0.2),
            "Can it take fewer than no questions to find out what came?",
        ),
    ],
)

ENTROPY_OF_TEXT = Question(
    "entropy_of_text",
    answer="c",
    choices=("a", "b", "c", "d"),
    misconceptions=[
        Misconception(
            "the best model's loss is taken for the entropy",
            "a",
            "The loss is the entropy plus a divergence. Do you know that the second is 0?",
        ),
        Misconception(
            "the entropy is taken for something above the loss",
            "b",
            "The loss is the entropy plus a divergence. Can a divergence be negative?",
        ),
        Misconception(
            "the difference of two losses is taken for the entropy",
            "d",
            "Both losses hold the same entropy. What is left of it in their difference?",
        ),
    ],
)

UNTRAINED_LOSS = Question(
    "untrained_loss",
    answer=math.log(49_152),
    tolerance=(1e-3, 0.0),
    misconceptions=[
        Misconception(
            "the logarithm has base 2: these are bits, not nats",
            math.log2(49_152),
            "Which logarithm gives nats?",
        ),
        Misconception(
            "the logarithm has base 10",
            math.log10(49_152),
            "Which logarithm gives nats?",
        ),
        Misconception(
            "this is the perplexity",
            49_152.0,
            "Between how many words does the model hesitate, and what is the ln of that number?",
        ),
        Misconception(
            "this is the probability of each token",
            1 / 49_152,
            "That is p. What is the loss of a target that was given this p?",
        ),
        Misconception(
            "the minus sign is counted twice",
            -math.log(49_152),
            "The target's probability is 1/V. Is -ln(1/V) above 0, or below?",
        ),
    ],
)

LOGITS_BYTES = Question(
    "logits_bytes",
    points=2,
    answer=8.0 * 2_048 * 49_152 * 4,
    tolerance=(0.0, 0.5),
    misconceptions=[
        Misconception(
            "the logits are counted, not their bytes",
            8.0 * 2_048 * 49_152,
            "How many bytes does one float32 take?",
        ),
        Misconception(
            "this is in bits",
            8.0 * 2_048 * 49_152 * 32,
            "A float32 has 32 bits. How many bytes are those?",
        ),
        Misconception(
            "one logit is counted for each position, not one for each token of the vocabulary",
            8.0 * 2_048 * 4,
            "How many scores does the model give before it knows which token comes?",
        ),
        Misconception(
            "only one text is counted",
            2_048.0 * 49_152 * 4,
            "How many texts are in the batch?",
        ),
        Misconception(
            "only one position of each text is counted",
            8.0 * 49_152 * 4,
            "In training, is the next token predicted at the end of a text only?",
        ),
        Misconception(
            "two bytes are counted for each logit, as in bfloat16",
            8.0 * 2_048 * 49_152 * 2,
            "A float32 has 32 bits. How many bytes are those?",
        ),
    ],
)
