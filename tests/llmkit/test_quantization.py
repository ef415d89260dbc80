"""int8 weights: laws of the rounding, and compiled code held against the plain formula."""

import copy
import math
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from llmkit import native
from llmkit.assets import shakespeare_text
from llmkit.checkpoints import load_checkpoint
from llmkit.decoding import generate
from llmkit.lora import LoRALinear
from llmkit.quantization import (
    FEW,
    Int8Linear,
    Int8LlamaModel,
    dequantize_int8,
    quantize_int8,
    quantize_model,
)
from llmkit.transformer import PRESETS, Llama, LlamaConfig

# a step of 1/127 of these is still a number of full precision
sizes = st.floats(2.0**-80, 2.0**80, width=32)
numbers = st.just(0.0) | sizes | sizes.map(lambda size: -size)
matrices = st.integers(1, 9).flatmap(
    lambda k: st.lists(st.lists(numbers, min_size=k, max_size=k), min_size=1, max_size=5)
)


def tiny(**changes) -> Llama:
    """Widths that compiled code can take, no two alike, and weights that matter."""
    sizes = {
        "vocab_size": 100,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    torch.manual_seed(0)
    model = Llama(LlamaConfig(**sizes | changes)).requires_grad_(False).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) / 8)
    return model


@pytest.fixture(params=native.VECTORS)
def kernels(request, monkeypatch):
    """native.c for each kind of processor that this one can stand in for."""
    best = list(native.VECTORS).index(native.vectors())
    if request.param in list(native.VECTORS)[:best]:
        pytest.skip(f"this processor has no {request.param}")
    native.library.cache_clear()
    monkeypatch.setattr(native, "vectors", lambda: request.param)
    yield native.library()
    native.library.cache_clear()


# the rounding


@settings(deadline=None)
@given(matrices)
def test_no_weight_moves_by_more_than_half_a_step(rows):
    weight = torch.tensor(rows)
    quantized, scale = quantize_int8(weight)
    assert quantized.dtype == torch.int8
    assert scale.shape == weight.shape[:1]
    moved = (weight.double() - dequantize_int8(quantized.double(), scale.double())).abs()
    # the quotient, a float32, is itself off by as much as 127 · 2^-24, before it is rounded
    assert (moved <= scale.double()[:, None] * (0.5 + 1e-5)).all()


@settings(deadline=None)
@given(matrices)
def test_the_largest_of_each_row_is_127(rows):
    weight = torch.tensor(rows)
    largest = quantize_int8(weight)[0].int().abs().amax(-1)
    assert (largest == torch.where(weight.abs().amax(-1) > 0, 127, 0)).all()


@settings(deadline=None)
@given(matrices)
def test_quantizing_again_changes_nothing(rows):
    once = quantize_int8(torch.tensor(rows))
    twice = quantize_int8(dequantize_int8(*once))
    assert torch.equal(once[0], twice[0])
    torch.testing.assert_close(once[1], twice[1], rtol=1e-6, atol=0)


@settings(deadline=None)
@given(matrices, st.integers(-20, 20))
def test_a_rows_size_is_its_scales_affair(rows, exponent):
    weight, factor = torch.tensor(rows), 2.0**exponent
    (small, scale), (large, large_scale) = quantize_int8(weight), quantize_int8(weight * factor)
    assert torch.equal(small, large)
    assert torch.equal(large_scale, torch.where(weight.any(-1), scale * factor, 1))


def test_halves_go_to_even():
    row = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]])
    assert quantize_int8(row)[0].tolist() == [[127, 0, 2, 2, 0, -2]]


def test_rows_of_zeros_and_of_almost_zeros():
    tiny = torch.tensor([[0.0, 0.0], [1e-45, 0.0], [-2e-43, 1e-43]])
    quantized, scale = quantize_int8(tiny)
    assert scale[:2].tolist() == [1, 1]
    assert quantized[0].tolist() == [0, 0]
    assert quantized[2, 0] == -127
    assert torch.equal(dequantize_int8(quantized, scale)[0], torch.zeros(2))


