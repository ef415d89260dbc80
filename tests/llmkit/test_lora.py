import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llmkit.lora import (
    ALL_LINEAR,
    ATTENTION,
    LoRALinear,
    adapters,
    add_lora,
    fold_lora,
    load_lora,
    merge_lora,
    save_lora,
    trainable_parameters,
)
from llmkit.transformer import PRESETS, Llama, LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=61,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
)
IDS = torch.tensor([[5, 17, 31, 2, 60, 8], [3, 3, 25, 40, 1, 9]])


def fresh(**changes) -> Llama:
    torch.manual_seed(0)
    model = Llama(LlamaConfig(**{**vars(CONFIG), **changes})).eval()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3)
    return model


def stir(model: Llama) -> None:
    """Give every adapter a B that is not 0, as training would."""
    generator = torch.Generator().manual_seed(1)
    for layer in adapters(model).values():
        weight = layer.lora_B.weight.data
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)


@torch.no_grad()
def logits(model: Llama) -> torch.Tensor:
    return model(IDS)


def state_of(model: Llama) -> dict:
    return {name: (type(module), id(module)) for name, module in model.named_modules()} | {
        name: (weight.requires_grad, weight.sum().item())
        for name, weight in model.named_parameters()
    }


# one layer


def test_layer_by_its_formula():
    torch.manual_seed(0)
    base = nn.Linear(5, 7)  # with a bias
    layer = LoRALinear(base, r=3, alpha=6.0)
    nn.init.normal_(layer.lora_B.weight)
    x = torch.randn(2, 4, 5)
    a, b = layer.lora_A.weight, layer.lora_B.weight
    expected = x @ base.weight.T + base.bias + 2.0 * (x @ a.T) @ b.T
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(merge_lora(base.weight, a, b, 6.0), base.weight + 2.0 * b @ a)
    torch.testing.assert_close(layer.merge()(x), expected)


def test_fresh_layer_is_its_base_exactly_and_learns_at_once():
    torch.manual_seed(0)
    base = nn.Linear(16, 7)
    layer, x = LoRALinear(base, r=4), torch.randn(3, 16)
    assert torch.equal(layer(x), base(x))
    layer(x).square().sum().backward()
    assert layer.lora_B.weight.grad.abs().min() > 0
    assert base.weight.grad is None and base.bias.grad is None
    assert layer.lora_A.weight.abs().max() <= 1 / math.sqrt(16)
    assert layer.lora_A.weight.abs().max() > 0.8 / math.sqrt(16)


def test_gradients_numerically():
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(4, 3, dtype=torch.float64), r=2, alpha=5.0)
    nn.init.normal_(layer.lora_B.weight)
    a, b = layer.lora_A.weight, layer.lora_B.weight
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    function = lambda x, a, b: torch.func.functional_call(
        layer, {"lora_A.weight": a, "lora_B.weight": b}, x
    )
    assert torch.autograd.gradcheck(function, (x, a.detach().requires_grad_(), b))


def test_adapter_of_a_bfloat16_layer_stays_float32():
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(8, 6, dtype=torch.bfloat16), r=2)
    x = torch.randn(3, 8, dtype=torch.bfloat16)
    assert layer.lora_A.weight.dtype == layer.lora_B.weight.dtype == torch.float32
    assert layer(x).dtype == layer.merge().weight.dtype == torch.bfloat16


@pytest.mark.parametrize(("r", "alpha"), [(0, 1.0), (2.5, 1.0), (2, 0.0), (2, math.inf)])
def test_rank_and_alpha_are_checked(r, alpha):
    for make in (
        lambda: LoRALinear(nn.Linear(2, 2), r, alpha),
        lambda: add_lora(fresh(), r=r, alpha=alpha),
    ):
        with pytest.raises(ValueError, match="r must be a whole number from 1 and alpha above 0"):
            make()


# a model


@pytest.mark.parametrize("targets", [("q_proj",), ATTENTION, ALL_LINEAR, (*ALL_LINEAR, "lm_head")])
def test_added_changes_nothing_and_merged_changes_nothing(targets):
    model = fresh()
    before, names = logits(model), list(model.state_dict())
    add_lora(model, targets, r=3, alpha=7.0)
    assert torch.equal(logits(model), before)
    stir(model)
    learned = logits(model)
    assert (learned - before).abs().max() > 0.01
    fold_lora(model)
    torch.testing.assert_close(logits(model), learned, rtol=0, atol=1e-5)
    assert list(model.state_dict()) == names and not adapters(model)


def test_only_adapters_learn():
    model = fresh()
    add_lora(model, ATTENTION, r=2)
    stir(model)
    model(IDS).logsumexp(-1).sum().backward()
    for name, weight in model.named_parameters():
        assert (weight.grad is not None) == weight.requires_grad == (".lora_" in name)


def test_number_of_trainable_parameters():
    model = fresh()
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    for targets in (("q_proj",), ("v_proj", "down_proj"), ALL_LINEAR):
        tuned = fresh()
        add_lora(tuned, targets, r=5)
        counted = sum(w.numel() for w in tuned.parameters() if w.requires_grad)
        assert trainable_parameters(shapes, targets, 5) == counted


