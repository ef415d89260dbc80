"""A whole Llama: embeddings, a stack of blocks, a final norm, and the head that predicts.

Modules and parameters carry Hugging Face's names, so a real checkpoint loads without renaming.
"""

import difflib
import functools
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, astuple, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from llmkit.attention import GroupedQueryAttention, KVCache, causal_mask
from llmkit.feedforward import SwiGLU
from llmkit.norms import RMSNorm
from llmkit.positions import llama3_frequencies, rope_frequencies, rope_tables

INITIAL_STD = 0.02  # standard deviation of fresh weights, as in GPT-2 and Hugging Face's Llama


@dataclass(frozen=True)
class RopeScaling:
    """How Llama 3.1 and later stretch RoPE; see `llmkit.positions.llama3_frequencies`."""

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class LlamaConfig:
    """Everything that fixes the shape of a Llama, under Hugging Face's names.

    `head_dim` is hidden_size / num_attention_heads where it is not given. A Llama with a
    `sliding_window` is a Mistral.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 0
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    sliding_window: int | None = None

    def __post_init__(self):
        for field in fields(self):
            size = getattr(self, field.name)
            if field.default is MISSING and not (type(size) is int and size > 0):
                raise ValueError(f"{field.name} must be a whole number above 0, not {size!r}.")
        if not self.head_dim:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size {self.hidden_size} is not divisible by num_attention_heads "
                    f"{self.num_attention_heads}: give head_dim."
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "LlamaConfig":
        """The config of a Hugging Face `config.json`, read as a dict.

        Keys that change nothing here (dropout, token ids, dtype …) are dropped.
        Raises ValueError for a model that this class does not implement.
        """
        only = {
            "model_type": ("llama", "mistral"),
            "hidden_act": ("silu",),
            "attention_bias": (False,),
            "mlp_bias": (False,),
            "quantization_config": (None,),
        }
        for key, implemented in only.items():
            if config.get(key, implemented[0]) not in implemented:
                known = " and ".join(map(repr, implemented))
                raise ValueError(f"config has {key} = {config[key]!r}; implemented is {known}.")
        # since transformers 5 one dict holds what rope_theta and rope_scaling held before
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        given = {
            "num_key_value_heads": config.get("num_attention_heads"),
            "rms_norm_eps": 1e-6,  # Hugging Face's default
            **{key: value for key, value in {**config, **rope}.items() if value is not None},
            "rope_scaling": _rope_scaling(rope),
        }
        if config.get("model_type") != "mistral":
            given.pop("sliding_window", None)
        own = fields(cls)
        if missing := [f.name for f in own if f.default is MISSING and given.get(f.name) is None]:
            raise ValueError(f"config lacks {', '.join(missing)}: is it a Llama's config.json?")
        return cls(**{f.name: given[f.name] for f in own if f.name in given})

    def to_hf(self) -> dict[str, Any]:
        """What a Hugging Face `config.json` says of this model; `from_hf` reads it back."""
        config = {key: value for key, value in asdict(self).items() if value is not None}
        if self.rope_scaling:
            config["rope_scaling"]["rope_type"] = "llama3"
        kind = "mistral" if self.sliding_window else "llama"
        return {
            "architectures": [f"{kind.title()}ForCausalLM"],
            "model_type": kind,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            **config,
        }


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(f"config has RoPE scaling {kind!r}, but only 'llama3' is implemented.")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError("config rotates a part of each head only, which is not implemented.")
    if kind == "default":
        return None
    return RopeScaling(
        **{key: rope[key] for key in RopeScaling.__dataclass_fields__ if key in rope}
    )


def _llama(
    layers: int, dim: int, hidden: int, heads: int, kv_heads: int | None = None, **rest: Any
) -> LlamaConfig:
    rest = {"vocab_size": 32000, **rest}
    return LlamaConfig(
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        **rest,
    )


_V1 = {"rms_norm_eps": 1e-6}
_V2 = {"max_position_embeddings": 4096}
_V3 = {"vocab_size": 128256, "rope_theta": 500000.0, "max_position_embeddings": 8192}
_V31 = _V3 | {"max_position_embeddings": 131072, "rope_scaling": RopeScaling(factor=8.0)}
_V32 = _V31 | {"rope_scaling": RopeScaling(factor=32.0), "tie_word_embeddings": True}
_SMOL = {"vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True}

PRESETS: dict[str, LlamaConfig] = {
    "llama-1-7b": _llama(32, 4096, 11008, 32, **_V1),
    "llama-1-13b": _llama(40, 5120, 13824, 40, **_V1),
    "llama-1-33b": _llama(60, 6656, 17920, 52, **_V1),
    "llama-1-65b": _llama(80, 8192, 22016, 64),
    "llama-2-7b": _llama(32, 4096, 11008, 32, **_V2),
    "llama-2-13b": _llama(40, 5120, 13824, 40, **_V2),
    # never released: these are Code Llama 34B's sizes, which was trained from it
    "llama-2-34b": _llama(48, 8192, 22016, 64, 8, **_V2),
    "llama-2-70b": _llama(80, 8192, 28672, 64, 8, **_V2),
    "llama-3-8b": _llama(32, 4096, 14336, 32, 8, **_V3),
    "llama-3-70b": _llama(80, 8192, 28672, 64, 8, **_V3),
    "llama-3.1-8b": _llama(32, 4096, 14336, 32, 8, **_V31),
    "llama-3.1-70b": _llama(80, 8192, 28672, 64, 8, **_V31),
    "llama-3.1-405b": _llama(126, 16384, 53248, 128, 8, **_V31),
    "llama-3.2-1b": _llama(16, 2048, 8192, 32, 8, **_V32),
    "llama-3.2-3b": _llama(28, 3072, 8192, 24, 8, **_V32),
    "tinyllama-1.1b": _llama(22, 2048, 5632, 32, 4),
    "smollm2-135m": _llama(30, 576, 1536, 9, 3, rope_theta=100000.0, **_SMOL),
    "smollm2-360m": _llama(32, 960, 2560, 15, 5, rope_theta=100000.0, **_SMOL),
    "smollm2-1.7b": _llama(24, 2048, 8192, 32, rope_theta=130000.0, **_SMOL),
    "tiny": _llama(2, 48, 128, 4, 2, vocab_size=256, max_position_embeddings=512),
}


def preset(name: str) -> LlamaConfig:
    """The config of a published model, or the "tiny" one, by its name in `PRESETS`.

    Raises ValueError for an unknown name.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0)[0]
        raise ValueError(f"There is no preset {name!r}; the nearest is {near!r}.")
    return PRESETS[name]


