"""Small training runs, for tests in one process and in many."""

import signal
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from llmkit.rnn import RecurrentLM
from llmkit.training import PretrainingConfig, Record, pretrain
from llmkit.transformer import PRESETS, Llama

CONFIG = PretrainingConfig(steps=6, batch_size=4, length=8, peak_lr=0.01, warmup_steps=2)


def whole(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


STREAM, HELD_OUT = whole(256, 200), whole(256, 50, seed=1)


def run(
    model: nn.Module,
    tokens: Tensor = STREAM,
    held_out: Tensor = HELD_OUT,
    config: PretrainingConfig = CONFIG,
    **options,
) -> list[Record]:
    """`pretrain`, by default small, quiet and on the CPU."""
    options = {"device": "cpu", "progress": False, **options}
    return pretrain(model, tokens, held_out, config, **options)


def tied_llama() -> nn.Module:
    return Llama(replace(PRESETS["tiny"], tie_word_embeddings=True))


def gru() -> nn.Module:
    return RecurrentLM(256, 16)


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Embedding(256, 16), nn.Dropout(0.3), nn.Linear(16, 256))


def fresh(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def stop_after(step: int) -> Callable[[Record], None]:
    """Ctrl-C as the step before ends: the next one, then at hand, is still finished."""
    return lambda record: signal.raise_signal(signal.SIGINT) if record.step == step - 1 else None
