"""Byte-level BPE, argued from Hugging Face's `tokenizers`, brute force and round trips."""

import json
import random
import tracemalloc
from functools import cache
from itertools import pairwise

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, trainers
from tokenizers.pre_tokenizers import ByteLevel

from llmkit import bpe
from llmkit.assets import fetch, shakespeare_text
from llmkit.bpe import PATTERNS, BPETokenizer
from llmkit.checkpoints import _GGUFReader
from llmkit.losses import one_hot
from llmkit.tokenization import (
    PRE_TOKENIZERS,
    Tokenizer,
    byte_ids,
    count_pairs,
    decode,
    embed,
    encode,
    merge_pair,
    pretokenize,
    token_bytes,
    train_bpe,
    word_tokenize,
)

END, PAD = "<|endoftext|>", "<|pad|>"
PLAY = """To be, or not to be: that's the question.
    Whether 'tis nobler in the mind 1600 times — naïve café, 東京 and 🎉🎉  \n\n"""

# letters that make pairs, contractions, white space, digits, several bytes, special tokens
snippets = st.lists(
    st.sampled_from([*"aab'lrevst  \n1٣é東🎉_!<|", "\u3000", "the ", "'ll", END, PAD]), max_size=40
).map("".join)
# `tokenizers` and `regex` may be of different Unicode versions: both know characters of Python's
known = st.text(st.characters(exclude_categories=["Cs", "Cn"]))
texts = st.one_of(snippets, known)


def hugging_face(
    texts: list[str], vocab_size: int, special_tokens: tuple[str, ...] = ()
) -> tokenizers.Tokenizer:
    """What `tokenizers` trains: byte-level BPE, all 256 bytes, GPT-2's pre-tokens."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=ByteLevel.alphabet(),
        special_tokens=list(special_tokens),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def model(backend: tokenizers.Tokenizer) -> dict:
    return json.loads(backend.to_str())["model"]


@cache
def shakespeare_tokenizer(vocab_size: int) -> BPETokenizer:
    return BPETokenizer.train(shakespeare_text(), vocab_size)


@cache
def hugging_shakespeare(vocab_size: int) -> tokenizers.Tokenizer:
    return hugging_face([shakespeare_text()], vocab_size)


@cache
def small_tokenizer() -> BPETokenizer:
    return BPETokenizer.train(PLAY * 3, 400, [END, PAD])


@cache
def small_backend() -> tokenizers.Tokenizer:
    return small_tokenizer().to_backend()


@cache
def smollm2() -> Tokenizer:
    fields = _GGUFReader(fetch("smollm2")).fields
    wanted = {name: f.contents() for name, f in fields.items() if name.startswith("tokenizer.")}
    return Tokenizer.from_gguf(wanted)


@pytest.fixture(scope="session")
def ours(tmp_path_factory) -> BPETokenizer:
    """SmolLM2's tokenizer, from the file that `tokenizers` writes."""
    path = tmp_path_factory.mktemp("smollm2") / "tokenizer.json"
    smollm2().backend.save(str(path))
    return BPETokenizer.load(path)


# One idea a function


def test_the_seven_words():
    sentence = "Friends, Romans, Countrymen, lend me your ears"
    words = ["Friends", "Romans", "Countrymen", "lend", "me", "your", "ears"]
    assert word_tokenize(sentence) == words
    assert word_tokenize("") == []
    assert word_tokenize("naïve, 東京 (1600)!") == ["naïve", "東京", "1600"]


def test_pretokens_by_hand():
    assert pretokenize("I'll be  back, 007!\n\n x") == [
        *("I", "'ll", " be", " ", " back", ",", " 007", "!", "\n\n", " x")
    ]
    assert pretokenize("") == []


@given(texts)
def test_pretokens_equal_hugging_face(text):
    found = pretokenize(text)
    theirs = ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    assert found == [text[start:end] for _, (start, end) in theirs]
    assert "".join(found) == text


def test_bytes_are_numbered_as_in_gpt2():
    assert byte_ids("!A ") == (0, 32, 220)
    codes = [*range(0x1000), *range(0x1000, 0xD800, 0x400), *range(0xE000, 0x110000, 0x1000)]
    text = "".join(map(chr, codes))
    assert len({*text.encode()}) == 243  # 13 bytes never occur in UTF-8
    assert list(byte_ids(text)) == hugging_face([], 256).encode(text).ids


