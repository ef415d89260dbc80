"""Normalization: keep the numbers that flow through a deep network at one scale.

Llama normalizes with the root mean square alone, before each sublayer and once at the end.
"""

import torch
from torch import Tensor, nn


def root_mean_square(x: Tensor) -> Tensor:
    """How large the numbers of a vector are: sqrt(mean(x²)), over the last dimension.

    Shapes: (..., D) -> (...).
    """
    return x.pow(2).mean(-1).sqrt()


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Layer normalization (Ba et al., 2016): (x - mean) / sqrt(variance + eps) · weight + bias.

    Mean and (biased) variance run over the features of each position, in training and inference
    alike. Computed in float32 at least, whatever the input's dtype.

    Shapes: x (..., D), weight (D,), bias (D,) -> (..., D).
    """
    wide = _wide(x)
    centred = wide - wide.mean(-1, keepdim=True)
    normed = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normed.type_as(x) + bias


def layer_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a loss by the x, weight and bias of `layer_norm`, given `grad`, that by y.

    With n = (x - mean) / σ, σ = sqrt(variance + eps) and g = grad · weight:
    ∂x = (g - mean(g) - n · mean(g · n)) / σ. The means take out what x cannot change: shifting all
    its features moves no output, and neither (but for eps) does stretching them.

    Shapes: grad and x (..., D), weight (D,) -> (..., D), (D,), (D,).
    """
    centred = x - x.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps)
    normed = centred * scale
    g = grad * weight
    along = (g * normed).mean(-1, keepdim=True)
    grad_x = (g - g.mean(-1, keepdim=True) - normed * along) * scale
    rows, normed = grad.reshape(-1, len(weight)), normed.reshape(-1, len(weight))
    return grad_x, (rows * normed).sum(0), rows.sum(0)


def running_statistics(
    running_mean: Tensor, running_variance: Tensor, x: Tensor, momentum: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Running mean and variance of each feature, moved by `momentum` towards those of a batch.

    Of the variance it is the unbiased one, with B - 1 in the denominator: the batch stands for all
    data, and around its own mean it is spread too little.

    Shapes: (D,), (D,), x (B, D) with B of at least 2 -> (D,), (D,).
    """
    batch = _wide(x).detach()
    mean, variance = batch.mean(0), batch.var(0, correction=1)
    return running_mean.lerp(mean, momentum), running_variance.lerp(variance, momentum)


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch normalization (Ioffe & Szegedy, 2015), and the running statistics after it.

    In training each feature is normalized by its mean and (biased) variance over the batch, and the
    running statistics move by `momentum` towards this batch's: of the variance, the unbiased one.
    In inference the running statistics normalize, and stay; so samples no longer affect each other.

    Shapes: x (B, D), all else (D,) -> (B, D), (D,), (D,).
    Raises ValueError for a training batch of one sample: it has no variance.
    """
    if training and len(x) < 2:
        raise ValueError(f"batch_norm trains on batches of at least 2 samples, not {len(x)}.")
    wide = _wide(x)
    mean, variance = running_mean, running_variance
    if training:
        mean, variance = wide.mean(0), wide.var(0, correction=0)
        running_mean, running_variance = running_statistics(
            running_mean, running_variance, x, momentum
        )
    normed = (wide - mean) * torch.rsqrt(variance + eps)
    return weight * normed.type_as(x) + bias, running_mean, running_variance


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Root-mean-square normalization: x / sqrt(mean(x²) + eps) · weight, over the last dimension.

    Computed in float32 at least and cast back to x's dtype before the product with the weight.

    Shapes: x (..., D), weight (D,) -> (..., D).
    """
    wide = _wide(x)
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normed.type_as(x)


def fold_norm_weight(norm_weight: Tensor, projection: Tensor) -> Tensor:
    """The projection that does after `rms_norm` without a weight what `projection` does after one.

    y = W (n · weight) = (W · weight) n: each column of W takes the weight of the feature it reads.
    A weight thus costs nothing once training is over.

    Shapes: norm_weight (D,), projection (F, D) -> (F, D), in the projection's dtype.
    """
    return (projection * norm_weight).type_as(projection)


class RMSNorm(nn.Module):
    """Root-mean-square normalization (Zhang & Sennrich, 2019): Llama's norm.

    Unlike LayerNorm it subtracts no mean and adds no bias.

    Shapes: (..., D) -> (..., D).
    """

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class PreNormBlock(nn.Module):
    """x + sublayer(norm(x)): the residual stream is normalized where it is read, and nowhere else.

    A layer of Llama is two of these, around attention and around the feed-forward layer. Nothing
    stands between one sum and the next, so the gradient reaches every layer undiminished. (Post-
    norm, as in the first Transformer and BERT, is norm(x + sublayer(x)).)

    Shapes: (..., D) -> (..., D), as `sublayer` has them.
    """

    def __init__(self, dim: int, sublayer: nn.Module, eps: float = 1e-5):
        super().__init__()
        self.norm = RMSNorm(dim, eps)
        self.sublayer = sublayer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sublayer(self.norm(x))


def norm_flops(positions: int, dim: int, kind: str = "rms") -> int:
    """Floating-point operations of an "rms" or "layer" norm, each +, -, ·, /, √ counted as one.

    RMS, for each position: dim squares, dim - 1 additions, a division, eps, a root and a division,
    dim products with that and dim with the weight. Layer: the mean's dim and dim subtractions more,
    and the bias's dim additions.

    Raises ValueError for another kind.
    """
    if kind not in ("rms", "layer"):
        raise ValueError(f'kind must be "rms" or "layer", not {kind!r}.')
    rms = dim + (dim - 1) + 1 + 1 + 2 + dim + dim
    return positions * (rms if kind == "rms" else rms + 3 * dim)


def _wide(x: Tensor) -> Tensor:
    # squares overflow float16 from 256 on and lose most digits in bfloat16
    return x.to(torch.promote_types(x.dtype, torch.float32))
