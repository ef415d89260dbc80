"""Values as bytes, across the sandbox's boundary: JSON for the structure, raw bytes for tensors.

A message is the length of its JSON (4 bytes, big-endian), the JSON, and the payload: the bytes of
every tensor and byte string, in the order in which the JSON names them.

What arrives is plain: exact builtin types and `torch.Tensor`. Named tuples and dataclasses arrive
as tuples, NumPy arrays as tensors, NumPy scalars as numbers, and every other thing as `Opaque`,
which holds the name of its type and nothing else. Decoding runs no code of the sender's, and its
memory is bounded by a small multiple of `limit`, whatever the bytes are.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_BYTES = 32 * 2**20  # of a whole message
MAX_JSON_BYTES = 4 * 2**20  # JSON grows some thirtyfold in memory, payload does not
MAX_DEPTH = 32
MAX_ITEMS = 500_000
MAX_KEY_ITEMS = 4_000  # in keys other than strings: their hashes can be made to collide
MAX_INT_BITS = 1023  # every int then fits a float
JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
PLAIN = {float, bool, str}  # what in JSON's lists stands for itself
SPARSE_STRIDES = 4096  # elements that a strided tensor may span beyond four times its own

DTYPES: dict[str, torch.dtype] = {
    str(kind).removeprefix("torch."): kind
    for kind in (
        *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        *(torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.complex32, torch.complex64, torch.complex128),
        *(torch.float8_e4m3fn, torch.float8_e5m2),
    )
}
NAMES = {kind: name for name, kind in DTYPES.items()}


class CodecError(ValueError):
    """The value is too large to send, or the bytes are not a message. One sentence says which."""


@dataclass(frozen=True)
class Opaque:
    """A value of a type that does not cross the boundary; only the type's name does."""

    type_name: str


def encode(value: Any, limit: int = MAX_BYTES) -> bytes:
    """The message that `decode` turns back into `value`.

    Raises `CodecError` if the value is larger than `limit` bytes, nested too deep or has too many
    items.
    """
    encoder = _Encoder(limit)
    try:
        # surrogatepass: a lone surrogate in a student's string is data, not an error
        structure = JSON.encode(encoder.node(value, 0)).encode("utf-8", "surrogatepass")
    except RuntimeError as error:  # a dict that changes while it is read
        raise CodecError(f"the value cannot be read: {error}") from None
    if len(structure) > MAX_JSON_BYTES:
        raise CodecError(f"more than {MAX_JSON_BYTES // 2**20} MiB of text and numbers")
    return b"".join([len(structure).to_bytes(4, "big"), structure, *encoder.payload])


def decode(message: bytes, limit: int = MAX_BYTES) -> Any:
    """The value of a message. Raises `CodecError`, and nothing else, for bytes that are none."""
    if len(message) > limit + MAX_JSON_BYTES + 4:
        raise CodecError("the message is too large")
    end = 4 + int.from_bytes(message[:4], "big")
    if len(message) < 4 or not 4 < end <= min(len(message), MAX_JSON_BYTES + 4):
        raise CodecError("the message is cut short")
    try:
        structure = json.loads(message[4:end].decode("utf-8", "surrogatepass"))
        decoder = _Decoder(memoryview(message)[end:], limit)
        value = decoder.value(structure, 0)
    except CodecError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, RuntimeError) as error:
        raise CodecError(f"the message is malformed: {type(error).__name__}") from None
    if decoder.position != len(decoder.payload):
        raise CodecError("the message has bytes left over")
    return value


