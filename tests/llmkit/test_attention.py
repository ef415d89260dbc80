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
    softmax,
    split_heads,
)
from llmkit.positions import rope_frequencies, rope_tables
from llmkit.transformer import PRESETS


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmax_is_torchs_and_does_not_overflow(dim):
    torch.manual_seed(0)
    x = torch.randn(3, 5, 2) * 1000
    torch.testing.assert_close(softmax(x, dim), x.softmax(dim))


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 5))
def test_causal_mask_by_its_definition(queries, keys, offset):
    mask = causal_mask(queries, keys, offset)
    assert mask.tolist() == [[j <= i + offset for j in range(keys)] for i in range(queries)]


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


CHUNKS = {"prefill": [11], "chunked": [4, 5, 2], "steps": [1] * 11, "prefill+steps": [7, 1, 1, 2]}


@pytest.mark.parametrize(("kind", "chunks"), list(itertools.product(HEADS, CHUNKS)))
@torch.no_grad()
def test_cached_equals_uncached(kind, chunks):
    layer, x, rope = attention_and_input(kind)
    cache = KVCache(3, HEADS[kind][1], LENGTH + 2, HEAD_DIM)
    cache.keys.fill_(math.nan)  # what was never written must never be read
    cache.values.fill_(math.nan)
    pieces, start = [], 0
    for size in CHUNKS[chunks]:
        here = slice(start, start := start + size)
        pieces.append(layer(x[:, here], (rope[0][here], rope[1][here]), cache))
    torch.testing.assert_close(torch.cat(pieces, 1), layer(x, rope)[:, :start])
    assert cache.offset == start


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
