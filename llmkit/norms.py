"""Normalization: keep the numbers that flow through a deep network at one scale.

Llama normalizes with the root mean square alone, before each sublayer and once at the end.
"""

import torch
from torch import Tensor, nn


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Layer normalization (Ba et al., 2016): (x - mean) / sqrt(variance + eps) · weight + bias.

    Mean and (biased) variance run over the features of each position, in training and inference
    alike. Computed in float32 whatever the input's dtype.

    Shapes: x (..., D), weight (D,), bias (D,) -> (..., D).
    """
    centred = x.float() - x.float().mean(-1, keepdim=True)
    normed = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normed.type_as(x) + bias


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Root-mean-square normalization: x / sqrt(mean(x²) + eps) · weight, over the last dimension.

    Computed in float32 and cast back to x's dtype before the product with the weight.

    Shapes: x (..., D), weight (D,) -> (..., D).
    """
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normed.type_as(x)


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
