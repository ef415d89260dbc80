"""Chapter 04: telling attention where each token stands."""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from autograder.check import Case, Check, Misconception, Question
from llmkit import positions as reference

# Wrong solutions and variants are written as a student would write them, each whole in itself,
# without llmkit: a class of synthetic students is made of their source.


def normal(rng: Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=rng).to(dtype)


def whole(rng: Generator, low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high, shape, generator=rng)


def angular(dim: int, base: float = 10000.0) -> Tensor:
    return reference.rope_frequencies(dim, base)


# attention_without_positions ---------------------------------------------------------------------


def bag_cases(rng: Generator) -> list[Case]:
    x = normal(rng, 5, 3)
    return [
        Case(x).titled("five tokens"),
        Case(x[[3, 0, 4, 2, 1]]).titled("the same five tokens in another order"),
        Case(normal(rng, 1, 7)).titled("a single token"),
        Case(40 * normal(rng, 3, 6)).titled("long vectors, whose scores are in the hundreds"),
        Case(normal(rng, 4, 6, dtype=torch.float64).T).titled("float64, transposed in memory"),
    ]


def bag_unscaled(x: Tensor) -> Tensor:
    return (x @ x.T).softmax(dim=-1) @ x


def bag_divided_by_width(x: Tensor) -> Tensor:
    return (x @ x.T / x.shape[-1]).softmax(dim=-1) @ x


def bag_divided_by_root_length(x: Tensor) -> Tensor:
    return (x @ x.T / math.sqrt(x.shape[0])).softmax(dim=-1) @ x


def bag_softmax_over_columns(x: Tensor) -> Tensor:
    return (x @ x.T / math.sqrt(x.shape[-1])).softmax(dim=0) @ x


def bag_without_softmax(x: Tensor) -> Tensor:
    return (x @ x.T / math.sqrt(x.shape[-1])) @ x


def bag_weights_only(x: Tensor) -> Tensor:
    return (x @ x.T / math.sqrt(x.shape[-1])).softmax(dim=-1)


def bag_causal(x: Tensor) -> Tensor:
    later = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    scores = (x @ x.T / math.sqrt(x.shape[-1])).masked_fill(later, -math.inf)
    return scores.softmax(dim=-1) @ x


def bag_overflowing(x: Tensor) -> Tensor:
    weights = (x @ x.T / math.sqrt(x.shape[-1])).exp()
    return weights / weights.sum(dim=-1, keepdim=True) @ x


def bag_built_in(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x[None], x[None], x[None])[0]


def bag_einsum(x: Tensor) -> Tensor:
    scores = torch.einsum("td,sd->ts", x, x) * x.shape[1] ** -0.5
    return torch.einsum("ts,sd->td", torch.softmax(scores, 1), x)


def bag_loop(x: Tensor) -> Tensor:
    rows = []
    for query in x:
        scores = torch.stack([query.dot(key) for key in x]) / math.sqrt(len(query))
        weights = (scores - scores.max()).exp()
        rows.append(sum(w * value for w, value in zip(weights / weights.sum(), x, strict=True)))
    return torch.stack(rows)


ATTENTION_WITHOUT_POSITIONS = Check(
    reference=reference.attention_without_positions,
    points=3,
    cases=bag_cases,
    # scores in the hundreds carry rounding errors of 1e-4, and exp makes them relative ones
    tolerance=(1e-3, 1e-3),
    misconceptions=[
        Misconception(
            "the scores are not divided by √D",
            bag_unscaled,
            "A dot product of two random vectors of D numbers has variance D. "
            "By what must it be divided for a variance of 1?",
        ),
        Misconception(
            "the scores are divided by D, not by √D",
            bag_divided_by_width,
            "If the variance of a score is D, what is its standard deviation?",
        ),
        Misconception(
            "the scores are divided by √T, the number of tokens",
            bag_divided_by_root_length,
            "Over which axis does the dot product sum, and how long is that axis?",
        ),
        Misconception(
            "the softmax runs over the columns: each column sums to 1, not each row",
            bag_softmax_over_columns,
            "Row t holds the weights with which token t mixes the others. What must they sum to?",
        ),
        Misconception(
            "there is no softmax: the raw scores are used as weights",
            bag_without_softmax,
            "Are your weights positive, and does each row sum to 1? What would make them so?",
        ),
        Misconception(
            "the weights are returned, not the mixture",
            bag_weights_only,
            "The weights have shape (T, T). What do they weigh, and what shape has the result?",
        ),
        Misconception(
            "a causal mask hides the later tokens",
            bag_causal,
            "A causal mask makes row 0 special: it sees one token. Is that still a bag?",
        ),
        Misconception(
            "exp overflows: the largest score is not subtracted first",
            bag_overflowing,
            "What is exp(100) in float32? Chapter 02 met this. Which function guards against it?",
        ),
    ],
    variants=[bag_built_in, bag_einsum, bag_loop],
)


# sinusoidal_positions ----------------------------------------------------------------------------


def sinusoidal_cases(rng: Generator) -> list[Case]:
    return [
        Case(torch.arange(7), 8).titled("positions 0 … 6"),
        Case(20 + 3 * torch.randperm(5, generator=rng), 6).titled("positions in no order"),
        Case(whole(rng, 3, 90, 4), 10, base=300.0).titled("another base"),
        Case(whole(rng, 500, 1000, 3), 12).titled("positions in the hundreds"),
    ]


def sinusoidal_swapped(positions: Tensor, dim: int, base: float = 10000.0) -> Tensor:
    angles = positions[:, None] / base ** (torch.arange(0, dim, 2) / dim)
    return torch.stack((angles.cos(), angles.sin()), dim=-1).flatten(1)


