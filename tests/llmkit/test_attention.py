import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from llmkit.attention import (
    GroupedQueryAttention,
    KVCache,
    causal_mask,
    kv_cache_bytes,
    merge_heads,
    repeat_kv,
    scaled_dot_product_attention,
    sliding_window_mask,
    softmax,
    split_heads,
)
from llmkit.positions import learned_positions, rope_frequencies, rope_tables
from llmkit.transformer import PRESETS
from tests.llmkit.gradients import assert_gradients


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmax_is_torchs_and_does_not_overflow(dim):
    torch.manual_seed(0)
    x = torch.randn(3, 5, 2) * 1000
    torch.testing.assert_close(softmax(x, dim), x.softmax(dim))


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 5))
def test_causal_mask_by_its_definition(queries, keys, offset):
    mask = causal_mask(queries, keys, offset)
    assert mask.tolist() == [[j <= i + offset for j in range(keys)] for i in range(queries)]


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 10), st.integers(0, 5))
def test_sliding_window_mask_by_its_definition(queries, keys, window, offset):
    mask = sliding_window_mask(queries, keys, window, offset)
    expected = [[0 <= i + offset - j < window for j in range(keys)] for i in range(queries)]
    assert mask.tolist() == expected


def test_scaled_dot_product_attention_by_loops():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2), torch.randn(5, 2), torch.randn(5, 4)
    mask = causal_mask(3, 5, offset=1)
    expected = torch.zeros(3, 4)
    for i in range(3):
        seen = [j for j in range(5) if j <= i + 1]
        weights = [math.exp(float(q[i] @ k[j]) / math.sqrt(2)) for j in seen]
        for j, weight in zip(seen, weights, strict=True):
            expected[i] += weight / sum(weights) * v[j]
    torch.testing.assert_close(scaled_dot_product_attention(q, k, v, mask), expected)


@pytest.mark.parametrize("masked", [False, True])
def test_scaled_dot_product_attention_is_torchs(masked):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 6)
    mask = torch.rand(2, 1, 5, 7) > 0.3 if masked else None
    expected = F.scaled_dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(scaled_dot_product_attention(q, k, v, mask), expected)


def test_a_query_that_may_see_nothing_gets_zeros_and_a_finite_gradient():
    q, k, v = (torch.randn(2, 3, requires_grad=True) for _ in range(3))
    mask = torch.tensor([[False, False], [True, True]])
    out = scaled_dot_product_attention(q, k, v, mask)
    out.sum().backward()
    assert torch.equal(out[0], torch.zeros(3))
    assert q.grad.isfinite().all() and k.grad.isfinite().all() and v.grad.isfinite().all()


def test_heads_split_and_merge():
    x = torch.arange(2 * 3 * 20).view(2, 3, 20)
    heads = split_heads(x, 4)
    assert heads.shape == (2, 4, 3, 5)
    assert torch.equal(heads[1, 2, 0], x[1, 0, 10:15])
    assert torch.equal(merge_heads(heads), x)


def test_repeat_kv_keeps_copies_together():
    x = torch.tensor([10, 20]).view(1, 2, 1, 1)
    assert repeat_kv(x, 3).flatten().tolist() == [10, 10, 10, 20, 20, 20]


# grouped-query attention

HEADS = {"MHA": (6, 6), "GQA": (6, 2), "MQA": (6, 1)}
DIM, HEAD_DIM, LENGTH = 21, 4, 11


def attention_and_input(kind: str) -> tuple[GroupedQueryAttention, torch.Tensor, tuple]:
    torch.manual_seed(0)
    layer = GroupedQueryAttention(DIM, *HEADS[kind], HEAD_DIM)
    rope = rope_tables(torch.arange(LENGTH), rope_frequencies(HEAD_DIM))
    return layer, torch.randn(3, LENGTH, DIM), rope


