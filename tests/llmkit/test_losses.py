"""Losses, argued from PyTorch's own, autograd, closed forms and the laws of information."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from llmkit.losses import (
    cross_entropy,
    cross_entropy_from_probabilities,
    cross_entropy_gradient,
    entropy,
    kl_divergence,
    log_softmax,
    one_hot,
    perplexity_from_loss,
    shift_labels,
)

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(2, 40)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def whole(high: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def padded_batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (3, 5, 7) and targets of texts of 5, 2 and 0 tokens."""
    targets = whole(7, 3, 5, seed=seed)
    targets[1, 2:] = targets[2] = -100
    return 3 * normal(3, 5, 7, seed=seed), targets


def oracle(logits: torch.Tensor, targets: torch.Tensor, **options) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), **options)


# The worked example


def test_the_three_fruits():
    fruits = torch.tensor([[0.1, 0.7, 0.2]])
    for target, loss in ((0, 2.302585), (1, 0.356675), (2, 1.609438)):
        found = cross_entropy_from_probabilities(fruits, torch.tensor([target]))
        assert found.item() == pytest.approx(loss, abs=1e-6)
    both = cross_entropy_from_probabilities(fruits.expand(2, 3), torch.tensor([1, 2]))
    assert both.item() == pytest.approx((0.356675 + 1.609438) / 2, abs=1e-6)


def test_logits_that_are_log_probabilities_give_the_loss_of_the_probabilities():
    fruits = torch.tensor([[0.1, 0.7, 0.2]])
    assert cross_entropy(fruits.log(), torch.tensor([2])).item() == pytest.approx(-math.log(0.2))


def test_an_impossible_word_costs_nothing_unless_it_comes():
    sure = torch.tensor([[0.0, 1.0]])
    assert cross_entropy_from_probabilities(sure, torch.tensor([1])) == 0
    assert cross_entropy_from_probabilities(sure, torch.tensor([0])) == math.inf


# One-hot


def test_one_hot_equals_pytorchs():
    targets = whole(6, 4, 5)
    assert torch.equal(one_hot(targets, 9), F.one_hot(targets, 9).float())


@pytest.mark.parametrize("outside", [-100, -1, 3])
def test_one_hot_refuses_a_target_outside_the_vocabulary(outside: int):
    with pytest.raises(ValueError, match=r"0 … 2"):
        one_hot(torch.tensor([1, outside]), 3)


def test_one_hot_of_nothing_is_empty():
    assert one_hot(torch.tensor([], dtype=torch.long), 3).shape == (0, 3)


def test_cross_entropy_is_the_textbook_sum_over_the_one_hot_target():
    logits, targets = normal(4, 6), whole(6, 4)
    textbook = -(one_hot(targets, 6) * log_softmax(logits)).sum(-1).mean()
    torch.testing.assert_close(cross_entropy(logits, targets), textbook)


# Entropy and divergence


@given(seeds, sizes)
def test_cross_entropy_is_entropy_plus_divergence(seed: int, vocabulary: int):
    p, q = (4 * normal(2, 3, vocabulary, seed=seed)).softmax(-1)
    torch.testing.assert_close(entropy(p) + kl_divergence(p, q), -(p * q.log()).sum(-1))


@given(seeds, sizes)
def test_the_mean_loss_over_many_words_is_their_entropy_plus_divergence(seed: int, vocabulary: int):
    """With the words drawn exactly as often as p says, the mean loss is the cross-entropy."""
    counts = 1 + whole(9, vocabulary, seed=seed)
    p = counts.double() / counts.sum()
    q = normal(vocabulary, seed=seed).softmax(-1)
    words = torch.arange(vocabulary).repeat_interleave(counts)
    loss = cross_entropy(q.log().expand(len(words), -1), words)
    torch.testing.assert_close(loss, entropy(p) + kl_divergence(p, q))


@given(seeds, sizes)
def test_gibbs_divergence_is_positive_unless_the_two_agree(seed: int, vocabulary: int):
    p, q = normal(2, vocabulary, seed=seed).softmax(-1)
    assert kl_divergence(p, q) > 0
    assert kl_divergence(p, p) == 0


@given(seeds, sizes)
def test_entropy_is_largest_when_all_is_equally_likely(seed: int, vocabulary: int):
    p = normal(vocabulary, seed=seed).softmax(-1)
    uniform = torch.full((vocabulary,), 1 / vocabulary, dtype=torch.float64)
    assert 0 < entropy(p) < math.log(vocabulary)
    assert entropy(uniform).item() == pytest.approx(math.log(vocabulary))
    assert kl_divergence(p, uniform).item() == pytest.approx(math.log(vocabulary) - entropy(p))


