import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from llmkit.tokenization import Tokenizer

# a byte-level vocabulary: three special tokens, one per byte, and what a few merges make
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ Ġ", "Ġ hello", "1 2", "Ġ w"]
TOKENS = SPECIAL + sorted(ByteLevel.alphabet()) + [merge.replace(" ", "") for merge in MERGES]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
METADATA = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(TOKENS) - 3),
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.chat_template": TEMPLATE,
}
TOKENIZER = Tokenizer.from_gguf(METADATA)


def pieces(text: str, tokenizer: Tokenizer = TOKENIZER) -> list[str]:
    return [TOKENS[i] for i in tokenizer.encode(text)]


def test_merges_and_special_tokens():
    assert pieces("hello hello<|im_end|>") == ["hello", "Ġhello", "<|im_end|>"]


def test_smollm_takes_digits_one_by_one_and_gpt2_does_not():
    assert pieces("12") == ["1", "2"]
    assert pieces("x  1") == ["x", "ĠĠ", "1"]
    gpt2 = Tokenizer.from_gguf(METADATA | {"tokenizer.ggml.pre": "gpt-2"})
    assert pieces("12", gpt2) == ["12"]
    assert pieces("x  1", gpt2) == ["x", "Ġ", "Ġ", "1"]


@given(st.text())
def test_nothing_is_lost(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text
    assert "".join(TOKENIZER.decode_stream(ids)) == TOKENIZER.decode(ids)


@given(st.lists(st.integers(0, len(TOKENS) - 1), max_size=12))
def test_stream_of_any_tokens_joins_to_their_text(ids):
    assert "".join(TOKENIZER.decode_stream(ids)) == TOKENIZER.decode(ids)


def test_stream_waits_for_whole_characters():
    ids = TOKENIZER.encode("aé🎉b")
    assert len(ids) == 8
    assert list(TOKENIZER.decode_stream(ids)) == ["a", "é", "🎉", "b"]
    assert list(TOKENIZER.decode_stream(ids[:5])) == ["a", "é", "\N{REPLACEMENT CHARACTER}"]


def test_stream_takes_no_token_ahead():
    taken = []

    def watched():
        for i in TOKENIZER.encode("he w"):
            taken.append(i)
            yield i

    stream = TOKENIZER.decode_stream(watched())
    assert next(stream) == "he" and len(taken) == 1


def test_special_tokens_are_not_shown():
    ids = TOKENIZER.encode("<|im_start|>he<|im_end|>")
    assert TOKENIZER.decode(ids) == "he"
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == "<|im_start|>he<|im_end|>"


def test_stop_ids():
    assert TOKENIZER.stop_ids == {0, 2}
    assert Tokenizer.from_gguf(METADATA | {"tokenizer.ggml.eot_token_id": 9}).stop_ids == {0, 2, 9}


def test_begin_of_text_where_the_model_wants_it():
    tokenizer = Tokenizer.from_gguf(METADATA | {"tokenizer.ggml.add_bos_token": True})
    assert tokenizer.encode("he") == [1, TOKENS.index("he")]
    assert tokenizer.encode("he", add_special_tokens=False) == [TOKENS.index("he")]


def test_chat_template():
    messages = [{"role": "user", "content": "hi"}]
    assert TOKENIZER.apply_chat_template(messages) == (
        "<|im_start|>user\nhi<|im_end|><|im_start|>assistant\n"
    )
    assert TOKENIZER.apply_chat_template(messages, add_generation_prompt=False) == (
        "<|im_start|>user\nhi<|im_end|>"
    )


def test_no_chat_template():
    with pytest.raises(ValueError, match="has no chat template"):
        Tokenizer(TOKENIZER.backend).apply_chat_template([{"role": "user", "content": "hi"}])


def test_template_can_refuse_and_cannot_escape():
    refuses = Tokenizer(TOKENIZER.backend, chat_template="{{ raise_exception('one at a time') }}")
    with pytest.raises(ValueError, match="chat template fails: one at a time"):
        refuses.apply_chat_template([])
    escapes = Tokenizer(TOKENIZER.backend, chat_template="{{ messages.__class__.__mro__ }}")
    with pytest.raises(ValueError, match=r"chat template fails: .*unsafe"):
        escapes.apply_chat_template([])


@pytest.mark.parametrize(
    "changes", [{"tokenizer.ggml.model": "llama"}, {"tokenizer.ggml.pre": "qwen2"}]
)
def test_unknown_tokenizers_are_refused(changes):
    with pytest.raises(ValueError, match=r"but only 'gpt2' with one of gpt-2, smollm"):
        Tokenizer.from_gguf(METADATA | changes)


def test_from_directory(tmp_path):
    TOKENIZER.backend.save(str(tmp_path / "tokenizer.json"))
    settings = {
        "bos_token": {"content": "<|im_start|>"},
        "eos_token": "<|im_end|>",
        "chat_template": "old",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}new")
    tokenizer = Tokenizer.from_directory(tmp_path)
    text = string.printable + "<|im_end|>"
    assert tokenizer.encode(text) == TOKENIZER.encode(text)
    assert tokenizer.stop_ids == {0, 2, 7}
    assert tokenizer.apply_chat_template([]) == "<|im_start|>new"
    assert tokenizer.vocab_size == len(TOKENS)


def test_directory_without_tokenizer(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.from_directory(tmp_path)
