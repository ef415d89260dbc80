import pytest
import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from llmkit.norms import RMSNorm, layer_norm, rms_norm


def test_layer_norm_is_torchs():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 5, 7) * 4 + 2, torch.randn(7), torch.randn(7)
    expected = F.layer_norm(x, (7,), weight, bias, eps=0.1)
    torch.testing.assert_close(layer_norm(x, weight, bias, eps=0.1), expected)


def test_rms_norm_is_torchs():
    torch.manual_seed(0)
    x, weight = torch.randn(3, 5, 7), torch.randn(7)
    torch.testing.assert_close(rms_norm(x, weight, 0.1), F.rms_norm(x, (7,), weight, 0.1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm_is_transformers_to_the_bit(dtype):
    torch.manual_seed(0)
    ours, theirs = RMSNorm(11, eps=1e-3).to(dtype), LlamaRMSNorm(11, eps=1e-3).to(dtype)
    torch.nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    x = (torch.randn(2, 3, 11) * 30).to(dtype)
    assert torch.equal(ours(x), theirs(x))


def test_rms_norm_squares_in_float32():
    x = torch.full((4,), 300.0, dtype=torch.float16)  # 300² is beyond float16
    torch.testing.assert_close(rms_norm(x, torch.ones(4).half()), torch.ones(4).half())


def test_eps_stands_inside_the_root():
    x = torch.zeros(3)
    assert torch.equal(rms_norm(x, torch.ones(3), 1e-5), x)
    tiny = torch.full((3,), 1e-3)
    expected = 1e-3 / (1e-6 + 1e-5) ** 0.5
    torch.testing.assert_close(rms_norm(tiny, torch.ones(3), 1e-5), torch.full((3,), expected))
