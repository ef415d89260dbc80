"""A whole training run: `pretrain`, on one device or, started by `torchrun`, on many.

torchrun --nproc-per-node 8 -m llmkit.training --checkpoint run.pt --parallel fsdp
"""

import contextlib
import functools
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from torch import Tensor, nn
from tqdm.auto import tqdm

from llmkit import distributed
from llmkit.assets import AssetError, shakespeare_text
from llmkit.device import parse_device
from llmkit.losses import IGNORE_INDEX
from llmkit.pretraining import (
    Batch,
    clm_batch,
    cosine_schedule,
    decay_groups,
    evaluate,
    train_step,
)
from llmkit.transformer import PRESETS, Llama, LlamaConfig


@dataclass(frozen=True)
class PretrainingConfig:
    """What a run computes; how and where it computes is told to `pretrain`.

    batch_size:   sequences per optimizer step, over all micro-batches and processes
    length:       tokens per sequence
    peak_lr, floor_lr, warmup_steps: see `cosine_schedule`
    weight_decay: of matrices; gains and biases do not decay
    max_norm:     see `clip_gradients`
    """

    steps: int = 1000
    batch_size: int = 32
    length: int = 128
    peak_lr: float = 1e-3
    floor_lr: float = 0.0
    warmup_steps: int = 0
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    max_norm: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "batch_size", "length", "peak_lr", "max_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}.")
        self.lr(0)  # which checks the warm-up

    def lr(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        return cosine_schedule(step, self.steps, self.peak_lr, self.warmup_steps, self.floor_lr)


# About 75 s on 2 cores; the last loss, on 256 sequences held out, was 1.779, 1.801 and 1.793 nats
# per byte with the seeds 0, 1 and 2. A model that knows each byte's frequency alone has 3.33.
SHAKESPEARE_LLAMA = LlamaConfig(
    vocab_size=256,
    hidden_size=128,
    intermediate_size=344,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
SHAKESPEARE = PretrainingConfig(
    steps=2000,
    batch_size=8,
    length=64,
    peak_lr=3e-3,
    floor_lr=1.5e-4,
    warmup_steps=100,
    betas=(0.9, 0.99),
)


class Record(NamedTuple):
    """One optimizer step: losses in nats per target, `held_out` where it was measured."""

    step: int  # from 1
    loss: float
    held_out: float | None
    lr: float
    gradient_norm: float


def pretrain(
    model: nn.Module,
    tokens: Tensor,
    held_out: Tensor,
    config: PretrainingConfig,
    *,
    mask: Callable[..., Batch] | None = None,
    checkpoint: str | Path | None = None,
    save_every: int = 500,
    eval_every: int = 100,
    eval_sequences: int = 64,
    micro_batch_size: int | None = None,
    on_step: Callable[[Record], object] | None = None,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    parallel: str = "ddp",
    progress: bool = True,
) -> list[Record]:
    """Train a model, which maps ids (B, T) to logits (B, T, V), on a stream of tokens (N,).

    mask:             None trains on next tokens; `partial(mask_tokens, mask_id=…, vocab_size=…)`
                      on masked ones
    checkpoint:       a file. If it exists, the run goes on from it: bit for bit as if it had never
                      stopped, on a CPU. It is written every `save_every` steps, at the end, and on
                      Ctrl-C or SIGTERM, which end the run after the step at hand (a second Ctrl-C
                      ends it at once). Its "model" is a state dict: see `torch.load`
    eval_every, eval_sequences: how often the loss on `held_out` is measured, on how much of it
    micro_batch_size: sequences at a time in one process: less memory, the same result
    on_step:          called with each step's `Record`, to draw a live curve, say
    device:           see `llmkit.device.parse_device`; the model is moved there
    dtype:            of the computation, the model's own or bfloat16 (autocast); the default is
                      bfloat16 on CUDA, else the model's own
    parallel:         under `torchrun`, "ddp" or "fsdp": see `llmkit.distributed`. After "fsdp" the
                      given model stays cut into shares; the checkpoint holds it whole

    Returns a record of every step so far, fewer than config.steps if the run was stopped.
    Raises ValueError for what cannot be trained, FloatingPointError if the training diverges.
    """
    place = parse_device(device)
    own = next(model.parameters()).dtype
    dtype = dtype or (torch.bfloat16 if place.type == "cuda" else own)
    if dtype not in (own, torch.bfloat16) or dtype == torch.float16:
        raise ValueError(f"dtype must be bfloat16, or the model's own {own}, not {dtype}.")
    every = {"save_every": save_every, "eval_every": eval_every, "eval_sequences": eval_sequences}
    _check(model, {"tokens": tokens, "held_out": held_out}, config, every, micro_batch_size)
    checkpoint = None if checkpoint is None else Path(checkpoint)
    with distributed.process_group(place) as place, _stop_signals() as told_to_stop:
        rank, world = distributed.rank(), distributed.world_size()
        if config.batch_size % world:
            raise ValueError(f"{world} processes cannot share a batch_size of {config.batch_size}.")
        state = _saved_state(checkpoint, model, config)
        model = distributed.parallelize(model, parallel, place, dtype)
        groups = decay_groups(model, config.weight_decay)
        optimizer = torch.optim.AdamW(groups, config.peak_lr, config.betas, fused=True)
        records = []
        if state is not None:
            distributed.restore_state(state, model, optimizer)
            records = [Record(*record) for record in state["records"]]
            torch.set_rng_state(state["rng"])
            del state  # as large as the model and its moments

        low = dtype == torch.bfloat16
        autocast = functools.partial(torch.autocast, place.type, torch.bfloat16, enabled=low)

        def forward(input_ids: Tensor) -> Tensor:
            with autocast():
                logits = model(input_ids)
            return logits.float() if low else logits

        model.train()
        steps = tqdm(
            range(len(records), config.steps),
            desc="pretraining",
            total=config.steps,
            initial=len(records),
            unit="step",
            disable=rank > 0 or not progress,
        )
        for step in steps:
            input_ids, labels = batch(tokens, config, step, mask)
            size = micro_batch_size or config.batch_size
            mine = [t[rank::world].to(place).split(size) for t in (input_ids, labels)]
            for group in optimizer.param_groups:
                group["lr"] = config.lr(step)
            loss, norm = train_step(
                forward,
                optimizer,
                distributed.exchange_once(model, list(zip(*mine, strict=True))),
                config.max_norm,
                num_targets=int((labels != IGNORE_INDEX).sum()) / world,
            )
            # all processes stop after the same step, whichever of them was told to
            loss, stop = distributed.sum_over_processes([loss / world, told_to_stop()], place)
            measured, last = None, step + 1 == config.steps
            if last or (step + 1) % eval_every == 0:
                with autocast():
                    measured = evaluate(model, held_out, config.length, eval_sequences, mask)
            records.append(Record(step + 1, loss, measured, config.lr(step), norm))
            if checkpoint and (last or stop or (step + 1) % save_every == 0):
                progressed = {
                    "config": asdict(config),
                    "records": [tuple(record) for record in records],
                    "rng": torch.get_rng_state(),
                }
                distributed.save_state(checkpoint, model, optimizer, progressed)
            steps.set_postfix_str(_losses(records), refresh=False)
            if on_step is not None and rank == 0:
                on_step(records[-1])
            if stop:
                break
    return records


def batch(
    tokens: Tensor, config: PretrainingConfig, step: int, mask: Callable[..., Batch] | None = None
) -> Batch:
    """The batch of a step, counted from 0: every block of the stream once an epoch, shuffled.

    A function of the step alone: so a run that goes on needs to know no other position in the data.

    Shapes: tokens (N,) -> two of (batch_size, length).
    """
    num_blocks = (len(tokens) - 1) // config.length  # the last label takes one more token
    first = step * config.batch_size
    places = [divmod(first + i, num_blocks) for i in range(config.batch_size)]
    blocks = torch.stack([_shuffled(num_blocks, config.seed, epoch)[i] for epoch, i in places])
    input_ids, labels = clm_batch(tokens, blocks * config.length, config.length)
    if mask is None:
        return input_ids, labels
    return mask(input_ids, generator=_generator(config.seed, step))


@functools.lru_cache(maxsize=2)  # a batch can reach from one epoch into the next
def _shuffled(num_blocks: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(num_blocks, generator=_generator(seed, epoch))


def _generator(seed: int, number: int) -> torch.Generator:
    # PyTorch's generator on a CPU looks at the seed's last 32 bits only
    return torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**32)


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """A function that says whether Ctrl-C, or SIGTERM from a cluster, has come since."""
    stop = threading.Event()

    def note(number: int, frame: object) -> None:
        # torchrun passes on to all processes what the terminal has already sent them
        if stop.is_set() and number == signal.SIGINT and distributed.world_size() == 1:
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():  # signals go elsewhere
        yield stop.is_set
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _saved_state(
    checkpoint: Path | None, model: nn.Module, config: PretrainingConfig
) -> dict[str, Any] | None:
    if checkpoint is None or not checkpoint.exists():
        return None
    state = distributed.read_state(checkpoint, model)
    for name, here in asdict(config).items():
        if state["config"].get(name) != here:
            raise ValueError(
                f"{checkpoint} belongs to a run with {name} {state['config'].get(name)}, not "
                f"{here}: give the same config, or another checkpoint."
            )
    return state


def _check(
    model: nn.Module,
    streams: dict[str, Tensor],
    config: PretrainingConfig,
    every: dict[str, int],
    micro_batch_size: int | None,
) -> None:
    for name, number in {**every, "micro_batch_size": micro_batch_size}.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}.")
    embedding = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    for name, stream in streams.items():
        if stream.ndim != 1 or stream.is_floating_point() or len(stream) <= config.length:
            raise ValueError(
                f"{name} must be one stream of at least {config.length + 1} integers, "
                f"not {stream.dtype} of shape {tuple(stream.shape)}."
            )
        largest = int(stream.cpu().numpy().max())  # torch's own lacks uint16
        if embedding is not None and largest >= embedding.num_embeddings:
            raise ValueError(
                f"{name} holds token {largest}, but the model's vocabulary ends at "
                f"{embedding.num_embeddings - 1}."
            )


def _losses(records: list[Record]) -> str:
    measured = [record.held_out for record in records if record.held_out is not None]
    line = f"loss {records[-1].loss:.3f}"
    return f"{line}, held-out {measured[-1]:.3f}" if measured else line


def byte_tokens(text: str) -> Tensor:
    """The simplest tokens: a text's bytes in UTF-8, a vocabulary of 256. Shapes: -> (N,) uint8."""
    return torch.from_numpy(np.frombuffer(bytearray(text, "utf-8"), dtype=np.uint8))


def hold_out(tokens: Tensor, fraction: float = 0.1) -> tuple[Tensor, Tensor]:
    """A stream cut in two: its beginning to train on, its end to measure on."""
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, not {fraction}.")
    cut = len(tokens) - round(fraction * len(tokens))
    return tokens[:cut], tokens[cut:]


def main(
    text: Annotated[
        Path | None, typer.Option(help="A text file; without it, Shakespeare's works.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Where the run is kept, and goes on from.")
    ] = None,
    preset: Annotated[
        str, typer.Option(help="Shape of the Llama: small, or a preset of llmkit.transformer.")
    ] = "small",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = SHAKESPEARE.steps,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Sequences per step, over all processes.")
    ] = SHAKESPEARE.batch_size,
    micro_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Sequences at a time in one process.")
    ] = None,
    length: Annotated[int, typer.Option(min=1, help="Bytes per sequence.")] = SHAKESPEARE.length,
    peak_lr: Annotated[float, typer.Option(help="Highest learning rate.")] = SHAKESPEARE.peak_lr,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and batches.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    parallel: Annotated[str, typer.Option(help="Under torchrun: ddp or fsdp.")] = "ddp",
) -> None:
    """Pretrain a Llama on the bytes of a text. Ctrl-C saves; the same command goes on."""
    if preset != "small" and preset not in PRESETS:
        names = ", ".join(["small", *PRESETS])
        raise typer.BadParameter(f"{preset!r} is not one of {names}.", param_hint="--preset")
    shape = replace(PRESETS.get(preset, SHAKESPEARE_LLAMA), vocab_size=256)
    try:
        words = shakespeare_text() if text is None else text.read_text(encoding="utf-8")
        tokens, held_out = hold_out(byte_tokens(words))
        config = replace(
            SHAKESPEARE,
            steps=steps,
            batch_size=batch_size,
            length=length,
            peak_lr=peak_lr,
            warmup_steps=min(SHAKESPEARE.warmup_steps, steps // 10),
            seed=seed,
        )
        torch.manual_seed(seed)
        records = pretrain(
            Llama(shape),
            tokens,
            held_out,
            config,
            checkpoint=checkpoint,
            micro_batch_size=micro_batch_size,
            device=device,
            parallel=parallel,
        )
    except (ValueError, FloatingPointError, OSError, AssetError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if os.environ.get("RANK", "0") != "0":  # of torchrun's processes the first one reports
        raise typer.Exit(130 if len(records) < steps else 0)
    if len(records) < steps:
        kept = f"saved in {checkpoint}; the same command goes on" if checkpoint else "nothing kept"
        typer.echo(f"Stopped after step {len(records)} of {steps}: {kept}.", err=True)
        raise typer.Exit(130)
    loss = records[-1].held_out
    typer.echo(f"held-out loss {loss:.4f} nats per byte ({loss / math.log(2):.4f} bits)")


if __name__ == "__main__":
    typer.run(main)
