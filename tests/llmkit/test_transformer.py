import copy
import dataclasses

import pytest
import torch
import transformers

from llmkit.positions import rope_frequencies, rope_tables
from llmkit.transformer import PRESETS, Llama, LlamaConfig, RopeScaling, count_parameters

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


def both(**changes) -> tuple[Llama, transformers.LlamaForCausalLM]:
    torch.manual_seed(0)
    hf_config = transformers.LlamaConfig(**copy.deepcopy(SMALL | changes))  # it edits its dicts
    theirs = transformers.LlamaForCausalLM(hf_config).eval()
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
def test_logits_to_keep():
    ours, _ = both()
    ids = torch.randint(0, 97, (2, 7))
    torch.testing.assert_close(ours(ids, logits_to_keep=2), ours(ids)[:, -2:])


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
        ("smollm2-135m", 134_515_008),
    ],
)
def test_published_parameter_counts(name, count):
    assert count_parameters(PRESETS[name]) == count


def test_fresh_weights_are_drawn():
    for name, weight in Llama(PRESETS["tiny"]).named_parameters():
        if "norm" not in name:
            assert weight.std().item() == pytest.approx(0.02, rel=0.1)


# configs


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
        ({"model_type": "mistral"}, "model_type = 'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "RoPE scaling 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "RoPE scaling 'yarn'"),
        ({"hidden_size": 35}, "hidden_size 35 is not divisible"),
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
