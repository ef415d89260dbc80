"""Chapter 01: language models that only count."""

import math
from collections import Counter, defaultdict
from itertools import accumulate, pairwise

import torch
from torch import Generator, Tensor

from autograder.check import Case, Check, Misconception, Question
from llmkit import ngrams as reference

# Wrong solutions and variants are written as a student would write them, each whole in itself,
# without llmkit: a class of synthetic students is made of their source.

SENTENCES = "the dog chased the cat . the cat chased the mouse . the dog slept ."  # the chapter's
DOGS = SENTENCES.split()
WORDS = ["apple", "bread", "cheese", "dates", "eggs", "figs"]


def drawn(rng: Generator, tokens: str | list[str], length: int) -> list[str]:
    """A text of so many tokens, each drawn by chance."""
    return [tokens[i] for i in torch.randint(0, len(tokens), (length,), generator=rng).tolist()]


def letters(rng: Generator, alphabet: str, length: int) -> str:
    return "".join(drawn(rng, alphabet, length))


def whole(rng: Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high, (), generator=rng))


def between(rng: Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng, dtype=torch.float64))


# count_bigram ------------------------------------------------------------------------------------


def bigram_cases(rng: Generator) -> list[Case]:
    return [
        Case(DOGS, "the", "dog").titled("the dog"),
        Case(DOGS, "slept", ".").titled("the last two words of the text"),
        Case(DOGS, ".", "the").titled("the text ends with the first and begins with the second"),
        Case(DOGS, "dog", "cat").titled("they never stand together"),
        Case("banana", "a", "n").titled("a text of characters"),
        Case("aaaab", "a", "a").titled("a character after itself"),
        Case(drawn(rng, WORDS[:3], 40), "apple", "bread").titled("forty words"),
        Case(letters(rng, "xyz", 30), "x", "z").titled("thirty characters"),
        Case(tuple(whole(rng, 0, 3) for _ in range(25)), 2, 0).titled("numbers are tokens, too"),
    ]


def bigram_first_alone(tokens, first, second):
    return tokens.count(first)


def bigram_second_alone(tokens, first, second):
    return tokens.count(second)


def bigram_reversed(tokens, first, second):
    return sum(pair == (second, first) for pair in pairwise(tokens))


def bigram_either_order(tokens, first, second):
    return sum(pair in ((first, second), (second, first)) for pair in pairwise(tokens))


def bigram_anywhere_later(tokens, first, second):
    count = 0
    for i in range(len(tokens)):
        for j in range(i + 1, len(tokens)):
            if tokens[i] == first and tokens[j] == second:
                count += 1
    return count


def bigram_around_the_end(tokens, first, second):
    return sum(tokens[i - 1] == first and tokens[i] == second for i in range(len(tokens)))


def bigram_without_the_last(tokens, first, second):
    count = 0
    for i in range(len(tokens) - 2):
        if tokens[i] == first and tokens[i + 1] == second:
            count += 1
    return count


def bigram_without_overlap(tokens, first, second):
    count = i = 0
    while i < len(tokens) - 1:
        if tokens[i] == first and tokens[i + 1] == second:
            count += 1
            i += 1
        i += 1
    return count


def bigram_as_a_share(tokens, first, second):
    count = sum(pair == (first, second) for pair in pairwise(tokens))
    return count / max(tokens.count(first), 1)


def bigram_loop(tokens, first, second):
    count = 0
    for i in range(len(tokens) - 1):
        if tokens[i] == first and tokens[i + 1] == second:
            count += 1
    return count


def bigram_previous(tokens, first, second):
    count, previous = 0, None
    for token in tokens:
        count += int(previous == first and token == second)
        previous = token
    return count


def bigram_counter(tokens, first, second):
    return Counter(pairwise(tokens))[first, second]


def bigram_list(tokens, first, second):
    after = [tokens[i + 1] for i, token in enumerate(tokens[:-1]) if token == first]
    return after.count(second)


COUNT_BIGRAM = Check(
    reference=reference.count_bigram,
    points=1,
    cases=bigram_cases,
    misconceptions=[
        Misconception(
            "the first token is counted, whatever comes after it",
            bigram_first_alone,
            "After 'the' there may stand 'dog' or 'cat'. Where does your count look at the second?",
        ),
        Misconception(
            "the second token is counted, whatever comes before it",
            bigram_second_alone,
            "Before 'dog' there may stand 'the' or 'a'. Where does your count look at the first?",
        ),
        Misconception(
            "the order is turned round: the first token is sought after the second",
            bigram_reversed,
            "In 'the dog', which of the two stands at place i, and which at place i + 1?",
        ),
        Misconception(
            "both orders are counted",
            bigram_either_order,
            "Is 'dog the' the same as 'the dog'?",
        ),
        Misconception(
            "the second token may come anywhere later, not only directly after the first",
            bigram_anywhere_later,
            "How many words may stand between the two?",
        ),
        Misconception(
            "the first token of the text is taken to follow the last one",
            bigram_around_the_end,
            "At i = 0, which token is tokens[i - 1]? Does the text go round in a circle?",
        ),
        Misconception(
            "the last pair of the text is missing",
            bigram_without_the_last,
            "A text of five tokens has four pairs. How many times does your loop run?",
        ),
        Misconception(
            "pairs that share a token are counted once only",
            bigram_without_overlap,
            "In 'aaa', the middle 'a' comes after one and before another. How many pairs is that?",
        ),
        Misconception(
            "this is a share, not a count",
            bigram_as_a_share,
            "How often: is the answer a whole number, or a number between 0 and 1?",
        ),
    ],
    variants=[bigram_loop, bigram_previous, bigram_counter, bigram_list],
)


# context_of --------------------------------------------------------------------------------------


def context_cases(rng: Generator) -> list[Case]:
    return [
        Case(DOGS[:5], 3).titled("the last two words"),
        Case("banana", 4).titled("the last three characters"),
        Case(drawn(rng, WORDS, 8), 1).titled("n = 1: no context"),
        Case([], 1).titled("n = 1, and no text either"),
        Case(drawn(rng, WORDS, 3), 4).titled("exactly as many tokens as needed"),
        Case(drawn(rng, WORDS, 9), 2).titled("nine words, n = 2"),
        Case(letters(rng, "abcdefgh", 12), 6).titled("twelve characters, n = 6"),
        Case(tuple(whole(rng, 0, 99) for _ in range(6)), 5).titled("numbers are tokens, too"),
        Case(DOGS[:2], 4).titled("too few tokens"),
    ]


def context_of_n_tokens(tokens, n):
    if len(tokens) < n - 1:
        raise ValueError("too few tokens")
    return tuple(tokens[-n:])


def context_whole_text_for_one(tokens, n):
    if len(tokens) < n - 1:
        raise ValueError("too few tokens")
    return tuple(tokens[-(n - 1) :])


def context_from_the_start(tokens, n):
    if len(tokens) < n - 1:
        raise ValueError("too few tokens")
    return tuple(tokens[: n - 1])


def context_reversed(tokens, n):
    if len(tokens) < n - 1:
        raise ValueError("too few tokens")
    return tuple(tokens[len(tokens) - n + 1 :][::-1])


def context_as_a_slice(tokens, n):
    if len(tokens) < n - 1:
        raise ValueError("too few tokens")
    return tokens[len(tokens) - n + 1 :]


def context_without_the_last(tokens, n):
    if len(tokens) < n - 1:
        raise ValueError("too few tokens")
    return tuple(tokens[-n:-1])


def context_as_long_as_there_is(tokens, n):
    return tuple(tokens[max(0, len(tokens) - n + 1) :])


def context_branch(tokens, n):
    if len(tokens) < n - 1:
        raise ValueError(f"{len(tokens)} tokens are too few for n = {n}")
    return () if n == 1 else tuple(tokens[1 - n :])


def context_loop(tokens, n):
    if n - 1 > len(tokens):
        raise ValueError("too few tokens")
    return tuple([tokens[i] for i in range(len(tokens) - (n - 1), len(tokens))])


def context_backward(tokens, n):
    found = []
    for i in range(1, n):
        if i > len(tokens):
            raise ValueError("too few tokens")
        found.insert(0, tokens[-i])
    return tuple(found)


