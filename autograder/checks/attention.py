"""Chapter 05: how a token gathers what it needs from the tokens before it."""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from autograder.check import Case, Check, Misconception, Question
from llmkit import attention as reference

# Wrong solutions and variants are written as a student would write them, each whole in itself,
# without llmkit: a class of synthetic students is made of their source.


def normal(rng: Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=rng).to(dtype)


def whole(rng: Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high, (), generator=rng))


# softmax -----------------------------------------------------------------------------------------


def softmax_cases(rng: Generator) -> list[Case]:
    masked = normal(rng, 3, 5)
    masked[:, 2] = -math.inf
    levels = torch.tensor([[1000.0], [-1000.0], [0.0]])
    return [
        Case(torch.tensor([2.0, 0.0, 1.0])).titled("scores 2, 0, 1"),
        Case(normal(rng, 4, 6)).titled("four rows"),
        Case(normal(rng, 4, 6), 0).titled("down the columns: dim = 0"),
        Case(normal(rng, 2, 5, 3), dim=1).titled("the middle one of three dimensions"),
        Case(levels + normal(rng, 3, 4)).titled("rows near 1000, -1000 and 0"),
        Case(masked).titled("a column of minus infinity"),
        Case(normal(rng, 6, 4, dtype=torch.float64).T).titled("float64, transposed in memory"),
    ]


def softmax_overflowing(x: Tensor, dim: int = -1) -> Tensor:
    return x.exp() / x.exp().sum(dim, keepdim=True)


def softmax_one_top_for_all(x: Tensor, dim: int = -1) -> Tensor:
    powers = (x - x.max()).exp()
    return powers / powers.sum(dim, keepdim=True)


