"""Quantization: weights in one byte each.

Generating a token reads every weight once, so a model of a quarter of the bytes can be four times
as fast, where memory is what it waits for. Each row of a weight keeps one float: its scale.
"""

import ctypes
import warnings
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkit import native
from llmkit.attention import KVCache
from llmkit.transformer import Llama, LlamaModel

LARGEST = 127  # int8 reaches -128 as well, but a symmetric range has no zero point to carry about
FEW = 48  # tokens that one call of compiled code reads: with more, a layer at a time is as fast


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Each row as whole numbers of -127 … 127 times its scale (symmetric absmax quantization).

    scale = max |row| / 127, computed in float32; a row of zeros gets scale 1. Numbers are rounded
    to the nearest, halves to even, so no weight moves by more than scale / 2.

    Shapes: weight (..., K) -> int8 (..., K) and float32 scale (...).
    Raises ValueError if the weight holds NaN or infinity.
    """
    wide = weight.float()
    scale = torch.linalg.vector_norm(wide, torch.inf, -1) / LARGEST  # max |row|, without a copy
    if not scale.isfinite().all():
        raise ValueError("weight holds NaN or infinity, which no int8 can stand for.")
    scale = torch.where(scale == 0, 1.0, scale)
    # near float32's smallest numbers the scale itself is coarse, and a quotient can pass the limit
    quantized = (wide / scale[..., None]).round_().clamp_(-LARGEST, LARGEST)
    return quantized.to(torch.int8), scale


def dequantize_int8(quantized: Tensor, scale: Tensor) -> Tensor:
    """The weights that the bytes stand for. Shapes: int8 (..., K), scale (...) -> (..., K)."""
    return quantized * scale[..., None]


class Int8Linear(nn.Module):
    """Takes the place of an `nn.Linear`, with an int8 weight and a scale for each of its rows.

    y = (x Qᵀ) · scale + bias, which is x times the dequantized weight: a row's scale can wait until
    the row has been summed up. The plain path saves memory, not time, since it turns Q into x's
    dtype on every call. `compiled` computes with the bytes themselves, and rounds x to int16.

    Shapes: (..., K) -> (..., N).
    """

    def __init__(self, linear: nn.Linear, compiled: bool = False):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, scale = quantize_int8(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = linear.bias
        self.compiled = compiled

    def forward(self, x: Tensor) -> Tensor:
        if self.suits_native() and _suits_native(x):
            y = native.linear(native.Linear.of(self.weight, self.scale), x)
        else:
            y = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias

    def suits_native(self) -> bool:
        """Whether compiled code is wanted, and can: it takes 16 inputs and 4 outputs at a time."""
        return (
            self.compiled
            and self.in_features % 16 == self.out_features % 4 == 0
            and self.weight.is_cpu
            and self.scale.dtype == torch.float32
        )

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, compiled={self.compiled}"


def _suits_native(x: Tensor) -> bool:
    # compiled code knows no gradients
    return (
        x.is_cpu and x.dtype == torch.float32 and not (torch.is_grad_enabled() and x.requires_grad)
    )


class Int8LlamaModel(LlamaModel):
    """Takes a few tokens through its layers in one call of compiled code; all else as its parent.

    That call passes the layers' submodules by, and their hooks with them.
    """

    def __init__(self, model: LlamaModel):
        nn.Module.__init__(self)
        self.config = model.config
        for name, child in model.named_children():
            self.add_module(name, child)

    def _through_layers(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        cache: list[KVCache] | None,
        mask: Tensor | None,
    ) -> Tensor:
        few = len(x) == 1 and x.shape[1] <= FEW and rope[0].ndim == 2 and _suits_native(x)
        blocks = _as_told(self) if few and cache else None
        if blocks is None or not _fits(blocks[0], x, rope, cache):
            return super()._through_layers(x, rope, cache, mask)
        keys, values = [layer.keys for layer in cache], [layer.values for layer in cache]
        y = native.blocks(
            blocks, x, rope, keys, values, cache[0].offset, self.config.sliding_window
        )
        for layer in cache:
            layer.offset += x.shape[1]
        return y


class _Told(NamedTuple):
    """A model's layers as compiled code wants them, and all that these pointers rely on.

    Compiled code is told anew when a layer has been replaced (by LoRA, say), or the model moved.
    """

    blocks: ctypes.Array | None  # None if it does not know such layers
    registries: list[tuple[dict, str, object]]
    norms: list[tuple[Tensor, int]]

    def holds(self) -> bool:
        return all(registry.get(name) is one for registry, name, one in self.registries) and all(
            weight.data_ptr() == pointer for weight, pointer in self.norms
        )


# not an attribute of the model, since pointers must be neither copied nor saved
_TOLD: WeakKeyDictionary[Int8LlamaModel, _Told] = WeakKeyDictionary()


def _as_told(model: Int8LlamaModel) -> ctypes.Array | None:
    told = _TOLD.get(model)
    if told is None or not told.holds():
        told = _TOLD[model] = _tell(model)
    return told.blocks


def _tell(model: Int8LlamaModel) -> _Told:
    described = [_describe(layer) for layer in model.layers]
    blocks = None if None in described else (native.Block * len(described))(*described)
    # nn.Module's own dictionaries: to ask its attributes would cost a millisecond a token
    registries = [
        (registry, name, one)
        for module in model.layers.modules()
        for registry in (module._modules, module._buffers)
        for name, one in registry.items()
    ]
    norms = [(weight, weight.data_ptr()) for weight in model.layers.parameters()]
    return _Told(blocks, registries, norms)


def _describe(layer: nn.Module) -> native.Block | None:
    attention, mlp = layer.self_attn, layer.mlp
    linears = (
        *(attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj),
        *(mlp.gate_proj, mlp.up_proj, mlp.down_proj),
    )
    norms = layer.input_layernorm, layer.post_attention_layernorm
    if not all(type(l) is Int8Linear and l.suits_native() and l.bias is None for l in linears):
        return None
    if not all(_suits_native(norm.weight.detach()) for norm in norms):
        return None
    head_dim = attention.q_proj.out_features // attention.num_heads
    if head_dim % 16:
        return None
    return native.Block(
        *(native.Linear.of(linear.weight, linear.scale) for linear in linears),
        *(norm.weight.data_ptr() for norm in norms),
        norms[0].eps,
        attention.num_heads,
        attention.num_kv_heads,
        head_dim,
    )


def _fits(
    block: native.Block, x: Tensor, rope: tuple[Tensor, Tensor], cache: list[KVCache]
) -> bool:
    """Whether these are the tensors that compiled code will take them for."""
    first = cache[0]
    room = (1, block.kv_heads, first.capacity, block.head_dim)
    return (
        x.shape[-1] == block.q.inputs
        and rope[0].shape == rope[1].shape == (x.shape[1], block.head_dim // 2)
        and all(_suits_native(t) and t.is_contiguous() for t in rope)
        and first.offset + x.shape[1] <= first.capacity
        and all(
            layer.keys.shape == layer.values.shape == room
            and layer.keys.is_contiguous()
            and layer.values.is_contiguous()
            for layer in cache
        )
        and _suits_native(first.keys)
    )


def quantize_model(model: Llama, compiled: bool = False) -> Llama:
    """Turn every linear layer of a Llama into an `Int8Linear`, in place, and return the model.

    The embedding table keeps its dtype, since a token reads one row of it; a head tied to it gets
    int8 weights of its own. `compiled` makes it fast, for a float32 model on a CPU, and needs a C
    compiler once. Where it cannot be had, a warning says why, and the plain path is taken.

    Raises ValueError if there is nothing to quantize or a weight is not finite; the model is then
    as it was.
    """
    linears = {name: m for name, m in model.named_modules() if type(m) is nn.Linear}
    if not linears:
        raise ValueError("model has no nn.Linear to quantize: is it quantized already?")
    if compiled and (obstacle := _obstacle(model)):
        warnings.warn(f"int8 weights take the plain, slower path: {obstacle}.", stacklevel=2)
        compiled = False
    quantized = {name: Int8Linear(linear, compiled) for name, linear in linears.items()}
    for name, linear in quantized.items():
        model.set_submodule(name, linear)
    if compiled:
        model.model = Int8LlamaModel(model.model)
    return model


def _obstacle(model: Llama) -> str | None:
    """Why compiled code cannot serve this model here, if it cannot."""
    weight = model.model.embed_tokens.weight
    if not weight.is_cpu or weight.dtype != torch.float32:
        return f"compiled code is for float32 on a CPU, not {weight.dtype} on {weight.device}"
    try:
        native.library()
    except native.NativeError as error:
        return str(error)
    return None