CONTEXT_OF = Check(
    reference=reference.context_of,
    points=2,
    cases=context_cases,
    misconceptions=[
        Misconception(
            "the context has n tokens, not n−1",
            context_of_n_tokens,
            "An n-gram is a context and the token after it. If all are n, how many are before?",
        ),
        Misconception(
            "for n = 1 the context is the whole text",
            context_whole_text_for_one,
            "For n = 1 you ask for tokens[-0:]. What is -0, and where does such a slice begin?",
        ),
        Misconception(
            "the context is taken from the start of the text",
            context_from_the_start,
            "To say what comes next, do you look at how the text begins, or at how it ends?",
        ),
        Misconception(
            "the context is turned round: the last token stands first",
            context_reversed,
            "After 'the dog', is the context ('the', 'dog') or ('dog', 'the')?",
        ),
        Misconception(
            "the context is a slice of the text, not a tuple",
            context_as_a_slice,
            "What type has a slice of a list? Can it be the key of a dict?",
        ),
        Misconception(
            "the last token is left out",
            context_without_the_last,
            "The token to predict is not in the text yet. Is there anything to leave out?",
        ),
        Misconception(
            "a text that is too short is accepted: its context is shorter",
            context_as_long_as_there_is,
            "The model has counted contexts of n−1 tokens. Will it find a shorter one?",
        ),
    ],
    variants=[context_branch, context_loop, context_backward],
)


# count_ngrams ------------------------------------------------------------------------------------


def count_cases(rng: Generator) -> list[Case]:
    return [
        Case(DOGS, 2).titled("the dogs and cats, n = 2"),
        Case("banana", 3).titled("banana, n = 3"),
        Case(letters(rng, "abc", 15), 1).titled("n = 1: nothing before"),
        Case(letters(rng, "ab", 40), 4).titled("forty characters, n = 4"),
        Case(drawn(rng, WORDS[:3], 30), 3).titled("thirty words, n = 3"),
        Case(tuple(whole(rng, 0, 3) for _ in range(25)), 2).titled("numbers are tokens, too"),
        Case("abc", 3).titled("a text of exactly n tokens"),
        Case("ab", 3).titled("a text that is too short"),
        Case("abc", 0).titled("n = 0"),
    ]


def count_longer_contexts(tokens, n):
    if n < 1:
        raise ValueError("n must be at least 1")
    counts = {}
    for i in range(len(tokens) - n):
        followers = counts.setdefault(tuple(tokens[i : i + n]), {})
        followers[tokens[i + n]] = followers.get(tokens[i + n], 0) + 1
    return counts


def count_without_the_last(tokens, n):
    if n < 1:
        raise ValueError("n must be at least 1")
    counts = {}
    for i in range(len(tokens) - n):
        followers = counts.setdefault(tuple(tokens[i : i + n - 1]), {})
        followers[tokens[i + n - 1]] = followers.get(tokens[i + n - 1], 0) + 1
    return counts


def count_short_windows(tokens, n):
    if n < 1:
        raise ValueError("n must be at least 1")
    counts = {}
    for i in range(len(tokens)):
        window = tuple(tokens[i : i + n])
        followers = counts.setdefault(window[:-1], {})
        followers[window[-1]] = followers.get(window[-1], 0) + 1
    return counts


def count_short_contexts_at_the_start(tokens, n):
    if n < 1:
        raise ValueError("n must be at least 1")
    counts = {}
    for i, token in enumerate(tokens):
        followers = counts.setdefault(tuple(tokens[max(0, i - n + 1) : i]), {})
        followers[token] = followers.get(token, 0) + 1
    return counts


def count_slices(tokens, n):
    if n < 1:
        raise ValueError("n must be at least 1")
    counts = {}
    for i in range(len(tokens) - n + 1):
        followers = counts.setdefault(tokens[i : i + n - 1], {})
        followers[tokens[i + n - 1]] = followers.get(tokens[i + n - 1], 0) + 1
    return counts


def count_bare_tokens(tokens, n):
    if n < 1:
        raise ValueError("n must be at least 1")
    counts = {}
    for i in range(len(tokens) - n + 1):
        context = tokens[i] if n == 2 else tuple(tokens[i : i + n - 1])
        followers = counts.setdefault(context, {})
        followers[tokens[i + n - 1]] = followers.get(tokens[i + n - 1], 0) + 1
    return counts


def count_flat(tokens, n):
    if n < 1:
        raise ValueError("n must be at least 1")
    return dict(Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)))


def count_once(tokens, n):
    if n < 1:
        raise ValueError("n must be at least 1")
    counts = {}
    for i in range(len(tokens) - n + 1):
        counts.setdefault(tuple(tokens[i : i + n - 1]), {})[tokens[i + n - 1]] = 1
    return counts


def count_last_follower(tokens, n):
    if n < 1:
        raise ValueError("n must be at least 1")
    counts = {}
    for i in range(len(tokens) - n + 1):
        counts[tuple(tokens[i : i + n - 1])] = {tokens[i + n - 1]: 1}
    return counts


def count_in_steps_of_n(tokens, n):
    if n < 1:
        raise ValueError("n must be at least 1")
    counts = {}
    for i in range(0, len(tokens) - n + 1, n):
        followers = counts.setdefault(tuple(tokens[i : i + n - 1]), {})
        followers[tokens[i + n - 1]] = followers.get(tokens[i + n - 1], 0) + 1
    return counts


def count_backward(tokens, n):
    if n < 1:
        raise ValueError("n must be at least 1")
    counts = {}
    for i in range(len(tokens) - n + 1):
        before = counts.setdefault(tuple(tokens[i + 1 : i + n]), {})
        before[tokens[i]] = before.get(tokens[i], 0) + 1
    return counts


def count_any_n(tokens, n):
    counts = {}
    for i in range(len(tokens) - n + 1):
        window = tuple(tokens[i : i + max(n, 1)])
        if window:
            followers = counts.setdefault(window[:-1], {})
            followers[window[-1]] = followers.get(window[-1], 0) + 1
    return counts


def count_loop(tokens, n):
    if n <= 0:
        raise ValueError(f"n is {n}")
    counts = {}
    for end in range(n - 1, len(tokens)):
        context = tuple(tokens[end - n + 1 : end])
        if context not in counts:
            counts[context] = {}
        counts[context][tokens[end]] = counts[context].get(tokens[end], 0) + 1
    return counts


def count_defaultdict(tokens, n):
    if n < 1:
        raise ValueError("n must be at least 1")
    counts = defaultdict(Counter)
    for i in range(len(tokens) - n + 1):
        *context, token = tokens[i : i + n]
        counts[tuple(context)][token] += 1
    return {context: dict(followers) for context, followers in counts.items()}


def count_zip(tokens, n):
    if n < 1:
        raise ValueError("n must be at least 1")
    counts = {}
    for window in zip(*[tokens[i:] for i in range(n)], strict=False):
        counts[window[:-1]] = counts.get(window[:-1], Counter()) + Counter([window[-1]])
    return {context: dict(followers) for context, followers in counts.items()}


def count_sliding(tokens, n):
    if n < 1:
        raise ValueError("n must be at least 1")
    counts, context = {}, ()
    for token in tokens:
        if len(context) == n - 1:
            followers = counts.setdefault(context, {})
            followers[token] = followers.get(token, 0) + 1
        context = (*context, token)[max(0, len(context) + 2 - n) :]
    return counts


COUNT_NGRAMS = Check(
    reference=reference.count_ngrams,
    points=4,
    cases=count_cases,
    misconceptions=[
        Misconception(
            "the contexts have n tokens, not n−1",
            count_longer_contexts,
            "An n-gram is a context and the token after it, n in all. How many are before?",
        ),
        Misconception(
            "the last n-gram of the text is missing",
            count_without_the_last,
            "How many 3-grams has a text of three tokens? How many times does your loop run?",
        ),
        Misconception(
            "the end of the text is counted with windows shorter than n",
            count_short_windows,
            "What does a slice give that reaches beyond the end? Is that an n-gram?",
        ),
        Misconception(
            "the first tokens are counted after contexts shorter than n−1",
            count_short_contexts_at_the_start,
            "How many tokens stand before the first one? Has it a context of n−1 tokens?",
        ),
        Misconception(
            "the contexts are slices of the text, not tuples",
            count_slices,
            "A slice of a list is a list. Can that be the key of a dict?",
        ),
        Misconception(
            "a context of one token is that token, not a tuple of it",
            count_bare_tokens,
            "How does Python write a tuple of one, and what is ('the') without the comma?",
        ),
        Misconception(
            "whole n-grams are counted: the token is not kept apart from its context",
            count_flat,
            "Given only a context, how do you find all that followed it, without a search?",
        ),
        Misconception(
            "every count is 1: what is met again is not added",
            count_once,
            "What should happen to a count when the same token follows the same context again?",
        ),
        Misconception(
            "a context forgets its earlier followers when it is met again",
            count_last_follower,
            "When 'the' is met a second time, what becomes of the dict that it already has?",
        ),
        Misconception(
            "the windows do not overlap: each begins where the last one ended",
            count_in_steps_of_n,
            "Every token but the first ones is predicted once. How far does the window move?",
        ),
        Misconception(
            "the context is what comes after the token, not before it",
            count_backward,
            "The model reads from left to right. Of a window, which token is not known yet?",
        ),
        Misconception(
            "an n below 1 is accepted",
            count_any_n,
            "How many tokens would a 0-gram have? Who would notice the mistake, and when?",
        ),
    ],
    variants=[count_loop, count_defaultdict, count_zip, count_sliding],
)


