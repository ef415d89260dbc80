"""Many processes train one model: data parallelism, and states that survive a stop.

`torchrun` starts the processes. Each computes the gradient of its part of a batch, and the mean of
all gradients moves every copy alike. "ddp" (Li et al., 2020) keeps the whole model in each process;
"fsdp" (FSDP2; Zhao et al., 2023) keeps only a share of every parameter, gradient and moment there,
and brings a layer together while it computes: for models that outgrow one GPU.

Everything here works in a single process too, where it does nothing special.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

PARALLEL = ("ddp", "fsdp")


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that `torchrun` started, if it did; yields this process's own device."""
    if "LOCAL_RANK" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    joins = not dist.is_initialized()
    if joins:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        if joins:
            dist.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_processes(values: Sequence[float], device: torch.device) -> list[float]:
    """Each value, summed over all processes."""
    if world_size() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def parallelize(
    model: nn.Module, parallel: str, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """The model as it is to be called, on its device; all processes get the first one's weights.

    `dtype` is that of FSDP's computation; gradients are averaged in the parameters' own.
    Raises ValueError for an unknown `parallel`.
    """
    if parallel not in PARALLEL:
        raise ValueError(f"parallel must be one of {', '.join(PARALLEL)}, not {parallel!r}.")
    if world_size() == 1:
        return model.to(device)
    if parallel == "ddp":
        model.to(device)
        return nn.parallel.DistributedDataParallel(model)

    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    for tensor in [*model.parameters(), *model.buffers()]:
        dist.broadcast(tensor.detach(), src=0)
    mesh = dist.init_device_mesh(device.type, (world_size(),))
    weights = next(model.parameters()).dtype
    precision = MixedPrecisionPolicy(
        param_dtype=dtype,
        reduce_dtype=weights,
        cast_forward_inputs=False,  # it would round the layers' RoPE tables too
    )
    # one layer at a time goes to the device whole, and is then cut into shares
    for stack in [m for m in model.modules() if isinstance(m, nn.ModuleList)]:
        for layer in stack:
            fully_shard(layer, mesh=mesh, mp_policy=precision)
    return fully_shard(model, mesh=mesh, mp_policy=precision)


def exchange_once(
    model: nn.Module, micro_batches: Sequence[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The micro-batches; gradients travel between the processes with the last one alone."""
    for i, micro_batch in enumerate(micro_batches):
        last = i == len(micro_batches) - 1
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model.require_backward_grad_sync = last
        elif hasattr(model, "set_requires_gradient_sync"):  # an FSDP2 model
            model.set_requires_gradient_sync(last)
        yield micro_batch


def save_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]
) -> None:
    """Write the whole training state to `path`, all at once or not at all.

    The file reads the same whether one process wrote it or many, by DDP or FSDP; its "model" is a
    plain state dict. All processes call this; the first writes.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, moments = get_state_dict(model, optimizer, options=options)
    if rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(unfinished, "wb") as file:
                torch.save({"model": weights, "optimizer": moments, **progress}, file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    if world_size() > 1:
        dist.barrier()


def read_state(path: Path, model: nn.Module) -> dict[str, Any]:
    """The training state that `save_state` wrote, checked against the model but not yet in use.

    Raises ValueError for a file that is damaged, something else, or of another model.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved = {name: tuple(weight.shape) for name, weight in state["model"].items()}
    except Exception as error:  # torch raises a dozen kinds for what is no file of its own
        raise ValueError(
            f"{path} is damaged, or no checkpoint of a pretraining: "
            "delete it to start anew, or choose another checkpoint."
        ) from error
    here = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    for name in {**here, **saved}:
        if here.get(name) != saved.get(name):
            raise ValueError(
                f"{path} holds another model: its {name} is {saved.get(name, 'missing')}, here it "
                f"is {here.get(name, 'missing')}; choose another checkpoint, or delete this one."
            )
    return state


def restore_state(
    state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Put a state from `read_state` into the model and its fresh optimizer."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=StateDictOptions(full_state_dict=True),
    )
