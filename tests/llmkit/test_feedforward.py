import pytest
import torch
import torch.nn.functional as F

from llmkit.feedforward import SwiGLU, hidden_width, silu


def test_silu_is_torchs():
    x = torch.linspace(-20, 20, 101)
    torch.testing.assert_close(silu(x), F.silu(x))


@pytest.mark.parametrize(
    ("dim", "multiple_of", "multiplier", "width"),
    [
        (4096, 256, 1.0, 11008),  # Llama 1 and 2 7B
        (5120, 256, 1.0, 13824),  # 13B
        (6656, 256, 1.0, 17920),  # 33B
        (8192, 256, 1.0, 22016),  # 65B
        (8192, 4096, 1.3, 28672),  # Llama 2 and 3 70B
        (4096, 1024, 1.3, 14336),  # Llama 3 8B
        (2048, 256, 1.5, 8192),  # Llama 3.2 1B
    ],
)
def test_hidden_width_of_published_models(dim, multiple_of, multiplier, width):
    assert hidden_width(dim, multiple_of, multiplier) == width


def test_swiglu_by_hand():
    torch.manual_seed(0)
    layer, x = SwiGLU(3, 5), torch.randn(2, 4, 3)
    gate, up = x @ layer.gate_proj.weight.T, x @ layer.up_proj.weight.T
    expected = (gate / (1 + (-gate).exp()) * up) @ layer.down_proj.weight.T
    torch.testing.assert_close(layer(x), expected)
    assert [tuple(p.shape) for p in layer.parameters()] == [(5, 3), (5, 3), (3, 5)]
