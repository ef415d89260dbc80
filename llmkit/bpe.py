"""Byte-level BPE at full speed: the functions of `llmkit.tokenization`, made fast.

The merges and the tokens are the same. Training keeps the pair counts up to date instead of taking
them anew, encoding does each distinct pre-token once.
"""

import codecs
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import chain
from operator import add
from pathlib import Path
from typing import Any

import regex
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from llmkit.tokenization import BYTES, GPT2_PATTERN, PRE_TOKENIZERS, Pair, byte_ids, token_bytes

# How text is cut before any merge, by the names that GGUF files have for it. SmolLM's way is
# GPT-2's, done between single digits.
PATTERNS = {
    "gpt-2": regex.compile(GPT2_PATTERN),
    "smollm": regex.compile(
        GPT2_PATTERN.replace(r" ?\p{N}+", r"\p{N}").replace(r"(?!\S)", r"(?![^\s\p{N}])")
    ),
}
LOOKAHEAD = 2  # characters behind a pre-token that decide its end: "'" may begin "'ll"
CHUNK = 2**16  # characters that a stream is encoded in
CACHED_WORDS, CACHED_LENGTH = 2**17, 64  # a longer pre-token hardly comes twice

# A vocabulary file shows each byte as one character: the 188 visible ones, which come first, as
# themselves, the others from U+0100 on.
_SHOWN = {byte: chr(byte if i < 188 else 68 + i) for i, byte in enumerate(BYTES)}


