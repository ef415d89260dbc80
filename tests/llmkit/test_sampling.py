import itertools
import math
import pickle

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import chisquare

from llmkit.sampling import (
    Token,
    apply_repetition_penalty,
    apply_temperature,
    greedy,
    min_p_filter,
    sample,
    score_tokens,
    top_k_filter,
    top_p_filter,
    warp,
)

PETS = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()  # cat, dog, bird, elephant
INF = float("inf")
logit_vectors = hnp.arrays("float32", st.integers(1, 12), elements=st.integers(-6, 6)).map(
    torch.from_numpy
)


def kept(logits: torch.Tensor) -> set[int]:
    return set((logits > -INF).nonzero().flatten().tolist())


def test_the_syllabus_example():
    assert greedy(PETS).item() == 0
    probabilities = top_k_filter(PETS, 3).softmax(-1)
    torch.testing.assert_close(probabilities, torch.tensor([4, 3, 2, 0]) / 9)


def test_greedy_takes_the_first_of_equals():
    assert greedy(torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 1.0]])).tolist() == [1, 0]


def test_temperature_divides_and_zero_is_greedy():
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, -1.0, 0.5]])
    torch.testing.assert_close(apply_temperature(logits, 0.5), logits * 2)
    assert apply_temperature(logits, 0).tolist() == [[-INF, 3, -INF], [2, -INF, -INF]]


@given(logit_vectors, st.integers(1, 15))
def test_top_k_by_definition(logits, k):
    smallest_kept = sorted(logits.tolist(), reverse=True)[min(k, len(logits)) - 1]
    expected = {i for i, x in enumerate(logits.tolist()) if x >= smallest_kept}
    filtered = top_k_filter(logits, k)
    assert kept(filtered) == expected
    assert torch.equal(filtered[filtered > -INF], logits[filtered > -INF])


@given(logit_vectors, st.floats(0.01, 1.0))
def test_top_p_is_the_smallest_set_and_prefers_low_ids(logits, p):
    chosen = kept(top_p_filter(logits, p))
    probabilities = logits.double().softmax(-1).tolist()
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    assert chosen == set(order[: len(chosen)]) and chosen
    slack = 1e-5
    assert sum(probabilities[i] for i in chosen) >= p - slack
    assert sum(probabilities[i] for i in order[: len(chosen) - 1]) < p + slack


@given(logit_vectors.filter(lambda x: len(x) <= 6), st.floats(0.01, 0.99))
def test_top_p_against_all_subsets(logits, p):
    probabilities = logits.double().softmax(-1).tolist()
    masses = {
        subset: sum(probabilities[i] for i in subset)
        for size in range(1, len(logits) + 1)
        for subset in itertools.combinations(range(len(logits)), size)
    }
    if any(abs(mass - p) < 1e-5 for mass in masses.values()):
        return  # rounding decides
    smallest = min(len(subset) for subset, mass in masses.items() if mass >= p)
    assert len(kept(top_p_filter(logits, p))) == smallest


def test_top_p_one_keeps_the_faintest_tail():
    logits = torch.tensor([50.0, 0.0, -50.0])
    assert torch.equal(top_p_filter(logits, 1.0), logits)


@given(logit_vectors, st.floats(0.01, 1.0))
def test_min_p_by_definition(logits, p):
    probabilities = logits.double().softmax(-1)
    ratios = probabilities / probabilities.max()
    if (ratios - p).abs().min() < 1e-6 and p != 1:
        return  # rounding decides
    assert kept(min_p_filter(logits, p)) == set((ratios >= p).nonzero().flatten().tolist())


def test_min_p_one_keeps_the_likeliest_only():
    assert kept(min_p_filter(torch.tensor([0.3, 2.7, -1.0, 2.7]), 1.0)) == {1, 3}


@given(logit_vectors, st.data())
def test_repetition_penalty_by_definition(logits, data):
    ids = torch.tensor(data.draw(st.lists(st.integers(0, len(logits) - 1), min_size=1)))
    expected = [
        x if i not in ids else x / 2 if x > 0 else x * 2 for i, x in enumerate(logits.tolist())
    ]
    assert apply_repetition_penalty(logits, ids, 2.0).tolist() == expected


filters = st.sampled_from(
    [
        lambda x: apply_temperature(x, 0.0),
        lambda x: apply_temperature(x, 0.6),
        lambda x: top_k_filter(x, 3),
        lambda x: top_p_filter(x, 0.8),
        lambda x: min_p_filter(x, 0.2),
    ]
)


@given(logit_vectors, st.lists(filters, max_size=4))
def test_whatever_is_filtered_the_greedy_token_stays_and_the_argument_is_unharmed(logits, chain):
    before, filtered = logits.clone(), logits
    for f in chain:
        filtered = f(filtered)
    assert greedy(filtered) == greedy(logits)
    assert torch.equal(logits, before) and filtered.shape == logits.shape


