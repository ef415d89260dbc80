import copy
import dataclasses

import pytest
import torch
import transformers

from llmkit.attention import causal_mask
from llmkit.positions import rope_frequencies, rope_tables
from llmkit.transformer import (
    PRESETS,
    Llama,
    LlamaConfig,
    RopeScaling,
    TransformerBlock,
    count_parameters,
    is_causal,
    preset,
)
from tests.llmkit.gradients import assert_gradients

# shrunken configs with Hugging Face's names; no two sizes alike
SMALL = {
    "vocab_size": 97,
    "hidden_size": 36,
    "intermediate_size": 50,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
VARIANTS = {
    "MHA": {"num_key_value_heads": 6},
    "GQA": {},
    "MQA": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "head_dim": {"head_dim": 10},
    "theta and eps": {"rope_theta": 500.0, "rms_norm_eps": 1e-2},
    "llama3 scaling": {"head_dim": 16, "rope_scaling": LLAMA3, "rope_theta": 50.0},
}


def both(**changes) -> tuple[Llama, transformers.PreTrainedModel]:
    torch.manual_seed(0)
    changes = copy.deepcopy(SMALL | changes)  # transformers edits its dicts
    hf_config = transformers.AutoConfig.for_model(changes.pop("model_type", "llama"), **changes)
    theirs = transformers.AutoModelForCausalLM.from_config(hf_config).eval()
    for weight in theirs.parameters():  # as drawn, everything is near 0 and all norms are 1
        torch.nn.init.normal_(weight, std=0.3)
    ours = Llama(LlamaConfig.from_hf(hf_config.to_dict())).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_logits_are_transformers(variant):
    ours, theirs = both(**VARIANTS[variant])
    ids = torch.randint(0, 97, (2, 23))
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", sorted(PRESETS.keys() - {"tiny"}))
@torch.no_grad()
def test_logits_of_every_preset_shrunken(name, tied):
    """Two layers, narrow heads and few of them, but shared, scaled, turned … as in the preset."""
    c = PRESETS[name]
    heads = 2 * c.num_attention_heads // c.num_key_value_heads
    sizes = {"vocab_size": 97, "intermediate_size": 50, "num_hidden_layers": 2, "head_dim": 16}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": 2, "hidden_size": 2 * heads}
    small = dataclasses.replace(c, **sizes, tie_word_embeddings=tied)
    ours, theirs = both(**small.to_hf())
    assert ours.config == small
    ids = torch.randint(0, 97, (2, 64))
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_sliding_window_is_mistrals():
    ours, theirs = both(model_type="mistral", sliding_window=4)
    assert type(theirs) is transformers.MistralForCausalLM and ours.config.sliding_window == 4
    ids, mask = torch.randint(0, 97, (2, 23)), torch.ones(2, 23, dtype=torch.long)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)
    mask[0, :6] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = theirs(ids, attention_mask=mask, position_ids=positions).logits[mask == 1]
    cache, pieces, start = ours.new_cache(23, 2), [], 0
    for size in (3, 9, 1, 10):
        here = slice(start, start := start + size)
        pieces.append(ours(ids[:, here], cache, mask[:, :start]))
    for logits in (ours(ids, attention_mask=mask), torch.cat(pieces, 1)):
        torch.testing.assert_close(logits[mask == 1], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_left_padded_batch_is_transformers_and_each_row_alone():
    ours, theirs = both()
    ids, mask = torch.randint(0, 97, (3, 9)), torch.ones(3, 9, dtype=torch.long)
    mask[0, :4] = mask[1, :1] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = ours(ids, attention_mask=mask)
    expected = theirs(ids, attention_mask=mask, position_ids=positions).logits
    real = mask.bool()
    torch.testing.assert_close(logits[real], expected[real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits[0, 4:], ours(ids[:1, 4:])[0], rtol=1e-5, atol=1e-5)
    assert logits.isfinite().all()


@pytest.mark.parametrize("chunks", [[9], [4, 5], [1] * 9, [6, 1, 1, 1]])
@pytest.mark.parametrize("ragged", [False, True])
@torch.no_grad()
def test_cached_equals_uncached(chunks, ragged):
    ours, _ = both()
    ids, mask = torch.randint(0, 97, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    if ragged:
        mask[0, :3] = 0
    cache, pieces, start = ours.new_cache(capacity=12, batch_size=2), [], 0
    for size in chunks:
        here = slice(start, start := start + size)
        pieces.append(ours(ids[:, here], cache, mask[:, :start] if ragged else None))
    whole = ours(ids, attention_mask=mask if ragged else None)
    real = mask.bool()
    torch.testing.assert_close(torch.cat(pieces, 1)[real], whole[real], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_cropped_and_selected_caches_go_on_as_if_nothing_else_had_been():
    ours, _ = both()
    ids, cache = torch.randint(0, 97, (2, 9)), ours.new_cache(12, batch_size=2)
    ours(ids[:, :5], cache)
    ours(torch.randint(0, 97, (2, 6)), cache)  # guesses that prove wrong
    rows = torch.tensor([1, 0, 1])
    for layer in cache:
        layer.crop(5)
        layer.select(rows)
    logits = ours(ids[rows, 5:], cache)
    torch.testing.assert_close(logits, ours(ids[rows])[:, 5:], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_logits_to_keep():
    ours, _ = both()
    ids = torch.randint(0, 97, (2, 7))
    torch.testing.assert_close(ours(ids, logits_to_keep=2), ours(ids)[:, -2:])


@torch.no_grad()
def test_causality_is_seen_by_perturbation():
    model = Llama(PRESETS["tiny"])
    a, b = torch.randint(0, 256, (2, 2, 7))
    sees_all = torch.ones(2, 7, dtype=torch.long)
    assert is_causal(model, a, b)
    assert is_causal(lambda ids: model(ids, attention_mask=sees_all[:, : ids.shape[1]]), a, b)
    block, x, y = model.model.layers[0], torch.randn(1, 5, 48), torch.randn(1, 5, 48)
    assert is_causal(block, x, y)
    for offset in (1, 4):  # one position too far, and all
        assert not is_causal(lambda x: block(x, mask=causal_mask(5, 5, offset)), x, y)  # noqa: B023
    assert is_causal(lambda x: x.cumsum(1), x, y)
    assert not is_causal(lambda x: x.flip(1), x, y)


def test_gradients_of_a_block_and_of_a_whole_llama():
    torch.manual_seed(0)
    config = LlamaConfig(5, 4, 3, 1, 2, 1, tie_word_embeddings=True)
    block, x = TransformerBlock(config), torch.randn(1, 3, 4, dtype=torch.double)
    rope = rope_tables(torch.arange(3), rope_frequencies(2))
    assert_gradients(block, x.requires_grad_(), rope)
    model = Llama(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight)
    mask = torch.tensor([[0, 1, 1, 1]])
    assert_gradients(model, torch.tensor([[0, 3, 1, 4]]), None, mask, fast=True)


# bad input


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"input_ids": torch.ones(3).long()},
            ValueError,
            r"input_ids must be \(B, T\).*not \(3,\)",
        ),
        ({"input_ids": torch.ones(2, 0).long()}, ValueError, r"at least one token, not \(2, 0\)"),
        ({"input_ids": torch.ones(2, 3)}, TypeError, r"whole numbers .* not torch\.float32"),
        (
            {"input_ids": torch.ones(2, 3).long().to("meta")},
            ValueError,
            "on meta, the model on cpu",
        ),
        ({"attention_mask": torch.ones(2, 3)}, ValueError, r"\(B, S\) = \(2, 7\).* not \(2, 3\)"),
        ({"attention_mask": torch.ones(1, 7)}, ValueError, r"\(B, S\) = \(2, 7\).* not \(1, 7\)"),
        ({"input_ids": torch.ones(3, 3).long()}, ValueError, "cache does not fit: .* 3 rows"),
        ({"logits_to_keep": 0}, ValueError, "logits_to_keep must be at least 1, not 0"),
        ({"cache": Llama(PRESETS["tiny"]).new_cache(9, 2)[:1]}, ValueError, "wants 2 layers"),
        ({"input_ids": torch.ones(2, 6).long()}, ValueError, "room for 9 positions and holds 4"),
    ],
)
@torch.no_grad()
def test_input_that_does_not_fit_is_named_and_nothing_is_cached(given, error, message):
    model = Llama(PRESETS["tiny"])
    cache = model.new_cache(9, 2)
    model(torch.ones(2, 4).long(), cache)
    with pytest.raises(error, match=message):
        model(**{"input_ids": torch.ones(2, 3).long(), "cache": cache, **given})
    assert [layer.offset for layer in cache] == [4, 4]


def test_unknown_preset():
    assert preset("llama-3-8b") is PRESETS["llama-3-8b"]
    with pytest.raises(ValueError, match=r"no preset 'llama3-8b'; the nearest is 'llama-3-8b'\."):
        preset("llama3-8b")


@torch.no_grad()
def test_rope_stays_float32_in_a_bfloat16_model():
    model = Llama(LlamaConfig.from_hf(SMALL | {"rope_theta": 500.0})).to(torch.bfloat16)
    seen = []
    model.model.layers[2].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    model(torch.zeros(1, 64, dtype=torch.long))
    expected = rope_tables(torch.arange(64), rope_frequencies(6, 500.0))
    assert torch.equal(seen[0][0], expected[0]) and torch.equal(seen[0][1], expected[1])


def test_trains_after_it_has_generated():
    model = Llama(PRESETS["tiny"])
    ids = torch.arange(6)[None]
    with torch.inference_mode():
        model(ids)
    model(ids).logsumexp(-1).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_tied_embeddings_are_one_parameter():
    model = Llama(dataclasses.replace(PRESETS["tiny"], tie_word_embeddings=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("llama-1-7b", 6_738_415_616),
        ("llama-1-13b", 13_015_864_320),
        ("llama-1-33b", 32_528_943_616),
        ("llama-1-65b", 65_285_660_672),
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-2-70b", 68_976_648_192),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
        ("llama-3.1-405b", 405_853_388_800),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("tinyllama-1.1b", 1_100_048_384),
        ("smollm2-135m", 134_515_008),
        ("smollm2-360m", 361_821_120),
        ("smollm2-1.7b", 1_711_376_384),
    ],
)
def test_published_parameter_counts(name, count):
    assert count_parameters(PRESETS[name]) == count


def test_fresh_weights_are_drawn():
    for name, weight in Llama(PRESETS["tiny"]).named_parameters():
        if "norm" not in name:
            assert weight.std().item() == pytest.approx(0.02, rel=0.1)


# configs


@pytest.mark.parametrize("name", PRESETS)
def test_configs_go_to_hugging_face_and_back(name):
    config = PRESETS[name]
    assert LlamaConfig.from_hf(config.to_hf()) == config
    window = dataclasses.replace(config, sliding_window=7)
    assert LlamaConfig.from_hf(window.to_hf()) == window


def test_from_hf_reads_old_and_new_rope_keys():
    old = LlamaConfig.from_hf(SMALL | {"rope_theta": 500.0, "rope_scaling": LLAMA3})
    new = LlamaConfig.from_hf(SMALL | {"rope_parameters": LLAMA3 | {"rope_theta": 500.0}})
    assert old == new
    assert new.rope_theta == 500.0 and new.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 16)


def test_from_hf_drops_what_changes_nothing():
    extra = {"torch_dtype": "bfloat16", "attention_dropout": 0.0, "bos_token_id": 1}
    assert LlamaConfig.from_hf(SMALL | extra) == LlamaConfig.from_hf(SMALL)


def test_from_hf_without_kv_heads_is_multi_head():
    config = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
    assert LlamaConfig.from_hf(config).num_key_value_heads == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma"}, "model_type = 'gemma'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "RoPE scaling 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "RoPE scaling 'yarn'"),
        ({"hidden_size": 35}, "hidden_size 35 is not divisible"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number above 0, not 0"),
        ({"vocab_size": "97"}, "vocab_size must be a whole number above 0, not '97'"),
        ({"num_key_value_heads": 4}, "cannot share 4 key/value heads"),
    ],
)
def test_what_is_not_implemented_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Llama(LlamaConfig.from_hf(SMALL | changes))


def test_from_hf_names_what_is_missing():
    with pytest.raises(ValueError, match="config lacks hidden_size, num_hidden_layers"):
        LlamaConfig.from_hf(
            {k: v for k, v in SMALL.items() if k not in ("hidden_size", "num_hidden_layers")}
        )
