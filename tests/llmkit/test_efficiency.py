"""Costs: counted by hand, by PyTorch's own counter, and against what is really allocated."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llmkit.attention import kv_cache_bytes
from llmkit.efficiency import (
    BYTES,
    Ceilings,
    adamw_memory,
    arithmetic_intensity,
    decode_bytes,
    decode_roofline,
    expected_accepted,
    forward_flops,
    llama_flops,
    matrix_parameters,
    measure_ceilings,
    parameters_by_part,
    roofline,
    speculative_speedup,
    training_flops,
)
from llmkit.transformer import PRESETS, Llama, LlamaConfig, count_parameters

TINY = PRESETS["tiny"]
# nothing equals anything else, and a head is not the width over the heads
ODD = LlamaConfig(
    vocab_size=97,
    hidden_size=40,
    intermediate_size=56,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    tie_word_embeddings=True,
)


def counted_flops(function: Callable[[], object]) -> int:
    """FLOPs by PyTorch's counter, which knows products, but not the CPU's fused attention."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        function()
    return counter.get_total_flops()


# parameters


@pytest.mark.parametrize("name", PRESETS)
def test_parts_sum_to_the_parameters(name):
    assert sum(parameters_by_part(PRESETS[name]).values()) == count_parameters(PRESETS[name])


def test_each_part_is_what_the_model_holds():
    model = Llama(ODD)
    held = dict.fromkeys(("embedding", "attention", "feed-forward", "norms", "head"), 0)
    words = {"embed": "embedding", "attn": "attention", "mlp": "feed-forward", "norm": "norms"}
    for name, parameter in model.named_parameters():
        # a norm's name may hold "attn" too, a head's none of them
        part = next((words[w] for w in ("norm", "embed", "attn", "mlp") if w in name), "head")
        held[part] += parameter.numel()
    assert parameters_by_part(ODD) == held


def test_matrices_count_a_tied_head():
    model = Llama(ODD)
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert matrix_parameters(ODD) == sum(linear.weight.numel() for linear in linears)


# arithmetic


def test_forward_flops_by_hand():
    # 10 weights, 3 tokens: 60. One layer, one feature, 3 queries x 5 keys: 15 + 15 products
    assert forward_flops(10, 1, 1, length=3, past=2) == 60 + 60


@pytest.mark.parametrize("config", [TINY, ODD], ids=["tiny", "odd"])
@pytest.mark.parametrize("length", [1, 2, 33])
@torch.no_grad()
def test_forward_flops_are_what_pytorch_counts(config, length):
    model, ids = Llama(config), torch.zeros(1, length, dtype=torch.long)
    assert llama_flops(config, length) == counted_flops(lambda: model(ids))


@pytest.mark.parametrize("length", [1, 4])
@torch.no_grad()
def test_forward_flops_behind_a_cache(length):
    model = Llama(ODD)
    cache = model.new_cache(32)
    model(torch.zeros(1, 20, dtype=torch.long), cache=cache)
    ids = torch.zeros(1, length, dtype=torch.long)
    assert llama_flops(ODD, length, past=20) == counted_flops(lambda: model(ids, cache=cache))


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_reading_in_chunks_saves_only_hidden_pairs(chunks):
    """Without the mask's upper corners the quadratic part shrinks, the linear one does not."""
    past = [sum(chunks[:i]) for i in range(len(chunks))]
    in_chunks = sum(forward_flops(7, 2, 3, n, p) for n, p in zip(chunks, past, strict=True))
    pairs_saved = sum(n * sum(chunks[i + 1 :]) for i, n in enumerate(chunks))
    assert forward_flops(7, 2, 3, sum(chunks)) - in_chunks == 4 * 2 * 3 * pairs_saved


def test_training_takes_three_times_the_forward_pass():
    model, ids = Llama(TINY), torch.zeros(1, 16, dtype=torch.long)
    width = TINY.num_attention_heads * TINY.head_dim
    expected = training_flops(matrix_parameters(TINY), 16, TINY.num_hidden_layers, width, 16)
    assert expected == 3 * llama_flops(TINY, 16)
    assert expected == counted_flops(lambda: model(ids).sum().backward())


def test_six_n_d_and_where_attention_catches_up():
    assert training_flops(10, 7) == 420
    number, layers, width = 106_168_320, 30, 576
    crossing = number // (2 * layers * width)
    assert crossing == 3072
    assert training_flops(number, 5, layers, width, crossing) == 2 * training_flops(number, 5)


# bytes


def test_adamw_memory_is_what_adamw_holds():
    model = torch.nn.Linear(13, 7)
    number = sum(p.numel() for p in model.parameters())
    for dtype in ("float32", "bfloat16"):
        model = torch.nn.Linear(13, 7, dtype=getattr(torch, dtype))
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.ones(2, 13, dtype=getattr(torch, dtype))).sum().backward()
        optimizer.step()
        states = optimizer.state.values()
        assert adamw_memory(number, dtype, dtype, dtype) == {
            "weights": sum(p.nbytes for p in model.parameters()),
            "gradients": sum(p.grad.nbytes for p in model.parameters()),
            "moments": sum(s["exp_avg"].nbytes + s["exp_avg_sq"].nbytes for s in states),
            "master_weights": 0,
        }