# smooth ------------------------------------------------------------------------------------------


def smooth_cases(rng: Generator) -> list[Case]:
    total = whole(rng, 20, 60)
    return [
        Case(2, 5, 7).titled("dog after the: 2 of 5, seven words, k = 1"),
        Case(2, 5, 7, k=0.0).titled("the same with k = 0"),
        Case(0, 5, 7, k=0.5).titled("never seen, k = 0.5"),
        Case(whole(rng, 1, 20), total, whole(rng, 80, 99), k=between(rng, 0.1, 0.9)).titled(
            "many tokens, k below 1"
        ),
        Case(whole(rng, 1, 9), whole(rng, 10, 19), 30, k=between(rng, 2.0, 4.0)).titled(
            "k above 1"
        ),
        Case(0, 0, 4, k=0.25).titled("a context that was never seen, k = 0.25"),
        Case(0, 0, 4, k=0.0).titled("a context that was never seen, k = 0"),
        Case(3, 4, 5, k=-0.5).titled("k below 0"),
    ]


def smooth_k_once(count, total, vocab_size, k=1.0):
    if k < 0:
        raise ValueError("k must not be negative")
    return (count + k) / (total + k) if total or k else 0.0


def smooth_numerator_only(count, total, vocab_size, k=1.0):
    if k < 0:
        raise ValueError("k must not be negative")
    return (count + k) / total if total else 0.0


def smooth_denominator_only(count, total, vocab_size, k=1.0):
    if k < 0:
        raise ValueError("k must not be negative")
    return count / (total + k * vocab_size) if total or k else 0.0


def smooth_denominator_without_k(count, total, vocab_size, k=1.0):
    if k < 0:
        raise ValueError("k must not be negative")
    return (count + k) / (total + vocab_size)


def smooth_unseen_only(count, total, vocab_size, k=1.0):
    if k < 0:
        raise ValueError("k must not be negative")
    return (count or k) / (total + k * vocab_size) if total or k else 0.0


def smooth_by_one(count, total, vocab_size, k=1.0):
    if k < 0:
        raise ValueError("k must not be negative")
    return (count + 1) / (total + vocab_size)


def smooth_not(count, total, vocab_size, k=1.0):
    if k < 0:
        raise ValueError("k must not be negative")
    return count / total if total else 0.0


def smooth_dividing_by_zero(count, total, vocab_size, k=1.0):
    if k < 0:
        raise ValueError("k must not be negative")
    return (count + k) / (total + k * vocab_size)


def smooth_uniform_for_unseen(count, total, vocab_size, k=1.0):
    if k < 0:
        raise ValueError("k must not be negative")
    return (count + k) / (total + k * vocab_size) if total or k else 1 / vocab_size


def smooth_negative(count, total, vocab_size, k=1.0):
    return (count + k) / (total + k * vocab_size) if total or k else 0.0


def smooth_steps(count, total, vocab_size, k=1.0):
    if k < 0:
        raise ValueError(f"k is {k}")
    numerator = count + k
    denominator = total + vocab_size * k
    if denominator == 0:
        return 0.0
    return numerator / denominator


def smooth_as_a_mixture(count, total, vocab_size, k=1.0):
    if k < 0:
        raise ValueError("k must not be negative")
    weight = total + k * vocab_size
    if not weight:
        return 0.0
    observed = count / total if total else 0.0
    return total / weight * observed + k * vocab_size / weight * (1 / vocab_size)


def smooth_caught(count, total, vocab_size, k=1.0):
    if k < 0:
        raise ValueError("k must not be negative")
    try:
        return (count + k) / (total + k * vocab_size)
    except ZeroDivisionError:
        return 0


SMOOTH = Check(
    reference=reference.smooth,
    points=3,
    cases=smooth_cases,
    misconceptions=[
        Misconception(
            "k is added to the total once, not once for each token of the vocabulary",
            smooth_k_once,
            "If each of V tokens was seen k more times, how many more tokens were seen in all?",
        ),
        Misconception(
            "k is added to the count, but nothing to the total",
            smooth_numerator_only,
            "Add up the probabilities of all V tokens. Is the sum 1?",
        ),
        Misconception(
            "k·V is added to the total, but nothing to the count",
            smooth_denominator_only,
            "What is the probability of a token that was never seen? Was that the purpose?",
        ),
        Misconception(
            "V is added to the total, not k·V",
            smooth_denominator_without_k,
            "If each of V tokens was seen half a time more, how many more tokens were seen in all?",
        ),
        Misconception(
            "only a count of 0 gets its k",
            smooth_unseen_only,
            "Is k added for the tokens that were never seen, or for each token?",
        ),
        Misconception(
            "1 is added always: k is not used",
            smooth_by_one,
            "What does your function give for k = 0? What should it give?",
        ),
        Misconception(
            "nothing is added: this is the relative frequency",
            smooth_not,
            "Where do k and V stand in your formula?",
        ),
        Misconception(
            "with k = 0, a context that was never seen divides by zero",
            smooth_dividing_by_zero,
            "If nothing was seen and nothing is added, what is the denominator?",
        ),
        Misconception(
            "with k = 0, a context that was never seen gives 1/V",
            smooth_uniform_for_unseen,
            "With k = 0, can a model that only counts give anything to what it never saw?",
        ),
        Misconception(
            "a k below 0 is accepted",
            smooth_negative,
            "With k = −0.5, what is the probability of a token that was never seen?",
        ),
    ],
    variants=[smooth_steps, smooth_as_a_mixture, smooth_caught],
)


# next_token_probabilities ------------------------------------------------------------------------


def next_cases(rng: Generator) -> list[Case]:
    vocabulary = sorted(set(DOGS))
    text, words = letters(rng, "abc", 40) + "abac", drawn(rng, WORDS[:4], 60)
    trigrams, bigrams = reference.count_ngrams(text, 3), reference.count_ngrams(words, 2)
    dogs = reference.count_ngrams(DOGS, 2)
    return [
        Case(dogs, ("the",), vocabulary).titled("after the, k = 0"),
        Case(dogs, ("cat",), vocabulary, k=0.5).titled("after cat, k = 0.5"),
        Case(trigrams, text[2:4], "abcd").titled("two characters, given as a string"),
        Case(bigrams, words[5:6], WORDS, k=between(rng, 1.5, 2.5)).titled(
            "one word, given as a list"
        ),
        Case(reference.count_ngrams(text, 1), (), "abcde", k=0.25).titled("no context: n = 1"),
        Case(dogs, ("horse",), vocabulary, k=0.1).titled("a context never seen, k = 0.1"),
        Case(dogs, ("horse",), vocabulary).titled("a context never seen, k = 0"),
        Case(trigrams, ("a",), "abcd", k=1.0).titled("a context of another length"),
    ]


def next_seen_only(counts, context, vocabulary, k=0.0):
    if len(context) != len(next(iter(counts))):
        raise ValueError("wrong length")
    seen = counts.get(tuple(context), {})
    total = sum(seen.values()) + k * len(vocabulary)
    return {token: (count + k) / total for token, count in seen.items()}


def next_small_vocabulary(counts, context, vocabulary, k=0.0):
    if len(context) != len(next(iter(counts))):
        raise ValueError("wrong length")
    seen = counts.get(tuple(context), {})
    total = sum(seen.values()) + k * len(seen)
    return {token: (seen.get(token, 0) + k) / total if total else 0.0 for token in vocabulary}


def next_of_all_counts(counts, context, vocabulary, k=0.0):
    if len(context) != len(next(iter(counts))):
        raise ValueError("wrong length")
    seen = counts.get(tuple(context), {})
    total = sum(sum(followers.values()) for followers in counts.values()) + k * len(vocabulary)
    return {token: (seen.get(token, 0) + k) / total for token in vocabulary}


def next_without_k(counts, context, vocabulary, k=0.0):
    if len(context) != len(next(iter(counts))):
        raise ValueError("wrong length")
    seen = counts.get(tuple(context), {})
    total = sum(seen.values())
    return {token: seen.get(token, 0) / total if total else 0.0 for token in vocabulary}


