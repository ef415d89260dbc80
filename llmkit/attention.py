"""Attention: how a position gathers what it needs from the positions before it.

From the formula (`scaled_dot_product_attention`) to the layer of a Llama (`GroupedQueryAttention`)
and the memory that makes generation cheap (`KVCache`).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkit.positions import rotate


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """exp(x) / Σ exp(x) along `dim`; the maximum is subtracted first, so that nothing overflows."""
    exponentials = (x - x.amax(dim, keepdim=True)).exp()
    return exponentials / exponentials.sum(dim, keepdim=True)


def causal_mask(
    query_length: int,
    key_length: int,
    offset: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """True where a query may look: query i stands at i + offset and sees the keys up to there.

    The offset is the number of positions that a cache held before these queries came.

    Shapes: (T, S) of bool.
    """
    queries = torch.arange(query_length, device=device) + offset
    keys = torch.arange(key_length, device=device)
    return keys <= queries[:, None]


def sliding_window_mask(
    query_length: int,
    key_length: int,
    window: int,
    offset: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """`causal_mask`, but a query sees only the last `window` keys, its own position included.

    Shapes: (T, S) of bool.
    """
    seen = causal_mask(query_length, key_length, offset, device)
    return seen & ~causal_mask(query_length, key_length, offset - window, device)


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    """softmax(q kᵀ / √d) v (Vaswani et al., 2017, eq. 1), where `mask`, if given, is True.

    A query that may look at no key at all gets zeros.

    Shapes: query (..., T, d), key and value (..., S, d), mask broadcastable to (..., T, S)
    -> (..., T, d).
    """
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if mask is None:
        return softmax(scores) @ value
    # a finite floor rather than -inf: a row with no key left must not become 0/0
    floor = torch.finfo(scores.dtype).min
    weights = softmax(scores.masked_fill(~mask, floor)).masked_fill(~mask, 0.0)
    return weights @ value


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Cut the width into heads: (B, T, H*d) -> (B, H, T, d)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Put the heads side by side again: (B, H, T, d) -> (B, T, H*d)."""
    return x.transpose(1, 2).flatten(2)


def repeat_kv(x: Tensor, groups: int) -> Tensor:
    """Give each query head its own copy of the key/value head it shares.

    Copies of one head stand next to each other: query heads 0 … groups-1 use key/value head 0.

    Shapes: (B, K, S, d) -> (B, K*groups, S, d).
    """
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


