"""The feed-forward layer: what a Transformer does at each position on its own.

From the first Transformer's (`gelu_feedforward`) to Llama's gated one (`SwiGLU`).
"""

import torch.nn.functional as F
from torch import Tensor, nn


def silu(x: Tensor) -> Tensor:
    """Sigmoid linear unit, x · σ(x), elementwise (Elfwing et al., 2017; also called Swish)."""
    return x * x.sigmoid()


def silu_gradient(x: Tensor) -> Tensor:
    """Derivative of `silu`, elementwise: σ(x) · (1 + x · (1 - σ(x)))."""
    sigmoid = x.sigmoid()
    return sigmoid * (1 + x * (1 - sigmoid))


def gelu_feedforward(
    x: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor, bias_out: Tensor
) -> Tensor:
    """The ordinary feed-forward layer, as in BERT: out(gelu(in(x))).

    GELU(x) = x · Φ(x), Φ the normal distribution function, exact (Hendrycks & Gimpel, 2016).

    Shapes: x (..., D), weight_in (F, D), bias_in (F,), weight_out (D, F), bias_out (D,)
    -> (..., D).
    """
    return F.linear(F.gelu(F.linear(x, weight_in, bias_in)), weight_out, bias_out)


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Gated feed-forward layer (Shazeer, 2020): down(silu(gate(x)) ⊙ up(x)), without biases.

    In the paper's letters: W = gate, V = up, W₂ = down. In Meta's: w1 = gate, w3 = up, w2 = down.

    Shapes: x (..., D), gate and up (F, D), down (D, F) -> (..., D).
    """
    return F.linear(silu(F.linear(x, gate)) * F.linear(x, up), down)


def neuron_contributions(hidden: Tensor, down: Tensor) -> Tensor:
    """What each neuron of a feed-forward layer adds to the output: its value times its column.

    Summed over the neurons it is the output of the layer without biases (Geva et al., 2022).

    Shapes: hidden (..., F), down (D, F) -> (..., F, D).
    """
    return hidden.unsqueeze(-1) * down.T


def hidden_width(dim: int, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    """Width of Llama's SwiGLU layer: multiplier · 2/3 · 4 · dim, rounded up to a multiple.

    The 2/3 pays for the third matrix: SwiGLU at 8/3 · dim has as many parameters as an ordinary
    feed-forward layer at 4 · dim. Rounded down to a whole number at each step, as in Meta's code.
    """
    width = int(multiplier * (2 * 4 * dim // 3))
    return -(-width // multiple_of) * multiple_of


def feedforward_parameters(dim: int, hidden_dim: int, gated: bool = True) -> int:
    """Number of parameters of one feed-forward layer.

    Gated (`swiglu`) it has three matrices; ungated (`gelu_feedforward`) two, and a bias for each.
    """
    if gated:
        return 3 * dim * hidden_dim
    return 2 * dim * hidden_dim + hidden_dim + dim


class SwiGLU(nn.Module):
    """`swiglu` as a layer with parameters, under Hugging Face's names.

    Shapes: (..., D) -> (..., D), through (..., F) with F = hidden_dim.
    """

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.up_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # PyTorch's silu is `silu` in one pass over memory
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