def test_adamw_memory_of_mixed_precision():
    mixed = adamw_memory(1000, "bfloat16", "bfloat16", "float32", master_weights="float32")
    assert sum(mixed.values()) == 16_000  # as in ZeRO (Rajbhandari et al., 2020, §3.1)
    assert sum(adamw_memory(1000).values()) == 16_000
    with pytest.raises(ValueError, match=r"moments must be one of float32, .* not 'float8'"):
        adamw_memory(1, moments="float8")


@pytest.mark.parametrize("name", BYTES)
def test_bytes_are_pytorchs(name):
    assert getattr(torch, name).itemsize == BYTES[name]


def test_decode_bytes_of_smollm2():
    config = PRESETS["smollm2-135m"]
    assert matrix_parameters(config) == 134_479_872  # all of them, as the head is tied, bar norms
    assert decode_bytes(config, 0, bytes_per_weight=4) == 4 * 134_479_872
    cache = Llama(TINY).new_cache(50, batch_size=3)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache)
    assert decode_bytes(TINY, 50, 0, bytes_per_value=4, batch_size=3) == held


# time


def test_intensity_by_hand():
    # 2·3·5·7 FLOPs; 35 weights of 1 byte, 15 + 21 values of 4
    assert arithmetic_intensity(3, 5, 7, 1, 4) == 210 / (35 + 144)


@settings(deadline=None)
@given(st.integers(1, 10**4), st.integers(1, 10**4))
def test_one_row_is_read_for_one_multiplication(inputs, outputs):
    assert arithmetic_intensity(1, inputs, outputs, bytes_per_weight=2) < 2 / 2


@settings(deadline=None)
@given(st.integers(1, 4096))
def test_more_rows_are_more_intense_up_to_a_limit(rows):
    here, more = (arithmetic_intensity(r, 4096, 4096, 2, 2) for r in (rows, rows + 1))
    assert here < more < 2 * 4096 / 2 / 2  # 2 D² per row over 2 · 2 D bytes of values


def test_roofline_has_a_ridge():
    assert roofline(1, peak_flops=100, bandwidth=20) == 20
    assert roofline(5, peak_flops=100, bandwidth=20) == 100
    assert roofline(50, peak_flops=100, bandwidth=20) == 100


def test_decode_roofline_closed_form():
    assert decode_roofline(80, 20, bandwidth=1000) == 10
    assert decode_roofline(80, 20, bandwidth=1000, batch_size=4) == 25
    # ever larger batches share the weights away: what remains is each sequence's own cache
    assert math.isclose(decode_roofline(80, 20, 1000, batch_size=10**9), 50, rel_tol=1e-6)


@settings(deadline=None)
@given(st.integers(1, 64), st.integers(0, 4096))
def test_decode_roofline_is_bandwidth_over_bytes(batch_size, context):
    kv = kv_cache_bytes(TINY.num_hidden_layers, TINY.num_key_value_heads, TINY.head_dim, context)
    steps = decode_roofline(2 * matrix_parameters(TINY), kv, 1e9, batch_size) / batch_size
    assert math.isclose(steps, 1e9 / decode_bytes(TINY, context, batch_size=batch_size))


@settings(deadline=None)
@given(st.floats(0, 0.99), st.integers(0, 12))
def test_expected_accepted_closed_form(acceptance, draft_length):
    closed = (1 - acceptance ** (draft_length + 1)) / (1 - acceptance)
    assert math.isclose(expected_accepted(acceptance, draft_length), closed, rel_tol=1e-9)


def test_expected_accepted_by_simulation():
    a, g = 0.7, 4
    accepted = torch.rand(200_000, g, generator=torch.Generator().manual_seed(0)) < a
    tokens = accepted.cumprod(dim=1).sum(dim=1) + 1.0
    assert abs(tokens.mean() - expected_accepted(a, g)) < 5 * tokens.std() / math.sqrt(len(tokens))


def test_expected_accepted_at_its_ends():
    assert expected_accepted(1.0, 5) == 6
    assert expected_accepted(0.0, 5) == 1
    assert expected_accepted(0.5, 0) == 1
    with pytest.raises(ValueError, match="acceptance must be a probability"):
        expected_accepted(1.1, 5)
    with pytest.raises(ValueError, match="draft_length must be 0 or more, not -1"):
        expected_accepted(0.5, -1)


def test_speculative_speedup():
    assert speculative_speedup(0.8, 0, cost=0.1) == 1
    assert speculative_speedup(0.0, 4, cost=0.1) == 1 / 1.4  # a useless draft costs its own time
    # the paper's table 1: α = 0.8, γ = 5 and a free draft
    assert math.isclose(speculative_speedup(0.8, 5, cost=0.0), 3.69, abs_tol=0.005)


# the machine


def test_measured_ceilings_are_this_machines():
    seen = measure_ceilings(megabytes=8, size=128)
    assert isinstance(seen, Ceilings)
    # a slip of units would be a factor of thousands; a busy machine is no fault
    assert all(1e6 < rate < 1e14 for rate in (seen.copy_bandwidth, seen.matvec_bandwidth))
    assert 1e6 < seen.matmul_flops < 1e15
