"""Chapter 03: tokens, and the vectors that stand for them."""

import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import groupby, pairwise

import regex
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from autograder.check import Case, Check, Misconception, Question
from llmkit import tokenization as reference

# Wrong solutions and variants are written as a student would write them, each whole in itself,
# without llmkit: a class of synthetic students is made of their source.

# What the chapter gives: GPT-2's order of the bytes, and its pattern in parts.
VISIBLE = bytes([*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)])
BYTES = VISIBLE + bytes(byte for byte in range(256) if byte not in VISIBLE)
CONTRACTIONS = r"'(?:[sdmt]|ll|ve|re)"
SPACES = r"\s+(?!\S)|\s+"
PATTERN = rf"{CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{SPACES}"

TWISTER = "she sells sea shells by the sea shore"
FRIENDS = "Friends, Romans, Countrymen, lend me your ears"
WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "that", "rat", "ate", "other", "hats")


def whole(rng: Generator, high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=rng)


def sentence(rng: Generator, length: int) -> str:
    return " ".join(WORDS[i] for i in whole(rng, len(WORDS), length).tolist())


def chosen(rng: Generator, pieces: tuple[str, ...], length: int) -> str:
    return "".join(pieces[i] for i in whole(rng, len(pieces), length).tolist())


# word_tokenize -----------------------------------------------------------------------------------


def word_cases(rng: Generator) -> list[Case]:
    pieces = (" ", ", ", "; ", "Rome", "ears", "me", "7", "é", "_", "-", "!\n")
    return [
        Case(FRIENDS).titled("Friends, Romans, Countrymen"),
        Case("naïve, 東京 (1600)!").titled("letters of any script, and digits"),
        Case("  don't\tsnake_case \n\n B2b -- me, me").titled("signs at the edges, words twice"),
        Case(chosen(rng, pieces, 24)).titled("letters and signs by chance"),
        Case("").titled("an empty text"),
    ]


def words_by_white_space(text: str) -> list[str]:
    return text.split()


def words_by_single_spaces(text: str) -> list[str]:
    return text.split(" ")


def words_stripped_at_the_edges(text: str) -> list[str]:
    stripped = [word.strip(string.punctuation) for word in text.split()]
    return [word for word in stripped if word]


def words_of_ascii(text: str) -> list[str]:
    return re.findall(r"[A-Za-z0-9_]+", text)


def words_of_letters(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text)


def words_lowered(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def words_as_characters(text: str) -> list[str]:
    return re.findall(r"\w", text)


def words_and_empty_ones(text: str) -> list[str]:
    return re.findall(r"\w*", text)


def words_split_at_signs(text: str) -> list[str]:
    return re.split(r"\W+", text)


def words_and_signs(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def words_once_each(text: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r"\w+", text)))


def words_found_one_by_one(text: str) -> list[str]:
    return [match.group() for match in re.finditer(r"\w+", text)]


def words_split_and_filtered(text: str) -> list[str]:
    return [word for word in re.split(r"\W+", text) if word]


def words_loop(text: str) -> list[str]:
    words, word = [], ""
    for character in text + " ":
        if character.isalnum() or character == "_":
            word += character
        elif word:
            words.append(word)
            word = ""
    return words


def words_grouped(text: str) -> list[str]:
    runs = groupby(text, lambda character: character.isalnum() or character == "_")
    return ["".join(run) for inside, run in runs if inside]


WORD_TOKENIZE = Check(
    reference=reference.word_tokenize,
    points=2,
    cases=word_cases,
    misconceptions=[
        Misconception(
            "the text is cut at white space only: commas stay with their words",
            words_by_white_space,
            "Which characters belong to a word? Is the comma of 'Friends,' one of them?",
        ),
        Misconception(
            "the text is cut at each single space: line breaks and empty words stay",
            words_by_single_spaces,
            "What does split(' ') make of two spaces in a row, or of a line break?",
        ),
        Misconception(
            "signs are taken off at the edges of a word only",
            words_stripped_at_the_edges,
            "By the rule, does the apostrophe inside don't belong to a word?",
        ),
        Misconception(
            "only the letters a to z count, in capitals or not",
            words_of_ascii,
            "Is the ï of naïve a letter? Which class of regular expressions says so?",
        ),
        Misconception(
            "digits and underscores are left out",
            words_of_letters,
            "The rule names letters and two more kinds of characters. Which?",
        ),
        Misconception(
            "the words are in small letters",
            words_lowered,
            "The text says Friends. Does the rule say to change a letter?",
        ),
        Misconception(
            "each character is a word of its own",
            words_as_characters,
            "Which sign after \\w asks for as many as there are in a row?",
        ),
        Misconception(
            "there are empty words: \\w* also finds nothing at all",
            words_and_empty_ones,
            "How many characters does * ask for at least? And +?",
        ),
        Misconception(
            "there is an empty word where the text begins or ends with a sign",
            words_split_at_signs,
            "What stands before the first separator of ', ears'? What does re.split call it?",
        ),
        Misconception(
            "punctuation marks count as words",
            words_and_signs,
            "The example has seven words and three commas. How many items has your list?",
        ),
        Misconception(
            "a word that comes twice is listed once",
            words_once_each,
            "Is the result the words of the text, or its vocabulary?",
        ),
    ],
    variants=[words_found_one_by_one, words_split_and_filtered, words_loop, words_grouped],
)


# byte_ids ----------------------------------------------------------------------------------------


def byte_cases(rng: Generator) -> list[Case]:
    return [
        Case("sea").titled("three letters"),
        Case("A tiny line.\n").titled("a space and a line break"),
        Case("café").titled("a letter of two bytes"),
        Case("東京 🎉").titled("characters of three and four bytes"),
        Case(chosen(rng, (*string.printable, "é", "ß", "東", "🎉"), 20)).titled("any characters"),
        Case("").titled("an empty text"),
    ]


def ids_of_code_points(text: str) -> tuple[int, ...]:
    return tuple(ord(character) for character in text)