@pytest.mark.parametrize("kind", HEADS)
def test_attention_layer_against_the_plain_formula(kind):
    layer, x, _ = attention_and_input(kind)
    heads, kv_heads = HEADS[kind]
    q = split_heads(layer.q_proj(x), heads)
    k = repeat_kv(split_heads(layer.k_proj(x), kv_heads), heads // kv_heads)
    v = repeat_kv(split_heads(layer.v_proj(x), kv_heads), heads // kv_heads)
    plain = scaled_dot_product_attention(q, k, v, causal_mask(LENGTH, LENGTH))
    torch.testing.assert_close(layer(x), layer.o_proj(merge_heads(plain)))


CHUNKS = {"prefill": [11], "chunked": [4, 5, 2], "single steps": [1] * 11}


@pytest.mark.parametrize(
    ("kind", "chunks", "offset", "ragged", "positions"),
    list(itertools.product(HEADS, CHUNKS, (0, 7), (False, True), ("RoPE", "learned"))),
)
@torch.no_grad()
def test_cached_equals_uncached(kind, chunks, offset, ragged, positions):
    """Each row of a batch fed in pieces, padded on the left, against that row alone and at once.

    `offset` positions are in the cache before the pieces come.
    """
    torch.manual_seed(0)
    layer, total = GroupedQueryAttention(DIM, *HEADS[kind], HEAD_DIM), offset + LENGTH
    x, table = torch.randn(3, total, DIM), torch.randn(total, DIM)
    pads = torch.tensor([0, 5, 2] if ragged else [0, 0, 0])
    real = torch.arange(total) >= pads[:, None]
    at = (real.cumsum(-1) - 1).clamp(min=0)

    def attend(x, at, cache=None, mask=None):
        if positions == "learned":
            return layer(x + learned_positions(table, at), None, cache, mask)
        return layer(x, rope_tables(at, rope_frequencies(HEAD_DIM)), cache, mask)

    cache = KVCache(3, HEADS[kind][1], total + 2, HEAD_DIM)
    cache.keys.fill_(math.nan)  # what was never written must never be read
    cache.values.fill_(math.nan)
    pieces, start = [], 0
    for size in [offset, *CHUNKS[chunks]]:
        here, end = slice(start, start + size), start + size
        seen = causal_mask(size, end, start) & real[:, None, None, :end]
        pieces.append(attend(x[:, here], at[:, here], cache, seen if ragged else None))
        start = end
    cached = torch.cat(pieces, 1)
    assert cache.offset == total and cached.isfinite().all()
    for row, pad in enumerate(pads.tolist()):
        alone = attend(x[row : row + 1, pad:], torch.arange(total - pad))[0]
        torch.testing.assert_close(cached[row, pad:], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunks", [[13], [4, 5, 4], [1] * 13, [6, 1, 6], [2, 11]])
@pytest.mark.parametrize("window", [1, 3, 5, 20])
@pytest.mark.parametrize("ragged", [False, True])
@torch.no_grad()
def test_sliding_window(chunks, window, ragged):
    torch.manual_seed(0)
    layer = GroupedQueryAttention(DIM, 6, 2, HEAD_DIM, window)
    x, real = torch.randn(2, 13, DIM), torch.ones(2, 13, dtype=torch.bool)
    if ragged:
        real[1, :4] = False
    q, k, v = layer.q_proj(x), layer.k_proj(x), layer.v_proj(x)
    q, k, v = split_heads(q, 6), *(repeat_kv(split_heads(t, 2), 3) for t in (k, v))
    seen = sliding_window_mask(13, 13, window) & real[:, None, None, :]
    expected = layer.o_proj(merge_heads(scaled_dot_product_attention(q, k, v, seen)))
    cache, pieces, start = KVCache(2, 2, 13, HEAD_DIM), [], 0
    for size in chunks:
        here, end = slice(start, start + size), start + size
        mask = causal_mask(size, end, start) & real[:, None, None, :end] if ragged else None
        pieces.append(layer(x[:, here], None, cache, mask))
        start = end
    torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=1e-5, atol=1e-5)
    if not ragged:
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunks", [[11], [4, 7], [1] * 11])
@torch.no_grad()
def test_the_kernel_reads_the_cache_itself_once(chunks, monkeypatch):
    layer, x, _ = attention_and_input("GQA")
    cache, start, kernel, calls = KVCache(3, 2, 20, 4), 0, F.scaled_dot_product_attention, []
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: calls.append(a) or kernel(*a, **k)
    )
    for size in chunks:
        layer(x[:, start : start + size], None, cache)
        start += size
    assert len(calls) == len(chunks)
    for _, key, value, *_ in calls:
        assert key.data_ptr() == cache.keys.data_ptr()
        assert value.data_ptr() == cache.values.data_ptr()


@pytest.mark.parametrize("kind", HEADS)
def test_a_query_that_may_see_nothing_is_not_nan_in_the_layer_either(kind):
    layer, x, _ = attention_and_input(kind)
    x.requires_grad_()
    mask = causal_mask(LENGTH, LENGTH)[None, None].repeat(3, 1, 1, 1)
    mask[1, :, :4] = False
    out = layer(x, mask=mask)
    assert torch.equal(out[1, :4], torch.zeros(4, DIM))
    torch.testing.assert_close(out[0], layer(x)[0])
    out.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("mask", ["none", "ragged"])
@pytest.mark.parametrize("window", [None, 2])
def test_gradients(mask, window):
    torch.manual_seed(0)
    layer = GroupedQueryAttention(5, 4, 2, 2, window)
    x = torch.randn(2, 4, 5, dtype=torch.double, requires_grad=True)
    rope = rope_tables(torch.arange(4), rope_frequencies(2))
    seen = causal_mask(4, 4) & torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]).bool()[:, None, None]
    assert_gradients(layer, x, rope, None, seen if mask == "ragged" else None)