def test_pairs_are_counted_by_how_often_the_word_comes():
    words = {(1, 2, 1, 2): 3, (2, 1): 4, (5,): 9, (): 1}
    assert count_pairs(words) == {(1, 2): 6, (2, 1): 7}
    assert count_pairs({(7, 7, 7): 2}) == {(7, 7): 4}
    assert count_pairs({}) == {}


def test_merging_goes_from_left_to_right():
    assert merge_pair((1, 2, 3, 1, 2), (1, 2), 9) == (9, 3, 9)
    assert merge_pair((1, 1, 1), (1, 1), 9) == (9, 1)
    assert merge_pair((1, 1, 1, 1), (1, 1), 9) == (9, 9)
    assert merge_pair((2, 1), (1, 2), 9) == (2, 1)
    assert merge_pair((), (1, 2), 9) == ()


@given(st.lists(st.integers(0, 2)), st.tuples(st.integers(0, 2), st.integers(0, 2)))
def test_merging_undone_is_the_word(word, pair):
    merged = merge_pair(tuple(word), pair, 9)
    assert [i for token in merged for i in (pair if token == 9 else (token,))] == word
    assert pair not in pairwise(merged)


def test_ties_go_to_the_smallest_pair_of_ids():
    # "b", "a" and the space are 65, 64 and 220: each pair occurs once, whatever comes first
    assert train_bpe("ba", 1) == [(65, 64)]
    assert train_bpe("cd ab", 5) == [(64, 65), (66, 67), (220, 256)]
    assert train_bpe("zz yy", 1) == train_bpe("yy zz", 1) == [(88, 88)]


def test_merges_end_with_the_pairs():
    assert train_bpe("", 5) == train_bpe("a b", 0) == train_bpe("a!b", 5) == []
    assert train_bpe("aaaa", 9) == [(64, 64), (256, 256)]
    with pytest.raises(ValueError, match="num_merges must not be negative, but is -1"):
        train_bpe("a", -1)


@settings(deadline=None)
@given(texts)
def test_taught_functions_round_trip(text):
    merges = train_bpe(PLAY, 50)
    ids = encode(text, merges)
    assert decode(ids, merges) == text
    assert b"".join(token_bytes(merges)[i] for i in ids) == text.encode()


def test_bytes_that_are_no_text_are_replaced():
    merges = train_bpe("éé", 1)
    half = encode("é", [])[:1]
    assert decode([*half, *half], merges) == "\ufffd\ufffd" and decode([256], merges) == "é"
    assert decode([], merges) == ""


@pytest.mark.parametrize("i", [-1, 257])
def test_no_token_no_text(i):
    with pytest.raises(ValueError, match=f"ids must lie in 0 … 256, but one is {i}"):
        decode([0, i], [(0, 0)])


def test_embedding_is_a_product_with_one_hot():
    table = torch.randn(11, 5, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[3, 0, 10], [3, 3, 7]])
    torch.testing.assert_close(embed(ids, table), one_hot(ids, 11) @ table)
    assert embed(torch.empty(2, 0, dtype=torch.long), table).shape == (2, 0, 5)
    for wrong in (-1, 11):
        with pytest.raises(ValueError, match="ids must lie in 0 … 10"):
            embed(torch.tensor([wrong]), table)


# The same merges as `tokenizers`


@pytest.mark.parametrize("vocab_size", [1000, 10_000])
def test_shakespeare_gives_the_same_merges_and_tokens(vocab_size):
    ours = model(shakespeare_tokenizer(vocab_size).to_backend())
    theirs = model(hugging_shakespeare(vocab_size))
    assert len(ours["merges"]) == vocab_size - 256
    assert ours["merges"] == theirs["merges"] and ours["vocab"] == theirs["vocab"]


def test_shakespeare_is_encoded_alike():
    text, found = shakespeare_text()[2_000_000:3_000_000], shakespeare_tokenizer(10_000)
    ids = found.encode(text)
    assert ids == hugging_shakespeare(10_000).encode(text).ids
    assert found.decode(ids) == hugging_shakespeare(10_000).decode(ids) == text
    assert list(found.encode_stream([text[:300_001], text[300_001:]])) == ids


def test_taught_training_is_the_fast_one():
    text = shakespeare_text()[100_000:120_000]
    found = BPETokenizer.train(text, 256 + 60)
    assert found.merges == train_bpe(text, 60)
    assert found.encode(text) == encode(text, found.merges)


