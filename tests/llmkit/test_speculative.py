import itertools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from llmkit.attention import KVCache
from llmkit.decoding import generate
from llmkit.sampling import warp
from llmkit.speculative import look_up, model_draft, speculative_accept, speculative_rounds
from llmkit.transformer import Llama, LlamaConfig
from tests.llmkit.twins import PROMPTS, twins

DRAWS = 20_000


def distributions(*shape: int, seed: int = 0, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(*shape, generator=generator)).softmax(-1)


# speculative_accept


def accept(target, draft, tokens, uniforms) -> list[int]:
    numbers = [torch.tensor(x) for x in (target, draft, tokens, uniforms)]
    return speculative_accept(*numbers).tolist()


def test_accept_by_hand():
    target, draft = [[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], [[0.2, 0.6, 0.2]]
    # p/q = 0.3/0.6, and then the last is drawn from p at the next place
    assert accept(target, draft, [1], [0.49, 0.0]) == [1, 0]
    assert accept(target, draft, [1], [0.49, 0.15]) == [1, 1]
    assert accept(target, draft, [1], [0.49, 0.99]) == [1, 2]
    # max(0, p - q) = (0.3, 0, 0): a rejected 1 can only become 0
    assert (
        accept(target, draft, [1], [0.51, 0.0]) == accept(target, draft, [1], [0.51, 0.99]) == [0]
    )
    # p > q: always accepted
    assert accept(target, draft, [0], [0.9999, 0.5]) == [0, 2]


def test_accept_of_one_hot_distributions_is_equality():
    one_hot = torch.eye(4).tolist()
    for tokens in itertools.product(range(4), repeat=2):
        for u in (0.0, 1 - 2**-24):
            new = accept(one_hot[1:4], [one_hot[t] for t in tokens], list(tokens), [u] * 3)
            expected = [1, 2, 3] if tokens == (1, 2) else [1, 2] if tokens[0] == 1 else [1]
            assert new == expected


def test_accept_without_a_draft_is_a_draw():
    p = torch.tensor([[0.25, 0.5, 0.25]])
    drawn = [
        speculative_accept(p, p[:0], torch.tensor([], dtype=torch.long), torch.tensor([u])).item()
        for u in (0.0, 0.24, 0.25, 0.74, 0.75, 0.999)
    ]
    assert drawn == [0, 0, 1, 1, 2, 2]


def test_accept_when_nothing_but_rounding_is_left():
    q = torch.tensor([[0.1, 0.4, 0.5]])
    p = torch.tensor([[0.1, 0.4, 0.5 - 2**-25]]).expand(2, -1)
    u = torch.tensor([1 - 2**-24, 0.3])
    assert speculative_accept(p, q, torch.tensor([2]), u).tolist() in ([2, 1], [1])
    less = p * (1 - 2**-20)  # every token is rejected now and then, max(0, p - q) is all zeros
    assert speculative_accept(less, q, torch.tensor([2]), u).tolist() == [1]


@given(st.integers(0, 10**6), st.integers(0, 4), st.sampled_from([0.0, 0.3, 1 - 2**-24]))
def test_what_the_target_rules_out_never_comes(seed, n, last):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2 * n + 1, 6, generator=generator)
    filtered = warp(logits, top_k=2).softmax(-1)
    target, draft = filtered[: n + 1], filtered[n + 1 :]
    tokens = torch.multinomial(draft, 1, generator=generator)[:, 0] if n else torch.arange(0)
    uniforms = torch.rand(n + 1, generator=generator)
    uniforms[-1] = last
    new = speculative_accept(target, draft, tokens, uniforms)
    assert 1 <= len(new) <= n + 1
    assert torch.equal(new[:-1], tokens[: len(new) - 1])
    assert (target[range(len(new)), new] > 0).all()


DRAFTS = {
    "uniform": torch.full((2, 5), 0.2),
    "bad": distributions(2, 5, seed=1).flip(-1) ** 3,
    "certain": torch.eye(5)[[3, 3]],
}


