"""A whole Llama: embeddings, a stack of blocks, a final norm, and the head that predicts.

Modules and parameters carry Hugging Face's names, so a real checkpoint loads without renaming.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
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

    `head_dim` is hidden_size / num_attention_heads where it is not given.
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

    def __post_init__(self):
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
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "quantization_config": None,
        }
        for key, implemented in only.items():
            if config.get(key, implemented) != implemented:
                raise ValueError(
                    f"config has {key} = {config[key]!r}, but only {implemented!r} is implemented."
                )
        sizes = ["vocab_size", "hidden_size", "intermediate_size"]
        sizes += ["num_hidden_layers", "num_attention_heads"]
        if missing := [key for key in sizes if key not in config]:
            raise ValueError(f"config lacks {', '.join(missing)}: is it a Llama's config.json?")
        # since transformers 5 one dict holds what rope_theta and rope_scaling held before
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        optional = {
            "head_dim": config.get("head_dim"),
            "max_position_embeddings": config.get("max_position_embeddings"),
            "rms_norm_eps": config.get("rms_norm_eps", 1e-6),  # Hugging Face's default
            "rope_theta": rope.get("rope_theta", config.get("rope_theta")),
            "tie_word_embeddings": config.get("tie_word_embeddings"),
        }
        return cls(
            **{key: config[key] for key in sizes},
            num_key_value_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            rope_scaling=_rope_scaling(rope),
            **{key: value for key, value in optional.items() if value is not None},
        )


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
_SMOL = {"vocab_size": 49152, "rope_theta": 100000.0, "max_position_embeddings": 8192}

PRESETS: dict[str, LlamaConfig] = {
    "llama-1-7b": _llama(32, 4096, 11008, 32, **_V1),
    "llama-1-13b": _llama(40, 5120, 13824, 40, **_V1),
    "llama-1-33b": _llama(60, 6656, 17920, 52, **_V1),
    "llama-1-65b": _llama(80, 8192, 22016, 64),
    "llama-2-7b": _llama(32, 4096, 11008, 32, **_V2),
    "llama-2-13b": _llama(40, 5120, 13824, 40, **_V2),
    "llama-2-70b": _llama(80, 8192, 28672, 64, 8, **_V2),
    "llama-3-8b": _llama(32, 4096, 14336, 32, 8, **_V3),
    "llama-3-70b": _llama(80, 8192, 28672, 64, 8, **_V3),
    "llama-3.1-8b": _llama(32, 4096, 14336, 32, 8, **_V31),
    "llama-3.1-70b": _llama(80, 8192, 28672, 64, 8, **_V31),
    "llama-3.1-405b": _llama(126, 16384, 53248, 128, 8, **_V31),
    "llama-3.2-1b": _llama(16, 2048, 8192, 32, 8, **_V32),
    "llama-3.2-3b": _llama(28, 3072, 8192, 24, 8, **_V32),
    "smollm2-135m": _llama(30, 576, 1536, 9, 3, tie_word_embeddings=True, **_SMOL),
    "tiny": _llama(2, 48, 128, 4, 2, vocab_size=256, max_position_embeddings=512),
}


@functools.lru_cache(maxsize=16)
def _frequencies(
    dim: int, base: float, scaling: RopeScaling | None, device: torch.device
) -> Tensor:
    """RoPE's angular frequencies, float32 (d/2,).

    Not a buffer of the model: `model.to(torch.bfloat16)` would round a buffer too.
    """
    frequencies = rope_frequencies(dim, base)
    if scaling is not None:
        frequencies = llama3_frequencies(
            frequencies,
            scaling.factor,
            scaling.low_freq_factor,
            scaling.high_freq_factor,
            scaling.original_max_position_embeddings,
        )
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
        length = input_ids.shape[1]
        offset = cache[0].offset if cache else 0
        positions = torch.arange(offset, offset + length, device=input_ids.device)
        mask = None
        if attention_mask is not None:
            real = attention_mask.bool()
            mask = causal_mask(length, offset + length, offset, input_ids.device)
            mask = mask & real[:, None, None, :]
            positions = (real.long().cumsum(-1) - 1).clamp(min=0)[:, offset:]
        c = self.config
        frequencies = _frequencies(c.head_dim, c.rope_theta, c.rope_scaling, input_ids.device)
        rope = rope_tables(positions, frequencies)  # once, for every layer

        x = self.embed_tokens(input_ids)
        for layer, layer_cache in zip(self.layers, cache or [None] * len(self.layers), strict=True):
            x = layer(x, rope, layer_cache, mask)
        return self.norm(x)


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
        own logits mean nothing. `logits_to_keep` computes only that many positions, the last ones.

        Shapes: input_ids (B, T), attention_mask (B, S) with S = offset + T -> (B, T, V).
        """
        hidden = self.model(input_ids, cache, attention_mask)
        if logits_to_keep is not None:
            hidden = hidden[:, -logits_to_keep:]
        return self.lm_head(hidden)

    def new_cache(self, capacity: int, batch_size: int = 1) -> list[KVCache]:
        """An empty KV cache for each layer, with room for `capacity` positions."""
        c, weight = self.config, self.model.embed_tokens.weight
        return [
            KVCache(
                batch_size,
                c.num_key_value_heads,
                capacity,
                c.head_dim,
                weight.dtype,
                weight.device,
            )
            for _ in range(c.num_hidden_layers)
        ]


def _initialize(module: nn.Module) -> None:
    # any arithmetic on the meta device makes torch import its compiler, which takes seconds
    if isinstance(module, nn.Linear | nn.Embedding) and not module.weight.is_meta:
        nn.init.normal_(module.weight, std=INITIAL_STD)


def count_parameters(config: LlamaConfig) -> int:
    """Number of parameters, tied ones counted once, from the config alone: no memory is taken."""
    with torch.device("meta"):
        return sum(p.numel() for p in Llama(config).parameters())
