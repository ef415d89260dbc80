"""N-gram models, argued from a textbook, brute force, laws of probability and Shakespeare."""

import math
from collections import Counter
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from llmkit.assets import shakespeare_text
from llmkit.losses import cross_entropy_from_probabilities, perplexity_from_loss
from llmkit.ngrams import (
    bits_per_byte,
    context_of,
    count_bigram,
    count_ngrams,
    next_token_probabilities,
    perplexity,
    probability_table,
    sample_sequence,
    sequence_log_probability,
    smooth,
)

# Jurafsky & Martin, Speech and Language Processing, ch. 3: three sentences, and the bigram
# probabilities that the book prints for them
SENTENCES = ["<s> I am Sam </s>", "<s> Sam I am </s>", "<s> I do not like green eggs and ham </s>"]
SAM = " ".join(SENTENCES).split()
texts = st.text("abc", min_size=1, max_size=40)
orders = st.integers(1, 4)


# The textbook


def test_the_bigrams_of_sam():
    counts = count_ngrams(SAM, 2)
    book = {
        ("<s>", "I"): 2 / 3,
        ("<s>", "Sam"): 1 / 3,
        ("I", "am"): 2 / 3,
        ("Sam", "</s>"): 1 / 2,
        ("am", "Sam"): 1 / 2,
        ("I", "do"): 1 / 3,
    }
    for (context, token), probability in book.items():
        found = next_token_probabilities(counts, [context], set(SAM))
        assert found[token] == pytest.approx(probability)


def test_the_chain_rule_on_sam():
    found = sequence_log_probability(SENTENCES[0].split(), count_ngrams(SAM, 2), 2, 12)
    assert math.exp(found) == pytest.approx(2 / 3 * 2 / 3 * 1 / 2 * 1 / 2)


# Counting


@given(texts, orders)
def test_counts_equal_brute_force(text, n):
    counts = count_ngrams(text, n)
    windows = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
    flat = {(*context, token): c for context, seen in counts.items() for token, c in seen.items()}
    assert flat == Counter(windows)
    assert list(counts) == list(dict.fromkeys(window[:-1] for window in windows))


def test_words_and_numbers_are_tokens_too():
    assert count_ngrams(["to", "be", "or", "to", "be"], 2)[("to",)] == {"be": 2}
    assert count_ngrams([7, 7, 7], 3) == {(7, 7): {7: 1}}


def test_too_short_a_text_has_no_ngrams():
    assert count_ngrams("", 1) == count_ngrams("ab", 3) == {}


@pytest.mark.parametrize("n", [0, -1])
def test_n_starts_at_one(n):
    with pytest.raises(ValueError, match=f"n must be at least 1, but is {n}"):
        count_ngrams("abc", n)


# Probabilities


@given(texts, orders, st.floats(0, 10))
def test_probabilities_are_a_distribution(text, n, k):
    counts = count_ngrams(text, n)
    for context in counts:
        found = next_token_probabilities(counts, context, "abcd", k)
        assert list(found) == list("abcd") and min(found.values()) >= 0
        assert math.fsum(found.values()) == pytest.approx(1)


@given(texts, orders)
def test_relative_frequencies_are_the_likeliest(text, n):
    """Training maximizes likelihood: no other setting of k explains the counted text better."""
    counts = count_ngrams(text, n)
    best = sequence_log_probability(text, counts, n, 3)
    for k in (0.01, 0.5, 1, 100):
        assert sequence_log_probability(text, counts, n, 3, k) <= best + 1e-9


def test_add_one_by_hand():
    assert smooth(2, 3, vocab_size=5) == 3 / 8
    assert smooth(0, 3, vocab_size=5) == 1 / 8
    assert smooth(2, 3, vocab_size=5, k=0.5) == pytest.approx(2.5 / 5.5)
    assert smooth(2, 3, vocab_size=5, k=0) == 2 / 3
    assert smooth(0, 0, vocab_size=5) == 1 / 5
    assert smooth(0, 0, vocab_size=5, k=0) == 0


