"""Chapter 06: keeping the numbers that flow through a deep network at one size."""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from autograder.check import Case, Check, Misconception, Question
from llmkit import norms as reference

# Wrong solutions and variants are written as a student would write them, each whole in itself,
# without llmkit: a class of synthetic students is made of their source.


def normal(rng: Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=rng).to(dtype)


def between(rng: Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=rng)


def by_hand() -> Tensor:
    """The chapter's row: mean 4, standard deviation 3, root mean square 5."""
    return torch.tensor([[9.0, 1.0, 3.0, 3.0]])


# root_mean_square --------------------------------------------------------------------------------


def size_cases(rng: Generator) -> list[Case]:
    return [
        Case(by_hand()[0]).titled("9, 1, 3, 3"),
        Case(normal(rng, 4, 7)).titled("four vectors"),
        Case(3 + normal(rng, 2, 5, 6)).titled("two texts of five tokens, off centre"),
        Case(normal(rng, 6, 3, dtype=torch.float64).T).titled("float64, transposed in memory"),
    ]


def size_length(x: Tensor) -> Tensor:
    return x.pow(2).sum(-1).sqrt()


def size_without_root(x: Tensor) -> Tensor:
    return x.pow(2).mean(-1)


def size_of_absolutes(x: Tensor) -> Tensor:
    return x.abs().mean(-1)


def size_of_mean(x: Tensor) -> Tensor:
    return x.mean(-1).pow(2).sqrt()


def size_around_mean(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)).pow(2).mean(-1).sqrt()


def size_of_everything(x: Tensor) -> Tensor:
    return x.pow(2).mean().sqrt()


def size_first_dimension(x: Tensor) -> Tensor:
    return x.pow(2).mean(0).sqrt()


def size_dimension_kept(x: Tensor) -> Tensor:
    return x.pow(2).mean(-1, keepdim=True).sqrt()


def size_by_norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1) / math.sqrt(x.shape[-1])


def size_einsum(x: Tensor) -> Tensor:
    return torch.einsum("...d,...d->...", x, x).div(x.shape[-1]).sqrt()


def size_loop(x: Tensor) -> Tensor:
    sizes = [
        math.sqrt(sum(v * v for v in row) / len(row)) for row in x.reshape(-1, x.shape[-1]).tolist()
    ]
    return torch.tensor(sizes, dtype=x.dtype).reshape(x.shape[:-1])


ROOT_MEAN_SQUARE = Check(
    reference=reference.root_mean_square,
    points=2,
    cases=size_cases,
    misconceptions=[
        Misconception(
            "the squares are summed, not averaged: this is the vector's length",
            size_length,
            "Write the four numbers twice, one after the other. Should their size change?",
        ),
        Misconception(
            "the root is missing: this is the mean square",
            size_without_root,
            "If every number is 3, what should their size be: 3 or 9?",
        ),
        Misconception(
            "the absolute values are averaged",
            size_of_absolutes,
            "(9 + 1 + 3 + 3) / 4 is 4. Which step makes the 9 count for more than that?",
        ),
        Misconception(
            "the mean is taken before the square",
            size_of_mean,
            "What is the size of (3, -3)? What is the mean of the two numbers?",
        ),
        Misconception(
            "the mean is subtracted first: this is the standard deviation",
            size_around_mean,
            "If every number is 3, what should their size be: 3 or 0?",
        ),
        Misconception(
            "all numbers of the tensor are averaged together",
            size_of_everything,
            "For x of shape (4, 7), how many vectors are there? How many sizes do you give?",
        ),
        Misconception(
            "the mean runs along the first dimension, not the last",
            size_first_dimension,
            "Which dimension counts the numbers of one vector, in any shape (..., D)?",
        ),
        Misconception(
            "the averaged dimension is kept, with size 1",
            size_dimension_kept,
            "The docstring promises the shape (...). What becomes of D?",
        ),
    ],
    variants=[size_by_norm, size_einsum, size_loop],
)


# layer_norm --------------------------------------------------------------------------------------


def layer_cases(rng: Generator) -> list[Case]:
    constant = torch.full((2, 4), 3.0) * torch.tensor([[1.0], [-2.0]])
    # one spread for every sample; its square, 0.49, is far from what float32 has near 500²
    spread = 0.7 * reference.layer_norm(normal(rng, 9, 6), torch.ones(6), torch.zeros(6))
    return [
        Case(by_hand(), torch.ones(4), torch.zeros(4)).titled("9, 1, 3, 3"),
        Case(normal(rng, 4, 6), between(rng, 0.5, 2, 6), normal(rng, 6)).titled(
            "four samples, with a weight and a bias"
        ),
        Case(normal(rng, 2, 3, 5), between(rng, 0.5, 2, 5), normal(rng, 5)).titled(
            "two texts of three tokens"
        ),
        Case(0.3 * normal(rng, 3, 7), between(rng, 0.5, 2, 7), normal(rng, 7), eps=0.25).titled(
            "a large eps"
        ),
        Case(constant, between(rng, 0.5, 2, 4), normal(rng, 4)).titled(
            "samples whose features are all equal"
        ),
        Case(500 + spread, between(rng, 0.5, 2, 6), normal(rng, 6)).titled(
            "features that all lie near 500"
        ),
        Case(
            normal(rng, 8, 3, dtype=torch.float64).T,
            between(rng, 0.5, 2, 8).double(),
            normal(rng, 8, dtype=torch.float64),
        ).titled("float64, transposed in memory"),
    ]