def ids_not_renumbered(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


def ids_looked_up_backwards(text: str) -> tuple[int, ...]:
    return tuple(BYTES[byte] for byte in text.encode())


def ids_of_latin1(text: str) -> tuple[int, ...]:
    return tuple(BYTES.index(byte) for byte in text.encode("latin-1", errors="replace"))


def ids_of_ascii(text: str) -> tuple[int, ...]:
    return tuple(BYTES.index(byte) for byte in text.encode("ascii", errors="ignore"))


def ids_of_utf16(text: str) -> tuple[int, ...]:
    return tuple(BYTES.index(byte) for byte in text.encode("utf-16"))


def ids_in_a_list(text: str) -> list[int]:
    return [BYTES.index(byte) for byte in text.encode()]


def ids_of_visible_bytes(text: str) -> tuple[int, ...]:
    return tuple(BYTES.index(byte) for byte in text.encode() if byte in VISIBLE)


def ids_by_index(text: str) -> tuple[int, ...]:
    return tuple(map(BYTES.index, text.encode("utf-8")))


def ids_by_dictionary(text: str) -> tuple[int, ...]:
    place = {byte: i for i, byte in enumerate(BYTES)}
    return tuple([place[byte] for byte in text.encode()])


def ids_by_translation(text: str) -> tuple[int, ...]:
    return tuple(text.encode().translate(bytes.maketrans(BYTES, bytes(range(256)))))


def ids_loop(text: str) -> tuple[int, ...]:
    ids: tuple[int, ...] = ()
    for character in text:
        for byte in character.encode("utf-8"):
            ids += (BYTES.find(bytes([byte])),)
    return ids


BYTE_IDS = Check(
    reference=reference.byte_ids,
    points=3,
    cases=byte_cases,
    misconceptions=[
        Misconception(
            "these are the characters' numbers in Unicode, not the ids of their bytes",
            ids_of_code_points,
            "ord('東') is 26481. Can one byte hold that?",
        ),
        Misconception(
            "these are the bytes themselves, not their places in BYTES",
            ids_not_renumbered,
            "The id of '!' is 0. Which byte is '!', and where in BYTES does it stand?",
        ),
        Misconception(
            "the look-up goes the wrong way: BYTES gives the byte of an id, not the id of a byte",
            ids_looked_up_backwards,
            "BYTES[0] is the byte 33. Which id has the byte 33, and what finds it in BYTES?",
        ),
        Misconception(
            "the text is encoded as Latin-1, which has 256 characters and no more",
            ids_of_latin1,
            "How many bytes has é in UTF-8? And how is 東 to be written in Latin-1?",
        ),
        Misconception(
            "characters beyond ASCII are dropped",
            ids_of_ascii,
            "Nothing may be lost. What is left of café?",
        ),
        Misconception(
            "the text is encoded as UTF-16, not UTF-8",
            ids_of_utf16,
            "sea has three bytes in UTF-8. How many have you?",
        ),
        Misconception(
            "a list is returned, not a tuple",
            ids_in_a_list,
            "Words will be the keys of a dictionary. Can a list be a key?",
        ),
        Misconception(
            "only visible characters are kept: spaces and many bytes are lost",
            ids_of_visible_bytes,
            "Which id has the space? Can the text be had back without it?",
        ),
    ],
    variants=[ids_by_index, ids_by_dictionary, ids_by_translation, ids_loop],
)


# count_pairs -------------------------------------------------------------------------------------

Word = tuple[int, ...]
Pair = tuple[int, int]


def some_words(rng: Generator, number: int, alphabet: int) -> dict[Word, int]:
    """Words of one to six tokens, and how often each comes."""
    lengths = (1 + whole(rng, 6, number)).tolist()
    words = [tuple(whole(rng, alphabet, length).tolist()) for length in lengths]
    return {word: 1 + int(whole(rng, 9, 1)) for word in words}


def twister_words() -> dict[Word, int]:
    return dict(Counter(map(spelt, regex.findall(PATTERN, TWISTER))))


def count_cases(rng: Generator) -> list[Case]:
    return [
        Case({(1, 2, 3): 4, (2, 3): 10}).titled("two words"),
        Case({(5, 5, 5, 5): 2, (7, 8, 7, 8): 3}).titled("a token, and a pair, in a row"),
        Case(twister_words()).titled("she sells sea shells"),
        Case(some_words(rng, 9, 4)).titled("nine words of few tokens"),
        Case(some_words(rng, 6, 300)).titled("six words of many tokens"),
        Case({(4,): 3}).titled("a word of a single token"),
    ]


def counted_once_each(words: dict[Word, int]) -> dict[Pair, int]:
    return dict(Counter(pair for word in words for pair in pairwise(word)))


def counted_once_a_word(words: dict[Word, int]) -> dict[Pair, int]:
    counts: dict[Pair, int] = defaultdict(int)
    for word, count in words.items():
        for pair in set(pairwise(word)):
            counts[pair] += count
    return dict(counts)


def counted_side_by_side(words: dict[Word, int]) -> dict[Pair, int]:
    counts: dict[Pair, int] = defaultdict(int)
    for word, count in words.items():
        for pair in zip(word[::2], word[1::2], strict=False):
            counts[pair] += count
    return dict(counts)


def counted_without_order(words: dict[Word, int]) -> dict[Pair, int]:
    counts: dict[Pair, int] = defaultdict(int)
    for word, count in words.items():
        for a, b in pairwise(word):
            counts[min(a, b), max(a, b)] += count
    return dict(counts)


def counted_across_words(words: dict[Word, int]) -> dict[Pair, int]:
    tokens = [token for word, count in words.items() for token in word * count]
    return dict(Counter(pairwise(tokens)))


def counted_without_the_last(words: dict[Word, int]) -> dict[Pair, int]:
    counts: dict[Pair, int] = defaultdict(int)
    for word, count in words.items():
        for i in range(len(word) - 2):
            counts[word[i], word[i + 1]] += count
    return dict(counts)


def counted_around(words: dict[Word, int]) -> dict[Pair, int]:
    counts: dict[Pair, int] = defaultdict(int)
    for word, count in words.items():
        for i in range(len(word)):
            counts[word[i - 1], word[i]] += count
    return dict(counts)


def counted_over(words: dict[Word, int]) -> dict[Pair, int]:
    return {pair: count for word, count in words.items() for pair in pairwise(word)}


def counted_without_overlap(words: dict[Word, int]) -> dict[Pair, int]:
    counts: dict[Pair, int] = defaultdict(int)
    for word, count in words.items():
        last = None
        for pair in pairwise(word):
            if pair == last and pair[0] == pair[1]:
                last = None
                continue
            counts[pair] += count
            last = pair
    return dict(counts)


def counted_single_tokens(words: dict[Word, int]) -> dict[int, int]:
    counts: dict[int, int] = defaultdict(int)
    for word, count in words.items():
        for token in word:
            counts[token] += count
    return dict(counts)


def counted_by_index(words: dict[Word, int]) -> dict[Pair, int]:
    counts: dict[Pair, int] = {}
    for word in words:
        for i in range(len(word) - 1):
            pair = word[i], word[i + 1]
            counts[pair] = counts.get(pair, 0) + words[word]
    return counts


def counted_by_zip(words: dict[Word, int]) -> dict[Pair, int]:
    counts: dict[Pair, int] = defaultdict(int)
    for word, count in words.items():
        left, right = word[:-1], word[1:]
        for pair in zip(left, right, strict=True):
            counts[pair] += count
    return dict(counts)


def counted_by_counter(words: dict[Word, int]) -> dict[Pair, int]:
    counts: Counter[Pair] = Counter()
    for word, count in words.items():
        counts.update({pair: n * count for pair, n in Counter(pairwise(word)).items()})
    return dict(counts)


def counted_pair_by_pair(words: dict[Word, int]) -> dict[Pair, int]:
    pairs = [pair for word, count in words.items() for pair in list(pairwise(word)) * count]
    return {pair: pairs.count(pair) for pair in set(pairs)}


COUNT_PAIRS = Check(
    reference=reference.count_pairs,
    points=3,
    cases=count_cases,
    misconceptions=[
        Misconception(
            "each word counts once, however often it comes",
            counted_once_each,
            "␣sea comes twice in the text. How much should its pairs add?",
        ),
        Misconception(
            "a pair that comes twice in one word is counted once",
            counted_once_a_word,
            "How often does (7, 8) stand in (7, 8, 7, 8)?",
        ),
        Misconception(
            "every second pair is skipped: tokens are taken two by two",
            counted_side_by_side,
            "In (1, 2, 3), do 2 and 3 stand side by side?",
        ),
        Misconception(
            "the order within a pair is lost",
            counted_without_order,
            "Is he the same as eh?",
        ),
        Misconception(
            "pairs reach from the end of one word to the start of the next",
            counted_across_words,
            "The dictionary says which words there are. Does it say which follows which?",
        ),
        Misconception(
            "the last pair of each word is missing",
            counted_without_the_last,
            "How many pairs has a word of two tokens? What does your range give for it?",
        ),
        Misconception(
            "the last token of a word makes a pair with its first one",
            counted_around,
            "What is word[i - 1] when i is 0?",
        ),
        Misconception(
            "a later word overwrites the count of an earlier one",
            counted_over,
            "Two words hold the same pair. Is its count the second word's, or the sum?",
        ),
        Misconception(
            "of three equal tokens in a row only one pair is counted",
            counted_without_overlap,
            "Count positions: at how many of them does (5, 5) begin in (5, 5, 5, 5)?",
        ),
        Misconception(
            "tokens are counted, not pairs of them",
            counted_single_tokens,
            "Two neighbours are to become one token. What is it that you must count?",
        ),
    ],
    variants=[counted_by_index, counted_by_zip, counted_by_counter, counted_pair_by_pair],
)


# merge_pair --------------------------------------------------------------------------------------


def merge_cases(rng: Generator) -> list[Case]:
    a, b = 20 + whole(rng, 20, 1).item(), 50 + whole(rng, 20, 1).item()
    tokens = [(a, b, 7)[i] for i in whole(rng, 3, 15).tolist()]
    return [
        Case((82, 71, 68, 75), (71, 68), 256).titled("one pair in the middle"),
        Case((5, 5, 5, 9, 5, 5), (5, 5), 300).titled("three equal tokens in a row"),
        Case((1, 2, 3, 2, 1, 2), (1, 2), 256).titled("the pair twice, once at the end"),
        Case((1, 3, 1, 1, 2, 2, 3), (1, 2), 400).titled("its tokens alone, too"),
        Case((11, 23, 1, 2), (1, 2), 257).titled("ids that begin or end alike"),
        Case(tuple(tokens), (a, b), 500).titled("tokens by chance"),
        Case((4, 6), (6, 4), 256).titled("the pair the other way round"),
        Case((8,), (8, 8), 256).titled("a word of a single token"),
    ]


def merged_without_skipping(word: Word, pair: Pair, new_id: int) -> Word:
    out = [new_id if (a, b) == pair else a for a, b in pairwise(word)]
    return (*out, word[-1])


def merged_first_only(word: Word, pair: Pair, new_id: int) -> Word:
    for i in range(len(word) - 1):
        if word[i : i + 2] == pair:
            return (*word[:i], new_id, *word[i + 2 :])
    return word


def merged_from_the_right(word: Word, pair: Pair, new_id: int) -> Word:
    out: list[int] = []
    i = len(word)
    while i > 0:
        found = i > 1 and (word[i - 2], word[i - 1]) == pair
        out.append(new_id if found else word[i - 1])
        i -= 2 if found else 1
    return tuple(reversed(out))


def merged_in_any_order(word: Word, pair: Pair, new_id: int) -> Word:
    out: list[int] = []
    i = 0
    while i < len(word):
        found = word[i : i + 2] in (pair, pair[::-1])
        out.append(new_id if found else word[i])
        i += 2 if found else 1
    return tuple(out)


def merged_and_cut(word: Word, pair: Pair, new_id: int) -> Word:
    out: list[int] = []
    i = 0
    while i < len(word) - 1:
        found = (word[i], word[i + 1]) == pair
        out.append(new_id if found else word[i])
        i += 2 if found else 1
    return tuple(out)


def merged_by_first_token(word: Word, pair: Pair, new_id: int) -> Word:
    out: list[int] = []
    i = 0
    while i < len(word):
        found = word[i] == pair[0] and i + 1 < len(word)
        out.append(new_id if found else word[i])
        i += 2 if found else 1
    return tuple(out)


def merged_token_by_token(word: Word, pair: Pair, new_id: int) -> Word:
    return tuple(new_id if token in pair else token for token in word)


def merged_as_text(word: Word, pair: Pair, new_id: int) -> Word:
    text = " ".join(map(str, word)).replace(f"{pair[0]} {pair[1]}", str(new_id))
    return tuple(int(token) for token in text.split())


def merged_into_a_list(word: Word, pair: Pair, new_id: int) -> list[int]:
    out: list[int] = []
    i = 0
    while i < len(word):
        found = word[i : i + 2] == pair
        out.append(new_id if found else word[i])
        i += 2 if found else 1
    return out


def merged_by_while(word: Word, pair: Pair, new_id: int) -> Word:
    out: list[int] = []
    i = 0
    while i < len(word):
        if i + 1 < len(word) and word[i] == pair[0] and word[i + 1] == pair[1]:
            out.append(new_id)
            i += 2
        else:
            out.append(word[i])
            i += 1
    return tuple(out)


def merged_on_a_stack(word: Word, pair: Pair, new_id: int) -> Word:
    stack: list[int] = []
    for token in word:
        if stack and (stack[-1], token) == pair:
            stack[-1] = new_id
        else:
            stack.append(token)
    return tuple(stack)


def merged_as_characters(word: Word, pair: Pair, new_id: int) -> Word:
    spelt_out = "".join(map(chr, word)).replace(chr(pair[0]) + chr(pair[1]), chr(new_id))
    return tuple(map(ord, spelt_out))


def merged_by_recursion(word: Word, pair: Pair, new_id: int) -> Word:
    if len(word) < 2:
        return word
    if word[:2] == pair:
        return (new_id, *merged_by_recursion(word[2:], pair, new_id))
    return (word[0], *merged_by_recursion(word[1:], pair, new_id))


MERGE_PAIR = Check(
    reference=reference.merge_pair,
    points=4,
    cases=merge_cases,
    misconceptions=[
        Misconception(
            "the second token of a merged pair stays behind",
            merged_without_skipping,
            "The new token takes the place of two. How far must you go on after it?",
        ),
        Misconception(
            "only the first pair is merged",
            merged_first_only,
            "The pair may come again further on. What does your loop do after the first one?",
        ),
        Misconception(
            "the word is read from right to left",
            merged_from_the_right,
            "Of (5, 5, 5), which two become one: the first two, or the last two?",
        ),
        Misconception(
            "the pair is merged in either order",
            merged_in_any_order,
            "h and e make he. Do e and h make it, too?",
        ),
        Misconception(
            "the last token is lost when it is in no pair",
            merged_and_cut,
            "Where does your loop stop? Who takes the last token along?",
        ),
        Misconception(
            "only the first token of the pair is compared",
            merged_by_first_token,
            "After (1, 3) was seen, should it become the token of (1, 2)?",
        ),
        Misconception(
            "each token of the pair is replaced, wherever it stands",
            merged_token_by_token,
            "A 1 without a 2 behind it: is it part of the pair?",
        ),
        Misconception(
            "ids are compared as text: 11 23 is taken to hold the pair 1 2",
            merged_as_text,
            "Where does one number end in '11 23'? Does replace know that?",
        ),
        Misconception(
            "a list is returned, not a tuple",
            merged_into_a_list,
            "Words are the keys of a dictionary. Can a list be a key?",
        ),
    ],
    variants=[merged_by_while, merged_on_a_stack, merged_as_characters, merged_by_recursion],
)


# pretokenize -------------------------------------------------------------------------------------


def cut_cases(rng: Generator) -> list[Case]:
    pieces = (" ", "  ", "\n", "a", "bc", "É", "1", "23", "!", "...", "'s", "'", "東", "½")
    return [
        Case(TWISTER).titled("words and spaces"),
        Case("I'll be  back, 007!\n\n x").titled("a contraction, two spaces, digits, signs"),
        Case("WE'LL wait... don't\ngo ").titled("capitals, dots, a line break, a last space"),
        Case("naïve café 東京42b_c").titled("letters of any script, digits among letters"),
        Case(chosen(rng, pieces, 30)).titled("characters by chance"),
        Case("").titled("an empty text"),
    ]


def cut_at_white_space(text: str) -> list[str]:
    return text.split()


def cut_into_words(text: str) -> list[str]:
    return regex.findall(r"\w+", text)


def cut_with_spaces_apart(text: str) -> list[str]:
    pattern = rf"{CONTRACTIONS}|\p{{L}}+|\p{{N}}+|[^\s\p{{L}}\p{{N}}]+|{SPACES}"
    return regex.findall(pattern, text)


def cut_with_spaces_behind(text: str) -> list[str]:
    pattern = rf"{CONTRACTIONS}|\p{{L}}+ ?|\p{{N}}+ ?|[^\s\p{{L}}\p{{N}}]+ ?|{SPACES}"
    return regex.findall(pattern, text)


def cut_without_contractions(text: str) -> list[str]:
    return regex.findall(rf" ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{SPACES}", text)


def cut_greedy_spaces(text: str) -> list[str]:
    pattern = rf"{CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+"
    return regex.findall(pattern, text)


def cut_without_the_last_rule(text: str) -> list[str]:
    pattern = rf"{CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)"
    return regex.findall(pattern, text)


def cut_ascii_letters(text: str) -> list[str]:
    pattern = rf"{CONTRACTIONS}| ?[A-Za-z]+| ?\p{{N}}+| ?[^\sA-Za-z\p{{N}}]+|{SPACES}"
    return regex.findall(pattern, text)


def cut_words_with_digits(text: str) -> list[str]:
    return regex.findall(rf"{CONTRACTIONS}| ?\w+| ?[^\s\w]+|{SPACES}", text)


def cut_single_digits(text: str) -> list[str]:
    pattern = rf"{CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+|{SPACES}"
    return regex.findall(pattern, text)


def cut_single_signs(text: str) -> list[str]:
    pattern = rf"{CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]|{SPACES}"
    return regex.findall(pattern, text)


def cut_without_signs(text: str) -> list[str]:
    return regex.findall(rf"{CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+|{SPACES}", text)


def cut_any_case(text: str) -> list[str]:
    return regex.findall(PATTERN, text, flags=regex.IGNORECASE)


def cut_and_stripped(text: str) -> list[str]:
    return [piece.strip() for piece in regex.findall(PATTERN, text)]


def cut_one_by_one(text: str) -> list[str]:
    return [match.group() for match in regex.finditer(PATTERN, text)]


def cut_by_rules(text: str) -> list[str]:
    rules = [r"'s|'d|'m|'t|'ll|'ve|'re", r" ?\p{L}+", r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+"]
    rules += [r"\s+(?!\S)", r"\s+"]
    pieces, start = [], 0
    while start < len(text):
        found = next(filter(None, (regex.compile(rule).match(text, start) for rule in rules)))
        pieces.append(found.group())
        start = found.end()
    return pieces


def cut_by_hand(text: str) -> list[str]:
    def kind(character: str) -> str:
        if regex.match(r"\s", character):
            return "space"
        for name in "LN":
            if regex.match(rf"\p{{{name}}}", character):
                return name
        return "sign"

    pieces, i = [], 0
    while i < len(text):
        endings = ("s", "d", "m", "t", "ll", "ve", "re")
        ending = next((e for e in endings if text.startswith("'" + e, i)), None)
        if ending:
            end = i + 1 + len(ending)
        else:
            first = i + 1 if text[i] == " " and i + 1 < len(text) else i
            if kind(text[first]) == "space":
                first = i
            end = first
            while end < len(text) and kind(text[end]) == kind(text[first]):
                end += 1
            if kind(text[first]) == "space" and end < len(text) and end - first > 1:
                end -= 1
        pieces.append(text[i:end])
        i = end
    return pieces


PRETOKENIZE = Check(
    reference=reference.pretokenize,
    points=5,
    cases=cut_cases,
    misconceptions=[
        Misconception(
            "white space is lost",
            cut_at_white_space,
            "Joined, the pieces must be the text. What does split() throw away?",
        ),
        Misconception(
            "everything but words is lost",
            cut_into_words,
            "That is Exercise 1. Joined, do these pieces make the text?",
        ),
        Misconception(
            "a space is a piece of its own, not the beginning of the word behind it",
            cut_with_spaces_apart,
            "Rules 2, 3 and 4 begin with a space that may be there. Where is it in your pattern?",
        ),
        Misconception(
            "the space goes to the word before it",
            cut_with_spaces_behind,
            "Is it 'she␣', 'sells' or 'she', '␣sells'? On which side of the letters is the space?",
        ),
        Misconception(
            "there is no rule for contractions, or it comes too late",
            cut_without_contractions,
            "The first rule that fits wins. Which of yours fits the apostrophe of I'll first?",
        ),
        Misconception(
            "a run of white space takes the last space as well, which belongs to the word",
            cut_greedy_spaces,
            "In 'be  back' there are two spaces. Which of them is back's?",
        ),
        Misconception(
            "a single line break before a word is lost: the last rule is missing",
            cut_without_the_last_rule,
            "Rule 5 wants no word behind the white space. Which rule takes '\\n' in 'a\\nb'?",
        ),
        Misconception(
            "only the letters a to z count as letters",
            cut_ascii_letters,
            "Is ï a letter? Which class holds the letters of every script?",
        ),
        Misconception(
            "digits and underscores are taken for letters",
            cut_words_with_digits,
            "What does \\w hold besides letters? Should 42b be one piece or two?",
        ),
        Misconception(
            "each digit is a piece of its own",
            cut_single_digits,
            "That is SmolLM2's way. By rule 3, is 007 one piece or three?",
        ),
        Misconception(
            "each sign is a piece of its own",
            cut_single_signs,
            "By rule 4, are three dots one piece or three?",
        ),
        Misconception(
            "signs are lost",
            cut_without_signs,
            "Which of your rules takes a comma?",
        ),
        Misconception(
            "contractions are found in capitals, too",
            cut_any_case,
            "Rule 1 has small letters. GPT-2 keeps to them: how does it cut WE'LL?",
        ),
        Misconception(
            "the pieces have lost their spaces",
            cut_and_stripped,
            "Joined, the pieces must be the text. Where are its spaces?",
        ),
    ],
    variants=[cut_one_by_one, cut_by_rules, cut_by_hand],
)


# train_bpe ---------------------------------------------------------------------------------------


def spelt(piece: str) -> Word:
    return tuple(BYTES.index(byte) for byte in piece.encode())


def merged(word: Word, pair: Pair, new_id: int) -> Word:
    out: list[int] = []
    i = 0
    while i < len(word):
        found = word[i : i + 2] == pair
        out.append(new_id if found else word[i])
        i += 2 if found else 1
    return tuple(out)


def counted(words: dict[Word, int]) -> dict[Pair, int]:
    counts: dict[Pair, int] = {}
    for word, count in words.items():
        for pair in pairwise(word):
            counts[pair] = counts.get(pair, 0) + count
    return counts


def train_cases(rng: Generator) -> list[Case]:
    foreign = "東京 café 1600, 東京's café. " + sentence(rng, 4)
    return [
        Case(TWISTER, 5).titled("she sells sea shells"),
        Case(sentence(rng, 30), 12).titled("thirty words"),
        Case("zy xw", 4).titled("nothing but ties"),
        Case(foreign, 7).titled("other scripts, digits and signs"),
        Case("aaaaa ba ba", 40).titled("more merges than there are pairs"),
        Case(sentence(rng, 5), 0).titled("no merges"),
    ]


def trained_first_tie(text: str, num_merges: int) -> list[Pair]:
    words = Counter(map(spelt, regex.findall(PATTERN, text)))
    merges: list[Pair] = []
    while len(merges) < num_merges and (counts := counted(words)):
        best = max(counts, key=counts.get)
        words = {merged(w, best, 256 + len(merges)): n for w, n in words.items()}
        merges.append(best)
    return merges


def trained_largest_tie(text: str, num_merges: int) -> list[Pair]:
    words = Counter(map(spelt, regex.findall(PATTERN, text)))
    merges: list[Pair] = []
    while len(merges) < num_merges and (counts := counted(words)):
        best = max(counts, key=lambda pair: (counts[pair], pair))
        words = {merged(w, best, 256 + len(merges)): n for w, n in words.items()}
        merges.append(best)
    return merges


def trained_counting_once(text: str, num_merges: int) -> list[Pair]:
    counts = counted(Counter(map(spelt, regex.findall(PATTERN, text))))
    return sorted(counts, key=lambda pair: (-counts[pair], pair))[:num_merges]


def trained_from_257(text: str, num_merges: int) -> list[Pair]:
    words = Counter(map(spelt, regex.findall(PATTERN, text)))
    merges: list[Pair] = []
    while len(merges) < num_merges and (counts := counted(words)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        words = {merged(w, best, 256 + len(merges)): n for w, n in words.items()}
    return merges


def trained_across_words(text: str, num_merges: int) -> list[Pair]:
    words = {spelt(text): 1}
    merges: list[Pair] = []
    while len(merges) < num_merges and (counts := counted(words)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        words = {merged(w, best, 256 + len(merges)): n for w, n in words.items()}
        merges.append(best)
    return merges


def trained_on_distinct_words(text: str, num_merges: int) -> list[Pair]:
    words = dict.fromkeys(map(spelt, regex.findall(PATTERN, text)), 1)
    merges: list[Pair] = []
    while len(merges) < num_merges and (counts := counted(words)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        words = {merged(w, best, 256 + len(merges)): n for w, n in words.items()}
        merges.append(best)
    return merges


def trained_without_spaces(text: str, num_merges: int) -> list[Pair]:
    words = Counter(map(spelt, regex.findall(r"\w+", text)))
    merges: list[Pair] = []
    while len(merges) < num_merges and (counts := counted(words)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        words = {merged(w, best, 256 + len(merges)): n for w, n in words.items()}
        merges.append(best)
    return merges


def trained_on_repeats_only(text: str, num_merges: int) -> list[Pair]:
    words = Counter(map(spelt, regex.findall(PATTERN, text)))
    merges: list[Pair] = []
    while len(merges) < num_merges and (counts := counted(words)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        if counts[best] < 2:
            break
        words = {merged(w, best, 256 + len(merges)): n for w, n in words.items()}
        merges.append(best)
    return merges


def trained_to_a_vocabulary(text: str, num_merges: int) -> list[Pair]:
    words = Counter(map(spelt, regex.findall(PATTERN, text)))
    merges: list[Pair] = []
    while 256 + len(merges) < num_merges and (counts := counted(words)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        words = {merged(w, best, 256 + len(merges)): n for w, n in words.items()}
        merges.append(best)
    return merges


def trained_without_an_end(text: str, num_merges: int) -> list[Pair]:
    words = Counter(map(spelt, regex.findall(PATTERN, text)))
    merges: list[Pair] = []
    for new_id in range(256, 256 + num_merges):
        counts = counted(words)
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        words = {merged(w, best, new_id): n for w, n in words.items()}
        merges.append(best)
    return merges


def trained_on_raw_bytes(text: str, num_merges: int) -> list[Pair]:
    words = Counter(tuple(piece.encode()) for piece in regex.findall(PATTERN, text))
    merges: list[Pair] = []
    while len(merges) < num_merges and (counts := counted(words)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        words = {merged(w, best, 256 + len(merges)): n for w, n in words.items()}
        merges.append(best)
    return merges


def trained_into_a_dictionary(text: str, num_merges: int) -> dict[Pair, int]:
    words = Counter(map(spelt, regex.findall(PATTERN, text)))
    merges: dict[Pair, int] = {}
    while len(merges) < num_merges and (counts := counted(words)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges[best] = 256 + len(merges)
        words = {merged(w, best, merges[best]): n for w, n in words.items()}
    return merges


def trained_by_loop(text: str, num_merges: int) -> list[Pair]:
    words: dict[Word, int] = {}
    for piece in regex.findall(PATTERN, text):
        words[spelt(piece)] = words.get(spelt(piece), 0) + 1
    merges: list[Pair] = []
    for step in range(num_merges):
        counts = counted(words)
        if not counts:
            break
        most = max(counts.values())
        best = min(pair for pair, count in counts.items() if count == most)
        changed: dict[Word, int] = {}
        for word, count in words.items():
            changed[merged(word, best, 256 + step)] = count
        words = changed
        merges.append(best)
    return merges


def trained_by_sorting(text: str, num_merges: int) -> list[Pair]:
    words = Counter(map(spelt, regex.findall(PATTERN, text)))
    merges: list[Pair] = []
    while len(merges) < num_merges:
        ranked = sorted(counted(words).items(), key=lambda item: (-item[1], item[0]))
        if not ranked:
            return merges
        (best, _), *_ = ranked
        words = Counter({merged(w, best, 256 + len(merges)): n for w, n in words.items()})
        merges.append(best)
    return merges


def trained_on_every_piece(text: str, num_merges: int) -> list[Pair]:
    pieces = [spelt(piece) for piece in regex.findall(PATTERN, text)]
    merges: list[Pair] = []
    for new_id in range(256, 256 + num_merges):
        counts = Counter(pair for piece in pieces for pair in pairwise(piece))
        if len(counts) == 0:
            break
        best = max(counts, key=lambda pair: (counts[pair], -pair[0], -pair[1]))
        pieces = [merged(piece, best, new_id) for piece in pieces]
        merges += [best]
    return merges


TRAIN_BPE = Check(
    reference=reference.train_bpe,
    points=6,
    cases=train_cases,
    misconceptions=[
        Misconception(
            "of equally frequent pairs the one seen first is taken",
            trained_first_tie,
            "What does the rule say about ties? What does max do when two are equal?",
        ),
        Misconception(
            "of equally frequent pairs the largest is taken",
            trained_largest_tie,
            "The count must be large and the pair small. Does one max of (count, pair) do both?",
        ),
        Misconception(
            "the pairs are counted once, at the start, and never again",
            trained_counting_once,
            "After ␣s has become one token, how often do s and e still stand side by side?",
        ),
        Misconception(
            "the new tokens are numbered from 257",
            trained_from_257,
            "The bytes have the ids 0 to 255. Which is the next one?",
        ),
        Misconception(
            "the text is not cut: tokens reach across words",
            trained_across_words,
            "Which function of yours says where no token may reach across?",
        ),
        Misconception(
            "each distinct word counts once, however often it comes",
            trained_on_distinct_words,
            "A pair of a frequent word is a frequent pair. Where is it counted how often?",
        ),
        Misconception(
            "the text is cut by word_tokenize: spaces and signs are lost",
            trained_without_spaces,
            "Can a token like ␣s be learnt if no piece holds a space?",
        ),
        Misconception(
            "training stops when no pair comes twice",
            trained_on_repeats_only,
            "The exercise names two reasons to stop. Is a count of 1 one of them?",
        ),
        Misconception(
            "num_merges is taken for the size of the vocabulary",
            trained_to_a_vocabulary,
            "For 5 merges, how long should the list be, with the 256 bytes or without?",
        ),
        Misconception(
            "nothing stops the training when there are no more pairs",
            trained_without_an_end,
            "When every word is a single token, what does count_pairs return?",
        ),
        Misconception(
            "bytes are not renumbered by BYTES",
            trained_on_raw_bytes,
            "Which function of yours gives the ids of a piece before any merge?",
        ),
        Misconception(
            "a dictionary is returned, not a list",
            trained_into_a_dictionary,
            "The place of a merge in the list says which token it makes. Is more needed?",
        ),
    ],
    variants=[trained_by_loop, trained_by_sorting, trained_on_every_piece],
)


# encode ------------------------------------------------------------------------------------------

A, B, C, E, SPACE = 64, 65, 66, 68, 220  # ids of the bytes of a, b, c, e and the space


def encode_cases(rng: Generator) -> list[Case]:
    twister = reference.train_bpe(TWISTER, 8)
    learnt = reference.train_bpe(sentence(rng, 40), 25)
    return [
        Case(TWISTER, twister).titled("she sells sea shells"),
        Case("shells, hello the sea", twister).titled("another text with its merges"),
        Case(sentence(rng, 12) + "!", learnt).titled("a sentence by chance"),
        Case("abc bca", [(B, C), (A, 256), (A, B)]).titled("two merges that want the same b"),
        Case("abc cabc", [(A, B), (B, C)]).titled("the same in the other order"),
        Case("abc", [(B, C), (A, B), (257, C)]).titled("a long token that no merge leads to"),
        Case("aaaa aaa", [(A, A), (256, 256)]).titled("one letter in a row"),
        Case("we are", [(E, SPACE), (SPACE, A)]).titled("a merge that reaches across words"),
        Case("café", []).titled("no merges"),
        Case("", twister).titled("an empty text"),
    ]


def spellings(merges: list[Pair]) -> list[Word]:
    """The byte ids that each token is made of."""
    tokens: list[Word] = [(i,) for i in range(256)]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens


def encoded_by_longest(text: str, merges: list[Pair]) -> list[int]:
    known = {word: i for i, word in enumerate(spellings(merges))}
    ids: list[int] = []
    for word in map(spelt, regex.findall(PATTERN, text)):
        while word:
            size = next(n for n in range(len(word), 0, -1) if word[:n] in known)
            ids.append(known[word[:size]])
            word = word[size:]
    return ids


def encoded_leftmost_first(text: str, merges: list[Pair]) -> list[int]:
    new_ids = {pair: 256 + m for m, pair in enumerate(merges)}
    ids: list[int] = []
    for word in map(spelt, regex.findall(PATTERN, text)):
        while found := next((pair for pair in pairwise(word) if pair in new_ids), None):
            i = list(pairwise(word)).index(found)
            word = (*word[:i], new_ids[found], *word[i + 2 :])
        ids += word
    return ids


def encoded_last_first(text: str, merges: list[Pair]) -> list[int]:
    new_ids = {pair: 256 + m for m, pair in enumerate(merges)}
    ids: list[int] = []
    for word in map(spelt, regex.findall(PATTERN, text)):
        while found := [pair for pair in pairwise(word) if pair in new_ids]:
            best = max(found, key=new_ids.get)
            word = merged(word, best, new_ids[best])
        ids += word
    return ids


def encoded_from_257(text: str, merges: list[Pair]) -> list[int]:
    ids: list[int] = []
    for word in map(spelt, regex.findall(PATTERN, text)):
        for m, pair in enumerate(merges):
            word = merged(word, pair, 256 + m)
        ids += [i + 1 if i > 255 else i for i in word]
    return ids


def encoded_one_merge(text: str, merges: list[Pair]) -> list[int]:
    new_ids = {pair: 256 + m for m, pair in enumerate(merges)}
    ids: list[int] = []
    for word in map(spelt, regex.findall(PATTERN, text)):
        found = [pair for pair in pairwise(word) if pair in new_ids]
        if found:
            best = min(found, key=new_ids.get)
            word = merged(word, best, new_ids[best])
        ids += word
    return ids


def encoded_first_pairs_only(text: str, merges: list[Pair]) -> list[int]:
    new_ids = {pair: 256 + m for m, pair in enumerate(merges)}
    ids: list[int] = []
    for word in map(spelt, regex.findall(PATTERN, text)):
        for pair in sorted({p for p in pairwise(word) if p in new_ids}, key=new_ids.get):
            word = merged(word, pair, new_ids[pair])
        ids += word
    return ids


def encoded_without_cutting(text: str, merges: list[Pair]) -> list[int]:
    word = spelt(text)
    for m, pair in enumerate(merges):
        word = merged(word, pair, 256 + m)
    return list(word)


def encoded_raw_bytes(text: str, merges: list[Pair]) -> list[int]:
    ids: list[int] = []
    for piece in regex.findall(PATTERN, text):
        word = tuple(piece.encode())
        for m, pair in enumerate(merges):
            word = merged(word, pair, 256 + m)
        ids += word
    return ids


def encoded_word_by_word(text: str, merges: list[Pair]) -> list[Word]:
    words = []
    for word in map(spelt, regex.findall(PATTERN, text)):
        for m, pair in enumerate(merges):
            word = merged(word, pair, 256 + m)
        words.append(word)
    return words


def encoded_without_spaces(text: str, merges: list[Pair]) -> list[int]:
    ids: list[int] = []
    for word in map(spelt, regex.findall(r"\w+", text)):
        for m, pair in enumerate(merges):
            word = merged(word, pair, 256 + m)
        ids += word
    return ids


def encoded_merge_by_merge(text: str, merges: list[Pair]) -> list[int]:
    ids: list[int] = []
    for word in map(spelt, regex.findall(PATTERN, text)):
        for m, pair in enumerate(merges):
            word = merged(word, pair, 256 + m)
        ids.extend(word)
    return ids


def encoded_by_rank(text: str, merges: list[Pair]) -> list[int]:
    rank = {pair: m for m, pair in enumerate(merges)}
    ids: list[int] = []
    for piece in regex.findall(PATTERN, text):
        word = spelt(piece)
        while any(pair in rank for pair in pairwise(word)):
            best = min((pair for pair in pairwise(word) if pair in rank), key=rank.__getitem__)
            word = merged(word, best, 256 + rank[best])
        ids += list(word)
    return ids


def encoded_one_place_at_a_time(text: str, merges: list[Pair]) -> list[int]:
    rank = {pair: m for m, pair in enumerate(merges)}
    ids: list[int] = []
    for piece in regex.findall(PATTERN, text):
        word = list(spelt(piece))
        while True:
            places = [(rank[p], i) for i, p in enumerate(pairwise(word)) if p in rank]
            if not places:
                break
            m, i = min(places)
            word[i : i + 2] = [256 + m]
        ids += word
    return ids


ENCODE = Check(
    reference=reference.encode,
    points=5,
    cases=encode_cases,
    misconceptions=[
        Misconception(
            "the longest token that fits is taken",
            encoded_by_longest,
            "Which merge was learnt first? Does the longest token ask for that?",
        ),
        Misconception(
            "the leftmost pair is merged first, not the one learnt first",
            encoded_leftmost_first,
            "In abc, with the merges (b, c) and then (a, b): which one was learnt first?",
        ),
        Misconception(
            "the merge learnt last is done first",
            encoded_last_first,
            "Training did the merges in an order. Do you do them in the same?",
        ),
        Misconception(
            "the new tokens are numbered from 257",
            encoded_from_257,
            "Merge number m, counted from 0, makes which token?",
        ),
        Misconception(
            "there is one merge in each word, and then it stops",
            encoded_one_merge,
            "After the first merge, may there be another pair to merge? When is a word done?",
        ),
        Misconception(
            "pairs that arise by merging are not merged again",
            encoded_first_pairs_only,
            "When s and h have become sh, what new pair stands before the e? Who looks for it?",
        ),
        Misconception(
            "the text is not cut first: a token reaches across words",
            encoded_without_cutting,
            "Training never saw the end of one word and the start of the next together. Do you?",
        ),
        Misconception(
            "bytes are not renumbered by BYTES",
            encoded_raw_bytes,
            "Which function of yours gives the ids of a piece before any merge?",
        ),
        Misconception(
            "the ids are grouped by words, not in one list",
            encoded_word_by_word,
            "A model reads one row of ids. What joins the words' ids into one list?",
        ),
        Misconception(
            "the text is cut by word_tokenize: spaces and signs are lost",
            encoded_without_spaces,
            "If the ids are decoded, is it the same text again?",
        ),
    ],
    variants=[encoded_merge_by_merge, encoded_by_rank, encoded_one_place_at_a_time],
)


# token_bytes -------------------------------------------------------------------------------------


def vocabulary_cases(rng: Generator) -> list[Case]:
    learnt = reference.train_bpe(sentence(rng, 30) + " 東京 東京", 12)
    return [
        Case([(71, 68), (82, 256), (257, 75)]).titled("h e, s he, she l"),
        Case([]).titled("no merges"),
        Case(reference.train_bpe("東京 東京 café café", 6)).titled("characters of several bytes"),
        Case(learnt).titled("what a text teaches"),
    ]


def tokens_of_raw_bytes(merges: list[Pair]) -> list[bytes]:
    tokens = [bytes([i]) for i in range(256)]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens


def tokens_swapped(merges: list[Pair]) -> list[bytes]:
    tokens = [bytes([byte]) for byte in BYTES]
    for left, right in merges:
        tokens.append(tokens[right] + tokens[left])
    return tokens


def tokens_of_merges_only(merges: list[Pair]) -> list[bytes]:
    tokens = [bytes([byte]) for byte in BYTES]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens[256:]


def tokens_of_bytes_only(merges: list[Pair]) -> list[bytes]:
    tokens = [bytes([byte]) for byte in BYTES]
    return tokens + [tokens[left % 256] + tokens[right % 256] for left, right in merges]


def tokens_in_a_dictionary(merges: list[Pair]) -> dict[int, bytes]:
    tokens = {i: bytes([byte]) for i, byte in enumerate(BYTES)}
    for m, (left, right) in enumerate(merges):
        tokens[256 + m] = tokens[left] + tokens[right]
    return tokens


def tokens_as_characters(merges: list[Pair]) -> list[str]:
    tokens = [chr(byte) for byte in BYTES]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens


def tokens_through_text(merges: list[Pair]) -> list[bytes]:
    tokens = [bytes([byte]).decode(errors="replace") for byte in BYTES]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return [token.encode() for token in tokens]


def tokens_of_two_byte_characters(merges: list[Pair]) -> list[bytes]:
    tokens = [chr(byte) for byte in BYTES]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return [token.encode() for token in tokens]


def tokens_by_loop(merges: list[Pair]) -> list[bytes]:
    tokens = []
    for i in range(256 + len(merges)):
        if i < 256:
            tokens.append(BYTES[i : i + 1])
        else:
            left, right = merges[i - 256]
            tokens.append(b"".join([tokens[left], tokens[right]]))
    return tokens


def tokens_by_recursion(merges: list[Pair]) -> list[bytes]:
    def spell(i: int) -> bytes:
        if i < 256:
            return bytes([BYTES[i]])
        left, right = merges[i - 256]
        return spell(left) + spell(right)

    return [spell(i) for i in range(256 + len(merges))]


def tokens_from_a_dictionary(merges: list[Pair]) -> list[bytes]:
    tokens = {i: bytes((byte,)) for i, byte in enumerate(BYTES)}
    for left, right in merges:
        tokens[len(tokens)] = tokens[left] + tokens[right]
    return list(tokens.values())


TOKEN_BYTES = Check(
    reference=reference.token_bytes,
    points=3,
    cases=vocabulary_cases,
    misconceptions=[
        Misconception(
            "the first 256 tokens are the bytes 0, 1, 2 …, not those of BYTES",
            tokens_of_raw_bytes,
            "Token 0 is '!'. Which byte is that, and which place of BYTES holds it?",
        ),
        Misconception(
            "left and right are swapped",
            tokens_swapped,
            "The merge (71, 68) joins h and e. Is that he, or eh?",
        ),
        Misconception(
            "the 256 bytes are missing: the list begins with the first merge",
            tokens_of_merges_only,
            "Which token has the id 0? At which place of your list is it?",
        ),
        Misconception(
            "a merge joins bytes only, never earlier merges",
            tokens_of_bytes_only,
            "In the merge (82, 256), which token is 256? Is it a single byte?",
        ),
        Misconception(
            "a dictionary is returned, not a list",
            tokens_in_a_dictionary,
            "Ids count 0, 1, 2, … without a gap. What holds things by such numbers?",
        ),
        Misconception(
            "the tokens are text, not bytes",
            tokens_as_characters,
            "A token may be half a character. Is there a text for that?",
        ),
        Misconception(
            "each byte is decoded by itself, so bytes beyond ASCII are damaged",
            tokens_through_text,
            "The first byte of é is no character. What does decode make of it alone?",
        ),
        Misconception(
            "bytes beyond ASCII have become two bytes, by way of chr",
            tokens_of_two_byte_characters,
            "What are the bytes of chr(233).encode()? How many are they?",
        ),
    ],
    variants=[tokens_by_loop, tokens_by_recursion, tokens_from_a_dictionary],
)


# decode ------------------------------------------------------------------------------------------


def decode_cases(rng: Generator) -> list[Case]:
    text = "東京 café 🎉 " + sentence(rng, 8)
    merges = reference.train_bpe(text, 10)
    some = whole(rng, 256 + len(merges), 12).tolist()
    twister = reference.train_bpe(TWISTER, 6)
    party = list(spelt("é🎉"))
    return [
        Case(reference.encode(" sea shells", twister), twister).titled("a text with a space first"),
        Case(list(spelt("café 東京")), []).titled("characters spread over several tokens"),
        Case(reference.encode(text, merges), merges).titled("a text with merges"),
        Case(party[:-1], []).titled("half a character at the end"),
        Case([party[1], *spelt("ok"), party[0]], []).titled("halves of characters"),
        Case([*some, party[0], 0], merges).titled("tokens by chance"),
        Case([], merges).titled("no tokens"),
        Case([1, 256 + len(merges)], merges).titled("an id that no token has"),
        Case([5, -1, 2], twister).titled("a negative id"),
    ]


def spelt_out(merges: list[Pair]) -> list[bytes]:
    tokens = [bytes([byte]) for byte in BYTES]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens


def refused(ids: list[int], merges: list[Pair]) -> None:
    if any(i < 0 or i >= 256 + len(merges) for i in ids):
        raise ValueError("there is no such token")


def decoded_one_by_one(ids: list[int], merges: list[Pair]) -> str:
    refused(ids, merges)
    tokens = spelt_out(merges)
    return "".join(tokens[i].decode(errors="replace") for i in ids)


def decoded_strictly(ids: list[int], merges: list[Pair]) -> str:
    refused(ids, merges)
    tokens = spelt_out(merges)
    return b"".join(tokens[i] for i in ids).decode()


def decoded_ignoring(ids: list[int], merges: list[Pair]) -> str:
    refused(ids, merges)
    tokens = spelt_out(merges)
    return b"".join(tokens[i] for i in ids).decode(errors="ignore")


def decoded_as_latin1(ids: list[int], merges: list[Pair]) -> str:
    refused(ids, merges)
    tokens = spelt_out(merges)
    return b"".join(tokens[i] for i in ids).decode("latin-1")


def decoded_from_raw_bytes(ids: list[int], merges: list[Pair]) -> str:
    refused(ids, merges)
    tokens = [bytes([i]) for i in range(256)]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return b"".join(tokens[i] for i in ids).decode(errors="replace")


def decoded_with_spaces(ids: list[int], merges: list[Pair]) -> str:
    refused(ids, merges)
    tokens = spelt_out(merges)
    return b" ".join(tokens[i] for i in ids).decode(errors="replace")


def decoded_and_stripped(ids: list[int], merges: list[Pair]) -> str:
    refused(ids, merges)
    tokens = spelt_out(merges)
    return b"".join(tokens[i] for i in ids).decode(errors="replace").strip()


def decoded_without_a_look(ids: list[int], merges: list[Pair]) -> str:
    tokens = spelt_out(merges)
    return b"".join(tokens[i] for i in ids).decode(errors="replace")


def decoded_but_for_negatives(ids: list[int], merges: list[Pair]) -> str:
    tokens = spelt_out(merges)
    if any(i >= len(tokens) for i in ids):
        raise ValueError("there is no such token")
    return b"".join(tokens[i] for i in ids).decode(errors="replace")


def decoded_leaving_out(ids: list[int], merges: list[Pair]) -> str:
    tokens = dict(enumerate(spelt_out(merges)))
    return b"".join(tokens.get(i, b"") for i in ids).decode(errors="replace")


def decoded_by_loop(ids: list[int], merges: list[Pair]) -> str:
    tokens = spelt_out(merges)
    joined = b""
    for i in ids:
        if not 0 <= i < len(tokens):
            raise ValueError(f"{i} is no token")
        joined += tokens[i]
    return joined.decode("utf-8", "replace")


def decoded_by_dictionary(ids: list[int], merges: list[Pair]) -> str:
    tokens = dict(enumerate(spelt_out(merges)))
    if not set(ids) <= tokens.keys():
        raise ValueError("unknown token")
    return str(b"".join(map(tokens.__getitem__, ids)), encoding="utf-8", errors="replace")


def decoded_by_splitting(ids: list[int], merges: list[Pair]) -> str:
    def split(i: int) -> Iterator[int]:
        if not 0 <= i < 256 + len(merges):
            raise ValueError(f"no token has the id {i}")
        if i < 256:
            yield BYTES[i]
        else:
            for part in merges[i - 256]:
                yield from split(part)

    return bytes(byte for i in ids for byte in split(i)).decode(errors="replace")


DECODE = Check(
    reference=reference.decode,
    points=3,
    cases=decode_cases,
    misconceptions=[
        Misconception(
            "each token is decoded by itself: characters of several tokens are destroyed",
            decoded_one_by_one,
            "é may be two tokens. Which comes first: joining the bytes, or decoding them?",
        ),
        Misconception(
            "bytes that are not UTF-8 raise an error",
            decoded_strictly,
            "A model may stop in the middle of a character. Which errors= puts � there?",
        ),
        Misconception(
            "bytes that are not UTF-8 vanish without a trace",
            decoded_ignoring,
            "Should a reader see that something was not text? Which errors= puts � there?",
        ),
        Misconception(
            "the bytes are read as Latin-1: é becomes Ã©",
            decoded_as_latin1,
            "byte_ids wrote UTF-8. Which encoding must be read, then?",
        ),
        Misconception(
            "ids below 256 are taken for bytes, without BYTES",
            decoded_from_raw_bytes,
            "Which byte has the id 0? Which function of yours knows?",
        ),
        Misconception(
            "the tokens are joined with spaces between them",
            decoded_with_spaces,
            "Tokens bring their own spaces. What should stand between two of them?",
        ),
        Misconception(
            "white space at the edges is taken away",
            decoded_and_stripped,
            "The text was '␣sea shells'. Is it the same without its first space?",
        ),
        Misconception(
            "an id that no token has is not refused with ValueError",
            decoded_without_a_look,
            "What does tokens[-1] give? And what kind of error is an index that is too large?",
        ),
        Misconception(
            "a negative id counts from the end of the vocabulary",
            decoded_but_for_negatives,
            "Which token has the id -1? What does Python make of tokens[-1]?",
        ),
        Misconception(
            "an id that no token has is left out without a word",
            decoded_leaving_out,
            "If ids and merges do not belong together, who would notice?",
        ),
    ],
    variants=[decoded_by_loop, decoded_by_dictionary, decoded_by_splitting],
)


# embed -------------------------------------------------------------------------------------------


def normal(rng: Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=rng).to(dtype)


def embed_cases(rng: Generator) -> list[Case]:
    return [
        Case(torch.tensor([2, 0, 2]), normal(rng, 4, 5)).titled("a token twice"),
        Case(whole(rng, 7, 2, 3), normal(rng, 7, 6)).titled("two texts of three tokens"),
        Case(whole(rng, 6, 4), normal(rng, 3, 6, dtype=torch.float64).T).titled(
            "float64, transposed in memory"
        ),
        Case(whole(rng, 9, 2, 2), normal(rng, 9, 4, dtype=torch.bfloat16)).titled("bfloat16"),
        Case(whole(rng, 5, 1)[0], normal(rng, 5, 3)).titled("a single token, of shape ()"),
        Case(torch.tensor([1, 6]), normal(rng, 6, 3)).titled("an id beyond the table"),
        Case(torch.tensor([[1, -1]]), normal(rng, 5, 4)).titled("a negative id"),
    ]


def looked_up(ids: Tensor, table: Tensor) -> Tensor:
    if ids.min() < 0 or ids.max() >= len(table):
        raise ValueError("there is no row for that id")
    return table[ids]


def embedded_columns(ids: Tensor, table: Tensor) -> Tensor:
    if ids.min() < 0 or ids.max() >= len(table):
        raise ValueError("there is no row for that id")
    return table[:, ids]


def embedded_from_one(ids: Tensor, table: Tensor) -> Tensor:
    if ids.min() < 0 or ids.max() >= len(table):
        raise ValueError("there is no row for that id")
    return table[ids - 1]


def embedded_without_a_look(ids: Tensor, table: Tensor) -> Tensor:
    return table[ids]


def embedded_but_for_negatives(ids: Tensor, table: Tensor) -> Tensor:
    if ids.max() >= len(table):
        raise ValueError("there is no row for that id")
    return table[ids]


def embedded_flat(ids: Tensor, table: Tensor) -> Tensor:
    return looked_up(ids.flatten(), table)


def embedded_first_rows(ids: Tensor, table: Tensor) -> Tensor:
    looked_up(ids, table)
    rows = torch.arange(ids.numel()) % len(table)
    return table[rows].reshape(*ids.shape, -1)


def embedded_in_float32(ids: Tensor, table: Tensor) -> Tensor:
    return looked_up(ids, table).float()


def embedded_summed(ids: Tensor, table: Tensor) -> Tensor:
    vectors = looked_up(ids, table)
    return vectors.sum(-2) if vectors.ndim > 1 else vectors


def embedded_as_one_hot(ids: Tensor, table: Tensor) -> Tensor:
    looked_up(ids, table)
    return F.one_hot(ids, len(table)).to(table.dtype)


def embedded_clamped(ids: Tensor, table: Tensor) -> Tensor:
    return table[ids.clamp(0, len(table) - 1)]


def embedded_once_each(ids: Tensor, table: Tensor) -> Tensor:
    looked_up(ids, table)
    return table[ids.unique()]


def embedded_built_in(ids: Tensor, table: Tensor) -> Tensor:
    if bool((ids < 0).any() or (ids >= len(table)).any()):
        raise ValueError("there is no row for that id")
    return F.embedding(ids, table)


def embedded_by_product(ids: Tensor, table: Tensor) -> Tensor:
    same = ids.unsqueeze(-1) == torch.arange(len(table))
    if not same.any(-1).all():
        raise ValueError("there is no row for that id")
    return same.to(table.dtype) @ table


def embedded_by_loop(ids: Tensor, table: Tensor) -> Tensor:
    rows = []
    for i in ids.flatten().tolist():
        if i not in range(len(table)):
            raise ValueError(f"no row {i}")
        rows.append(table[i])
    return torch.stack(rows).reshape(*ids.shape, table.shape[1])


def embedded_by_selection(ids: Tensor, table: Tensor) -> Tensor:
    if not all(0 <= i < table.shape[0] for i in ids.flatten().tolist()):
        raise ValueError("there is no row for that id")
    return table.index_select(0, ids.flatten()).view(*ids.shape, table.shape[1])


EMBED = Check(
    reference=reference.embed,
    points=3,
    cases=embed_cases,
    misconceptions=[
        Misconception(
            "columns of the table are taken, not rows",
            embedded_columns,
            "The table has shape (V, D). Which axis counts tokens?",
        ),
        Misconception(
            "the rows are off by one",
            embedded_from_one,
            "Which row belongs to the token with the id 0?",
        ),
        Misconception(
            "an id outside the table is not refused with ValueError",
            embedded_without_a_look,
            "What does table[-1] give? And what kind of error is an index that is too large?",
        ),
        Misconception(
            "a negative id counts from the end of the table",
            embedded_but_for_negatives,
            "No token has the id -1. What does table[-1] give?",
        ),
        Misconception(
            "an id outside the table gets the nearest row",
            embedded_clamped,
            "A wrong id that looks right: who would notice?",
        ),
        Misconception(
            "the ids' shape is lost: all vectors stand in one list",
            embedded_flat,
            "For ids of shape (2, 3) and D = 6, how many dimensions has the result?",
        ),
        Misconception(
            "the first rows are returned, whatever the ids",
            embedded_first_rows,
            "For the ids [2, 0, 2], which row of the table comes first?",
        ),
        Misconception(
            "the result is always float32, whatever the table holds",
            embedded_in_float32,
            "If the table is bfloat16, should each of its rows become twice as large?",
        ),
        Misconception(
            "the vectors of a text are summed into one",
            embedded_summed,
            "Three tokens have three vectors. How many have you?",
        ),
        Misconception(
            "the one-hot vectors are returned, not their product with the table",
            embedded_as_one_hot,
            "The last dimension should be D. How long is it in your result?",
        ),
        Misconception(
            "each token is looked up once, in the order of ids",
            embedded_once_each,
            "For the ids [2, 0, 2], how many vectors must come out, and in which order?",
        ),
    ],
    variants=[embedded_built_in, embedded_by_product, embedded_by_loop, embedded_by_selection],
)


# Questions ---------------------------------------------------------------------------------------

UTF8_BYTES = Question(
    "utf8_bytes",
    answer=12.0,
    tolerance=(0.0, 0.5),
    misconceptions=[
        Misconception(
            "characters are counted, not bytes",
            7.0,
            "How many bytes has é, and how many has 東?",
        ),
        Misconception(
            "each character beyond ASCII is counted with two bytes",
            10.0,
            "é has two bytes. The list above shows 東: how many has it?",
        ),
        Misconception(
            "one byte is missing: the space's, or the second one of é",
            11.0,
            "Go through c, a, f, é, space, 東, 京 one by one. How many bytes has each?",
        ),
        Misconception(
            "each character is counted with two bytes",
            14.0,
            "UTF-8 gives each character one to four bytes. How many has the letter a?",
        ),
        Misconception(
            "each character is counted with four bytes",
            28.0,
            "UTF-8 gives each character one to four bytes. How many has the letter a?",
        ),
    ],
)

GPT2_MERGES = Question(
    "gpt2_merges",
    answer=50_000.0,
    tolerance=(0.0, 0.5),
    misconceptions=[
        Misconception(
            "the 256 bytes are counted as merges",
            50_256.0,
            "Which tokens are there before the first merge?",
        ),
        Misconception(
            "the token that was put in by hand is counted as a merge",
            50_001.0,
            "Which two tokens would have to be merged into <|endoftext|>?",
        ),
        Misconception(
            "every token is counted as a merge",
            50_257.0,
            "Which tokens are there before the first merge?",
        ),
    ],
)

THREE_DOGS = Question(
    "three_dogs",
    answer="d",
    choices=("a", "b", "c", "d"),
    misconceptions=[
        Misconception(
            "different tokens are taken to share a row",
            "a",
            "Three tokens have three ids. Which rows do three ids look up?",
        ),
        Misconception(
            "the embedding is taken to see the letters of a token",
            "b",
            "What goes into the look-up: the token's letters, or its id?",
        ),
        Misconception(
            "ids are taken for quantities",
            "c",
            "An id is a name. Does the look-up ask whether 32 is near 33?",
        ),
    ],
)

EMBEDDING_PARAMETERS = Question(
    "embedding_parameters",
    points=2,
    answer=49_152.0 * 576,
    tolerance=(0.0, 0.5),
    misconceptions=[
        Misconception(
            "the two sizes are added",
            49_152.0 + 576,
            "How many rows, and how many numbers in each of them?",
        ),
        Misconception(
            "one table is counted for each of the 30 layers",
            30.0 * 49_152 * 576,
            "How often is a token looked up on its way through the model?",
        ),
        Misconception(
            "the table is square: one-hot vectors are counted, not embeddings",
            49_152.0 * 49_152,
            "How many numbers has one row, V or D?",
        ),
        Misconception(
            "these are bytes, four for each number",
            4.0 * 49_152 * 576,
            "The question asks for parameters. How many bytes each takes is another question.",
        ),
        Misconception(
            "one row is counted",
            576.0,
            "That is one token's vector. How many tokens are there?",
        ),
    ],
)

DOUBLE_VOCABULARY = Question(
    "double_vocabulary",
    answer="b",
    choices=("a", "b", "c", "d"),
    misconceptions=[
        Misconception(
            "texts are taken to shrink as fast as the vocabulary grows",
            "a",
            "Look at the curves of section 8: four times as many merges, and how much is gained?",
        ),
        Misconception(
            "the table is taken to be the only part that matters",
            "c",
            "What do the tokens that were added stand for? Is the text still cut as before?",
        ),
        Misconception(
            "unknown words are taken to be a matter of the vocabulary's size",
            "d",
            "Which texts can be written in the 256 bytes alone?",
        ),
    ],
)
