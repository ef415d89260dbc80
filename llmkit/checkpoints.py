"""Checkpoints: real weights from disk, as a GGUF file or a Hugging Face directory, and back."""

import dataclasses
import json
import math
import os
import re
import secrets
import shutil
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from llmkit import assets
from llmkit.positions import interleaved_to_half, llama3_frequencies, rope_frequencies
from llmkit.tokenization import Tokenizer
from llmkit.transformer import Llama, LlamaConfig, RopeScaling

# what the readers raise where a file is cut short or is something else
_DAMAGE = (
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    struct.error,
    safetensors.SafetensorError,
)
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


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
    model and a tensor more for each core.

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
    config = LlamaConfig.from_hf(_read_json(directory, "config.json"))
    shards = [_WEIGHTS]
    if (directory / _INDEX).is_file():
        places = _read_json(directory, _INDEX).get("weight_map")
        if not (isinstance(places, dict) and all(isinstance(p, str) for p in places.values())):
            raise CheckpointError(f"its {_INDEX} has no weight_map that names files.")
        shards = sorted(set(places.values()))
    if missing := [shard for shard in shards if not (directory / shard).is_file()]:
        raise FileNotFoundError(f"{directory} holds no {', '.join(missing)}.")

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for shard in shards:
            with safetensors.safe_open(directory / shard, "pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    if not name.endswith("rotary_emb.inv_freq"):  # old files hold RoPE's formula
                        yield name, file.get_tensor(name).to(device, dtype)

    return _fill(config, tensors()), Tokenizer.from_directory(directory)


def _read_json(directory: Path, name: str) -> dict[str, Any]:
    if not (directory / name).is_file():
        raise FileNotFoundError(f"{directory} holds no {name}.")
    content = json.loads((directory / name).read_text("utf-8"))
    if not isinstance(content, dict):
        raise CheckpointError(f"its {name} is not a JSON object.")
    return content


def _load_gguf(
    path: Path, device: torch.device | str | None, dtype: torch.dtype
) -> tuple[Llama, Tokenizer]:
    reader = _GGUFReader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    stored = {tensor.name: tensor for tensor in reader.tensors}
    config = _gguf_config(metadata, tied="output.weight" not in stored)
    if (factors := stored.pop("rope_freqs.weight", None)) is not None:
        scaling = _rope_scaling(torch.from_numpy(_dequantize(factors)), config)
        config = dataclasses.replace(config, rope_scaling=scaling)

    def read(tensor: gguf.ReaderTensor) -> tuple[str, Tensor]:
        weight = torch.from_numpy(_dequantize(tensor)).to(device, dtype)
        if tensor.name.endswith("attn_q.weight"):
            weight = interleaved_to_half(weight, config.num_attention_heads)
        elif tensor.name.endswith("attn_k.weight"):
            weight = interleaved_to_half(weight, config.num_key_value_heads)
        return _hf_name(tensor.name), weight

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy uses one core for each
        tensors = pool.map(read, stored.values())
        return _fill(config, tensors), Tokenizer.from_gguf(metadata)


def _fill(config: LlamaConfig, tensors: Iterator[tuple[str, Tensor]]) -> Llama:
    """A Llama of these tensors, which must be exactly the ones that its config asks for."""
    with torch.device("meta"):
        model = Llama(config)
    expected = {name: tuple(weight.shape) for name, weight in _untied(model).items()}
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


def _untied(model: Llama) -> dict[str, Tensor]:
    """The model's weights, each once: files hold no head that is the embedding."""
    weights = model.state_dict()
    if model.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    return weights


def save_checkpoint(
    model: Llama,
    directory: str | Path,
    tokenizer: Tokenizer | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a Hugging Face directory, which `load_checkpoint` and transformers load.

    That is config.json, the weights in their dtype (several files above `max_shard_bytes`), and the
    tokenizer, if given: `load_checkpoint` asks for one. The directory appears when it is complete.

    Raises FileExistsError if it is there already, ValueError for a model with layers that are not
    a Llama's own.
    """
    directory = Path(directory).absolute()
    if directory.exists():
        raise FileExistsError(f"{directory} is there already: choose another name or remove it.")
    with torch.device("meta"):
        plain = _untied(Llama(model.config)).keys()
    weights = {name: weight.contiguous() for name, weight in _untied(model).items()}
    if odd := sorted(plain ^ weights.keys()):
        raise ValueError(
            f"Only a plain Llama can be saved, and {odd[0]} shows that this is none: merge its "
            "adapters first."
        )
    config = model.config.to_hf() | {
        "torch_dtype": str(model.lm_head.weight.dtype).removeprefix("torch.")
    }
    config |= {"bos_token_id": None, "eos_token_id": None}  # transformers' guess: 1 and 2
    if tokenizer is not None:
        config["eos_token_id"] = sorted(tokenizer.stop_ids)

    partial = directory.with_name(f".{directory.name}-{secrets.token_hex(4)}")
    partial.mkdir(parents=True)
    try:
        _save_weights(weights, partial, max_shard_bytes)
        _write_json(partial / "config.json", config)
        if tokenizer is not None:
            _save_tokenizer(tokenizer, partial)
        os.rename(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _save_weights(weights: dict[str, Tensor], directory: Path, max_shard_bytes: int) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    room = max_shard_bytes
    for name, weight in weights.items():
        if weight.nbytes > room and shards[-1]:
            shards.append({})
            room = max_shard_bytes
        shards[-1][name] = weight
        room -= weight.nbytes
    if len(shards) == 1:
        files = [_WEIGHTS]
    else:
        count = len(shards)
        files = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
        places = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        total = sum(weight.nbytes for weight in weights.values())
        _write_json(directory / _INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, directory / file, metadata={"format": "pt"})  # transformers asks for it


def _save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    tokenizer.backend.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer.special_tokens}
    if tokenizer.chat_template is not None:
        settings["chat_template"] = tokenizer.chat_template
    _write_json(directory / "tokenizer_config.json", settings)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# GGUF


_GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_GGUF_NAMES_IN_BLOCKS = {
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
    names = _GGUF_NAMES_IN_BLOCKS if block else _GGUF_NAMES
    if part not in names:
        return name
    prefix = f"model.layers.{block}." if block else ""
    return f"{prefix}{names[part]}.weight"


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
    scaling = llama.get("rope.scaling.type", "none")
    return LlamaConfig.from_hf(
        {
            **config,
            "model_type": architecture,
            "vocab_size": llama.get("vocab_size", len(metadata.get("tokenizer.ggml.tokens", []))),
            "tie_word_embeddings": tied,
            "rope_scaling": {"type": {"none": "default"}.get(scaling, scaling)},
        }
    )


def _rope_scaling(factors: Tensor, config: LlamaConfig) -> RopeScaling:
    """The scaling that slows each pair of features down so: GGUF files hold the factors alone.

    Shapes: factors (d/2,). Raises CheckpointError if no scaling of Llama 3 gives them.
    """
    scaling = RopeScaling(factor=round(factors.max().item(), 3))
    plain = rope_frequencies(config.head_dim, config.rope_theta)
    expected = plain / llama3_frequencies(plain, *dataclasses.astuple(scaling))
    if factors.shape != expected.shape or not torch.allclose(factors, expected, rtol=1e-3):
        raise CheckpointError("its rope_freqs.weight is not Llama 3's scaling of RoPE.")
    return scaling


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
