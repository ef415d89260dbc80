"""Positions, argued from transformers' own Llama, closed forms, published numbers and laws."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from llmkit.positions import (
    apply_rope,
    attention_without_positions,
    interleaved_to_half,
    learned_positions,
    llama3_frequencies,
    relative_score,
    rope_frequencies,
    rope_tables,
    rotate,
    sinusoidal_positions,
)

seeds = st.integers(0, 2**32 - 1)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def hf_rotary(dim: int, base: float, **scaling) -> LlamaRotaryEmbedding:
    rope = {"rope_type": "default", **scaling, "rope_theta": base}
    return LlamaRotaryEmbedding(
        LlamaConfig(
            hidden_size=2 * dim,
            num_attention_heads=2,
            head_dim=dim,
            max_position_embeddings=131072,
            rope_parameters=rope,
        )
    )


LLAMA_31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA_32 = LLAMA_31 | {"factor": 32.0}


# The bag


@given(seeds)
def test_attention_without_positions_is_permutation_equivariant(seed: int):
    x = normal(6, 4, seed=seed)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    direct = attention_without_positions(x[order])
    torch.testing.assert_close(direct, attention_without_positions(x)[order])


def test_attention_without_positions_by_hand():
    """Two unit vectors: weights e^(1/√2) against e^0."""
    weight = math.exp(math.sqrt(0.5)) / (math.exp(math.sqrt(0.5)) + 1)
    expected = torch.tensor([[weight, 1 - weight], [1 - weight, weight]])
    torch.testing.assert_close(attention_without_positions(torch.eye(2)), expected)


def test_positions_tell_the_same_bag_apart():
    x, order = normal(5, 8), torch.tensor([0, 4, 2, 3, 1])
    code = sinusoidal_positions(torch.arange(5), 8)
    first = attention_without_positions(x + code)[order]
    assert not torch.allclose(first, attention_without_positions(x[order] + code), atol=1e-2)


# Sinusoidal and learned


def test_sinusoidal_positions_entry_by_entry():
    positions, dim = [0, 3, 17, 250], 10
    table = sinusoidal_positions(torch.tensor(positions), dim)
    assert table.dtype == torch.float32 and table.shape == (4, 10)
    for row, p in enumerate(positions):
        for i in range(dim // 2):
            angle = p / 10000 ** (2 * i / dim)
            assert table[row, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[row, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


@given(st.integers(0, 400), st.integers(-100, 100))
def test_a_fixed_offset_is_one_linear_map(position: int, offset: int):
    """Vaswani et al., §3.5: PE(p + k) is a rotation of PE(p) that depends on k alone."""
    dim, frequencies = 8, rope_frequencies(8)
    here, there = sinusoidal_positions(torch.tensor([position, position + offset]), dim)
    # the pairs are (sin, cos), so a step forward turns them backward
    turned = rotate(here[None], *rope_tables(torch.tensor([-offset]), frequencies), True)[0]
    torch.testing.assert_close(turned, there, rtol=0, atol=1e-4)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))
def test_the_dot_product_of_two_sinusoids_depends_on_their_distance(m: int, n: int, shift: int):
    a, b, c, d = sinusoidal_positions(torch.tensor([m, n, m + shift, n + shift]), 32)
    assert (a @ b).item() == pytest.approx((c @ d).item(), abs=2e-3)


def test_odd_widths_are_refused():
    for function in (lambda: rope_frequencies(7), lambda: sinusoidal_positions(torch.arange(2), 7)):
        with pytest.raises(ValueError, match="even: 7"):
            function()


def test_learned_positions_are_rows_and_only_used_rows_learn():
    table = normal(9, 4).requires_grad_()
    positions = torch.tensor([[5, 6, 7], [0, 0, 1]])
    chosen = learned_positions(table, positions)
    assert torch.equal(chosen, table[positions])
    chosen.sum().backward()
    assert table.grad.sum(-1).tolist() == [8, 4, 0, 0, 0, 4, 4, 4, 0]


@pytest.mark.parametrize("position", [9, -1])
def test_a_learned_table_has_an_end(position: int):
    with pytest.raises(IndexError):
        learned_positions(normal(9, 4), torch.tensor([position]))


# RoPE against transformers


@pytest.mark.parametrize(("dim", "base"), [(64, 1e4), (64, 1e5), (128, 5e5), (2, 1e4)])
def test_frequencies_equal_transformers(dim: int, base: float):
    assert torch.equal(rope_frequencies(dim, base), hf_rotary(dim, base).inv_freq)


@pytest.mark.parametrize(("dim", "scaling"), [(128, LLAMA_31), (64, LLAMA_32), (16, LLAMA_31)])
def test_llama3_frequencies_equal_transformers(dim: int, scaling: dict):
    ours = llama3_frequencies(rope_frequencies(dim, 5e5), scaling["factor"])
    theirs = hf_rotary(dim, 5e5, **scaling).inv_freq
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def test_llama3_frequencies_with_other_limits_equal_transformers():
    scaling = {"factor": 5.0, "low_freq_factor": 2.0, "high_freq_factor": 9.0}
    ours = llama3_frequencies(rope_frequencies(32, 1e4), *scaling.values(), 3000)
    hf = hf_rotary(32, 1e4, **LLAMA_31 | scaling | {"original_max_position_embeddings": 3000})
    torch.testing.assert_close(ours, hf.inv_freq, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scaling", [{}, LLAMA_32], ids=["plain", "llama3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rotation_equals_transformers(scaling: dict, dtype: torch.dtype):
    q, k = normal(2, 3, 5, 64).to(dtype), normal(2, 1, 5, 64, seed=1).to(dtype)
    positions = torch.tensor([[0, 0, 0, 1, 2], [90, 7, 4000, 8, 3]])
    cos, sin = hf_rotary(64, 5e5, **scaling)(q, positions)
    frequencies = rope_frequencies(64, 5e5)
    if scaling:
        frequencies = llama3_frequencies(frequencies, scaling["factor"])
    expected = apply_rotary_pos_emb(q, k, cos, sin)
    # transformers multiplies in x's dtype, here float32 is kept to the end
    tolerance = {"rtol": 0, "atol": 1e-3 if dtype == torch.float32 else 5e-2}
    for x, theirs in zip((q, k), expected, strict=True):
        ours = apply_rope(x, positions, frequencies)
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, **tolerance)


# RoPE by closed form and law


def complex_rope(x, positions, frequencies):
    """x_j e^(i p θ_j) in float64, a pair being the real and the imaginary half."""
    angles = positions.double()[..., None] * frequencies.double()
    real, imaginary = x.double().chunk(2, -1)
    turned = torch.complex(real, imaginary) * torch.exp(1j * angles)
    return torch.cat((turned.real, turned.imag), -1).to(x.dtype)


@given(seeds, st.lists(st.integers(0, 200), min_size=5, max_size=5))
def test_rope_is_multiplication_by_a_complex_number(seed: int, positions: list[int]):
    x, p, frequencies = normal(2, 3, 5, 8, seed=seed), torch.tensor(positions), rope_frequencies(8)
    expected = complex_rope(x, p, frequencies)
    torch.testing.assert_close(apply_rope(x, p, frequencies), expected, rtol=0, atol=1e-4)


def test_interleaved_pairs_are_neighbours():
    x, p, frequencies = normal(1, 2, 3, 8), torch.tensor([4, 0, 9]), rope_frequencies(8)
    turned = apply_rope(x, p, frequencies, interleaved=True)
    neighbours = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    expected = neighbours * torch.exp(1j * p[:, None] * frequencies)
    torch.testing.assert_close(turned, torch.view_as_real(expected).flatten(-2))


def test_each_sequence_of_a_batch_has_its_own_positions():
    x, frequencies = normal(3, 2, 4, 6), rope_frequencies(6)
    positions = torch.tensor([[0, 1, 2, 3], [7, 7, 2, 5], [30, 31, 32, 33]])
    together = apply_rope(x, positions, frequencies)
    for b in range(3):
        alone = apply_rope(x[b : b + 1], positions[b], frequencies)
        assert torch.equal(together[b : b + 1], alone)


@given(seeds, st.integers(0, 500), st.integers(0, 500), st.integers(-400, 400))
def test_scores_depend_on_relative_positions_only(seed: int, m: int, n: int, shift: int):
    q, k, frequencies = normal(16, seed=seed), normal(16, seed=seed + 1), rope_frequencies(16)
    score = relative_score(q, k, m, n, frequencies)
    moved = relative_score(q, k, m + shift, n + shift, frequencies)
    torch.testing.assert_close(score, moved, rtol=0, atol=3e-3)


def test_relative_score_by_hand():
    """(1, 0) at position 1 and (0, 1) at position 0, one radian apart: cos(π/2 - 1) = sin 1."""
    q, k = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    score = relative_score(q, k, 1, 0, torch.ones(1))
    assert score.shape == () and score.item() == pytest.approx(math.sin(1))
    assert relative_score(q, k, 0, 1, torch.ones(1)).item() == pytest.approx(-math.sin(1))


@given(seeds, st.integers(0, 5000))
def test_a_turn_keeps_lengths_and_can_be_turned_back(seed: int, position: int):
    x, frequencies = normal(1, 2, 1, 12, seed=seed), rope_frequencies(12)
    turned = apply_rope(x, torch.tensor([position]), frequencies)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    back = apply_rope(turned, torch.tensor([-position]), frequencies)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-5)


@given(seeds, st.integers(0, 200), st.integers(0, 200))
def test_turns_add_up(seed: int, first: int, second: int):
    x, frequencies = normal(1, 1, 1, 8, seed=seed), rope_frequencies(8)
    twice = apply_rope(
        apply_rope(x, torch.tensor([first]), frequencies), torch.tensor([second]), frequencies
    )
    once = apply_rope(x, torch.tensor([first + second]), frequencies)
    torch.testing.assert_close(twice, once, rtol=0, atol=2e-4)


def test_the_rotation_is_an_orthogonal_matrix():
    rows = apply_rope(torch.eye(10)[None, None], torch.full((10,), 23), rope_frequencies(10))[0, 0]
    torch.testing.assert_close(rows @ rows.T, torch.eye(10))
    assert torch.linalg.det(rows).item() == pytest.approx(1, abs=1e-5)


def test_position_zero_changes_nothing_and_no_argument_is_changed():
    x, frequencies = normal(2, 1, 3, 4), rope_frequencies(4)
    before = x.clone()
    assert torch.equal(apply_rope(x, torch.zeros(3, dtype=torch.long), frequencies), x)
    apply_rope(x, torch.arange(3), frequencies)
    assert torch.equal(x, before)


def test_angles_stay_float32_whatever_x_is():
    """In bfloat16 neither position 1001 nor its angle could be written down."""
    x = (torch.rand(1, 1, 2, 8, generator=torch.Generator().manual_seed(0)) - 0.5).bfloat16()
    positions, frequencies = torch.tensor([1001, 4003]), rope_frequencies(8)
    turned = apply_rope(x, positions, frequencies)
    expected = complex_rope(x.double(), positions, frequencies)
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned.double(), expected, rtol=1e-2, atol=1e-3)


def test_gradients_in_float64():
    """The angles stay float32, what is turned keeps its precision."""
    x = normal(2, 2, 3, 4).double().requires_grad_()
    positions, frequencies = torch.tensor([[0, 5, 2], [7, 1, 40]]), rope_frequencies(4)
    for interleaved in (False, True):
        torch.autograd.gradcheck(apply_rope, (x, positions, frequencies, interleaved))
    q, k = normal(4).double().requires_grad_(), normal(4, seed=1).double().requires_grad_()
    torch.autograd.gradcheck(relative_score, (q, k, 3, 8, frequencies))
    torch.autograd.gradcheck(attention_without_positions, (x[0, 0].detach().requires_grad_(),))
    table = normal(9, 3).double().requires_grad_()
    torch.autograd.gradcheck(learned_positions, (table, positions.clamp(max=8)))


# Llama 3's bands


def bands(dim: int, factor: float) -> tuple[int, int, int]:
    before = rope_frequencies(dim, 500000.0)
    ratio = before / llama3_frequencies(before, factor)
    kept, slowed = torch.isclose(ratio, torch.ones(())), torch.isclose(ratio, torch.tensor(factor))
    return int(kept.sum()), int((~kept & ~slowed).sum()), int(slowed.sum())


def test_the_published_bands():
    assert bands(64, 32.0) == (15, 3, 14)  # Llama 3.2 1B
    assert sum(bands(128, 8.0)) == 64
    assert bands(128, 8.0) == (29, 6, 29)  # Llama 3.1 8B


def test_llama3_frequencies_are_monotonous_and_bounded():
    before = rope_frequencies(128, 500000.0)
    after = llama3_frequencies(before, 8.0)
    assert (after.diff() < 0).all()
    assert (after <= before).all() and (after >= before / 8 - 1e-12).all()
    assert torch.equal(llama3_frequencies(before, 1.0), before)


# Rows of q and k


def test_reordered_rows_and_halves_give_the_scores_of_interleaved_pairs():
    heads, width, dim = 3, 6, 5
    wq, wk, x = (
        normal(heads * width, dim),
        normal(heads * width, dim, seed=1),
        normal(4, dim, seed=2),
    )
    frequencies, positions = rope_frequencies(width), torch.tensor([3, 1, 8, 20])

    def scores(wq, wk, interleaved):
        q, k = ((x @ w.T).unflatten(-1, (heads, width)).transpose(0, 1)[None] for w in (wq, wk))
        q, k = (apply_rope(t, positions, frequencies, interleaved) for t in (q, k))
        return q @ k.transpose(-1, -2)

    expected = scores(wq, wk, interleaved=True)
    reordered = [interleaved_to_half(w, heads) for w in (wq, wk)]
    torch.testing.assert_close(scores(*reordered, interleaved=False), expected)
    assert not torch.allclose(scores(wq, wk, interleaved=False), expected, atol=0.1)


def test_the_order_of_rows():
    weight = torch.arange(12.0)[:, None]
    order = [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert interleaved_to_half(weight, 2)[:, 0].tolist() == order
    assert interleaved_to_half(weight[:, 0], 2).tolist() == order  # a bias
