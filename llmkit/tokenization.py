"""Tokens: the whole numbers that stand for text.

`Tokenizer` loads what a real model was trained with; the work is done by Hugging Face's
`tokenizers`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

# how each kind of GGUF vocabulary (tokenizer.ggml.pre) cuts text before any merge
_PRE_TOKENIZERS = {
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
        if kind != "gpt2" or cut not in _PRE_TOKENIZERS:
            known = ", ".join(_PRE_TOKENIZERS)
            raise ValueError(
                f"The GGUF file's tokenizer is {kind!r} with pre-tokenizer {cut!r}, but only "
                f"'gpt2' with one of {known} is implemented."
            )
        tokens = ggml["tokens"]
        merges = [tuple(merge.split(" ")) for merge in ggml["merges"]]
        backend = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
        backend.pre_tokenizer = pre_tokenizers.Sequence(_PRE_TOKENIZERS[cut]())
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
