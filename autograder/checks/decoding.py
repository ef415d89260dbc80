"""Chapter 10: from the distribution of the next token to text."""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from autograder.check import Case, Check, Misconception, Question
from llmkit import decoding, sampling, search, speculative
from llmkit.transformer import Llama, LlamaConfig

# Wrong solutions and variants are written as a student would write them, without llmkit: a class
# of synthetic students is made of their source.


def normal(rng: Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng)


def whole(rng: Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high, (), generator=rng))


def spread(rng: Generator, *shape: int) -> Tensor:
    """Logits of which no two of a row are near each other, in random order."""
    steps = torch.rand(shape, generator=rng).argsort(-1).float()
    return 0.45 * steps + 0.1 * torch.rand(shape, generator=rng) - 2


# greedy ------------------------------------------------------------------------------------------


def greedy_cases(rng: Generator) -> list[Case]:
    tie = normal(rng, 3, 6).clamp(max=1.5)
    tie[0, [2, 4]], tie[1, [1, 5]], tie[2, [0, 3]] = 2.0, 3.0, 4.0
    low = -3 - spread(rng, 2, 7).abs()
    return [
        Case(spread(rng, 9)).titled("one row"),
        Case(spread(rng, 2, 3, 5)).titled("a batch of sequences"),
        Case(tie).titled("two equally likely tokens"),
        Case(low).titled("all logits negative"),
        Case(spread(rng, 4, 8).double()).titled("float64"),
    ]


def greedy_values(logits):
    return logits.max(-1).values


def greedy_first_axis(logits):
    return logits.argmax(0)


def greedy_flattened(logits):
    return logits.argmax()


def greedy_last_of_equals(logits):
    return logits.shape[-1] - 1 - logits.flip(-1).argmax(-1)


def greedy_by_size(logits):
    return logits.abs().argmax(-1)


def greedy_least(logits):
    return logits.argmin(-1)


def greedy_kept_axis(logits):
    return logits.argmax(-1, keepdim=True)


def greedy_by_max(logits):
    return logits.softmax(-1).max(dim=-1).indices


def greedy_by_sort(logits):
    return logits.sort(dim=-1, descending=True, stable=True).indices[..., 0]


def greedy_by_loop(logits):
    rows = []
    for row in logits.reshape(-1, logits.shape[-1]).tolist():
        rows.append(row.index(max(row)))
    return torch.tensor(rows).reshape(logits.shape[:-1])


GREEDY = Check(
    reference=sampling.greedy,
    points=1,
    cases=greedy_cases,
    misconceptions=[
        Misconception(
            "the largest logit is given, not its token",
            greedy_values,
            "Which of the two do you need: how large the largest is, or where it stands?",
        ),
        Misconception(
            "the wrong axis",
            greedy_first_axis,
            "Along which axis does the vocabulary run: the first or the last?",
        ),
        Misconception(
            "one token for the whole batch",
            greedy_flattened,
            "What does argmax without a dimension look through?",
        ),
        Misconception(
            "the last of equally likely tokens",
            greedy_last_of_equals,
            "Which of two equal tokens does the docstring ask for?",
        ),
        Misconception(
            "the logit furthest from 0",
            greedy_by_size,
            "Is a token of logit −9 likely or unlikely?",
        ),
        Misconception("the least likely token", greedy_least, "Is it the largest or the smallest?"),
        Misconception(
            "the axis of the vocabulary is still there",
            greedy_kept_axis,
            "Shapes (…, V) -> (…): which axis is gone?",
        ),
    ],
    variants=[greedy_by_max, greedy_by_sort, greedy_by_loop],
)


# apply_temperature -------------------------------------------------------------------------------


def temperature_cases(rng: Generator) -> list[Case]:
    ruled_out = spread(rng, 2, 6)
    ruled_out[:, 1] = -math.inf
    tie = spread(rng, 2, 5).clamp(max=-0.5)
    tie[:, [1, 3]] = 1.0
    return [
        Case(spread(rng, 7), 0.5).titled("colder: 0.5"),
        Case(spread(rng, 2, 5), 1.7).titled("hotter: 1.7"),
        Case(spread(rng, 3, 4), 0).titled("temperature 0"),
        Case(tie, 0.0).titled("temperature 0, and two equally likely tokens"),
        Case(ruled_out, 0.8).titled("a token that is ruled out already"),
        Case(spread(rng, 4), -0.5).titled("below 0: ValueError"),
    ]


def temperature_checked(temperature):
    if temperature < 0:
        raise ValueError("the temperature is negative")


def only_the_best(logits):
    best = F.one_hot(logits.argmax(-1), logits.shape[-1]).bool()
    return torch.where(best, logits, -math.inf)


def temperature_times(logits, temperature):
    temperature_checked(temperature)
    return logits * temperature if temperature else only_the_best(logits)


def temperature_divides_by_zero(logits, temperature):
    temperature_checked(temperature)
    return logits / temperature


def temperature_almost_zero(logits, temperature):
    temperature_checked(temperature)
    return logits / max(temperature, 1e-4)


def temperature_zero_changes_nothing(logits, temperature):
    temperature_checked(temperature)
    return logits / temperature if temperature else logits


def temperature_gives_probabilities(logits, temperature):
    temperature_checked(temperature)
    return (logits / temperature if temperature else only_the_best(logits)).softmax(-1)


def temperature_keeps_ties(logits, temperature):
    temperature_checked(temperature)
    if temperature:
        return logits / temperature
    return torch.where(logits == logits.amax(-1, keepdim=True), logits, -math.inf)


def temperature_of_probabilities(logits, temperature):
    temperature_checked(temperature)
    return logits.softmax(-1) / temperature if temperature else only_the_best(logits)


def temperature_without_error(logits, temperature):
    return logits / temperature if temperature else only_the_best(logits)


def temperature_squared(logits, temperature):
    temperature_checked(temperature)
    return logits / temperature**2 if temperature else only_the_best(logits)


def temperature_by_scatter(logits, temperature):
    if temperature < 0:
        raise ValueError("The temperature must not be negative.")
    if temperature > 0:
        return logits * (1 / temperature)
    best = logits.argmax(-1, keepdim=True)
    kept = torch.full_like(logits, -math.inf)
    return kept.scatter(-1, best, logits.gather(-1, best))


def temperature_by_places(logits, temperature):
    if not temperature >= 0:
        raise ValueError("not a temperature")
    if temperature != 0:
        return torch.div(logits, temperature)
    places = torch.arange(logits.shape[-1])
    return logits.masked_fill(places != logits.argmax(-1)[..., None], float("-inf"))


def temperature_by_loop(logits, temperature):
    if temperature < 0:
        raise ValueError("too cold")
    rows = []
    for row in logits.reshape(-1, logits.shape[-1]):
        if temperature:
            rows.append(row / temperature)
        else:
            cold = torch.full_like(row, -math.inf)
            cold[row.argmax()] = row.max()
            rows.append(cold)
    return torch.stack(rows).reshape(logits.shape)


APPLY_TEMPERATURE = Check(
    reference=sampling.apply_temperature,
    points=3,
    cases=temperature_cases,
    misconceptions=[
        Misconception(
            "logits are multiplied by the temperature",
            temperature_times,
            "Should a temperature below 1 make the differences between logits larger or smaller?",
        ),
        Misconception(
            "temperature 0 divides by zero",
            temperature_divides_by_zero,
            "What is 2 / 0, and 0 / 0, in floats? What should temperature 0 mean?",
        ),
        Misconception(
            "temperature 0 is taken for a very small number",
            temperature_almost_zero,
            "Logits in the ten thousands: what happens to two that are equal, or nearly?",
        ),
        Misconception(
            "temperature 0 changes nothing",
            temperature_zero_changes_nothing,
            "The colder, the surer. Which tokens are left at absolute zero?",
        ),
        Misconception(
            "probabilities are given, not logits",
            temperature_gives_probabilities,
            "The filters that follow take logits. Who applies the softmax, and when?",
        ),
        Misconception(
            "temperature 0 keeps all of the likeliest tokens",
            temperature_keeps_ties,
            "Greedy chooses one token. Which one is it if two are equally likely?",
        ),
        Misconception(
            "probabilities are divided, not logits",
            temperature_of_probabilities,
            "Divide all probabilities by 2 and normalize them again: what has changed?",
        ),
        Misconception(
            "a negative temperature raises no error",
            temperature_without_error,
            "With −0.5, which token becomes the likeliest?",
        ),
        Misconception(
            "the temperature is squared",
            temperature_squared,
            "softmax(logits / T): how often does T stand there?",
        ),
    ],
    variants=[temperature_by_scatter, temperature_by_places, temperature_by_loop],
)


# top_k_filter ------------------------------------------------------------------------------------


def top_k_cases(rng: Generator) -> list[Case]:
    tie = torch.full((2, 6), 0.0)
    tie[0] = torch.tensor([1.0, 3.0, 2.0, 2.0, 0.0, 2.0])
    tie[1] = torch.tensor([5.0, 1.0, 5.0, 4.0, 5.0, 0.0])
    return [
        Case(spread(rng, 8), 3).titled("three of eight"),
        Case(spread(rng, 2, 3, 7), 2).titled("a batch of sequences"),
        Case(tie + normal(rng, 2, 1), 2).titled("equal logits at the edge"),
        Case(spread(rng, 5), 9).titled("k is more than there are tokens"),
        Case(spread(rng, 3, 4), 1).titled("k = 1"),
        Case(spread(rng, 4), 0).titled("k = 0: ValueError"),
    ]