class BPETokenizer:
    """Byte-level byte-pair encoding, trained here or loaded from a tokenizer.json.

    `merges` are pairs as `train_bpe` gives them. `special_tokens` maps strings that stand for one
    token each, never merged or split, to their ids. `pre_tokenizer` is a name in `PATTERNS`.

    `ids` renumbers: the vocabulary's id of every byte and merge, in the order of `token_bytes`.
    None is a byte that the vocabulary lacks; encoding drops it. As a rule a token's id is its
    place, and special tokens come last.
    """

    def __init__(
        self,
        merges: Sequence[Pair],
        special_tokens: Mapping[str, int] | None = None,
        pre_tokenizer: str = "gpt-2",
        ids: Sequence[int | None] | None = None,
    ):
        if pre_tokenizer not in PATTERNS:
            known = ", ".join(PATTERNS)
            raise ValueError(f"pre_tokenizer must be one of {known}, but is {pre_tokenizer!r}.")
        self.merges = list(merges)
        self.special_tokens = dict(special_tokens or {})
        self.pre_tokenizer = pre_tokenizer
        self._bytes = token_bytes(self.merges)
        self._ids = list(range(len(self._bytes)) if ids is None else ids)
        self._made = {chr(a) + chr(b): chr(256 + m) for m, (a, b) in enumerate(self.merges)}
        self._pairs = {token: pair for pair, token in self._made.items()}
        self._lacking = {i: None for i in range(256) if self._ids[i] is None}
        plain = {i: spelt for i, spelt in zip(self._ids, self._bytes, strict=True) if i is not None}
        special = {i: token.encode() for token, i in self.special_tokens.items()}
        self._tokens = plain | special
        if len(self._tokens) < len(plain) + len(self.special_tokens):
            raise ValueError("special_tokens must have ids of their own.")
        self._special = _one_of(self.special_tokens)
        self._lookahead = LOOKAHEAD + max(map(len, self.special_tokens), default=0)
        self._cache = _Cache(self)

    @classmethod
    def train(
        cls,
        texts: str | Iterable[str],
        vocab_size: int,
        special_tokens: Sequence[str] = (),
        pre_tokenizer: str = "gpt-2",
    ) -> "BPETokenizer":
        """The tokenizer that `train_bpe` learns from one text or several, none kept in memory.

        `vocab_size` counts the 256 bytes, the merges and the special tokens; it stays smaller if
        the texts have no more pairs. Nothing is learnt of special tokens that the texts hold.

        Raises ValueError for a vocabulary too small, a special token that is empty or named twice,
        an unknown pre-tokenizer, or a lone surrogate.
        """
        if "" in special_tokens or len({*special_tokens}) < len(special_tokens):
            raise ValueError(f"special_tokens must be distinct and not empty: {special_tokens}.")
        num_merges = vocab_size - 256 - len(special_tokens)
        if num_merges < 0:
            raise ValueError(
                f"vocab_size must be at least {256 + len(special_tokens)}, for the 256 bytes and "
                f"{len(special_tokens)} special tokens, but is {vocab_size}."
            )
        cut = cls([], pre_tokenizer=pre_tokenizer)
        special = _one_of(special_tokens)
        words: Counter[str] = Counter()
        for text in [texts] if isinstance(texts, str) else texts:
            for piece in special.split(text)[::2]:
                words.update(cut.split(piece))
        merges = _train(words, num_merges)
        last = 256 + len(merges)
        return cls(merges, {t: last + i for i, t in enumerate(special_tokens)}, pre_tokenizer)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        return len(self._tokens)

    def special_id(self, token: str) -> int:
        """The id of a special token. Raises ValueError for one that the vocabulary lacks."""
        if token not in self.special_tokens:
            known = ", ".join(self.special_tokens) or "none"
            raise ValueError(f"{token!r} is not a special token; there are: {known}.")
        return self.special_tokens[token]

    def split(self, text: str) -> list[str]:
        """The text's pre-tokens and special tokens. Joined, they are the text."""
        find = PATTERNS[self.pre_tokenizer].findall
        words: list[str] = []
        for i, piece in enumerate(self._special.split(text)):
            words += [piece] if i % 2 else find(piece)
        return words

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; a special token written out in it becomes that token.

        Each distinct pre-token takes one pass for each distinct merge in it. Raises ValueError for
        a lone surrogate.
        """
        return list(self._ids_of(self.split(text)))

    def encode_stream(self, texts: Iterable[str]) -> Iterator[int]:
        """Token ids of one text that comes in pieces, cut anywhere: `encode("".join(texts))`.

        Memory does not grow with the text: it holds `CHUNK` characters, or the longest pre-token.
        Raises ValueError for a lone surrogate.
        """
        pieces: list[str] = []
        size, enough = 0, CHUNK
        for text in texts:
            for start in range(0, len(text), CHUNK):
                pieces.append(text[start : start + CHUNK])
                size += len(pieces[-1])
                if size < enough:
                    continue
                words = self.split(joined := "".join(pieces))
                held = 0  # characters at the end that what follows may still cut otherwise
                while words and held < self._lookahead:
                    held += len(words.pop())
                yield from self._ids_of(words)
                pieces, size = [joined[size - held :]], held
                enough = CHUNK + 2 * held  # a pre-token without end is looked at ever more rarely
        yield from self.encode("".join(pieces))

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD.

        Raises ValueError for an id that no token has.
        """
        return b"".join(self._bytes_of(ids, skip_special_tokens)).decode(errors="replace")

    def decode_stream(self, ids: Iterable[int], skip_special_tokens: bool = True) -> Iterator[str]:
        """The text of token ids piece by piece, as they come, never half a character.

        Joined, the pieces are `decode(ids)`. Raises ValueError for an id that no token has.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in self._bytes_of(ids, skip_special_tokens):
            if text := decoder.decode(token):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    def _ids_of(self, words: Iterable[str]) -> Iterator[int]:
        return chain.from_iterable(map(self._cache.__getitem__, words))

    def _encode_word(self, word: str) -> list[int]:
        if word in self.special_tokens:
            return [self.special_tokens[word]]
        word = _spell(word).translate(self._lacking)
        queue = [self._made[pair] for pair in {*map(add, word, word[1:])} if pair in self._made]
        heapify(queue)
        while queue:  # what a merge makes possible comes later in the order, since it needs it
            token = heappop(queue)
            word, changes = _merge(word, self._pairs[token], token)
            for new in {new for _, new, _ in changes} & self._made.keys():
                heappush(queue, self._made[new])
        return [self._ids[ord(token)] for token in word]

    def _bytes_of(self, ids: Iterable[int], skip_special_tokens: bool) -> Iterator[bytes]:
        skipped = {*self.special_tokens.values()} if skip_special_tokens else ()
        for i in ids:
            if i not in self._tokens:
                raise ValueError(f"ids must be those of the {self.vocab_size} tokens, not {i}.")
            if i not in skipped:
                yield self._tokens[i]

    def to_backend(self) -> tokenizers.Tokenizer:
        """The same as a `tokenizers.Tokenizer`, for `llmkit.tokenization.Tokenizer` and others.

        Raises ValueError for a special token that is spelt as the vocabulary file shows another.
        """
        shown = [_show(token) for token in self._bytes]
        vocab = {t: i for t, i in zip(shown, self._ids, strict=True) if i is not None}
        if clash := vocab.keys() & self.special_tokens.keys():
            raise ValueError(f"special_tokens must not be spelt as other tokens: {min(clash)!r}.")
        merges = [(shown[left], shown[right]) for left, right in self.merges]
        backend = tokenizers.Tokenizer(models.BPE(vocab | self.special_tokens, merges))
        backend.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[self.pre_tokenizer]())
        backend.decoder = decoders.ByteLevel()
        by_id = sorted(self.special_tokens, key=self.special_tokens.__getitem__)
        backend.add_special_tokens([tokenizers.AddedToken(t, normalized=False) for t in by_id])
        return backend

    def save(self, path: str | Path) -> None:
        """Writes a tokenizer.json for `load`, `tokenizers` and transformers, all of it or nothing.

        Raises ValueError as `to_backend` does.
        """
        path = Path(path)
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(self.to_backend().to_str(pretty=True), encoding="utf-8")
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | Path) -> "BPETokenizer":
        """The tokenizer of a tokenizer.json.

        Raises ValueError for a file that is none, or that asks for anything not done here.
        """
        file = Path(path).read_bytes()
        try:
            backend = tokenizers.Tokenizer.from_buffer(file)
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(f"{path} is not a tokenizer: {error}.") from error
        settings = json.loads(backend.to_str())  # complete, and in the newest form
        if not_done := [*_not_done(settings)]:
            raise ValueError(f"{path} has a {', '.join(not_done)} that is not implemented.")
        vocab = settings["model"]["vocab"]
        places = {_SHOWN[byte]: i for i, byte in enumerate(BYTES)}
        ids, merges = [vocab.get(byte) for byte in places], []
        for left, right in settings["model"]["merges"]:
            if left not in places or right not in places or left + right in places:
                raise ValueError(f"{path} has a merge out of order: {left!r} with {right!r}.")
            merges.append((places[left], places[right]))
            places[left + right] = len(ids)
            ids.append(vocab[left + right])
        special = {token["content"]: token["id"] for token in settings["added_tokens"]}
        if unmade := vocab.keys() - places.keys() - special.keys():
            raise ValueError(f"{path} has a token that no merge makes: {min(unmade)!r}.")
        return cls(merges, special, _pre_tokenizer(settings), ids)


class _Cache(dict[str, list[int]]):
    """Vocabulary ids of a pre-token or special token, worked out when first asked for."""

    def __init__(self, tokenizer: BPETokenizer):
        self.tokenizer = tokenizer

    def __missing__(self, word: str) -> list[int]:
        ids = self.tokenizer._encode_word(word)
        if len(word) <= CACHED_LENGTH:
            if len(self) >= CACHED_WORDS:
                self.clear()
            self[word] = ids
        return ids


# Within a pre-token, fast code writes each token as one character, chr(id). Then a pair is a string
# of two, ordered as pairs of ids are, and Python's `str` methods do the merging.


def _spell(word: str) -> str:
    return bytes(byte_ids(word)).decode("latin-1")


def _merge(word: str, pair: str, token: str) -> tuple[str, list[tuple[str, str, int]]]:
    """`merge_pair`, and how the pairs with neighbours changed: (old, new, how many times)."""
    parts = word.split(pair)
    if len(parts) == 1:
        return word, []
    (left, right), (first, *between, last) = pair, parts
    changes = []
    if first:
        changes.append((first[-1] + left, first[-1] + token, 1))
    if last:
        changes.append((right + last[0], token + last[0], 1))
    for part, times in Counter(between).items() if between else ():
        if part:
            changes.append((right + part[0], token + part[0], times))
            changes.append((part[-1] + left, part[-1] + token, times))
        else:
            changes.append((right + left, token + token, times))
    return token.join(parts), changes


def _train(words: Mapping[str, int], num_merges: int) -> list[Pair]:
    """What `train_bpe` learns from {pre-token: count}."""
    spelt, frequency = [*map(_spell, words)], [*words.values()]
    counts: defaultdict[str, int] = defaultdict(int)  # of each pair, always up to date
    places: defaultdict[str, set[int]] = defaultdict(set)  # the words that have, or had, the pair
    for w, word in enumerate(spelt):
        for pair, times in Counter(map(add, word, word[1:])).items():
            counts[pair] += times * frequency[w]
            places[pair].add(w)
    queue = [(-count, pair) for pair, count in counts.items()]  # counts may have fallen since
    heapify(queue)
    merges: list[Pair] = []
    while queue and len(merges) < num_merges:
        negative, pair = heappop(queue)
        if counts[pair] != -negative:
            if counts[pair]:
                heappush(queue, (-counts[pair], pair))
            continue
        token = chr(256 + len(merges))
        merges.append((ord(pair[0]), ord(pair[1])))
        fresh = set()
        for w in places.pop(pair):
            spelt[w], changes = _merge(spelt[w], pair, token)
            for old, new, times in changes:
                counts[old] -= times * frequency[w]
                counts[new] += times * frequency[w]
                places[new].add(w)
                fresh.add(new)
        for new in fresh:
            heappush(queue, (-counts[new], new))
    return merges


def _one_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Finds any of the tokens, the longest first; splits around them and keeps them."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


def _show(token: bytes) -> str:
    return "".join(map(_SHOWN.__getitem__, token))


def _pre_tokenizer(settings: dict[str, Any]) -> str | None:
    """The name in `PATTERNS` of a tokenizer.json's way of cutting text, None if it has none."""
    steps = settings["pre_tokenizer"] or {}
    match steps.get("pretokenizers", [steps]):
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return "gpt-2"
        case [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        ]:
            return "smollm"
    return None


def _not_done(settings: dict[str, Any]) -> Iterator[str]:
    """What a tokenizer.json asks for that changes ids or text and that is not done here."""
    model = settings["model"]
    if model["type"] != "BPE":
        yield f"{model['type']} model"
        return
    if _pre_tokenizer(settings) is None:
        yield "pre_tokenizer"
    for key in ("normalizer", "truncation", "padding"):
        if settings[key]:
            yield key
    processor, decoder = settings["post_processor"], settings["decoder"]
    if processor and processor["type"] != "ByteLevel":  # that one only moves offsets
        yield "post_processor"
    if not decoder or decoder["type"] != "ByteLevel":
        yield "decoder"
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model[key]:
            yield key
    if model["ignore_merges"]:
        yield "ignore_merges"
    if model["unk_token"] and not model["vocab"].keys() >= {*_SHOWN.values()}:
        yield "unk_token"
    for token in settings["added_tokens"]:
        if not token["special"] or token["lstrip"] or token["rstrip"] or token["single_word"]:
            yield f"special token {token['content']!r} of a kind"
