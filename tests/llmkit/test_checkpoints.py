"""Small checkpoints, written here, through the same door as real ones."""

import json
import types
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from llmkit import assets
from llmkit.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from llmkit.positions import llama3_frequencies, rope_frequencies
from llmkit.transformer import PRESETS, Llama, LlamaConfig, RopeScaling
from tests.llmkit.test_tokenization import METADATA, TOKENIZER, TOKENS

SIZES = {
    "vocab_size": len(TOKENS),
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rope_theta": 700.0,
    "rms_norm_eps": 1e-4,
}
IDS = torch.randint(0, len(TOKENS), (2, 17), generator=torch.Generator().manual_seed(0))


def oracle(**changes) -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES | changes)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model


def assert_same_logits(ours: Llama, theirs: transformers.LlamaForCausalLM, tolerance=1e-5):
    with torch.no_grad():
        expected = theirs(IDS).logits
        torch.testing.assert_close(ours(IDS), expected, rtol=tolerance, atol=tolerance)


# Hugging Face directories


def hf_directory(path: Path, model: transformers.LlamaForCausalLM, shard_size="1GB") -> Path:
    model.save_pretrained(path, max_shard_size=shard_size)
    TOKENIZER.backend.save(str(path / "tokenizer.json"))
    return path


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard_size", ["1GB", "60KB"])
def test_hugging_face_directory(tmp_path, tied, shard_size):
    theirs = oracle(tie_word_embeddings=tied)
    directory = hf_directory(tmp_path, theirs, shard_size)
    assert (len(list(directory.glob("*.safetensors"))) > 1) == (shard_size == "60KB")
    model, tokenizer = load_checkpoint(directory)
    assert_same_logits(model, theirs)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_dtype(tmp_path):
    model, _ = load_checkpoint(hf_directory(tmp_path, oracle()), dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def edit(directory: Path, change) -> None:
    file = directory / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)


