import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import chisquare

from llmkit.decoding import (
    apply_temperature,
    generate,
    greedy,
    sample,
    top_k_filter,
    top_p_filter,
    warp,
)
from llmkit.transformer import PRESETS, Llama

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


def test_filters_take_rows_one_by_one():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 9)
    for f in (lambda x: top_k_filter(x, 4), lambda x: top_p_filter(x, 0.7)):
        rows = torch.stack([torch.stack([f(row) for row in matrix]) for matrix in logits])
        assert torch.equal(f(logits), rows)


def test_order_is_temperature_then_top_k_then_top_p():
    # hot, the nucleus of 0.6 among the two likeliest needs both; cold, or before top-k, it differs
    assert kept(warp(PETS, temperature=10.0, top_k=2, top_p=0.6)) == {0, 1}
    assert kept(warp(PETS, temperature=0.1, top_k=2, top_p=0.6)) == {0}
    assert kept(warp(PETS, temperature=1.0, top_k=3, top_p=0.75)) == {0, 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0 or a positive number, not -0.1"),
        ({"temperature": math.nan}, "temperature must be"),
        ({"temperature": INF}, "temperature must be"),
        ({"top_k": 0}, "k must be at least 1, not 0"),
        ({"top_p": 0.0}, "p must be above 0 and at most 1, not 0.0"),
        ({"top_p": 1.5}, "p must be above 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        warp(PETS, **settings)
    with pytest.raises(ValueError, match=message):
        generate(Llama(PRESETS["tiny"]), [1], **settings)  # at once, not at the first token


@pytest.mark.parametrize("settings", [{}, {"temperature": 2.0}, {"top_k": 3}, {"top_p": 0.65}])
def test_sampling_follows_the_distribution(settings):
    generator = torch.Generator().manual_seed(1)
    logits, draws = warp(PETS, **settings), 20_000
    counts = sample(logits.expand(draws, -1), generator).bincount(minlength=4)
    expected = logits.double().softmax(-1) * draws
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert chisquare(counts[possible].numpy(), expected[possible].numpy()).pvalue > 0.001


# generate


@pytest.fixture(scope="module")
def model() -> Llama:
    torch.manual_seed(0)
    model = Llama(PRESETS["tiny"]).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return model


PROMPT = [5, 17, 200, 31]


@torch.no_grad()
def uncached_greedy(model: Llama, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
    return ids[len(prompt) :]


def test_greedy_generation_without_a_cache_is_the_same(model):
    tokens = list(generate(model, PROMPT, max_tokens=20))
    assert tokens == uncached_greedy(model, PROMPT, 20)


def test_prompt_may_be_a_tensor(model):
    assert list(generate(model, torch.tensor(PROMPT), 5)) == list(generate(model, PROMPT, 5))


def test_stop_token_ends_it_and_is_not_yielded(model):
    tokens = list(generate(model, PROMPT, 20))
    stop = tokens[7]
    assert list(generate(model, PROMPT, 20, stop_ids={stop})) == tokens[: tokens.index(stop)]


def test_seeds_reproduce_and_differ(model):
    def draw(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return list(generate(model, PROMPT, 12, temperature=1.5, generator=generator))

    assert draw(3) == draw(3) != draw(4)


def test_top_k_one_is_greedy(model):
    expected = list(generate(model, PROMPT, 12))
    assert list(generate(model, PROMPT, 12, temperature=1.0, top_k=1)) == expected


def test_tokens_come_one_by_one_and_leave_grad_mode_alone(model):
    calls = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    tokens = generate(model, PROMPT, 10)
    assert calls == []
    next(tokens)
    assert len(calls) == 1 and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    next(tokens)
    assert len(calls) == 2
    hook.remove()


def test_context_limit(model):
    limit = model.config.max_position_embeddings
    assert len(list(generate(model, [1] * (limit - 3), 100))) == 4  # the last one is never fed
    with pytest.raises(ValueError, match=f"1 to {limit} tokens"):
        generate(model, [1] * (limit + 1))


@pytest.mark.parametrize("prompt", [[], torch.zeros(2, 3)])
def test_prompt_must_be_one_sequence(model, prompt):
    with pytest.raises(ValueError, match="one sequence of"):
        generate(model, prompt)