def next_always_one(counts, context, vocabulary, k=0.0):
    if len(context) != len(next(iter(counts))):
        raise ValueError("wrong length")
    seen = counts.get(tuple(context), {})
    total = sum(seen.values()) + len(vocabulary)
    return {token: (seen.get(token, 0) + 1) / total for token in vocabulary}


def next_of_the_token(counts, context, vocabulary, k=0.0):
    if len(context) != len(next(iter(counts))):
        raise ValueError("wrong length")
    seen, found = counts.get(tuple(context), {}), {}
    for token in vocabulary:
        total = sum(followers.get(token, 0) for followers in counts.values())
        total += k * len(vocabulary)
        found[token] = (seen.get(token, 0) + k) / total if total else 0.0
    return found


def next_not_divided(counts, context, vocabulary, k=0.0):
    if len(context) != len(next(iter(counts))):
        raise ValueError("wrong length")
    seen = counts.get(tuple(context), {})
    return {token: seen.get(token, 0) + k for token in vocabulary}


def next_untupled(counts, context, vocabulary, k=0.0):
    if len(context) != len(next(iter(counts))):
        raise ValueError("wrong length")
    seen = counts.get(context, {})
    total = sum(seen.values()) + k * len(vocabulary)
    return {token: (seen.get(token, 0) + k) / total if total else 0.0 for token in vocabulary}


def next_key_error(counts, context, vocabulary, k=0.0):
    if len(context) != len(next(iter(counts))):
        raise ValueError("wrong length")
    seen = counts[tuple(context)]
    total = sum(seen.values()) + k * len(vocabulary)
    return {token: (seen.get(token, 0) + k) / total for token in vocabulary}


def next_any_length(counts, context, vocabulary, k=0.0):
    seen = counts.get(tuple(context), {})
    total = sum(seen.values()) + k * len(vocabulary)
    return {token: (seen.get(token, 0) + k) / total if total else 0.0 for token in vocabulary}


def next_loop(counts, context, vocabulary, k=0.0):
    for known in counts:
        if len(known) != len(context):
            raise ValueError("the context has another length")
        break
    seen = {}
    for known, followers in counts.items():
        if list(known) == list(context):
            seen = followers
    total = 0
    for token in vocabulary:
        total += seen.get(token, 0) + k
    found = {}
    for token in vocabulary:
        found[token] = (seen.get(token, 0) + k) / total if total > 0 else 0.0
    return found


def next_tensor(counts, context, vocabulary, k=0.0):
    if any(len(known) != len(context) for known in counts):
        raise ValueError("the context has another length")
    seen = counts.get(tuple(context), {})
    row = torch.tensor([float(seen.get(token, 0)) for token in vocabulary]) + k
    row = row / row.sum() if row.sum() else row
    return dict(zip(vocabulary, row.tolist(), strict=True))


def next_counter(counts, context, vocabulary, k=0.0):
    if len(context) not in {len(known) for known in counts}:
        raise ValueError("the context has another length")
    seen = Counter(counts.get(tuple(context)))
    for token in vocabulary:
        seen[token] += k
    total = seen.total() or 1
    return {token: count / total for token, count in seen.items()}


NEXT_TOKEN_PROBABILITIES = Check(
    reference=reference.next_token_probabilities,
    points=4,
    cases=next_cases,
    misconceptions=[
        Misconception(
            "only tokens that were seen after the context get a probability",
            next_seen_only,
            "A distribution over the vocabulary: how many entries has it?",
        ),
        Misconception(
            "V counts the tokens seen after the context, not those of the vocabulary",
            next_small_vocabulary,
            "To how many tokens is k added? So what is the sum of all the probabilities?",
        ),
        Misconception(
            "the counts are divided by those of the whole text, not by those of the context",
            next_of_all_counts,
            "Given that 'the' has come, 'dog' follows 2 times of how many?",
        ),
        Misconception(
            "nothing is smoothed: k is not used",
            next_without_k,
            "What is the probability of a token never seen, for k = 1? What does yours say?",
        ),
        Misconception(
            "k is always 1: the argument is not used",
            next_always_one,
            "With k = 0, which number should a token have that was never seen?",
        ),
        Misconception(
            "this is how likely the context was, given the token: the counts are divided by the "
            "token's own",
            next_of_the_token,
            "How many of the 'the' have 'dog' after them, or how many 'dog' have 'the' before?",
        ),
        Misconception(
            "these are counts, not probabilities",
            next_not_divided,
            "What must the probabilities of all tokens sum to?",
        ),
        Misconception(
            "the context is not turned into a tuple before it is looked up",
            next_untupled,
            "Contexts are keys of counts, as tuples. Which type has the one that you were given?",
        ),
        Misconception(
            "a context that was never seen raises KeyError",
            next_key_error,
            "A model must say something after any text. Which method of a dict has a default?",
        ),
        Misconception(
            "a context of another length is accepted, and never found",
            next_any_length,
            "Which length have the contexts in counts? Who would notice a longer or shorter one?",
        ),
    ],
    variants=[next_loop, next_tensor, next_counter],
)


# sample_sequence ---------------------------------------------------------------------------------


def uniform(rng: Generator, length: int) -> list[float]:
    return torch.rand(length, generator=rng, dtype=torch.float64).tolist()


def sample_cases(rng: Generator) -> list[Case]:
    dogs, ones = reference.count_ngrams(DOGS, 2), reference.count_ngrams("baaa", 1)
    text = letters(rng, "abc", 60) + "aab"
    return [
        Case(ones, 1, "", [0.0, 0.2, 0.25, 0.99]).titled("b or a, and a draw that is just 0.25"),
        Case(dogs, 2, ["the"], [0.7, 0.6, 0.1, 0.95, 0.3]).titled("dogs and cats"),
        Case(reference.count_ngrams(text, 3), 3, text[:2], uniform(rng, 20)).titled(
            "twenty characters, n = 3"
        ),
        Case(reference.count_ngrams(text, 1), 1, "c", uniform(rng, 12)).titled("n = 1"),
        Case(reference.count_ngrams(text, 2), 2, ["c", "b", "a"], uniform(rng, 9)).titled(
            "a start longer than the context"
        ),
        Case(reference.count_ngrams("abcd", 2), 2, "b", uniform(rng, 6)).titled(
            "a context that nothing ever followed"
        ),
        Case(dogs, 2, ["the", "cat"], []).titled("no draws"),
        Case(reference.count_ngrams(text, 4), 4, "ab", uniform(rng, 3)).titled("too short a start"),
    ]


def _too_short(start, n):
    if len(start) < n - 1:
        raise ValueError("the start is too short")


def _chosen(seen, draw):
    reached = 0
    for token, count in seen.items():
        reached += count
        if reached > draw * sum(seen.values()):
            return token


def sample_greedy(counts, n, start, draws):
    _too_short(start, n)
    sequence = list(start)
    for _ in draws:
        seen = counts.get(tuple(sequence[len(sequence) - n + 1 :]))
        if seen is None:
            break
        sequence.append(max(seen, key=seen.get))
    return sequence


def sample_evenly(counts, n, start, draws):
    _too_short(start, n)
    sequence = list(start)
    for draw in draws:
        seen = counts.get(tuple(sequence[len(sequence) - n + 1 :]))
        if seen is None:
            break
        sequence.append(list(seen)[int(draw * len(seen))])
    return sequence


def sample_first_context(counts, n, start, draws):
    _too_short(start, n)
    seen = counts.get(tuple(start[len(start) - n + 1 :]))
    return [*start, *(_chosen(seen, draw) for draw in draws if seen)]


def sample_longer_context(counts, n, start, draws):
    _too_short(start, n)
    sequence = list(start)
    for draw in draws:
        seen = counts.get(tuple(sequence[-n:]))
        if seen is None:
            break
        sequence.append(_chosen(seen, draw))
    return sequence


def sample_minus_zero(counts, n, start, draws):
    _too_short(start, n)
    sequence = list(start)
    for draw in draws:
        seen = counts.get(tuple(sequence[-(n - 1) :]))
        if seen is None:
            break
        sequence.append(_chosen(seen, draw))
    return sequence


def sample_without_start(counts, n, start, draws):
    _too_short(start, n)
    sequence = list(start)
    for draw in draws:
        seen = counts.get(tuple(sequence[len(sequence) - n + 1 :]))
        if seen is None:
            break
        sequence.append(_chosen(seen, draw))
    return sequence[len(start) :]


