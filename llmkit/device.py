"""Where a model computes, and in what number format."""

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def best_device() -> torch.device:
    """The fastest kind of device this machine has: cuda, else mps, else cpu."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def parse_device(name: str) -> torch.device:
    """The device of that name: "auto" (see `best_device`), "cpu", "cuda", "cuda:1" or "mps".

    Raises ValueError, in one sentence, where there is no such device on this machine.
    """
    if name == "auto":
        return best_device()
    kind, _, index = name.partition(":")
    counts = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if kind not in counts or (index and not index.isdecimal()):
        raise ValueError(f"{name!r} is not a device: use auto, cpu, cuda, cuda:N or mps.")
    if int(index or 0) >= counts[kind]:
        has = ", ".join(k for k, n in counts.items() if n)
        raise ValueError(f"This machine has no device {name!r}; it has {has}.")
    return torch.device(name)


def parse_dtype(name: str) -> torch.dtype:
    """The dtype of that name: float32, bfloat16 or float16. Raises ValueError in one sentence."""
    if name not in DTYPES:
        raise ValueError(f"{name!r} is not a number format: use {', '.join(DTYPES)}.")
    return DTYPES[name]