def test_endless_smoothing_is_uniform():
    found = next_token_probabilities(count_ngrams("aaab", 1), (), "abcd", k=1e12)
    assert list(found.values()) == pytest.approx([1 / 4] * 4)


def test_unseen_contexts():
    counts = count_ngrams("ab", 2)
    assert next_token_probabilities(counts, "z", "ab") == {"a": 0, "b": 0}
    assert next_token_probabilities(counts, "z", "ab", k=1) == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: smooth(1, 2, 3, k=-1), "k must not be negative, but is -1"),
        (lambda: smooth(1, 2, 0), "vocab_size must be at least 1, but is 0"),
        (
            lambda: next_token_probabilities(count_ngrams("abc", 3), "a", "abc"),
            "context must hold 2 tokens, but holds 1",
        ),
        (lambda: perplexity(-1.0, 0), "num_tokens must be at least 1, but is 0"),
        (lambda: bits_per_byte(-1.0, ""), "text must not be empty"),
        (
            lambda: sample_sequence(count_ngrams("abc", 3), 3, "a", [0.5]),
            "start must hold at least 2 tokens, but holds 1",
        ),
        (lambda: sample_sequence(count_ngrams("abc", 1), 1, "", [1.0]), r"one is 1\.0"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Sequences


@given(texts, orders, st.sampled_from([0.0, 0.3, 1.0]))
def test_log_probability_is_the_sum_over_positions(text, n, k):
    counts = count_ngrams("abcabbca", n)
    steps = [
        next_token_probabilities(counts, text[i - n + 1 : i], "abc", k)[text[i]]
        for i in range(n - 1, len(text))
    ]
    found = sequence_log_probability(text, counts, n, 3, k)
    expected = -math.inf if 0 in steps else sum(map(math.log, steps))
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_all_continuations_together_are_certain(n):
    counts, start = count_ngrams("abracadabra", n), "abr"[: n - 1]
    total = 0.0
    for end in product("abrcd", repeat=4):
        total += math.exp(sequence_log_probability([*start, *end], counts, n, 5, k=0.5))
    assert total == pytest.approx(1)


def test_a_zero_count_makes_perplexity_infinite():
    counts = count_ngrams("abab", 2)
    impossible = sequence_log_probability("aab", counts, 2, 2)
    assert impossible == -math.inf and perplexity(impossible, 2) == math.inf
    assert perplexity(sequence_log_probability("aab", counts, 2, 2, k=1), 2) < math.inf
    assert perplexity(-1e9, 1) == math.inf  # beyond what a float holds


@given(st.integers(1, 50), st.integers(1, 20))
def test_perplexity_of_a_guesser_is_the_vocabulary(vocab_size, length):
    found = sequence_log_probability("z" * length, {}, 1, vocab_size, k=1)
    assert perplexity(found, length) == pytest.approx(vocab_size)


def test_perplexity_is_that_of_the_cross_entropy():
    """The same number as chapter 2's, from a table of bigram probabilities."""
    text, letters = "abracadabra", "abcdr"
    counts = count_ngrams(text, 2)
    table = [list(next_token_probabilities(counts, a, letters, 1).values()) for a in letters]
    before, after = zip(*(map(letters.index, pair) for pair in pairwise(text)), strict=True)
    rows = torch.tensor(table, dtype=torch.float64)[list(before)]
    expected = perplexity_from_loss(cross_entropy_from_probabilities(rows, torch.tensor(after)))
    found = perplexity(sequence_log_probability(text, counts, 2, 5, 1), len(text) - 1)
    assert found == pytest.approx(expected.item())


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_guesser_of_bytes_needs_eight_bits_each(text):
    data = text.encode()
    found = sequence_log_probability(data, {}, 1, 256, k=1)
    assert bits_per_byte(found, text) == pytest.approx(8)


# Sampling


def test_draws_choose_by_cumulative_probability():
    counts = count_ngrams("aaab", 1)
    assert sample_sequence(counts, 1, "", [0.0, 0.74, 0.75, 0.99]) == ["a", "a", "b", "b"]
    assert sample_sequence(counts, 1, "xyz", []) == ["x", "y", "z"]


def test_a_sequence_ends_where_nothing_ever_followed():
    assert sample_sequence(count_ngrams("abc", 2), 2, "a", [0.5] * 9) == ["a", "b", "c"]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_samples_follow_the_probabilities(n):
    counts, start = count_ngrams("the cat sat on the mat; this is that, thus then", n), "th"
    draws = torch.rand(20_000, generator=torch.Generator().manual_seed(0)).tolist()
    sampled = Counter(sample_sequence(counts, n, start, [draw])[-1] for draw in draws)
    seen = counts[tuple(start[3 - n :])]
    expected = next_token_probabilities(counts, start[3 - n :], seen)
    assert len(expected) > 2 and sampled.keys() <= expected.keys()
    observed = [sampled[token] for token in expected]
    assert chisquare(observed, [20_000 * p for p in expected.values()]).pvalue > 1e-3


# Shakespeare


@pytest.mark.parametrize(("tokens", "lowest"), [(str, {4, 5}), (str.split, {1, 2})])
def test_train_loss_falls_and_held_out_loss_turns_up(tokens, lowest):
    """Loss in nats per token of the relative frequencies, and of held-out text with k = 0.01."""
    text = shakespeare_text()
    train, held_out = tokens(text[:300_000]), tokens(text[300_000:350_000])
    vocab_size = len({*train, *held_out})
    fitted, unseen = [], []
    for n in range(1, 7):
        counts = count_ngrams(train, n)
        for part, k, losses in (train, 0, fitted), (held_out, 0.01, unseen):
            total = sequence_log_probability(part, counts, n, vocab_size, k)
            losses.append(-total / (len(part) - n + 1))
    assert fitted == sorted(fitted, reverse=True) and fitted[5] < fitted[0] / 2
    best = min(unseen)
    assert unseen.index(best) + 1 in lowest and unseen[5] > best + 0.3


def test_samples_look_ever_more_like_shakespeare():
    """The share of sampled words that Shakespeare has grows with n."""
    text = shakespeare_text()[:300_000]
    known = set(text.split())
    draws = torch.rand(3000, generator=torch.Generator().manual_seed(0)).tolist()
    shares = []
    for n in (1, 2, 3, 4, 6):
        written = "".join(sample_sequence(count_ngrams(text, n), n, text[: n - 1], draws)).split()
        shares.append(sum(word in known for word in written) / len(written))
    assert shares == sorted(shares) and shares[0] < 0.3 and shares[-1] > 0.9


# One pair, one context, and the whole model as a table


@given(texts, st.sampled_from("abc"), st.sampled_from("abc"))
def test_one_bigram_is_counted_as_all_are(text, first, second):
    assert count_bigram(text, first, second) == count_ngrams(text, 2).get((first,), {}).get(
        second, 0
    )


@given(texts, orders)
def test_a_text_and_its_next_token_are_one_more_ngram(text, n):
    if len(text) < n - 1:
        with pytest.raises(ValueError, match=f"at least {n - 1}"):
            context_of(text, n)
    else:
        assert (*context_of(text, n), "z") == tuple(f"{text}z"[len(text) - n + 1 :])


@given(texts, st.floats(0.01, 5))
def test_the_table_holds_what_smoothing_gives(text, k):
    letters = "abc"
    counts = count_ngrams(text, 2)
    table = torch.tensor([[counts.get((a,), {}).get(b, 0) for b in letters] for a in letters])
    found = probability_table(table, k)
    assert found.sum(-1).tolist() == pytest.approx([1] * 3)
    for row, a in zip(found, letters, strict=True):
        seen = counts.get((a,), {})
        total = sum(seen.values()) + 3 * k
        assert row.tolist() == pytest.approx([(seen.get(b, 0) + k) / total for b in letters])


def test_a_row_that_was_never_counted_stays_nought():
    assert probability_table(torch.tensor([[0, 0], [1, 3]])).tolist() == [[0, 0], [0.25, 0.75]]