@given(seeds)
def test_entropies_of_independent_things_add(seed: int):
    p, q = normal(5, seed=seed).softmax(-1), normal(4, seed=seed + 1).softmax(-1)
    torch.testing.assert_close(entropy(torch.outer(p, q).flatten()), entropy(p) + entropy(q))


def test_entropy_and_divergence_equal_pytorchs():
    p, q = normal(2, 4, 6).softmax(-1)
    P, Q = (torch.distributions.Categorical(probs=x) for x in (p, q))
    torch.testing.assert_close(entropy(p), P.entropy())
    torch.testing.assert_close(kl_divergence(p, q), torch.distributions.kl_divergence(P, Q))


def test_what_never_happens_adds_nothing():
    p = torch.tensor([0.5, 0.5, 0.0])
    assert entropy(p).item() == pytest.approx(math.log(2))
    assert entropy(torch.tensor([0.0, 1.0])) == 0
    assert kl_divergence(p, torch.tensor([0.25, 0.25, 0.5])).item() == pytest.approx(math.log(2))
    assert kl_divergence(p, p) == 0


def test_a_divergence_is_infinite_where_the_possible_is_called_impossible():
    assert kl_divergence(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])) == math.inf


def test_the_two_divergences_of_a_pair_differ():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    assert kl_divergence(p, q).item() == pytest.approx(math.log(5 / 3), abs=1e-6)
    assert kl_divergence(q, p).item() == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))


# Log-softmax


@given(seeds, st.sampled_from([-3, -2, -1, 0, 1, 2]))
def test_log_softmax_equals_pytorchs_along_any_dimension(seed: int, dim: int):
    logits = 10 * normal(3, 4, 5, seed=seed)
    torch.testing.assert_close(log_softmax(logits, dim), torch.log_softmax(logits, dim))


@given(seeds, st.floats(-1e4, 1e4))
def test_log_softmax_does_not_see_what_is_added_to_all_logits(seed: int, shift: float):
    logits = normal(3, 5, seed=seed)
    torch.testing.assert_close(log_softmax(logits + shift), log_softmax(logits), atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1.0, 1000.0, -1000.0])
def test_log_softmax_stays_finite_in_every_dtype(dtype: torch.dtype, size: float):
    logits = torch.tensor([size, size - 1, 0.0], dtype=dtype)
    assert log_softmax(logits).dtype == dtype
    torch.testing.assert_close(log_softmax(logits), torch.log_softmax(logits, -1))
    assert log_softmax(logits).isfinite().all()


def test_log_softmax_keeps_a_forbidden_logit_forbidden():
    found = log_softmax(torch.tensor([-math.inf, 0.0, 0.0]))
    torch.testing.assert_close(found, torch.tensor([-math.inf, -math.log(2), -math.log(2)]))


# Cross-entropy from logits


@given(seeds)
def test_cross_entropy_equals_pytorchs_with_padding(seed: int):
    logits, targets = padded_batch(seed)
    torch.testing.assert_close(cross_entropy(logits, targets), oracle(logits, targets))


@pytest.mark.parametrize("ignore_index", [-100, -1, 3])
def test_any_index_can_be_the_ignored_one(ignore_index: int):
    logits, targets = normal(6, 5), torch.tensor([3, 1, ignore_index, 0, ignore_index, 4])
    expected = oracle(logits, targets, ignore_index=ignore_index)
    torch.testing.assert_close(cross_entropy(logits, targets, ignore_index), expected)


@given(seeds, sizes)
def test_a_uniform_model_loses_ln_v_whatever_comes(seed: int, vocabulary: int):
    logits = normal(1, seed=seed).expand(4, vocabulary)
    loss = cross_entropy(logits, whole(vocabulary, 4, seed=seed))
    assert loss.item() == pytest.approx(math.log(vocabulary))


def test_an_untrained_model_of_49152_tokens_loses_10_80_nats():
    assert cross_entropy(torch.zeros(2, 49_152), torch.tensor([7, 49_151])).item() == pytest.approx(
        10.8027, abs=1e-4
    )


def test_padding_changes_nothing():
    logits, targets = normal(2, 4, 7), whole(7, 2, 4)
    more = torch.cat([logits, 100 * normal(2, 3, 7, seed=1)], 1)
    padded = F.pad(targets, (0, 3), value=-100)
    torch.testing.assert_close(cross_entropy(more, padded), cross_entropy(logits, targets))


def test_huge_logits_give_the_exact_loss():
    logits = torch.tensor([[1000.0, 0.0], [0.0, -1000.0]])
    assert cross_entropy(logits, torch.tensor([1, 1])) == 1000
    assert cross_entropy(logits, torch.tensor([0, 0])) == 0


