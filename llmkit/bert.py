"""BERT: the encoder-only Transformer, which reads a text in both directions.

It understands (fills gaps, classifies, embeds) where a Llama generates. Older in every part, too:
learned positions, LayerNorm after each sublayer, GELU, biases everywhere. Modules and parameters
carry Hugging Face's names, so the state dict of its `BertForMaskedLM` loads as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkit.attention import merge_heads, split_heads
from llmkit.positions import learned_positions

INITIAL_STD = 0.02


@dataclass(frozen=True)
class BertConfig:
    """Everything that fixes the shape of a BERT, under Hugging Face's names; BERT base by default.

    There is no dropout: it is for training that sees the same text many times.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    tie_word_embeddings: bool = True

    def __post_init__(self):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads "
                f"{self.num_attention_heads}."
            )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "BertConfig":
        """The config of a Hugging Face `config.json`, read as a dict; other keys are dropped.

        Raises ValueError for a model that this class does not implement.
        """
        only = {"model_type": "bert", "hidden_act": "gelu", "is_decoder": False}
        only |= {"position_embedding_type": "absolute"}
        for key, implemented in only.items():
            if config.get(key, implemented) != implemented:
                raise ValueError(
                    f"config has {key} = {config[key]!r}, but only {implemented!r} is implemented."
                )
        return cls(**{f.name: config[f.name] for f in fields(cls) if f.name in config})


class BertSelfAttention(nn.Module):
    """Multi-head attention in both directions: each position sees every one that the mask allows.

    Shapes: x (B, T, D), mask broadcastable to (B, 1, T, T), True where a query may look
    -> (B, T, D), not yet projected out.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        projections = (self.query, self.key, self.value)
        query, key, value = (split_heads(project(x), self.num_heads) for project in projections)
        return merge_heads(F.scaled_dot_product_attention(query, key, value, mask))


class BertLayer(nn.Module):
    """One layer of a BERT, post-norm: x = norm(x + attention(x)), then norm(x + feedforward(x)).

    Shapes: (B, T, D) -> (B, T, D); mask as in `BertSelfAttention`.
    """

    def __init__(self, config: BertConfig):
        super().__init__()
        dim, hidden = config.hidden_size, config.intermediate_size
        attention = BertSelfAttention(dim, config.num_attention_heads)
        self.attention = nn.ModuleDict({"self": attention, "output": _add_and_norm(dim, config)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(dim, hidden)})
        self.output = _add_and_norm(hidden, config)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        out = self.attention.output
        x = out.LayerNorm(x + out.dense(self.attention.self(x, mask)))
        hidden = F.gelu(self.intermediate.dense(x))  # with output.dense: `gelu_feedforward`
        return self.output.LayerNorm(x + self.output.dense(hidden))


def _add_and_norm(width: int, config: BertConfig) -> nn.ModuleDict:
    """The projection back to the residual stream, and the norm of the sum."""
    dense = nn.Linear(width, config.hidden_size)
    return nn.ModuleDict({"dense": dense, "LayerNorm": _layer_norm(config)})


def _layer_norm(config: BertConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, config.layer_norm_eps)


class BertEmbeddings(nn.Module):
    """Token + position + token type (which of two texts), normalized: ids (B, T) -> (B, T, D)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        dim = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, dim)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, dim)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, dim)
        self.LayerNorm = _layer_norm(config)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        return self.LayerNorm(x + learned_positions(self.position_embeddings.weight, positions))


class BertEncoder(nn.Module):
    """A BERT without its head: token ids (B, T) -> hidden states (B, T, D)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        layers = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layer": layers})
        self.apply(_initialize)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Read whole texts. `attention_mask` marks real tokens with 1, padding (right) with 0.

        Shapes: all three (B, T) -> (B, T, D); what stands at a pad means nothing.
        Raises ValueError for other shapes and for texts longer than the table of positions.
        """
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids must be (B, T), not {tuple(input_ids.shape)}.")
        if input_ids.shape[1] > self.config.max_position_embeddings:
            raise ValueError(
                f"input_ids has {input_ids.shape[1]} positions; this model has learned "
                f"{self.config.max_position_embeddings}."
            )
        given = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        for name, tensor in given.items():
            if tensor is not None and tensor.shape != input_ids.shape:
                raise ValueError(
                    f"{name} must have the shape of input_ids, {tuple(input_ids.shape)}, "
                    f"not {tuple(tensor.shape)}."
                )
        mask = None if attention_mask is None else (attention_mask != 0)[:, None, None, :]
        x = self.embeddings(input_ids, token_type_ids)
        for layer in self.encoder.layer:
            x = layer(x, mask)
        return x


class BertForMaskedLM(nn.Module):
    """A BERT that predicts the token at each position, as for those hidden by `[MASK]`.

    Shapes: as `BertEncoder` -> logits (B, T, V).
    """

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.bert = BertEncoder(config)
        transform = _add_and_norm(config.hidden_size, config)
        decoder = nn.Linear(config.hidden_size, config.vocab_size)
        predictions = nn.ModuleDict({"transform": transform, "decoder": decoder})
        predictions.bias = decoder.bias  # one bias under two names, as in Hugging Face's files
        self.cls = nn.ModuleDict({"predictions": predictions})
        self.cls.apply(_initialize)
        if config.tie_word_embeddings:
            decoder.weight = self.bert.embeddings.word_embeddings.weight

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        hidden = self.bert(input_ids, attention_mask, token_type_ids)
        head = self.cls.predictions
        hidden = head.transform.LayerNorm(F.gelu(head.transform.dense(hidden)))
        return head.decoder(hidden)


def _initialize(module: nn.Module) -> None:
    # any arithmetic on the meta device makes torch import its compiler, which takes seconds
    if isinstance(module, nn.Linear | nn.Embedding) and not module.weight.is_meta:
        nn.init.normal_(module.weight, std=INITIAL_STD)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