@functools.lru_cache(maxsize=16)
def _frequencies(
    dim: int, base: float, scaling: RopeScaling | None, device: torch.device
) -> Tensor:
    """RoPE's angular frequencies, float32 (d/2,).

    Not a buffer of the model: `model.to(torch.bfloat16)` would round a buffer too.
    """
    frequencies = rope_frequencies(dim, base)
    if scaling is not None:
        frequencies = llama3_frequencies(frequencies, *astuple(scaling))
    return frequencies.to(device)


class TransformerBlock(nn.Module):
    """One layer of a Llama: attention, then feed-forward, each on a normalized copy and added back.

    Shapes: (B, T, D) -> (B, T, D); the rest as in `GroupedQueryAttention`.
    """

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = GroupedQueryAttention(
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.sliding_window,
        )
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None = None,
        cache: KVCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, cache, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(nn.Module):
    """A Llama without its head: token ids (B, T) -> final hidden states (B, T, D)."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        table = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(table, freeze=False)
        self.layers = nn.ModuleList(
            TransformerBlock(config) for _ in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.apply(_initialize)

    def forward(
        self,
        input_ids: Tensor,
        cache: list[KVCache] | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """See `Llama.forward`."""
        offset = cache[0].offset if cache else 0
        length = input_ids.shape[-1]
        self._check(input_ids, cache, attention_mask, offset + length)
        positions = torch.arange(offset, offset + length, device=input_ids.device)
        mask = cache[0].mask(length) if cache else None
        if attention_mask is not None:
            own = attention_mask[:, offset:, None] == attention_mask[:, None, :]
            own = own & (attention_mask != 0)[:, None, :]
            own = own & causal_mask(length, offset + length, offset, input_ids.device)
            positions = (own.sum(-1) - 1).clamp(min=0)  # a pad sees nothing
            mask = own[:, None]
        c = self.config
        frequencies = _frequencies(c.head_dim, c.rope_theta, c.rope_scaling, input_ids.device)
        rope = rope_tables(positions, frequencies)  # once, for every layer

        x = self.embed_tokens(input_ids)
        return self.norm(self._through_layers(x, rope, cache, mask))

    def _through_layers(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        cache: list[KVCache] | None,
        mask: Tensor | None,
    ) -> Tensor:
        for layer, layer_cache in zip(self.layers, cache or [None] * len(self.layers), strict=True):
            x = layer(x, rope, layer_cache, mask)
        return x

    def _check(
        self,
        input_ids: Tensor,
        cache: list[KVCache] | None,
        attention_mask: Tensor | None,
        total: int,
    ) -> None:
        weight = self.embed_tokens.weight
        if input_ids.ndim != 2 or 0 in input_ids.shape:
            raise ValueError(
                f"input_ids must be (B, T) with at least one token, not {tuple(input_ids.shape)}."
            )
        if input_ids.dtype not in (torch.long, torch.int):
            raise TypeError(f"input_ids must be whole numbers (torch.long), not {input_ids.dtype}.")
        if input_ids.device != weight.device:
            raise ValueError(
                f"input_ids is on {input_ids.device}, the model on {weight.device}: "
                "move one to the other."
            )
        if cache is not None:
            held = [(c.offset, len(c.keys), c.keys.dtype, c.keys.device) for c in cache]
            fits = (total - input_ids.shape[1], len(input_ids), weight.dtype, weight.device)
            if held != [fits] * len(self.layers):
                raise ValueError(
                    f"cache does not fit: for these input_ids the model wants {len(self.layers)} "
                    f"layers, {len(input_ids)} rows, {weight.dtype} on {weight.device}, as of "
                    "new_cache."
                )
        if attention_mask is not None and (
            attention_mask.shape != (len(input_ids), total)
            or attention_mask.device != weight.device
        ):
            raise ValueError(
                f"attention_mask must be (B, S) = {(len(input_ids), total)} on {weight.device}, "
                f"cached positions included, not {tuple(attention_mask.shape)} on "
                f"{attention_mask.device}."
            )


class Llama(nn.Module):
    """A decoder-only language model (Touvron et al., 2023; Grattafiori et al., 2024)."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        _initialize(self.lm_head)
        self.tie_embeddings()

    def tie_embeddings(self) -> None:
        """If the config says so, let the head and the embedding be one matrix.

        To be called again after new weights have been assigned.
        """
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        input_ids: Tensor,
        cache: list[KVCache] | None = None,
        attention_mask: Tensor | None = None,
        logits_to_keep: int | None = None,
    ) -> Tensor:
        """Logits of the token that follows each position.

        `cache` comes from `new_cache` and is extended by these positions. `attention_mask` marks
        with 1 the real tokens of a batch padded on the left, those in the cache included; a pad's
        own logits mean nothing. Several texts packed into one row are numbered 1, 2, 3 …: each
        token sees its own text alone, whose positions count from 0. `logits_to_keep` computes only
        that many positions, the last ones.

        Shapes: input_ids (B, T), attention_mask (B, S) with S = offset + T -> (B, T, V).
        Raises ValueError or TypeError for what does not fit the model; nothing is cached then.
        """
        if logits_to_keep is not None and logits_to_keep < 1:
            raise ValueError(f"logits_to_keep must be at least 1, not {logits_to_keep}.")
        hidden = self.model(input_ids, cache, attention_mask)
        if logits_to_keep is not None:
            hidden = hidden[:, -logits_to_keep:]
        return self.lm_head(hidden)

    def new_cache(self, capacity: int, batch_size: int = 1) -> list[KVCache]:
        """An empty KV cache for each layer, with room for `capacity` positions."""
        c, weight = self.config, self.model.embed_tokens.weight
        shape = (batch_size, c.num_key_value_heads, capacity, c.head_dim)
        return [KVCache(*shape, weight.dtype, weight.device) for _ in self.model.layers]


def _initialize(module: nn.Module) -> None:
    # any arithmetic on the meta device makes torch import its compiler, which takes seconds
    if isinstance(module, nn.Linear | nn.Embedding) and not module.weight.is_meta:
        nn.init.normal_(module.weight, std=INITIAL_STD)


def count_parameters(config: LlamaConfig) -> int:
    """Number of parameters, tied ones counted once, from the config alone: no memory is taken."""
    with torch.device("meta"):
        return sum(p.numel() for p in Llama(config).parameters())


@torch.no_grad()
def is_causal(
    model: Callable[[Tensor], Tensor], x: Tensor, other: Tensor, tolerance: float = 1e-5
) -> bool:
    """Whether no output of `model` depends on what comes after its position, as far as seen here.

    x and `other` are two inputs: token ids, or vectors. If the two agree up to a position, then so
    must the outputs; tried for each, with x up to there and `other` from there on.

    Shapes: x and other (B, T) or (B, T, D); model (B, T, ...) -> (B, T, ...).
    """
    outputs = model(x)
    for t in range(1, x.shape[1]):
        changed = model(torch.cat([x[:, :t], other[:, t:]], dim=1))
        if (changed[:, :t] - outputs[:, :t]).abs().max() > tolerance:
            return False
    return True