@pytest.mark.parametrize("function", [cross_entropy, cross_entropy_gradient])
def test_no_counted_target_is_an_error(function):
    with pytest.raises(ValueError, match="Every target is ignored"):
        function(normal(2, 3, 5), torch.full((2, 3), -100))
    with pytest.raises(ValueError, match="Every target is ignored"):
        function(normal(0, 5), whole(5, 0))


# Its gradient


@given(seeds)
def test_the_gradient_equals_autograds(seed: int):
    logits, targets = padded_batch(seed)
    leaf = logits.clone().requires_grad_(True)
    oracle(leaf, targets).backward()
    torch.testing.assert_close(cross_entropy_gradient(logits, targets), leaf.grad)


def test_cross_entropy_passes_gradcheck():
    logits, targets = padded_batch()
    leaf = logits.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, targets), leaf)


@given(seeds)
def test_the_gradient_of_a_row_sums_to_zero_and_of_an_ignored_row_is_zero(seed: int):
    logits, targets = padded_batch(seed)
    gradient = cross_entropy_gradient(logits, targets)
    torch.testing.assert_close(
        gradient.sum(-1), torch.zeros(3, 5, dtype=torch.float64), atol=1e-12, rtol=0
    )
    assert not gradient[targets == -100].any()
    assert (gradient[targets != -100] < 0).sum(-1).eq(1).all()  # the target's logit alone rises


def test_the_gradient_of_the_fruits():
    gradient = cross_entropy_gradient(torch.tensor([[0.1, 0.7, 0.2]]).log(), torch.tensor([2]))
    torch.testing.assert_close(gradient, torch.tensor([[0.1, 0.7, -0.8]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_loss_and_gradient_keep_the_dtype(dtype: torch.dtype):
    logits, targets = padded_batch()
    assert cross_entropy(logits.to(dtype), targets).dtype == dtype
    assert cross_entropy_gradient(logits.to(dtype), targets).dtype == dtype


def test_steps_along_the_gradient_reach_the_entropy_and_no_less():
    """A table of logits learns the frequencies of what it sees: its loss ends at their entropy."""
    words = torch.tensor([0, 1, 1, 1, 1, 1, 1, 2, 2, 2])
    logits = torch.zeros(3, dtype=torch.float64)
    for _ in range(500):
        logits = logits - cross_entropy_gradient(logits.expand(10, 3), words).sum(0)
    floor = entropy(torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64))
    torch.testing.assert_close(cross_entropy(logits.expand(10, 3), words), floor)


# Labels and perplexity


@given(seeds, st.integers(1, 9))
def test_each_label_is_the_next_token(seed: int, length: int):
    ids = whole(50, 2, length, seed=seed)
    labels = shift_labels(ids)
    assert labels.shape == ids.shape
    assert torch.equal(labels[:, :-1], ids[:, 1:])
    assert labels[:, -1].eq(-100).all()


def test_shift_labels_leaves_its_input_alone_and_takes_other_indices():
    ids = torch.tensor([7, 3, 9])
    assert shift_labels(ids, ignore_index=-1).tolist() == [3, 9, -1]
    assert ids.tolist() == [7, 3, 9]


def test_shifted_labels_give_the_loss_that_transformers_give():
    """transformers shifts inside its loss: the logits of a token meet the token after it."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    logits, ids = normal(2, 6, 11).float(), whole(11, 2, 6)
    expected = ForCausalLMLoss(logits, ids, vocab_size=11)
    torch.testing.assert_close(cross_entropy(logits, shift_labels(ids)), expected)


@given(st.integers(1, 100_000))
def test_the_perplexity_of_a_uniform_model_is_the_size_of_its_vocabulary(vocabulary: int):
    loss = torch.tensor(math.log(vocabulary), dtype=torch.float64)
    assert perplexity_from_loss(loss).item() == pytest.approx(vocabulary)


def test_perplexity_is_one_for_certainty_and_without_bound_for_the_impossible():
    found = perplexity_from_loss(torch.tensor([0.0, math.inf]))
    assert found.tolist() == [1.0, math.inf]


@given(seeds)
def test_perplexity_is_the_inverse_of_the_geometric_mean_of_the_probabilities(seed: int):
    p, targets = normal(6, 5, seed=seed).softmax(-1), whole(5, 6, seed=seed)
    loss = cross_entropy_from_probabilities(p, targets)
    product = p[torch.arange(6), targets].prod()
    torch.testing.assert_close(perplexity_from_loss(loss), product ** (-1 / 6))