def sample_key_error(counts, n, start, draws):
    _too_short(start, n)
    sequence = list(start)
    for draw in draws:
        sequence.append(_chosen(counts[tuple(sequence[len(sequence) - n + 1 :])], draw))
    return sequence


def sample_reached(counts, n, start, draws):
    _too_short(start, n)
    sequence = list(start)
    for draw in draws:
        seen = counts.get(tuple(sequence[len(sequence) - n + 1 :]))
        if seen is None:
            break
        reached = 0
        for token, count in seen.items():
            reached += count
            if reached >= draw * sum(seen.values()):
                sequence.append(token)
                break
    return sequence


def sample_not_summed(counts, n, start, draws):
    _too_short(start, n)
    sequence = list(start)
    for draw in draws:
        seen = counts.get(tuple(sequence[len(sequence) - n + 1 :]))
        if seen is None:
            break
        mark = draw * sum(seen.values())
        sequence.append(next((t for t, count in seen.items() if count > mark), list(seen)[-1]))
    return sequence


def sample_reordered(counts, n, start, draws):
    _too_short(start, n)
    sequence = list(start)
    for draw in draws:
        seen = counts.get(tuple(sequence[len(sequence) - n + 1 :]))
        if seen is None:
            break
        sequence.append(_chosen({token: seen[token] for token in sorted(seen)}, draw))
    return sequence


def sample_into_start(counts, n, start, draws):
    _too_short(start, n)
    sequence = start if isinstance(start, list) else list(start)
    for draw in draws:
        seen = counts.get(tuple(sequence[len(sequence) - n + 1 :]))
        if seen is None:
            break
        sequence.append(_chosen(seen, draw))
    return sequence


def sample_any_start(counts, n, start, draws):
    sequence = list(start)
    for draw in draws:
        seen = counts.get(tuple(sequence[len(sequence) - n + 1 :]))
        if seen is None:
            break
        sequence.append(_chosen(seen, draw))
    return sequence


def sample_loop(counts, n, start, draws):
    if len(start) < n - 1:
        raise ValueError("the start is too short")
    sequence = [token for token in start]
    for draw in draws:
        context = tuple(sequence[len(sequence) - (n - 1) :])
        if context not in counts:
            return sequence
        total = sum(counts[context].values())
        reached = 0.0
        for token in counts[context]:
            reached += counts[context][token] / total
            if reached > draw:
                break
        sequence.append(token)
    return sequence


def sample_subtracting(counts, n, start, draws):
    if len(start) < n - 1:
        raise ValueError("the start is too short")
    sequence = [*start]
    for draw in draws:
        seen = counts.get(() if n == 1 else tuple(sequence[1 - n :]), {})
        left = draw * sum(seen.values())
        for token, count in seen.items():
            if left < count:
                sequence += [token]
                break
            left -= count
        else:
            break
    return sequence


def sample_searchsorted(counts, n, start, draws):
    if len(start) < n - 1:
        raise ValueError("the start is too short")
    sequence = list(start)
    for draw in draws:
        seen = counts.get(tuple(sequence[len(sequence) - n + 1 :]))
        if not seen:
            break
        sums = torch.tensor(list(accumulate(seen.values())), dtype=torch.float64)
        place = torch.searchsorted(sums / sums[-1], draw, right=True)
        sequence.append(list(seen)[place])
    return sequence


def sample_repeated(counts, n, start, draws):
    if len(start) < n - 1:
        raise ValueError("the start is too short")
    sequence = list(start)
    for draw in draws:
        context = tuple(sequence[len(sequence) - n + 1 :])
        bag = [token for token, count in counts.get(context, {}).items() for _ in range(count)]
        if not bag:
            break
        sequence.append(bag[int(draw * len(bag))])
    return sequence


SAMPLE_SEQUENCE = Check(
    reference=reference.sample_sequence,
    points=5,
    cases=sample_cases,
    misconceptions=[
        Misconception(
            "the most frequent token is taken, whatever the draw says",
            sample_greedy,
            "If 'a' comes three times of four, should every token of the text be an 'a'?",
        ),
        Misconception(
            "all tokens seen after the context are equally likely",
            sample_evenly,
            "On the ruler, how long is the part of a token that came three times of four?",
        ),
        Misconception(
            "the context stays that of the start: it does not move on",
            sample_first_context,
            "After the first token is appended, which tokens are the last n−1?",
        ),
        Misconception(
            "the context has n tokens, not n−1",
            sample_longer_context,
            "How long are the contexts that count_ngrams has counted?",
        ),
        Misconception(
            "for n = 1 the context is the whole sequence",
            sample_minus_zero,
            "For n = 1 you ask for sequence[-0:]. Where does such a slice begin?",
        ),
        Misconception(
            "the start is not part of the result",
            sample_without_start,
            "The sequence begins with the start. What is the first token that you return?",
        ),
        Misconception(
            "a context that nothing ever followed raises KeyError",
            sample_key_error,
            "What follows the last word of the text? What should the sequence do there?",
        ),
        Misconception(
            "a draw that only just reaches a sum takes that token: ≥ where > is meant",
            sample_reached,
            "Draws run from 0 up to, but without, 1. If a's part is 0 to 0.25, whose is 0.25?",
        ),
        Misconception(
            "the draw is compared with each token's own probability, not with their sum so far",
            sample_not_summed,
            "On the ruler, where does the second token's part end: at its length, or further on?",
        ),
        Misconception(
            "the tokens are sorted before they are put on the ruler",
            sample_reordered,
            "In which order do the tokens stand in counts? Does the docstring ask for another?",
        ),
        Misconception(
            "the caller's start grows: it is changed in place",
            sample_into_start,
            "Whose list do you append to? What does the caller find in it afterwards?",
        ),
        Misconception(
            "a start shorter than the context is accepted",
            sample_any_start,
            "Can a model that looks back three tokens begin after two?",
        ),
    ],
    variants=[sample_loop, sample_subtracting, sample_searchsorted, sample_repeated],
)


# sequence_log_probability ------------------------------------------------------------------------


def sequence_cases(rng: Generator) -> list[Case]:
    dogs = reference.count_ngrams(DOGS, 2)
    text = letters(rng, "abc", 80) + "abcab"
    trigrams = reference.count_ngrams(text, 3)
    return [
        Case(["the", "dog", "slept", "."], dogs, 2, 7).titled("the dog slept ."),
        Case(["the", "cat", "slept", "."], dogs, 2, 7).titled("the cat slept ., never seen"),
        Case(["the", "cat", "slept", "."], dogs, 2, 7, k=0.5).titled("the same with k = 0.5"),
        Case(text[-9:], trigrams, 3, 3).titled("nine characters of the text itself, n = 3"),
        Case(letters(rng, "abcd", 12), trigrams, 3, 4, k=between(rng, 0.2, 0.8)).titled(
            "twelve characters, some never seen"
        ),
        Case(letters(rng, "abc", 10), reference.count_ngrams(text, 1), 1, 6, k=2.0).titled("n = 1"),
        Case(("a", "b"), trigrams, 3, 4, k=1.0).titled("nothing but a context"),
        Case(letters(rng, "abc", 900), reference.count_ngrams(text, 2), 2, 50, k=3.0).titled(
            "900 characters"
        ),
    ]


def _steps(tokens, counts, n, vocab_size, k):
    """The probability of each token that has a whole context."""
    found = []
    for i in range(n - 1, len(tokens)):
        seen = counts.get(tuple(tokens[i - n + 1 : i]), {})
        total = sum(seen.values()) + k * vocab_size
        found.append((seen.get(tokens[i], 0) + k) / total if total else 0.0)
    return found


def sequence_product_first(tokens, counts, n, vocab_size, k=0.0):
    product = math.prod(_steps(tokens, counts, n, vocab_size, k))
    return math.log(product) if product else -math.inf


def sequence_product(tokens, counts, n, vocab_size, k=0.0):
    return float(math.prod(_steps(tokens, counts, n, vocab_size, k)))


def sequence_bits(tokens, counts, n, vocab_size, k=0.0):
    steps = _steps(tokens, counts, n, vocab_size, k)
    return math.fsum(math.log2(p) if p else -math.inf for p in steps)


def sequence_mean(tokens, counts, n, vocab_size, k=0.0):
    steps = _steps(tokens, counts, n, vocab_size, k)
    return math.fsum(math.log(p) if p else -math.inf for p in steps) / max(len(steps), 1)


def sequence_positive(tokens, counts, n, vocab_size, k=0.0):
    steps = _steps(tokens, counts, n, vocab_size, k)
    return -math.fsum(math.log(p) if p else -math.inf for p in steps)