class KVCache:
    """Keys and values of the positions already seen by one attention layer.

    Memory for `capacity` positions is taken once. The cache knows how many it holds (`offset`),
    and so which position comes next and what a new query may look at.

    Shapes: keys and values (B, K, capacity, d).
    """

    def __init__(
        self,
        batch_size: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ):
        shape = (batch_size, num_kv_heads, capacity, head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.offset = 0

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new positions; return all live ones.

        Shapes: key and value (B, K, T, d) -> two of (B, K, offset + T, d), views of the cache.
        Raises ValueError if they do not fit.
        """
        end = self.offset + key.shape[2]
        if end > self.capacity:
            raise ValueError(
                f"The KV cache has room for {self.capacity} positions and holds {self.offset}: "
                f"{key.shape[2]} more do not fit; make it with a larger capacity."
            )
        room = self.keys[:, :, self.offset : end].shape
        if not key.shape == value.shape == room:
            raise ValueError(
                f"The KV cache takes keys and values of shape {tuple(room)}, (B, K, T, d), "
                f"not {tuple(key.shape)} and {tuple(value.shape)}."
            )
        self.keys[:, :, self.offset : end] = key
        self.values[:, :, self.offset : end] = value
        self.offset = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def mask(self, query_length: int) -> Tensor | None:
        """Causal mask of the next `query_length` queries, to be asked for before `update`.

        None where no mask is needed: an empty cache (plain causal attention), or a single query,
        which may look at everything.

        Shapes: (T, offset + T) of bool.
        """
        if self.offset == 0 or query_length == 1:
            return None
        return causal_mask(query_length, self.offset + query_length, self.offset, self.keys.device)

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order; a row may be taken often, or not at all.

        So a beam search forks its beams and drops others.

        Shapes: rows (N,), whole numbers from 0 to B-1; the batch size becomes N.
        """
        self.keys, self.values = self.keys[rows], self.values[rows]

    def crop(self, length: int) -> None:
        """Forget all but the first `length` positions, such as guesses that proved wrong.

        Raises ValueError if the cache does not hold so many.
        """
        if not 0 <= length <= self.offset:
            raise ValueError(
                f"The KV cache holds {self.offset} positions and cannot be cropped to {length}."
            )
        self.offset = length


class GroupedQueryAttention(nn.Module):
    """Causal self-attention with H query heads that share K key/value heads (Ainslie et al., 2023).

    K = H is multi-head attention (MHA), K = 1 multi-query attention (MQA). With a `window`, a query
    sees the last `window` positions only, its own included (Mistral).

    Shapes: x (B, T, D) -> (B, T, D).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int | None = None,
        window: int | None = None,
    ):
        super().__init__()
        if num_heads % num_kv_heads:
            raise ValueError(
                f"{num_heads} query heads cannot share {num_kv_heads} key/value heads evenly: "
                "choose a divisor."
            )
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1, the query's own position, not {window}.")
        head_dim = head_dim or dim // num_heads
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.window = window
        self.q_proj = nn.Linear(dim, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(dim, num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(dim, num_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, dim, bias=False)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None = None,
        cache: KVCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Attend; causally, unless a mask says otherwise.

        Shapes: rope is (cos, sin) of `rope_tables`, each (T, d/2) or (B, T, d/2);
        mask broadcastable to (B, 1, T, S), True where a query may look.
        """
        query = split_heads(self.q_proj(x), self.num_heads)
        key = split_heads(self.k_proj(x), self.num_kv_heads)
        value = split_heads(self.v_proj(x), self.num_kv_heads)
        if rope is not None:
            query, key = rotate(query, *rope), rotate(key, *rope)
        if cache is not None:
            mask = cache.mask(x.shape[1]) if mask is None else mask
            key, value = cache.update(key, value)
        if self.window is not None and key.shape[2] > self.window:
            key, value, mask = self._look_through_window(x.shape[1], key, value, mask)
        return self.o_proj(merge_heads(self._attend(query, key, value, mask)))

    def _look_through_window(
        self, length: int, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The keys and values that any of the last `length` positions sees, and the mask there."""
        reach = min(key.shape[2], self.window + length - 1)
        key, value = key[:, :, -reach:], value[:, :, -reach:]
        mask = None if mask is None else mask[..., -reach:]
        if length > 1:  # a single query sees all that is left
            window = sliding_window_mask(length, reach, self.window, reach - length, key.device)
            mask = window if mask is None else mask & window
        return key, value, mask

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """`scaled_dot_product_attention` by one call of PyTorch's fused kernel, shapes likewise.

        The kernel wants as many key/value heads as query heads, but none is copied. (Its own way,
        `enable_gqa`, falls back to a slow kernel on a GPU, given a mask or float32.)
        """
        batch, _, length, width = query.shape
        groups = self.num_heads // self.num_kv_heads
        if mask is None and length > 1:
            # each key/value head is a sequence of its own, seen by its group through a view
            query = query.reshape(batch * self.num_kv_heads, groups, length, width)
            key, value = (x.flatten(0, 1)[:, None].expand(-1, groups, -1, -1) for x in (key, value))
            attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            # the queries of a group stand in line: the heads' keys are read once for all of them
            query = query.reshape(batch, self.num_kv_heads, groups * length, width)
            if mask is not None and mask.shape[-2] > 1:
                mask = torch.cat([mask] * groups, dim=-2)
            attended = F.scaled_dot_product_attention(query, key, value, mask)
        return attended.reshape(batch, self.num_heads, length, width)


def kv_cache_bytes(
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    length: int = 1,
    batch_size: int = 1,
    bytes_per_value: int = 2,
) -> int:
    """Bytes of a KV cache: a key and a value for each layer, key/value head, feature and position.

    With the defaults: bytes per token in bfloat16.
    """
    return 2 * num_layers * num_kv_heads * head_dim * length * batch_size * bytes_per_value
