"""Pretraining, argued from PyTorch's optimizer, closed forms, χ² tests and one big batch."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from llmkit.pretraining import (
    adamw_step,
    clip_gradients,
    clm_batch,
    cosine_schedule,
    decay_groups,
    evaluate,
    mask_tokens,
    mlm_loss,
    pack_blocks,
    train_step,
)
from llmkit.rnn import RecurrentLM
from llmkit.transformer import PRESETS, Llama

seeds = st.integers(0, 2**32 - 1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def whole(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


# Labels made from raw text


def test_documents_are_packed_end_to_end():
    blocks = pack_blocks([[1, 2, 3], [], [4, 5], [6, 7]], length=4, separator=0)
    assert blocks.tolist() == [[1, 2, 3, 0], [0, 4, 5, 0]]  # no block for 6, 7, 0


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), max_size=7), min_size=1), st.integers(1, 6))
def test_packing_loses_only_the_end(documents, length):
    stream = [token for document in documents for token in [*document, 0]]
    if len(stream) < length:
        with pytest.raises(ValueError, match=f"{len(stream)} tokens fill no block"):
            pack_blocks(documents, length, 0)
        return
    blocks = pack_blocks(iter(documents), length, 0)
    assert blocks.flatten().tolist() == stream[: len(stream) // length * length]
    assert blocks.shape[1] == length


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_a_label_is_the_token_that_follows(dtype):
    tokens = torch.arange(40, 60).to(dtype)
    input_ids, labels = clm_batch(tokens, torch.tensor([3, 0, 15]), length=4)
    assert input_ids.tolist() == [[43, 44, 45, 46], [40, 41, 42, 43], [55, 56, 57, 58]]
    assert torch.equal(labels, input_ids + 1)
    assert input_ids.dtype == labels.dtype == torch.int64


@pytest.mark.parametrize("start", [-1, 16])
def test_a_batch_that_leaves_the_stream_is_refused(start):
    with pytest.raises(ValueError, match=r"starts must lie in 0 … 15"):
        clm_batch(torch.arange(20), torch.tensor([start]), length=4)


MASK, VOCABULARY, SPECIAL = 4, 1000, (0, 1, 4)


@pytest.mark.parametrize("probability", [0.15, 0.4, 1.0])
def test_masks_come_in_their_proportions(probability):
    tokens = whole(VOCABULARY - 5, 200, 500) + 5  # none special
    generator = torch.Generator().manual_seed(1)
    masked, labels = mask_tokens(tokens, MASK, VOCABULARY, SPECIAL, probability, generator)
    chosen = labels != -100
    changed = chosen & (masked != MASK) & (masked != tokens)
    kinds = [~chosen, chosen & (masked == MASK), chosen & (masked == tokens), changed]
    counts = [int(kind.sum()) for kind in kinds]
    lucky = 0.1 / VOCABULARY  # a random token can be the mask, or the token itself
    shares = [1 - probability]
    shares += [probability * share for share in (0.8 + lucky, 0.1 + lucky, 0.1 - 2 * lucky)]
    expected = [share * tokens.numel() for share in shares]
    if probability == 1:
        assert counts[0] == 0
        counts, expected = counts[1:], expected[1:]
    assert stats.chisquare(counts, expected).pvalue > 1e-3
    if probability == 1:  # the random tokens are of every kind
        tenths = masked[changed] // 100
        assert stats.chisquare(tenths.bincount(minlength=10)).pvalue > 1e-3


@settings(deadline=None)
@given(seeds, st.floats(0, 1), st.sampled_from([(), SPECIAL]))
def test_masking_touches_chosen_tokens_only_and_no_special_one(seed, probability, special):
    tokens = whole(9, 5, 13, seed=seed)
    before = tokens.clone()
    generator = torch.Generator().manual_seed(seed)
    masked, labels = mask_tokens(tokens, MASK, 9, special, probability, generator)
    assert torch.equal(tokens, before)
    chosen = labels != -100
    assert torch.equal(labels[chosen], tokens[chosen])
    assert torch.equal(masked[~chosen], tokens[~chosen])
    assert not (chosen & torch.isin(tokens, torch.tensor(special, dtype=torch.long))).any()
    again = mask_tokens(tokens, MASK, 9, special, probability, generator.manual_seed(seed))
    assert torch.equal(again[0], masked)
    assert torch.equal(again[1], labels)


def test_bad_masks_are_refused():
    with pytest.raises(ValueError, match=r"probability must lie in 0 … 1, not 1\.5"):
        mask_tokens(torch.zeros(3), 4, 9, probability=1.5)
    with pytest.raises(ValueError, match=r"mask_id must lie in 0 … 8, not 9"):
        mask_tokens(torch.zeros(3), 9, 9)


def test_mlm_loss_is_pytorchs_over_chosen_positions():
    logits = normal(3, 5, 7).requires_grad_()
    labels = whole(7, 3, 5).masked_fill(whole(2, 3, 5, seed=1).bool(), -100)
    loss = mlm_loss(logits, labels)
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), labels.flatten()))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.equal(gradient.abs().sum(-1) > 0, labels != -100)
    assert torch.autograd.gradcheck(lambda x: mlm_loss(x, labels), logits)
    with pytest.raises(ValueError, match="Every target is ignored"):
        mlm_loss(logits, torch.full((3, 5), -100))


# Parts of an optimizer step


def test_schedule_at_the_points_that_have_closed_forms():
    lr = functools.partial(cosine_schedule, steps=110, peak=4.0, warmup_steps=10, floor=1.0)
    assert [lr(step) for step in (0, 4, 9, 10)] == pytest.approx([0.4, 2.0, 4.0, 4.0])
    middle, third = lr(60), lr(10 + 100 * 2 // 4 - 25)  # p = 1/2 and 1/4
    assert middle == pytest.approx((4 + 1) / 2)
    assert third == pytest.approx(1 + 3 * (1 + math.sqrt(0.5)) / 2)
    assert lr(110) == lr(500) == 1.0
    assert cosine_schedule(0, 1, 3.0) == 3.0


@settings(deadline=None)
@given(st.integers(1, 200), st.floats(0, 1), st.floats(0, 1))
def test_schedule_is_pytorchs_after_a_warm_up_that_rises(steps, warm, low):
    warmup, peak = round(warm * steps), 2.0
    rates = [cosine_schedule(s, steps, peak, warmup, low) for s in range(steps)]
    assert rates[:warmup] == pytest.approx([peak * (s + 1) / warmup for s in range(warmup)])
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warmup), low)
    for rate in rates[warmup:]:
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        oracle.step()


@pytest.mark.parametrize(("step", "warmup"), [(-1, 0), (0, 11), (0, -1)])
def test_impossible_schedules_are_refused(step, warmup):
    with pytest.raises(ValueError, match=rf"lie in 0 … 10, .* not {step} and {warmup}\."):
        cosine_schedule(step, 10, 1.0, warmup)


@settings(deadline=None)
@given(seeds, st.floats(0.01, 20))
def test_clipping_is_pytorchs(seed, max_norm):
    gradients = [normal(*shape, seed=seed + i) for i, shape in enumerate([(3, 4), (5,), ()])]
    before = [gradient.clone() for gradient in gradients]
    parameters = [torch.zeros_like(g).requires_grad_() for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    expected = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    clipped, norm = clip_gradients(gradients, max_norm)
    torch.testing.assert_close(norm, expected)
    for ours, theirs in zip(clipped, parameters, strict=True):  # theirs adds 1e-6 to the norm
        torch.testing.assert_close(ours, theirs.grad, rtol=1e-4, atol=1e-6)
    assert all(map(torch.equal, gradients, before))
    if norm <= max_norm:
        assert all(map(torch.equal, clipped, before))
    else:
        after = torch.cat([g.flatten() for g in clipped]).norm()
        assert after.item() == pytest.approx(max_norm)


def test_clipping_at_its_edges():
    gradients = [torch.tensor([3.0, 4.0])]
    assert torch.equal(clip_gradients(gradients, 5.0)[0][0], gradients[0])  # just at the limit
    zero, norm = clip_gradients([torch.zeros(3)], 1.0)
    assert torch.equal(zero[0], torch.zeros(3))
    assert norm == 0
    with pytest.raises(ValueError, match="max_norm must be above 0, not 0"):
        clip_gradients(gradients, 0)


@settings(deadline=None)
@given(seeds, st.floats(0, 0.5), st.floats(0, 0.99), st.floats(0.5, 0.999))
def test_adamw_is_pytorchs(seed, weight_decay, beta1, beta2):
    ours = normal(3, 4, seed=seed)
    theirs = ours.clone().requires_grad_()
    options = {"lr": 0.02, "betas": (beta1, beta2), "eps": 1e-6, "weight_decay": weight_decay}
    oracle = torch.optim.AdamW([theirs], **options)
    mean = square = torch.zeros_like(ours)
    for step in range(1, 6):
        gradient = normal(3, 4, seed=seed + step)
        theirs.grad = gradient.clone()
        oracle.step()
        arguments = [ours, gradient, mean, square]
        kept = [argument.clone() for argument in arguments]
        ours, mean, square = adamw_step(*arguments, step, **options)
        assert all(map(torch.equal, arguments, kept))
        torch.testing.assert_close(ours, theirs.detach())
    torch.testing.assert_close(mean, oracle.state[theirs]["exp_avg"])
    torch.testing.assert_close(square, oracle.state[theirs]["exp_avg_sq"])


def test_adamws_first_step_is_the_sign_of_the_gradient():
    gradient = torch.tensor([1e-3, -20.0, 0.5], dtype=torch.float64)
    zero = torch.zeros_like(gradient)
    parameter, _, _ = adamw_step(zero, gradient, zero, zero, 1, lr=0.1, weight_decay=0.5)
    torch.testing.assert_close(parameter, -0.1 * gradient.sign(), rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="step counts from 1, but is 0"):
        adamw_step(zero, gradient, zero, zero, 0, lr=0.1)


def test_only_matrices_decay_and_every_parameter_is_in_one_group():
    model = Llama(PRESETS["tiny"])
    decay, keep = decay_groups(model, 0.3)
    assert (decay["weight_decay"], keep["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in decay["params"]} == {2}
    assert len(keep["params"]) == 2 * 2 + 1  # two norms a block, and the last
    assert len(decay["params"]) + len(keep["params"]) == len(list(model.parameters()))


# The step


def recurrent() -> RecurrentLM:
    torch.manual_seed(0)
    return RecurrentLM(11, 6).double()


def ragged_batch() -> tuple[Tensor, Tensor]:
    """Sequences with 8, 1, 5, 0, 3 and 7 targets."""
    input_ids, labels = whole(11, 6, 8), whole(11, 6, 8, seed=1)
    for row, count in enumerate([8, 1, 5, 0, 3, 7]):
        labels[row, count:] = -100
    return input_ids, labels


@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_with_unequal_targets_equal_one_big_batch(size):
    input_ids, labels = ragged_batch()
    one, many = recurrent(), recurrent()
    step = functools.partial(train_step, max_norm=0.1)
    pieces = list(zip(input_ids.split(size), labels.split(size), strict=True))
    for _ in range(3):
        first = step(one, torch.optim.SGD(one.parameters(), 0.5), [(input_ids, labels)])
        second = step(many, torch.optim.SGD(many.parameters(), 0.5), pieces)
        assert first == pytest.approx(second, rel=1e-10)
    for p, q in zip(one.parameters(), many.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_a_step_is_what_pytorch_does():
    input_ids, labels = ragged_batch()
    ours, theirs = recurrent(), recurrent()
    optimizer = torch.optim.AdamW(ours.parameters(), 0.01)
    oracle = torch.optim.AdamW(theirs.parameters(), 0.01)
    for _ in range(3):
        loss, norm = train_step(ours, optimizer, [(input_ids, labels)], max_norm=0.5)
        oracle.zero_grad()
        expected = F.cross_entropy(theirs(input_ids).flatten(0, 1), labels.flatten())
        expected.backward()
        length = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        oracle.step()
        assert (loss, norm) == pytest.approx((expected.item(), length.item()), rel=1e-9)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_a_step_that_cannot_be_taken_leaves_the_weights():
    input_ids, labels = ragged_batch()
    model = recurrent()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="hold no target"):
        train_step(model, optimizer, [(input_ids, torch.full_like(labels, -100))])
    with pytest.raises(FloatingPointError, match=r"norm is nan .* lower the learning rate"):
        train_step(lambda ids: model(ids) * math.nan, optimizer, [(input_ids, labels)])
    assert all(map(torch.equal, before, model.parameters()))


def test_evaluation_is_the_mean_over_every_target():
    model, tokens = recurrent().train(), whole(11, 83)
    expected = []
    for start in range(0, 80, 8):
        ids = tokens[start : start + 9]
        expected.append(F.cross_entropy(model(ids[None, :-1])[0].float(), ids[1:]).item())
    assert evaluate(model, tokens, 8) == pytest.approx(sum(expected) / 10, rel=1e-6)
    assert evaluate(model, tokens, 8, batch_size=3) == pytest.approx(sum(expected) / 10, rel=1e-6)
    few = evaluate(model, tokens, 8, max_sequences=2)
    assert few == pytest.approx((expected[0] + expected[5]) / 2, rel=1e-6)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    mask = functools.partial(mask_tokens, mask_id=10, vocab_size=11)
    assert evaluate(model, tokens, 8, mask=mask) == evaluate(model, tokens, 8, mask=mask)
    with pytest.raises(ValueError, match="8 tokens hold no sequence of length 8"):
        evaluate(model, tokens[:8], 8)
    with pytest.raises(ValueError, match="No token was masked"):
        evaluate(model, tokens, 8, mask=functools.partial(mask, probability=0.0))