def sequence_skipping_zero(tokens, counts, n, vocab_size, k=0.0):
    return math.fsum(math.log(p) for p in _steps(tokens, counts, n, vocab_size, k) if p)


def sequence_log_of_zero(tokens, counts, n, vocab_size, k=0.0):
    return math.fsum(math.log(p) for p in _steps(tokens, counts, n, vocab_size, k))


def sequence_log_of_sum(tokens, counts, n, vocab_size, k=0.0):
    total = sum(_steps(tokens, counts, n, vocab_size, k))
    return math.log(total) if total else 0.0


def sequence_from_the_first(tokens, counts, n, vocab_size, k=0.0):
    logs = []
    for i, token in enumerate(tokens):
        seen = counts.get(tuple(tokens[max(0, i - n + 1) : i]), {})
        total = sum(seen.values()) + k * vocab_size
        p = (seen.get(token, 0) + k) / total if total else 0.0
        logs.append(math.log(p) if p else -math.inf)
    return math.fsum(logs)


def sequence_without_the_last(tokens, counts, n, vocab_size, k=0.0):
    steps = _steps(tokens[:-1], counts, n, vocab_size, k)
    return math.fsum(math.log(p) if p else -math.inf for p in steps)


def sequence_without_k(tokens, counts, n, vocab_size, k=0.0):
    steps = _steps(tokens, counts, n, vocab_size, 0.0)
    return math.fsum(math.log(p) if p else -math.inf for p in steps)


def sequence_own_vocabulary(tokens, counts, n, vocab_size, k=0.0):
    steps = _steps(tokens, counts, n, len(set(tokens)), k)
    return math.fsum(math.log(p) if p else -math.inf for p in steps)


def sequence_loop(tokens, counts, n, vocab_size, k=0.0):
    total_log = 0.0
    for i in range(n - 1, len(tokens)):
        context = tuple(tokens[i - n + 1 : i])
        followers = counts.get(context, {})
        denominator = sum(followers.values()) + k * vocab_size
        numerator = followers.get(tokens[i], 0) + k
        if numerator == 0:
            return -math.inf
        total_log += math.log(numerator) - math.log(denominator)
    return total_log


def sequence_windows(tokens, counts, n, vocab_size, k=0.0):
    logs = []
    for window in zip(*[tokens[i:] for i in range(n)], strict=False):
        seen = counts.get(window[:-1], {})
        total = sum(seen.values()) + k * vocab_size
        p = (seen.get(window[-1], 0) + k) / total if total else 0.0
        logs.append(math.log(p) if p > 0 else float("-inf"))
    return sum(logs)


def sequence_tensor(tokens, counts, n, vocab_size, k=0.0):
    found = []
    for i in range(n - 1, len(tokens)):
        seen = counts.get(tuple(tokens[i - n + 1 : i]), {})
        total = sum(seen.values()) + k * vocab_size
        found.append((seen.get(tokens[i], 0) + k) / total if total else 0.0)
    return torch.tensor(found, dtype=torch.float64).log().sum()


def sequence_recursive(tokens, counts, n, vocab_size, k=0.0):
    if len(tokens) > 50:  # in halves that share a context, so that Python's stack is deep enough
        middle = len(tokens) // 2
        first = sequence_recursive(tokens[:middle], counts, n, vocab_size, k)
        return first + sequence_recursive(tokens[middle - n + 1 :], counts, n, vocab_size, k)
    if len(tokens) < n:
        return 0.0
    seen = counts.get(tuple(tokens[len(tokens) - n : -1]), {})
    total = sum(seen.values()) + k * vocab_size
    p = (seen.get(tokens[-1], 0) + k) / total if total else 0.0
    last = math.log(p) if p else -math.inf
    return last + sequence_recursive(tokens[:-1], counts, n, vocab_size, k)


SEQUENCE_LOG_PROBABILITY = Check(
    reference=reference.sequence_log_probability,
    points=5,
    cases=sequence_cases,
    misconceptions=[
        Misconception(
            "the probabilities are multiplied first: a long text comes out as 0",
            sequence_product_first,
            "What is 0.02 to the power of 900 in Python? Which rule of logarithms avoids it?",
        ),
        Misconception(
            "this is the probability, not its logarithm",
            sequence_product,
            "The probability of 'dog slept .' after 'the' is 0.2. What is ln 0.2?",
        ),
        Misconception(
            "the logarithm has base 2: these are bits, not nats",
            sequence_bits,
            "ln 0.2 is −1.6094. Which function of math gives that: log or log2?",
        ),
        Misconception(
            "this is the mean for each token, not the sum",
            sequence_mean,
            "Probabilities are multiplied along the text. What becomes of a product under ln?",
        ),
        Misconception(
            "the sign is turned round",
            sequence_positive,
            "A probability is at most 1. Is its logarithm above 0, or below?",
        ),
        Misconception(
            "a token of probability 0 is skipped",
            sequence_skipping_zero,
            "If one word is impossible, how probable is the whole text?",
        ),
        Misconception(
            "a token of probability 0 raises an error",
            sequence_log_of_zero,
            "math.log(0) is an error in Python. Which number is meant, and how is it written?",
        ),
        Misconception(
            "the probabilities are added, and then the logarithm is taken",
            sequence_log_of_sum,
            "The logarithm of a product is a sum of logarithms. What is summed: p, or ln p?",
        ),
        Misconception(
            "the first n−1 tokens are predicted, too, from contexts that are too short",
            sequence_from_the_first,
            "Which tokens have a whole context of n−1 tokens before them? Where does that begin?",
        ),
        Misconception(
            "the last token is not predicted",
            sequence_without_the_last,
            "'the dog slept .' has three tokens to predict for n = 2. How many do you?",
        ),
        Misconception(
            "nothing is smoothed: k is not used",
            sequence_without_k,
            "With k = 0.5, is any token impossible?",
        ),
        Misconception(
            "V counts the tokens of this sequence, not those of the vocabulary",
            sequence_own_vocabulary,
            "The model could have said any token it knows. Which argument is the number of those?",
        ),
    ],
    variants=[sequence_loop, sequence_windows, sequence_tensor, sequence_recursive],
)


# perplexity --------------------------------------------------------------------------------------


def perplexity_cases(rng: Generator) -> list[Case]:
    return [
        Case(math.log(0.04), 5).titled("five tokens of probability 0.04 together"),
        Case(7 * math.log(1 / 6), 7).titled("a die, thrown seven times"),
        Case(between(rng, -90.0, -50.0), whole(rng, 30, 45)).titled("many tokens"),
        Case(between(rng, -4.0, -1.0), 1).titled("a single token"),
        Case(0.0, 3).titled("sure, and right"),
        Case(-math.inf, 12).titled("one token was impossible"),
        Case(-1.5, 0).titled("no tokens"),
    ]


def perplexity_of_the_whole(log_probability, num_tokens):
    if num_tokens < 1:
        raise ValueError("there must be a token")
    return math.exp(-log_probability)


def perplexity_positive(log_probability, num_tokens):
    if num_tokens < 1:
        raise ValueError("there must be a token")
    return math.exp(log_probability / num_tokens)


def perplexity_base_two(log_probability, num_tokens):
    if num_tokens < 1:
        raise ValueError("there must be a token")
    return 2 ** (-log_probability / num_tokens)


def perplexity_as_loss(log_probability, num_tokens):
    if num_tokens < 1:
        raise ValueError("there must be a token")
    return -log_probability / num_tokens


def perplexity_divided_after(log_probability, num_tokens):
    if num_tokens < 1:
        raise ValueError("there must be a token")
    return math.exp(-log_probability) / num_tokens


def perplexity_bits_then_e(log_probability, num_tokens):
    if num_tokens < 1:
        raise ValueError("there must be a token")
    return math.exp(-log_probability / math.log(2) / num_tokens)


def perplexity_of_nothing(log_probability, num_tokens):
    return math.exp(-log_probability / num_tokens)


def perplexity_one_for_nothing(log_probability, num_tokens):
    return math.exp(-log_probability / num_tokens) if num_tokens else 1.0


def perplexity_power(log_probability, num_tokens):
    if num_tokens < 1:
        raise ValueError("there must be a token")
    return math.e ** (-log_probability / num_tokens)


def perplexity_root(log_probability, num_tokens):
    if num_tokens == 0:
        raise ValueError("there must be a token")
    return 1 / math.exp(log_probability / num_tokens) if log_probability > -math.inf else math.inf


