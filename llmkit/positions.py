"""Positions: how a Transformer learns where each token stands.

Attention on its own sees a bag of tokens. Three ways to tell it about order, from oldest to newest:
a formula added to the embeddings (sinusoidal), a trained table added to the embeddings (learned),
and a rotation of queries and keys (rotary, RoPE), which Llama uses.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_without_positions(x: Tensor) -> Tensor:
    """The barest self-attention: softmax(x xᵀ / √D) x, a mean of rows, weighted by likeness.

    No projection, no mask and no position, so it is permutation equivariant: reordering the rows
    of x reorders the rows of the result and changes nothing else. `llmkit.attention` has the rest.

    Shapes: (..., T, D) -> (..., T, D).
    """
    scores = x @ x.transpose(-2, -1) / math.sqrt(x.shape[-1])
    return scores.softmax(dim=-1) @ x


def sinusoidal_positions(positions: Tensor, dim: int, base: float = 10000.0) -> Tensor:
    """Sinusoidal encodings (Vaswani et al., 2017, §3.5), to be added to the embeddings.

    Column 2i holds sin(p θ_i) and column 2i+1 holds cos(p θ_i), where θ_i = base^(-2i/dim).

    Shapes: positions (T,) -> (T, D) in float32, with D = dim. Raises ValueError if dim is odd.
    """
    angles = _angles(positions, rope_frequencies(dim, base))
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def learned_positions(table: Tensor, positions: Tensor) -> Tensor:
    """Learned encodings (GPT-2, BERT): row p of a trained table, to be added to the embeddings.

    Shapes: table (N, D), positions (T,) or (B, T) -> (T, D) or (B, T, D).
    Raises IndexError (on a CPU) for a position outside 0 … N-1: the table has an end.
    """
    return F.embedding(positions, table)


def rope_frequencies(dim: int, base: float = 10000.0) -> Tensor:
    """Angular frequencies of RoPE, θ_i = base^(-2i/dim), in radians per position (Su et al., 2021).

    The first pair of features turns by one radian per position, every later pair more slowly.

    Shapes: (d/2,) in float32, with d = dim. Raises ValueError if dim is odd.
    """
    if dim % 2:
        raise ValueError(f"positions are encoded in pairs of features, so dim must be even: {dim}")
    return 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def rope_tables(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every angle p θ_i, computed in float32.

    A model computes them once per call and every layer shares them.

    Shapes: positions (T,) or (B, T), frequencies (d/2,) -> two of (T, d/2) or (B, T, d/2).
    """
    angles = _angles(positions, frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Turn each pair of features: (a, b) -> (a cos - b sin, a sin + b cos).

    A pair is feature i with feature i + d/2 (Hugging Face), or, if interleaved, feature 2i with
    feature 2i + 1 (Meta, GGUF). Computed in float32, as the tables are, and returned in x's dtype.

    Shapes: x (B, H, T, d), cos and sin (T, d/2) or (B, T, d/2) -> (B, H, T, d).
    """
    if cos.ndim == 3:  # one table per sequence of the batch, shared by its heads
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    if interleaved:
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
    else:
        a, b = x.chunk(2, dim=-1)
        turned = torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
    return turned.type_as(x)


def apply_rope(
    x: Tensor, positions: Tensor, frequencies: Tensor, interleaved: bool = False
) -> Tensor:
    """Rotary position embedding (Su et al., 2021, §3.2): turn queries or keys by their positions.

    Positions are whatever the caller says: they need not start at 0, grow, or be whole numbers.

    Shapes: x (B, H, T, d), positions (T,) or (B, T), frequencies (d/2,) -> (B, H, T, d).
    """
    return rotate(x, *rope_tables(positions, frequencies), interleaved)


def relative_score(
    q: Tensor, k: Tensor, m: int | Tensor, n: int | Tensor, frequencies: Tensor
) -> Tensor:
    """Dot product of query q standing at position m and key k standing at position n, under RoPE.

    It depends on m and n through m - n only (Su et al., 2021, eq. 16). Not divided by √d.

    Shapes: q and k (d,), m and n whole numbers, frequencies (d/2,) -> ().
    """
    m, n = (torch.as_tensor(p, device=q.device) for p in (m, n))
    return (apply_rope(q, m, frequencies) * apply_rope(k, n, frequencies)).sum(-1)


def llama3_frequencies(
    frequencies: Tensor,
    factor: float,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    original_context: int = 8192,
) -> Tensor:
    """Frequencies stretched for a longer context, as in Llama 3.1 and later (`rope_type: llama3`).

    A pair that makes at least `high_freq_factor` full turns within the original context keeps its
    frequency. One that makes at most `low_freq_factor` turns is slowed down by `factor`. Between
    the two limits the frequency is a weighted mean of both, the weight linear in the turns.

    Shapes: (d/2,) -> (d/2,).
    """
    turns = original_context * frequencies / (2 * math.pi)
    kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / factor


def interleaved_to_half(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder the rows of a q or k projection from interleaved pairs (Meta, GGUF) to halves (HF).

    In each head, rows 0, 2, 4, … come first and rows 1, 3, 5, … after them. Scores do not change,
    if the rotation changes from interleaved to halves with them.

    Shapes: (H*d, D) -> (H*d, D), or a bias (H*d,) -> (H*d,).
    """
    return weight.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _angles(positions: Tensor, frequencies: Tensor) -> Tensor:
    # bfloat16 cannot even tell position 256 from 257, so angles are never computed in less
    return positions[..., None].float() * frequencies.float()