@settings(deadline=None)
@given(st.lists(st.text("aab ", max_size=30), max_size=4), st.integers(256, 290))
def test_ties_and_runs_give_the_same_merges(texts, vocab_size):
    found = BPETokenizer.train(texts, vocab_size)
    theirs = model(hugging_face(texts, vocab_size))
    assert model(found.to_backend())["merges"] == theirs["merges"]
    if len(texts) == 1:
        assert found.merges == train_bpe(texts[0], vocab_size - 256)


@settings(deadline=None)
@given(st.lists(texts, max_size=4))
def test_any_text_gives_the_same_merges(texts):
    texts = [text.replace(END, "").replace(PAD, "") for text in texts]
    found = BPETokenizer.train(texts, 330)
    assert model(found.to_backend())["merges"] == model(hugging_face(texts, 330))["merges"]


def test_nothing_is_learnt_of_special_tokens():
    pieces = [PLAY, "pad" + PLAY, "the end"]
    found = BPETokenizer.train([END.join(pieces), PAD + PLAY], 330, [END, PAD])
    theirs = hugging_face([*pieces, PLAY], 330, (END, PAD))
    assert model(found.to_backend())["merges"] == model(theirs)["merges"]
    assert found.vocab_size == 330 and found.special_tokens == {END: 328, PAD: 329}


# Encoding and decoding


@settings(deadline=None)
@given(texts)
def test_encoding_equals_hugging_face_and_loses_nothing(text):
    found = small_tokenizer()
    ids = found.encode(text)
    assert ids == small_backend().encode(text).ids
    assert found.decode(ids, skip_special_tokens=False) == text
    assert (
        found.decode(ids) == small_backend().decode(ids) == text.replace(END, "").replace(PAD, "")
    )
    if END not in text and PAD not in text:
        assert ids == encode(text, found.merges)


@given(st.text())
def test_any_unicode_comes_back(text):
    found = small_tokenizer()
    assert found.decode(found.encode(text), skip_special_tokens=False) == text


@given(st.lists(st.integers(0, small_tokenizer().vocab_size - 1), max_size=30))
def test_any_tokens_are_decoded_as_by_hugging_face(ids):
    found = small_tokenizer()
    assert found.decode(ids) == small_backend().decode(ids)
    for skip in (True, False):
        assert "".join(found.decode_stream(ids, skip)) == found.decode(ids, skip)


def test_streamed_text_waits_for_whole_characters():
    found = BPETokenizer([])
    taken = []
    stream = found.decode_stream(taken.append(i) or i for i in [*found.encode("aé🎉"), 0xC3])
    assert next(stream) == "a" and len(taken) == 1
    assert next(stream) == "é" and len(taken) == 3
    assert next(stream) == "🎉" and len(taken) == 7
    assert list(stream) == [found.decode([0xC3])]


@given(snippets, st.lists(st.integers(0, 60)), st.integers(1, 5))
def test_a_stream_may_be_cut_anywhere(text, cuts, chunk):
    found = small_tokenizer()
    bounds = [0, *sorted(cuts), len(text)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "CHUNK", chunk)
        pieces = [text[start:end] for start, end in pairwise(bounds)]
        assert list(found.encode_stream(pieces)) == found.encode(text)


