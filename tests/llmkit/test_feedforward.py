import pytest
import torch
import torch.nn.functional as F

from llmkit.feedforward import (
    SwiGLU,
    feedforward_parameters,
    gelu_feedforward,
    hidden_width,
    neuron_contributions,
    silu,
    silu_gradient,
    swiglu,
)
from llmkit.transformer import PRESETS, count_parameters
from tests.llmkit.gradients import assert_gradients


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
    expected = swiglu(x, layer.gate_proj.weight, layer.up_proj.weight, layer.down_proj.weight)
    torch.testing.assert_close(layer(x), expected)


def test_three_spellings_of_swiglu_are_one():
    """Shazeer: (swish(xW) ⊙ xV) W₂. Meta: w2(silu(w1(x)) * w3(x)). Rows against columns."""
    torch.manual_seed(0)
    x, w, v, w2 = torch.randn(4, 3), torch.randn(3, 5), torch.randn(3, 5), torch.randn(5, 3)
    shazeer = (F.silu(x @ w) * (x @ v)) @ w2
    torch.testing.assert_close(swiglu(x, gate=w.T, up=v.T, down=w2.T), shazeer)


def test_a_neuron_contributes_what_the_layer_lacks_without_it():
    torch.manual_seed(0)
    x, gate, up = torch.randn(2, 4, 3), torch.randn(5, 3), torch.randn(5, 3)
    down = torch.randn(3, 5)
    parts = neuron_contributions(swiglu(x, gate, up, torch.eye(5)), down)
    whole = swiglu(x, gate, up, down)
    assert parts.shape == (2, 4, 5, 3)
    torch.testing.assert_close(parts.sum(-2), whole)
    for neuron in range(5):
        shut = gate.clone()
        shut[neuron] = 0.0  # silu(0) is 0
        torch.testing.assert_close(parts[..., neuron, :], whole - swiglu(x, shut, up, down))


def test_silu_gradient_is_autograds():
    x = torch.linspace(-90, 90, 361, requires_grad=True)
    (expected,) = torch.autograd.grad(F.silu(x).sum(), x)
    torch.testing.assert_close(silu_gradient(x), expected)


def test_gelu_feedforward_by_hand():
    torch.manual_seed(0)
    x, w1, b1 = torch.randn(2, 4, 3), torch.randn(5, 3), torch.randn(5)
    w2, b2 = torch.randn(3, 5), torch.randn(3)
    hidden = x @ w1.T + b1
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(gelu_feedforward(x, w1, b1, w2, b2), hidden @ w2.T + b2)


def test_feedforward_parameters():
    assert feedforward_parameters(3, 5) == sum(p.numel() for p in SwiGLU(3, 5).parameters())
    ungated = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.GELU(), torch.nn.Linear(5, 3))
    assert feedforward_parameters(3, 5, gated=False) == sum(p.numel() for p in ungated.parameters())
    c = PRESETS["llama-2-7b"]
    share = 32 * feedforward_parameters(c.hidden_size, c.intermediate_size) / count_parameters(c)
    assert share == pytest.approx(0.642, abs=5e-4)


def test_gradients():
    torch.manual_seed(0)
    x, gate, up = (torch.randn(3, 4, dtype=torch.double, requires_grad=True) for _ in range(3))
    down = torch.randn(4, 3, dtype=torch.double, requires_grad=True)
    torch.autograd.gradcheck(swiglu, (x, gate, up, down))
    bias_in, bias_out = (torch.ones(n, dtype=torch.double, requires_grad=True) for n in (3, 4))
    torch.autograd.gradcheck(gelu_feedforward, (x, gate, bias_in, down, bias_out))
    torch.autograd.gradcheck(silu_gradient, (x,))
    assert_gradients(SwiGLU(4, 3), x)
