import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from llmkit.decoding import generate
from llmkit.search import beam_search, contrastive_step
from llmkit.transformer import Llama
from tests.llmkit.twins import PROMPTS, twins

STOP = 0


class Language:
    """Random logits after each sequence of a tiny vocabulary; `step` remembers the beams."""

    def __init__(self, vocabulary: int, longest: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.logits = {
            prefix: 1.5 * torch.randn(vocabulary, generator=generator)
            for length in range(longest)
            for prefix in itertools.product(range(vocabulary), repeat=length)
        }
        self.beams: list[tuple[int, ...]] = [()]

    def step(self, parents: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        pairs = zip(parents.tolist(), tokens.tolist(), strict=True)
        self.beams = [(*self.beams[parent], token) for parent, token in pairs]
        return torch.stack([self.logits[beam] for beam in self.beams])

    def search(self, num_beams: int, max_tokens: int, **settings):
        self.beams = [()]
        return beam_search(self.logits[()], self.step, num_beams, max_tokens, **settings)

    def log_probability(self, tokens: tuple[int, ...]) -> float:
        steps = (self.logits[tokens[:i]].double().log_softmax(-1)[t] for i, t in enumerate(tokens))
        return float(sum(steps))


def all_endings(vocabulary: int, max_tokens: int):
    """Every sequence that ends with a stop token or at the limit."""
    words = range(1, vocabulary)
    for length in range(max_tokens):
        for body in itertools.product(words, repeat=length):
            yield (*body, STOP)
    yield from itertools.product(words, repeat=max_tokens)


# beam search


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.6, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_beam_wide_enough_is_exhaustive_search(length_penalty, seed):
    vocabulary, max_tokens = 4, 4
    language = Language(vocabulary, max_tokens, seed)
    scores = {
        tokens: language.log_probability(tokens) / len(tokens) ** length_penalty
        for tokens in all_endings(vocabulary, max_tokens)
    }
    beams = language.search(len(scores), max_tokens, stop_ids=[STOP], length_penalty=length_penalty)
    assert len(beams) == len(scores) and {tuple(beam) for beam, _ in beams} == scores.keys()
    for beam, score in beams:
        assert score == pytest.approx(scores[tuple(beam)], abs=1e-5)
        steps = [token.log_probability for token in beam]
        assert sum(steps) / len(beam) ** length_penalty == pytest.approx(score, abs=1e-5)
    assert [score for _, score in beams] == sorted((score for _, score in beams), reverse=True)
    assert tuple(beams[0][0]) == max(scores, key=scores.get)


def test_one_beam_is_greedy():
    language = Language(5, 6, seed=0)
    ((tokens, _),) = language.search(1, 6)
    prefix = ()
    for _ in range(6):
        prefix += (language.logits[prefix].argmax().item(),)
    assert tuple(tokens) == prefix


def test_greedy_misses_what_two_beams_find():
    start = torch.tensor([0.6, 0.4]).log()
    table = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    step = lambda parents, tokens: table[tokens]
    assert beam_search(start, step, 1, 2)[0][0] == [0, 0]  # 0.6 · 0.5
    tokens, score = beam_search(start, step, 2, 2, length_penalty=0.0)[0]
    assert tokens == [1, 0] and math.exp(score) == pytest.approx(0.36)


def test_the_three_rules_stop_at_different_times():
    # token 0 ends; of the two others, 1 is likely to be followed by itself, ever more so
    start = torch.tensor([0.3, 0.6, 0.1]).log()
    later = torch.tensor([0.01, 0.98, 0.01]).log()
    steps = []

    def search(early_stopping, length_penalty=1.0):
        steps.clear()
        step = lambda _, tokens: steps.append(1) or later.expand(len(tokens), -1)
        beams = beam_search(start, step, 1, 8, [0], length_penalty, early_stopping)
        return beams[0][0], len(steps)

    assert search(True) == ([1] * 8, 7)  # stopping is not the one best choice, so nothing ended
    start = torch.tensor([0.5, 0.45, 0.05]).log()
    assert search(True) == ([0], 0)
    assert search(False) == ([0], 0)  # ln 0.45 < ln 0.5
    assert search("never") == ([1] * 8, 7)  # but ln 0.45 / 8 > ln 0.5
    assert search("never", length_penalty=0.0) == ([0], 0)  # which nothing can better, then


EARLY_STOPPING = [False, True, "never"]


@pytest.mark.parametrize("early_stopping", EARLY_STOPPING)
@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 1.0, 2.5])
@pytest.mark.parametrize("stop_ids", [[7], [7, 12, 30]])
@torch.no_grad()
def test_beams_are_transformers(early_stopping, length_penalty, stop_ids):
    ours, theirs = twins()
    max_tokens, ended_early = 9, 0
    for num_beams, prompt in itertools.product((2, 4), PROMPTS[:3]):
        expected = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=max_tokens,
            num_beams=num_beams,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            eos_token_id=stop_ids,
            pad_token_id=stop_ids[0],
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
        cache = ours.new_cache(len(prompt) + max_tokens)

        def step(parents, tokens, cache=cache):
            for layer in cache:
                layer.select(parents)
            return ours(tokens[:, None], cache=cache)[:, -1]

        tokens, score = beam_search(
            ours(torch.tensor([prompt]), cache=cache)[0, -1],
            step,
            num_beams,
            max_tokens,
            stop_ids,
            length_penalty,
            early_stopping,
        )[0]
        best = expected.sequences[0, len(prompt) :].tolist()
        assert tokens == best[: len(tokens)] and set(best[len(tokens) :]) <= {stop_ids[0]}
        assert score == pytest.approx(expected.sequences_scores[0].item(), abs=1e-4)
        ended_early += len(tokens) < max_tokens

        settings = {"num_beams": num_beams, "length_penalty": length_penalty}
        settings |= {"early_stopping": early_stopping, "stop_ids": stop_ids}
        yielded = list(generate(ours, prompt, max_tokens, **settings))
        assert yielded == [t for t in tokens if t not in stop_ids]
    assert ended_early or length_penalty > 0