class _Encoder:
    """One message being written."""

    def __init__(self, limit: int):
        self.limit = limit
        self.payload: list[bytes] = []
        self.size = 0
        self.items = 0
        self.key_items = 0

    def node(self, value: Any, depth: int) -> Any:
        self.items += 1
        if self.items > MAX_ITEMS:
            raise CodecError(f"more than {MAX_ITEMS:,} items")
        if depth > MAX_DEPTH:
            raise CodecError(f"nested deeper than {MAX_DEPTH} levels")
        if type(value) not in EXACT:
            value = _plain(value)
        kind = type(value)
        if value is None or kind is bool or kind is float:
            return value
        if kind is int:
            return value if value.bit_length() <= MAX_INT_BITS else {"opaque": "very large int"}
        if kind is str:
            self.take(len(value))
            return value
        if kind is bytes:
            self.take(len(value))
            self.payload.append(value)
            return {"bytes": len(value)}
        if kind is list:
            return self.nodes(value, depth + 1)
        if kind is tuple:
            return {"tuple": self.nodes([*value], depth + 1)}
        if kind is Tensor:
            return self.tensor(value)
        if kind is Opaque:
            return {"opaque": str(value.type_name)[:100]}
        pairs = dict.items(value)
        return {"dict": [[self.key(k, depth), self.node(v, depth + 1)] for k, v in pairs]}

    def nodes(self, values: list, depth: int) -> list:
        if len(values) > 1 and set(map(type, values)) <= {float, bool}:  # in a tenth of the time
            self.items += len(values) - 1
            self.node(values[0], depth)
            return values
        return [self.node(v, depth) for v in values]

    def key(self, key: Any, depth: int) -> Any:
        if type(key) is str:
            self.items += 1
            self.take(len(key))
            return key
        if isinstance(key, Tensor | np.ndarray | list | dict):  # hashable by identity at best
            return {"opaque": type(key).__name__}
        before = self.items
        node = self.node(key, depth + 1)
        if not isinstance(key, str):
            self.key_items += self.items - before
            if self.key_items > MAX_KEY_ITEMS:
                raise CodecError(f"more than {MAX_KEY_ITEMS:,} items in keys that are not strings")
        return node

    def tensor(self, tensor: Tensor) -> dict:
        if tensor.layout != torch.strided:
            return {"opaque": f"{str(tensor.layout).removeprefix('torch.')} tensor"}
        dtype = NAMES.get(tensor.dtype)
        if dtype is None or tensor.is_quantized or tensor.is_nested:
            return {"opaque": f"{str(tensor.dtype).removeprefix('torch.')} tensor"}
        if tensor.is_meta:
            return {"opaque": "meta tensor"}
        self.take(tensor.numel() * tensor.element_size())  # before anything expanded is copied
        plain = tensor.detach().as_subclass(Tensor).cpu().resolve_conj().resolve_neg()
        flat = plain.contiguous().reshape(-1)
        self.payload.append(flat.view(torch.uint8).numpy().tobytes())
        shape, strides = list(plain.shape), list(plain.stride())
        keep = not plain.is_contiguous() and _span(shape, strides) is not None
        return {"tensor": [dtype, shape, strides if keep else None]}

    def take(self, size: int) -> None:
        self.size += size
        if self.size > self.limit:
            raise CodecError(f"larger than {self.limit / 2**20:g} MiB")


