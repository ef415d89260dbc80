"""Quantization: weights in one byte each.

Generating a token reads every weight once, so a model of a quarter of the bytes can be four times
as fast, where memory is what it waits for. Each row of a weight keeps one float: its scale.
"""

import warnings
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkit import native
from llmkit.attention import GroupedQueryAttention, KVCache
from llmkit.transformer import Llama, TransformerBlock

LARGEST = 127  # int8 reaches -128 as well, but a symmetric range has no zero point to carry about


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Each row as whole numbers of -127 … 127 times its scale (symmetric absmax quantization).

    scale = max |row| / 127, computed in float32; a row of zeros gets scale 1. Numbers are rounded
    to the nearest, halves to even, so no weight moves by more than scale / 2.

    Shapes: weight (..., K) -> int8 (..., K) and float32 scale (...).
    Raises ValueError if the weight holds NaN or infinity.
    """
    wide = weight.float()
    if not wide.isfinite().all():
        raise ValueError("weight holds NaN or infinity, which no int8 can stand for.")
    scale = wide.abs().amax(-1) / LARGEST
    scale = torch.where(scale == 0, 1.0, scale)
    # near float32's smallest numbers the scale itself is coarse, and a quotient can pass the limit
    quantized = (wide / scale[..., None]).round().clamp(-LARGEST, LARGEST)
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


class Int8Block(TransformerBlock):
    """A block that computes one token in one call of compiled code; all else as its parent does.

    That call passes its submodules by, and their hooks with them.
    """

    def __init__(self, block: TransformerBlock):
        nn.Module.__init__(self)
        for name, child in block.named_children():
            self.add_module(name, child)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None = None,
        cache: KVCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        one_token = x.shape[:2] == (1, 1) and rope is not None and mask is None
        layers = self._layers() if one_token and cache is not None and _suits_native(x) else None
        if layers is None or not _fits(layers, x, rope, cache):
            return super().forward(x, rope, cache, mask)
        start = max(0, cache.offset + 1 - (self.self_attn.window or cache.capacity))
        y = native.block(layers, x, rope, cache.keys, cache.values, cache.offset, start)
        cache.offset += 1
        return y

    def _layers(self) -> native.Block | None:
        """The block as compiled code wants it, or None if that does not know such a block."""
        attention, mlp = self.self_attn, self.mlp
        linears = (
            *(attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj),
            *(mlp.gate_proj, mlp.up_proj, mlp.down_proj),
        )
        norms = self.input_layernorm, self.post_attention_layernorm
        # since the last call a layer may have been replaced (by LoRA, say), or the model moved
        key = (*linears, *norms, linears[0].weight.data_ptr(), norms[0].weight.data_ptr())
        known, layers, _ = _DESCRIBED.get(self, (None, None, None))
        if known != key:
            layers, tensors = _describe(linears, norms, self.self_attn)
            _DESCRIBED[self] = key, layers, tensors
        return layers


# what compiled code was told of each block, and the tensors that this points to: not an attribute,
# since pointers must be neither copied nor saved
_DESCRIBED: WeakKeyDictionary[Int8Block, tuple] = WeakKeyDictionary()


def _describe(
    linears: tuple[nn.Module, ...], norms: tuple[nn.Module, ...], attention: GroupedQueryAttention
) -> tuple[native.Block | None, list[Tensor]]:
    if not all(type(l) is Int8Linear and l.suits_native() and l.bias is None for l in linears):
        return None, []
    weights = [norm.weight for norm in norms]
    if not all(_suits_native(weight.detach()) for weight in weights):
        return None, []
    layers = native.Block(
        *(native.Linear.of(linear.weight, linear.scale) for linear in linears),
        *(weight.data_ptr() for weight in weights),
        norms[0].eps,
        attention.num_heads,
        attention.num_kv_heads,
        linears[0].out_features // attention.num_heads,
    )
    return layers, [*weights, *(tensor for l in linears for tensor in (l.weight, l.scale))]


def _fits(layers: native.Block, x: Tensor, rope: tuple[Tensor, Tensor], cache: KVCache) -> bool:
    """Whether these are the tensors that compiled code will take them for."""
    d = layers.head_dim
    room = (1, layers.kv_heads, cache.capacity, d)
    shapes = (x.shape[-1], rope[0].shape[-1], rope[1].shape[-1])
    return (
        shapes == (layers.q.inputs, d // 2, d // 2)
        and cache.offset < cache.capacity
        and cache.keys.shape == cache.values.shape == room
        and all(_suits_native(t) and t.is_contiguous() for t in (cache.keys, cache.values, *rope))
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
        for i, block in enumerate(model.model.layers):
            model.model.layers[i] = Int8Block(block)
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