def top_k_checked(k):
    if k < 1:
        raise ValueError("k is below 1")


def top_k_zeros(logits, k):
    top_k_checked(k)
    kth = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return torch.where(logits < kth, 0.0, logits)


def top_k_exactly(logits, k):
    top_k_checked(k)
    best = logits.topk(min(k, logits.shape[-1])).indices
    return torch.full_like(logits, -math.inf).scatter(-1, best, logits.gather(-1, best))


def top_k_values_only(logits, k):
    top_k_checked(k)
    return logits.topk(min(k, logits.shape[-1])).values


def top_k_drops_the_kth(logits, k):
    top_k_checked(k)
    kth = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return torch.where(logits <= kth, -math.inf, logits)


def top_k_smallest(logits, k):
    top_k_checked(k)
    kth = logits.topk(min(k, logits.shape[-1]), largest=False).values[..., -1:]
    return torch.where(logits > kth, -math.inf, logits)


def top_k_of_all_rows(logits, k):
    top_k_checked(k)
    kth = logits.flatten().topk(min(k, logits.numel())).values[-1]
    return torch.where(logits < kth, -math.inf, logits)


def top_k_too_many(logits, k):
    top_k_checked(k)
    kth = logits.topk(k).values[..., -1:]
    return torch.where(logits < kth, -math.inf, logits)


def top_k_one_more(logits, k):
    top_k_checked(k)
    kth = logits.topk(min(k + 1, logits.shape[-1])).values[..., -1:]
    return torch.where(logits < kth, -math.inf, logits)


def top_k_without_error(logits, k):
    kth = logits.topk(min(max(k, 1), logits.shape[-1])).values[..., -1:]
    return torch.where(logits < kth, -math.inf, logits)


def top_k_probabilities(logits, k):
    top_k_checked(k)
    kth = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return torch.where(logits < kth, -math.inf, logits).softmax(-1)


def top_k_by_sort(logits, k):
    if k < 1:
        raise ValueError("k must be 1 or more")
    ordered = logits.sort(dim=-1, descending=True).values
    edge = ordered[..., min(k, ordered.shape[-1]) - 1]
    return logits.masked_fill(logits < edge.unsqueeze(-1), float("-inf"))


def top_k_by_kthvalue(logits, k):
    if k <= 0:
        raise ValueError("nothing would be left")
    size = logits.shape[-1]
    edge = logits.kthvalue(size - min(k, size) + 1, dim=-1, keepdim=True).values
    return torch.where(logits >= edge, logits, torch.tensor(-math.inf, dtype=logits.dtype))


def top_k_by_loop(logits, k):
    if k < 1:
        raise ValueError("k must be 1 or more")
    rows = []
    for row in logits.reshape(-1, logits.shape[-1]).tolist():
        edge = sorted(row, reverse=True)[:k][-1]
        rows.append([value if value >= edge else -math.inf for value in row])
    return torch.tensor(rows, dtype=logits.dtype).reshape(logits.shape)


TOP_K_FILTER = Check(
    reference=sampling.top_k_filter,
    points=3,
    cases=top_k_cases,
    misconceptions=[
        Misconception(
            "what is ruled out gets 0, not −inf",
            top_k_zeros,
            "What is exp(0)? Which logit has the probability 0?",
        ),
        Misconception(
            "of equal logits at the edge only some are kept",
            top_k_exactly,
            "Two tokens are equally likely, and one of them is the k-th. Why should one go?",
        ),
        Misconception(
            "the k values alone are given",
            top_k_values_only,
            "After your filter, which token does the second number stand for?",
        ),
        Misconception(
            "the k-th is dropped too",
            top_k_drops_the_kth,
            "How many tokens are left of k = 1? Is it < or ≤?",
        ),
        Misconception(
            "the smallest are kept",
            top_k_smallest,
            "Which tokens should be left: the likely or the unlikely ones?",
        ),
        Misconception(
            "one threshold for all rows",
            top_k_of_all_rows,
            "Each row is a distribution of its own. How many tokens are left in each?",
        ),
        Misconception(
            "a k larger than the vocabulary fails",
            top_k_too_many,
            "With 5 tokens and k = 50, what would a user expect?",
        ),
        Misconception(
            "one token too many is kept",
            top_k_one_more,
            "Counting from 0 or from 1: which place has the k-th largest?",
        ),
        Misconception(
            "k = 0 raises no error",
            top_k_without_error,
            "If no token may come, what is sampled?",
        ),
        Misconception(
            "probabilities are given, not logits",
            top_k_probabilities,
            "Another filter may follow. What does it take: logits or probabilities?",
        ),
    ],
    variants=[top_k_by_sort, top_k_by_kthvalue, top_k_by_loop],
)


# top_p_filter ------------------------------------------------------------------------------------


def top_p_cases(rng: Generator) -> list[Case]:
    shuffled = lambda chances: torch.tensor(chances)[torch.randperm(len(chances), generator=rng)]
    example = shuffled([0.42, 0.28, 0.2, 0.1]).log()
    flat = shuffled([0.2, 0.19, 0.17, 0.16, 0.15, 0.13]).log()
    rows = torch.stack([shuffled([0.9, 0.05, 0.03, 0.02]), shuffled([0.3, 0.26, 0.24, 0.2])]).log()
    tie = torch.tensor([0.1, 0.2, 0.2, 0.3, 0.2]).log()
    return [
        Case(example + 3, 0.6).titled("the second token crosses p"),
        Case(rows, 0.7).titled("a sure row and an unsure one"),
        Case(example, 0.05).titled("a p smaller than the largest probability"),
        Case(tie, 0.4).titled("equally likely tokens at the edge"),
        Case(flat, 1.0).titled("p = 1"),
        Case(6 * normal(rng, 2, 10_000), 1.0).titled("p = 1, two rows of 10,000 tokens"),
        Case(torch.zeros(4), 0.5).titled("two of four equal tokens are exactly p = 0.5"),
        Case(flat, 0.6).titled("nearly flat"),
        Case(example, 0.0).titled("p = 0: ValueError"),
    ]


def top_p_checked(p):
    if not 0 < p <= 1:
        raise ValueError("p is out of range")


def nucleus(logits, p, crossing=True, at_least=1, descending=True, scale=1.0, all_at_one=True):
    """Every filter below is this one with one step changed."""
    order = (logits if descending else -logits).sort(dim=-1, descending=True, stable=True).indices
    ordered = scale * logits.softmax(-1).gather(-1, order)
    total = ordered.cumsum(-1)
    keep = (total - ordered < p) if crossing else (total <= p)
    keep[..., :at_least] = True
    if p == 1 and all_at_one:
        keep[:] = True
    kept = torch.zeros_like(keep).scatter(-1, order, keep)
    return torch.where(kept, logits, -math.inf)


def top_p_not_crossing(logits, p):
    top_p_checked(p)
    return nucleus(logits, p, crossing=False)


def top_p_may_be_empty(logits, p):
    top_p_checked(p)
    return nucleus(logits, p, crossing=False, at_least=0)


def top_p_from_below(logits, p):
    top_p_checked(p)
    return nucleus(logits, p, descending=False)


def top_p_not_put_back(logits, p):
    top_p_checked(p)
    ordered = logits.sort(dim=-1, descending=True, stable=True).values
    chances = ordered.softmax(-1)
    return torch.where((chances.cumsum(-1) - chances < p) | (p == 1), ordered, -math.inf)


def top_p_unsorted(logits, p):
    top_p_checked(p)
    chances = logits.softmax(-1)
    return torch.where((chances.cumsum(-1) - chances < p) | (p == 1), logits, -math.inf)


def top_p_drops_at_one(logits, p):
    top_p_checked(p)
    return nucleus(logits, p, all_at_one=False)


def top_p_past_exactly(logits, p):
    top_p_checked(p)
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    ordered = logits.softmax(-1).gather(-1, order)
    keep = (ordered.cumsum(-1) - ordered <= p) | (p == 1)
    kept = torch.zeros_like(keep).scatter(-1, order, keep)
    return torch.where(kept, logits, -math.inf)


def top_p_by_threshold(logits, p):
    top_p_checked(p)
    chances = logits.softmax(-1)
    kept = (chances >= p) | (chances == chances.amax(-1, keepdim=True))
    return torch.where(kept, logits, -math.inf)


def top_p_one_more(logits, p):
    top_p_checked(p)
    return nucleus(logits, p, at_least=2)


def top_p_keeps_ties(logits, p):
    top_p_checked(p)
    inside = nucleus(logits, p)
    least = torch.where(inside.isinf(), math.inf, inside).amin(-1, keepdim=True)
    return torch.where(logits >= least, logits, -math.inf)


def top_p_without_error(logits, p):
    return nucleus(logits, p)


def top_p_zeros(logits, p):
    top_p_checked(p)
    inside = nucleus(logits, p)
    return torch.where(inside.isinf(), 0.0, inside)


def top_p_order_of_places(logits, p):
    top_p_checked(p)
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    ordered = logits.softmax(-1).gather(-1, order)
    keep = (ordered.cumsum(-1) - ordered < p) | (p == 1)
    return torch.where(keep.gather(-1, order), logits, -math.inf)