class _Decoder:
    """One message being read. Tensors take their bytes from the payload in turn, so none twice."""

    def __init__(self, payload: memoryview, limit: int):
        self.payload = payload
        self.position = 0
        self.items = 0
        self.key_items = 0
        self.allowance = 4 * limit + 2**16  # bytes that strided tensors may span

    def value(self, node: Any, depth: int) -> Any:
        self.items += 1
        if self.items > MAX_ITEMS or depth > MAX_DEPTH:
            raise CodecError("the message has too many items or levels")
        kind = type(node)  # as json makes it
        if kind is list:
            return self.values(node, depth + 1)
        if kind is not dict:
            if kind is int and node.bit_length() > MAX_INT_BITS:
                raise CodecError("the message holds too large an integer")
            return node
        ((kind, content),) = node.items()
        if kind == "tuple" and isinstance(content, list):
            return tuple(self.values(content, depth + 1))
        if kind == "dict":
            return {self.key(k, depth): self.value(v, depth + 1) for k, v in content}
        if kind == "tensor":
            return self.tensor(*content)
        if kind == "bytes":
            return bytes(self.take(content))
        if kind == "opaque" and isinstance(content, str):
            return Opaque(content[:100])
        raise CodecError("the message holds an unknown kind of value")

    def values(self, nodes: list, depth: int) -> list:
        if len(nodes) > 1 and set(map(type, nodes)) <= PLAIN:
            self.items += len(nodes) - 1
            self.value(nodes[0], depth)
            return nodes
        return [self.value(n, depth) for n in nodes]

    def key(self, node: Any, depth: int) -> Any:
        if type(node) is str:
            self.items += 1
            return node
        before = self.items
        key = self.value(node, depth + 1)
        if not isinstance(key, str):
            self.key_items += self.items - before
            if self.key_items > MAX_KEY_ITEMS:
                raise CodecError("the message has too many keys that are not strings")
        return key

    def tensor(self, dtype: str, shape: list, strides: list | None) -> Tensor:
        kind = DTYPES.get(dtype)
        if kind is None or not _sizes(shape):
            raise CodecError("the message holds a tensor of an unknown kind")
        numel = math.prod(shape)
        data = bytearray(self.take(numel * kind.itemsize))  # own and aligned memory
        if kind == torch.bool:
            data = bytearray(data.translate(_TO_BOOL))
        flat = torch.frombuffer(data, dtype=kind) if numel else torch.empty(0, dtype=kind)
        dense = flat.reshape(shape)
        if strides is None:
            return dense
        span = _span(shape, strides) if _sizes(strides) and len(strides) == len(shape) else None
        if span is None or span * kind.itemsize > self.allowance:
            raise CodecError("the message holds a tensor of impossible strides")
        self.allowance -= span * kind.itemsize
        return _lay_out(dense, strides, span)

    def take(self, size: int) -> memoryview:
        start, end = self.position, self.position + size
        if not isinstance(size, int) or not start <= end <= len(self.payload):
            raise CodecError("the message is cut short")
        self.position = end
        return self.payload[start:end]


_TO_BOOL = bytes([0] + [1] * 255)  # any other byte in a bool tensor is undefined behaviour


def _sizes(values: Any) -> bool:
    """Whether these can be a shape or strides: few, not negative, and no product overflows."""
    return (
        isinstance(values, list)
        and len(values) <= 64
        and all(type(v) is int and 0 <= v < 2**48 for v in values)
        and math.prod(v for v in values if v) < 2**62
    )


def _span(shape: list[int], strides: list[int]) -> int | None:
    """Elements from the first to the last, or None where elements overlap or lie too far apart.

    A stride of 0 (an expanded dimension) is no overlap: its one element is repeated.
    """
    span, numel = 1, 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size == 0:
            return None
        if size > 1 and stride > 0:
            if stride < span:
                return None
            span += (size - 1) * stride
        numel *= size
    return span if span <= 4 * numel + SPARSE_STRIDES else None


def _lay_out(dense: Tensor, strides: list[int], span: int) -> Tensor:
    """The same values with these strides: a student's function meets the layout of the case."""
    once = dense
    for dim, stride in enumerate(strides):
        if stride == 0:
            once = once.narrow(dim, 0, 1)
    storage = torch.zeros(span, dtype=dense.dtype)
    storage.as_strided(once.shape, strides).copy_(once)
    return storage.as_strided(dense.shape, strides)


def _plain(value: Any) -> Any:
    """The value as one of an exact type, or a subclass of dict.

    The unbound methods read the data itself, whatever a subclass makes of it.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | dict):
        return value
    for kind, read in PLAINLY.items():
        if isinstance(value, kind):
            return read(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return tuple(getattr(value, field.name, None) for field in dataclasses.fields(value))
    return Opaque(type(value).__name__)


def _from_numpy(array: np.ndarray) -> Any:
    """The array as a tensor, or as it is where torch has no such dtype (objects, strings)."""
    try:
        return torch.from_numpy(np.array(array, order="K", copy=True))
    except (TypeError, ValueError):
        return Opaque(f"{array.dtype} ndarray")


EXACT = {type(None), bool, int, float, str, bytes, list, tuple, dict, Tensor, Opaque}
PLAINLY: dict[type, Callable[[Any], Any]] = {
    int: lambda value: int.__add__(value, 0),
    float: float.__float__,
    str: str.__str__,
    bytes: lambda value: bytes(value),
    bytearray: lambda value: bytes(value),
    np.ndarray: _from_numpy,
    Tensor: lambda value: value.detach().as_subclass(Tensor),
    list: lambda value: [*list.__iter__(value)],
    tuple: lambda value: tuple(tuple.__iter__(value)),
}