def test_bfloat16_weights_are_quantized_in_float32():
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    for got, expected in zip(quantize_int8(weight), quantize_int8(weight.float()), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_no_int8_can_stand_for(value):
    with pytest.raises(ValueError, match="weight holds NaN or infinity"):
        quantize_int8(torch.tensor([1.0, value]))


# one layer


@pytest.mark.parametrize("bias", [False, True])
def test_plain_layer_is_the_dequantized_one(bias):
    linear = nn.Linear(13, 7, bias=bias).requires_grad_(False)
    layer, x = Int8Linear(linear), torch.randn(2, 3, 13)
    expected = F.linear(x, dequantize_int8(layer.weight, layer.scale), linear.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("inputs, outputs", [(16, 4), (48, 20), (560, 36), (96, 112)])
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 12, 25, 48])
def test_compiled_layer_is_the_dequantized_one(kernels, inputs, outputs, rows):
    generator = torch.Generator().manual_seed(rows)
    linear = nn.Linear(inputs, outputs, bias=False).requires_grad_(False)
    layer = Int8Linear(linear, compiled=True)
    assert layer.suits_native()
    x = torch.randn(rows, inputs, generator=generator)
    x[0] *= 1000  # each row has its own step
    weight = dequantize_int8(layer.weight, layer.scale).double()
    expected = F.linear(x.double(), weight)
    # inputs are rounded to steps of max |x| / top; no product moves by more than half of one
    step = x.abs().amax(-1, keepdim=True).double() / min(32767, (2**31 - 1) // 127 // inputs)
    bound = step / 2 * weight.abs().sum(-1) + 1e-6 * expected.abs().amax(-1, keepdim=True)
    assert ((layer(x) - expected).abs() <= bound).all()


@pytest.mark.parametrize("inputs, outputs", [(64, 4), (192, 100), (576, 36)])
@pytest.mark.parametrize("rows", [FEW + 1, 50, 61])
def test_many_inputs_are_rounded_in_groups_of_64(kernels, inputs, outputs, rows):
    """To 8 bits at worst: each of 64 numbers to a step of the largest among them."""
    generator = torch.Generator().manual_seed(rows)
    linear = nn.Linear(inputs, outputs, bias=False).requires_grad_(False)
    layer = Int8Linear(linear, compiled=True)
    x = torch.randn(rows, inputs, generator=generator)
    x[0] *= 1000
    x[:, :64] *= 100  # each group has its own step
    x[1] = 0
    weight = dequantize_int8(layer.weight, layer.scale).double()
    expected = F.linear(x.double(), weight)
    step = x.view(rows, -1, 64).abs().amax(-1).double() / 127
    weights = weight.view(outputs, -1, 64).abs().sum(-1)
    bound = F.linear(step / 2, weights) + 1e-6 * expected.abs().amax(-1, keepdim=True)
    assert ((layer(x) - expected).abs() <= bound).all()


@pytest.mark.parametrize("inputs, outputs", [(16, 4), (48, 20), (560, 36), (96, 112)])
def test_many_inputs_of_an_odd_width(kernels, inputs, outputs):
    """Where no groups of 64 fit, or none are needed, each input has one step, as few have."""
    layer = Int8Linear(nn.Linear(inputs, outputs, bias=False).requires_grad_(False), compiled=True)
    x = torch.randn(FEW + 2, inputs, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(layer(x), torch.cat([layer(row[None]) for row in x]))


def test_compiled_sums_stay_in_their_integers(kernels):
    linear = nn.Linear(8192, 16, bias=False).requires_grad_(False)
    linear.weight.fill_(-2.0)
    x = torch.full((FEW + 1, 8192), 3.0)
    for rows in (x, x[:7], x[:1]):
        y = Int8Linear(linear, compiled=True)(rows)
        torch.testing.assert_close(y, torch.full_like(y, -6.0 * 8192), rtol=1e-6, atol=0)


def test_compiled_layer_of_zeros_and_of_inputs_out_of_order(kernels):
    layer = Int8Linear(nn.Linear(32, 8), compiled=True)
    assert torch.equal(layer(torch.zeros(3, 32)), layer.bias.expand(3, 8))
    x = torch.randn(32, 3).T
    assert torch.equal(layer(x), layer(x.contiguous()))
    assert layer(torch.empty(0, 32)).shape == (0, 8)


@pytest.mark.parametrize("inputs, outputs", [(15, 4), (16, 6)])
def test_sizes_that_compiled_code_cannot_take(inputs, outputs):
    layer, x = Int8Linear(nn.Linear(inputs, outputs), compiled=True), torch.randn(2, inputs)
    expected = F.linear(x, dequantize_int8(layer.weight, layer.scale), layer.bias)
    torch.testing.assert_close(layer(x), expected)


def test_an_input_of_another_width_is_refused():
    layer = Int8Linear(nn.Linear(16, 4), compiled=True)
    with pytest.raises(ValueError, match="x has 8 features, but the layer takes 16"):
        layer(torch.randn(2, 8))


def test_gradients_pass_through_to_the_input():
    layer = Int8Linear(nn.Linear(16, 4, bias=False), compiled=True)
    x = torch.randn(3, 16, requires_grad=True)
    layer(x).sum().backward()
    expected = dequantize_int8(layer.weight, layer.scale).sum(0).expand(3, 16)
    torch.testing.assert_close(x.grad, expected)


# the whole model


@pytest.mark.parametrize("tied", [False, True])
def test_every_linear_layer_is_converted(tied):
    model = tiny(tie_word_embeddings=tied)
    table = model.model.embed_tokens.weight.clone()
    assert quantize_model(model) is model
    assert not [m for m in model.modules() if type(m) is nn.Linear]
    assert sum(isinstance(m, Int8Linear) for m in model.modules()) == 7 * 2 + 1
    assert torch.equal(model.model.embed_tokens.weight, table)


def test_plain_model_computes_with_the_dequantized_weights():
    model = tiny()
    reference = copy.deepcopy(model)
    for linear in (m for m in reference.modules() if isinstance(m, nn.Linear)):
        linear.weight.copy_(dequantize_int8(*quantize_int8(linear.weight)))
    ids = torch.randint(100, (2, 9))
    torch.testing.assert_close(quantize_model(model)(ids), reference(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 1},
        {"sliding_window": 5},
        {"head_dim": 48},
        {"head_dim": 8},
    ],
    ids=["grouped", "multi-head", "multi-query", "window", "wide heads", "narrow heads"],
)
@torch.no_grad()
def test_compiled_model_is_the_plain_one(kernels, changes):
    plain, fast = quantize_model(tiny(**changes)), quantize_model(tiny(**changes), compiled=True)
    ids = torch.randint(100, (1, 14), generator=torch.Generator().manual_seed(1))
    caches = plain.new_cache(14), fast.new_cache(14)
    for chunk in ids.split([3, 1, 2, 1, 6, 1], dim=1):
        expected, logits = plain(chunk, caches[0]), fast(chunk, caches[1])
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
    for a, b in zip(*caches, strict=True):
        assert a.offset == b.offset == 14
        torch.testing.assert_close(a.keys, b.keys, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(a.values, b.values, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="has room for 14 positions"):
        fast(ids[:, :1], caches[1])


@torch.no_grad()
def test_a_token_is_the_same_alone_and_among_others(kernels):
    """To the last bit: so prompt look-up cannot change what a model says."""
    model = quantize_model(tiny(hidden_size=192, intermediate_size=560), compiled=True)
    sizes = [2, 3, 4, 5, 6, 25, FEW]
    ids = torch.randint(100, (1, sum(sizes)), generator=torch.Generator().manual_seed(2))
    alone, together = model.new_cache(sum(sizes)), model.new_cache(sum(sizes))
    each = torch.cat([model(token, alone) for token in ids.split(1, dim=1)], dim=1)
    chunks = torch.cat([model(part, together) for part in ids.split(sizes, dim=1)], dim=1)
    assert torch.equal(each, chunks)
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)


def test_few_tokens_take_one_compiled_call(monkeypatch):
    calls = []
    real = native.blocks
    monkeypatch.setattr(native, "blocks", lambda *a: calls.append(a[1].shape[1]) or real(*a))
    model = quantize_model(tiny(), compiled=True)
    assert type(model.model) is Int8LlamaModel
    list(generate(model, [1, 2, 3], max_tokens=5))
    assert calls == [3, 1, 1, 1, 1]  # the prompt, and four steps
    list(generate(model, [*range(FEW + 1)], max_tokens=2))
    assert calls[5:] == [1]


@torch.no_grad()
def test_blocks_notice_what_was_changed_behind_them():
    model, token = quantize_model(tiny(), compiled=True), torch.tensor([[7]])
    model(token, model.new_cache(4))
    attention = model.model.layers[0].self_attn
    attention.q_proj = LoRALinear(nn.Linear(48, 96, bias=False))
    model.model.layers[1].input_layernorm.weight.copy_(torch.rand(48))
    expected = copy.deepcopy(model)
    for layer in (m for m in expected.modules() if isinstance(m, Int8Linear)):
        layer.compiled = False
    logits = model(token, model.new_cache(4))
    torch.testing.assert_close(logits, expected(token), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_blocks_follow_their_model_through_dtypes():
    model, token = quantize_model(tiny(), compiled=True), torch.tensor([[7]])
    before = model(token, model.new_cache(1))
    assert model.bfloat16()(token, model.new_cache(1)).dtype == torch.bfloat16
    for block in model.float().model.layers:
        block.input_layernorm.weight.mul_(2)
    after = model(token, model.new_cache(1))
    assert not torch.allclose(after, before, atol=0.05)
    torch.testing.assert_close(after, model(token), rtol=1e-3, atol=1e-3)  # without a cache: plain


@torch.no_grad()
def test_copies_and_pickles_stand_alone():
    model, token = quantize_model(tiny(), compiled=True), torch.tensor([[7]])
    expected = model(token, model.new_cache(1))
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for parameter in model.parameters():
        parameter.zero_()
    for other in copies:
        assert torch.equal(other(token, other.new_cache(1)), expected)


def test_nothing_is_half_converted():
    model = tiny()
    model.lm_head.weight[3, 5] = math.nan
    with pytest.raises(ValueError, match="weight holds NaN"):
        quantize_model(model)
    assert sum(type(m) is nn.Linear for m in model.modules()) == 15
    model.lm_head.weight[3, 5] = 0
    quantize_model(model)
    with pytest.raises(ValueError, match=r"no nn\.Linear to quantize"):
        quantize_model(model)


def test_without_a_compiler_it_warns_and_still_answers(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    native.library.cache_clear()
    with pytest.warns(UserWarning, match="there is no C compiler") as caught:
        model = quantize_model(tiny(), compiled=True)
    native.library.cache_clear()
    assert len(caught) == 1
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(model(ids), quantize_model(tiny())(ids))


def test_a_compiler_that_fails_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "false --with arguments")
    monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path))
    native.library.cache_clear()
    with pytest.raises(native.NativeError, match="false cannot compile"):
        native.library()
    assert not list((tmp_path / "native").iterdir())