def top_p_by_inverse(logits, p):
    if p <= 0 or p > 1:
        raise ValueError("p must be in (0, 1]")
    if p == 1:
        return logits.clone()
    order = torch.argsort(logits, dim=-1, descending=True, stable=True)
    chances = torch.softmax(logits, -1)
    ordered = torch.gather(chances, -1, order)
    before = torch.cumsum(ordered, -1) - ordered
    rank = torch.argsort(order, dim=-1)
    return logits.masked_fill(torch.gather(before, -1, rank) >= p, float("-inf"))


def top_p_by_loop(logits, p):
    if not 0 < p <= 1:
        raise ValueError("p must be in (0, 1]")
    rows = []
    for row in logits.reshape(-1, logits.shape[-1]):
        chances = row.double().softmax(0).tolist()
        kept, mass = torch.full_like(row, -math.inf), 0.0
        for token in sorted(range(len(chances)), key=lambda i: (-row[i].item(), i)):
            if mass >= p and p < 1:
                break
            kept[token] = row[token]
            mass += chances[token]
        rows.append(kept)
    return torch.stack(rows).reshape(logits.shape)


def top_p_by_shift(logits, p):
    if p <= 0 or p > 1:
        raise ValueError("p must be in (0, 1]")
    values, order = logits.sort(dim=-1, descending=True, stable=True)
    remove = values.softmax(-1).cumsum(-1) >= p
    remove[..., 1:] = remove[..., :-1].clone()
    remove[..., 0] = False
    if p == 1:
        remove[:] = False
    values = values.masked_fill(remove, -math.inf)
    return torch.empty_like(logits).scatter_(-1, order, values)


TOP_P_FILTER = Check(
    reference=sampling.top_p_filter,
    points=4,
    cases=top_p_cases,
    misconceptions=[
        Misconception(
            "the token that crosses p is dropped",
            top_p_not_crossing,
            "Add up what you keep. Is it at least p?",
        ),
        Misconception(
            "with p = 1 tokens are dropped",
            top_p_drops_at_one,
            "A float32 sum of thousands of numbers: does it reach 1 only at the last of them?",
        ),
        Misconception(
            "one token too many where the sum is exactly p",
            top_p_past_exactly,
            "Four equal tokens and p = 0.5: how many make up at least p?",
        ),
        Misconception(
            "the token that crosses p is dropped, even if nothing is left then",
            top_p_may_be_empty,
            "Add up what you keep. Is it at least p? And if the first token has more than p?",
        ),
        Misconception(
            "the unlikely tokens come first",
            top_p_from_below,
            "The smallest set with a given mass: does it hold likely or unlikely tokens?",
        ),
        Misconception(
            "the filtered logits stay in sorted order",
            top_p_not_put_back,
            "After sorting, place 0 holds the likeliest token. Which token's place is it?",
        ),
        Misconception(
            "the tokens are not sorted",
            top_p_unsorted,
            "In which order are the probabilities added up?",
        ),
        Misconception(
            "each token is compared with p by itself",
            top_p_by_threshold,
            "In a flat distribution over 50,000 tokens, which token has a probability of p?",
        ),
        Misconception(
            "two tokens are always kept",
            top_p_one_more,
            "If the first token has more than p, what is the second one needed for?",
        ),
        Misconception(
            "all tokens equal to the last one are kept",
            top_p_keeps_ties,
            "The set shall be the smallest. Does it need both of two equal tokens?",
        ),
        Misconception(
            "p = 0 raises no error",
            top_p_without_error,
            "A set of mass at least 0: how many tokens has the smallest one?",
        ),
        Misconception(
            "what is ruled out gets 0, not −inf",
            top_p_zeros,
            "Which logit has the probability 0?",
        ),
        Misconception(
            "the mask is put back by the wrong order",
            top_p_order_of_places,
            "order[0] is the token at the first place. Do you want token → place or the reverse?",
        ),
    ],
    variants=[top_p_by_inverse, top_p_by_loop, top_p_by_shift],
)


# min_p_filter ------------------------------------------------------------------------------------


def min_p_cases(rng: Generator) -> list[Case]:
    sure, unsure = torch.tensor([0.8, 0.11, 0.05, 0.04]), torch.tensor([0.3, 0.25, 0.24, 0.21])
    mixed = lambda chances: chances[torch.randperm(4, generator=rng)].log()
    return [
        Case(mixed(sure) - 1, 0.1).titled("a sure model"),
        Case(torch.stack([mixed(unsure), mixed(sure)]), 0.3).titled("an unsure row and a sure one"),
        Case(mixed(unsure) + 5, 0.9).titled("a high threshold"),
        Case(spread(rng, 2, 3, 6), 0.25).titled("a batch of sequences"),
        Case(mixed(unsure), 1.0).titled("p = 1: the likeliest alone"),
        Case(mixed(sure), 1.5).titled("p above 1: ValueError"),
    ]


def min_p_checked(p):
    if not 0 < p <= 1:
        raise ValueError("p is out of range")


def min_p_absolute(logits, p):
    min_p_checked(p)
    return torch.where(logits.softmax(-1) >= p, logits, -math.inf)


def min_p_of_logits(logits, p):
    min_p_checked(p)
    return torch.where(logits >= p * logits.amax(-1, keepdim=True), logits, -math.inf)


def min_p_over_the_batch(logits, p):
    min_p_checked(p)
    chances = logits.softmax(-1)
    return torch.where(chances >= p * chances.max(), logits, -math.inf)


def min_p_reversed(logits, p):
    min_p_checked(p)
    chances = logits.softmax(-1)
    return torch.where(chances <= p * chances.amax(-1, keepdim=True), logits, -math.inf)


def min_p_of_the_rest(logits, p):
    min_p_checked(p)
    chances = logits.softmax(-1)
    return torch.where(chances >= (1 - p) * chances.amax(-1, keepdim=True), logits, -math.inf)


def min_p_zeros(logits, p):
    min_p_checked(p)
    chances = logits.softmax(-1)
    return torch.where(chances >= p * chances.amax(-1, keepdim=True), logits, 0.0)


def min_p_without_error(logits, p):
    chances = logits.softmax(-1)
    return torch.where(chances >= p * chances.amax(-1, keepdim=True), logits, -math.inf)


def min_p_of_the_mean(logits, p):
    min_p_checked(p)
    chances = logits.softmax(-1)
    return torch.where(chances >= p * chances.mean(-1, keepdim=True), logits, -math.inf)


def min_p_by_ratio(logits, p):
    if p <= 0 or p > 1:
        raise ValueError("p must be in (0, 1]")
    ratios = (logits - logits.max(-1, keepdim=True).values).exp()
    return logits.masked_fill(ratios < p, -math.inf)


def min_p_by_probabilities(logits, p):
    if p <= 0 or p > 1:
        raise ValueError("p must be in (0, 1]")
    chances = logits.softmax(-1)
    top = chances.max(-1, keepdim=True).values
    return logits.masked_fill(chances < p * top * (1 - 1e-6), float("-inf"))


def min_p_by_loop(logits, p):
    if not 0 < p <= 1:
        raise ValueError("p must be in (0, 1]")
    rows = []
    for row in logits.reshape(-1, logits.shape[-1]).tolist():
        edge = max(row) + math.log(p)
        rows.append([value if value >= edge - 1e-9 else -math.inf for value in row])
    return torch.tensor(rows, dtype=logits.dtype).reshape(logits.shape)


MIN_P_FILTER = Check(
    reference=sampling.min_p_filter,
    points=2,
    cases=min_p_cases,
    misconceptions=[
        Misconception(
            "the probability itself is compared with p",
            min_p_absolute,
            "An unsure model gives no token more than 0.01. What does your filter leave of it?",
        ),
        Misconception(
            "logits are compared, not probabilities",
            min_p_of_logits,
            "Add 5 to all logits: the probabilities stay. Does your filter keep the same tokens?",
        ),
        Misconception(
            "one threshold for all rows",
            min_p_over_the_batch,
            "How likely is the likeliest token of each row?",
        ),
        Misconception(
            "the likely tokens are ruled out",
            min_p_reversed,
            "Should the tokens above the threshold stay or go?",
        ),
        Misconception(
            "the threshold is 1 − p",
            min_p_of_the_rest,
            "With p = 0.1, is a token that is half as likely as the best kept?",
        ),
        Misconception(
            "what is ruled out gets 0, not −inf",
            min_p_zeros,
            "Which logit has the probability 0?",
        ),
        Misconception(
            "p above 1 raises no error",
            min_p_without_error,
            "Which token is 1.5 times as likely as the likeliest?",
        ),
        Misconception(
            "the threshold is a share of the mean, not of the largest",
            min_p_of_the_mean,
            "What is the mean of V probabilities? Does it tell how sure the model is?",
        ),
    ],
    variants=[min_p_by_ratio, min_p_by_probabilities, min_p_by_loop],
)


# sample ------------------------------------------------------------------------------------------

DRAWS = 40_000


