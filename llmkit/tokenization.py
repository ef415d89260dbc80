"""Tokens: the whole numbers that stand for text, and the vectors that stand for tokens.

Byte-level byte-pair encoding (BPE), the way of GPT-2 and Llama 3, is written out here one idea a
function; `llmkit.bpe` makes it fast. `Tokenizer` loads what a real model was trained with; there
the work is done by Hugging Face's `tokenizers`.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import regex
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors
from torch import Tensor

Pair = tuple[int, int]  # ids of two neighbouring tokens

# The 256 bytes in GPT-2's order: first those that print as one visible character in Latin-1. A
# byte's place here is its token id, so "!" is 0, "A" is 32 and the space is 220.
_VISIBLE = bytes([*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)])
BYTES = _VISIBLE + bytes(byte for byte in range(256) if byte not in _VISIBLE)
BYTE_TO_ID = bytes.maketrans(BYTES, bytes(range(256)))

# GPT-2's way of cutting text before any merge: English contractions; letters, numbers or other
# signs in a row, with a space before them if there is one; white space. `regex` knows \p{…}.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def word_tokenize(text: str) -> list[str]:
    """The words of a text: its longest runs of letters, digits and underscores.

    Good for looking words up (Manning, Raghavan & Schütze, 2008, §2.2.1). What stands between them
    is lost, so the text cannot be had back.
    """
    return re.findall(r"\w+", text)


def pretokenize(text: str) -> list[str]:
    """GPT-2's pre-tokens: pieces that no token may reach across. Joined, they are the text.

    Radford et al. (2019); the pattern is `GPT2_PATTERN`.
    """
    return regex.findall(GPT2_PATTERN, text)


def byte_ids(text: str) -> tuple[int, ...]:
    """The token ids of a text before any merge: one for each byte of its UTF-8, by `BYTES`.

    Raises ValueError for a lone surrogate, half of a UTF-16 character, which has no UTF-8.
    """
    try:
        return tuple(text.encode().translate(BYTE_TO_ID))
    except UnicodeEncodeError as error:
        surrogate = text[error.start]
        raise ValueError(
            f"The text holds {surrogate!r}, half a character: repair it with "
            "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')."
        ) from None


def count_pairs(words: Mapping[tuple[int, ...], int]) -> dict[Pair, int]:
    """How often each two tokens stand side by side: {pair: count}.

    `words` says how often each pre-token occurs in the text: {its token ids: count}.
    """
    counts: Counter[Pair] = Counter()
    for word, count in words.items():
        for pair in pairwise(word):
            counts[pair] += count
    return dict(counts)


def merge_pair(word: tuple[int, ...], pair: Pair, new_id: int) -> tuple[int, ...]:
    """The word with every `pair` in it replaced by `new_id`, taken from left to right.

    Of three equal tokens in a row, only the first two become one.
    """
    merged: list[int] = []
    i = 0
    while i < len(word):
        found = word[i : i + 2] == pair
        merged.append(new_id if found else word[i])
        i += 2 if found else 1
    return tuple(merged)


def train_bpe(text: str, num_merges: int) -> list[Pair]:
    """The merges that byte-pair encoding learns from a text, in order (Sennrich et al., 2016).

    Merge number m makes token 256 + m of the pair that is most frequent by then. Among equally
    frequent pairs it is the smallest one, as Python orders tuples of ids; so does `tokenizers`.
    There are fewer merges if the text has no more pairs. Raises ValueError if `num_merges` is
    negative or the text holds a lone surrogate.
    """
    if num_merges < 0:
        raise ValueError(f"num_merges must not be negative, but is {num_merges}.")
    words = {byte_ids(word): count for word, count in Counter(pretokenize(text)).items()}
    merges: list[Pair] = []
    for new_id in range(256, 256 + num_merges):
        counts = count_pairs(words)
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        words = {merge_pair(word, best, new_id): count for word, count in words.items()}
        merges.append(best)
    return merges


def encode(text: str, merges: Sequence[Pair]) -> list[int]:
    """Token ids of a text: in each pre-token, the merge learnt first is done first.

    Raises ValueError for a lone surrogate.
    """
    new_ids = {pair: 256 + m for m, pair in enumerate(merges)}
    ids: list[int] = []
    for word in map(byte_ids, pretokenize(text)):
        while len(word) > 1:
            first = min(pairwise(word), key=lambda pair: new_ids.get(pair, math.inf))
            if first not in new_ids:
                break
            word = merge_pair(word, first, new_ids[first])
        ids += word
    return ids


def token_bytes(merges: Sequence[Pair]) -> list[bytes]:
    """The bytes that each token stands for, by id: the 256 bytes, then what each merge joins."""
    tokens = [bytes([byte]) for byte in BYTES]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens


def decode(ids: Sequence[int], merges: Sequence[Pair]) -> str:
    """The text of token ids; bytes that are not UTF-8, such as half a character, become U+FFFD.

    Raises ValueError for an id that no token has.
    """
    tokens = token_bytes(merges)
    for i in ids:
        if not 0 <= i < len(tokens):
            raise ValueError(f"ids must lie in 0 … {len(tokens) - 1}, but one is {i}.")
    return b"".join(tokens[i] for i in ids).decode("utf-8", errors="replace")


def embed(ids: Tensor, table: Tensor) -> Tensor:
    """The vector of each token, its row of the table: one-hot(ids) @ table without the product.

    Shapes: (...) integers, (V, D) -> (..., D). Raises ValueError for an id outside 0 … V−1.
    """
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < len(table):
        raise ValueError(f"ids must lie in 0 … {len(table) - 1}.")
    return table[ids]


# how each kind of GGUF vocabulary (tokenizer.ggml.pre) cuts text before any merge
PRE_TOKENIZERS = {
    "gpt-2": lambda: [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": lambda: [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ],
}
_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type: matched whole, never merged or split
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """Text to token ids and back, with the chat template and stop tokens of its model.

    `backend` is the `tokenizers.Tokenizer` that does the work. `stop_ids` are the tokens that end
    a text or an answer.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        stop_ids: Iterable[int] = (),
        chat_template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ):
        self.backend = backend
        end_of_text = backend.token_to_id("<|endoftext|>")
        self.stop_ids = frozenset(stop_ids) | ({end_of_text} - {None})
        self.chat_template = chat_template
        self.special_tokens = dict(special_tokens or {})  # what a template calls bos_token …

    @classmethod
    def from_directory(cls, directory: str | Path) -> "Tokenizer":
        """The tokenizer of a Hugging Face directory: tokenizer.json and the settings beside it."""
        directory = Path(directory)
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"{directory} holds no tokenizer.json.")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(f"{path} is not a tokenizer: {error}.") from error

        def read(name: str) -> dict[str, Any]:
            file = directory / name
            return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

        settings = read("tokenizer_config.json")
        names = {}
        for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
            token = settings.get(key)
            if token is not None:
                names[key] = token["content"] if isinstance(token, dict) else token
        template = settings.get("chat_template")
        if (file := directory / "chat_template.jinja").is_file():
            template = file.read_text(encoding="utf-8")
        ends = [read("generation_config.json").get("eos_token_id")]
        ends += [read("config.json").get("eos_token_id")]
        if "eos_token" in names:
            ends.append(backend.token_to_id(names["eos_token"]))
        stop_ids = {i for end in ends for i in (end if isinstance(end, list) else [end])} - {None}
        return cls(backend, stop_ids, template, names)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """The tokenizer in a GGUF file's metadata.

        Raises ValueError for any kind but byte-level BPE with a known way of cutting text.
        """
        ggml = {
            key.removeprefix("tokenizer.ggml."): value
            for key, value in metadata.items()
            if key.startswith("tokenizer.ggml.")
        }
        kind, cut = ggml.get("model"), ggml.get("pre", "gpt-2")
        if kind != "gpt2" or cut not in PRE_TOKENIZERS:
            known = ", ".join(PRE_TOKENIZERS)
            raise ValueError(
                f"The GGUF file's tokenizer is {kind!r} with pre-tokenizer {cut!r}, but only "
                f"'gpt2' with one of {known} is implemented."
            )
        tokens = ggml["tokens"]
        merges = [tuple(merge.split(" ")) for merge in ggml["merges"]]
        backend = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
        backend.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[cut]())
        backend.decoder = decoders.ByteLevel()
        for i, token_type in enumerate(ggml.get("token_type", ())):
            added = tokenizers.AddedToken(tokens[i], normalized=False)
            if token_type == _CONTROL:
                backend.add_special_tokens([added])
            elif token_type == _USER_DEFINED:
                backend.add_tokens([added])
        names = {
            f"{name}_token": tokens[ggml[f"{key}_token_id"]]
            for name, key in dict(bos="bos", eos="eos", unk="unknown", pad="padding").items()
            if f"{key}_token_id" in ggml
        }
        if ggml.get("add_bos_token"):
            bos = names["bos_token"]
            backend.post_processor = processors.TemplateProcessing(
                single=f"{bos} $A", special_tokens=[(bos, ggml["bos_token_id"])]
            )
        stop_ids = [ggml[key] for key in ("eos_token_id", "eot_token_id") if key in ggml]
        return cls(backend, stop_ids, metadata.get("tokenizer.chat_template"), names)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        return self.backend.get_vocab_size()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; a special token written out in it becomes that token.

        `add_special_tokens` puts a begin-of-text token first, if the model was trained with one.
        """
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD."""
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of token ids piece by piece, as they come, never half a character.

        A character may be spread over several tokens; its piece waits for the last of them.
        Joined, the pieces are `decode(list(ids))`.
        """
        shown: list[int] = []  # the tokens of the last piece: some decoders join to what precedes
        waiting: list[int] = []
        for i in ids:
            waiting.append(i)
            text = self._text_after(shown, waiting)
            if text and not text.endswith(_REPLACEMENT):
                yield text
                shown, waiting = waiting, []
        if text := self._text_after(shown, waiting):
            yield text

    def _text_after(self, shown: list[int], waiting: list[int]) -> str:
        return self.decode(shown + waiting)[len(self.decode(shown)) :]

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as the text that the model was trained on.

        `messages` are dicts of "role" ("system", "user" or "assistant") and "content". Where none
        is a system message, the template may add its own. The template comes with the model, from
        a stranger: it runs in jinja2's sandbox. The text has its special tokens written out, so
        encode it with `add_special_tokens=False`. Raises ValueError if the template does.
        """
        if self.chat_template is None:
            raise ValueError("This model has no chat template: give it plain text to continue.")
        import jinja2.sandbox  # here, for quick starts

        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )

        def raise_exception(message: str) -> None:  # templates call it by this name
            raise jinja2.TemplateError(message)

        try:
            return environment.from_string(self.chat_template).render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                raise_exception=raise_exception,
                **self.special_tokens,
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"The model's chat template fails: {error}") from error