@given(logit_vectors, filters)
def test_filters_follow_a_permutation_of_distinct_tokens(logits, f):
    logits = logits + torch.linspace(0, 0.5, len(logits))
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(len(logits)))
    assert torch.equal(f(logits)[order], f(logits[order]))


def test_filters_take_rows_one_by_one():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 9)
    for f in (
        lambda x: top_k_filter(x, 4),
        lambda x: top_p_filter(x, 0.7),
        lambda x: min_p_filter(x, 0.3),
        lambda x: apply_temperature(x, 0.0),
    ):
        rows = torch.stack([torch.stack([f(row) for row in matrix]) for matrix in logits])
        assert torch.equal(f(logits), rows)


def test_order_is_temperature_then_top_k_then_top_p_then_min_p():
    # hot, the nucleus of 0.6 among the two likeliest needs both; cold, or before top-k, it differs
    assert kept(warp(PETS, temperature=10.0, top_k=2, top_p=0.6)) == {0, 1}
    assert kept(warp(PETS, temperature=0.1, top_k=2, top_p=0.6)) == {0}
    assert kept(warp(PETS, temperature=1.0, top_k=3, top_p=0.75)) == {0, 1}
    # min-p would keep three of these alone, but the nucleus is of the whole and comes first
    assert kept(warp(PETS, top_p=0.6, min_p=0.5)) == {0, 1}


WARPERS = transformers.generation.logits_process


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"temperature": 0.7}, WARPERS.TemperatureLogitsWarper(0.7)),
        ({"top_k": 5}, WARPERS.TopKLogitsWarper(5)),
        ({"top_k": 5000}, WARPERS.TopKLogitsWarper(5000)),
        ({"top_p": 0.3}, WARPERS.TopPLogitsWarper(0.3)),
        ({"top_p": 0.9}, WARPERS.TopPLogitsWarper(0.9)),
        ({"min_p": 0.05}, WARPERS.MinPLogitsWarper(0.05)),
        ({"min_p": 0.5}, WARPERS.MinPLogitsWarper(0.5)),
        ({"repetition_penalty": 1.3}, WARPERS.RepetitionPenaltyLogitsProcessor(1.3)),
        ({"repetition_penalty": 0.8}, WARPERS.RepetitionPenaltyLogitsProcessor(0.8)),
    ],
)
def test_filters_are_transformers(ours, theirs):
    generator = torch.Generator().manual_seed(0)
    for scale in (0.5, 2.0, 6.0):
        logits = scale * torch.randn(16, 101, generator=generator)
        ids = torch.randint(101, (16, 30), generator=generator)
        assert torch.equal(warp(logits, ids, **ours), theirs(ids, logits))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0 or a positive number, not -0.1"),
        ({"temperature": math.nan}, "temperature must be"),
        ({"temperature": INF}, "temperature must be"),
        ({"top_k": 0}, "k must be at least 1, not 0"),
        ({"top_p": 0.0}, "p must be above 0 and at most 1, not 0.0"),
        ({"top_p": 1.5}, "p must be above 0"),
        ({"min_p": 0.0}, "min_p must be above 0 and at most 1, not 0.0"),
        ({"min_p": math.nan}, "min_p must be"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be a positive number, not 0.0"),
        ({"repetition_penalty": math.nan}, "repetition_penalty must be"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        warp(PETS, torch.tensor([0]), **settings)


@pytest.mark.parametrize("settings", [{}, {"temperature": 2.0}, {"top_k": 3}, {"top_p": 0.65}])
def test_sampling_follows_the_distribution(settings):
    generator = torch.Generator().manual_seed(1)
    logits, draws = warp(PETS, **settings), 20_000
    counts = sample(logits.expand(draws, -1), generator).bincount(minlength=4)
    expected = logits.double().softmax(-1) * draws
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert chisquare(counts[possible].numpy(), expected[possible].numpy()).pvalue > 0.001


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_score_is_the_models_own_log_probability(dtype):
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    tokens = score_tokens(torch.tensor([4, 0, 6]), logits)
    assert tokens == [4, 0, 6]
    expected = logits.double().softmax(-1)[range(3), [4, 0, 6]].log()
    assert [t.log_probability for t in tokens] == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_token_is_an_int_and_can_be_copied():
    token = Token(5, -0.25)
    assert token == 5 and {5: "five"}[token] == "five" and [0, 1, 2, 3, 4, 5][token] == 5
    copied = pickle.loads(pickle.dumps(token))
    assert copied == 5 and copied.log_probability == -0.25
