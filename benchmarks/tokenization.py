"""BPE on Shakespeare's works: llmkit's pure Python beside tokenizers, which is written in Rust."""

from collections.abc import Iterator

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from benchmarks.figure import Figure, in_turn, seconds
from llmkit.assets import shakespeare_text
from llmkit.bpe import BPETokenizer

VOCABULARY, ROUNDS = 10_000, 3


def their_training(text: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def figures() -> Iterator[Figure]:
    text = shakespeare_text()
    megabytes = len(text.encode()) / 1e6
    theirs = their_training(text)
    ours = BPETokenizer.train([text], VOCABULARY)
    mine, other = in_turn(
        1,
        lambda: seconds(lambda: BPETokenizer.train([text], VOCABULARY)),
        lambda: seconds(lambda: their_training(text)),
    )
    yield Figure(
        f"BPE, {VOCABULARY:,} tokens from {megabytes:.1f} MB", "s", mine, "tokenizers", other, 0.5
    )
    if len(ours.encode(text)) != len(theirs.encode(text).ids):
        raise AssertionError("the two tokenizers cut the text differently")
    fresh = theirs.to_str()  # each reads the text once with no word of it in its cache
    mine, other = in_turn(
        ROUNDS,
        lambda: _encoding(BPETokenizer(ours.merges), text),
        lambda: _encoding(Tokenizer.from_str(fresh), text),
    )
    yield Figure(
        "encoding running text", "MB/s", megabytes / mine, "tokenizers", megabytes / other, 1.0
    )


def _encoding(tokenizer: BPETokenizer | Tokenizer, text: str) -> float:
    return seconds(lambda: tokenizer.encode(text))