@pytest.mark.parametrize(
    ("name", "targets", "r", "count"),
    [
        ("llama-2-7b", ("q_proj", "v_proj"), 8, 4_194_304),  # as peft prints it
        ("llama-2-7b", ALL_LINEAR, 64, 159_907_840),  # QLoRA's
        ("smollm2-135m", ATTENTION, 8, 921_600),
    ],
)
def test_published_numbers_of_trainable_parameters(name, targets, r, count):
    with torch.device("meta"):
        model = Llama(PRESETS[name])
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert trainable_parameters(shapes, targets, r) == count


def test_seeds_reproduce_and_leave_the_global_generator_alone():
    drawn = []
    for seed in (3, 3, 4):
        model = fresh()
        state = torch.get_rng_state()
        add_lora(model, ["v_proj", "q_proj"], seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        drawn.append([layer.lora_A.weight for layer in adapters(model).values()])
    assert all(map(torch.equal, drawn[0], drawn[1]))
    assert not any(map(torch.equal, drawn[0], drawn[2]))
    assert not torch.equal(drawn[0][0], drawn[0][2])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj", "query"], "down_proj, gate_proj, k_proj, lm_head, .*, not q_proj, query"),
        ([], "not none"),
        (["norm"], "must name some of the linear layers"),
        (
            ["q_proj", "lm_head"],
            r"lm_head cannot .* its weight is also model\.embed_tokens\.weight",
        ),
    ],
)
def test_targets_are_checked_and_the_model_left_alone(targets, message):
    model = fresh(tie_word_embeddings=True)
    before = state_of(model)
    with pytest.raises(ValueError, match=message):
        add_lora(model, targets)
    assert state_of(model) == before


def test_no_adapters_on_adapters():
    model = fresh()
    for needs_adapters in (fold_lora, lambda m: save_lora(m, "unused")):
        with pytest.raises(ValueError, match="has no adapters: call add_lora first"):
            needs_adapters(model)
    add_lora(model)
    before = state_of(model)
    with pytest.raises(ValueError, match="has adapters already: call fold_lora"):
        add_lora(model, ["up_proj"])
    assert state_of(model) == before


# files


def test_saved_and_loaded(tmp_path):
    model = fresh()
    add_lora(model, ("q_proj", "down_proj"), r=3, alpha=7.0)
    stir(model)
    save_lora(model, tmp_path / "new" / "adapter")
    other = fresh()
    load_lora(other, tmp_path / "new" / "adapter")
    assert torch.equal(logits(other), logits(model))
    assert adapters(other).keys() == adapters(model).keys()
    assert [n for n, w in other.named_parameters() if w.requires_grad] == [
        n for n, w in model.named_parameters() if w.requires_grad
    ]


def test_files_are_pefts(tmp_path):
    model = fresh()
    add_lora(model, ("v_proj",), r=3, alpha=7.0)
    save_lora(model, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    name = "base_model.model.model.layers.2.self_attn.v_proj"
    assert saved[f"{name}.lora_A.weight"].shape == (3, 24)
    assert saved[f"{name}.lora_B.weight"].shape == (8, 3)
    assert len(saved) == 6
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 7.0)
    assert config["peft_type"] == "LORA" and config["target_modules"] == ["v_proj"]


def change_config(directory, **changes):
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(directory, edit):
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "adapter_config.json").unlink(), r"holds no adapter_config\.json"),
        (lambda d: (d / "adapter_config.json").write_text("{"), "can be read"),
        (lambda d: (d / "adapter_config.json").write_text("{}"), "can be read: KeyError"),
        (lambda d: (d / "adapter_model.safetensors").write_bytes(b"12"), "can be read"),
        (
            lambda d: change_config(d, r=4),
            r"belongs to another model: .* should be \(4, 24\)|\(24, 4\)",
        ),
        (lambda d: change_config(d, r=0), "r must be a whole number"),
        (lambda d: change_config(d, use_dora=True), "made with use_dora"),
        (lambda d: change_config(d, rank_pattern={"q_proj": 2}), "made with rank_pattern"),
        (lambda d: change_tensors(d, lambda t: t.pop(KEY)), "q_proj.lora_B.weight is missing"),
        (
            lambda d: change_tensors(
                d, lambda t: t.update({KEY.replace(".0.", ".9."): t.pop(KEY)})
            ),
            r"adapts model\.layers\.9\.self_attn\.q_proj, which is no linear layer",
        ),
        (
            lambda d: change_tensors(d, lambda t: t.update({KEY: torch.zeros(23, 3)})),
            r"is \(23, 3\), but should be \(24, 3\)",
        ),
    ],
)
def test_damaged_files_are_refused_and_the_model_left_alone(tmp_path, damage, message):
    model = fresh()
    add_lora(model, r=3)
    save_lora(model, tmp_path)
    damage(tmp_path)
    other = fresh()
    before = state_of(other)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_lora(other, tmp_path)
    assert state_of(other) == before