def test_compiled_code_is_for_float32():
    with pytest.warns(UserWarning, match=r"float32 on a CPU, not torch\.bfloat16 on cpu"):
        model = quantize_model(tiny().bfloat16(), compiled=True)
    assert model(torch.tensor([[1, 2]])).dtype == torch.bfloat16


@torch.inference_mode()
def test_smollm2_keeps_its_wits():
    model, tokenizer = load_checkpoint("smollm2")
    ids = torch.tensor([tokenizer.encode(shakespeare_text()[200_000:201_600])[:400]])
    loss = F.cross_entropy(model(ids)[0, :-1], ids[0, 1:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_model(model, compiled=True)
    quantized_loss = F.cross_entropy(model(ids)[0, :-1], ids[0, 1:])
    # 0.6 % on 20 kB; a passage this short may do a little worse
    assert math.exp(quantized_loss - loss) < 1.02
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.encode(tokenizer.apply_chat_template(question), add_special_tokens=False)
    answer = tokenizer.decode(list(generate(model, prompt, 16, stop_ids=tokenizer.stop_ids)))
    assert "Paris" in answer


def test_presets_suit_compiled_code():
    for config in PRESETS.values():
        widths = config.hidden_size, config.intermediate_size
        widths += (config.num_attention_heads * config.head_dim,)
        assert all(width % 16 == 0 for width in widths)
