"""The fast way through a Llama of int8 weights on a CPU: `native.c`, compiled on first use.

It needs a C compiler: what $CC names, or cc, gcc or clang. The result stays in the cache folder.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from llmkit.assets import cache_dir

# -ffast-math would be shorter, but in a library it may change how the whole process computes
FLAGS = (
    *("-O3", "-shared", "-fPIC", "-fopenmp-simd"),
    *("-ffinite-math-only", "-fno-math-errno", "-fno-trapping-math"),
)

# What `native.c` has inner loops for, the best first, and how a compiler is told.
VECTORS = {
    "AVX512_VNNI": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mfma"),
    "AVX2": ("-mavx2", "-mfma"),
    "any": (),
}


class NativeError(RuntimeError):
    """`native.c` cannot be compiled or loaded; the message says why."""


class Linear(ctypes.Structure):
    """One layer's int8 weight (N, K), N a multiple of 4 and K of 16, and float32 scale (N,)."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("outputs", ctypes.c_long),
        ("inputs", ctypes.c_long),
    )

    @classmethod
    def of(cls, weight: Tensor, scale: Tensor) -> "Linear":
        """Pointers only: the caller keeps both tensors alive, contiguous and on the CPU."""
        return cls(weight.data_ptr(), scale.data_ptr(), *weight.shape)


class Block(ctypes.Structure):
    """One Transformer block: its seven linear layers, its two norms' weights and its heads."""

    _fields_ = (
        *((name, Linear) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        ("attention_norm", ctypes.c_void_p),
        ("feedforward_norm", ctypes.c_void_p),
        ("eps", ctypes.c_float),
        ("heads", ctypes.c_long),
        ("kv_heads", ctypes.c_long),
        ("head_dim", ctypes.c_long),
    )


def vectors() -> str:
    """The best of VECTORS that this processor has."""
    known = torch.backends.cpu.get_cpu_capability()
    if known == "AVX512":
        features = getattr(torch.cpu, "get_capabilities", dict)()  # newer PyTorch knows
        return "AVX512_VNNI" if features.get("avx512_vnni") else "AVX2"
    return "AVX2" if known == "AVX2" else "any"


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled `native.c`. Raises NativeError."""
    flags = FLAGS + VECTORS[vectors()]
    source = (resources.files("llmkit") / "native.c").read_bytes()
    key = hashlib.sha256(source + " ".join((*flags, platform.platform())).encode()).hexdigest()
    path = cache_dir() / "native" / f"{key[:16]}.so"
    try:
        if not path.exists():
            _compile(source, flags, path)
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeError(f"{path} cannot be written or loaded ({error})") from error
    pointer, number = ctypes.c_void_p, ctypes.c_long
    loaded.linear.argtypes = (ctypes.POINTER(Linear), pointer, pointer, number)
    layers = ctypes.POINTER(Block), number
    loaded.blocks.argtypes = (*layers, pointer, number, *[pointer] * 4, *[number] * 3)
    return loaded


def _compile(source: bytes, flags: tuple[str, ...], path: Path) -> None:
    named = [shlex.split(os.environ.get("CC", "")), ["cc"], ["gcc"], ["clang"]]
    compiler = next((command for command in named if command and shutil.which(command[0])), None)
    if compiler is None:
        raise NativeError("there is no C compiler (cc, gcc or clang)")
    # PyTorch's own OpenMP, so that both share one team of threads; Apple's compiler has none
    openmp = [str(file) for file in (Path(torch.__file__).parent / "lib").glob("libgomp*")]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        code, built = Path(folder) / "native.c", Path(folder) / path.name
        code.write_bytes(source)
        for threads in (["-fopenmp", "-Wl,--as-needed", *openmp], []):
            command = [*compiler, *flags, str(code), "-o", str(built), *threads, "-lm"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                os.replace(built, path)
                return
    raise NativeError(f"{compiler[0]} cannot compile native.c ({done.stderr.strip()[-200:]})")


def linear(layer: Linear, x: Tensor) -> Tensor:
    """x Wᵀ from int8 weights. Shapes: x (..., K), in float32 and on the CPU -> (..., N)."""
    if x.shape[-1] != layer.inputs:
        raise ValueError(f"x has {x.shape[-1]} features, but the layer takes {layer.inputs}.")
    x = x.contiguous()
    y = x.new_empty(*x.shape[:-1], layer.outputs)
    rows = x.numel() // layer.inputs
    if library().linear(layer, x.data_ptr(), y.data_ptr(), rows):
        raise MemoryError(f"There is no memory for {rows} rows of {layer.inputs} int16 numbers.")
    return y


def blocks(
    layers: "ctypes.Array[Block]",
    x: Tensor,
    rope: tuple[Tensor, Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    offset: int,
    window: int | None = None,
) -> Tensor:
    """A stack of Transformer blocks for the tokens from position `offset` on, which it caches.

    Each token sees the positions up to its own, of these the last `window`.

    Shapes, all float32, contiguous and on the CPU: x (1, T, D), rope two of (T, d/2), for each
    block keys and values (1, K, capacity, d) -> (1, T, D).
    """
    y, (cos, sin) = x.clone(memory_format=torch.contiguous_format), rope
    pointers = ctypes.c_void_p * len(layers)
    capacity = keys[0].shape[2]
    if library().blocks(
        layers,
        len(layers),
        y.data_ptr(),
        x.shape[1],
        cos.data_ptr(),
        sin.data_ptr(),
        pointers(*(tensor.data_ptr() for tensor in keys)),
        pointers(*(tensor.data_ptr() for tensor in values)),
        capacity,
        offset,
        window or capacity,
    ):
        raise MemoryError(f"There is no memory for the activations of {x.shape[1]} tokens.")
    return y
