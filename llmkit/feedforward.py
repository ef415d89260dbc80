"""The feed-forward layer: what a Transformer does at each position on its own."""

from torch import Tensor, nn


def silu(x: Tensor) -> Tensor:
    """Sigmoid linear unit, x · σ(x), elementwise (Elfwing et al., 2017; also called Swish)."""
    return x * x.sigmoid()


def hidden_width(dim: int, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    """Width of Llama's SwiGLU layer: multiplier · 2/3 · 4 · dim, rounded up to a multiple.

    The 2/3 pays for the third matrix: SwiGLU at 8/3 · dim has as many parameters as an ordinary
    feed-forward layer at 4 · dim. Rounded down to a whole number at each step, as in Meta's code.
    """
    width = int(multiplier * (2 * 4 * dim // 3))
    return -(-width // multiple_of) * multiple_of


class SwiGLU(nn.Module):
    """Gated feed-forward layer (Shazeer, 2020): down(silu(gate(x)) · up(x)).

    In the paper's letters (and Meta's w1, w2, w3): W = gate, V = up, W₂ = down. No biases.

    Shapes: (..., D) -> (..., D), through (..., F) with F = hidden_dim.
    """

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.up_proj = nn.Linear(dim, hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
