"""Recurrent networks: language models that read one token after another.

A recurrent network carries a state of fixed size from position to position. So generation costs the
same memory at any length, and training must wait: no position starts before the one before it ends.
"""

import torch
from torch import Tensor, nn


def rnn_forward(
    x: Tensor, state: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """The plain recurrent layer (Elman, 1990): h_t = tanh(W_ih x_t + W_hh h_{t−1} + b).

    Returns the state after every position, and after the last. N is the width of the state.

    Shapes: x (B, T, D), state (B, N), weight_ih (N, D), weight_hh (N, N), bias (N,)
    -> (B, T, N), (B, N). Raises ValueError if there is no position.
    """
    if x.shape[1] == 0:
        raise ValueError("x must hold at least one position (B, T, D), but T is 0.")
    states = []
    for t in range(x.shape[1]):
        state = torch.tanh(x[:, t] @ weight_ih.T + state @ weight_hh.T + bias)
        states.append(state)
    return torch.stack(states, dim=1), state


def gru_step(
    x: Tensor,
    state: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
) -> Tensor:
    """One step of a gated recurrent unit (Cho et al., 2014), in PyTorch's form: the new state.

    Gates say how much of the old state to forget (`reset`) and to keep (`update`). The weights of
    reset, update and candidate stand on top of one another, in that order.

    Shapes: x (B, D), state (B, N), weight_ih (3N, D), weight_hh (3N, N), biases (3N,) -> (B, N).
    """
    from_x = (x @ weight_ih.T + bias_ih).chunk(3, dim=-1)
    from_state = (state @ weight_hh.T + bias_hh).chunk(3, dim=-1)
    reset = torch.sigmoid(from_x[0] + from_state[0])
    update = torch.sigmoid(from_x[1] + from_state[1])
    candidate = torch.tanh(from_x[2] + reset * from_state[2])
    return (1 - update) * candidate + update * state


def lstm_step(
    x: Tensor,
    state: tuple[Tensor, Tensor],
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
) -> tuple[Tensor, Tensor]:
    """One step of long short-term memory (Hochreiter & Schmidhuber, 1997; Gers et al., 2000).

    The state is a pair: what the layer shows, and a cell that is only ever scaled and added to, so
    that gradients last. Weights of input gate, forget gate, candidate and output gate stand on top
    of one another, in that order.

    Shapes: x (B, D), state two of (B, N), weight_ih (4N, D), weight_hh (4N, N), biases (4N,)
    -> two of (B, N).
    """
    hidden, cell = state
    gates = x @ weight_ih.T + bias_ih + hidden @ weight_hh.T + bias_hh
    enter, keep, candidate, show = gates.chunk(4, dim=-1)
    cell = torch.sigmoid(keep) * cell + torch.sigmoid(enter) * torch.tanh(candidate)
    return torch.sigmoid(show) * torch.tanh(cell), cell


CELLS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}  # the fused form of the steps above


class RecurrentState:
    """What a recurrent model remembers of all it has read: the same size at any length.

    `tensors` is None at the start, then (L, B, N) for L layers; a pair of these for an LSTM.
    """

    def __init__(self):
        self.tensors: Tensor | tuple[Tensor, Tensor] | None = None

    def update(self, tensors: Tensor | tuple[Tensor, Tensor]) -> None:
        """Remember the new state, without its history: gradients do not reach back across calls."""
        is_pair = isinstance(tensors, tuple)
        self.tensors = tuple(t.detach() for t in tensors) if is_pair else tensors.detach()


class RecurrentLM(nn.Module):
    """A recurrent language model: embedding, layers of "rnn", "gru" or "lstm", head.

    Called as a `Llama` is; instead of a KV cache it takes a `RecurrentState`.
    """

    def __init__(self, vocab_size: int, hidden_size: int, num_layers: int = 1, cell: str = "gru"):
        super().__init__()
        if cell not in CELLS:
            raise ValueError(f"cell must be one of {', '.join(CELLS)}, not {cell!r}.")
        self.embed_tokens = nn.Embedding(vocab_size, hidden_size)
        self.layers = CELLS[cell](hidden_size, hidden_size, num_layers, batch_first=True)
        self.lm_head = nn.Linear(hidden_size, vocab_size, bias=False)

    def forward(self, input_ids: Tensor, state: RecurrentState | None = None) -> Tensor:
        """Logits of the token that follows each position. `state`, if given, is read and updated.

        Shapes: (B, T) -> (B, T, V). Raises ValueError for anything but a batch of tokens.
        """
        if input_ids.ndim != 2 or input_ids.shape[1] == 0:
            raise ValueError(
                f"input_ids must be (B, T) with T at least 1, not {tuple(input_ids.shape)}."
            )
        before = state.tensors if state is not None else None
        hidden, after = self.layers(self.embed_tokens(input_ids), before)
        if state is not None:
            state.update(after)
        return self.lm_head(hidden)


def sequential_depth(
    architecture: str, num_layers: int, length: int, generating: bool = False
) -> int:
    """Layers that must be computed one after another to process `length` positions.

    In training a "transformer" computes every position of a layer at once: one step per layer. A
    layer of an "rnn" takes one step per position, and each further layer can follow one step
    behind: length + num_layers − 1. Generating, both are sequential: a token must leave the last
    layer before the next one enters the first, so length · num_layers.

    Raises ValueError for another architecture or a number below 1.
    """
    if architecture not in ("rnn", "transformer"):
        raise ValueError(f"architecture must be 'rnn' or 'transformer', not {architecture!r}.")
    if num_layers < 1 or length < 1:
        raise ValueError(
            f"num_layers and length must be at least 1, not {num_layers} and {length}."
        )
    if generating:
        return num_layers * length
    return num_layers if architecture == "transformer" else length + num_layers - 1