def sample_probe(draw, logits, seed, rows):
    """How often each token is drawn; any order of the random numbers gives the same."""
    torch.default_generator.manual_seed(seed)
    few, many = logits.expand(64, -1), logits if rows == 0 else logits.expand(rows, -1)
    tokens = draw(many, torch.Generator().manual_seed(seed))
    same = draw(few, torch.Generator().manual_seed(seed))
    if rows == 0:
        counted = torch.tensor([], dtype=torch.float32)
    else:
        counted = torch.bincount(tokens.flatten(), minlength=logits.shape[-1]) / rows
    torch.default_generator.manual_seed(seed + 1)
    again = draw(few, torch.Generator().manual_seed(seed))
    other = draw(few, torch.Generator().manual_seed(seed + 1))
    return {
        "shape": tuple(tokens.shape),
        "dtype": str(tokens.dtype),
        "shares": counted,
        "the same generator, the same tokens": torch.equal(same, again),
        "another generator, other tokens": not torch.equal(other, same),
    }


def sample_cases(rng: Generator) -> list[Case]:
    ruled_out = 1.5 * spread(rng, 6)
    ruled_out[[1, 4]] = -math.inf
    return [
        Case(torch.tensor([0.4, 0.3, 0.2, 0.1]).log(), whole(rng, 0, 9999), DRAWS).titled(
            "40,000 draws from cat, dog, bird, elephant"
        ),
        Case(spread(rng, 5) + 4, whole(rng, 0, 9999), DRAWS).titled("40,000 draws of five tokens"),
        Case(ruled_out, whole(rng, 0, 9999), DRAWS).titled("two tokens are ruled out"),
        Case(spread(rng, 7), whole(rng, 0, 9999), 0).titled("one row: a single token"),
    ]


def sample_greedy(logits, generator=None):
    return logits.argmax(-1)


def sample_uniform(logits, generator=None):
    possible = logits.isfinite().float()
    return torch.multinomial(possible, 1, generator=generator).squeeze(-1)


def sample_logits_as_weights(logits, generator=None):
    weights = logits.clamp(min=0) + 1e-9
    return torch.multinomial(weights, 1, generator=generator).squeeze(-1)


def sample_without_generator(logits, generator=None):
    return torch.multinomial(logits.softmax(-1), 1).squeeze(-1)


def sample_always_the_same(logits, generator=None):
    fixed = torch.Generator().manual_seed(0)
    return torch.multinomial(logits.softmax(-1), 1, generator=fixed).squeeze(-1)


def sample_one_for_all_rows(logits, generator=None):
    flat = logits.reshape(-1, logits.shape[-1])
    token = torch.multinomial(flat[0].softmax(-1), 1, generator=generator)
    return token.expand(len(flat)).reshape(logits.shape[:-1])


def sample_kept_axis(logits, generator=None):
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)


def sample_softmax_twice(logits, generator=None):
    chances = logits.softmax(-1)
    kept = torch.where(chances > 0, chances.exp(), 0.0)
    return torch.multinomial(kept, 1, generator=generator).squeeze(-1)


def sample_base_two(logits, generator=None):
    return torch.multinomial(2**logits, 1, generator=generator).squeeze(-1)


def sample_by_inverse(logits, generator=None):
    total = logits.softmax(-1).cumsum(-1)
    draws = torch.rand(logits.shape[:-1], generator=generator)[..., None] * total[..., -1:]
    return (total <= draws).sum(-1)


def sample_by_gumbel(logits, generator=None):
    noise = torch.rand(logits.shape, generator=generator).clamp(min=1e-20)
    return (logits - torch.log(-torch.log(noise))).argmax(-1)


def sample_by_race(logits, generator=None):
    waits = torch.empty(logits.shape).exponential_(generator=generator)
    return (logits.softmax(-1) / waits).argmax(-1)


SAMPLE = Check(
    reference=sampling.sample,
    points=3,
    cases=sample_cases,
    probe=sample_probe,
    tolerance=(0.0, 0.02),  # eight standard deviations of a share of 40,000 draws
    misconceptions=[
        Misconception(
            "the likeliest token is always taken",
            sample_greedy,
            "Draw 1,000 times from 0.4, 0.3, 0.2, 0.1. How often should the second come?",
        ),
        Misconception(
            "all tokens are drawn equally often",
            sample_uniform,
            "What did the model say about each token? Where does your draw use it?",
        ),
        Misconception(
            "the logits themselves are taken for weights",
            sample_logits_as_weights,
            "Can a weight be negative? What makes probabilities of logits?",
        ),
        Misconception(
            "the generator is not used",
            sample_without_generator,
            "Somebody passes a seeded generator to repeat a draw. What do they get from yours?",
        ),
        Misconception(
            "every call draws the same",
            sample_always_the_same,
            "Who sets the seed, and how often? What comes from two different generators?",
        ),
        Misconception(
            "one draw serves all rows",
            sample_one_for_all_rows,
            "A batch of rows: how many draws are needed?",
        ),
        Misconception(
            "the axis of the draw is still there",
            sample_kept_axis,
            "multinomial draws one token a row, as (N, 1). Which shape is asked for?",
        ),
        Misconception(
            "softmax is applied twice",
            sample_softmax_twice,
            "What is exp(0.9) / exp(0.1)? Is that how much likelier the first token is?",
        ),
        Misconception(
            "powers of 2 take the place of powers of e",
            sample_base_two,
            "Logits are natural logarithms. Which base undoes them?",
        ),
    ],
    variants=[sample_by_inverse, sample_by_gumbel, sample_by_race],
)


# generate ----------------------------------------------------------------------------------------