def test_formula_stored_as_a_weight_is_left_out(tmp_path):
    theirs = oracle()
    directory = hf_directory(tmp_path, theirs)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit(directory, lambda weights: weights.update({name: torch.zeros(8)}))
    assert_same_logits(load_checkpoint(directory)[0], theirs)


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(NORM), rf"it lacks {NORM}\."),
        (lambda weights: weights.pop("lm_head.weight"), r"it lacks lm_head\.weight\."),
        (lambda weights: weights.clear(), r"it lacks model\.\S+ and 20 more\."),
        (
            lambda weights: weights.update({"model.layers.2.mlp.up_proj.weight": torch.ones(1)}),
            "it holds model.layers.2.mlp.up_proj.weight, which a Llama of its config",
        ),
        (
            lambda weights: weights.update({NORM: torch.ones(63)}),
            rf"{NORM} has shape \(63,\), but its config asks for \(64,\)",
        ),
    ],
)
def test_wrong_tensors_are_named(tmp_path, change, message):
    directory = hf_directory(tmp_path, oracle())
    edit(directory, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(directory)


def test_wrong_config_is_named_with_its_place(tmp_path):
    directory = hf_directory(tmp_path, oracle())
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "qwen2"}))
    with pytest.raises(CheckpointError, match=f"{directory} cannot be loaded: .*'qwen2'"):
        load_checkpoint(directory)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", ["[1]", "{", '{"weight_map": 3, "hidden_size": []}'])
def test_damaged_json(tmp_path, name, content):
    directory = hf_directory(tmp_path, oracle(), "60KB")
    (directory / name).write_text(content)
    with pytest.raises(CheckpointError, match=r"cannot be loaded: .+"):
        load_checkpoint(directory)


def test_missing_shard_is_named(tmp_path):
    directory = hf_directory(tmp_path, oracle(), "60KB")
    shard = sorted(directory.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"{directory} holds no {shard.name}"):
        load_checkpoint(directory)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_file_is_named(tmp_path, name):
    directory = hf_directory(tmp_path, oracle())
    (directory / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"holds no {name}"):
        load_checkpoint(directory)


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{broken", bytes(100)])
def test_damaged_safetensors(tmp_path, content):
    directory = hf_directory(tmp_path, oracle())
    (directory / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_checkpoint(directory)


def test_names_and_paths(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint at .*absent\.gguf"):
        load_checkpoint(tmp_path / "absent.gguf")
    asked = []
    directory = hf_directory(tmp_path, oracle())
    monkeypatch.setattr(assets, "fetch", lambda name: asked.append(name) or directory)
    load_checkpoint("smollm2")
    assert asked == ["smollm2"]


# saving

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SHAPES = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "scaled": {"rope_scaling": LLAMA3, "head_dim": 16},
    "window": {"model_type": "mistral", "sliding_window": 5},
}


def ours(shape: str, dtype=torch.float32) -> Llama:
    torch.manual_seed(0)
    model = Llama(LlamaConfig.from_hf(SIZES | SHAPES[shape])).to(dtype)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shard_bytes", [10**9, 60_000, 1])
def test_saved_checkpoint_gives_the_same_logits_in_transformers_and_here(
    tmp_path, shape, shard_bytes
):
    model, directory = ours(shape), tmp_path / "new" / "model"
    save_checkpoint(model, directory, TOKENIZER, shard_bytes)
    assert [path.name for path in directory.parent.iterdir()] == ["model"]
    files = list(directory.glob("*.safetensors"))
    assert (len(files) > 1) == (shard_bytes < 10**9)
    assert shard_bytes == 1 or all(file.stat().st_size < shard_bytes + 20_000 for file in files)
    theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(
        directory, output_loading_info=True
    )
    assert not any(loading.values()), loading
    assert_same_logits(model, theirs)
    again, tokenizer = load_checkpoint(directory)
    assert again.config == model.config
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)
    assert tokenizer.backend.to_str() == TOKENIZER.backend.to_str()
    assert tokenizer.stop_ids == TOKENIZER.stop_ids
    assert tokenizer.special_tokens == TOKENIZER.special_tokens
    assert tokenizer.chat_template == TOKENIZER.chat_template


def test_saved_tokenizer_is_transformers_too(tmp_path):
    save_checkpoint(ours("plain"), tmp_path / "model", TOKENIZER)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    text, messages = "hello  12 é<|im_end|>", [{"role": "user", "content": "hello"}]
    assert theirs.encode(text) == TOKENIZER.encode(text)
    rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == TOKENIZER.apply_chat_template(messages)


def test_saved_dtype(tmp_path):
    save_checkpoint(ours("tied", torch.bfloat16), tmp_path / "model", TOKENIZER)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert {p.dtype for p in theirs.parameters()} == {torch.bfloat16}
    assert set(load_file(tmp_path / "model" / "model.safetensors")) == set(
        ours("tied").state_dict()
    ) - {"lm_head.weight"}


def test_no_other_file_is_touched(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("years of work")
    for place in (tmp_path / "thesis", tmp_path / "thesis" / "text"):
        with pytest.raises(FileExistsError, match=f"{place} is there already"):
            save_checkpoint(ours("plain"), place)
    assert [path.name for path in tmp_path.rglob("*")] == ["thesis", "text"]


def test_failed_save_leaves_nothing_and_can_be_repeated(tmp_path):
    fails_late = types.SimpleNamespace(backend=TOKENIZER.backend, stop_ids=TOKENIZER.stop_ids)
    with pytest.raises(AttributeError, match="special_tokens"):
        save_checkpoint(ours("plain"), tmp_path / "model", fails_late)
    assert list(tmp_path.iterdir()) == []
    save_checkpoint(ours("plain"), tmp_path / "model", TOKENIZER)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    load_checkpoint(tmp_path / "model")


def test_a_model_with_other_layers_is_not_saved(tmp_path):
    model = ours("plain")
    model.model.layers[1].mlp.up_proj = torch.nn.Sequential(model.model.layers[1].mlp.up_proj)
    with pytest.raises(ValueError, match=r"Only a plain Llama .*layers\.1\.mlp\.up_proj"):
        save_checkpoint(model, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


# GGUF

GGUF_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def to_interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Hugging Face's row order to GGUF's, as llama.cpp's converter does it."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def quantize(weight: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """As gguf does it; random blocks of the kinds that it can only read."""
    if kind not in (gguf.GGMLQuantizationType.Q4_K, gguf.GGMLQuantizationType.Q6_K):
        return gguf.quantize(weight, kind)
    rng = np.random.default_rng(weight.size)
    size, width = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (weight.size // size, width), dtype=np.uint8)
    # the scales, float16: d and dmin first in Q4_K, d last in Q6_K
    scales = rng.uniform(-1e-4, 1e-4, (len(blocks), 2)).astype(np.float16).view(np.uint8)
    if kind == gguf.GGMLQuantizationType.Q4_K:
        blocks[:, :4] = scales
    else:
        blocks[:, -2:] = scales[:, :2]
    return blocks.reshape(weight.shape[0], -1)


def write_gguf(
    path: Path, model, kinds=gguf.GGMLQuantizationType.F32, extra=None, theta=700.0
) -> Path:
    """Write a GGUF file; give the model the weights that the file then holds.

    `kinds` is the type of every matrix, or says which, given its name.
    """
    writer = gguf.GGUFWriter(path, "llama")
    c = model.config
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(theta)
    for key, value in METADATA.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    for key, value in (extra or {}).items():
        if isinstance(value, np.ndarray):
            writer.add_tensor(key, value)
        else:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for name, parameter in model.named_parameters():
        weight = parameter.detach().numpy()
        kind = kinds(name) if callable(kinds) else kinds
        heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}
        heads = heads.get(name.split(".")[-2])
        stored = to_interleaved(weight, heads) if heads else weight
        if weight.ndim == 2:
            data = quantize(stored, kind)
            values = gguf.dequantize(data, kind)
            if heads:  # back to halves
                values = values.reshape(heads, -1, 2, values.shape[1]).swapaxes(1, 2)
            parameter.data.copy_(torch.from_numpy(values.reshape(weight.shape).copy()))
        else:
            data = stored
        block, _, part = name.removesuffix(".weight").removeprefix("model.layers.").partition(".")
        gguf_name = f"blk.{block}.{GGUF_PARTS[part]}" if block.isdecimal() else None
        gguf_name = gguf_name or GGUF_PARTS[name.removesuffix(".weight")]
        writer.add_tensor(f"{gguf_name}.weight", data, raw_dtype=kind if weight.ndim == 2 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
@pytest.mark.parametrize("tied", [False, True])
def test_gguf(tmp_path, kind, tied):
    theirs = oracle(tie_word_embeddings=tied)
    path = write_gguf(tmp_path / "m.gguf", theirs, gguf.GGMLQuantizationType[kind])
    model, tokenizer = load_checkpoint(path)
    assert_same_logits(model, theirs)
    assert model.config.tie_word_embeddings == tied
    text = "hello  12 é<|im_end|>"
    assert tokenizer.encode(text) == TOKENIZER.encode(text)
    assert tokenizer.stop_ids == {0, 2} and tokenizer.chat_template == TOKENIZER.chat_template


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q4_K_M"])
def test_gguf_with_superblocks(tmp_path, kind):
    kinds = gguf.GGMLQuantizationType
    theirs = oracle(hidden_size=256, intermediate_size=512, num_hidden_layers=1)
    sensitive = ("down_proj", "v_proj", "embed_tokens")  # Q4_K_M keeps them in Q6_K
    mixed = lambda name: kinds.Q6_K if name.split(".")[-2] in sensitive else kinds.Q4_K
    path = write_gguf(tmp_path / "m.gguf", theirs, mixed if kind == "Q4_K_M" else kinds[kind])
    model, _ = load_checkpoint(path)
    for name, weight in theirs.named_parameters():
        assert torch.equal(model.get_parameter(name), weight), name
        assert weight.std() > 1e-4
    assert_same_logits(model, theirs)


def test_gguf_with_scaled_rope(tmp_path):
    """llama.cpp's converter writes Llama 3's factors as a tensor, and no name of the scaling."""
    scaling = LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192}
    theirs = oracle(head_dim=16, rope_theta=5e5, rope_scaling=scaling)
    plain = rope_frequencies(16, 5e5)
    factors = (plain / llama3_frequencies(plain, 32.0)).numpy()
    extra = {"rope_freqs.weight": factors, "llama.rope.scaling.type": "none"}
    path = write_gguf(tmp_path / "m.gguf", theirs, extra=extra, theta=5e5)
    model, _ = load_checkpoint(path)
    assert model.config.rope_scaling == PRESETS["llama-3.2-1b"].rope_scaling == RopeScaling(32.0)
    assert_same_logits(model, theirs)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"llama.rope.scaling.type": "linear"}, "RoPE scaling 'linear'"),
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"rope_freqs.weight": np.full(8, 2, np.float32)}, r"rope_freqs\.weight is not Llama 3's"),
        ({"rope_freqs.weight": np.ones(7, np.float32)}, r"rope_freqs\.weight is not Llama 3's"),
        ({"output_norm.bias": np.ones(64, np.float32)}, "it holds output_norm.bias"),
    ],
)
def test_gguf_that_is_not_implemented(tmp_path, extra, message):
    path = write_gguf(tmp_path / "m.gguf", oracle(), extra=extra)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"nonsense, and more of it", b"GGUF\3\0\0\0"])
def test_what_is_no_gguf_file(tmp_path, content):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.gguf cannot be loaded: "):
        load_checkpoint(path)


def test_truncated_gguf(tmp_path):
    whole = write_gguf(tmp_path / "m.gguf", oracle()).read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, len(whole) - 1, len(whole) // 40), 31, 101, len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut\.gguf cannot be loaded: "):
            load_checkpoint(cut)