def perplexity_through_bits(log_probability, num_tokens):
    if num_tokens <= 0:
        raise ValueError("there must be a token")
    bits = -log_probability / math.log(2) / num_tokens
    return 2.0**bits


def perplexity_tensor(log_probability, num_tokens):
    if num_tokens <= 0:
        raise ValueError("there must be a token")
    return torch.tensor(-log_probability / num_tokens, dtype=torch.float64).exp()


PERPLEXITY = Check(
    reference=reference.perplexity,
    points=3,
    cases=perplexity_cases,
    misconceptions=[
        Misconception(
            "the logarithm is not divided by the number of tokens",
            perplexity_of_the_whole,
            "Should a text of twice the length make a model look worse?",
        ),
        Misconception(
            "the minus sign is missing: this is the probability of a typical token",
            perplexity_positive,
            "Can a model hesitate between fewer than one token?",
        ),
        Misconception(
            "2 to the power of it: that is for a logarithm of base 2",
            perplexity_base_two,
            "The logarithm was ln. Which power undoes it?",
        ),
        Misconception(
            "the power of e is missing: this is the loss for each token, in nats",
            perplexity_as_loss,
            "A die has six faces, and ln 6 is 1.79. Which of the two numbers do you return?",
        ),
        Misconception(
            "the division comes after the power of e",
            perplexity_divided_after,
            "The mean is one of logarithms. So which comes first: dividing, or exp?",
        ),
        Misconception(
            "nats are turned into bits, and then e is raised to them",
            perplexity_bits_then_e,
            "Which base belongs to bits, and which to nats? Do your two steps use the same?",
        ),
        Misconception(
            "no tokens: this divides by zero",
            perplexity_of_nothing,
            "Between how many tokens does a model hesitate that was never asked? Who is told?",
        ),
        Misconception(
            "no tokens: this answers 1, as if the model were perfect",
            perplexity_one_for_nothing,
            "Has a model that was never asked shown that it is always right?",
        ),
    ],
    variants=[perplexity_power, perplexity_root, perplexity_through_bits, perplexity_tensor],
)


# bits_per_byte -----------------------------------------------------------------------------------


def byte_cases(rng: Generator) -> list[Case]:
    accents = letters(rng, "éüaœ", 20) + "ß"
    return [
        Case(6 * math.log(1 / 4), "banana").titled("six letters of probability 1/4 each"),
        Case(between(rng, -60.0, -20.0), " ".join(drawn(rng, WORDS, 9))).titled("nine words"),
        Case(between(rng, -60.0, -30.0), accents).titled("letters of two bytes"),
        Case(between(rng, -20.0, -10.0), "言語モデル " + letters(rng, "言語", 6)).titled(
            "Japanese"
        ),
        Case(0.0, "sure").titled("sure, and right"),
        Case(-math.inf, "a b").titled("one token was impossible"),
        Case(-1.0, "").titled("no text"),
    ]


def bits_still_nats(log_probability, text):
    if not text:
        raise ValueError("the text is empty")
    return -log_probability / len(text.encode())


def bits_per_character(log_probability, text):
    if not text:
        raise ValueError("the text is empty")
    return -log_probability / math.log(2) / len(text)


def bits_per_word(log_probability, text):
    if not text:
        raise ValueError("the text is empty")
    return -log_probability / math.log(2) / len(text.split())


def bits_of_the_whole(log_probability, text):
    if not text:
        raise ValueError("the text is empty")
    return -log_probability / math.log(2)


def bits_times(log_probability, text):
    if not text:
        raise ValueError("the text is empty")
    return -log_probability * math.log(2) / len(text.encode())


def bits_negative(log_probability, text):
    if not text:
        raise ValueError("the text is empty")
    return log_probability / math.log(2) / len(text.encode())


def bits_per_bit(log_probability, text):
    if not text:
        raise ValueError("the text is empty")
    return -log_probability / math.log(2) / (8 * len(text.encode()))


def bits_as_perplexity(log_probability, text):
    if not text:
        raise ValueError("the text is empty")
    return math.exp(-log_probability / len(text.encode()))


def bits_of_nothing(log_probability, text):
    return -log_probability / math.log(2) / len(text.encode())


def bits_steps(log_probability, text):
    size = len(text.encode("utf-8"))
    if size == 0:
        raise ValueError("the text is empty")
    bits = -log_probability * math.log2(math.e)
    return bits / size


def bits_sum(log_probability, text):
    size = sum(len(character.encode()) for character in text)
    if not size:
        raise ValueError("the text is empty")
    return log_probability / (-size * math.log(2))


def bits_bytes(log_probability, text):
    if text == "":
        raise ValueError("the text is empty")
    return -(log_probability / len(bytes(text, "utf8"))) / 0.6931471805599453


BITS_PER_BYTE = Check(
    reference=reference.bits_per_byte,
    points=3,
    cases=byte_cases,
    misconceptions=[
        Misconception(
            "these are still nats",
            bits_still_nats,
            "How many nats is one bit? What turns nats into bits?",
        ),
        Misconception(
            "the bits are shared among characters, not bytes",
            bits_per_character,
            "How many bytes is 'é' in UTF-8? What does len('é') say?",
        ),
        Misconception(
            "the bits are shared among words, not bytes",
            bits_per_word,
            "Which unit is the same whatever the tokens are?",
        ),
        Misconception(
            "these are the bits of the whole text, not for each byte",
            bits_of_the_whole,
            "Does your number grow with the text?",
        ),
        Misconception(
            "nats are multiplied by ln 2, not divided by it",
            bits_times,
            "One bit is ln 2 = 0.69 nats, so less than a nat. Are there more bits, or fewer?",
        ),
        Misconception(
            "the minus sign is missing",
            bits_negative,
            "Could a text be stored in fewer than no bits?",
        ),
        Misconception(
            "the bits are shared among bits: a byte is counted as eight",
            bits_per_bit,
            "For each byte, not for each of its bits: by what do you divide?",
        ),
        Misconception(
            "this is a perplexity, for each byte",
            bits_as_perplexity,
            "Bits are a logarithm. Is there any need to undo it?",
        ),
        Misconception(
            "an empty text divides by zero",
            bits_of_nothing,
            "How many bytes has the empty text? Which error should say so?",
        ),
    ],
    variants=[bits_steps, bits_sum, bits_bytes],
)


# probability_table -------------------------------------------------------------------------------


def counted(rng: Generator, *shape: int) -> Tensor:
    """Counts of at least 1, in which each row has a sum of its own."""
    steps = torch.arange(shape[0]).reshape(-1, 1)
    return torch.randint(1, 9, shape, generator=rng) + 3 * steps


def table_cases(rng: Generator) -> list[Case]:
    with_gaps = counted(rng, 4, 6)
    with_gaps[0, 1] = with_gaps[2, :5] = 0
    empty = counted(rng, 3, 5)
    empty[1] = 0
    return [
        Case(torch.tensor([[3, 1], [0, 2]])).titled("two rows by hand"),
        Case(counted(rng, 3, 5)).titled("three contexts, five tokens"),
        Case(counted(rng, 5, 5)).titled("as many contexts as tokens"),
        Case(with_gaps, k=0.5).titled("k = 0.5, whole numbers"),
        Case(with_gaps.float(), k=between(rng, 1.5, 2.5)).titled("k about 2, float32"),
        Case(empty, k=1.0).titled("a context that was never seen, k = 1"),
        Case(empty).titled("a context that was never seen, k = 0"),
        Case(counted(rng, 6, 4).double().T, k=0.1).titled("float64, transposed in memory"),
    ]


def _rows(table):
    """Rows that sum to 1; empty ones stay 0."""
    total = table.sum(-1, keepdim=True)
    return torch.where(total > 0, table / total, 0.0)


def table_columns(counts, k=0.0):
    total = (counts + k).sum(0, keepdim=True)
    return torch.where(total > 0, (counts + k) / total, 0.0)


def table_of_the_whole(counts, k=0.0):
    return (counts + k) / (counts + k).sum()


def table_without_keepdim(counts, k=0.0):
    total = (counts + k).sum(-1)
    return torch.where(total > 0, (counts + k) / total, 0.0)


def table_k_above_only(counts, k=0.0):
    total = counts.sum(-1, keepdim=True)
    return torch.where(total > 0, (counts + k) / total, 0.0)


def table_k_once(counts, k=0.0):
    total = counts.sum(-1, keepdim=True) + k
    return torch.where(total > 0, (counts + k) / total, 0.0)


def table_without_k(counts, k=0.0):
    return _rows(counts)


def table_k_for_zeros(counts, k=0.0):
    return _rows(torch.where(counts == 0, k, counts.to(torch.float64))).to(
        counts.dtype if counts.is_floating_point() else torch.float32
    )


