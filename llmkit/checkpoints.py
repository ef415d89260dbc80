"""Checkpoints: real weights from disk, as a GGUF file or as a Hugging Face directory."""

import json
import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors
import torch
from torch import Tensor

from llmkit import assets
from llmkit.positions import interleaved_to_half
from llmkit.tokenization import Tokenizer
from llmkit.transformer import Llama, LlamaConfig

# what the readers raise where a file is cut short or is something else
_DAMAGE = (IndexError, KeyError, struct.error, safetensors.SafetensorError)


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the message says, in one sentence, what is wrong."""


def load_checkpoint(
    name_or_path: str | Path,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Llama, Tokenizer]:
    """A model, ready for inference, and its tokenizer.

    `name_or_path` is a .gguf file, a Hugging Face directory (config.json, safetensors,
    tokenizer.json) or the name of an asset ("smollm2"), fetched on first use. Quantized weights
    are dequantized. Each tensor is converted and placed on its own, so the peak of memory is the
    model and one tensor more.

    Raises FileNotFoundError, CheckpointError, or AssetError if an asset cannot be fetched.
    """
    path = Path(name_or_path)
    if not path.exists():
        if path.suffix or len(path.parts) > 1:
            raise FileNotFoundError(f"There is no checkpoint at {path}.")
        path = assets.fetch(str(name_or_path))
    try:
        if path.is_dir():
            return _load_directory(path, device, dtype)
        return _load_gguf(path, device, dtype)
    except (ValueError, *_DAMAGE) as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}") from error


def _load_directory(
    directory: Path, device: torch.device | str | None, dtype: torch.dtype
) -> tuple[Llama, Tokenizer]:
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(f"{directory} holds no config.json.")
    config = LlamaConfig.from_hf(json.loads((directory / "config.json").read_text("utf-8")))
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    else:
        shards = ["model.safetensors"]
    if missing := [shard for shard in shards if not (directory / shard).is_file()]:
        raise FileNotFoundError(f"{directory} holds no {', '.join(missing)}.")

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for shard in shards:
            with safetensors.safe_open(directory / shard, "pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    if not name.endswith("rotary_emb.inv_freq"):  # old files hold RoPE's formula
                        yield name, file.get_tensor(name).to(device, dtype)

    return _fill(config, tensors()), Tokenizer.from_directory(directory)


def _load_gguf(
    path: Path, device: torch.device | str | None, dtype: torch.dtype
) -> tuple[Llama, Tokenizer]:
    reader = _GGUFReader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    names = [tensor.name for tensor in reader.tensors]
    config = _gguf_config(metadata, tied="output.weight" not in names)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for tensor in reader.tensors:
            weight = torch.from_numpy(_dequantize(tensor)).to(device, dtype)
            if tensor.name.endswith("attn_q.weight"):
                weight = interleaved_to_half(weight, config.num_attention_heads)
            elif tensor.name.endswith("attn_k.weight"):
                weight = interleaved_to_half(weight, config.num_key_value_heads)
            yield _hf_name(tensor.name), weight

    return _fill(config, tensors()), Tokenizer.from_gguf(metadata)


def _fill(config: LlamaConfig, tensors: Iterator[tuple[str, Tensor]]) -> Llama:
    """A Llama of these tensors, which must be exactly the ones that its config asks for."""
    with torch.device("meta"):
        model = Llama(config)
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    if config.tie_word_embeddings:
        del expected["lm_head.weight"]
    loaded: dict[str, Tensor] = {}
    for name, weight in tensors:
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name not in expected:
            raise CheckpointError(f"it holds {name}, which a Llama of its config does not have.")
        if tuple(weight.shape) != expected[name]:
            raise CheckpointError(
                f"{name} has shape {tuple(weight.shape)}, but its config asks for {expected[name]}."
            )
        loaded[name] = weight
    if missing := [name for name in expected if name not in loaded]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"it lacks {missing[0]}{more}.")
    model.load_state_dict(loaded, strict=False, assign=True)  # strict would ask for a tied head
    model.tie_embeddings()
    return model.eval().requires_grad_(False)


# GGUF


_GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; others as they are."""
    block, part = re.fullmatch(r"(?:blk\.(\d+)\.)?(.+)\.weight|.+", name).groups()
    if part not in _GGUF_NAMES:
        return name
    prefix = f"model.layers.{block}." if block else ""
    return f"{prefix}{_GGUF_NAMES[part]}.weight"


def _gguf_config(metadata: dict[str, Any], tied: bool) -> LlamaConfig:
    architecture = metadata.get("general.architecture")
    llama = {key.removeprefix("llama."): value for key, value in metadata.items()}
    if llama.get("expert_count"):
        raise CheckpointError("it is a mixture of experts, which is not implemented.")
    names = {
        "hidden_size": "embedding_length",
        "intermediate_size": "feed_forward_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "head_dim": "rope.dimension_count",
        "max_position_embeddings": "context_length",
        "rms_norm_eps": "attention.layer_norm_rms_epsilon",
        "rope_theta": "rope.freq_base",
    }
    config = {key: llama[name] for key, name in names.items() if name in llama}
    return LlamaConfig.from_hf(
        {
            **config,
            "model_type": architecture,
            "vocab_size": llama.get("vocab_size", len(metadata.get("tokenizer.ggml.tokens", []))),
            "tie_word_embeddings": tied,
            "rope_scaling": {"type": llama.get("rope.scaling.type", "default")},
        }
    )


def _dequantize(tensor: gguf.ReaderTensor) -> np.ndarray:
    data = np.asarray(tensor.data)
    # gguf dequantizes 16 rows at a time; rows made 16 times longer save most of its overhead
    rows = data.shape[0] // math.gcd(data.shape[0], 16)
    try:
        values = gguf.dequantize(data.reshape(rows, -1), tensor.tensor_type)
    except NotImplementedError as error:
        raise CheckpointError(f"{tensor.name}: {error}.") from error
    # unquantized values are a view of the file, which is read-only: copy those
    return np.require(values.reshape(tensor.shape[::-1]), requirements="W")


class _GGUFReader(gguf.GGUFReader):
    """gguf's reader with arrays read in one pass.

    Its own makes several numpy views for each element: seconds, for a vocabulary.
    """

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list, list, list]:
        if raw_type != gguf.GGUFValueType.ARRAY or self.byte_order == "S":
            return super()._get_field_parts(orig_offs, raw_type)
        data = np.asarray(self.data)  # a plain array: slices of a memmap are slow to make
        kind, length = struct.unpack_from("=IQ", data, orig_offs)
        types = [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType(kind)]
        offset = orig_offs + 12
        if types[1] in self.gguf_scalar_to_np:
            values = np.frombuffer(data, self.gguf_scalar_to_np[types[1]], length, offset)
            return 12 + values.nbytes, [values], [0], types
        if types[1] != gguf.GGUFValueType.STRING:
            return super()._get_field_parts(orig_offs, raw_type)
        strings = []
        for _ in range(length):
            (size,) = struct.unpack_from("=Q", data, offset)
            strings.append(data[offset + 8 : offset + 8 + size])
            offset += 8 + size
        return offset - orig_offs, strings, list(range(length)), types
