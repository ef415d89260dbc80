import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from llmkit.norms import (
    PreNormBlock,
    RMSNorm,
    batch_norm,
    fold_norm_weight,
    layer_norm,
    layer_norm_backward,
    norm_flops,
    rms_norm,
    root_mean_square,
    running_statistics,
)
from llmkit.transformer import PRESETS, TransformerBlock
from tests.llmkit.gradients import assert_gradients


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


@pytest.mark.parametrize("shape", [(7,), (3, 7), (3, 5, 7)])
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_layer_norm_backward_is_autograds(shape, eps):
    torch.manual_seed(0)
    x, grad = torch.randn(2, *shape, dtype=torch.double)
    weight, bias = torch.randn(2, 7, dtype=torch.double)
    inputs = [t.requires_grad_() for t in (x * 3 + 1, weight, bias)]
    expected = torch.autograd.grad(layer_norm(*inputs, eps), inputs, grad)
    ours = layer_norm_backward(grad, inputs[0], weight, eps)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("momentum", [0.1, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_norm_is_torchs_over_a_few_batches_and_in_inference(momentum, dtype):
    torch.manual_seed(0)
    theirs = nn.BatchNorm1d(7, eps=0.1, momentum=momentum)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    weight, bias = theirs.weight.detach().clone(), theirs.bias.detach().clone()
    mean, variance = torch.zeros(7), torch.ones(7)
    for size, training in ((5, True), (2, True), (9, True), (4, False), (1, False)):
        x = (torch.randn(size, 7) * 3 + 2).to(dtype)
        before = mean.clone(), variance.clone()
        out, new_mean, new_variance = batch_norm(
            x, weight, bias, mean, variance, training, momentum, eps=0.1
        )
        assert torch.equal(mean, before[0]) and torch.equal(variance, before[1])
        mean, variance = new_mean, new_variance
        expected = theirs.train(training)(x.float())
        torch.testing.assert_close(
            out.float(), expected, rtol=0, atol={torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
        )
        torch.testing.assert_close(mean, theirs.running_mean)
        torch.testing.assert_close(variance, theirs.running_var)


def test_one_sample_has_no_variance():
    with pytest.raises(ValueError, match="at least 2 samples, not 1"):
        batch_norm(*torch.ones(5, 1, 3).unbind(), training=True)


def test_batch_mates_change_a_sample_under_batch_norm_only():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(4, 7), torch.ones(7), torch.zeros(7)
    other = torch.cat([x[:1], torch.randn(3, 7)])
    statistics = torch.zeros(7), torch.ones(7)

    def first(norm):
        return norm(x)[0], norm(other)[0]

    assert torch.equal(*first(lambda x: layer_norm(x, weight, bias)))
    assert torch.equal(*first(lambda x: batch_norm(x, weight, bias, *statistics, False)[0]))
    a, b = first(lambda x: batch_norm(x, weight, bias, *statistics, True)[0])
    assert not torch.allclose(a, b, atol=0.1)


STATISTICS = torch.arange(5).double(), torch.arange(1, 6).double()


@pytest.mark.parametrize(
    "norm",
    [
        lambda x, w, b: layer_norm(x, w, b),
        lambda x, w, b: rms_norm(x, w) + b,
        lambda x, w, b: batch_norm(x, w, b, *STATISTICS, True)[0],
        lambda x, w, b: batch_norm(x, w, b, *STATISTICS, False)[0],
    ],
    ids=["layer", "rms", "batch, training", "batch, inference"],
)
def test_gradients(norm):
    torch.manual_seed(0)
    shapes = (4, 5), (5,), (5,)
    inputs = [torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in shapes]
    torch.autograd.gradcheck(norm, inputs)


def test_gradients_of_modules():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, dtype=torch.double, requires_grad=True)
    assert_gradients(RMSNorm(5), x)
    assert_gradients(PreNormBlock(5, nn.Linear(5, 5)), x)


def test_a_transformer_block_is_two_pre_norm_blocks():
    torch.manual_seed(0)
    block, x = TransformerBlock(PRESETS["tiny"]), torch.randn(2, 5, 48)
    halves = PreNormBlock(48, block.self_attn), PreNormBlock(48, block.mlp)
    for half, norm in zip(
        halves, (block.input_layernorm, block.post_attention_layernorm), strict=True
    ):
        nn.init.normal_(norm.weight)
        half.norm.load_state_dict(norm.state_dict())
    torch.testing.assert_close(block(x), halves[1](halves[0](x)))


class Counted(float):
    """A number that counts the operations made with it."""

    count = 0

    def _(name):
        def operate(self, *others):
            Counted.count += 1
            return Counted(getattr(float, name)(self, *others))

        return operate

    __add__, __radd__, __sub__ = _("__add__"), _("__radd__"), _("__sub__")
    __mul__, __truediv__, __rtruediv__ = _("__mul__"), _("__truediv__"), _("__rtruediv__")

    def root(self):
        Counted.count += 1
        return Counted(float(self) ** 0.5)


def total(numbers):
    first, *rest = numbers
    for number in rest:
        first = first + number
    return first


@pytest.mark.parametrize("dim", [3, 8])
def test_norm_flops_counted_one_by_one(dim):
    x, weight, bias = ([Counted(i + 1.5) for i in range(dim)] for _ in range(3))
    Counted.count = 0
    scale = Counted(1) / (total([a * a for a in x]) / Counted(dim) + Counted(1e-5)).root()
    [a * scale * w for a, w in zip(x, weight, strict=True)]
    assert norm_flops(1, dim) == Counted.count and norm_flops(6, dim) == 6 * Counted.count
    Counted.count = 0
    mean = total(x) / Counted(dim)
    centred = [a - mean for a in x]
    scale = Counted(1) / (total([a * a for a in centred]) / Counted(dim) + Counted(1e-5)).root()
    [a * scale * w + b for a, w, b in zip(centred, weight, bias, strict=True)]
    assert norm_flops(1, dim, "layer") == Counted.count
    with pytest.raises(ValueError, match='must be "rms" or "layer"'):
        norm_flops(1, dim, "batch")


def test_root_mean_square_is_the_norm_over_the_root_of_the_width():
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(root_mean_square(x), x.norm(dim=-1) / 7**0.5)


def test_running_statistics_are_those_that_torchs_module_keeps():
    generator = torch.Generator().manual_seed(0)
    module = nn.BatchNorm1d(5, momentum=0.3)
    mean, variance = torch.zeros(5), torch.ones(5)
    for _ in range(3):
        x = torch.randn(4, 5, generator=generator) * 2 + 1
        module(x)
        mean, variance = running_statistics(mean, variance, x, momentum=0.3)
    torch.testing.assert_close(mean, module.running_mean)
    torch.testing.assert_close(variance, module.running_var)


def test_a_folded_norm_weight_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 3, 5, generator=generator), torch.randn(5, generator=generator)
    projection = torch.randn(7, 5, generator=generator)
    folded = fold_norm_weight(weight, projection)
    torch.testing.assert_close(
        rms_norm(x, torch.ones(5)) @ folded.T, rms_norm(x, weight) @ projection.T
    )