def small_llama(seed: int) -> Llama:
    """A Llama of random weights whose greedy text is not one token again and again."""
    sizes = {
        "vocab_size": 23,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = Llama(LlamaConfig(**sizes, max_position_embeddings=64)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.copy_(torch.randn(parameter.shape) * 1.2 / parameter.shape[-1] ** 0.5)
            model.model.embed_tokens.weight.mul_(4)
    return model


def generate_probe(write, seed, input_ids, max_tokens, stop_ids):
    """The tokens, what the model is fed, and how often it ran before each token came."""
    model, fed, caches, runs = small_llama(seed), [], [], []

    def watch(_, arguments, named):
        fed.append(arguments[0].shape[-1])
        caches.append(named["cache"] if "cache" in named else arguments[1:2] or None)

    model.register_forward_pre_hook(watch, with_kwargs=True)
    with torch.inference_mode():
        stream = write(model, torch.tensor(input_ids), max_tokens, stop_ids=frozenset(stop_ids))
        tokens, whole_numbers = [], True
        for token in stream:
            whole_numbers &= isinstance(token, int)
            tokens.append(int(token))
            runs.append(len(fed))
            if len(tokens) > max_tokens:
                break
    return {
        "tokens": tokens,
        "each token is an int": whole_numbers,
        "runs of the model before each token": runs,
        "tokens fed in the first run": fed[0] if fed else 0,
        "tokens fed in each later run": sorted(set(fed[1:])),
        "with a cache": bool(caches) and all(cache is not None for cache in caches),
    }


def greedy_text(seed: int, input_ids: list[int], number: int) -> list[int]:
    model, ids = small_llama(seed), list(input_ids)
    with torch.no_grad():
        for _ in range(number):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(input_ids) :]


def generate_cases(rng: Generator) -> list[Case]:
    prompts = [torch.randint(0, 23, (n,), generator=rng).tolist() for n in (5, 1, 7)]
    seeds = [whole(rng, 0, 10_000) for _ in prompts]
    while greedy_text(seeds[0], prompts[0], 1) == greedy_text(seeds[0], prompts[0][:1], 1):
        seeds[0] += 1  # so that the first position predicts something else than the last
    text = greedy_text(seeds[2], prompts[2], 12)
    last = next((i for i in range(3, 12) if text[i] not in text[:i]), 11)
    return [
        Case(seeds[0], prompts[0], 8, []).titled("eight tokens"),
        Case(seeds[1], prompts[1], 3, []).titled("a prompt of one token"),
        Case(seeds[2], prompts[2], 12, [text[last]]).titled("a token that stops"),
        Case(seeds[2], prompts[2], 12, [text[0]]).titled("the first token stops"),
    ]


def room_for(model, input_ids, max_tokens):
    return model.new_cache(len(input_ids) + max_tokens)


def generate_without_cache(model, input_ids, max_tokens=256, stop_ids=()):
    ids = input_ids
    for _ in range(max_tokens):
        token = model(ids[None])[0, -1].argmax()
        if int(token) in stop_ids:
            return
        yield int(token)
        ids = torch.cat([ids, token[None]])


def generate_feeds_all_again(model, input_ids, max_tokens=256, stop_ids=()):
    cache, ids = model.new_cache((len(input_ids) + max_tokens) * (max_tokens + 1)), input_ids
    for _ in range(max_tokens):
        token = model(ids[None], cache)[0, -1].argmax()
        if int(token) in stop_ids:
            return
        yield int(token)
        ids = torch.cat([ids, token[None]])


def generate_forgets_the_past(model, input_ids, max_tokens=256, stop_ids=()):
    ids = input_ids
    for _ in range(max_tokens):
        token = model(ids[None])[0, -1].argmax()
        if int(token) in stop_ids:
            return
        yield int(token)
        ids = token[None]


def generate_yields_the_stop(model, input_ids, max_tokens=256, stop_ids=()):
    cache, ids = room_for(model, input_ids, max_tokens), input_ids
    for _ in range(max_tokens):
        token = model(ids[None], cache)[0, -1].argmax()
        yield int(token)
        if int(token) in stop_ids:
            return
        ids = token[None]


def generate_skips_the_stop(model, input_ids, max_tokens=256, stop_ids=()):
    cache, ids = room_for(model, input_ids, max_tokens), input_ids
    for _ in range(max_tokens):
        token = model(ids[None], cache)[0, -1].argmax()
        if int(token) not in stop_ids:
            yield int(token)
        ids = token[None]


def generate_never_stops(model, input_ids, max_tokens=256, stop_ids=()):
    cache, ids = room_for(model, input_ids, max_tokens), input_ids
    for _ in range(max_tokens):
        token = model(ids[None], cache)[0, -1].argmax()
        yield int(token)
        ids = token[None]


def generate_one_short(model, input_ids, max_tokens=256, stop_ids=()):
    cache, ids = room_for(model, input_ids, max_tokens), input_ids
    for _ in range(max_tokens - 1):
        token = model(ids[None], cache)[0, -1].argmax()
        if int(token) in stop_ids:
            return
        yield int(token)
        ids = token[None]


def generate_all_at_once(model, input_ids, max_tokens=256, stop_ids=()):
    cache, ids, written = room_for(model, input_ids, max_tokens), input_ids, []
    for _ in range(max_tokens):
        token = model(ids[None], cache)[0, -1].argmax()
        if int(token) in stop_ids:
            break
        written.append(int(token))
        ids = token[None]
    return written


def generate_with_the_prompt(model, input_ids, max_tokens=256, stop_ids=()):
    yield from input_ids.tolist()
    cache, ids = room_for(model, input_ids, max_tokens), input_ids
    for _ in range(max_tokens - len(input_ids)):
        token = model(ids[None], cache)[0, -1].argmax()
        if int(token) in stop_ids:
            return
        yield int(token)
        ids = token[None]


def generate_tensors(model, input_ids, max_tokens=256, stop_ids=()):
    cache, ids = room_for(model, input_ids, max_tokens), input_ids
    for _ in range(max_tokens):
        token = model(ids[None], cache)[0, -1].argmax()
        if token in stop_ids:
            return
        yield token
        ids = token[None]


def generate_first_position(model, input_ids, max_tokens=256, stop_ids=()):
    cache, ids = room_for(model, input_ids, max_tokens), input_ids
    for _ in range(max_tokens):
        token = model(ids[None], cache)[0, 0].argmax()
        if int(token) in stop_ids:
            return
        yield int(token)
        ids = token[None]


def generate_by_while(model, input_ids, max_tokens=256, stop_ids=()):
    cache = model.new_cache(capacity=len(input_ids) + max_tokens)
    logits, count = model(input_ids.unsqueeze(0), cache=cache, logits_to_keep=1), 0
    while count < max_tokens:
        token = logits[0, -1].argmax().item()
        if token in set(stop_ids):
            break
        count += 1
        yield token
        if count < max_tokens:
            logits = model(torch.tensor([[token]]), cache=cache)


def generate_by_parts(model, input_ids, max_tokens=256, stop_ids=()):
    def steps():
        cache, new = model.new_cache(len(input_ids) + max_tokens), input_ids
        while True:
            best = model(new.view(1, -1), cache, logits_to_keep=1).argmax(-1).view(-1)
            yield best.item()
            new = best

    for _, token in zip(range(max_tokens), steps(), strict=False):
        if token in stop_ids:
            return
        yield token


def generate_by_list(model, input_ids, max_tokens=256, stop_ids=()):
    cache, new = model.new_cache(len(input_ids) + max_tokens), input_ids.tolist()
    for _ in range(max_tokens):
        values = model(torch.tensor([new]), cache)[0, -1].tolist()
        new = [values.index(max(values))]
        if new[0] in stop_ids:
            break
        yield new[0]


GENERATE = Check(
    reference=decoding.generate,
    points=4,
    cases=generate_cases,
    probe=generate_probe,
    misconceptions=[
        Misconception(
            "there is no cache: the whole text is read again for each token",
            generate_without_cache,
            "How many tokens does the model read for the hundredth new one?",
        ),
        Misconception(
            "with a cache, the whole text is fed again",
            generate_feeds_all_again,
            "The cache holds the keys of the prompt already. Which tokens are new to it?",
        ),
        Misconception(
            "only the last token is fed, without a cache",
            generate_forgets_the_past,
            "Where does the model find the tokens before the last one?",
        ),
        Misconception(
            "the token that stops is given, too",
            generate_yields_the_stop,
            "Which comes first: the look at the token, or the yield?",
        ),
        Misconception(
            "the token that stops is left out, and the text goes on",
            generate_skips_the_stop,
            "After the end, what is left to say?",
        ),
        Misconception(
            "nothing stops it",
            generate_never_stops,
            "What does your function do with `stop_ids`?",
        ),
        Misconception(
            "one token too few",
            generate_one_short,
            "The prompt's run gives the first token. How many runs do max_tokens tokens take?",
        ),
        Misconception(
            "the tokens are tensors, not ints",
            generate_tensors,
            "Is torch.tensor(2) in {2}? Try it. And what does a tokenizer want?",
        ),
        Misconception(
            "all tokens come at the end",
            generate_all_at_once,
            "Somebody is waiting for the first word. Which statement hands out one at a time?",
        ),
        Misconception(
            "the prompt is given as well",
            generate_with_the_prompt,
            "Which tokens are new?",
        ),
        Misconception(
            "the logits of the first position are used",
            generate_first_position,
            "Which position knows all of the text, and predicts what follows it?",
        ),
    ],
    variants=[generate_by_while, generate_by_parts, generate_by_list],
)


# beam_search -------------------------------------------------------------------------------------


def beam_probe(find, first, table, num_beams, max_tokens, stop_ids, length_penalty):
    """What a search finds where the next logits depend on the last two tokens of each beam.

    And a little on the length, for otherwise two texts of the same pairs in another order tie, and
    which of them is found would depend on how an implementation sorts.
    """
    texts = [[0]]

    def step(parents, tokens):
        nonlocal texts
        parents, tokens = [torch.as_tensor(x).tolist() for x in (parents, tokens)]
        texts = [[*texts[i], token] for i, token in zip(parents, tokens, strict=True)]
        sharper = 1 + len(texts[0]) / 50
        return sharper * torch.stack([table[text[-2], text[-1]] for text in texts])

    found = find(first, step, num_beams, max_tokens, stop_ids, length_penalty)
    return [([int(token) for token in tokens], float(score)) for tokens, score in found]


def beam_cases(rng: Generator) -> list[Case]:
    def model(vocabulary: int) -> tuple[Tensor, Tensor]:
        return 1.5 * normal(rng, vocabulary), 1.5 * normal(rng, vocabulary, vocabulary, vocabulary)

    def trap() -> tuple[Tensor, Tensor]:
        """The likeliest first token leads to unlikely ones."""
        first, table = torch.tensor([0.6, 0.4, 1e-4]).log(), torch.zeros(3, 3, 3)
        table[:, 0] = 0.05 * torch.rand((3, 3), generator=rng)
        table[:, 1] = torch.tensor([0.02, 0.05, 0.93]).log()
        return first, table

    first, table = model(4)
    with_stop, stopping = model(5)
    with_stop[2] += 1
    two, twos = model(6)
    two[[1, 4]] += 1
    twos[..., [1, 4]] += 0.5
    return [
        Case(*trap(), 2, 2, [], 1.0).titled("the likeliest first token is a trap"),
        Case(first, table, 3, 6, [], 1.0).titled("three beams, six tokens"),
        Case(first, table, 16, 2, [], 0.0).titled("beams enough for all sequences"),
        Case(with_stop, stopping, 3, 5, [2], 0.0).titled("a token that stops, no length penalty"),
        Case(two, twos, 2, 6, [1, 4], 1.0).titled("two tokens that stop, mean log-probabilities"),
        Case(two, twos, 3, 6, [1], 2.0).titled("long texts are preferred"),
    ]


def searching(
    logits,
    step,
    num_beams,
    max_tokens,
    stop_ids,
    length_penalty,
    score=None,
    stops_early=True,
    parents_of=None,
    total_of=None,
    ended_wait=False,
):
    """Every search below is this one with one step changed."""
    score = score or (lambda total, length: total / length**length_penalty)
    total_of = total_of or (lambda totals, log_probs: totals[:, None] + log_probs)
    beams, totals, logits, ended = [[]], torch.zeros(1), logits[None], []
    size = logits.shape[-1]
    for length in range(1, max_tokens + 1):
        all_totals = total_of(totals, logits.log_softmax(-1)).flatten()
        most = num_beams * (1 + len(stop_ids))
        best = all_totals.topk(min(most, len(all_totals)))
        rows, tokens = (best.indices // size).tolist(), (best.indices % size).tolist()
        open_ones = []
        for rank, (total, row, token) in enumerate(
            zip(best.values.tolist(), rows, tokens, strict=True)
        ):
            beam = [*beams[row], token]
            if length == max_tokens or (token in stop_ids and not ended_wait):
                if rank < num_beams:
                    ended.append((beam, score(total, length)))
            elif len(open_ones) < num_beams:
                open_ones.append((total, row, beam))
        ended = sorted(ended, key=lambda one: -one[1])[:num_beams]
        if not open_ones:
            break
        hopeless = len(ended) == num_beams and score(open_ones[0][0], length) <= ended[-1][1]
        if stops_early and hopeless:
            break
        totals = torch.tensor([total for total, _, _ in open_ones])
        beams = [beam for _, _, beam in open_ones]
        rows = [row for _, row, _ in open_ones]
        if parents_of:
            rows = parents_of(rows)
        logits = step(torch.tensor(rows), torch.tensor([beam[-1] for beam in beams]))
    return ended


def beam_of_one(logits, step, num_beams, max_tokens, stop_ids=(), length_penalty=1.0):
    return searching(logits, step, 1, max_tokens, stop_ids, length_penalty)


def beam_raw_logits(logits, step, num_beams, max_tokens, stop_ids=(), length_penalty=1.0):
    beams, totals, logits, ended = [[]], torch.zeros(1), logits[None], []
    size = logits.shape[-1]
    for length in range(1, max_tokens + 1):
        all_totals = (totals[:, None] + logits).flatten()
        best = all_totals.topk(min(num_beams * (1 + len(stop_ids)), len(all_totals)))
        open_ones = []
        for rank, (total, place) in enumerate(
            zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ):
            beam = [*beams[place // size], place % size]
            if length == max_tokens or place % size in stop_ids:
                if rank < num_beams:
                    ended.append((beam, total / length**length_penalty))
            elif len(open_ones) < num_beams:
                open_ones.append((total, place // size, beam))
        ended = sorted(ended, key=lambda one: -one[1])[:num_beams]
        if not open_ones:
            break
        totals = torch.tensor([total for total, _, _ in open_ones])
        beams = [beam for _, _, beam in open_ones]
        rows = torch.tensor([row for _, row, _ in open_ones])
        logits = step(rows, torch.tensor([beam[-1] for beam in beams]))
    return ended


def beam_best_of_each(logits, step, num_beams, max_tokens, stop_ids=(), length_penalty=1.0):
    alone = lambda totals, log_probs: torch.where(
        log_probs == log_probs.amax(-1, keepdim=True) if len(totals) > 1 else log_probs > -math.inf,
        totals[:, None] + log_probs,
        -1e4,
    )
    return searching(logits, step, num_beams, max_tokens, stop_ids, length_penalty, total_of=alone)


def beam_forgets_totals(logits, step, num_beams, max_tokens, stop_ids=(), length_penalty=1.0):
    latest = lambda totals, log_probs: 0 * totals[:, None] + log_probs
    return searching(logits, step, num_beams, max_tokens, stop_ids, length_penalty, total_of=latest)


def beam_wrong_parents(logits, step, num_beams, max_tokens, stop_ids=(), length_penalty=1.0):
    in_order = lambda rows: [min(i, max(rows)) for i in range(len(rows))]
    return searching(
        logits, step, num_beams, max_tokens, stop_ids, length_penalty, parents_of=in_order
    )


def beam_no_length_penalty(logits, step, num_beams, max_tokens, stop_ids=(), length_penalty=1.0):
    return searching(logits, step, num_beams, max_tokens, stop_ids, 0.0)


def beam_times_length(logits, step, num_beams, max_tokens, stop_ids=(), length_penalty=1.0):
    score = lambda total, length: total * length**length_penalty
    return searching(
        logits, step, num_beams, max_tokens, stop_ids, length_penalty, score, stops_early=False
    )


def beam_counts_the_prompt(logits, step, num_beams, max_tokens, stop_ids=(), length_penalty=1.0):
    score = lambda total, length: total / (length + 1) ** length_penalty
    return searching(logits, step, num_beams, max_tokens, stop_ids, length_penalty, score)


def beam_never_ends(logits, step, num_beams, max_tokens, stop_ids=(), length_penalty=1.0):
    return searching(logits, step, num_beams, max_tokens, stop_ids, length_penalty, ended_wait=True)


def beam_first_only(logits, step, num_beams, max_tokens, stop_ids=(), length_penalty=1.0):
    return searching(logits, step, num_beams, max_tokens, stop_ids, length_penalty)[:1]


def beam_worst_first(logits, step, num_beams, max_tokens, stop_ids=(), length_penalty=1.0):
    return searching(logits, step, num_beams, max_tokens, stop_ids, length_penalty)[::-1]


def beam_of_probabilities(logits, step, num_beams, max_tokens, stop_ids=(), length_penalty=1.0):
    found = searching(logits, step, num_beams, max_tokens, stop_ids, length_penalty)
    return [(beam, math.exp(score)) for beam, score in found]


def beam_by_lists(logits, step, num_beams, max_tokens, stop_ids=(), length_penalty=1.0):
    going, ended = [(0.0, [])], []
    rows = [logits.log_softmax(-1).tolist()]
    for length in range(1, max_tokens + 1):
        candidates = []
        for parent, ((total, beam), row) in enumerate(zip(going, rows, strict=True)):
            for token, value in enumerate(row):
                candidates.append((total + value, parent, [*beam, token]))
        candidates.sort(key=lambda one: -one[0])
        last = length == max_tokens
        for total, _, beam in candidates[:num_beams]:
            if last or beam[-1] in stop_ids:
                ended.append((beam, total / length**length_penalty))
        ended = sorted(ended, key=lambda one: one[1], reverse=True)[:num_beams]
        chosen = [one for one in candidates if one[2][-1] not in stop_ids][:num_beams]
        if last or not chosen:
            return ended
        if len(ended) == num_beams and chosen[0][0] / length**length_penalty <= ended[-1][1]:
            return ended
        going = [(total, beam) for total, _, beam in chosen]
        parents = torch.tensor([parent for _, parent, _ in chosen])
        latest = torch.tensor([beam[-1] for _, _, beam in chosen])
        rows = step(parents, latest).log_softmax(-1).tolist()
    return ended


def beam_by_masking(logits, step, num_beams, max_tokens, stop_ids=(), length_penalty=1.0):
    totals, texts, ended = torch.zeros(1), [()], []
    current = logits.unsqueeze(0)
    stops = torch.tensor(sorted(stop_ids), dtype=torch.long)
    for length in range(1, max_tokens + 1):
        scores = totals.unsqueeze(1) + torch.log_softmax(current, -1)
        size = scores.shape[1]
        flat = scores.flatten()
        order = flat.argsort(descending=True, stable=True)
        for place in order[:num_beams].tolist():
            if length == max_tokens or place % size in stop_ids:
                text = [*texts[place // size], place % size]
                ended.append((text, flat[place].item() / length**length_penalty))
        ended.sort(key=lambda pair: -pair[1])
        del ended[num_beams:]
        if length == max_tokens:
            break
        scores[:, stops] = -math.inf
        top = scores.flatten().topk(min(num_beams, int(scores.isfinite().sum())))
        hope = top.values[0].item() / length**length_penalty
        if len(ended) == num_beams and hope <= ended[-1][1]:
            break
        parents, tokens = top.indices // size, top.indices % size
        texts = [(*texts[p], t) for p, t in zip(parents.tolist(), tokens.tolist(), strict=True)]
        totals, current = top.values, step(parents, tokens)
    return ended


def beam_by_heap(logits, step, num_beams, max_tokens, stop_ids=(), length_penalty=1.0):
    import heapq

    beams, ended, rows = [(0.0, ())], [], logits[None]
    for length in range(1, max_tokens + 1):
        values = rows.log_softmax(-1).tolist()
        grown = [
            (beams[i][0] + value, i, token)
            for i, row in enumerate(values)
            for token, value in enumerate(row)
        ]
        best = heapq.nlargest(num_beams * (1 + len(stop_ids)), grown)
        finished = [one for one in best[:num_beams] if length == max_tokens or one[2] in stop_ids]
        for total, i, token in finished:
            ended.append(([*beams[i][1], token], total / length**length_penalty))
        ended = heapq.nlargest(num_beams, ended, key=lambda pair: pair[1])
        best = [one for one in best if one[2] not in stop_ids][:num_beams]
        if length == max_tokens or not best:
            break
        if len(ended) == num_beams and best[0][0] / length**length_penalty <= ended[-1][1]:
            break
        rows = step(torch.tensor([i for _, i, _ in best]), torch.tensor([t for *_, t in best]))
        beams = [(total, (*beams[i][1], token)) for total, i, token in best]
    return ended


BEAM_SEARCH = Check(
    reference=search.beam_search,
    points=6,
    cases=beam_cases,
    probe=beam_probe,
    tolerance=(1e-3, 1e-4),
    misconceptions=[
        Misconception(
            "one beam: this is greedy",
            beam_of_one,
            "How many sequences do you follow at a time?",
        ),
        Misconception(
            "logits are added up, not log-probabilities",
            beam_raw_logits,
            "Two beams come from different rows. Are their logits on one scale?",
        ),
        Misconception(
            "each beam is continued by its best token only",
            beam_best_of_each,
            "May two of the best new beams come from the same old one?",
        ),
        Misconception(
            "only the latest token's log-probability counts",
            beam_forgets_totals,
            "What is the log-probability of a whole sequence?",
        ),
        Misconception(
            "step is not told which beams go on",
            beam_wrong_parents,
            "The second of your new beams may go on from the first old one. Who must know that?",
        ),
        Misconception(
            "the length penalty is not used",
            beam_no_length_penalty,
            "What does your function do with `length_penalty`?",
        ),
        Misconception(
            "the sum is multiplied by the length",
            beam_times_length,
            "A sum of 10 log-probabilities is lower than one of 2. What makes a mean of it?",
        ),
        Misconception(
            "the length counts one token too many",
            beam_counts_the_prompt,
            "Which tokens count: all that are there, or those that were generated?",
        ),
        Misconception(
            "no beam ends before the last token",
            beam_never_ends,
            "What does your function do with `stop_ids`?",
        ),
        Misconception(
            "only the best sequence is given",
            beam_first_only,
            "Shapes and docstring: one sequence, or a list of them?",
        ),
        Misconception(
            "the worst comes first",
            beam_worst_first,
            "Scores are negative. Is −1 or −3 the better one?",
        ),
        Misconception(
            "the scores are probabilities, not logarithms",
            beam_of_probabilities,
            "What is the docstring's score? Did you take an exponential?",
        ),
    ],
    variants=[beam_by_lists, beam_by_masking, beam_by_heap],
)


# contrastive_step --------------------------------------------------------------------------------


def contrastive_cases(rng: Generator) -> list[Case]:
    def case(k: int, length: int, width: int, alpha: float) -> Case:
        chances = torch.rand(k, generator=rng).sort(descending=True).values
        context = normal(rng, length, width) * (0.2 + 3 * torch.rand((length, 1), generator=rng))
        return Case(chances / chances.sum(), normal(rng, k, width), context, alpha)

    def repeats() -> Case:
        """The likeliest says what was said first; two others turn away from it, one by half."""
        context = 3 * normal(rng, 5, 8)
        candidates = torch.stack([context[0] * 2, -context.mean(0), context[4] + context[1]])
        return Case(torch.tensor([0.6, 0.3, 0.1]), candidates, context, 0.6)

    many = [case(6, 7, 5, alpha) for alpha in (0.4, 0.6, 0.8) for _ in range(10)]
    for one in many:
        one.titled("six candidates, seven positions")
    return [
        repeats().titled("the likeliest repeats what was said"),
        case(5, 4, 6, 0.0).titled("α = 0: greedy"),
        case(5, 6, 4, 1.0).titled("α = 1: the least similar"),
        *many,
    ]


def cosines_of(candidates, context):
    return F.normalize(candidates, dim=-1) @ F.normalize(context, dim=-1).T


def contrastive_dot(probabilities, candidates, context, alpha):
    similar = (candidates @ context.T).amax(-1)
    return ((1 - alpha) * probabilities - alpha * similar).argmax()


def contrastive_mean(probabilities, candidates, context, alpha):
    similar = cosines_of(candidates, context).mean(-1)
    return ((1 - alpha) * probabilities - alpha * similar).argmax()


def contrastive_last(probabilities, candidates, context, alpha):
    similar = cosines_of(candidates, context)[:, -1]
    return ((1 - alpha) * probabilities - alpha * similar).argmax()


def contrastive_plus(probabilities, candidates, context, alpha):
    similar = cosines_of(candidates, context).amax(-1)
    return ((1 - alpha) * probabilities + alpha * similar).argmax()


def contrastive_swapped(probabilities, candidates, context, alpha):
    similar = cosines_of(candidates, context).amax(-1)
    return (alpha * probabilities - (1 - alpha) * similar).argmax()


def contrastive_logs(probabilities, candidates, context, alpha):
    similar = cosines_of(candidates, context).amax(-1)
    return ((1 - alpha) * probabilities.log() - alpha * similar).argmax()


def contrastive_least(probabilities, candidates, context, alpha):
    similar = cosines_of(candidates, context).amin(-1)
    return ((1 - alpha) * probabilities - alpha * similar).argmax()


def contrastive_size(probabilities, candidates, context, alpha):
    similar = cosines_of(candidates, context).abs().amax(-1)
    return ((1 - alpha) * probabilities - alpha * similar).argmax()


def contrastive_unweighted(probabilities, candidates, context, alpha):
    similar = cosines_of(candidates, context).amax(-1)
    return (probabilities - alpha * similar).argmax()


def contrastive_score(probabilities, candidates, context, alpha):
    similar = cosines_of(candidates, context).amax(-1)
    return ((1 - alpha) * probabilities - alpha * similar).max()


def contrastive_by_function(probabilities, candidates, context, alpha):
    cosines = F.cosine_similarity(candidates[:, None], context[None], dim=-1)
    scores = (1 - alpha) * probabilities - alpha * cosines.max(dim=1).values
    return torch.argmax(scores)


def contrastive_by_loop(probabilities, candidates, context, alpha):
    scores = []
    for chance, h in zip(probabilities, candidates, strict=True):
        nearest = max(float(h @ past / (h.norm() * past.norm())) for past in context)
        scores.append((1 - alpha) * float(chance) - alpha * nearest)
    return torch.tensor(scores.index(max(scores)))


def contrastive_by_einsum(probabilities, candidates, context, alpha):
    norms = candidates.norm(dim=-1)[:, None] * context.norm(dim=-1)
    cosines = torch.einsum("kd,td->kt", candidates, context) / norms
    return torch.lerp(probabilities, -cosines.amax(1), alpha).argmax()


CONTRASTIVE_STEP = Check(
    reference=search.contrastive_step,
    points=3,
    cases=contrastive_cases,
    misconceptions=[
        Misconception(
            "dot products are taken, not cosines",
            contrastive_dot,
            "A vector twice as long in the same direction: does it say something else?",
        ),
        Misconception(
            "the mean similarity, not the largest",
            contrastive_mean,
            "A repetition is like ONE earlier place. Does the mean over all places show it?",
        ),
        Misconception(
            "only the last position is compared",
            contrastive_last,
            "Text repeats what stood twenty tokens ago. Which positions must be looked at?",
        ),
        Misconception(
            "similarity is rewarded",
            contrastive_plus,
            "Which sign does the penalty have?",
        ),
        Misconception(
            "α and 1 − α are exchanged",
            contrastive_swapped,
            "α = 0 is greedy. Which term is left then?",
        ),
        Misconception(
            "log-probabilities take the place of probabilities",
            contrastive_logs,
            "Cosines lie between −1 and 1. On which scale are logarithms of probabilities?",
        ),
        Misconception(
            "the smallest similarity, not the largest",
            contrastive_least,
            "A candidate is like one earlier place and unlike the others. Is it a repetition?",
        ),
        Misconception(
            "the size of the cosine is taken",
            contrastive_size,
            "A state that points the opposite way: is that the same thing said again?",
        ),
        Misconception(
            "the probability has no factor 1 − α",
            contrastive_unweighted,
            "With α = 1, which of the two terms should be left?",
        ),
        Misconception(
            "the best score is given, not its place",
            contrastive_score,
            "What is to be chosen among the candidates: a number or a place?",
        ),
    ],
    variants=[contrastive_by_function, contrastive_by_loop, contrastive_by_einsum],
)


# speculative_accept ------------------------------------------------------------------------------

ROUNDS = 100  # for each dimension in which the uniforms vary, up to two


def accept_probe(accept, target, draft, tokens):
    """How often so many tokens stand, and which token follows them, over evenly spread uniforms.

    Any use of the uniforms that gives the right distribution passes.
    """
    count, size = len(tokens), target.shape[-1]
    rounds = ROUNDS * min(count, 2)
    root = 1.5
    for _ in range(40):  # the root of x^(d+1) = x + 1 spreads points evenly in d dimensions
        root = (1 + root) ** (1 / (count + 2))
    steps = torch.tensor([root ** -(i + 1) for i in range(count + 1)], dtype=torch.float64)
    points = ((torch.arange(rounds, dtype=torch.float64)[:, None] + 0.5) * steps).remainder(1)
    shares, drafted = torch.zeros(count + 1, size), tokens.tolist()
    for uniforms in points.float():
        given = accept(target, draft, tokens, uniforms)
        if given.ndim != 1 or not 1 <= len(given) <= count + 1:
            raise ValueError(f"the result should hold 1 to {count + 1} tokens, not {given.shape}")
        *stood, last = given.tolist()
        if stood != drafted[: len(stood)]:
            raise ValueError("all tokens but the last should be the drafted ones, in their order")
        shares[len(stood), last] += 1 / rounds
    return shares


def accept_cases(rng: Generator) -> list[Case]:
    p, q = torch.tensor([0.5, 0.3, 0.15, 0.05]), torch.tensor([0.2, 0.2, 0.5, 0.1])
    last = torch.tensor([0.55, 0.25, 0.15, 0.05]) + 0.05 * torch.rand(4, generator=rng)
    last = (last / last.sum()).roll(whole(rng, 1, 4))  # never like p
    near = torch.tensor([0.45, 0.25, 0.2, 0.1])
    sure = F.one_hot(torch.tensor([2, 0, 1, 3]), 4).float()

    def case(target: Tensor, draft: Tensor, tokens: list[int]) -> Case:
        """With the tokens in another order, so that the shares cannot be learned by heart."""
        order = torch.randperm(4, generator=rng)
        places = order.argsort()[torch.tensor(tokens)]
        return Case(target[:, order], draft[:, order], places)

    return [
        case(torch.stack([p, last]), q[None], [2]).titled("a token that often falls"),
        case(torch.stack([p, last]), q[None], [0]).titled("a token that must stand"),
        case(torch.stack([p, near, last]), torch.stack([near, q]), [1, 2]).titled(
            "two drafted tokens"
        ),
        case(sure, sure[[0, 3, 2]], [2, 3, 1]).titled(
            "greedy: the first agrees, the second does not"
        ),
        case(torch.stack([last, p]), last[None], [1]).titled("a draft that is the target"),
    ]


def accepting(
    target, draft, tokens, uniforms, ratio=None, residual=None, bonus=True, stop=True, last=None
):
    """Every rule below is this one with one step changed."""
    ratio = ratio or (lambda p, q: p / q)
    residual = residual or (lambda p, q: (p - q).clamp(min=0))
    kept = []
    draw = lambda weights: torch.searchsorted(
        weights.cumsum(0) / weights.sum(), uniforms[-1:], right=True
    ).clamp(max=len(weights) - 1)
    for i, token in enumerate(tokens.tolist()):
        if uniforms[i] < ratio(target[i, token], draft[i, token]):
            kept.append(token)
            continue
        weights = residual(target[i], draft[i])
        weights = weights if weights.sum() > 0 else target[i]
        if stop:
            return torch.cat([tokens[: len(kept)], draw(weights)])
    if len(kept) < len(tokens):
        weights = residual(target[len(kept)], draft[len(kept)])
        return torch.cat([tokens[: len(kept)], draw(weights if weights.sum() > 0 else target[0])])
    after = target[-1] if bonus else target[len(tokens) - 1]
    return torch.cat([tokens, draw(after)])


def accept_all(target, draft, tokens, uniforms):
    return accepting(target, draft, tokens, uniforms, ratio=lambda p, q: 2.0)


def accept_by_target(target, draft, tokens, uniforms):
    return accepting(target, draft, tokens, uniforms, ratio=lambda p, q: p)


def accept_inverted(target, draft, tokens, uniforms):
    return accepting(target, draft, tokens, uniforms, ratio=lambda p, q: q / p.clamp(min=1e-9))


def accept_if_likelier(target, draft, tokens, uniforms):
    return accepting(target, draft, tokens, uniforms, ratio=lambda p, q: 2.0 if p >= q else -1.0)


def accept_draws_from_target(target, draft, tokens, uniforms):
    return accepting(target, draft, tokens, uniforms, residual=lambda p, q: p)


def accept_size_of_difference(target, draft, tokens, uniforms):
    return accepting(target, draft, tokens, uniforms, residual=lambda p, q: (p - q).abs())


def accept_residual_of_draft(target, draft, tokens, uniforms):
    return accepting(target, draft, tokens, uniforms, residual=lambda p, q: (q - p).clamp(min=0))


def accept_row_before(target, draft, tokens, uniforms):
    return accepting(target, draft, tokens, uniforms, bonus=False)


def accept_likeliest_residual(target, draft, tokens, uniforms):
    def one(p, q):
        left = (p - q).clamp(min=0)
        return F.one_hot(left.argmax(), len(left)).float()

    return accepting(target, draft, tokens, uniforms, residual=one)


def accept_greedy(target, draft, tokens, uniforms):
    best = target.argmax(-1)
    same = (best[:-1] == tokens).long().cumprod(0).sum()
    return torch.cat([tokens[:same], best[same][None]])


def accept_without_loop(target, draft, tokens, uniforms):
    at = torch.arange(len(tokens))
    stands = uniforms[:-1] < target[at, tokens] / draft[at, tokens]
    count = int(stands.int().cumprod(0).sum())
    left = target[count]
    if count < len(tokens):
        left = (left - draft[count]).clamp(min=0)
        left = left if left.any() else target[count]
    total = left.cumsum(0)
    return torch.cat([tokens[:count], (total <= uniforms[-1] * total[-1]).sum()[None]])


def accept_by_lists(target, draft, tokens, uniforms):
    p, q, u = target.tolist(), draft.tolist(), uniforms.tolist()
    given = []
    weights = p[-1]
    for i, token in enumerate(tokens.tolist()):
        if u[i] * q[i][token] >= p[i][token]:
            weights = [max(a - b, 0.0) for a, b in zip(p[i], q[i], strict=True)]
            weights = weights if sum(weights) > 0 else p[i]
            break
        given.append(token)
    reached, aim, last = 0.0, u[-1] * sum(weights), 0
    for weight in weights:
        reached += weight
        if reached > aim:
            break
        last += 1
    return torch.tensor([*given, min(last, len(weights) - 1)])


def accept_from_the_other_end(target, draft, tokens, uniforms):
    """Reads 1 − u for u, and adds the weights up from the last token: as right as any."""
    count = 0
    for i, token in enumerate(tokens):
        if 1 - uniforms[i] > target[i, token] / draft[i, token]:
            break
        count += 1
    rest = target[count] - (draft[count] if count < len(tokens) else 0)
    rest = torch.relu(rest)
    rest = rest if rest.sum() > 0 else target[count]
    total = rest.flip(0).cumsum(0)
    place = int((total < (1 - uniforms[-1]) * total[-1]).sum())
    return torch.cat([tokens[:count], torch.tensor([len(rest) - 1 - place])])


SPECULATIVE_ACCEPT = Check(
    reference=speculative.speculative_accept,
    points=5,
    cases=accept_cases,
    probe=accept_probe,
    tolerance=(0.0, 0.05),  # of shares; the spread points are nearer than that to the true ones
    misconceptions=[
        Misconception(
            "every drafted token stands",
            accept_all,
            "If nothing can fall, whose distribution do the tokens follow?",
        ),
        Misconception(
            "a token stands with the target's probability, not with p / q",
            accept_by_target,
            "A draft that is the target itself: how often should its tokens stand?",
        ),
        Misconception(
            "a token stands with q / p",
            accept_inverted,
            "The draft proposes a token too often. Should it stand more or less often?",
        ),
        Misconception(
            "a token stands only if the target finds it at least as likely",
            accept_if_likelier,
            "p = 0.3 and q = 0.4: must the token fall always, or now and then?",
        ),
        Misconception(
            "after a fall, the token is drawn from the target",
            accept_draws_from_target,
            "The fallen token's share has been proposed already. Where is mass still missing?",
        ),
        Misconception(
            "after a fall, the difference's size is taken",
            accept_size_of_difference,
            "Where q is above p, was the token proposed too often or too seldom?",
        ),
        Misconception(
            "after a fall, what the draft has too much is drawn from",
            accept_residual_of_draft,
            "Which tokens come too seldom from the draft: those with p > q or with q > p?",
        ),
        Misconception(
            "the last token is drawn from the row before the last",
            accept_row_before,
            "n drafted tokens, n + 1 rows of the target. What is the last row for?",
        ),
        Misconception(
            "after a fall, the likeliest of the rest is taken",
            accept_likeliest_residual,
            "Is the rest a distribution to draw from, or a vote?",
        ),
        Misconception(
            "greedy: a token stands if it is the target's likeliest",
            accept_greedy,
            "Where does your function use the draft's probabilities, and the uniforms?",
        ),
    ],
    variants=[accept_without_loop, accept_by_lists, accept_from_the_other_end],
)


# questions ---------------------------------------------------------------------------------------

CAT_COLDER = Question(
    "cat_colder",
    answer=0.16 / 0.30,
    tolerance=(0.005, 0.0),
    misconceptions=[
        Misconception(
            "the probability is divided by the temperature",
            0.8,
            "Do the new probabilities of all four tokens sum to 1?",
        ),
        Misconception(
            "the temperature is applied the wrong way",
            0.4**0.5 / sum(p**0.5 for p in (0.4, 0.3, 0.2, 0.1)),
            "At half the temperature, is the likeliest token likelier or less likely than before?",
        ),
        Misconception(
            "the squares are not normalized",
            0.16,
            "What do the four squares sum to?",
        ),
        Misconception("nothing changes", 0.4, "What does a temperature of 1 do? And 0.5?"),
    ],
)
WHICH_FILTER = Question(
    "which_filter",
    answer="b",
    choices=("a", "b", "c", "d"),
    misconceptions=[
        Misconception(
            "top-k follows how sure the model is",
            "a",
            "How many tokens are left by k = 50 when one token has 0.99?",
        ),
        Misconception(
            "both do the same",
            "c",
            "How many tokens does each leave of a flat distribution over 1,000?",
        ),
        Misconception(
            "a temperature rules tokens out",
            "d",
            "Which token has the probability 0 after a division by 2?",
        ),
    ],
)
BAD_DRAFT = Question(
    "bad_draft",
    answer="d",
    choices=("a", "b", "c", "d"),
    misconceptions=[
        Misconception(
            "a bad draft makes the text worse",
            "a",
            "What is done with a token that the target would not have said so often?",
        ),
        Misconception(
            "the text is a mixture of both models",
            "b",
            "Sum over both ways in which a token can come. What is left of q?",
        ),
        Misconception(
            "it only holds for greedy decoding",
            "c",
            "Your χ² test was about sampling. What did it say?",
        ),
    ],
)
TOKENS_FED = Question(
    "tokens_fed",
    answer=1035,
    misconceptions=[
        Misconception(
            "with the cache",
            49,
            "Without a cache the model reads the whole text for each token. How long is it then?",
        ),
        Misconception(
            "the last text is read once more",
            1035 + 50,
            "How many runs does it take for 30 tokens? Which text is read in the last one?",
        ),
        Misconception(
            "the prompt is left out",
            435,
            "What does the model read in its very first run?",
        ),
        Misconception(
            "every run reads the final text",
            1500,
            "How long is the text in the first run, and in the last?",
        ),
        Misconception(
            "every run reads the prompt only",
            600,
            "The third token depends on the first two. Where does the model read them?",
        ),
    ],
)