def table_in_place(counts, k=0.0):
    if counts.is_floating_point():
        counts += k
        return _rows(counts)
    return _rows(counts + k)


def table_nan(counts, k=0.0):
    smoothed = counts + k
    return smoothed / smoothed.sum(-1, keepdim=True)


def table_uniform(counts, k=0.0):
    total = (counts + k).sum(-1, keepdim=True)
    return torch.where(total > 0, (counts + k) / total, 1 / counts.shape[-1])


def table_softmax(counts, k=0.0):
    table = counts + k
    return table.softmax(-1)


def table_counts(counts, k=0.0):
    return counts + k


def table_always_float(counts, k=0.0):
    return _rows(counts.float() + k)


def table_loop(counts, k=0.0):
    rows = []
    for row in counts:
        total = row.sum() + k * len(row)
        rows.append((row + k) / total if total > 0 else torch.zeros_like(row + k))
    return torch.stack(rows)


def table_normalized(counts, k=0.0):
    return torch.nn.functional.normalize(counts + float(k), p=1, dim=1)


def table_einsum(counts, k=0.0):
    smoothed = counts + k
    total = smoothed.sum(1)
    inverse = torch.where(total > 0, 1 / total, torch.zeros_like(total))
    return torch.einsum("mv,m->mv", smoothed, inverse)


def table_nan_to_num(counts, k=0.0):
    smoothed = counts + k
    return torch.nan_to_num(smoothed / smoothed.sum(dim=1)[:, None])


PROBABILITY_TABLE = Check(
    reference=reference.probability_table,
    points=4,
    cases=table_cases,
    misconceptions=[
        Misconception(
            "the columns sum to 1, not the rows",
            table_columns,
            "A row is a context. Along which dimension do you go from token to token?",
        ),
        Misconception(
            "the whole table sums to 1, not each row",
            table_of_the_whole,
            "Each row is a distribution of its own. What does sum() without a dimension add up?",
        ),
        Misconception(
            "the sums of the rows are laid along the columns: keepdim is missing",
            table_without_keepdim,
            "Which shape have the sums: (M,) or (M, 1)? Against which dimension is (M,) laid?",
        ),
        Misconception(
            "k is added to the counts, but not to their sum",
            table_k_above_only,
            "With k = 1, what do your rows sum to?",
        ),
        Misconception(
            "k is added to the sum once, not once for each token",
            table_k_once,
            "If every entry of a row grows by k, by how much does its sum grow?",
        ),
        Misconception(
            "nothing is smoothed: k is not used",
            table_without_k,
            "With k = 1, is there any 0 left in the table?",
        ),
        Misconception(
            "only a count of 0 gets its k",
            table_k_for_zeros,
            "Is k added for the tokens that were never seen, or for each token?",
        ),
        Misconception(
            "the caller's counts are changed in place",
            table_in_place,
            "What does counts += k do to the table of the one who called you?",
        ),
        Misconception(
            "with k = 0, a row that was never seen becomes NaN",
            table_nan,
            "What is 0 divided by 0, and which rows have a sum of 0?",
        ),
        Misconception(
            "with k = 0, a row that was never seen becomes uniform",
            table_uniform,
            "What did smooth say of a context that was never seen, for k = 0?",
        ),
        Misconception(
            "the counts go through a softmax",
            table_softmax,
            "2 of 5 is a share. What has the exponential function to do with it?",
        ),
        Misconception(
            "these are smoothed counts, not probabilities",
            table_counts,
            "What must each row sum to?",
        ),
        Misconception(
            "the result is float32 even where the counts are float64",
            table_always_float,
            "What does float() do to a number that is float64 already?",
        ),
    ],
    variants=[table_loop, table_normalized, table_einsum, table_nan_to_num],
)


# Questions ---------------------------------------------------------------------------------------

CAT_SLEPT_NATS = Question(
    "cat_slept_nats",
    answer=math.log(3 / 12 * 1 / 9 * 2 / 8),
    tolerance=(1e-3, 0.0),
    misconceptions=[
        Misconception(
            "this is the probability, not its logarithm",
            3 / 12 * 1 / 9 * 2 / 8,
            "Three factors are multiplied. What is the logarithm of their product?",
        ),
        Misconception(
            "the sign is turned round",
            -math.log(3 / 12 * 1 / 9 * 2 / 8),
            "A probability is at most 1. Is its logarithm above 0, or below?",
        ),
        Misconception(
            "the logarithm has base 2",
            math.log2(3 / 12 * 1 / 9 * 2 / 8),
            "Nats belong to the natural logarithm. Which function of math is that?",
        ),
        Misconception(
            "the logarithm has base 10",
            math.log10(3 / 12 * 1 / 9 * 2 / 8),
            "Nats belong to the natural logarithm. Which function of math is that?",
        ),
        Misconception(
            "nothing is smoothed",
            -math.inf,
            "With k = 1, how often is slept taken to have been seen after cat?",
        ),
        Misconception(
            "k is added to the totals once, not once for each of the 7 tokens",
            math.log(3 / 6 * 1 / 3 * 2 / 2),
            "If each of 7 tokens was seen once more, how many more tokens were seen in all?",
        ),
        Misconception(
            "k is added to the counts, but nothing to the totals",
            math.log(3 / 5 * 1 / 2 * 2 / 1),
            "Add up the probabilities of all 7 tokens. Is the sum 1?",
        ),
        Misconception(
            "the probabilities are added, not multiplied",
            math.log(3 / 12 + 1 / 9 + 2 / 8),
            "One must happen and then the other. Are the chances added or multiplied?",
        ),
        Misconception(
            "the first word is predicted, too, though it is given",
            math.log(6 / 23 * 3 / 12 * 1 / 9 * 2 / 8),
            "The text begins with 'the'. How many words are left to predict?",
        ),
    ],
)

PERPLEXITY_OF_GUESSING = Question(
    "perplexity_of_guessing",
    answer=50.0,
    tolerance=(1e-3, 0.0),
    misconceptions=[
        Misconception(
            "this is the loss, in nats",
            math.log(50),
            "Between how many characters does it hesitate? Undo the logarithm.",
        ),
        Misconception(
            "this is the probability of each character",
            1 / 50,
            "Can a model hesitate between fewer than one character?",
        ),
        Misconception(
            "the length of the text is a factor",
            50_000.0,
            "Perplexity is one of a typical token. What does the division by N do?",
        ),
        Misconception(
            "this is minus the log-probability of the whole text",
            1_000 * math.log(50),
            "That grows with the text. Which two steps lead from it to the perplexity?",
        ),
        Misconception(
            "the number of characters in the text is taken for that in the vocabulary",
            1_000.0,
            "At each place, among how many characters does the guesser choose?",
        ),
    ],
)

WHY_IT_TURNS_UP = Question(
    "why_it_turns_up",
    answer="b",
    choices=("a", "b", "c", "d"),
    misconceptions=[
        Misconception(
            "longer contexts are held to be useless",
            "a",
            "On the training text they help more and more. So can they be useless in themselves?",
        ),
        Misconception(
            "the held-out text is held to be harder to predict",
            "c",
            "It is the same text for each n. Can its difficulty explain a change with n?",
        ),
        Misconception(
            "the loss is held to grow because each token costs more with a longer context",
            "d",
            "Training text and held-out text are measured by one formula. Why does only one rise?",
        ),
    ],
)

FULL_TABLE_BYTES = Question(
    "full_table_bytes",
    points=2,
    answer=4.0 * 84**4,
    tolerance=(0.0, 0.5),
    misconceptions=[
        Misconception(
            "the entries are counted, not their bytes",
            1.0 * 84**4,
            "How many bytes does one float32 take?",
        ),
        Misconception(
            "the contexts are counted, but not the tokens after each",
            4.0 * 84**3,
            "A row has one entry for each token that may come next. How many are those?",
        ),
        Misconception(
            "a context of n tokens is counted, not one of n−1",
            4.0 * 84**5,
            "In a 4-gram, how many tokens are context, and how many come next?",
        ),
        Misconception(
            "V and n are multiplied, where V is to be multiplied by itself",
            4.0 * 84 * 4,
            "With two characters of context, how many different pairs are there?",
        ),
        Misconception(
            "the roles are turned round: n to the power of V",
            4.0 * 4.0**91,
            "At each of the four places, how many characters can stand?",
        ),
        Misconception(
            "this is in bits",
            32.0 * 84**4,
            "A float32 has 32 bits. How many bytes are those?",
        ),
    ],
)