# contrastive search


def test_contrastive_step_by_hand():
    probabilities = torch.tensor([0.6, 0.4])
    context = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    candidates = torch.tensor([[2.0, 0.0], [0.0, -1.0]])  # cosines 1 and 0.6; 0 and -0.8
    choose = lambda alpha: contrastive_step(probabilities, candidates, context, alpha).item()
    # 0.6 (1 - α) - α against 0.4 (1 - α): equal at α = 1/6
    assert choose(0.0) == choose(0.16) == 0
    assert choose(0.17) == choose(1.0) == 1


@torch.no_grad()
def brute_force_contrastive(
    model: Llama, prompt: list[int], count: int, alpha: float, k: int
) -> list[int]:
    """Every candidate's hidden states anew, without a cache, by the paper's formula."""
    ids = list(prompt)
    for _ in range(count):
        probabilities = model(torch.tensor([ids]))[0, -1].softmax(-1).tolist()
        likeliest = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])[:k]

        def score(token: int, probabilities=probabilities) -> float:
            *context, candidate = model.model(torch.tensor([[*ids, token]]))[0]
            cosines = [F.cosine_similarity(candidate, h, dim=0).item() for h in context]
            return (1 - alpha) * probabilities[token] - alpha * max(cosines)

        ids.append(max(likeliest, key=score))
    return ids[len(prompt) :]


@pytest.mark.parametrize(("alpha", "k"), [(0.2, 3), (0.6, 4), (0.9, 2), (1.0, 6)])
def test_contrastive_search_is_brute_force(alpha, k):
    model, _ = twins()
    for prompt in PROMPTS[:2]:
        expected = brute_force_contrastive(model, prompt, 10, alpha, k)
        assert list(generate(model, prompt, 10, penalty_alpha=alpha, top_k=k)) == expected
        assert expected != list(generate(model, prompt, 10))


def test_contrastive_search_with_alpha_zero_is_greedy():
    model, _ = twins()
    expected = list(generate(model, PROMPTS[0], 12))
    tokens = list(generate(model, PROMPTS[0], 12, penalty_alpha=0.0))
    assert tokens == expected
    scores = [[t.log_probability for t in each] for each in (tokens, expected)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_contrastive_search_takes_more_candidates_than_there_are_tokens():
    model, _ = twins()
    assert len(list(generate(model, PROMPTS[0], 2, penalty_alpha=0.6, top_k=1000))) == 2