def test_a_stream_needs_no_more_memory_for_more_text():
    found, text = small_tokenizer(), PLAY * 10
    peaks = []
    for pieces in (200, 800):
        tracemalloc.start()
        count = sum(1 for _ in found.encode_stream(text for _ in range(pieces)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert count > 200_000
    assert peaks[1] < 1.1 * peaks[0]


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(bpe, "CACHED_WORDS", 5)
    found = BPETokenizer(small_tokenizer().merges)
    for word in map(str, range(100)):
        assert found.encode(word) == encode(word, found.merges)
        assert len(found._cache) <= 5
    found.encode("a" * (bpe.CACHED_LENGTH + 1))
    assert max(map(len, found._cache)) <= bpe.CACHED_LENGTH


def test_nothing_is_nothing():
    found = BPETokenizer.train("", 300)
    assert found.vocab_size == 256 and found.merges == []
    assert BPETokenizer.train([], 300).merges == []
    assert (
        found.encode("") == list(found.encode_stream([])) == list(found.encode_stream([""])) == []
    )
    assert found.decode([]) == "" and list(found.decode_stream([])) == []


def test_ten_megabytes_of_one_character():
    text = "a" * 10_000_000
    found = BPETokenizer.train(text, 300)
    # each merge doubles, until four pieces of 2**21 have become two; what is left then goes first
    assert found.merges[:22] == [(64, 64), *((i, i) for i in range(256, 277))]
    ids = found.encode(text)
    assert found.decode(ids) == text
    pieces = (text[i : i + 1000] for i in range(0, 2_000_000, 1000))  # looked at ever more rarely
    assert list(found.encode_stream(pieces)) == found.encode(text[:2_000_000])


def test_a_long_word_of_many_merges():
    letters = random.Random(0).choices("acgt", k=30_000)
    text = "".join(letters)
    found = BPETokenizer.train(text, 600)
    assert model(found.to_backend())["merges"] == model(hugging_face([text], 600))["merges"]
    assert found.encode(text) == found.to_backend().encode(text).ids


# Special tokens


def test_special_tokens_are_whole_and_known():
    found = small_tokenizer()
    end, pad = found.special_id(END), found.special_id(PAD)
    assert (end, pad) == (found.vocab_size - 2, found.vocab_size - 1)
    assert found.encode(f"{END}{PAD}{END}") == [end, pad, end]
    assert found.encode(f"a{END} b") == [*found.encode("a"), end, *found.encode(" b")]


def test_an_unknown_special_token_is_text():
    found = small_tokenizer()
    ids = found.encode("<|unknown|>")
    assert len(ids) > 1 and found.decode(ids) == "<|unknown|>"
    with pytest.raises(ValueError, match=r"'<\|unknown\|>' is not a special token; there are: <"):
        found.special_id("<|unknown|>")
    with pytest.raises(ValueError, match="there are: none"):
        BPETokenizer([]).special_id(END)


def test_the_longest_special_token_is_taken():
    found = BPETokenizer([], {"<a>": 256, "<a><b>": 257, "<b>": 258})
    assert found.encode("<a><b><b><a>") == [257, 258, 256]
    assert found.to_backend().encode("<a><b><b><a>").ids == [257, 258, 256]


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BPETokenizer.train("a", 255), "vocab_size must be at least 256, for the 256 byt"),
        (lambda: BPETokenizer.train("a", 257, [END, PAD]), "at least 258.* but is 257"),
        (lambda: BPETokenizer.train("a", 300, [END, END]), "special_tokens must be distinct"),
        (lambda: BPETokenizer.train("a", 300, [""]), "special_tokens must be distinct and not em"),
        (lambda: BPETokenizer.train("a", 300, pre_tokenizer="gpt-4"), "gpt-2, smollm, but is 'gp"),
        (lambda: BPETokenizer([], {END: 3}), "special_tokens must have ids of their own"),
        (lambda: BPETokenizer([], {"A": 256}).to_backend(), "spelt as other tokens: 'A'"),
        (lambda: small_tokenizer().decode([0, 400]), "those of the .* tokens, not 400"),
        (lambda: list(small_tokenizer().decode_stream([-1])), "those of the .* tokens, not -1"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        byte_ids,
        lambda text: encode(text, []),
        lambda text: train_bpe(text, 5),
        lambda text: BPETokenizer.train(text, 300),
        lambda text: small_tokenizer().encode(text),
        lambda text: list(small_tokenizer().encode_stream([text])),
    ],
)
def test_half_a_character_is_refused_with_the_way_to_mend_it(call):
    text = "ab \ud83c\udf89 \udf89!"
    with pytest.raises(ValueError, match=r"^The text holds '\\ud83c', half a character: repair"):
        call(text)
    mended = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert mended == "ab 🎉 \ufffd!"
    call(mended)


# Files


def test_a_saved_tokenizer_is_the_same_to_all_readers(tmp_path):
    found, path = small_tokenizer(), tmp_path / "tokenizer.json"
    found.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]
    loaded, backend = BPETokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    again = Tokenizer.from_directory(tmp_path)
    text = f"{PLAY}{END}{PLAY[::-1]}{PAD}"
    ids = found.encode(text)
    assert ids == loaded.encode(text) == backend.encode(text).ids == again.encode(text)
    for skip in (True, False):
        assert found.decode(ids, skip) == loaded.decode(ids, skip) == backend.decode(ids, skip)
    assert again.stop_ids == {found.special_id(END)}
    assert (loaded.merges, loaded.special_tokens) == (found.merges, found.special_tokens)
    assert loaded.vocab_size == found.vocab_size == backend.get_vocab_size()