def softmax_last_dimension(x: Tensor, dim: int = -1) -> Tensor:
    powers = (x - x.amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


def softmax_first_dimension(x: Tensor, dim: int = -1) -> Tensor:
    powers = (x - x.amax(0, keepdim=True)).exp()
    return powers / powers.sum(0, keepdim=True)


def softmax_over_everything(x: Tensor, dim: int = -1) -> Tensor:
    powers = (x - x.max()).exp()
    return powers / powers.sum()


def softmax_sum_drops_dimension(x: Tensor, dim: int = -1) -> Tensor:
    powers = (x - x.amax(dim, keepdim=True)).exp()
    return powers / powers.sum(dim)


def softmax_by_largest(x: Tensor, dim: int = -1) -> Tensor:
    return (x - x.amax(dim, keepdim=True)).exp()


def softmax_of_the_negative(x: Tensor, dim: int = -1) -> Tensor:
    finite = x.masked_fill(x.isinf(), math.inf)
    powers = (finite.amin(dim, keepdim=True) - finite).exp()
    return powers / powers.sum(dim, keepdim=True)


def softmax_logarithm(x: Tensor, dim: int = -1) -> Tensor:
    return x.log_softmax(dim)


def softmax_in_place(x: Tensor, dim: int = -1) -> Tensor:
    x -= x.amax(dim, keepdim=True)
    return x.exp() / x.exp().sum(dim, keepdim=True)


def softmax_built_in(x: Tensor, dim: int = -1) -> Tensor:
    return torch.softmax(x, dim)


def softmax_by_logsumexp(x: Tensor, dim: int = -1) -> Tensor:
    return (x - torch.logsumexp(x, dim, keepdim=True)).exp()


def softmax_moved(x: Tensor, dim: int = -1) -> Tensor:
    last = x.movedim(dim, -1)
    rows = [(row - row.max()).exp() for row in last.reshape(-1, last.shape[-1])]
    return torch.stack([row / row.sum() for row in rows]).reshape(last.shape).movedim(-1, dim)


SOFTMAX = Check(
    reference=reference.softmax,
    points=2,
    cases=softmax_cases,
    misconceptions=[
        Misconception(
            "exp overflows: the largest score is not subtracted first",
            softmax_overflowing,
            "What is exp(1000) in float32? What did chapter 02 do about it?",
        ),
        Misconception(
            "one largest score is subtracted from all rows: far below it, all of a row becomes 0",
            softmax_one_top_for_all,
            "One row lies near 1000, another near -1000. What is exp(-2000), and 0 divided by 0?",
        ),
        Misconception(
            "dim is not used: it is always the last dimension",
            softmax_last_dimension,
            "What does your function do when it is called with dim=0?",
        ),
        Misconception(
            "dim is not used: it is always the first dimension",
            softmax_first_dimension,
            "Along which dimension does softmax run when nothing is said?",
        ),
        Misconception(
            "the whole tensor sums to 1, not each row",
            softmax_over_everything,
            "For x of shape (4, 6), how many sums of 1 should there be?",
        ),
        Misconception(
            "the sum drops its dimension, so that it is lined up with the wrong one",
            softmax_sum_drops_dimension,
            "A sum of (4, 6) along dim 1 has shape (4,). What does keepdim=True make of it?",
        ),
        Misconception(
            "there is no division: the largest weight is 1",
            softmax_by_largest,
            "What must the weights of one row sum to? What do yours sum to?",
        ),
        Misconception(
            "the sign is turned round: the smallest score gets the largest weight",
            softmax_of_the_negative,
            "Of the scores 2, 0, 1: which one should get the largest weight?",
        ),
        Misconception(
            "this is the logarithm of softmax",
            softmax_logarithm,
            "Can a weight be negative? Which step did chapter 02 take after the division?",
        ),
        Misconception(
            "the caller's x is overwritten",
            softmax_in_place,
            "Does x -= y make a new tensor, or does it write into the caller's?",
        ),
    ],
    variants=[softmax_built_in, softmax_by_logsumexp, softmax_moved],
)


# causal_mask -------------------------------------------------------------------------------------


def mask_cases(rng: Generator) -> list[Case]:
    queries, offset = whole(rng, 3, 7), whole(rng, 3, 9)
    spare = whole(rng, 2, 6)
    return [
        Case(4, 4).titled("four tokens"),
        Case(2, 5, 3).titled("two new tokens after three"),
        Case(queries, queries + offset, offset=offset).titled("new tokens after a cache"),
        Case(queries, queries + offset + spare, offset).titled("more keys than are needed"),
        Case(1, offset + 1, offset).titled("a single new token"),
    ]


def mask_without_offset(query_length: int, key_length: int, offset: int = 0) -> Tensor:
    return torch.arange(key_length) <= torch.arange(query_length)[:, None]


def mask_not_itself(query_length: int, key_length: int, offset: int = 0) -> Tensor:
    return torch.arange(key_length) < torch.arange(query_length)[:, None] + offset


def mask_one_too_many(query_length: int, key_length: int, offset: int = 0) -> Tensor:
    return torch.arange(key_length) <= torch.arange(query_length)[:, None] + offset + 1


def mask_hidden_is_true(query_length: int, key_length: int, offset: int = 0) -> Tensor:
    return torch.arange(key_length) > torch.arange(query_length)[:, None] + offset


def mask_looks_ahead(query_length: int, key_length: int, offset: int = 0) -> Tensor:
    return torch.arange(key_length) >= torch.arange(query_length)[:, None] + offset


def mask_keys_as_rows(query_length: int, key_length: int, offset: int = 0) -> Tensor:
    return (torch.arange(key_length) <= torch.arange(query_length)[:, None] + offset).T


def mask_of_numbers(query_length: int, key_length: int, offset: int = 0) -> Tensor:
    return torch.ones(query_length, key_length).tril(offset)


def mask_of_infinities(query_length: int, key_length: int, offset: int = 0) -> Tensor:
    return torch.full((query_length, key_length), -math.inf).triu(offset + 1)


def mask_from_the_end(query_length: int, key_length: int, offset: int = 0) -> Tensor:
    seen = torch.ones(query_length, key_length, dtype=torch.bool)
    return seen.tril(key_length - query_length)


def mask_offset_backwards(query_length: int, key_length: int, offset: int = 0) -> Tensor:
    return torch.arange(key_length) <= torch.arange(query_length)[:, None] - offset


def mask_tril(query_length: int, key_length: int, offset: int = 0) -> Tensor:
    return torch.ones(query_length, key_length).tril(offset).bool()


def mask_loop(query_length: int, key_length: int, offset: int = 0) -> Tensor:
    rows = [[j <= i + offset for j in range(key_length)] for i in range(query_length)]
    return torch.tensor(rows)


def mask_cut_from_a_square(query_length: int, key_length: int, offset: int = 0) -> Tensor:
    size = max(key_length, offset + query_length)
    later = torch.triu(torch.ones(size, size, dtype=torch.bool), diagonal=1)
    return torch.logical_not(later)[offset : offset + query_length, :key_length]


CAUSAL_MASK = Check(
    reference=reference.causal_mask,
    points=3,
    cases=mask_cases,
    misconceptions=[
        Misconception(
            "the offset is not used: every query counts from 0",
            mask_without_offset,
            "Three tokens are in the cache, two come. At which position is the first of the two?",
        ),
        Misconception(
            "a token may not look at itself",
            mask_not_itself,
            "Has the token at position i read the token at position i? At which key may 0 look?",
        ),
        Misconception(
            "each token may look at the next one, too",
            mask_one_too_many,
            "The model is to predict token i + 1 at position i. May it look at that?",
        ),
        Misconception(
            "True and False are swapped: True where a query may not look",
            mask_hidden_is_true,
            "What does True mean in the docstring: may look, or may not?",
        ),
        Misconception(
            "the comparison is turned round: each token looks at itself and at later ones",
            mask_looks_ahead,
            "The first token of a text: how many tokens may it look at?",
        ),
        Misconception(
            "rows and columns are swapped",
            mask_keys_as_rows,
            "For 2 queries and 5 keys: is your mask (2, 5), or (5, 2)?",
        ),
        Misconception(
            "the mask holds the numbers 1 and 0, not True and False",
            mask_of_numbers,
            "Which dtype has your mask? What does ~mask do with numbers?",
        ),
        Misconception(
            "the mask holds 0 and minus infinity, to be added: not True and False",
            mask_of_infinities,
            "Which dtype does the docstring promise?",
        ),
        Misconception(
            "the last query is lined up with the last key; the offset is not used",
            mask_from_the_end,
            "If there are more keys than offset + T, which of them come after the last query?",
        ),
        Misconception(
            "the offset is subtracted, not added",
            mask_offset_backwards,
            "Does a query that comes after a full cache stand later, or earlier?",
        ),
    ],
    variants=[mask_tril, mask_loop, mask_cut_from_a_square],
)


# scaled_dot_product_attention --------------------------------------------------------------------


def attention_cases(rng: Generator) -> list[Case]:
    it = torch.tensor([[2.0, 1.0, 0.0, 1.0]])
    keys = torch.tensor([[1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 3.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
    values = torch.tensor([[10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])

    def qkv(batch, queries, keys, width, out=0):
        query, key = normal(rng, *batch, queries, width), normal(rng, *batch, keys, width)
        return query, key, normal(rng, *batch, keys, out or width)

    causal = torch.tensor([[j <= i + 3 for j in range(7)] for i in range(4)])
    padded = torch.arange(5) >= torch.tensor([2, 0])[:, None, None, None]
    nothing = torch.rand(4, 6, generator=rng) > 0.4
    nothing[:, 0], nothing[1] = True, False
    q, k, v = qkv((), 6, 8, 5, out=3)
    turned = [x.double().T.contiguous().T for x in (q, k, v)]
    large = qkv((2,), 3, 6, 8)
    large[0][..., 0], large[1][..., 0] = 40.0, 10.0  # adds 141 to each score
    return [
        Case(it, keys, values).titled("the query of 'it'"),
        Case(*qkv((2, 3), 4, 5, 6, out=7)).titled("two texts, three heads, no mask"),
        Case(*qkv((2, 3), 4, 7, 5), causal).titled("a causal mask"),
        Case(*qkv((2, 3), 4, 5, 7), mask=padded).titled("a mask of shape (B, 1, 1, S)"),
        Case(*qkv((), 4, 6, 5), nothing).titled("a query that may look at nothing"),
        Case(*large).titled("scores of more than 100"),
        Case(*turned).titled("float64, transposed in memory"),
    ]


def attention_unscaled(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    scores = query @ key.mT
    if mask is None:
        return scores.softmax(-1) @ value
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
    return weights.nan_to_num(0.0) @ value


def attention_by_width(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    scores = query @ key.mT / query.shape[-1]
    if mask is None:
        return scores.softmax(-1) @ value
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
    return weights.nan_to_num(0.0) @ value


def attention_by_root_of_length(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    scores = query @ key.mT / math.sqrt(key.shape[-2])
    if mask is None:
        return scores.softmax(-1) @ value
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
    return weights.nan_to_num(0.0) @ value


def attention_scaled_weights(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    scores = query @ key.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1).nan_to_num(0.0) / math.sqrt(query.shape[-1]) @ value


def attention_over_queries(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-2).nan_to_num(0.0) @ value


def attention_swapped_mask(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(mask, -math.inf)
    return scores.softmax(-1).nan_to_num(0.0) @ value


def attention_mask_ignored(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    return (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1) @ value


def attention_scores_of_zero(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores * mask
    return scores.softmax(-1) @ value


def attention_masked_afterwards(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    weights = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)
    if mask is not None:
        weights = weights * mask
    return weights @ value


def attention_nan_for_nothing(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    powers = (scores - scores.amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True) @ value


def attention_mean_for_nothing(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -1e9)
    return scores.softmax(-1) @ value


def attention_overflowing(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    powers = (query @ key.mT / math.sqrt(query.shape[-1])).exp()
    if mask is not None:
        powers = powers * mask
    total = powers.sum(-1, keepdim=True)
    return powers / torch.where(total == 0, 1.0, total) @ value


def attention_built_in(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return out if mask is None else torch.where(mask.any(-1, keepdim=True), out, 0.0)


def attention_einsum(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    scores = torch.einsum("...td,...sd->...ts", query, key) * query.shape[-1] ** -0.5
    if mask is None:
        weights = torch.softmax(scores, -1)
    else:
        weights = torch.softmax(scores + torch.zeros_like(scores).masked_fill(~mask, -1e9), -1)
        weights = weights * mask
    return torch.einsum("...ts,...sv->...tv", weights, value)


def attention_nan_to_num(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    scores = torch.matmul(query / query.shape[-1] ** 0.5, key.transpose(-1, -2))
    if mask is not None:
        scores = torch.where(mask, scores, float("-inf"))
    return torch.nan_to_num(scores.softmax(dim=-1)).matmul(value)


def attention_loop(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    if mask is not None:
        mask = mask.expand(*query.shape[:-1], key.shape[-2])
    if query.ndim > 2:
        masks = [None] * len(query) if mask is None else mask
        parts = zip(query, key, value, masks, strict=True)
        return torch.stack([attention_loop(*part) for part in parts])
    out = torch.zeros(len(query), value.shape[-1], dtype=value.dtype)
    for t, q in enumerate(query):
        seen = range(len(key)) if mask is None else mask[t].nonzero().flatten().tolist()
        if len(seen):
            scores = torch.stack([q @ key[s] for s in seen]) / math.sqrt(len(q))
            for s, weight in zip(seen, scores.softmax(0), strict=True):
                out[t] += weight * value[s]
    return out


SCALED_DOT_PRODUCT_ATTENTION = Check(
    reference=reference.scaled_dot_product_attention,
    points=5,
    cases=attention_cases,
    # a score of 141 carries a float32 rounding error of some 1e-5, which the weights inherit
    tolerance=(1e-3, 1e-4),
    misconceptions=[
        Misconception(
            "the scores are not divided by √d",
            attention_unscaled,
            "A dot product of d random products has the variance d. What brings it back to 1?",
        ),
        Misconception(
            "the scores are divided by d, not by √d",
            attention_by_width,
            "If the variance of a score is d, what is its standard deviation?",
        ),
        Misconception(
            "the scores are divided by √S, the number of keys",
            attention_by_root_of_length,
            "Over which axis does the dot product sum, and how long is that axis?",
        ),
        Misconception(
            "the weights are divided by √d, not the scores",
            attention_scaled_weights,
            "What must the weights of a query sum to? Do they, after your division?",
        ),
        Misconception(
            "softmax runs over the queries, not over the keys",
            attention_over_queries,
            "Row t holds the weights with which query t mixes the values. What do they sum to?",
        ),
        Misconception(
            "the mask is turned round: what may be seen is hidden",
            attention_swapped_mask,
            "True means: may look. Which scores does masked_fill replace?",
        ),
        Misconception(
            "the mask is not used",
            attention_mask_ignored,
            "Change the last value. Should the first query's result change under a causal mask?",
        ),
        Misconception(
            "hidden scores become 0, which still gets a weight",
            attention_scores_of_zero,
            "What is e to the power of 0? Which score gives a weight of 0?",
        ),
        Misconception(
            "hidden weights are set to 0 after softmax, so the rest no longer sums to 1",
            attention_masked_afterwards,
            "What do the weights that are left sum to? Who got the share that was taken away?",
        ),
        Misconception(
            "a query that may look at nothing gets NaN",
            attention_nan_for_nothing,
            "If all scores of a row are minus infinity, what is the largest minus the largest?",
        ),
        Misconception(
            "a query that may look at nothing gets the mean of all values",
            attention_mean_for_nothing,
            "If all scores of a row are -1e9, what are its weights? What should they be?",
        ),
        Misconception(
            "exp overflows: softmax is not stable",
            attention_overflowing,
            "Scores may be above 100. What is exp(100) in float32, and did you use softmax?",
        ),
    ],
    variants=[attention_built_in, attention_einsum, attention_nan_to_num, attention_loop],
)


# split_heads -------------------------------------------------------------------------------------


def split_cases(rng: Generator) -> list[Case]:
    return [
        Case(torch.arange(12.0).reshape(1, 2, 6), 3).titled("two tokens, three heads"),
        Case(normal(rng, 2, 5, 12), 4).titled("two texts of five tokens, four heads"),
        Case(normal(rng, 3, 4, 10), 2).titled("wide heads"),
        Case(normal(rng, 2, 3, 7), 1).titled("a single head"),
        Case(normal(rng, 2, 15, 4, dtype=torch.float64).mT, 5).titled(
            "float64, transposed in memory"
        ),
    ]


def split_by_view_alone(x: Tensor, num_heads: int) -> Tensor:
    batch, length, width = x.shape
    return x.reshape(batch, num_heads, length, width // num_heads)


def split_without_transpose(x: Tensor, num_heads: int) -> Tensor:
    batch, length, width = x.shape
    return x.reshape(batch, length, num_heads, width // num_heads)


def split_interleaved(x: Tensor, num_heads: int) -> Tensor:
    batch, length, width = x.shape
    return x.reshape(batch, length, width // num_heads, num_heads).permute(0, 3, 1, 2)


def split_into_widths(x: Tensor, num_heads: int) -> Tensor:
    batch, length, width = x.shape
    return x.reshape(batch, length, width // num_heads, num_heads).transpose(1, 2)


def split_heads_first(x: Tensor, num_heads: int) -> Tensor:
    return torch.stack(x.chunk(num_heads, dim=-1))


def split_transposed_twice(x: Tensor, num_heads: int) -> Tensor:
    batch, length, width = x.shape
    return x.reshape(batch, length, num_heads, width // num_heads).permute(0, 2, 3, 1)


def split_stacked(x: Tensor, num_heads: int) -> Tensor:
    return torch.stack(x.chunk(num_heads, dim=-1), dim=1)


def split_permuted(x: Tensor, num_heads: int) -> Tensor:
    batch, length, width = x.shape
    return x.reshape(batch, length, num_heads, width // num_heads).permute(0, 2, 1, 3)


def split_loop(x: Tensor, num_heads: int) -> Tensor:
    batch, length, width = x.shape
    size = width // num_heads
    out = torch.empty(batch, num_heads, length, size, dtype=x.dtype)
    for head in range(num_heads):
        out[:, head] = x[:, :, head * size : (head + 1) * size]
    return out


SPLIT_HEADS = Check(
    reference=reference.split_heads,
    points=3,
    cases=split_cases,
    misconceptions=[
        Misconception(
            "the rows are only cut anew: numbers of one token land in another's row",
            split_by_view_alone,
            "A reshape keeps the order of the numbers. Which two axes must change places after it?",
        ),
        Misconception(
            "the axes of tokens and heads are not swapped",
            split_without_transpose,
            "For x (2, 5, 12) and 4 heads: is your result (2, 4, 5, 3), or (2, 5, 4, 3)?",
        ),
        Misconception(
            "the features of a head are taken from all over the row, not side by side",
            split_interleaved,
            "Head 0 owns the first d features. Which features does yours have?",
        ),
        Misconception(
            "num_heads is taken for the width of a head",
            split_into_widths,
            "12 features and 4 heads: how many heads does your result have, and how wide are they?",
        ),
        Misconception(
            "the axis of heads stands before the batch",
            split_heads_first,
            "Which axis does the docstring put first: the batch, or the heads?",
        ),
        Misconception(
            "tokens and features are swapped within each head",
            split_transposed_twice,
            "In each head, is there a row for each token, or a row for each feature?",
        ),
    ],
    variants=[split_stacked, split_permuted, split_loop],
)


# merge_heads -------------------------------------------------------------------------------------


def merge_cases(rng: Generator) -> list[Case]:
    return [
        Case(torch.arange(12.0).reshape(1, 3, 2, 2)).titled("three heads, two tokens"),
        Case(normal(rng, 2, 4, 5, 3)).titled("two texts, four heads, five tokens"),
        Case(normal(rng, 3, 1, 4, 6)).titled("a single head"),
        Case(normal(rng, 2, 7, 3, 5).transpose(1, 2)).titled("heads that were split by a view"),
        Case(normal(rng, 2, 5, 4, 3, dtype=torch.float64).mT).titled(
            "float64, transposed in memory"
        ),
    ]


def merge_by_view_alone(x: Tensor) -> Tensor:
    batch, heads, length, width = x.shape
    return x.reshape(batch, length, heads * width)


def merge_tokens_of_a_head(x: Tensor) -> Tensor:
    return x.flatten(2)


def merge_one_below_the_other(x: Tensor) -> Tensor:
    return x.flatten(1, 2)


def merge_interleaved(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(2)


def merge_mean(x: Tensor) -> Tensor:
    return x.mean(1)


def merge_tokens_first(x: Tensor) -> Tensor:
    return x.permute(2, 0, 1, 3).flatten(2)


def merge_heads_backwards(x: Tensor) -> Tensor:
    return x.flip(1).transpose(1, 2).flatten(2)


def merge_joined(x: Tensor) -> Tensor:
    return torch.cat(x.unbind(1), dim=-1)


def merge_contiguous(x: Tensor) -> Tensor:
    batch, heads, length, width = x.shape
    return x.transpose(1, 2).contiguous().view(batch, length, heads * width)


def merge_loop(x: Tensor) -> Tensor:
    batch, heads, length, width = x.shape
    out = torch.empty(batch, length, heads * width, dtype=x.dtype)
    for head in range(heads):
        out[..., head * width : (head + 1) * width] = x[:, head]
    return out


MERGE_HEADS = Check(
    reference=reference.merge_heads,
    points=2,
    cases=merge_cases,
    misconceptions=[
        Misconception(
            "the axes are not swapped back: numbers of one token land in another's row",
            merge_by_view_alone,
            "A reshape keeps the order of the numbers. What must stand next to each other first?",
        ),
        Misconception(
            "the tokens of a head are merged, not the heads of a token",
            merge_tokens_of_a_head,
            "For x (2, 4, 5, 3), should there be 5 rows of 12 numbers, or 4 rows of 15?",
        ),
        Misconception(
            "the heads are put one below the other, not side by side",
            merge_one_below_the_other,
            "How many rows has a text of 5 tokens, before it is cut into heads, and after?",
        ),
        Misconception(
            "the features of the heads alternate",
            merge_interleaved,
            "In one row of the result: does all of head 0 come first, or one number of each head?",
        ),
        Misconception(
            "the heads are averaged",
            merge_mean,
            "Each head has found something else. What is left of it in their mean?",
        ),
        Misconception(
            "the axis of tokens stands before the batch",
            merge_tokens_first,
            "Which axis does the docstring put first: the batch, or the tokens?",
        ),
        Misconception(
            "the heads stand in reversed order",
            merge_heads_backwards,
            "Does split_heads undo your function?",
        ),
    ],
    variants=[merge_joined, merge_contiguous, merge_loop],
)


# repeat_kv ---------------------------------------------------------------------------------------


def repeat_cases(rng: Generator) -> list[Case]:
    return [
        Case(torch.tensor([10.0, 20.0]).reshape(1, 2, 1, 1), 3).titled("two heads, three copies"),
        Case(normal(rng, 2, 3, 5, 4), 2).titled("three heads, two copies"),
        Case(normal(rng, 1, 4, 6, 5), 3).titled("12 query heads, 4 key/value heads"),
        Case(normal(rng, 3, 1, 4, 2), 5).titled("a single key/value head (MQA)"),
        Case(normal(rng, 2, 3, 4, 5), 1).titled("a head for each query head (MHA)"),
        Case(normal(rng, 2, 5, 3, 4, dtype=torch.float64).transpose(1, 2), 4).titled(
            "float64, transposed in memory"
        ),
    ]


def repeat_in_turn(x: Tensor, groups: int) -> Tensor:
    return x.repeat(1, groups, 1, 1)


def repeat_positions(x: Tensor, groups: int) -> Tensor:
    return x.repeat_interleave(groups, dim=2)


def repeat_batch(x: Tensor, groups: int) -> Tensor:
    return x.repeat_interleave(groups, dim=0)


def repeat_features(x: Tensor, groups: int) -> Tensor:
    return x.repeat_interleave(groups, dim=-1)


def repeat_numbers(x: Tensor, groups: int) -> Tensor:
    return x.repeat_interleave(groups).reshape(x.shape[0], -1, *x.shape[2:])


def repeat_kept_apart(x: Tensor, groups: int) -> Tensor:
    return x[:, :, None].expand(-1, -1, groups, -1, -1)


def repeat_up_to(x: Tensor, groups: int) -> Tensor:
    return x.repeat_interleave(max(groups // x.shape[1], 1), dim=1)


def repeat_one_more(x: Tensor, groups: int) -> Tensor:
    return x.repeat_interleave(groups + 1, dim=1)


def repeat_expanded(x: Tensor, groups: int) -> Tensor:
    batch, heads, length, width = x.shape
    copies = x[:, :, None].expand(batch, heads, groups, length, width)
    return copies.reshape(batch, heads * groups, length, width)


def repeat_by_index(x: Tensor, groups: int) -> Tensor:
    return x[:, torch.arange(x.shape[1] * groups) // groups]


def repeat_loop(x: Tensor, groups: int) -> Tensor:
    return torch.stack([head for head in x.unbind(1) for _ in range(groups)], dim=1)


REPEAT_KV = Check(
    reference=reference.repeat_kv,
    points=3,
    cases=repeat_cases,
    misconceptions=[
        Misconception(
            "the copies are dealt in turn: 10, 20, 10, 20, not 10, 10, 20, 20",
            repeat_in_turn,
            "Query heads 0 and 1 share a key/value head. Are your first two copies alike?",
        ),
        Misconception(
            "positions are repeated, not heads",
            repeat_positions,
            "Which axis of (B, K, S, d) counts the heads?",
        ),
        Misconception(
            "texts of the batch are repeated, not heads",
            repeat_batch,
            "Which axis of (B, K, S, d) counts the heads?",
        ),
        Misconception(
            "features are repeated, not heads",
            repeat_features,
            "Which axis of (B, K, S, d) counts the heads?",
        ),
        Misconception(
            "each number is repeated: no dim was given",
            repeat_numbers,
            "What does repeat_interleave do with a tensor of four axes if it gets no dim?",
        ),
        Misconception(
            "the copies have an axis of their own, which is not merged",
            repeat_kept_apart,
            "How many axes must the keys have, so that they fit the queries (B, H, T, d)?",
        ),
        Misconception(
            "groups is taken for the number of query heads",
            repeat_up_to,
            "With 4 key/value heads and groups = 3, how many heads should come out?",
        ),
        Misconception(
            "there is one copy too many",
            repeat_one_more,
            "With groups = 1, should anything change?",
        ),
    ],
    variants=[repeat_expanded, repeat_by_index, repeat_loop],
)


# KVCache -----------------------------------------------------------------------------------------


def cache_probe(cache_class, sizes, pieces, dtype="float32"):
    """What a cache gives back when keys and values come piece by piece.

    sizes: batch, heads, capacity, width. A piece that is refused with a ValueError says so.
    """
    cache = cache_class(*sizes, dtype=getattr(torch, dtype))
    memory, found = cache.keys, []  # held, so that nothing else comes to lie in its place
    for key, value in pieces:
        try:
            keys, values = cache.update(key.clone(), value.clone())
        except ValueError:
            found.append("refused")
        else:
            found.append(
                {
                    "keys": keys.clone(),
                    "values": values.clone(),
                    "no memory taken anew": keys.data_ptr() == memory.data_ptr(),
                }
            )
        found.append(f"offset {cache.offset}")
    return found, tuple(cache.keys.shape), tuple(cache.values.shape)


def cache_cases(rng: Generator) -> list[Case]:
    def pieces(batch: int, heads: int, width: int, *lengths: int, dtype=torch.float32) -> list:
        return [
            [normal(rng, batch, heads, length, width, dtype=dtype) for _ in range(2)]
            for length in lengths
        ]

    return [
        Case([1, 1, 3, 2], pieces(1, 1, 2, 1, 1)).titled("token after token"),
        Case([2, 3, 9, 4], pieces(2, 3, 4, 5, 1, 1)).titled("a prompt, then two tokens"),
        Case([3, 2, 12, 5], pieces(3, 2, 5, 4, 3, 2)).titled("in chunks"),
        Case([2, 3, 6, 4], pieces(2, 3, 4, 4, 2)).titled("until it is full"),
        Case([2, 3, 6, 4], pieces(2, 3, 4, 4, 3, 2)).titled("too much, and then what fits"),
        Case([2, 1, 7, 3], pieces(2, 1, 3, 2, 4, dtype=torch.bfloat16), dtype="bfloat16").titled(
            "bfloat16"
        ),
    ]


class Cache:
    """A right one, in steps, so that each wrong one below changes a single step."""

    def __init__(self, batch_size, num_kv_heads, capacity, head_dim, dtype=torch.float32):
        shape = (batch_size, num_kv_heads, capacity, head_dim)
        self.keys, self.values = self.take(shape, dtype)
        self.capacity = capacity
        self.offset = 0

    def take(self, shape, dtype):
        return torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)

    def length(self, key):
        return key.shape[2]

    def update(self, key, value):
        end = self.offset + self.length(key)
        if end > self.capacity:
            raise ValueError("the cache is full")
        self.keys[:, :, self.offset : end] = key
        self.values[:, :, self.offset : end] = value
        self.offset = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class CacheGrowing(Cache):
    def take(self, shape, dtype):
        batch, heads, _, width = shape
        empty = torch.zeros(batch, heads, 0, width, dtype=dtype)
        return empty, empty

    def update(self, key, value):
        if self.offset + key.shape[2] > self.capacity:
            raise ValueError("the cache is full")
        self.keys = torch.cat((self.keys, key), dim=2)
        self.values = torch.cat((self.values, value), dim=2)
        self.offset += key.shape[2]
        return self.keys, self.values


class CacheForgetful(Cache):
    def update(self, key, value):
        keys, values = super().update(key, value)
        self.offset = 0
        return keys, values


class CacheOneAtATime(Cache):
    def update(self, key, value):
        before = self.offset
        keys, values = super().update(key, value)
        self.offset = before + 1
        return keys, values


class CacheWhole(Cache):
    def update(self, key, value):
        super().update(key, value)
        return self.keys, self.values


class CacheOnlyNew(Cache):
    def update(self, key, value):
        super().update(key, value)
        return key, value


class CacheSharedMemory(Cache):
    def take(self, shape, dtype):
        both = torch.zeros(shape, dtype=dtype)
        return both, both


class CacheSilentlyFull(Cache):
    def update(self, key, value):
        room = self.capacity - self.offset
        return super().update(key[:, :, :room], value[:, :, :room])


class CacheRolling(Cache):
    def update(self, key, value):
        over = max(self.offset + key.shape[2] - self.capacity, 0)
        if over:
            self.keys.copy_(self.keys.roll(-over, 2))
            self.values.copy_(self.values.roll(-over, 2))
            self.offset -= over
        return super().update(key, value)


class CacheWrongAxis(Cache):
    def length(self, key):
        return key.shape[1]


class CacheAlwaysFloat32(Cache):
    def take(self, shape, dtype):
        return torch.zeros(shape), torch.zeros(shape)


class CacheDamagedByRefusal(Cache):
    def update(self, key, value):
        self.offset += key.shape[2]
        if self.offset > self.capacity:
            raise ValueError("the cache is full")
        self.offset -= key.shape[2]
        return super().update(key, value)


class CacheNarrow:
    def __init__(self, batch_size, num_kv_heads, capacity, head_dim, dtype=torch.float32):
        both = torch.empty(2, batch_size, num_kv_heads, capacity, head_dim, dtype=dtype)
        self.keys, self.values = both
        self.offset = 0

    def update(self, key, value):
        new = key.shape[-2]
        if self.offset + new > self.keys.shape[-2]:
            raise ValueError(f"{new} more do not fit")
        for held, more in ((self.keys, key), (self.values, value)):
            held.narrow(2, self.offset, new).copy_(more)
        self.offset += new
        return self.keys.narrow(2, 0, self.offset), self.values.narrow(2, 0, self.offset)


class CacheByIndex:
    def __init__(self, batch_size, num_kv_heads, capacity, head_dim, dtype=torch.float32):
        self.keys = torch.full((batch_size, num_kv_heads, capacity, head_dim), math.nan).to(dtype)
        self.values = self.keys.clone()
        self.capacity, self.offset = capacity, 0

    def update(self, key, value):
        at = torch.arange(key.shape[2]) + self.offset
        if len(at) and at[-1] >= self.capacity:
            raise ValueError("full")
        self.keys.index_copy_(2, at, key)
        self.values.index_copy_(2, at, value)
        self.offset = self.offset + len(at)
        return self.keys[..., : self.offset, :], self.values[..., : self.offset, :]


class CacheLoop:
    def __init__(self, batch_size, num_kv_heads, capacity, head_dim, dtype=torch.float32):
        self.keys = torch.zeros(batch_size, num_kv_heads, capacity, head_dim, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.capacity = capacity
        self.offset = 0

    def update(self, key, value):
        length = key.size(2)
        if length > self.capacity - self.offset:
            raise ValueError(f"only {self.capacity - self.offset} positions are free")
        for t in range(length):
            self.keys[:, :, self.offset, :] = key[:, :, t, :]
            self.values[:, :, self.offset, :] = value[:, :, t, :]
            self.offset += 1
        return self.keys[:, :, : self.offset, :], self.values[:, :, : self.offset, :]


KV_CACHE = Check(
    reference=reference.KVCache,
    points=5,
    cases=cache_cases,
    probe=cache_probe,
    misconceptions=[
        Misconception(
            "the cache is copied at every step: torch.cat makes a new, longer tensor",
            CacheGrowing,
            "To add the 1000th token, how many old keys does your update copy?",
        ),
        Misconception(
            "the offset stays 0: each update overwrites the one before",
            CacheForgetful,
            "After a prompt of 5 tokens, at which position does the next key belong?",
        ),
        Misconception(
            "the offset grows by 1, however many tokens come",
            CacheOneAtATime,
            "A prompt comes as one piece of 5 tokens. What is the offset after it?",
        ),
        Misconception(
            "all of the memory is returned, unused places too",
            CacheWhole,
            "If 6 of 9 places are filled, how many keys may a query look at?",
        ),
        Misconception(
            "only the new keys and values are returned",
            CacheOnlyNew,
            "What is the cache for, if a query meets the new keys only?",
        ),
        Misconception(
            "keys and values share one memory: the values overwrite the keys",
            CacheSharedMemory,
            "How many tensors does a = b = torch.zeros(3) make?",
        ),
        Misconception(
            "what does not fit is dropped without a word",
            CacheSilentlyFull,
            "A model that forgets a token goes on as if nothing had happened. Who would notice?",
        ),
        Misconception(
            "the oldest positions are pushed out without a word",
            CacheRolling,
            "What does the docstring ask for when there is no room? Who would notice a loss?",
        ),
        Misconception(
            "the number of new tokens is read off the axis of heads",
            CacheWrongAxis,
            "Which axis of (B, K, T, d) counts tokens?",
        ),
        Misconception(
            "the cache is always float32: dtype is not used",
            CacheAlwaysFloat32,
            "What does your cache hold when it is made with dtype=torch.bfloat16?",
        ),
        Misconception(
            "the offset has moved although the update was refused",
            CacheDamagedByRefusal,
            "What should be asked first: is there room, or where do we stand afterwards?",
        ),
    ],
    variants=[CacheNarrow, CacheByIndex, CacheLoop],
)


# GroupedQueryAttention ---------------------------------------------------------------------------


def layer_probe(layer_class, sizes, weights, x, rope=None, mask=None, chunks=None):
    """What a layer with these weights makes of x, and the gradients of the sum of its squares.

    sizes: dim, num_heads, num_kv_heads, and head_dim if given. With chunks, so many tokens at a
    time are fed through a cache, and what the cache holds in the end is given back, too.
    """

    class Held:
        def __init__(self):
            self.keys = self.values = None
            self.offset = 0

        def update(self, key, value):
            if self.offset:
                key = torch.cat((self.keys, key), dim=2)
                value = torch.cat((self.values, value), dim=2)
            self.keys, self.values, self.offset = key, value, key.shape[2]
            return key, value

        def mask(self, length):
            total = self.offset + length
            return torch.arange(total) <= torch.arange(self.offset, total)[:, None]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = layer_class(*sizes).to(x.dtype)
    names = sorted(name for name, _ in layer.named_parameters())
    for name, given in weights.items():
        own = getattr(layer, name).weight
        if own.shape != given.shape:
            wanted = f"{name}.weight should have the shape {tuple(given.shape)}"
            raise ValueError(f"{wanted}, not {tuple(own.shape)}")
        own.data.copy_(given)
    if any(name.endswith(".bias") for name in names):
        return f"parameters: {', '.join(names)}"  # a bias is random: nothing else to compare
    if chunks is None:
        leaf = x.clone().requires_grad_()
        y = layer(leaf, rope, None, mask)
        y.square().sum().backward()
        return y, leaf.grad, {n: getattr(layer, n).weight.grad for n in weights}, names
    cache, pieces, start = Held(), [], 0
    with torch.no_grad():
        for size in chunks:
            end = start + size
            here = None if rope is None else tuple(table[start:end] for table in rope)
            pieces.append(layer(x[:, start:end], here, cache, None))
            start = end
    return torch.cat(pieces, 1), cache.keys, cache.values, names


def layer_cases(rng: Generator) -> list[Case]:
    # gradients are compared in float64: in float32 those of other styles differ by rounding
    double = torch.float64

    def weights(
        dim: int, heads: int, kv_heads: int, width: int, dtype: torch.dtype = double
    ) -> dict[str, Tensor]:
        wide, narrow = heads * width, kv_heads * width
        shapes = {
            "q_proj": (wide, dim),
            "k_proj": (narrow, dim),
            "v_proj": (narrow, dim),
            "o_proj": (dim, wide),
        }
        return {
            name: normal(rng, out, into, dtype=dtype) / math.sqrt(into)
            for name, (out, into) in shapes.items()
        }

    def rope(*shape: int, dtype: torch.dtype = double) -> tuple[Tensor, Tensor]:
        angles = 6 * torch.rand(shape, generator=rng).to(dtype)
        return angles.cos(), angles.sin()

    def vectors(*shape: int, dtype: torch.dtype = double) -> Tensor:
        return 2 * normal(rng, *shape, dtype=dtype)

    padded = torch.tensor([[j <= i for j in range(5)] for i in range(5)])[None].repeat(2, 1, 1)
    padded[1, :, :2] = False
    padded = padded | torch.eye(5, dtype=torch.bool)
    return [
        Case([6, 4, 2, 3], weights(6, 4, 2, 3), vectors(2, 5, 6)).titled(
            "four query heads share two key/value heads"
        ),
        Case([12, 3, 3], weights(12, 3, 3, 4), vectors(2, 5, 12), rope(5, 2)).titled(
            "MHA, with RoPE"
        ),
        Case([10, 4, 1, 6], weights(10, 4, 1, 6), vectors(3, 5, 10), rope(3, 5, 3)).titled(
            "MQA, with RoPE for each text"
        ),
        Case([10, 6, 2, 4], weights(10, 6, 2, 4), vectors(2, 5, 10), None, padded[:, None]).titled(
            "a mask for each text"
        ),
        Case(
            [9, 4, 2, 6],
            weights(9, 4, 2, 6, dtype=torch.float32),
            vectors(2, 7, 9, dtype=torch.float32),
            rope(7, 3, dtype=torch.float32),
            chunks=[3, 1, 2, 1],
        ).titled("through a cache, in pieces of 3, 1, 2 and 1 tokens"),
        Case([12, 6, 4], {}, vectors(1, 2, 12)).titled(
            "6 query heads cannot share 4 key/value heads"
        ),
    ]


class Layer(nn.Module):
    """A right one, in steps, so that each wrong one below changes a single step."""

    def __init__(self, dim, num_heads, num_kv_heads, head_dim=None):
        super().__init__()
        if num_heads % num_kv_heads:
            raise ValueError("the query heads cannot be shared out evenly")
        self.dim, self.num_heads, self.num_kv_heads = dim, num_heads, num_kv_heads
        self.head_dim = head_dim or dim // num_heads
        self.q_proj = nn.Linear(dim, num_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(dim, num_kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(dim, num_kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * self.head_dim, dim, bias=False)

    def split(self, x, heads):
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    def merge(self, x):
        return x.transpose(1, 2).flatten(2)

    def turn(self, x, rope):
        if rope is None:
            return x
        cos, sin = (table[:, None] if table.ndim == 3 else table for table in rope)
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)

    def spread(self, x):
        return x.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1)

    def scale(self):
        return math.sqrt(self.head_dim)

    def seen(self, queries, keys, offset):
        return torch.ones(queries, keys, dtype=torch.bool).tril(offset)

    def project(self, x, rope):
        query = self.turn(self.split(self.q_proj(x), self.num_heads), rope)
        key = self.turn(self.split(self.k_proj(x), self.num_kv_heads), rope)
        return query, key, self.split(self.v_proj(x), self.num_kv_heads)

    def store(self, cache, key, value):
        return cache.update(key, value)

    def forward(self, x, rope=None, cache=None, mask=None):
        query, key, value = self.project(x, rope)
        offset = cache.offset if cache is not None else 0
        if cache is not None:
            key, value = self.store(cache, key, value)
        if mask is None:
            mask = self.seen(query.shape[2], key.shape[2], offset)
        scores = query @ self.spread(key).mT / self.scale()
        weights = scores.masked_fill(~mask, -1e9).softmax(-1)
        return self.o_proj(self.merge(weights @ self.spread(value)))


class LayerCopiesInTurn(Layer):
    def spread(self, x):
        return x.repeat(1, self.num_heads // self.num_kv_heads, 1, 1)


class LayerNotCausal(Layer):
    def seen(self, queries, keys, offset):
        return torch.ones(queries, keys, dtype=torch.bool)


class LayerWithoutOffset(Layer):
    def seen(self, queries, keys, offset):
        return torch.ones(queries, keys, dtype=torch.bool).tril()


class LayerOffsetAfterwards(Layer):
    def project(self, x, rope):
        self.after = 0
        return super().project(x, rope)

    def store(self, cache, key, value):
        key, value = super().store(cache, key, value)
        self.after = cache.offset
        return key, value

    def seen(self, queries, keys, offset):
        return super().seen(queries, keys, self.after)


class LayerTurnedValues(Layer):
    def project(self, x, rope):
        query, key, value = super().project(x, rope)
        return query, key, self.turn(value, rope)


class LayerTurnedQueriesOnly(Layer):
    def project(self, x, rope):
        query, _, value = super().project(x, rope)
        return query, self.split(self.k_proj(x), self.num_kv_heads), value


class LayerSpreadCache(Layer):
    def store(self, cache, key, value):
        return cache.update(super().spread(key), super().spread(value))

    def spread(self, x):
        return x if x.shape[1] == self.num_heads else super().spread(x)


class LayerSplitByView(Layer):
    def split(self, x, heads):
        batch, length, width = x.shape
        return x.reshape(batch, heads, length, width // heads)


class LayerMergedByView(Layer):
    def merge(self, x):
        batch, heads, length, width = x.shape
        return x.reshape(batch, length, heads * width)


class LayerScaledByWidth(Layer):
    def scale(self):
        return math.sqrt(self.dim)


class LayerAlwaysMultiHead(Layer):
    def __init__(self, dim, num_heads, num_kv_heads, head_dim=None):
        super().__init__(dim, num_heads, num_kv_heads, head_dim)
        self.k_proj = nn.Linear(dim, num_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(dim, num_heads * self.head_dim, bias=False)


class LayerWithBias(Layer):
    def __init__(self, dim, num_heads, num_kv_heads, head_dim=None):
        super().__init__(dim, num_heads, num_kv_heads, head_dim)
        self.q_proj = nn.Linear(dim, num_heads * self.head_dim)
        self.k_proj = nn.Linear(dim, num_kv_heads * self.head_dim)
        self.v_proj = nn.Linear(dim, num_kv_heads * self.head_dim)
        self.o_proj = nn.Linear(num_heads * self.head_dim, dim)


class LayerOwnMaskOnly(Layer):
    def forward(self, x, rope=None, cache=None, mask=None):
        return super().forward(x, rope, cache, None)


class LayerDetached(Layer):
    def project(self, x, rope):
        query, key, value = super().project(x, rope)
        return query, key.detach(), value.detach()


class LayerBuiltIn(nn.Module):
    def __init__(self, dim, num_heads, num_kv_heads, head_dim=None):
        super().__init__()
        if num_heads % num_kv_heads != 0:
            raise ValueError(f"{num_kv_heads} does not divide {num_heads}")
        self.width = dim // num_heads if head_dim is None else head_dim
        self.groups = num_heads // num_kv_heads
        sizes = {"q_proj": num_heads, "k_proj": num_kv_heads, "v_proj": num_kv_heads}
        for name, heads in sizes.items():
            self.add_module(name, nn.Linear(dim, heads * self.width, bias=False))
        self.o_proj = nn.Linear(num_heads * self.width, dim, bias=False)

    def forward(self, x, rope=None, cache=None, mask=None):
        batch, length, _ = x.shape
        q, k, v = (
            projection(x).view(batch, length, -1, self.width).permute(0, 2, 1, 3)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if rope is not None:
            cos, sin = (torch.cat((table, table), -1) for table in rope)
            if cos.dim() == 3:
                cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
            halves = [torch.cat(t.chunk(2, -1)[::-1], -1) for t in (q, k)]
            sign = torch.ones(self.width)
            sign[: self.width // 2] = -1
            q, k = q * cos + sign * halves[0] * sin, k * cos + sign * halves[1] * sin
        start = 0 if cache is None else cache.offset
        if cache is not None:
            k, v = cache.update(k, v)
        if mask is None:
            mask = torch.arange(k.shape[2]) <= torch.arange(start, start + length)[:, None]
        k, v = (torch.repeat_interleave(t, self.groups, 1) for t in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class LayerEinsum(nn.Module):
    def __init__(self, dim, num_heads, num_kv_heads, head_dim=None):
        super().__init__()
        if num_heads // num_kv_heads * num_kv_heads != num_heads:
            raise ValueError("uneven groups")
        head_dim = head_dim or dim // num_heads
        self.kv_heads = num_kv_heads
        self.width = head_dim
        self.q_proj = nn.Linear(dim, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(dim, num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(dim, num_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, dim, bias=False)

    def forward(self, x, rope=None, cache=None, mask=None):
        q = self.q_proj(x).unflatten(-1, (self.kv_heads, -1, self.width))
        k = self.k_proj(x).unflatten(-1, (self.kv_heads, self.width))
        v = self.v_proj(x).unflatten(-1, (self.kv_heads, self.width))
        if rope is not None:
            cos, sin = (t if t.ndim == 3 else t[None] for t in rope)

            def turn(t, cos, sin):
                a, b = t[..., : self.width // 2], t[..., self.width // 2 :]
                return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)

            q = turn(q, cos[:, :, None, None], sin[:, :, None, None])
            k = turn(k, cos[:, :, None], sin[:, :, None])
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        before = 0
        if cache is not None:
            before = cache.offset
            k, v = cache.update(k, v)
        scores = torch.einsum("btkgd,bksd->bkgts", q, k) / self.width**0.5
        if mask is None:
            hidden = torch.ones_like(scores[0, 0, 0], dtype=torch.bool).triu(before + 1)
        else:
            hidden = ~mask[:, :, None]
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        out = torch.einsum("bkgts,bksd->btkgd", weights, v)
        return self.o_proj(out.flatten(2))


class LayerLoop(nn.Module):
    def __init__(self, dim, num_heads, num_kv_heads, head_dim=None):
        super().__init__()
        if num_heads % num_kv_heads:
            raise ValueError("choose a divisor")
        self.heads, self.shared = num_heads, num_heads // num_kv_heads
        self.width = head_dim or dim // num_heads
        self.q_proj = nn.Linear(dim, num_heads * self.width, bias=False)
        self.k_proj = nn.Linear(dim, num_kv_heads * self.width, bias=False)
        self.v_proj = nn.Linear(dim, num_kv_heads * self.width, bias=False)
        self.o_proj = nn.Linear(num_heads * self.width, dim, bias=False)

    def turned(self, head, rope):
        if rope is None:
            return head
        (cos, sin), half = rope, self.width // 2
        a, b = head[..., :half], head[..., half:]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def forward(self, x, rope=None, cache=None, mask=None):
        queries = [self.turned(h, rope) for h in self.q_proj(x).split(self.width, -1)]
        keys = [self.turned(h, rope) for h in self.k_proj(x).split(self.width, -1)]
        key, value = torch.stack(keys, 1), torch.stack(self.v_proj(x).split(self.width, -1), 1)
        offset = 0
        if cache is not None:
            offset = cache.offset
            key, value = cache.update(key, value)
        found = []
        for h, query in enumerate(queries):
            k, v = key[:, h // self.shared], value[:, h // self.shared]
            scores = query @ k.transpose(1, 2) * self.width**-0.5
            if mask is not None:
                scores = scores.where(mask[:, 0], torch.tensor(-1e9))
            else:
                for t in range(x.shape[1]):
                    scores[:, t, t + offset + 1 :] = -1e9
            found.append(scores.softmax(-1) @ v)
        return self.o_proj(torch.cat(found, -1))


GROUPED_QUERY_ATTENTION = Check(
    reference=reference.GroupedQueryAttention,
    points=8,
    cases=layer_cases,
    probe=layer_probe,
    misconceptions=[
        Misconception(
            "the copies of the key/value heads are dealt in turn",
            LayerCopiesInTurn,
            "Query heads 0 and 1 share key/value head 0. Which copies does your repeat give them?",
        ),
        Misconception(
            "without a mask, every token sees every token",
            LayerNotCausal,
            "What does the docstring promise where mask is None?",
        ),
        Misconception(
            "the mask counts from 0, although the cache holds earlier positions",
            LayerWithoutOffset,
            "Three tokens are in the cache, one comes. How many keys may it look at?",
        ),
        Misconception(
            "the offset is read after the update: within a piece, tokens see later ones",
            LayerOffsetAfterwards,
            "What is cache.offset before the update, and what is it after?",
        ),
        Misconception(
            "RoPE turns the values, too",
            LayerTurnedValues,
            "Which of the three decide a score? Does a score depend on a value?",
        ),
        Misconception(
            "RoPE turns the queries only",
            LayerTurnedQueriesOnly,
            "A score should depend on m - n. Where do m and n come from?",
        ),
        Misconception(
            "the cache holds a copy of each key/value head for every query head",
            LayerSpreadCache,
            "What was shared, so that the cache may be small? When do you repeat, then?",
        ),
        Misconception(
            "the heads are cut by a reshape alone",
            LayerSplitByView,
            "What did Exercise 4 do between the cut and the result?",
        ),
        Misconception(
            "the heads are merged by a reshape alone",
            LayerMergedByView,
            "What did Exercise 5 do before it flattened?",
        ),
        Misconception(
            "the scores are divided by the root of the model's width, not of the head's",
            LayerScaledByWidth,
            "How many products are summed in one score: D, or d?",
        ),
        Misconception(
            "k_proj and v_proj are as wide as q_proj",
            LayerAlwaysMultiHead,
            "How many heads do keys and values have? How many rows does k_proj need for them?",
        ),
        Misconception(
            "the four linear maps have a bias",
            LayerWithBias,
            "What does nn.Linear add to the product if it is not told otherwise?",
        ),
        Misconception(
            "the mask that is given is not used",
            LayerOwnMaskOnly,
            "Where does your forward look at its argument mask?",
        ),
        Misconception(
            "no gradient reaches k_proj and v_proj: keys and values are detached",
            LayerDetached,
            "What can training not change, if the gradient never comes to it?",
        ),
    ],
    variants=[LayerBuiltIn, LayerEinsum, LayerLoop],
)


# kv_cache_bytes ----------------------------------------------------------------------------------


def bytes_cases(rng: Generator) -> list[Case]:
    layers, heads, width = whole(rng, 3, 60), whole(rng, 3, 30), whole(rng, 5, 40)
    length, batch = whole(rng, 100, 5000), whole(rng, 3, 20)
    return [
        Case(1, 1, 64).titled("one layer, one head of width 64"),
        Case(layers, heads, width).titled("one token of another model"),
        Case(layers, heads, width, length).titled("a text"),
        Case(layers, heads, width, length, batch_size=batch).titled("a batch of texts"),
        Case(layers, heads, width, length, batch, bytes_per_value=4).titled("float32"),
        Case(layers, heads, width, batch_size=batch, bytes_per_value=1).titled("8 bits, one token"),
    ]


def bytes_of_keys_only(
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    length: int = 1,
    batch_size: int = 1,
    bytes_per_value: int = 2,
) -> int:
    return num_layers * num_kv_heads * head_dim * length * batch_size * bytes_per_value


def bytes_of_one_layer(
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    length: int = 1,
    batch_size: int = 1,
    bytes_per_value: int = 2,
) -> int:
    return 2 * num_kv_heads * head_dim * length * batch_size * bytes_per_value


def bytes_of_one_token(
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    length: int = 1,
    batch_size: int = 1,
    bytes_per_value: int = 2,
) -> int:
    return 2 * num_layers * num_kv_heads * head_dim * batch_size * bytes_per_value


def bytes_of_one_text(
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    length: int = 1,
    batch_size: int = 1,
    bytes_per_value: int = 2,
) -> int:
    return 2 * num_layers * num_kv_heads * head_dim * length * bytes_per_value


def bytes_of_halves(
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    length: int = 1,
    batch_size: int = 1,
    bytes_per_value: int = 2,
) -> int:
    return 2 * num_layers * num_kv_heads * head_dim * length * batch_size * 2


def bytes_as_values(
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    length: int = 1,
    batch_size: int = 1,
    bytes_per_value: int = 2,
) -> int:
    return 2 * num_layers * num_kv_heads * head_dim * length * batch_size


def bytes_as_bits(
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    length: int = 1,
    batch_size: int = 1,
    bytes_per_value: int = 2,
) -> int:
    return 16 * num_layers * num_kv_heads * head_dim * length * batch_size * bytes_per_value


def bytes_of_scores(
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    length: int = 1,
    batch_size: int = 1,
    bytes_per_value: int = 2,
) -> int:
    return 2 * num_layers * num_kv_heads * head_dim * length**2 * batch_size * bytes_per_value


def bytes_step_by_step(
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    length: int = 1,
    batch_size: int = 1,
    bytes_per_value: int = 2,
) -> int:
    per_head = head_dim * bytes_per_value
    per_layer = num_kv_heads * (per_head + per_head)
    return num_layers * per_layer * length * batch_size


def bytes_product(
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    length: int = 1,
    batch_size: int = 1,
    bytes_per_value: int = 2,
) -> int:
    factors = (2, num_layers, num_kv_heads, head_dim, length, batch_size, bytes_per_value)
    return math.prod(factors)


def bytes_measured(
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    length: int = 1,
    batch_size: int = 1,
    bytes_per_value: int = 2,
) -> int:
    kinds = {1: torch.int8, 2: torch.bfloat16, 4: torch.float32}
    shape = (batch_size, num_kv_heads, length, head_dim)
    keys = torch.empty(shape, dtype=kinds[bytes_per_value], device="meta")
    return num_layers * (keys.nbytes + torch.empty_like(keys).nbytes)


KV_CACHE_BYTES = Check(
    reference=reference.kv_cache_bytes,
    points=3,
    cases=bytes_cases,
    misconceptions=[
        Misconception(
            "only the keys are counted, or only the values",
            bytes_of_keys_only,
            "Which two things does a cache hold for each position?",
        ),
        Misconception(
            "only one layer is counted",
            bytes_of_one_layer,
            "Do all layers of a model have the same keys?",
        ),
        Misconception(
            "only one token is counted: length is not used",
            bytes_of_one_token,
            "What does your function do when it is called with length=100?",
        ),
        Misconception(
            "only one text is counted: batch_size is not used",
            bytes_of_one_text,
            "Can two texts share their keys?",
        ),
        Misconception(
            "each value takes 2 bytes: bytes_per_value is not used",
            bytes_of_halves,
            "How many bytes does one float32 take?",
        ),
        Misconception(
            "the values are counted, not their bytes",
            bytes_as_values,
            "How many bytes does one bfloat16 take?",
        ),
        Misconception(
            "this is in bits",
            bytes_as_bits,
            "A bfloat16 has 16 bits. How many bytes are those?",
        ),
        Misconception(
            "the length is squared, as for a matrix of scores",
            bytes_of_scores,
            "Does the cache hold something for each token, or for each pair of tokens?",
        ),
    ],
    variants=[bytes_step_by_step, bytes_product, bytes_measured],
)


# Questions ---------------------------------------------------------------------------------------

TRUE_IN_MASK = Question(
    "true_in_mask",
    answer=36.0,
    tolerance=(0.0, 0.5),
    misconceptions=[
        Misconception(
            "the cache is forgotten: only the new tokens are counted",
            6.0,
            "May the first of the new tokens look at the ten in the cache?",
        ),
        Misconception(
            "every new token is counted with every key",
            39.0,
            "May the first of the three look at the second one?",
        ),
        Misconception(
            "a token is not counted with itself",
            33.0,
            "May a token look at itself?",
        ),
        Misconception(
            "only the tokens of the cache are counted",
            30.0,
            "The third of the new tokens: may it look at the first two, and at itself?",
        ),
        Misconception(
            "all 13 tokens are counted as queries",
            91.0,
            "How many rows has the mask: one for each token, or one for each new token?",
        ),
    ],
)

SHARED_HEAD = Question(
    "shared_head",
    answer=3.0,
    tolerance=(0.0, 0.25),
    misconceptions=[
        Misconception(
            "the key/value heads are dealt in turn: 14 modulo 8",
            6.0,
            "Query heads 0, 1, 2 and 3 make the first group. Which one do 4 to 7 make?",
        ),
        Misconception(
            "it is divided by the number of key/value heads, not by the size of a group",
            1.0,
            "32 query heads, 8 key/value heads: how many query heads are in a group?",
        ),
        Misconception(
            "this is the place within the group",
            2.0,
            "14 divided by 4 is 3, with a rest of 2. Which of the two names the group?",
        ),
        Misconception(
            "the key/value heads are counted from 1",
            4.0,
            "Which number has the first key/value head?",
        ),
    ],
)

NO_QUERY_CACHE = Question(
    "no_query_cache",
    answer="b",
    choices=("a", "b", "c", "d"),
    misconceptions=[
        Misconception(
            "queries are thought to depend on later tokens",
            "a",
            "A query is a product of one token's row and a matrix. Which other token is in it?",
        ),
        Misconception(
            "queries are thought to be too large",
            "c",
            "With MHA, queries are as large as keys. Does one keep them then?",
        ),
        Misconception(
            "RoPE is thought to make old queries wrong",
            "d",
            "RoPE turns keys by their positions, too. Do old keys become wrong?",
        ),
    ],
)

WITHOUT_MASK = Question(
    "without_mask",
    answer="c",
    choices=("a", "b", "c", "d"),
    misconceptions=[
        Misconception(
            "the model is thought to fail because it has never seen later tokens",
            "a",
            "At each position we ask for the next token. Where does that token stand now?",
        ),
        Misconception(
            "the mask is thought to matter in training only",
            "b",
            "Does the first token's row still depend on the first token only?",
        ),
        Misconception(
            "an error is expected",
            "d",
            "Which shape changes when a mask is left out?",
        ),
    ],
)

CACHE_GIGABYTES = Question(
    "cache_gigabytes",
    points=2,
    answer=2.0 * 80 * 8 * 128 * 8192 * 16 * 2 / 1e9,
    tolerance=(0.01, 0.0),
    misconceptions=[
        Misconception(
            "the keys are counted, the values are not",
            80.0 * 8 * 128 * 8192 * 16 * 2 / 1e9,
            "Which two things does a cache hold for each position?",
        ),
        Misconception(
            "the query heads are counted",
            2.0 * 80 * 64 * 128 * 8192 * 16 * 2 / 1e9,
            "Which heads does the cache hold: the 64, or the 8?",
        ),
        Misconception(
            "only one text is counted",
            2.0 * 80 * 8 * 128 * 8192 * 2 / 1e9,
            "How many texts are being written at the same time?",
        ),
        Misconception(
            "only one layer is counted",
            2.0 * 8 * 128 * 8192 * 16 * 2 / 1e9,
            "How many layers are there, and does each have its own keys and values?",
        ),
        Misconception(
            "four bytes are counted for each value",
            2.0 * 80 * 8 * 128 * 8192 * 16 * 4 / 1e9,
            "How many bytes does one bfloat16 take?",
        ),
        Misconception(
            "a gigabyte is taken for 2 to the power of 30 bytes",
            2.0 * 80 * 8 * 128 * 8192 * 16 * 2 / 2**30,
            "One GB is 10 to the power of 9 bytes here. By what did you divide?",
        ),
    ],
)