@pytest.mark.parametrize("name", DRAFTS)
def test_accepted_tokens_follow_the_target(name):
    target = distributions(3, 5, seed=1)
    draft = DRAFTS[name] / DRAFTS[name].sum(-1, keepdim=True)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.stack(
        [torch.multinomial(q, DRAWS, replacement=True, generator=generator) for q in draft], 1
    )
    uniforms = torch.rand(DRAWS, 3, generator=generator)
    counts = torch.zeros(3, 5)
    for x, u in zip(tokens, uniforms, strict=True):
        for place, token in enumerate(speculative_accept(target, draft, x, u).tolist()):
            counts[place, token] += 1
    assert counts[0].sum() == DRAWS and counts[1].sum() > 0
    # the i-th token comes only if all before it were accepted, and then it is distributed as p_i
    for count, p in zip(counts, target.double(), strict=True):
        if count.sum() > 0:
            expected = p / p.sum() * count.sum().double()
            assert chisquare(count.double().numpy(), expected.numpy()).pvalue > 0.001
    # Leviathan et al., theorem 3.5: the acceptance rate is Σ min(p, q)
    rate = torch.minimum(target[0], draft[0]).sum().item()
    assert counts[1].sum().item() / DRAWS == pytest.approx(rate, abs=0.015)


# look_up


def test_look_up_takes_the_longest_and_latest_match():
    assert look_up([1, 2, 3, 4, 1, 2, 3], 2) == [4, 1]
    assert look_up([9, 3, 7, 2, 3, 8, 3], 1) == [8]  # the latest 3
    assert look_up([2, 3, 7, 9, 3, 8, 2, 3], 2) == [7, 9]  # 2, 3 before a later 3 alone
    assert look_up([1, 2, 3], 4) == look_up([1], 4) == look_up([], 4) == []
    assert look_up([1, 2, 1], 0) == []


def test_look_up_goes_on_with_what_it_copied():
    assert look_up([1, 2, 1, 2, 1], 5) == [2, 1, 2, 1, 2]
    assert look_up([4, 4], 3) == [4, 4, 4]


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 6))
def test_look_up_by_definition(ids, count):
    for length in (3, 2, 1):
        places = [
            i for i in range(len(ids) - length) if ids[i : i + length] == ids[len(ids) - length :]
        ]
        if places and length < len(ids):
            tail = ids[max(places) + length :]
            assert look_up(ids, count) == (tail * count)[:count]
            return
    assert look_up(ids, count) == []


# speculative generation

TARGET, OTHER = twins()[0], twins(seed=1)[0]
SPECULATIONS = {
    "itself": {"draft": TARGET},
    "another": {"draft": OTHER},
    "prompt look-up": {"prompt_lookup": True},
}


@pytest.mark.parametrize("name", SPECULATIONS)
@pytest.mark.parametrize("draft_tokens", [1, 2, 5])
def test_speculation_is_the_targets_greedy(name, draft_tokens):
    settings = SPECULATIONS[name] | {"draft_tokens": draft_tokens}
    for prompt, penalty in itertools.product(PROMPTS, (1.0, 1.3)):
        expected = list(generate(TARGET, prompt, 25, repetition_penalty=penalty))
        tokens = list(generate(TARGET, prompt, 25, repetition_penalty=penalty, **settings))
        assert tokens == expected
        scores = [[t.log_probability for t in each] for each in (tokens, expected)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)


@pytest.mark.parametrize("name", SPECULATIONS)
def test_speculation_ends_where_greedy_does(name):
    expected = list(generate(TARGET, PROMPTS[1], 20))
    for limit in range(1, 9):
        tokens = list(generate(TARGET, PROMPTS[1], limit, **SPECULATIONS[name]))
        assert tokens == expected[:limit]
    for stop in set(expected):
        tokens = list(generate(TARGET, PROMPTS[1], 20, stop_ids=[stop], **SPECULATIONS[name]))
        assert tokens == expected[: expected.index(stop)]
    # where the context is full, the draft's too
    long = [i % 41 for i in range(58)]
    assert list(generate(TARGET, long, 99, **SPECULATIONS[name])) == list(generate(TARGET, long))
    assert len(list(generate(TARGET, long))) == 64 - 58 + 1