def test_what_hugging_face_trained_can_be_loaded(tmp_path):
    theirs = hugging_face([PLAY], 330, (END,))  # it numbers special tokens first
    theirs.save(str(tmp_path / "tokenizer.json"))
    found = BPETokenizer.load(tmp_path / "tokenizer.json")
    text = f"a{END}{PLAY}"
    ids = found.encode(text)
    assert ids == theirs.encode(text).ids and found.special_tokens == {END: 0}
    assert found.decode(ids) == theirs.decode(ids)
    assert found.merges == BPETokenizer.train(PLAY, 329).merges


def test_smollm2_round_trips(ours, tmp_path):
    theirs = smollm2().backend
    assert ours.vocab_size == 49_152 and ours.pre_tokenizer == "smollm"
    ours.save(tmp_path / "tokenizer.json")
    saved = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert json.loads(saved.to_str()) == json.loads(theirs.to_str())
    for text in (
        shakespeare_text()[:200_000],
        "<|im_start|>user\nWhat is 12,345 + 6٣?<|im_end|>\n" + PLAY,
        "for i in range(10):\n    print(f'{i:>3}')\n\n\n",
    ):
        ids = ours.encode(text)
        assert ids == theirs.encode(text).ids
        assert ours.decode(ids, skip_special_tokens=False) == text
        assert ours.decode(ids) == theirs.decode(ids)


@settings(deadline=None)
@given(text=texts)
def test_smollm2_encodes_any_text_alike(ours, text):
    """Even what it loses: 21 bytes, control characters among them, are not in its vocabulary."""
    theirs = smollm2().backend
    ids = ours.encode(text)
    assert ids == theirs.encode(text).ids
    assert list(ours.encode_stream(text)) == ids
    words = [text[start:end] for _, (start, end) in theirs.pre_tokenizer.pre_tokenize_str(text)]
    assert PATTERNS["smollm"].findall(text) == words


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": {"type": "NFC"}}, "has a normalizer that is not implemented"),
        ({"decoder": None}, "has a decoder that"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "has a pre_tokenizer that"),
        ({"pre_tokenizer": None}, "has a pre_tokenizer that"),
        ({"post_processor": {"type": "BertProcessing", "sep": ["a", 0], "cls": ["b", 1]}}, "post_"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}, "WordLevel model"),
        ({"dropout": 0.5, "ignore_merges": True}, "has a dropout, ignore_merges that"),
        ({"merges": [["h", "e"], ["he", "!"]]}, "a token that no merge makes"),
        ({"merges": [["th", "e"], ["t", "h"]]}, "merge out of order: 'th' with 'e'"),
    ],
)
def test_what_is_not_done_here_is_refused(tmp_path, changes, message):
    settings = json.loads(BPETokenizer.train("the he!", 259).to_backend().to_str())
    if "merges" in changes:
        extra = {"".join(merge): 300 + i for i, merge in enumerate([["t", "h"], ["th", "e"]])}
        settings["model"]["vocab"] |= extra | {"he": 302, "he!": 303}
    model_keys = changes.keys() & settings["model"].keys()
    settings["model"] |= {key: changes[key] for key in model_keys}
    settings |= {key: value for key, value in changes.items() if key not in model_keys}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        BPETokenizer.load(path)


def test_special_tokens_that_eat_space_are_refused(tmp_path):
    backend = small_tokenizer().to_backend()
    backend.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True)])
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="special token '<mask>' of a kind that is not impl"):
        BPETokenizer.load(tmp_path / "tokenizer.json")


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError):
        BPETokenizer.load(tmp_path / "tokenizer.json")
    for data in (b"", b"{", b"\xff", b"[]", b'{"model": {}}'):
        (tmp_path / "tokenizer.json").write_bytes(data)
        with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer: "):
            BPETokenizer.load(tmp_path / "tokenizer.json")


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="spelt as other tokens"):
        BPETokenizer([], {"A": 256}).save(path)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_pre_tokenizers_have_the_names_of_gguf():
    assert PATTERNS.keys() == PRE_TOKENIZERS.keys()