def layer_over_batch(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(0, keepdim=True)
    return weight * centred / (centred.pow(2).mean(0, keepdim=True) + eps).sqrt() + bias


def layer_over_everything(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean()
    return weight * centred / (centred.pow(2).mean() + eps).sqrt() + bias


def layer_unbiased(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return weight * centred / (x.var(-1, keepdim=True) + eps).sqrt() + bias


def layer_by_variance(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return weight * centred / (centred.pow(2).mean(-1, keepdim=True) + eps) + bias


def layer_not_centred(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    variance = x.var(-1, keepdim=True, correction=0)
    return weight * x / (variance + eps).sqrt() + bias


def layer_by_root_mean_square(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() + bias


def layer_eps_outside(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return weight * centred / (centred.pow(2).mean(-1, keepdim=True).sqrt() + eps) + bias


def layer_fixed_eps(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return weight * centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() + bias


def layer_without_eps(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return weight * centred / centred.pow(2).mean(-1, keepdim=True).sqrt() + bias


def layer_not_scaled(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def layer_bias_first(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return weight * (centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() + bias)


def layer_cancelling(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = (x.pow(2).mean(-1, keepdim=True) - mean.pow(2)).clamp_min(0)
    return weight * (x - mean) / (variance + eps).sqrt() + bias


def layer_built_in(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def layer_var_mean(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    return torch.addcmul(bias, (x - mean) * torch.rsqrt(variance + eps), weight)


def layer_einsum(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    width = x.shape[-1]
    centred = x - torch.einsum("...d->...", x).unsqueeze(-1) / width
    variance = torch.einsum("...d,...d->...", centred, centred) / width
    return torch.einsum("...d,...,d->...d", centred, (variance + eps) ** -0.5, weight) + bias


def layer_loop(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    rows = []
    for row in x.reshape(-1, x.shape[-1]):
        mean = sum(row) / len(row)
        variance = sum((v - mean) ** 2 for v in row) / len(row)
        rows.append((row - mean) / torch.sqrt(variance + eps) * weight + bias)
    return torch.stack(rows).reshape(x.shape)


LAYER_NORM = Check(
    reference=reference.layer_norm,
    points=4,
    cases=layer_cases,
    # near 500 the mean of float32 numbers of spread 0.7 is exact to about 1e-4
    tolerance=(1e-3, 6e-4),
    misconceptions=[
        Misconception(
            "the statistics run over the batch, not over the features",
            layer_over_batch,
            "Put one sample alone through your function. Should anything change for it?",
        ),
        Misconception(
            "one mean and one variance are taken of the whole tensor",
            layer_over_everything,
            "How many samples are there? How many means should you have?",
        ),
        Misconception(
            "the variance is the unbiased one, divided by D - 1",
            layer_unbiased,
            "What does torch.var divide by unless you say correction=0? And the formula?",
        ),
        Misconception(
            "it is divided by the variance, not by its root",
            layer_by_variance,
            "The variance of (9, 1, 3, 3) is 9. By what was 9 - 4 divided in the example?",
        ),
        Misconception(
            "the mean is not subtracted",
            layer_not_centred,
            "What is the mean of your result, before weight and bias? What should it be?",
        ),
        Misconception(
            "it is divided by the root mean square: this is RMSNorm with a bias",
            layer_by_root_mean_square,
            "Around which value does LayerNorm measure the spread: around 0 or the mean?",
        ),
        Misconception(
            "eps is added outside the root",
            layer_eps_outside,
            "Which two things stand under the root in the formula?",
        ),
        Misconception(
            "eps is always 1e-5: the argument is ignored",
            layer_fixed_eps,
            "What does your function do when it is called with eps=0.25?",
        ),
        Misconception(
            "eps is left out, so that equal features give 0/0",
            layer_without_eps,
            "What is the variance of (3, 3, 3, 3)? What do you divide by then?",
        ),
        Misconception(
            "weight and bias are not used",
            layer_not_scaled,
            "What does training change in this layer? Where does your function use it?",
        ),
        Misconception(
            "the bias is added before the weight multiplies",
            layer_bias_first,
            "If the whole row is normalized to 0, should the result be bias or weight · bias?",
        ),
        Misconception(
            "the variance is computed as mean(x²) - mean(x)², which cancels in float32",
            layer_cancelling,
            "Near 500 the squares are near 250,000. How many of float32's 7 digits are left?",
        ),
    ],
    variants=[layer_built_in, layer_var_mean, layer_einsum, layer_loop],
)


# running_statistics ------------------------------------------------------------------------------


def running_cases(rng: Generator) -> list[Case]:
    return [
        Case(torch.zeros(1), torch.ones(1), torch.tensor([[8.0], [12.0]])).titled(
            "one feature, two samples: 8 and 12"
        ),
        Case(normal(rng, 3), between(rng, 0.5, 2, 3), 2 + 3 * normal(rng, 5, 3)).titled(
            "five samples of three features"
        ),
        Case(
            normal(rng, 6), between(rng, 0.5, 2, 6), 1 - 2 * normal(rng, 4, 6), momentum=0.75
        ).titled("another momentum"),
        Case(
            normal(rng, 4, dtype=torch.float64),
            between(rng, 0.5, 2, 4).double(),
            (3 + normal(rng, 4, 7, dtype=torch.float64)).T,
            0.25,
        ).titled("float64, transposed in memory"),
    ]


def running_biased(
    running_mean: Tensor, running_variance: Tensor, x: Tensor, momentum: float = 0.1
) -> tuple[Tensor, Tensor]:
    mean, variance = x.mean(0), x.var(0, correction=0)
    return (
        (1 - momentum) * running_mean + momentum * mean,
        (1 - momentum) * running_variance + momentum * variance,
    )


def running_other_way_round(
    running_mean: Tensor, running_variance: Tensor, x: Tensor, momentum: float = 0.1
) -> tuple[Tensor, Tensor]:
    mean, variance = x.mean(0), x.var(0)
    return (
        momentum * running_mean + (1 - momentum) * mean,
        momentum * running_variance + (1 - momentum) * variance,
    )


def running_replaced(
    running_mean: Tensor, running_variance: Tensor, x: Tensor, momentum: float = 0.1
) -> tuple[Tensor, Tensor]:
    return x.mean(0), x.var(0)


def running_piling_up(
    running_mean: Tensor, running_variance: Tensor, x: Tensor, momentum: float = 0.1
) -> tuple[Tensor, Tensor]:
    return running_mean + momentum * x.mean(0), running_variance + momentum * x.var(0)


def running_per_sample(
    running_mean: Tensor, running_variance: Tensor, x: Tensor, momentum: float = 0.1
) -> tuple[Tensor, Tensor]:
    mean, variance = x.mean(-1), x.var(-1)
    return (
        (1 - momentum) * running_mean + momentum * mean,
        (1 - momentum) * running_variance + momentum * variance,
    )


def running_deviation(
    running_mean: Tensor, running_variance: Tensor, x: Tensor, momentum: float = 0.1
) -> tuple[Tensor, Tensor]:
    mean, deviation = x.mean(0), x.std(0)
    return (
        (1 - momentum) * running_mean + momentum * mean,
        (1 - momentum) * running_variance + momentum * deviation,
    )


def running_around_old_mean(
    running_mean: Tensor, running_variance: Tensor, x: Tensor, momentum: float = 0.1
) -> tuple[Tensor, Tensor]:
    variance = (x - running_mean).pow(2).sum(0) / (len(x) - 1)
    return (
        (1 - momentum) * running_mean + momentum * x.mean(0),
        (1 - momentum) * running_variance + momentum * variance,
    )


def running_in_place(
    running_mean: Tensor, running_variance: Tensor, x: Tensor, momentum: float = 0.1
) -> tuple[Tensor, Tensor]:
    running_mean.mul_(1 - momentum).add_(momentum * x.mean(0))
    running_variance.mul_(1 - momentum).add_(momentum * x.var(0))
    return running_mean, running_variance


def running_fixed_momentum(
    running_mean: Tensor, running_variance: Tensor, x: Tensor, momentum: float = 0.1
) -> tuple[Tensor, Tensor]:
    return 0.9 * running_mean + 0.1 * x.mean(0), 0.9 * running_variance + 0.1 * x.var(0)


def running_by_step(
    running_mean: Tensor, running_variance: Tensor, x: Tensor, momentum: float = 0.1
) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, dim=0)
    return (
        running_mean + momentum * (mean - running_mean),
        running_variance + momentum * (variance - running_variance),
    )


def running_built_in(
    running_mean: Tensor, running_variance: Tensor, x: Tensor, momentum: float = 0.1
) -> tuple[Tensor, Tensor]:
    mean, variance = running_mean.clone(), running_variance.clone()
    F.batch_norm(x, mean, variance, training=True, momentum=momentum)
    return mean, variance


def running_einsum(
    running_mean: Tensor, running_variance: Tensor, x: Tensor, momentum: float = 0.1
) -> tuple[Tensor, Tensor]:
    size = x.shape[0]
    mean = torch.einsum("bd->d", x) / size
    variance = torch.einsum("bd,bd->d", x - mean, x - mean) / (size - 1)
    return (
        torch.lerp(running_mean, mean, momentum),
        torch.lerp(running_variance, variance, momentum),
    )


def running_loop(
    running_mean: Tensor, running_variance: Tensor, x: Tensor, momentum: float = 0.1
) -> tuple[Tensor, Tensor]:
    means, variances = [], []
    for feature in range(x.shape[1]):
        column = x[:, feature].tolist()
        mean = sum(column) / len(column)
        variance = sum((value - mean) ** 2 for value in column) / (len(column) - 1)
        means.append((1 - momentum) * running_mean[feature].item() + momentum * mean)
        variances.append((1 - momentum) * running_variance[feature].item() + momentum * variance)
    return torch.tensor(means, dtype=x.dtype), torch.tensor(variances, dtype=x.dtype)


RUNNING_STATISTICS = Check(
    reference=reference.running_statistics,
    points=3,
    cases=running_cases,
    misconceptions=[
        Misconception(
            "the variance is the biased one, divided by B",
            running_biased,
            "The batch stands for all data. By what do you divide to estimate their variance?",
        ),
        Misconception(
            "the momentum is on the wrong side: the old value keeps only that share",
            running_other_way_round,
            "With momentum 0.1, mean 0 and a batch of mean 10: should the new mean be 1 or 9?",
        ),
        Misconception(
            "the old statistics are thrown away",
            running_replaced,
            "What is left of all earlier batches in your result?",
        ),
        Misconception(
            "the new share is added, but the old value is not reduced",
            running_piling_up,
            "If every batch has the mean 10, where does your running mean go after 1000 of them?",
        ),
        Misconception(
            "the statistics run over the features of a sample, not over the batch",
            running_per_sample,
            "One running mean belongs to one feature. Along which dimension of (B, D) is that?",
        ),
        Misconception(
            "the standard deviation is averaged, not the variance",
            running_deviation,
            "Which of the two does the argument hold: the variance, or its root?",
        ),
        Misconception(
            "the variance is measured around the running mean, not around the batch's",
            running_around_old_mean,
            "If all samples of a batch are equal, what is its variance? What do you get?",
        ),
        Misconception(
            "the caller's running statistics are overwritten",
            running_in_place,
            "Does a method whose name ends in _ make a new tensor?",
        ),
        Misconception(
            "the momentum is always 0.1: the argument is ignored",
            running_fixed_momentum,
            "What does your function do when it is called with momentum=0.75?",
        ),
    ],
    variants=[running_by_step, running_built_in, running_einsum, running_loop],
)


# batch_norm --------------------------------------------------------------------------------------


def batch_arguments(rng: Generator, samples: int, dim: int, dtype=torch.float32) -> list[Tensor]:
    x = 1 + 2 * normal(rng, samples, dim, dtype=dtype)
    weight, bias = between(rng, 0.5, 2, dim).to(dtype), normal(rng, dim, dtype=dtype)
    return [x, weight, bias, normal(rng, dim, dtype=dtype), between(rng, 0.5, 2, dim).to(dtype)]


def batch_cases(rng: Generator) -> list[Case]:
    double = batch_arguments(rng, 6, 3, torch.float64)
    double[0] = double[0].T.contiguous().T
    fine = batch_arguments(rng, 5, 4)
    fine[0] = 0.2 * fine[0]
    alone = batch_arguments(rng, 1, 4)
    return [
        Case(*batch_arguments(rng, 4, 3), training=True).titled("a batch in training"),
        Case(*batch_arguments(rng, 4, 3), training=False).titled("a batch in evaluation"),
        Case(*fine, True, 0.25, 0.5).titled("training with another momentum and a large eps"),
        Case(*fine, False, 0.25, 0.5).titled("evaluation with another momentum and a large eps"),
        Case(*double, True).titled("float64, transposed in memory"),
        Case(*alone, False).titled("a single sample in evaluation"),
        Case(*alone, True).titled("a single sample in training"),
    ]


def batch_always_batch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    if training and len(x) < 2:
        raise ValueError("one sample has no variance")
    mean, variance = x.mean(0), x.var(0, correction=0)
    if training:
        running_mean = torch.lerp(running_mean, mean, momentum)
        running_variance = torch.lerp(running_variance, x.var(0), momentum)
    y = weight * (x - mean) / (variance + eps).sqrt() + bias
    return y, running_mean, running_variance


def batch_always_running(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    if training and len(x) < 2:
        raise ValueError("one sample has no variance")
    y = weight * (x - running_mean) / (running_variance + eps).sqrt() + bias
    if training:
        running_mean = torch.lerp(running_mean, x.mean(0), momentum)
        running_variance = torch.lerp(running_variance, x.var(0), momentum)
    return y, running_mean, running_variance


def batch_updated_first(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    if training and len(x) < 2:
        raise ValueError("one sample has no variance")
    if training:
        running_mean = torch.lerp(running_mean, x.mean(0), momentum)
        running_variance = torch.lerp(running_variance, x.var(0), momentum)
    y = weight * (x - running_mean) / (running_variance + eps).sqrt() + bias
    return y, running_mean, running_variance


def batch_moving_in_evaluation(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    if training and len(x) < 2:
        raise ValueError("one sample has no variance")
    mean, variance = running_mean, running_variance
    if training:
        mean, variance = x.mean(0), x.var(0, correction=0)
    y = weight * (x - mean) / (variance + eps).sqrt() + bias
    running_mean = torch.lerp(running_mean, x.mean(0), momentum)
    running_variance = torch.lerp(running_variance, x.var(0), momentum)
    return y, running_mean, running_variance


def batch_unbiased(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    if training and len(x) < 2:
        raise ValueError("one sample has no variance")
    mean, variance = running_mean, running_variance
    if training:
        mean, variance = x.mean(0), x.var(0)
        running_mean = torch.lerp(running_mean, mean, momentum)
        running_variance = torch.lerp(running_variance, variance, momentum)
    y = weight * (x - mean) / (variance + eps).sqrt() + bias
    return y, running_mean, running_variance


def batch_biased_running(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    if training and len(x) < 2:
        raise ValueError("one sample has no variance")
    mean, variance = running_mean, running_variance
    if training:
        mean, variance = x.mean(0), x.var(0, correction=0)
        running_mean = torch.lerp(running_mean, mean, momentum)
        running_variance = torch.lerp(running_variance, variance, momentum)
    y = weight * (x - mean) / (variance + eps).sqrt() + bias
    return y, running_mean, running_variance


def batch_over_features(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    if training and len(x) < 2:
        raise ValueError("one sample has no variance")
    if training:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
        running_mean = torch.lerp(running_mean, x.mean(0), momentum)
        running_variance = torch.lerp(running_variance, x.var(0), momentum)
    else:
        mean, variance = running_mean, running_variance
    y = weight * (x - mean) / (variance + eps).sqrt() + bias
    return y, running_mean, running_variance


def batch_eps_outside(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    if training and len(x) < 2:
        raise ValueError("one sample has no variance")
    mean, variance = running_mean, running_variance
    if training:
        mean, variance = x.mean(0), x.var(0, correction=0)
        running_mean = torch.lerp(running_mean, mean, momentum)
        running_variance = torch.lerp(running_variance, x.var(0), momentum)
    y = weight * (x - mean) / (variance.sqrt() + eps) + bias
    return y, running_mean, running_variance


def batch_of_one_accepted(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    mean, variance = running_mean, running_variance
    if training:
        mean, variance = x.mean(0), (x - x.mean(0)).pow(2).mean(0)
        unbiased = (x - mean).pow(2).sum(0) / (len(x) - 1)
        running_mean = torch.lerp(running_mean, mean, momentum)
        running_variance = torch.lerp(running_variance, unbiased, momentum)
    y = weight * (x - mean) / (variance + eps).sqrt() + bias
    return y, running_mean, running_variance


def batch_of_one_always_refused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    if len(x) < 2:
        raise ValueError("one sample has no variance")
    mean, variance = running_mean, running_variance
    if training:
        mean, variance = x.mean(0), x.var(0, correction=0)
        running_mean = torch.lerp(running_mean, mean, momentum)
        running_variance = torch.lerp(running_variance, x.var(0), momentum)
    y = weight * (x - mean) / (variance + eps).sqrt() + bias
    return y, running_mean, running_variance


def batch_built_in(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    mean, variance = running_mean.clone(), running_variance.clone()
    return F.batch_norm(x, mean, variance, weight, bias, training, momentum, eps), mean, variance


def batch_two_branches(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    if not training:
        y = (x - running_mean) / torch.sqrt(running_variance + eps)
        return y * weight + bias, running_mean, running_variance
    size = x.shape[0]
    if size == 1:
        raise ValueError("cannot train on a batch of one sample")
    mean = x.sum(0) / size
    biased = ((x - mean) ** 2).sum(0) / size
    y = (x - mean) * torch.rsqrt(biased + eps)
    new_mean = (1 - momentum) * running_mean + momentum * mean
    new_variance = (1 - momentum) * running_variance + momentum * biased * size / (size - 1)
    return y * weight + bias, new_mean, new_variance


def batch_loop(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    if training and x.shape[0] == 1:
        raise ValueError("cannot train on a batch of one sample")
    columns, means, variances = [], [], []
    for d, column in enumerate(x.unbind(1)):
        mean, variance = running_mean[d], running_variance[d]
        means.append(mean)
        variances.append(variance)
        if training:
            mean, variance = column.mean(), column.var(unbiased=False)
            means[d] = means[d] + momentum * (mean - means[d])
            variances[d] = variances[d] + momentum * (column.var() - variances[d])
        columns.append((column - mean) / (variance + eps) ** 0.5 * weight[d] + bias[d])
    return torch.stack(columns, 1), torch.stack(means), torch.stack(variances)


BATCH_NORM = Check(
    reference=reference.batch_norm,
    points=5,
    cases=batch_cases,
    misconceptions=[
        Misconception(
            "the batch's own statistics are used in evaluation too",
            batch_always_batch,
            "In evaluation, may one sample's output depend on the others in its batch?",
        ),
        Misconception(
            "the running statistics are used in training too",
            batch_always_running,
            "In training, what are the mean and variance of each feature of your result?",
        ),
        Misconception(
            "the running statistics are moved first, and normalize the training batch",
            batch_updated_first,
            "In training, which statistics normalize: this batch's, or the averaged ones?",
        ),
        Misconception(
            "the running statistics move in evaluation too",
            batch_moving_in_evaluation,
            "If you test a model twice on the same data, should the second result differ?",
        ),
        Misconception(
            "the training batch is normalized by the unbiased variance",
            batch_unbiased,
            "Two variances are at work. Which is for this batch, and which for all data?",
        ),
        Misconception(
            "the running variance is moved towards the biased one",
            batch_biased_running,
            "Two variances are at work. Which is for this batch, and which for all data?",
        ),
        Misconception(
            "in training the statistics run over the features of each sample",
            batch_over_features,
            "That is layer normalization. Along which dimension of (B, D) do the samples stand?",
        ),
        Misconception(
            "eps is added outside the root",
            batch_eps_outside,
            "Which two things stand under the root in the formula?",
        ),
        Misconception(
            "a training batch of one sample is not refused",
            batch_of_one_accepted,
            "What is the variance of one sample, and what is left of it after its mean is taken?",
        ),
        Misconception(
            "a single sample is refused in evaluation too",
            batch_of_one_always_refused,
            "Which statistics are used in evaluation? Does their variance need a second sample?",
        ),
    ],
    variants=[batch_built_in, batch_two_branches, batch_loop],
)


# rms_norm ----------------------------------------------------------------------------------------


def rms_cases(rng: Generator) -> list[Case]:
    loud = between(rng, 300, 900, 3, 6) * torch.where(normal(rng, 3, 6) > 0, 1.0, -1.0)
    return [
        Case(by_hand(), torch.ones(4)).titled("9, 1, 3, 3"),
        Case(1 + normal(rng, 2, 3, 5), between(rng, 0.5, 2, 5)).titled("two texts of three tokens"),
        Case(0.3 * normal(rng, 4, 7), between(rng, 0.5, 2, 7), eps=0.25).titled("a large eps"),
        Case(torch.zeros(2, 4), between(rng, 0.5, 2, 4)).titled("vectors of zeros"),
        Case(loud.half(), between(rng, 0.5, 2, 6).half()).titled(
            "float16 numbers whose squares overflow"
        ),
        Case(normal(rng, 8, 3).bfloat16().T, between(rng, 0.5, 2, 8).bfloat16()).titled(
            "bfloat16, transposed in memory"
        ),
    ]


def rms_centred(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    wide = x.float() - x.float().mean(-1, keepdim=True)
    return weight * (wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt()).to(x.dtype)


def rms_eps_outside(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    wide = x.float()
    return weight * (wide / (wide.pow(2).mean(-1, keepdim=True).sqrt() + eps)).to(x.dtype)


def rms_fixed_eps(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    wide = x.float()
    return weight * (wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()).to(x.dtype)


def rms_without_eps(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    wide = x.float()
    return weight * (wide / wide.pow(2).mean(-1, keepdim=True).sqrt()).to(x.dtype)


def rms_by_length(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    wide = x.float()
    return weight * (wide / (wide.pow(2).sum(-1, keepdim=True) + eps).sqrt()).to(x.dtype)


def rms_without_root(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    wide = x.float()
    return weight * (wide / (wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def rms_in_given_dtype(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return weight * (x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt())


def rms_left_wide(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    wide = x.float()
    return weight * (wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt())


def rms_of_everything(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    wide = x.float()
    return weight * (wide / (wide.pow(2).mean() + eps).sqrt()).to(x.dtype)


def rms_without_weight(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    wide = x.float()
    return (wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt()).to(x.dtype)


def rms_weight_plus_one(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    wide = x.float()
    return (1 + weight) * (wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt()).to(x.dtype)


def rms_built_in(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return F.rms_norm(x.float(), (x.shape[-1],), weight.float(), eps).to(x.dtype)


def rms_cast_last(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    wide = x.double()
    scale = torch.rsqrt(torch.mean(wide * wide, dim=-1, keepdim=True) + eps)
    return (wide * scale * weight.double()).type_as(x)


def rms_by_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    wide = x.to(torch.float32)
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    size = torch.sqrt(length**2 / x.shape[-1] + eps)
    return (wide / size).to(x.dtype) * weight


def rms_loop(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    rows = []
    for row in x.reshape(-1, x.shape[-1]).tolist():
        size = math.sqrt(sum(value**2 for value in row) / len(row) + eps)
        rows.append([value / size for value in row])
    return torch.tensor(rows, dtype=x.dtype).reshape(x.shape) * weight


RMS_NORM = Check(
    reference=reference.rms_norm,
    points=4,
    cases=rms_cases,
    misconceptions=[
        Misconception(
            "the mean is subtracted: this is LayerNorm without a bias",
            rms_centred,
            "Is (9, 1, 3, 3) divided by 5 the example's result? Where does yours differ?",
        ),
        Misconception(
            "eps is added outside the root",
            rms_eps_outside,
            "Which two things stand under the root in the formula?",
        ),
        Misconception(
            "eps is always 1e-5: the argument is ignored",
            rms_fixed_eps,
            "What does your function do when it is called with eps=0.25?",
        ),
        Misconception(
            "eps is left out, so that a vector of zeros gives 0/0",
            rms_without_eps,
            "What is the root mean square of zeros? What do you divide by then?",
        ),
        Misconception(
            "the squares are summed, not averaged: it is divided by the vector's length",
            rms_by_length,
            "How large are the numbers of your result when D is 4, and when D is 4000?",
        ),
        Misconception(
            "the root is missing: it is divided by the mean square",
            rms_without_root,
            "The mean square of (9, 1, 3, 3) is 25. By what was 9 divided in the example?",
        ),
        Misconception(
            "the squares are computed in the dtype of x, where they overflow",
            rms_in_given_dtype,
            "The largest float16 is 65,504. What is the square of 300 there?",
        ),
        Misconception(
            "the result is float32, whatever the dtype of x",
            rms_left_wide,
            "What dtype does the next layer expect? Which step gives it back?",
        ),
        Misconception(
            "one root mean square is taken of the whole tensor",
            rms_of_everything,
            "Would the size of one token then change what another token gets?",
        ),
        Misconception(
            "the weight is not used",
            rms_without_weight,
            "What does training change in this layer? Where does your function use it?",
        ),
        Misconception(
            "one is added to the weight, as in Gemma's files",
            rms_weight_plus_one,
            "With a weight of ones, should the result be normalized, or twice that?",
        ),
    ],
    variants=[rms_built_in, rms_cast_last, rms_by_norm, rms_loop],
)


# layer_norm_backward -----------------------------------------------------------------------------


def backward_cases(rng: Generator) -> list[Case]:
    return [
        Case(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), by_hand(), torch.ones(4)).titled(
            "9, 1, 3, 3, and a loss that grows with the first output"
        ),
        Case(normal(rng, 5, 4), 1 + 2 * normal(rng, 5, 4), between(rng, 0.5, 2, 4)).titled(
            "five samples, with a weight"
        ),
        Case(normal(rng, 2, 3, 6), normal(rng, 2, 3, 6), between(rng, 0.5, 2, 6)).titled(
            "two texts of three tokens"
        ),
        Case(normal(rng, 3, 5), 0.3 * normal(rng, 3, 5), between(rng, 0.5, 2, 5), eps=0.25).titled(
            "a large eps"
        ),
        Case(
            normal(rng, 7, 4, dtype=torch.float64).T,
            normal(rng, 7, 4, dtype=torch.float64).T,
            between(rng, 0.5, 2, 7).double(),
        ).titled("float64, transposed in memory"),
    ]


def backward_constants(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    centred = x - x.mean(-1, keepdim=True)
    sigma = (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    n, g = centred / sigma, grad * weight
    rows = (grad * n).flatten(0, -2).sum(0), grad.flatten(0, -2).sum(0)
    return g / sigma, *rows


def backward_without_spread(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    centred = x - x.mean(-1, keepdim=True)
    sigma = (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    n, g = centred / sigma, grad * weight
    rows = (grad * n).flatten(0, -2).sum(0), grad.flatten(0, -2).sum(0)
    return (g - g.mean(-1, keepdim=True)) / sigma, *rows


def backward_without_mean(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    centred = x - x.mean(-1, keepdim=True)
    sigma = (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    n, g = centred / sigma, grad * weight
    rows = (grad * n).flatten(0, -2).sum(0), grad.flatten(0, -2).sum(0)
    return (g - n * (g * n).mean(-1, keepdim=True)) / sigma, *rows


def backward_without_weight(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    centred = x - x.mean(-1, keepdim=True)
    sigma = (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    n, g = centred / sigma, grad
    rows = (grad * n).flatten(0, -2).sum(0), grad.flatten(0, -2).sum(0)
    return (g - g.mean(-1, keepdim=True) - n * (g * n).mean(-1, keepdim=True)) / sigma, *rows


def backward_not_divided(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    centred = x - x.mean(-1, keepdim=True)
    sigma = (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    n, g = centred / sigma, grad * weight
    rows = (grad * n).flatten(0, -2).sum(0), grad.flatten(0, -2).sum(0)
    return g - g.mean(-1, keepdim=True) - n * (g * n).mean(-1, keepdim=True), *rows


def backward_sums(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    centred = x - x.mean(-1, keepdim=True)
    sigma = (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    n, g = centred / sigma, grad * weight
    rows = (grad * n).flatten(0, -2).sum(0), grad.flatten(0, -2).sum(0)
    return (g - g.sum(-1, keepdim=True) - n * (g * n).sum(-1, keepdim=True)) / sigma, *rows


def backward_weight_from_x(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    centred = x - x.mean(-1, keepdim=True)
    sigma = (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    n, g = centred / sigma, grad * weight
    rows = (grad * x).flatten(0, -2).sum(0), grad.flatten(0, -2).sum(0)
    return (g - g.mean(-1, keepdim=True) - n * (g * n).mean(-1, keepdim=True)) / sigma, *rows


def backward_not_summed(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    centred = x - x.mean(-1, keepdim=True)
    sigma = (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    n, g = centred / sigma, grad * weight
    grad_x = (g - g.mean(-1, keepdim=True) - n * (g * n).mean(-1, keepdim=True)) / sigma
    return grad_x, grad * n, grad


def backward_averaged(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    centred = x - x.mean(-1, keepdim=True)
    sigma = (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    n, g = centred / sigma, grad * weight
    rows = (grad * n).flatten(0, -2).mean(0), grad.flatten(0, -2).mean(0)
    return (g - g.mean(-1, keepdim=True) - n * (g * n).mean(-1, keepdim=True)) / sigma, *rows


def backward_summed_over_batch_only(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    centred = x - x.mean(-1, keepdim=True)
    sigma = (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    n, g = centred / sigma, grad * weight
    grad_x = (g - g.mean(-1, keepdim=True) - n * (g * n).mean(-1, keepdim=True)) / sigma
    return grad_x, (grad * n).sum(0), grad.sum(0)


def backward_without_eps(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    centred = x - x.mean(-1, keepdim=True)
    sigma = centred.pow(2).mean(-1, keepdim=True).sqrt()
    n, g = centred / sigma, grad * weight
    rows = (grad * n).flatten(0, -2).sum(0), grad.flatten(0, -2).sum(0)
    return (g - g.mean(-1, keepdim=True) - n * (g * n).mean(-1, keepdim=True)) / sigma, *rows


def backward_by_autograd(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, torch.zeros_like(weight))]
    y = F.layer_norm(leaves[0], (x.shape[-1],), leaves[1], leaves[2], eps)
    return torch.autograd.grad(y, leaves, grad)


def backward_in_steps(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    width = x.shape[-1]
    centred = x - x.mean(-1, keepdim=True)
    sigma = (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    g = grad * weight
    through_sigma = -(g * centred).sum(-1, keepdim=True) / sigma**2
    by_centred = g / sigma + through_sigma * centred / (width * sigma)
    by_x = by_centred - by_centred.sum(-1, keepdim=True) / width
    before = tuple(range(x.ndim - 1))
    return by_x, (grad * centred / sigma).sum(before), grad.sum(before)


def backward_by_matrix(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    width = x.shape[-1]
    rows, grads = x.reshape(-1, width), grad.reshape(-1, width)
    by_x, normed = [], []
    for row, g in zip(rows, grads * weight, strict=True):
        sigma = (row.var(correction=0) + eps).sqrt()
        n = (row - row.mean()) / sigma
        change = torch.eye(width, dtype=x.dtype) - 1 / width - torch.outer(n, n) / width
        by_x.append(change @ g / sigma)
        normed.append(n)
    by_weight = torch.einsum("nd,nd->d", grads, torch.stack(normed))
    return torch.stack(by_x).reshape(x.shape), by_weight, torch.einsum("nd->d", grads)


LAYER_NORM_BACKWARD = Check(
    reference=reference.layer_norm_backward,
    points=6,
    cases=backward_cases,
    tolerance=(1e-4, 3e-5),  # a difference of numbers that may cancel
    misconceptions=[
        Misconception(
            "mean and σ are taken for constants that do not depend on x",
            backward_constants,
            "If the 9 grows a little, what happens to the mean, to σ, and so to the others?",
        ),
        Misconception(
            "the part that comes through σ is missing",
            backward_without_spread,
            "Stretch the row by a factor: the output stays. Does your gradient say so?",
        ),
        Misconception(
            "the part that comes through the mean is missing",
            backward_without_mean,
            "Add the same number to all features: the output stays. So what is the gradient's sum?",
        ),
        Misconception(
            "the weight is not on the way back to x",
            backward_without_weight,
            "y = weight · n + bias. By how much does y grow when n grows by 1?",
        ),
        Misconception(
            "the gradient of x is not divided by σ",
            backward_not_divided,
            "If all x are ten times as large, how much does a step of 1 still change n?",
        ),
        Misconception(
            "sums stand where the formula has means",
            backward_sums,
            "The mean of a row feels each feature by 1/D. Where is that D in your formula?",
        ),
        Misconception(
            "the weight's gradient is made of x, not of the normalized x",
            backward_weight_from_x,
            "What does the weight multiply in the forward pass: x, or n?",
        ),
        Misconception(
            "the gradients of weight and bias are not summed over the rows",
            backward_not_summed,
            "There is one weight for a feature, used in every row. What shape has its gradient?",
        ),
        Misconception(
            "the gradients of weight and bias are averaged over the rows",
            backward_averaged,
            "A weight changes every row's outputs. Do these changes of the loss add up?",
        ),
        Misconception(
            "the gradients of weight and bias are summed over the first dimension only",
            backward_summed_over_batch_only,
            "For x of shape (2, 3, 6), how many rows use the weight: 2 or 2 · 3?",
        ),
        Misconception(
            "eps is left out",
            backward_without_eps,
            "What is σ here: the root of the variance, or of the variance plus eps?",
        ),
    ],
    variants=[backward_by_autograd, backward_in_steps, backward_by_matrix],
)


# PreNormBlock ------------------------------------------------------------------------------------


def block_probe(block_class, dim, numbers, **options):
    """What a block of this class does to x, and the gradients of the sum of its outputs.

    numbers: x, the norm's weight, the weight of a linear sublayer.
    """
    x, norm_weight, sublayer_weight = numbers
    sublayer = nn.Linear(dim, dim, bias=False).to(x.dtype)
    block = block_class(dim, sublayer, **options).to(x.dtype)
    fresh = block.norm.weight.detach().clone()
    names = sorted(name for name, _ in block.named_parameters())
    with torch.no_grad():
        block.norm.weight.copy_(norm_weight)
        sublayer.weight.copy_(sublayer_weight)
        y = block(x)
    leaf = x.clone().requires_grad_()
    block(leaf).sum().backward()
    return y, leaf.grad, block.norm.weight.grad, sublayer.weight.grad, fresh, names


def block_cases(rng: Generator) -> list[Case]:
    def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        dim = shape[-1]
        drawn = 1 + 2 * normal(rng, *shape), between(rng, 0.5, 2, dim), normal(rng, dim, dim)
        return [tensor.to(dtype) for tensor in drawn]

    small = numbers(4, 6)
    small[0] = 0.3 * small[0]
    return [
        Case(5, numbers(3, 5)).titled("three vectors"),
        Case(4, numbers(2, 3, 4)).titled("two texts of three tokens"),
        Case(6, small, eps=0.25).titled("a large eps"),
    ]


class BlockPostNorm(nn.Module):
    def __init__(self, dim: int, sublayer: nn.Module, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=eps)
        self.sublayer = sublayer

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.sublayer(x))


class BlockWithoutResidual(nn.Module):
    def __init__(self, dim: int, sublayer: nn.Module, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=eps)
        self.sublayer = sublayer

    def forward(self, x: Tensor) -> Tensor:
        return self.sublayer(self.norm(x))


class BlockNormalizedStream(nn.Module):
    def __init__(self, dim: int, sublayer: nn.Module, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=eps)
        self.sublayer = sublayer

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return x + self.sublayer(x)


class BlockNormAfterSublayer(nn.Module):
    def __init__(self, dim: int, sublayer: nn.Module, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=eps)
        self.sublayer = sublayer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.sublayer(x))


class BlockNormUnused(nn.Module):
    def __init__(self, dim: int, sublayer: nn.Module, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=eps)
        self.sublayer = sublayer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sublayer(x)


class BlockOwnEps(nn.Module):
    def __init__(self, dim: int, sublayer: nn.Module, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.sublayer = sublayer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sublayer(self.norm(x))


class BlockLayerNorm(nn.Module):
    def __init__(self, dim: int, sublayer: nn.Module, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.sublayer = sublayer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sublayer(self.norm(x))


class BlockInPlace(nn.Module):
    def __init__(self, dim: int, sublayer: nn.Module, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=eps)
        self.sublayer = sublayer

    def forward(self, x: Tensor) -> Tensor:
        x += self.sublayer(self.norm(x))
        return x


class BlockUnregistered(nn.Module):
    def __init__(self, dim: int, sublayer: nn.Module, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=eps)
        self.sublayer = [sublayer]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sublayer[0](self.norm(x))


class BlockDetached(nn.Module):
    def __init__(self, dim: int, sublayer: nn.Module, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=eps)
        self.sublayer = sublayer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sublayer(self.norm(x.detach()))


class BlockBuiltIn(nn.Module):
    def __init__(self, dim: int, sublayer: nn.Module, eps: float = 1e-5):
        super().__init__()
        self.norm, self.sublayer = nn.RMSNorm(dim, eps), sublayer

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.sublayer(self.norm(x)))


class BlockSequential(nn.Module):
    def __init__(self, dim: int, sublayer: nn.Module, eps: float = 1e-5):
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=eps)
        self.sublayer = sublayer

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for step in (self.norm, self.sublayer):
            out = step(out)
        return out + x


class OwnNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


class BlockOwnNorm(nn.Module):
    def __init__(self, dim: int, sublayer: nn.Module, eps: float = 1e-5):
        super().__init__()
        self.add_module("norm", OwnNorm(dim, eps))
        self.add_module("sublayer", sublayer)

    def forward(self, x: Tensor) -> Tensor:
        residual = x.clone()
        residual += self.sublayer(self.norm(x))
        return residual


PRE_NORM_BLOCK = Check(
    reference=reference.PreNormBlock,
    points=4,
    cases=block_cases,
    probe=block_probe,
    misconceptions=[
        Misconception(
            "the norm stands after the sum: this is post-norm",
            BlockPostNorm,
            "Should x itself reach the output unchanged? Does anything in your block change it?",
        ),
        Misconception(
            "there is no residual connection: x is not added back",
            BlockWithoutResidual,
            "If the sublayer gave zeros, what should come out of the block?",
        ),
        Misconception(
            "the normalized x is added back, not x",
            BlockNormalizedStream,
            "If the sublayer gave zeros, what should come out of the block: x, or norm(x)?",
        ),
        Misconception(
            "the norm stands behind the sublayer, not before it",
            BlockNormAfterSublayer,
            "Which of the two reads the stream: the norm, or the sublayer?",
        ),
        Misconception(
            "the norm is made, but not used",
            BlockNormUnused,
            "If x were ten times as large, would the sublayer notice? Should it?",
        ),
        Misconception(
            "eps is not passed on to the norm",
            BlockOwnEps,
            "What does your block do when it is made with eps=0.25?",
        ),
        Misconception(
            "the norm is a LayerNorm, not an RMSNorm",
            BlockLayerNorm,
            "Which parameters has your block? Does the norm of Llama have a bias?",
        ),
        Misconception(
            "the caller's x is overwritten",
            BlockInPlace,
            "Does x += … make a new tensor, or does it write into the caller's?",
        ),
        Misconception(
            "the sublayer hides in a list: PyTorch does not find its parameters",
            BlockUnregistered,
            "Print the names of block.named_parameters(). Is the sublayer among them?",
        ),
        Misconception(
            "the gradient does not go back through the norm",
            BlockDetached,
            "Two ways lead from x to the output. Which of them does detach() cut?",
        ),
    ],
    variants=[BlockBuiltIn, BlockSequential, BlockOwnNorm],
)


# fold_norm_weight --------------------------------------------------------------------------------


def fold_cases(rng: Generator) -> list[Case]:
    return [
        Case(torch.tensor([2.0, 10.0]), torch.tensor([[1.0, 1.0], [0.0, 3.0], [5.0, 0.5]])).titled(
            "three rows, two columns"
        ),
        Case(between(rng, 0.5, 2, 4), normal(rng, 7, 4)).titled("a wide projection"),
        Case(-between(rng, 0.5, 2, 6), normal(rng, 3, 6)).titled("negative weights"),
        Case(between(rng, 0.5, 2, 5), normal(rng, 8, 5).bfloat16()).titled(
            "a projection in bfloat16, a norm in float32"
        ),
        Case(between(rng, 0.5, 2, 6).double(), normal(rng, 6, 4, dtype=torch.float64).T).titled(
            "float64, transposed in memory"
        ),
    ]


def fold_rows(norm_weight: Tensor, projection: Tensor) -> Tensor:
    return (norm_weight[:, None] * projection).to(projection.dtype)


def fold_divided(norm_weight: Tensor, projection: Tensor) -> Tensor:
    return (projection / norm_weight).to(projection.dtype)


def fold_transposed(norm_weight: Tensor, projection: Tensor) -> Tensor:
    return (projection.T * norm_weight[:, None]).to(projection.dtype)


def fold_applied(norm_weight: Tensor, projection: Tensor) -> Tensor:
    return (projection.to(norm_weight.dtype) @ norm_weight).to(projection.dtype)


def fold_squared(norm_weight: Tensor, projection: Tensor) -> Tensor:
    return (projection * norm_weight.pow(2)).to(projection.dtype)


def fold_added(norm_weight: Tensor, projection: Tensor) -> Tensor:
    return (projection + norm_weight).to(projection.dtype)


def fold_promoted(norm_weight: Tensor, projection: Tensor) -> Tensor:
    return projection * norm_weight


def fold_in_place(norm_weight: Tensor, projection: Tensor) -> Tensor:
    projection *= norm_weight
    return projection


def fold_einsum(norm_weight: Tensor, projection: Tensor) -> Tensor:
    scaled = torch.einsum("fd,d->fd", projection.double(), norm_weight.double())
    return scaled.to(projection.dtype)


def fold_diagonal(norm_weight: Tensor, projection: Tensor) -> Tensor:
    return (projection.to(norm_weight.dtype) @ torch.diag(norm_weight)).type_as(projection)


def fold_loop(norm_weight: Tensor, projection: Tensor) -> Tensor:
    folded = projection.clone()
    for d, weight in enumerate(norm_weight.tolist()):
        folded[:, d] *= weight
    return folded


def fold_by_columns(norm_weight: Tensor, projection: Tensor) -> Tensor:
    columns = [column * w for column, w in zip(projection.unbind(1), norm_weight, strict=True)]
    return torch.stack(columns, dim=1).to(projection.dtype)


FOLD_NORM_WEIGHT = Check(
    reference=reference.fold_norm_weight,
    points=3,
    cases=fold_cases,
    misconceptions=[
        Misconception(
            "the rows are scaled, not the columns",
            fold_rows,
            "The norm's weight belongs to input features. Does a row or a column of W read one?",
        ),
        Misconception(
            "the projection is divided by the weight",
            fold_divided,
            "The norm will no longer multiply by its weight. What must W do in its place?",
        ),
        Misconception(
            "the result is transposed",
            fold_transposed,
            "Which shape must the new projection have to stand where the old one stood?",
        ),
        Misconception(
            "the products are summed: this is W applied to the weight",
            fold_applied,
            "Is the result a matrix that still has to meet n, or one vector?",
        ),
        Misconception(
            "the weight is multiplied in twice",
            fold_squared,
            "W (n · weight): how often does the weight of a feature stand in each product?",
        ),
        Misconception(
            "the weight is added to the projection",
            fold_added,
            "Put in a weight of ones. Should the projection change?",
        ),
        Misconception(
            "the result does not have the projection's dtype",
            fold_promoted,
            "What dtype has a bfloat16 tensor times a float32 tensor? What was the projection's?",
        ),
        Misconception(
            "the caller's projection is overwritten",
            fold_in_place,
            "Does a *= b make a new tensor, or does it write into a?",
        ),
    ],
    variants=[fold_einsum, fold_diagonal, fold_loop, fold_by_columns],
)


# norm_flops --------------------------------------------------------------------------------------


def flops_cases(rng: Generator) -> list[Case]:
    positions, dim = (int(torch.randint(20, 400, (), generator=rng)) for _ in range(2))
    return [
        Case(1, 4).titled("one token of four features"),
        Case(1, 4, "layer").titled("one token of four features, LayerNorm"),
        Case(positions, dim).titled("many tokens"),
        Case(positions, 3 * dim, kind="layer").titled("many tokens, LayerNorm"),
        Case(positions, dim, kind="batch").titled("a kind that is not known"),
    ]


def flops_one_position(positions: int, dim: int, kind: str = "rms") -> int:
    if kind not in ("rms", "layer"):
        raise ValueError(f"unknown kind {kind}")
    return 4 * dim + 3 if kind == "rms" else 7 * dim + 3


def flops_full_sum(positions: int, dim: int, kind: str = "rms") -> int:
    if kind not in ("rms", "layer"):
        raise ValueError(f"unknown kind {kind}")
    return positions * (4 * dim + 4 if kind == "rms" else 7 * dim + 5)


def flops_without_sum(positions: int, dim: int, kind: str = "rms") -> int:
    if kind not in ("rms", "layer"):
        raise ValueError(f"unknown kind {kind}")
    return positions * (3 * dim + 4 if kind == "rms" else 5 * dim + 5)


def flops_without_weight(positions: int, dim: int, kind: str = "rms") -> int:
    if kind not in ("rms", "layer"):
        raise ValueError(f"unknown kind {kind}")
    return positions * (3 * dim + 3 if kind == "rms" else 6 * dim + 3)


def flops_without_scalars(positions: int, dim: int, kind: str = "rms") -> int:
    if kind not in ("rms", "layer"):
        raise ValueError(f"unknown kind {kind}")
    return positions * (4 * dim - 1 if kind == "rms" else 7 * dim - 2)


def flops_layer_without_mean(positions: int, dim: int, kind: str = "rms") -> int:
    if kind not in ("rms", "layer"):
        raise ValueError(f"unknown kind {kind}")
    return positions * (4 * dim + 3 if kind == "rms" else 5 * dim + 3)


def flops_layer_without_bias(positions: int, dim: int, kind: str = "rms") -> int:
    if kind not in ("rms", "layer"):
        raise ValueError(f"unknown kind {kind}")
    return positions * (4 * dim + 3 if kind == "rms" else 6 * dim + 3)


def flops_always_rms(positions: int, dim: int, kind: str = "rms") -> int:
    if kind not in ("rms", "layer"):
        raise ValueError(f"unknown kind {kind}")
    return positions * (4 * dim + 3)


def flops_any_kind(positions: int, dim: int, kind: str = "rms") -> int:
    return positions * (4 * dim + 3 if kind == "rms" else 7 * dim + 3)


def flops_closed_form(positions: int, dim: int, kind: str = "rms") -> int:
    per_feature = {"rms": 4, "layer": 7}
    if kind not in per_feature:
        raise ValueError(f"unknown kind {kind!r}")
    return positions * (per_feature[kind] * dim + 3)


def flops_by_step(positions: int, dim: int, kind: str = "rms") -> int:
    steps = {
        "squares": dim,
        "their sum": dim - 1,
        "mean": 1,
        "eps": 1,
        "root": 1,
        "reciprocal": 1,
        "scale": dim,
        "weight": dim,
    }
    if kind == "layer":
        steps |= {"sum": dim - 1, "mean of x": 1, "centring": dim, "bias": dim}
    elif kind != "rms":
        raise ValueError("kind must be rms or layer")
    return sum(steps.values()) * positions


def flops_counting(positions: int, dim: int, kind: str = "rms") -> int:
    if kind != "rms" and kind != "layer":
        raise ValueError("no such norm")
    count = 0
    for _ in range(positions):
        if kind == "layer":
            count += (dim - 1) + 1 + dim  # mean, subtraction
            count += dim  # bias
        count += dim + (dim - 1) + 1 + 1 + 1 + 1  # from the squares to one over the root
        count += dim + dim  # scaling, weight
    return count


NORM_FLOPS = Check(
    reference=reference.norm_flops,
    points=3,
    cases=flops_cases,
    misconceptions=[
        Misconception(
            "only one position is counted",
            flops_one_position,
            "How many vectors are normalized? Does each have a root of its own?",
        ),
        Misconception(
            "a sum of D numbers is counted as D additions",
            flops_full_sum,
            "How many plus signs stand in a + b + c + d?",
        ),
        Misconception(
            "the additions of the sums are not counted",
            flops_without_sum,
            "How many plus signs stand in a + b + c + d?",
        ),
        Misconception(
            "the products with the weight are not counted",
            flops_without_weight,
            "Each feature is multiplied twice after the root. By what?",
        ),
        Misconception(
            "the steps that are done once for a vector are not counted",
            flops_without_scalars,
            "What happens between the sum of the squares and the factor that scales?",
        ),
        Misconception(
            "LayerNorm's mean and its subtraction are not counted",
            flops_layer_without_mean,
            "Which steps does LayerNorm take before it squares anything?",
        ),
        Misconception(
            "LayerNorm's bias is not counted",
            flops_layer_without_bias,
            "Which step does LayerNorm take after the product with the weight?",
        ),
        Misconception(
            "LayerNorm is counted as RMSNorm",
            flops_always_rms,
            "What does your function do when it is called with kind='layer'?",
        ),
        Misconception(
            "an unknown kind is counted as LayerNorm",
            flops_any_kind,
            "What should a function do that is asked for a norm it does not know?",
        ),
    ],
    variants=[flops_closed_form, flops_by_step, flops_counting],
)


# Questions ---------------------------------------------------------------------------------------

SHIFTED_INPUT = Question(
    "shifted_input",
    answer="b",
    choices=("a", "b", "c", "d"),
    misconceptions=[
        Misconception(
            "the two norms are thought to answer a shift alike",
            "a",
            "Take (9, 1, 3, 3) and (109, 101, 103, 103). Divide each by its root mean square.",
        ),
        Misconception(
            "the norms are confused: RMSNorm is thought to remove the mean",
            "c",
            "Which of the two formulas subtracts something from x?",
        ),
        Misconception(
            "a shift is thought to change both outputs",
            "d",
            "Add 100 to every number of a row. What happens to each number minus the mean?",
        ),
    ],
)

RUNNING_AFTER_TWO = Question(
    "running_after_two",
    answer=1.9,
    tolerance=(0.0, 1e-3),
    misconceptions=[
        Misconception(
            "the momentum is on the wrong side",
            9.9,
            "With momentum 0.1, does the first batch move the mean from 0 to 1 or to 9?",
        ),
        Misconception(
            "the old value is not reduced in the second step",
            2.0,
            "The second step keeps 0.9 of the old mean. How much of the 1 is left?",
        ),
        Misconception(
            "only one batch is counted", 1.0, "How many batches have come? What did the second do?"
        ),
        Misconception(
            "the running mean is taken for the mean of all batches",
            10.0,
            "The running mean begins at 0. Can it be at 10 after two small steps?",
        ),
    ],
)

FUTURE_LEAK = Question(
    "future_leak",
    answer="c",
    choices=("a", "b", "c", "d"),
    misconceptions=[
        Misconception(
            "the norm over the features of a token is thought to see other tokens",
            "a",
            "LayerNorm of token 3 takes a mean of D numbers. Whose numbers are they?",
        ),
        Misconception(
            "RMSNorm is thought to see other tokens",
            "b",
            "RMSNorm of token 3 takes a mean of D squares. Whose numbers are they?",
        ),
        Misconception(
            "a causal mask is thought to protect everything",
            "d",
            "The mask acts inside attention. Does a mean over all tokens ask for a mask?",
        ),
    ],
)

NORM_PARAMETERS = Question(
    "norm_parameters",
    answer=61.0 * 576,
    tolerance=(0.0, 0.5),
    misconceptions=[
        Misconception(
            "one norm a layer is counted",
            31.0 * 576,
            "A layer has an attention and a feed-forward sublayer. Which of them has a norm?",
        ),
        Misconception(
            "the norm at the end is forgotten",
            60.0 * 576,
            "What reads the residual stream after the last layer?",
        ),
        Misconception(
            "a bias is counted for each weight",
            61.0 * 2 * 576,
            "Which of LayerNorm's two vectors does RMSNorm not have?",
        ),
        Misconception(
            "the norms are counted, not their parameters",
            61.0,
            "How many numbers does the weight of one norm hold?",
        ),
        Misconception(
            "the weight is taken for a matrix",
            61.0 * 576 * 576,
            "Does the norm's weight mix features, or scale each by itself?",
        ),
    ],
)
