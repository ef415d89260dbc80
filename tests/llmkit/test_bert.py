import pytest
import torch
import transformers

from llmkit.attention import merge_heads, scaled_dot_product_attention, split_heads
from llmkit.bert import BertConfig, BertEncoder, BertForMaskedLM, BertLayer, BertSelfAttention
from llmkit.feedforward import gelu_feedforward
from llmkit.transformer import is_causal
from tests.llmkit.gradients import assert_gradients

SMALL = {
    "vocab_size": 97,
    "hidden_size": 36,
    "intermediate_size": 50,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 23,
    "type_vocab_size": 3,
}


def both(**changes) -> tuple[BertForMaskedLM, transformers.BertForMaskedLM]:
    torch.manual_seed(0)
    hf_config = transformers.BertConfig(**SMALL | changes)
    theirs = transformers.BertForMaskedLM(hf_config).eval()
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, std=0.6)
    ours = BertForMaskedLM(BertConfig.from_hf(hf_config.to_dict())).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("length", [1, 9, 23])
@pytest.mark.parametrize("changes", [{}, {"layer_norm_eps": 0.1}], ids=["plain", "eps"])
@torch.no_grad()
def test_logits_and_hidden_states_are_transformers(length, changes):
    ours, theirs = both(**changes)
    ids, types = torch.randint(0, 97, (2, length)), torch.randint(0, 3, (2, length))
    for given in ({}, {"token_type_ids": types}):
        expected = theirs(ids, output_hidden_states=True, **given)
        torch.testing.assert_close(ours(ids, **given), expected.logits, rtol=1e-5, atol=1e-5)
        hidden = ours.bert(ids, **given)
        torch.testing.assert_close(hidden, expected.hidden_states[-1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_untied_head_is_transformers():
    ours, theirs = both(tie_word_embeddings=False)
    decoder, table = ours.cls.predictions.decoder, ours.bert.embeddings.word_embeddings
    assert not torch.equal(decoder.weight, table.weight)
    ids = torch.randint(0, 97, (2, 9))
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_padding_is_not_seen():
    ours, theirs = both()
    ids, mask = torch.randint(0, 97, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[1, 5:] = 0
    logits, expected = ours(ids, mask), theirs(ids, attention_mask=mask).logits
    torch.testing.assert_close(logits[mask == 1], expected[mask == 1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits[1:, :5], ours(ids[1:, :5]), rtol=1e-5, atol=1e-5)
    mask[0] = 0  # nothing to see at all
    assert ours(ids, mask).isfinite().all()


@torch.no_grad()
def test_an_encoder_sees_both_ways_and_positions():
    ours, _ = both()
    a, b = torch.randint(0, 97, (2, 1, 7))
    assert not is_causal(ours, a, b)
    flipped = ours(a.flip(1)).flip(1)
    assert not torch.allclose(ours(a), flipped, atol=0.01)


def test_size_of_bert_base_and_one_matrix_for_head_and_embedding():
    with torch.device("meta"):
        model = BertForMaskedLM(BertConfig())
        theirs = transformers.BertForMaskedLM(transformers.BertConfig())
    assert sum(p.numel() for p in model.parameters()) == 109_514_298
    shapes = {name: p.shape for name, p in theirs.state_dict().items()}
    assert {name: p.shape for name, p in model.state_dict().items()} == shapes
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight


def test_fresh_weights_are_drawn():
    for name, weight in BertForMaskedLM(BertConfig(**SMALL)).named_parameters():
        if weight.ndim == 2:
            assert weight.std().item() == pytest.approx(0.02, rel=0.3), name
        else:
            assert weight.eq(float("Norm.weight" in name)).all(), name


@torch.no_grad()
def test_a_layer_by_its_formula():
    layer, x = both()[0].bert.encoder.layer[0], torch.randn(2, 5, 36)
    own = layer.attention.self
    q, k, v = (split_heads(project(x), 4) for project in (own.query, own.key, own.value))
    seen = layer.attention.output.dense(merge_heads(scaled_dot_product_attention(q, k, v)))
    x1 = layer.attention.output.LayerNorm(x + seen)
    first, second = layer.intermediate.dense, layer.output.dense
    out = gelu_feedforward(x1, first.weight, first.bias, second.weight, second.bias)
    torch.testing.assert_close(layer(x), layer.output.LayerNorm(x1 + out))


def test_gradients():
    torch.manual_seed(0)
    config = BertConfig(5, 4, 3, 1, 2, 6)
    x = torch.randn(1, 3, 4, dtype=torch.double, requires_grad=True)
    mask = torch.tensor([True, True, False])[None, None, None]
    assert_gradients(BertSelfAttention(4, 2), x, mask)
    assert_gradients(BertLayer(config), x, mask)
    model = BertForMaskedLM(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight)
    ids = torch.tensor([[0, 3, 1]])
    assert_gradients(model, ids, torch.tensor([[1, 1, 0]]), torch.tensor([[0, 1, 1]]), fast=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, "model_type = 'roberta'"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ({"is_decoder": True}, "is_decoder = True"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
        ({"hidden_size": 35}, "hidden_size 35 is not divisible by num_attention_heads 4"),
    ],
)
def test_what_is_not_implemented_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        BertConfig.from_hf(SMALL | changes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input_ids": torch.ones(3).long()}, r"input_ids must be \(B, T\), not \(3,\)"),
        ({"input_ids": torch.ones(2, 24).long()}, "has 24 positions; this model has learned 23"),
        (
            {"attention_mask": torch.ones(2, 4)},
            r"attention_mask must have .*\(2, 3\), not \(2, 4\)",
        ),
        ({"token_type_ids": torch.ones(1, 3).long()}, r"token_type_ids must have .* not \(1, 3\)"),
    ],
)
def test_input_that_does_not_fit_is_named(given, message):
    model = BertEncoder(BertConfig(**SMALL))
    with pytest.raises(ValueError, match=message):
        model(**{"input_ids": torch.ones(2, 3).long(), **given})