def sinusoidal_halved_exponent(positions: Tensor, dim: int, base: float = 10000.0) -> Tensor:
    angles = positions[:, None] / base ** (torch.arange(dim // 2) / dim)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def sinusoidal_halves(positions: Tensor, dim: int, base: float = 10000.0) -> Tensor:
    angles = positions[:, None] / base ** (torch.arange(0, dim, 2) / dim)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def sinusoidal_unequal_pair(positions: Tensor, dim: int, base: float = 10000.0) -> Tensor:
    angles = positions[:, None] / base ** (torch.arange(dim) / dim)
    return torch.where(torch.arange(dim) % 2 == 0, angles.sin(), angles.cos())


def sinusoidal_multiplied(positions: Tensor, dim: int, base: float = 10000.0) -> Tensor:
    angles = positions[:, None] * base ** (torch.arange(0, dim, 2) / dim)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def sinusoidal_degrees(positions: Tensor, dim: int, base: float = 10000.0) -> Tensor:
    angles = torch.deg2rad(positions[:, None] / base ** (torch.arange(0, dim, 2) / dim))
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def sinusoidal_of_index(positions: Tensor, dim: int, base: float = 10000.0) -> Tensor:
    index = torch.arange(len(positions))
    angles = index[:, None] / base ** (torch.arange(0, dim, 2) / dim)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def sinusoidal_from_one(positions: Tensor, dim: int, base: float = 10000.0) -> Tensor:
    angles = (positions[:, None] + 1) / base ** (torch.arange(0, dim, 2) / dim)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def sinusoidal_fixed_base(positions: Tensor, dim: int, base: float = 10000.0) -> Tensor:
    angles = positions[:, None] / 10000 ** (torch.arange(0, dim, 2) / dim)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def sinusoidal_loop(positions: Tensor, dim: int, base: float = 10000.0) -> Tensor:
    rows = []
    for p in positions.tolist():
        row = []
        for i in range(dim // 2):
            row += [math.sin(p / base ** (2 * i / dim)), math.cos(p / base ** (2 * i / dim))]
        rows.append(row)
    return torch.tensor(rows)


def sinusoidal_exponential(positions: Tensor, dim: int, base: float = 10000.0) -> Tensor:
    encoding = torch.zeros(len(positions), dim)
    frequencies = torch.exp(torch.arange(0, dim, 2) * (-math.log(base) / dim))
    encoding[:, 0::2] = torch.sin(positions.unsqueeze(1) * frequencies)
    encoding[:, 1::2] = torch.cos(positions.unsqueeze(1) * frequencies)
    return encoding


def sinusoidal_complex(positions: Tensor, dim: int, base: float = 10000.0) -> Tensor:
    angles = torch.outer(positions.float(), base ** (-2 * torch.arange(dim // 2) / dim))
    turned = torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flip(-1).reshape(len(positions), dim)


SINUSOIDAL_POSITIONS = Check(
    reference=reference.sinusoidal_positions,
    points=4,
    cases=sinusoidal_cases,
    # an angle of some hundred radians carries a float32 rounding error of about 1e-4
    tolerance=(1e-3, 1e-3),
    misconceptions=[
        Misconception(
            "sine and cosine are swapped",
            sinusoidal_swapped,
            "At position 0, which of the two functions is 0? Which column should be 0 there?",
        ),
        Misconception(
            "the exponent is i/D, not 2i/D",
            sinusoidal_halved_exponent,
            "i counts pairs, and there are D/2 of them. How near to 1 does the exponent come?",
        ),
        Misconception(
            "all sines come first and all cosines after them",
            sinusoidal_halves,
            "Which column stands directly right of sin(p θ_0) in the formula?",
        ),
        Misconception(
            "the sine and the cosine of a pair have different frequencies",
            sinusoidal_unequal_pair,
            "Columns 2i and 2i+1 share i. How many different frequencies do D columns need?",
        ),
        Misconception(
            "the position is multiplied by base^(2i/D), not divided by it",
            sinusoidal_multiplied,
            "Should the last pair turn faster or more slowly than the first?",
        ),
        Misconception(
            "the angles are taken for degrees",
            sinusoidal_degrees,
            "In which unit do torch.sin and torch.cos take their angle? And the formula?",
        ),
        Misconception(
            "the row's index is used, not its position",
            sinusoidal_of_index,
            "If positions is [20, 35], which angles should the two rows hold?",
        ),
        Misconception(
            "the positions are off by one",
            sinusoidal_from_one,
            "What is sin(0 · θ)? Does your row for position 0 hold it?",
        ),
        Misconception(
            "the base is always 10000: the argument is ignored",
            sinusoidal_fixed_base,
            "What does your function do when it is called with base=300?",
        ),
    ],
    variants=[sinusoidal_loop, sinusoidal_exponential, sinusoidal_complex],
)


# learned_positions -------------------------------------------------------------------------------


def learned_cases(rng: Generator) -> list[Case]:
    return [
        Case(normal(rng, 9, 4), torch.arange(5)).titled("positions 0 … 4"),
        Case(normal(rng, 9, 4), 5 + torch.arange(3)).titled("positions that start at 5"),
        Case(
            normal(rng, 8, 6), torch.tensor([[0, 0, 0, 1, 2], [0, 1, 2, 3, 7], [7, 2, 2, 6, 1]])
        ).titled("a batch of positions"),
        Case(normal(rng, 3, 7, dtype=torch.float64).T, torch.tensor([6, 1])).titled("float64"),
        Case(normal(rng, 6, 3), torch.tensor([4, 5, 6])).titled("a position beyond the table"),
    ]


def learned_first_rows(table: Tensor, positions: Tensor) -> Tensor:
    return table[torch.arange(positions.shape[-1])]


def learned_from_one(table: Tensor, positions: Tensor) -> Tensor:
    return table[positions - 1]


def learned_wrapping(table: Tensor, positions: Tensor) -> Tensor:
    return table[positions % len(table)]


def learned_clamped(table: Tensor, positions: Tensor) -> Tensor:
    return table[positions.clamp(max=len(table) - 1)]


def learned_columns(table: Tensor, positions: Tensor) -> Tensor:
    return table[:, positions]


def learned_flattened(table: Tensor, positions: Tensor) -> Tensor:
    return table[positions.flatten()]


def learned_by_index(table: Tensor, positions: Tensor) -> Tensor:
    return table[positions]


def learned_by_loop(table: Tensor, positions: Tensor) -> Tensor:
    if positions.ndim > 1:
        return torch.stack([learned_by_loop(table, row) for row in positions])
    return torch.stack([table[p] for p in positions.tolist()])


def learned_by_one_hot(table: Tensor, positions: Tensor) -> Tensor:
    if positions.max() >= len(table):
        raise IndexError("there is no row for that position")
    return F.one_hot(positions, len(table)).to(table.dtype) @ table


LEARNED_POSITIONS = Check(
    reference=reference.learned_positions,
    points=2,
    cases=learned_cases,
    misconceptions=[
        Misconception(
            "the first T rows are returned, whatever the positions",
            learned_first_rows,
            "If positions is [5, 6, 7], which three rows of the table are asked for?",
        ),
        Misconception(
            "the positions are off by one",
            learned_from_one,
            "Positions start at 0. Which row of the table belongs to position 0?",
        ),
        Misconception(
            "a position beyond the table wraps around to its start",
            learned_wrapping,
            "Should the token at position N look as if it stood at position 0?",
        ),
        Misconception(
            "a position beyond the table gets the last row",
            learned_clamped,
            "If every late token gets the last row, how could a model tell two of them apart?",
        ),
        Misconception(
            "columns of the table are taken, not rows",
            learned_columns,
            "The table has shape (N, D). Which axis counts positions?",
        ),
        Misconception(
            "the batch axis is lost",
            learned_flattened,
            "For positions (B, T), what shape must the result have to be added to the embeddings?",
        ),
    ],
    variants=[learned_by_index, learned_by_loop, learned_by_one_hot],
)


# rope_frequencies --------------------------------------------------------------------------------


def frequency_cases(rng: Generator) -> list[Case]:
    dim, base = 2 * whole(rng, 4, 20).item(), float(whole(rng, 50, 5000).item())
    return [
        Case(8).titled("a small head"),
        Case(64, 100000.0).titled("SmolLM2"),
        Case(128, base=500000.0).titled("Llama 3 8B"),
        Case(dim, base).titled("another width and another base"),
        Case(2).titled("a single pair"),
    ]


def frequencies_halved_exponent(dim: int, base: float = 10000.0) -> Tensor:
    return base ** (-torch.arange(dim // 2) / dim)


def frequencies_doubled_exponent(dim: int, base: float = 10000.0) -> Tensor:
    return base ** (-2 * torch.arange(0, dim, 2) / dim)


def frequencies_growing(dim: int, base: float = 10000.0) -> Tensor:
    return base ** (torch.arange(0, dim, 2) / dim)


def frequencies_per_feature(dim: int, base: float = 10000.0) -> Tensor:
    return base ** (-torch.arange(dim) / dim)


def frequencies_repeated(dim: int, base: float = 10000.0) -> Tensor:
    return (base ** (-torch.arange(0, dim, 2) / dim)).repeat(2)


def frequencies_from_one(dim: int, base: float = 10000.0) -> Tensor:
    return base ** (-torch.arange(2, dim + 1, 2) / dim)


def frequencies_to_the_end(dim: int, base: float = 10000.0) -> Tensor:
    return base ** -torch.linspace(0, 1, dim // 2)


def frequencies_fixed_base(dim: int, base: float = 10000.0) -> Tensor:
    return 10000 ** (-torch.arange(0, dim, 2) / dim)


def frequencies_as_wavelengths(dim: int, base: float = 10000.0) -> Tensor:
    return 2 * math.pi * base ** (torch.arange(0, dim, 2) / dim)


def frequencies_power(dim: int, base: float = 10000.0) -> Tensor:
    return torch.pow(torch.tensor(base), -2 * torch.arange(dim // 2) / dim)


def frequencies_exponential(dim: int, base: float = 10000.0) -> Tensor:
    return torch.exp(-math.log(base) * torch.arange(0, dim, 2) / dim)


def frequencies_loop(dim: int, base: float = 10000.0) -> Tensor:
    ratio, value, found = base ** (-2 / dim), 1.0, []
    for _ in range(dim // 2):
        found.append(value)
        value *= ratio
    return torch.tensor(found)


ROPE_FREQUENCIES = Check(
    reference=reference.rope_frequencies,
    points=2,
    cases=frequency_cases,
    tolerance=(1e-4, 1e-9),  # the slowest frequencies are far below the usual 1e-5
    misconceptions=[
        Misconception(
            "the exponent is i/d, not 2i/d",
            frequencies_halved_exponent,
            "For the last pair, should the exponent be near 1 or near 1/2?",
        ),
        Misconception(
            "the factor 2 is counted twice: the exponent is 4i/d",
            frequencies_doubled_exponent,
            "Does torch.arange(0, d, 2) hold i or 2i?",
        ),
        Misconception(
            "the exponent is positive: later pairs turn faster",
            frequencies_growing,
            "Which pair should be the slow hand of the clock: the first or the last?",
        ),
        Misconception(
            "there is one frequency for each feature, not for each pair",
            frequencies_per_feature,
            "Two features make one arrow. How many angles does one arrow need?",
        ),
        Misconception(
            "the frequencies stand twice in a row",
            frequencies_repeated,
            "Which shape does the docstring promise? How many arrows has a head of width d?",
        ),
        Misconception(
            "i starts at 1, not at 0",
            frequencies_from_one,
            "How far does the first pair turn from one position to the next?",
        ),
        Misconception(
            "the exponent runs up to 1: the last frequency is 1/base",
            frequencies_to_the_end,
            "The last i is d/2 - 1. What is 2i/d then?",
        ),
        Misconception(
            "the base is always 10000: the argument is ignored",
            frequencies_fixed_base,
            "Llama 3 uses 500000. What does your function do when it is given that base?",
        ),
        Misconception(
            "wavelengths are returned, not frequencies",
            frequencies_as_wavelengths,
            "Is the result in radians per position, or in positions per turn?",
        ),
    ],
    variants=[frequencies_power, frequencies_exponential, frequencies_loop],
)


# apply_rope --------------------------------------------------------------------------------------


def rope_cases(rng: Generator) -> list[Case]:
    late = 1000 + 2 * whole(rng, 0, 1500, 6) + 1  # odd, and so not to be had in bfloat16
    small = (2 * torch.rand(1, 2, 6, 8, generator=rng) - 1).bfloat16()
    heads_last = normal(rng, 2, 5, 4, 6)  # (B, T, H, d), as it comes out of a projection
    return [
        Case(normal(rng, 2, 3, 5, 8), torch.arange(5), angular(8)).titled("positions 0 … 4"),
        Case(normal(rng, 1, 3, 4, 6), 17 + torch.arange(4), angular(6)).titled(
            "positions that start at 17, as with a cache"
        ),
        Case(normal(rng, 2, 5, 7, 10), whole(rng, 2, 60, 7), angular(10, 500.0)).titled(
            "positions in no order"
        ),
        Case(
            normal(rng, 3, 2, 4, 6),
            torch.tensor([[0, 0, 1, 2], [5, 6, 7, 8], [9, 3, 3, 1]]) + whole(rng, 0, 20, 3, 1),
            angular(6),
        ).titled("other positions in each sequence of a batch"),
        Case(heads_last.transpose(1, 2), 1 + torch.arange(5), angular(6)).titled(
            "not contiguous in memory"
        ),
        Case(small, late, angular(8)).titled("bfloat16, at positions in the thousands"),
        Case(normal(rng, 1, 2, 1, 4), torch.tensor([0]), angular(4)).titled("position 0"),
    ]


def rope_neighbours(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    angles = positions[..., None] * frequencies
    if positions.ndim == 2:
        angles = angles[:, None]
    a, b = x[..., 0::2].float(), x[..., 1::2].float()
    pair = (a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos())
    return torch.stack(pair, dim=-1).flatten(-2).to(x.dtype)


def rope_backwards(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    angles = positions[..., None] * frequencies
    if positions.ndim == 2:
        angles = angles[:, None]
    a, b = x.float().chunk(2, dim=-1)
    pair = (a * angles.cos() + b * angles.sin(), b * angles.cos() - a * angles.sin())
    return torch.cat(pair, dim=-1).to(x.dtype)


def rope_reflection(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    angles = positions[..., None] * frequencies
    if positions.ndim == 2:
        angles = angles[:, None]
    a, b = x.float().chunk(2, dim=-1)
    pair = (a * angles.cos() + b * angles.sin(), b * angles.cos() + a * angles.sin())
    return torch.cat(pair, dim=-1).to(x.dtype)


def rope_swapped(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    angles = positions[..., None] * frequencies
    if positions.ndim == 2:
        angles = angles[:, None]
    a, b = x.float().chunk(2, dim=-1)
    pair = (a * angles.sin() - b * angles.cos(), a * angles.cos() + b * angles.sin())
    return torch.cat(pair, dim=-1).to(x.dtype)


def rope_of_index(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    angles = torch.arange(x.shape[-2])[:, None] * frequencies
    a, b = x.float().chunk(2, dim=-1)
    pair = (a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos())
    return torch.cat(pair, dim=-1).to(x.dtype)


def rope_from_one(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    angles = (positions[..., None] + 1) * frequencies
    if positions.ndim == 2:
        angles = angles[:, None]
    a, b = x.float().chunk(2, dim=-1)
    pair = (a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos())
    return torch.cat(pair, dim=-1).to(x.dtype)


def rope_degrees(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    angles = torch.deg2rad(positions[..., None] * frequencies)
    if positions.ndim == 2:
        angles = angles[:, None]
    a, b = x.float().chunk(2, dim=-1)
    pair = (a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos())
    return torch.cat(pair, dim=-1).to(x.dtype)


def rope_promoted(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    angles = positions[..., None] * frequencies
    if positions.ndim == 2:
        angles = angles[:, None]
    a, b = x.float().chunk(2, dim=-1)
    pair = (a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos())
    return torch.cat(pair, dim=-1)


def rope_coarse_angles(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    angles = positions[..., None].to(x.dtype) * frequencies.to(x.dtype)
    if positions.ndim == 2:
        angles = angles[:, None]
    a, b = x.chunk(2, dim=-1)
    pair = (a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos())
    return torch.cat(pair, dim=-1)


def rope_batch_meets_heads(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    angles = positions[..., None] * frequencies
    a, b = x.float().chunk(2, dim=-1)
    pair = (a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos())
    return torch.cat(pair, dim=-1).to(x.dtype)


def rope_along_heads(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    angles = (positions[..., None] * frequencies).unsqueeze(-2)  # (T, 1, d/2), for (B, T, H, d)
    a, b = x.float().chunk(2, dim=-1)
    pair = (a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos())
    return torch.cat(pair, dim=-1).to(x.dtype)


def rope_mixed_layouts(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    angles = positions[..., None] * frequencies.repeat_interleave(2)
    if positions.ndim == 2:
        angles = angles[:, None]
    a, b = x.float().chunk(2, dim=-1)
    return (x * angles.cos() + torch.cat((-b, a), dim=-1) * angles.sin()).to(x.dtype)


def rope_overwritten_half(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    angles = positions[..., None] * frequencies
    if positions.ndim == 2:
        angles = angles[:, None]
    a, b = x.float().chunk(2, dim=-1)
    a = a * angles.cos() - b * angles.sin()
    b = a * angles.sin() + b * angles.cos()
    return torch.cat((a, b), dim=-1).to(x.dtype)


def rope_complex(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    angles = positions.unsqueeze(-1) * frequencies
    turn = torch.polar(torch.ones_like(angles), angles)
    turn = turn if turn.ndim == 2 else turn.unsqueeze(1)
    half = x.shape[-1] // 2
    turned = torch.complex(x[..., :half].float(), x[..., half:].float()) * turn
    return torch.cat((turned.real, turned.imag), dim=-1).to(x.dtype)


def rope_matrices(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    angles = positions.expand(x.shape[0], x.shape[2])[..., None].double() * frequencies.double()
    cos, sin = angles.cos(), angles.sin()
    matrices = torch.stack((torch.stack((cos, -sin), -1), torch.stack((sin, cos), -1)), -2)
    pairs = x.double().unflatten(-1, (2, -1))
    return torch.einsum("btirc,bhtci->bhtri", matrices, pairs).flatten(-2).to(x.dtype)


def rope_loop(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    out, half = torch.empty_like(x), x.shape[-1] // 2
    rows = positions.expand(x.shape[0], x.shape[2])
    for b in range(x.shape[0]):
        for i in range(half):
            cos, sin = (rows[b] * frequencies[i]).cos(), (rows[b] * frequencies[i]).sin()
            first, second = x[b, :, :, i].float(), x[b, :, :, i + half].float()
            out[b, :, :, i] = first * cos - second * sin
            out[b, :, :, i + half] = first * sin + second * cos
    return out


def rope_rotate_half(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    angles = torch.cat((frequencies, frequencies)) * positions[..., None]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    if positions.ndim == 2:
        cos, sin = cos[:, None], sin[:, None]
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


APPLY_ROPE = Check(
    reference=reference.apply_rope,
    points=6,
    cases=rope_cases,
    misconceptions=[
        Misconception(
            "neighbouring features are paired, not halves",
            rope_neighbours,
            "With d = 8, which feature is the partner of feature 0: feature 1 or feature 4?",
        ),
        Misconception(
            "the sign is wrong: the arrows turn clockwise",
            rope_backwards,
            "Turn (1, 0) by a quarter, 90°. Does your code give (0, 1) or (0, -1)?",
        ),
        Misconception(
            "the minus is missing: this mirrors the arrow, it does not turn it",
            rope_reflection,
            "A turn keeps the arrow's length. Does your arrow (1, 1) keep it?",
        ),
        Misconception(
            "sine and cosine are swapped",
            rope_swapped,
            "At position 0 nothing should change. Which of sin(0) and cos(0) is 1?",
        ),
        Misconception(
            "the token's index is used, not its position",
            rope_of_index,
            "With a cache, the one token of a call may stand at position 17. How far must it turn?",
        ),
        Misconception(
            "the positions are off by one",
            rope_from_one,
            "How far should a token at position 0 be turned?",
        ),
        Misconception(
            "the angles are taken for degrees",
            rope_degrees,
            "In which unit do torch.cos and torch.sin take their angle? And the frequencies?",
        ),
        Misconception(
            "the result is float32 whatever the dtype of x",
            rope_promoted,
            "What dtype does a bfloat16 tensor times a float32 tensor have? What was x's?",
        ),
        Misconception(
            "the angles are computed in the dtype of x",
            rope_coarse_angles,
            "What is 1001 in bfloat16? By how many radians is the angle wrong then?",
        ),
        Misconception(
            "a batch of positions (B, T) meets the heads, not the sequences",
            rope_batch_meets_heads,
            "Angles (B, T, d/2) against x (B, H, T, d/2): which axis is missing, and where?",
        ),
        Misconception(
            "x is taken for (B, T, H, d)",
            rope_along_heads,
            "Which axis of x counts tokens? Do your angles vary along that axis?",
        ),
        Misconception(
            "the tables are laid out for neighbours, the rotation for halves",
            rope_mixed_layouts,
            "Features 0 and d/2 are one arrow. Do they get the same angle?",
        ),
        Misconception(
            "the second half is computed from the first half's new values",
            rope_overwritten_half,
            "Both new coordinates need both old ones. Which line overwrites an old one too early?",
        ),
    ],
    variants=[rope_complex, rope_matrices, rope_loop, rope_rotate_half],
)


# relative_score ----------------------------------------------------------------------------------


def score_cases(rng: Generator) -> list[Case]:
    q, k = normal(rng, 6), normal(rng, 6)
    m, n = whole(rng, 10, 14).item(), whole(rng, 4, 8).item()
    return [
        Case(q, k, m, n, angular(6)).titled("the query stands after the key"),
        Case(q, k, m + 40, n + 40, angular(6)).titled("both moved on by 40"),
        Case(q, k, n, m, angular(6)).titled("the query stands before the key"),
        Case(normal(rng, 8), normal(rng, 8), m, m, angular(8)).titled("at the same position"),
        Case(normal(rng, 4), normal(rng, 4), 0, n, angular(4, 50.0)).titled("query at position 0"),
    ]


def score_turned_apart(q: Tensor, k: Tensor, m: int, n: int, frequencies: Tensor) -> Tensor:
    turn = torch.polar(torch.ones_like(frequencies), (m + n) * frequencies)
    (a, b), (c, d) = q.chunk(2), k.chunk(2)
    return (torch.complex(a, b) * torch.complex(c, -d) * turn).real.sum()


def score_backwards(q: Tensor, k: Tensor, m: int, n: int, frequencies: Tensor) -> Tensor:
    turn = torch.polar(torch.ones_like(frequencies), (n - m) * frequencies)
    (a, b), (c, d) = q.chunk(2), k.chunk(2)
    return (torch.complex(a, b) * torch.complex(c, -d) * turn).real.sum()


def score_of_distance(q: Tensor, k: Tensor, m: int, n: int, frequencies: Tensor) -> Tensor:
    turn = torch.polar(torch.ones_like(frequencies), abs(m - n) * frequencies)
    (a, b), (c, d) = q.chunk(2), k.chunk(2)
    return (torch.complex(a, b) * torch.complex(c, -d) * turn).real.sum()


def score_query_only(q: Tensor, k: Tensor, m: int, n: int, frequencies: Tensor) -> Tensor:
    turn = torch.polar(torch.ones_like(frequencies), m * frequencies)
    (a, b), (c, d) = q.chunk(2), k.chunk(2)
    return (torch.complex(a, b) * torch.complex(c, -d) * turn).real.sum()


def score_without_positions(q: Tensor, k: Tensor, m: int, n: int, frequencies: Tensor) -> Tensor:
    return q.dot(k)


def score_cosines_only(q: Tensor, k: Tensor, m: int, n: int, frequencies: Tensor) -> Tensor:
    cos = ((m - n) * frequencies).cos()
    return (q * k * torch.cat((cos, cos))).sum()


def score_neighbours(q: Tensor, k: Tensor, m: int, n: int, frequencies: Tensor) -> Tensor:
    turn = torch.polar(torch.ones_like(frequencies), (m - n) * frequencies)
    a, b, c, d = q[0::2], q[1::2], k[0::2], k[1::2]
    return (torch.complex(a, b) * torch.complex(c, -d) * turn).real.sum()


def score_scaled(q: Tensor, k: Tensor, m: int, n: int, frequencies: Tensor) -> Tensor:
    turn = torch.polar(torch.ones_like(frequencies), (m - n) * frequencies)
    (a, b), (c, d) = q.chunk(2), k.chunk(2)
    return (torch.complex(a, b) * torch.complex(c, -d) * turn).real.sum() / math.sqrt(len(q))


def score_not_summed(q: Tensor, k: Tensor, m: int, n: int, frequencies: Tensor) -> Tensor:
    turn = torch.polar(torch.ones_like(frequencies), (m - n) * frequencies)
    (a, b), (c, d) = q.chunk(2), k.chunk(2)
    return (torch.complex(a, b) * torch.complex(c, -d) * turn).real


def score_both_turned(q: Tensor, k: Tensor, m: int, n: int, frequencies: Tensor) -> Tensor:
    turned = []
    for x, p in ((q, m), (k, n)):
        (a, b), cos, sin = x.chunk(2), (p * frequencies).cos(), (p * frequencies).sin()
        turned.append(torch.cat((a * cos - b * sin, a * sin + b * cos)))
    return turned[0] @ turned[1]


def score_query_turned_by_gap(q: Tensor, k: Tensor, m: int, n: int, frequencies: Tensor) -> Tensor:
    (a, b), angles = q.chunk(2), (m - n) * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((a * cos - b * sin, a * sin + b * cos)).dot(k)


def score_by_matrices(q: Tensor, k: Tensor, m: int, n: int, frequencies: Tensor) -> Tensor:
    half, total = len(q) // 2, torch.zeros(())
    for i, theta in enumerate(frequencies.tolist()):
        c, s = math.cos((m - n) * theta), math.sin((m - n) * theta)
        turn = torch.tensor([[c, -s], [s, c]])
        total = total + (turn @ q[[i, i + half]]) @ k[[i, i + half]]
    return total


RELATIVE_SCORE = Check(
    reference=reference.relative_score,
    points=3,
    cases=score_cases,
    tolerance=(1e-4, 1e-4),  # a sum of products that may cancel
    misconceptions=[
        Misconception(
            "query and key are turned in opposite directions: the score depends on m + n",
            score_turned_apart,
            "Move both tokens on by 40. Does your score stay as it was?",
        ),
        Misconception(
            "the sign is wrong: the score of n - m is computed, not of m - n",
            score_backwards,
            "Set n = 0: the key is not turned. In which direction is the query turned then?",
        ),
        Misconception(
            "only the distance |m - n| counts: before and after look alike",
            score_of_distance,
            "'dog bites man': should the word before and the word after get the same score?",
        ),
        Misconception(
            "only the query is turned",
            score_query_only,
            "Which position does the key stand at, and where does your formula use it?",
        ),
        Misconception(
            "the positions are ignored: this is q·k",
            score_without_positions,
            "Change m. Does your score change?",
        ),
        Misconception(
            "the sine terms are missing",
            score_cosines_only,
            "Multiply two turned arrows out. What becomes of the products a·d and b·c?",
        ),
        Misconception(
            "neighbouring features are paired, not halves",
            score_neighbours,
            "With d = 6, which feature is the partner of feature 0: feature 1 or feature 3?",
        ),
        Misconception(
            "the score is divided by √d",
            score_scaled,
            "The docstring asks for the dot product. Which chapter divides it?",
        ),
        Misconception(
            "the pairs' scores are not summed",
            score_not_summed,
            "A score is one number. What shape does yours have?",
        ),
    ],
    variants=[score_both_turned, score_query_turned_by_gap, score_by_matrices],
)


# llama3_frequencies ------------------------------------------------------------------------------


def llama3_cases(rng: Generator) -> list[Case]:
    turns = torch.logspace(-1, 2, 13) * (0.8 + 0.4 * torch.rand(13, generator=rng))
    shuffled = (2 * math.pi * turns / 3000)[torch.randperm(13, generator=rng)]
    return [
        Case(angular(128, 500000.0), 8.0).titled("Llama 3.1 8B"),
        Case(angular(64, 500000.0), 32.0).titled("Llama 3.2 1B"),
        Case(shuffled, 5.0, 2.0, 16.0, 3000).titled("other limits, frequencies in no order"),
        Case(angular(16, 300.0), 4.0, original_context=500).titled("a short original context"),
    ]


def llama3_bands_swapped(
    frequencies: Tensor,
    factor: float,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    original_context: int = 8192,
) -> Tensor:
    turns = original_context * frequencies / (2 * math.pi)
    kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return (1 - kept) * frequencies + kept * frequencies / factor


def llama3_smoothing_reversed(
    frequencies: Tensor,
    factor: float,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    original_context: int = 8192,
) -> Tensor:
    turns = original_context * frequencies / (2 * math.pi)
    s = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
    between = s * frequencies / factor + (1 - s) * frequencies
    slow = torch.where(turns < low_freq_factor, frequencies / factor, between)
    return torch.where(turns > high_freq_factor, frequencies, slow)


def llama3_everything_slowed(
    frequencies: Tensor,
    factor: float,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    original_context: int = 8192,
) -> Tensor:
    return frequencies / factor


def llama3_no_middle_band(
    frequencies: Tensor,
    factor: float,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    original_context: int = 8192,
) -> Tensor:
    turns = original_context * frequencies / (2 * math.pi)
    return torch.where(turns < high_freq_factor, frequencies / factor, frequencies)


def llama3_middle_kept(
    frequencies: Tensor,
    factor: float,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    original_context: int = 8192,
) -> Tensor:
    turns = original_context * frequencies / (2 * math.pi)
    return torch.where(turns < low_freq_factor, frequencies / factor, frequencies)


def llama3_linear_in_wavelength(
    frequencies: Tensor,
    factor: float,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    original_context: int = 8192,
) -> Tensor:
    wavelengths = 2 * math.pi / frequencies
    longest, shortest = original_context / low_freq_factor, original_context / high_freq_factor
    kept = ((longest - wavelengths) / (longest - shortest)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / factor


def llama3_multiplied(
    frequencies: Tensor,
    factor: float,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    original_context: int = 8192,
) -> Tensor:
    turns = original_context * frequencies / (2 * math.pi)
    kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies * factor


def llama3_without_two_pi(
    frequencies: Tensor,
    factor: float,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    original_context: int = 8192,
) -> Tensor:
    turns = original_context * frequencies
    kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / factor


def llama3_fixed_limits(
    frequencies: Tensor,
    factor: float,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    original_context: int = 8192,
) -> Tensor:
    turns = 8192 * frequencies / (2 * math.pi)
    kept = ((turns - 1) / (4 - 1)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / factor


def llama3_by_bands(
    frequencies: Tensor,
    factor: float,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    original_context: int = 8192,
) -> Tensor:
    wavelengths = 2 * math.pi / frequencies
    smooth = original_context / wavelengths - low_freq_factor
    smooth = smooth / (high_freq_factor - low_freq_factor)
    out = (1 - smooth) * frequencies / factor + smooth * frequencies
    out = torch.where(wavelengths < original_context / high_freq_factor, frequencies, out)
    return torch.where(wavelengths > original_context / low_freq_factor, frequencies / factor, out)


def llama3_by_loop(
    frequencies: Tensor,
    factor: float,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    original_context: int = 8192,
) -> Tensor:
    found = []
    for theta in frequencies.tolist():
        turns = original_context * theta / (2 * math.pi)
        if turns >= high_freq_factor:
            found.append(theta)
        elif turns <= low_freq_factor:
            found.append(theta / factor)
        else:
            s = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
            found.append(s * theta + (1 - s) * theta / factor)
    return torch.tensor(found)


def llama3_by_lerp(
    frequencies: Tensor,
    factor: float,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    original_context: int = 8192,
) -> Tensor:
    turns = original_context * frequencies / (2 * math.pi)
    share = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
    return torch.lerp(frequencies / factor, frequencies, share.clip(0.0, 1.0))


LLAMA3_FREQUENCIES = Check(
    reference=reference.llama3_frequencies,
    points=5,
    cases=llama3_cases,
    tolerance=(1e-4, 1e-9),
    misconceptions=[
        Misconception(
            "the bands are swapped: the fast pairs are slowed down",
            llama3_bands_swapped,
            "Which pairs tell neighbours apart? Should they be the ones to change?",
        ),
        Misconception(
            "the weights of the middle band are swapped",
            llama3_smoothing_reversed,
            "Just below high_freq_factor turns, should a pair be nearly kept or nearly slowed?",
        ),
        Misconception(
            "every pair is slowed down",
            llama3_everything_slowed,
            "After your change, how far apart are the angles of two neighbours? And before?",
        ),
        Misconception(
            "there is no middle band: all below high_freq_factor turns are slowed fully",
            llama3_no_middle_band,
            "What happens to a pair that makes 2 turns, between the two limits?",
        ),
        Misconception(
            "there is no middle band: all above low_freq_factor turns are kept",
            llama3_middle_kept,
            "What happens to a pair that makes 2 turns, between the two limits?",
        ),
        Misconception(
            "the middle band is linear in the wavelength, not in the turns",
            llama3_linear_in_wavelength,
            "A pair makes 2.5 turns, midway between 1 and 4. What is its weight?",
        ),
        Misconception(
            "the slow pairs are multiplied by factor, not divided by it",
            llama3_multiplied,
            "To fit a longer context into the same turn, must a hand go faster or slower?",
        ),
        Misconception(
            "the 2π is missing: radians are counted, not turns",
            llama3_without_two_pi,
            "How many radians make one full turn?",
        ),
        Misconception(
            "the limits and the context are always 1, 4 and 8192: the arguments are ignored",
            llama3_fixed_limits,
            "What does your function do when original_context is 500?",
        ),
    ],
    variants=[llama3_by_bands, llama3_by_loop, llama3_by_lerp],
)


# interleaved_to_half -----------------------------------------------------------------------------


def reorder_cases(rng: Generator) -> list[Case]:
    return [
        Case(normal(rng, 18, 12), 3).titled("three heads of width 6"),
        Case(normal(rng, 8, 6), 1).titled("one head"),
        Case(normal(rng, 20, 16, dtype=torch.bfloat16), 2).titled("bfloat16, two heads"),
        Case(normal(rng, 8, 24, dtype=torch.float64).T, 4).titled("float64, transposed in memory"),
    ]


def reorder_inverse(weight: Tensor, num_heads: int) -> Tensor:
    return weight.reshape(num_heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def reorder_across_heads(weight: Tensor, num_heads: int) -> Tensor:
    return torch.cat((weight[0::2], weight[1::2]))


def reorder_columns(weight: Tensor, num_heads: int) -> Tensor:
    rows, columns = weight.shape
    return weight.reshape(rows, num_heads, -1, 2).transpose(2, 3).reshape(rows, columns)


def reorder_not_at_all(weight: Tensor, num_heads: int) -> Tensor:
    rows, columns = weight.shape
    return weight.reshape(num_heads, rows // num_heads // 2, 2, columns).reshape(rows, columns)


def reorder_odd_first(weight: Tensor, num_heads: int) -> Tensor:
    heads = weight.reshape(num_heads, -1, weight.shape[1])
    return torch.cat((heads[:, 1::2], heads[:, 0::2]), dim=1).reshape(weight.shape)


def reorder_heads_last(weight: Tensor, num_heads: int) -> Tensor:
    pairs = weight.reshape(-1, 2, num_heads, weight.shape[1])
    return pairs.permute(2, 1, 0, 3).reshape(weight.shape)


def reorder_kept_apart(weight: Tensor, num_heads: int) -> Tensor:
    return weight.reshape(num_heads, -1, 2, weight.shape[1]).transpose(1, 2)


def reorder_view(weight: Tensor, num_heads: int) -> Tensor:
    rows, columns = weight.shape
    heads = weight.contiguous().view(num_heads, rows // num_heads // 2, 2, columns)
    return heads.permute(0, 2, 1, 3).contiguous().view(rows, columns)


def reorder_slices(weight: Tensor, num_heads: int) -> Tensor:
    halves = [part for head in weight.chunk(num_heads) for part in (head[0::2], head[1::2])]
    return torch.cat(halves)


def reorder_index(weight: Tensor, num_heads: int) -> Tensor:
    rows = torch.arange(len(weight)).reshape(num_heads, -1)
    return weight[torch.cat((rows[:, 0::2], rows[:, 1::2]), dim=1).flatten()]


def reorder_loop(weight: Tensor, num_heads: int) -> Tensor:
    out, width = torch.empty_like(weight), len(weight) // num_heads
    for head in range(num_heads):
        for row in range(width):
            target = row // 2 if row % 2 == 0 else width // 2 + row // 2
            out[head * width + target] = weight[head * width + row]
    return out


INTERLEAVED_TO_HALF = Check(
    reference=reference.interleaved_to_half,
    points=4,
    cases=reorder_cases,
    misconceptions=[
        Misconception(
            "the rows are reordered the other way, from halves to interleaved",
            reorder_inverse,
            "For a head of 6 rows: does the new row 1 hold the old row 2, or the old row 3?",
        ),
        Misconception(
            "the heads are ignored: rows move from one head to another",
            reorder_across_heads,
            "Row 0 of the second head: in which head does it stand in your result?",
        ),
        Misconception(
            "columns are reordered, not rows",
            reorder_columns,
            "The output features of y = W x are turned. Does row or column i of W make y_i?",
        ),
        Misconception(
            "nothing moves: the reshapes undo each other",
            reorder_not_at_all,
            "Two reshapes in a row keep the order of the numbers. What does move them?",
        ),
        Misconception(
            "the odd rows come before the even ones",
            reorder_odd_first,
            "The first half of a head holds the first member of each pair. Is that row 0 or row 1?",
        ),
        Misconception(
            "the rows are split as (pairs, 2, heads): the heads are not the outermost axis",
            reorder_heads_last,
            "Head 0 owns the first d rows. Which axis of your reshape counts the heads?",
        ),
        Misconception(
            "the heads' axes are not merged back",
            reorder_kept_apart,
            "What shape must a weight have to replace the old one?",
        ),
    ],
    variants=[reorder_view, reorder_slices, reorder_index, reorder_loop],
)


# Questions ---------------------------------------------------------------------------------------

SHIFTED_BY_1000 = Question(
    "shifted_by_1000",
    answer="a",
    choices=("a", "b", "c", "d"),
    misconceptions=[
        Misconception(
            "large positions are taken for unknown ones",
            "b",
            "RoPE has no table that ends. Which differences m - n does the model see now?",
        ),
        Misconception(
            "a late position is taken for a small weight",
            "c",
            "A turn keeps the length of q and k. Which quantity could shrink?",
        ),
        Misconception(
            "the model is thought to read the absolute position",
            "d",
            "Where does a RoPE model meet a position at all, other than in a score?",
        ),
    ],
)

LEARNED_PARAMETERS = Question(
    "learned_parameters",
    answer=2048.0 * 576,
    tolerance=(0.0, 0.5),
    misconceptions=[
        Misconception(
            "the two sizes are added", 2048.0 + 576, "How many rows, and how many numbers in each?"
        ),
        Misconception(
            "one table for each layer",
            30.0 * 2048 * 576,
            "Where are learned positions added: in every layer, or once, to the embeddings?",
        ),
        Misconception(
            "this is the table of tokens",
            49152.0 * 576,
            "One row for each what: each token of the vocabulary, or each position?",
        ),
        Misconception(
            "the head width is taken for the model width",
            2048.0 * 64,
            "A position is added to a token's embedding. How wide is that?",
        ),
    ],
)

ROPE_PARAMETERS = Question(
    "rope_parameters",
    answer=0.0,
    tolerance=(0.0, 0.5),
    misconceptions=[
        Misconception(
            "the frequencies are counted",
            32.0,
            "A parameter changes in training. Does training change a frequency?",
        ),
        Misconception(
            "the frequencies are counted, layer by layer",
            32.0 * 30,
            "A parameter changes in training. Does training change a frequency?",
        ),
        Misconception(
            "the table of cosines and sines is counted",
            2048.0 * 64,
            "Could you throw the table away and compute it again? Then is it learned?",
        ),
        Misconception(
            "this is the cost of a learned table",
            2048.0 * 576,
            "Which of RoPE's ingredients does training change?",
        ),
    ],
)

ROPE_FLOPS = Question(
    "rope_flops",
    answer=30.0 * (9 + 3) * 32 * 6,
    tolerance=(0.0, 0.5),
    misconceptions=[
        Misconception(
            "the additions are not counted",
            30.0 * (9 + 3) * 32 * 4,
            "a·cos - b·sin: how many multiplications, and what joins them?",
        ),
        Misconception(
            "only one layer is counted",
            (9.0 + 3) * 32 * 6,
            "In how many layers are queries and keys turned?",
        ),
        Misconception(
            "the values are turned, too",
            30.0 * (9 + 3 + 3) * 32 * 6,
            "Which of q, k and v does RoPE turn?",
        ),
        Misconception(
            "only the queries are counted",
            30.0 * 9 * 32 * 6,
            "Which of q, k and v does RoPE turn?",
        ),
        Misconception(
            "the keys are counted with 9 heads",
            30.0 * (9 + 9) * 32 * 6,
            "How many key heads has SmolLM2? It is fewer than its query heads.",
        ),
        Misconception(
            "each feature is counted as a pair of its own",
            30.0 * (9 + 3) * 64 * 6,
            "A head has 64 features. How many arrows is that?",
        ),
    ],
)

WHAT_ROPE_TURNS = Question(
    "what_rope_turns",
    answer="c",
    choices=("a", "b", "c", "d"),
    misconceptions=[
        Misconception(
            "the embeddings are turned, once, at the input",
            "a",
            "In how many layers did you count RoPE's FLOPs? What would once, at the input, cost?",
        ),
        Misconception(
            "the values are turned, too",
            "b",
            "Only scores should depend on positions. Does a score depend on v?",
        ),
        Misconception(
            "the inputs are turned before the projection",
            "d",
            "Turned first, then multiplied by W_q: does R W_q = W_q R hold for every W_q?",
        ),
    ],
)

SLOWEST_WAVELENGTH = Question(
    "slowest_wavelength",
    answer=2 * math.pi * 100000 ** (62 / 64),
    tolerance=(2e-3, 0.0),
    misconceptions=[
        Misconception(
            "radians are counted, not turns: the 2π is missing",
            100000 ** (62 / 64),
            "How many radians make one full turn?",
        ),
        Misconception(
            "the last exponent is taken for 1",
            2 * math.pi * 100000,
            "Pairs count from i = 0 to 31. What is 2i/d for the last one?",
        ),
        Misconception(
            "the exponent is i/d, not 2i/d",
            2 * math.pi * 100000 ** (31 / 64),
            "For the last pair, should the exponent be near 1 or near 1/2?",
        ),
        Misconception(
            "the base is 10000, the usual default",
            2 * math.pi * 10000 ** (62 / 64),
            "Which base did SmolLM2's configuration give?",
        ),
        Misconception(
            "this is the frequency, not the wavelength",
            100000 ** (-62 / 64),
            "Is the answer in radians per token, or in tokens per turn?",
        ),
    ],
)
