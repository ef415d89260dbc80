"""Recurrent networks, argued from PyTorch's own, autograd's numerical check and longest paths."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from llmkit.rnn import (
    CELLS,
    RecurrentLM,
    RecurrentState,
    gru_step,
    lstm_step,
    rnn_forward,
    sequential_depth,
)

sizes = st.integers(1, 6)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def weights_of(layer: nn.Module) -> list[Tensor]:
    names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    return [getattr(layer, name).detach() for name in names]


@settings(deadline=None)
@given(sizes, sizes, sizes, sizes)
def test_a_plain_layer_is_pytorchs(batch, length, dim, width):
    layer = nn.RNN(dim, width, batch_first=True).double()
    weight_ih, weight_hh, bias_ih, bias_hh = weights_of(layer)
    x, state = normal(batch, length, dim), normal(batch, width, seed=1)
    states, last = rnn_forward(x, state, weight_ih, weight_hh, bias_ih + bias_hh)
    expected, expected_last = layer(x, state[None])
    torch.testing.assert_close(states, expected)
    torch.testing.assert_close(last, expected_last[0])


def test_a_plain_layer_by_hand():
    one = torch.ones(1, 1)
    x = torch.tensor([[[1.0], [0.0]]])
    states, last = rnn_forward(x, 0 * one, 2 * one, 3 * one, 0.5 * one[0])
    first = torch.tensor(2.5).tanh()
    second = (3 * first + 0.5).tanh()
    torch.testing.assert_close(states, torch.stack([first, second]).view(1, 2, 1))
    torch.testing.assert_close(last, second.view(1, 1))


@pytest.mark.parametrize(("step", "cell"), [(gru_step, "gru"), (lstm_step, "lstm")])
def test_gated_steps_are_pytorchs(step, cell):
    layer = CELLS[cell](3, 5, batch_first=True).double()
    x = normal(2, 7, 3)
    start = (normal(2, 5, seed=1), normal(2, 5, seed=2))
    state = start if cell == "lstm" else start[0]
    steps = []
    for t in range(7):
        state = step(x[:, t], state, *weights_of(layer))
        steps.append(state[0] if cell == "lstm" else state)
    before = tuple(s[None] for s in start) if cell == "lstm" else start[0][None]
    expected, after = layer(x, before)
    torch.testing.assert_close(torch.stack(steps, dim=1), expected)
    pairs = zip(state, after, strict=True) if cell == "lstm" else [(state, after)]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours[None], theirs)


def test_gradients_are_numerical_ones():
    x, state = normal(2, 3, 4), normal(2, 5, seed=1)
    plain = [normal(*shape, seed=i) for i, shape in enumerate([(5, 4), (5, 5), (5,)])]
    arguments = [t.requires_grad_() for t in (x, state, *plain)]
    assert torch.autograd.gradcheck(rnn_forward, arguments)
    for gates, step in ((3, gru_step), (4, lambda x, a, b, *rest: lstm_step(x, (a, b), *rest))):
        shapes = [(gates * 5, 4), (gates * 5, 5), (gates * 5,), (gates * 5,)]
        weights = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
        states = [normal(2, 5, seed=9 + i) for i in range(1 if gates == 3 else 2)]
        arguments = [t.requires_grad_() for t in (normal(2, 4), *states, *weights)]
        assert torch.autograd.gradcheck(step, arguments)


@pytest.mark.parametrize("cell", CELLS)
def test_reading_in_pieces_is_reading_at_once_and_the_state_does_not_grow(cell):
    torch.manual_seed(0)
    model = RecurrentLM(11, 6, num_layers=2, cell=cell).double()
    ids = torch.randint(11, (3, 20), generator=torch.Generator().manual_seed(0))
    state, pieces, numbers = RecurrentState(), [], set()
    for piece in ids.split([1, 7, 1, 11], dim=1):
        pieces.append(model(piece, state))
        tensors = state.tensors if cell == "lstm" else (state.tensors,)
        numbers.add(sum(t.numel() for t in tensors))
        assert not any(t.requires_grad for t in tensors)
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids))
    assert numbers == {2 * 3 * 6 * (2 if cell == "lstm" else 1)}


@pytest.mark.parametrize("cell", CELLS)
def test_no_position_sees_a_later_token(cell):
    model = RecurrentLM(11, 6, cell=cell)
    ids = torch.arange(10)[None]
    changed = ids.clone()
    changed[0, 6] = 10
    same = (model(ids) == model(changed)).all(-1)[0]
    assert same.tolist() == [True] * 6 + [False] * 4


def longest_chain(architecture: str, num_layers: int, length: int, generating: bool) -> int:
    """Count along every path of the graph of what waits for what."""

    @functools.cache
    def done(layer: int, position: int) -> int:
        waits = []
        if layer:
            below = range(position + 1) if architecture == "transformer" else [position]
            waits += [done(layer - 1, p) for p in below]
        if architecture == "rnn" and position:
            waits += [done(layer, position - 1)]
        if generating and position:  # its token is drawn from the last layer
            waits += [done(num_layers - 1, position - 1)]
        return 1 + max(waits, default=0)

    return max(done(layer, t) for layer in range(num_layers) for t in range(length))


@given(st.sampled_from(["rnn", "transformer"]), sizes, st.integers(1, 12), st.booleans())
def test_sequential_depth_is_the_longest_chain(architecture, num_layers, length, generating):
    expected = longest_chain(architecture, num_layers, length, generating)
    assert sequential_depth(architecture, num_layers, length, generating) == expected


def test_bad_input_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"cell must be one of rnn, gru, lstm, not 'cnn'\."):
        RecurrentLM(11, 6, cell="cnn")
    for shape in ((3,), (3, 0), (1, 2, 3)):
        with pytest.raises(ValueError, match=r"input_ids must be \(B, T\)"):
            RecurrentLM(11, 6)(torch.zeros(shape, dtype=torch.long))
    with pytest.raises(ValueError, match="at least one position"):
        rnn_forward(torch.zeros(2, 0, 3), *map(torch.zeros, [(2, 4), (4, 3), (4, 4), (4,)]))
    with pytest.raises(ValueError, match="'rnn' or 'transformer', not 'cnn'"):
        sequential_depth("cnn", 1, 1)
    with pytest.raises(ValueError, match="at least 1, not 2 and 0"):
        sequential_depth("rnn", 2, 0)