def test_a_draft_of_shorter_context_helps_as_far_as_it_goes():
    short = Llama(LlamaConfig(**vars(OTHER.config) | {"max_position_embeddings": 8})).eval()
    short.load_state_dict(OTHER.state_dict())
    for prompt in ([1, 2, 3], list(range(20))):
        assert list(generate(TARGET, prompt, 20, draft=short)) == list(generate(TARGET, prompt, 20))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_perfect_draft_is_always_accepted(temperature):
    """So the caches on both sides hold what they should, after full acceptance too."""
    filters = lambda logits, ids: warp(logits, temperature=temperature, top_p=0.95)
    prompt, generator = torch.tensor(PROMPTS[1]), torch.Generator().manual_seed(0)
    propose = model_draft(TARGET, 40, filters, generator)
    rounds = list(speculative_rounds(TARGET, prompt, 30, propose, 4, filters, generator))
    assert [len(tokens) for tokens in rounds] == [1, *[5] * 5, 4]  # the prompt alone, then drafts


def test_each_position_is_fed_once_and_in_order():
    fed = []
    hook = OTHER.register_forward_hook(lambda _, args, out: fed.append(args[0].shape[1]))
    list(generate(OTHER, PROMPTS[1], 20, draft=TARGET, draft_tokens=3))
    hook.remove()
    assert fed[0] == len(PROMPTS[1]) and set(fed[1:]) <= {1, 2, 3, 4}


def test_sampled_scores_are_those_of_the_target_without_a_cache():
    generator = torch.Generator().manual_seed(0)
    prompt = PROMPTS[1]
    tokens = list(
        generate(TARGET, prompt, 30, temperature=1.5, top_k=20, generator=generator, draft=OTHER)
    )
    with torch.no_grad():
        scores = TARGET(torch.tensor([[*prompt, *tokens]]))[0].log_softmax(-1)
    expected = [scores[len(prompt) - 1 + i, t].item() for i, t in enumerate(tokens)]
    assert [t.log_probability for t in tokens] == pytest.approx(expected, abs=1e-4)


class Bigram:
    """A Llama as far as `generate` can see, whose next token depends on the last one only."""

    def __init__(self, probabilities: torch.Tensor):
        self.logits = probabilities.log()
        self.config = SimpleNamespace(vocab_size=len(probabilities), max_position_embeddings=1001)
        self.model = SimpleNamespace(embed_tokens=SimpleNamespace(weight=self.logits))

    def new_cache(self, capacity: int) -> list[KVCache]:
        return [KVCache(1, 1, capacity, 1)]

    def __call__(self, input_ids, cache, logits_to_keep):
        cache[0].update(*2 * [input_ids[:, None, :, None].float()])
        return self.logits[input_ids[:, -logits_to_keep:]]


@pytest.mark.parametrize("name", ["good", "bad", "prompt look-up"])
def test_sampled_speculation_follows_the_target(name):
    target = distributions(4, 4, seed=5)
    drafts = {
        "good": {"draft": Bigram(target.lerp(distributions(4, 4, seed=6), 0.3)), "draft_tokens": 3},
        "bad": {"draft": Bigram(distributions(4, 4, seed=7, spread=3.0)), "draft_tokens": 1},
        "prompt look-up": {"prompt_lookup": True, "draft_tokens": 2},
    }
    settings = {"temperature": 0.8, "top_k": 3} | drafts[name]
    generator = torch.Generator().manual_seed(0)
    model, counts = Bigram(target), torch.zeros(4, 4)
    for _ in range(DRAWS // 1000):
        tokens = [0, *generate(model, [0], 1000, generator=generator, **settings)]
        for before, after in itertools.pairwise(tokens):
            counts[before, after] += 1
    assert counts.sum() == DRAWS
    exact = warp(target.log(), temperature=0.8, top_k=3).double().softmax(-1)
    for count, p in zip(counts, exact, strict=True):
        assert count[p == 0].sum() == 0
        expected = (p * count.sum())[p > 0]
        assert chisquare(count[p > 0].double().numpy(), expected.numpy()).pvalue > 0.001
