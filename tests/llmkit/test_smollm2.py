"""The real model: our SmolLM2 against transformers', both read from the same GGUF file."""

import dataclasses
import math

import pytest
import torch
import transformers

from llmkit.assets import fetch, shakespeare_text
from llmkit.checkpoints import load_checkpoint
from llmkit.decoding import generate
from llmkit.tokenization import Tokenizer
from llmkit.transformer import PRESETS, Llama, count_parameters
from tests.llmkit.test_checkpoints import to_interleaved

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="session")
def ours() -> tuple[Llama, Tokenizer]:
    return load_checkpoint("smollm2")


@pytest.fixture(scope="session")
def theirs() -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    file = fetch("smollm2")
    place = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(**place)


@pytest.fixture(scope="session")
def passage(ours) -> list[int]:
    return ours[1].encode(shakespeare_text()[200_000:202_000])[:64]


@torch.no_grad()
def test_logits_on_shakespeare(ours, theirs, passage):
    ids = torch.tensor([passage])
    logits, expected = ours[0](ids), theirs[0](ids).logits
    assert logits.shape == (1, 64, 49152)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-3)


@torch.no_grad()
def test_greedy_continuations(ours, theirs, passage):
    chat = ours[1].encode(ours[1].apply_chat_template(QUESTION), add_special_tokens=False)
    for prompt in (passage[:24], chat):
        expected = (
            theirs[0]
            .generate(torch.tensor([prompt]), max_new_tokens=32, do_sample=False, eos_token_id=2)[
                0, len(prompt) :
            ]
            .tolist()
        )
        tokens = list(generate(ours[0], prompt, 32, stop_ids={2}))
        assert tokens == [i for i in expected if i != 2]
    assert "Paris" in ours[1].decode(tokens)


def test_config_and_tied_weights(ours):
    model = ours[0]
    config = dataclasses.replace(model.config, rms_norm_eps=1e-5)  # GGUF rounds it to float32
    assert config == PRESETS["smollm2-135m"]
    assert model.config.rms_norm_eps == pytest.approx(1e-5)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(model.config)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@torch.no_grad()
def test_rows_of_q_and_k_in_the_wrong_order_double_the_perplexity(ours, passage):
    model, ids = ours[0], torch.tensor([passage])

    def perplexity() -> float:
        return math.exp(torch.nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:]))

    right = perplexity()
    before = {
        name: p.clone() for name, p in model.named_parameters() if ".q_" in name or ".k_" in name
    }
    for name, weight in before.items():
        heads = 9 if ".q_" in name else 3
        wrong = torch.from_numpy(to_interleaved(weight.numpy(), heads))
        model.get_parameter(name).copy_(wrong)
    wrong = perplexity()
    for name, weight in before.items():
        model.get_parameter(name).copy_(weight)
    assert perplexity() == right
    assert wrong > 1.5 * right


TEXTS = [
    "Friends, Romans, Countrymen, lend me your ears;",
    "I'll don't we've  two  spaces\tand\n\nlines\r\n  indented",
    "In 1599 there were 12345 words: 3.14, 2nd, a1b2.",
    "naïve café Straße 日本語 Ελληνικά עברית 🎉👩‍👩‍👧 \u200b",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>x",
    "def f(x):\n    return x ** 2  # square\n",
    "",
    " ",
    "\N{REPLACEMENT CHARACTER}\0",
]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_transformers(ours, theirs, text):
    ids = ours[1].encode(text)
    assert ids == theirs[1].encode(text)
    assert ours[1].decode(ids, skip_special_tokens=False) == text
    assert "".join(ours[1].decode_stream(ids)) == ours[1].decode(ids)


def test_tokens_of_shakespeare_are_transformers(ours, theirs):
    text = shakespeare_text()[:100_000]
    assert ours[1].encode(text) == theirs[1].encode(text)


def test_spaces_before_a_digit_are_cut_as_in_training(ours, theirs):
    """transformers forgets, reading this file, that SmolLM2 cuts out digits before anything else.

    llama.cpp does not (`tokenizer.ggml.pre` = smollm), nor does the model's own tokenizer.json.
    """
    tokens = ours[1].backend.encode("x  1").tokens
    assert tokens == ["x", "ĠĠ", "1"]
    assert theirs[1].tokenize("x  1") == ["x", "Ġ", "Ġ", "1"]


@pytest.mark.parametrize(
    "messages",
    [
        QUESTION,
        [{"role": "system", "content": "Answer in rhyme."}, *QUESTION],
        [
            *QUESTION,
            {"role": "assistant", "content": "Paris."},
            {"role": "user", "content": "Why?"},
        ],
    ],
)
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_chat_template_is_transformers(ours, theirs, messages, add_generation_prompt):
    text = ours[1].apply_chat_template(messages, add_generation_prompt)
    expected = theirs[1].apply_chat_template(
        messages, add_generation_prompt=add_generation_prompt, tokenize=False
    )
    assert text == expected
    assert ("You are a helpful AI assistant named SmolLM" in text) == (
        messages[0]["role"] == "user"
    )


def test_stop_ids(ours):
    assert [ours[1].decode([i], skip_special_tokens=False) for i in sorted(ours[1].stop_ids)] == [
        "<|endoftext|>",
        "<|im_end|>",
    ]