def test_gradients_of_the_formula():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 2, dtype=torch.double, requires_grad=True) for _ in range(3))
    for mask in (None, causal_mask(3, 3), causal_mask(3, 3, offset=-1)):
        torch.autograd.gradcheck(scaled_dot_product_attention, (q, k, v, mask))
    torch.autograd.gradcheck(softmax, (q, 1))


def test_future_does_not_reach_the_past():
    layer, x, rope = attention_and_input("GQA")
    changed = x.clone()
    changed[:, 6:] += 1
    before, after = layer(x, rope), layer(changed, rope)
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_heads_must_divide():
    with pytest.raises(ValueError, match="6 query heads cannot share 4 key/value heads"):
        GroupedQueryAttention(24, 6, 4)


def test_a_window_holds_the_query_itself():
    with pytest.raises(ValueError, match="window must be at least 1, the query's own position"):
        GroupedQueryAttention(24, 6, 6, window=0)


# the cache


def filled_cache() -> KVCache:
    """Three rows, two positions of five; row r, position p: key r + p/10, value 10 more."""
    cache = KVCache(3, 1, 5, 1)
    key = torch.tensor([[0.0, 0.1], [1.0, 1.1], [2.0, 2.1]])[:, None, :, None]
    cache.update(key, key + 10)
    return cache


@pytest.mark.parametrize("rows", [[2, 0, 1], [1, 1], [0], [2, 2, 0, 1, 1]])
def test_select_reorders_repeats_and_drops_rows(rows):
    cache = filled_cache()
    cache.select(torch.tensor(rows))
    new = torch.full((len(rows), 1, 1, 1), 7.0)
    keys, values = cache.update(new, new)
    assert keys[..., 0].flatten(1).tolist() == [[r, pytest.approx(r + 0.1), 7] for r in rows]
    assert values[:, 0, 0, 0].tolist() == [r + 10 for r in rows]
    keys[0] = 99  # repeated rows are copies
    assert not (keys[1:] == 99).any()


@pytest.mark.parametrize("rows", [torch.tensor([3]), torch.tensor([0.0])])
def test_select_of_what_is_not_there_changes_nothing(rows):
    cache = filled_cache()
    with pytest.raises(IndexError):
        cache.select(rows)
    assert cache.keys.shape == cache.values.shape == (3, 1, 5, 1)


def test_crop_forgets_the_last_positions():
    cache = filled_cache()
    cache.crop(2)
    cache.crop(1)
    new = torch.full((3, 1, 1, 1), 7.0)
    keys, _ = cache.update(new, new)
    assert keys[..., 0].flatten(1).tolist() == [[0, 7], [1, 7], [2, 7]]
    cache.crop(0)
    assert cache.offset == 0 and cache.mask(4) is None


@pytest.mark.parametrize("length", [3, -1])
def test_crop_beyond_what_is_held(length):
    cache = filled_cache()
    with pytest.raises(ValueError, match=f"holds 2 positions and cannot be cropped to {length}"):
        cache.crop(length)
    assert cache.offset == 2


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 1, 1), (3, 1, 1, 4)])
def test_keys_of_another_shape_are_refused_not_broadcast(shape):
    cache = filled_cache()
    with pytest.raises(ValueError, match=r"of shape \(3, 1, 1, 1\), \(B, K, T, d\), not"):
        cache.update(torch.ones(shape), torch.ones(shape))
    assert cache.offset == 2


@torch.no_grad()
def test_full_cache_says_so_and_is_left_as_it_was():
    cache = KVCache(1, 1, 3, 2)
    cache.update(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    with pytest.raises(ValueError, match="room for 3 positions and holds 2: 2 more do not fit"):
        cache.update(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    keys, _ = cache.update(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
    assert keys[0, 0].tolist() == [[1, 1], [1, 1], [0, 0]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama-2-7b", 524_288),
        ("llama-2-70b", 327_680),
        ("llama-3-70b", 327_680),
        ("llama-3-8b", 131_072),
        ("llama-3.2-1b", 32_768),
        ("smollm2-135m", 23_040),
    ],
)
def test_kv_cache_bytes_per_token(name, expected):
    c = PRESETS[name]
    assert kv_cache_bytes(c.num_hidden_layers, c.num_key_value_heads, c.head_dim) == expected


def test_kv_cache_bytes_are_those_of_the_cache():
    cache = KVCache(2, 3, 5, 7, dtype=torch.float32)
    held = cache.keys.nbytes + cache.values.nbytes
    assert kv_cache_bytes(1, 3, 7, length=5, batch_size=2, bytes_per_value=4) == held
