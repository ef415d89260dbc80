"""Chapter 11: the same model, asked in different ways."""

import itertools
import math

import torch
from torch import Generator, Tensor
from torch.nn.utils.rnn import pad_sequence

from autograder.check import Case, Check, Misconception, Question
from llmkit import prompting as reference

# Wrong solutions and variants are written as a student would write them, without llmkit: a class
# of synthetic students is made of their source.

TEMPLATE = "Text: {text}\nAnswer: {answer}"
REVIEW = "Review: {text}\nSentiment: {answer}"
LINES = "Question:\n{text}\nAnswer:\n{answer}"
SUM = "{text} = {answer}."
ARROW = "{text} -> {answer}"
WORDS = ["amber", "brisk", "cedar", "dune", "ember", "frost", "grove", "harbour", "ivory", "jolly"]


def whole(rng: Generator, high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=rng)


def words(rng: Generator, number: int) -> list[str]:
    """Different words, in random order, each with a number of its own."""
    order = torch.randperm(len(WORDS), generator=rng)[:number].tolist()
    return [f"{WORDS[i]} {int(whole(rng, 900, 1)) + 100}" for i in order]


# zero_shot_prompt --------------------------------------------------------------------------------


def zero_shot_cases(rng: Generator) -> list[Case]:
    a, b, c, d, e = words(rng, 5)
    return [
        Case("clumsy", "Good or bad?").titled("an instruction and a query"),
        Case(a).titled("no instruction"),
        Case(b, template=REVIEW, instruction=c).titled("another template"),
        Case(d, template=SUM).titled("a template that goes on behind the answer"),
        Case(e, "Be brief.", LINES).titled("an answer on a line of its own"),
        Case(f"What is {{answer}} in {a}?", b).titled("a query that looks like a template"),
    ]


def zero_with_space(query: str, instruction: str = "", template: str = TEMPLATE) -> str:
    prompt = template.split("{answer}")[0].replace("{text}", query)
    return f"{instruction}\n\n{prompt}" if instruction else prompt


def zero_with_placeholder(query: str, instruction: str = "", template: str = TEMPLATE) -> str:
    prompt = template.replace("{text}", query)
    return f"{instruction}\n\n{prompt}" if instruction else prompt


def zero_one_newline(query: str, instruction: str = "", template: str = TEMPLATE) -> str:
    prompt = template.split("{answer}")[0].rstrip(" ").replace("{text}", query)
    return f"{instruction}\n{prompt}" if instruction else prompt


def zero_empty_instruction(query: str, instruction: str = "", template: str = TEMPLATE) -> str:
    prompt = template.split("{answer}")[0].rstrip(" ").replace("{text}", query)
    return f"{instruction}\n\n{prompt}"


def zero_keeps_the_rest(query: str, instruction: str = "", template: str = TEMPLATE) -> str:
    prompt = template.format(text=query, answer="").rstrip(" ")
    return f"{instruction}\n\n{prompt}" if instruction else prompt


def zero_one_template(query: str, instruction: str = "", template: str = TEMPLATE) -> str:
    prompt = f"Text: {query}\nAnswer:"
    return f"{instruction}\n\n{prompt}" if instruction else prompt


def zero_fills_before_it_cuts(query: str, instruction: str = "", template: str = TEMPLATE) -> str:
    prompt = template.replace("{text}", query).split("{answer}")[0].rstrip(" ")
    return f"{instruction}\n\n{prompt}" if instruction else prompt


def zero_strips_newlines(query: str, instruction: str = "", template: str = TEMPLATE) -> str:
    prompt = template.split("{answer}")[0].rstrip().replace("{text}", query)
    return f"{instruction}\n\n{prompt}" if instruction else prompt


def zero_instruction_last(query: str, instruction: str = "", template: str = TEMPLATE) -> str:
    prompt = template.split("{answer}")[0].rstrip(" ").replace("{text}", query)
    return f"{prompt}\n\n{instruction}" if instruction else prompt


def zero_no_instruction(query: str, instruction: str = "", template: str = TEMPLATE) -> str:
    return template.split("{answer}")[0].rstrip(" ").replace("{text}", query)


def zero_by_position(query: str, instruction: str = "", template: str = TEMPLATE) -> str:
    cut = template[: template.index("{answer}")]
    while cut.endswith(" "):
        cut = cut[:-1]
    before, after = cut.split("{text}")
    head = instruction + "\n\n" if instruction else ""
    return head + before + query + after


def zero_by_format(query: str, instruction: str = "", template: str = TEMPLATE) -> str:
    question, _, _ = template.partition("{answer}")
    parts = [instruction, question.rstrip(" ").format(text=query)]
    return "\n\n".join(part for part in parts if part)


def zero_by_join(query: str, instruction: str = "", template: str = TEMPLATE) -> str:
    before = query.join(template.split("{answer}")[0].rstrip(" ").split("{text}"))
    return "\n\n".join([instruction, before] if instruction else [before])


ZERO_SHOT_PROMPT = Check(
    reference=reference.zero_shot_prompt,
    points=2,
    cases=zero_shot_cases,
    misconceptions=[
        Misconception(
            "the prompt ends with the space that belongs to the answer",
            zero_with_space,
            'Where does the space stand in the token of " Paris"? Who has to write it?',
        ),
        Misconception(
            "{answer} still stands in the prompt",
            zero_with_placeholder,
            "What should stand where the answer will come: a name for it, or nothing yet?",
        ),
        Misconception(
            "one newline, not an empty line, follows the instruction",
            zero_one_newline,
            "How many newlines does it take to leave a line empty?",
        ),
        Misconception(
            "a prompt without an instruction begins with an empty line",
            zero_empty_instruction,
            "What is the very first character of your prompt when there is no instruction?",
        ),
        Misconception(
            "what follows {answer} in the template is kept",
            zero_keeps_the_rest,
            "Should the full stop behind an answer come before the answer?",
        ),
        Misconception(
            "the template is not used: it is always Text: … Answer:",
            zero_one_template,
            "What does your function do with `template`?",
        ),
        Misconception(
            "the template is cut after the query is filled in, so a query can cut it",
            zero_fills_before_it_cuts,
            "What if somebody asks about the word {answer}? Which should come first?",
        ),
        Misconception(
            "newlines are cut off before the answer as well as spaces",
            zero_strips_newlines,
            "Which characters does `rstrip()` remove when you do not tell it which?",
        ),
        Misconception(
            "the instruction stands behind the query",
            zero_instruction_last,
            "The model goes on from the end of the prompt. What must stand there?",
        ),
        Misconception(
            "the instruction is left out",
            zero_no_instruction,
            "What does your function do with `instruction`?",
        ),
    ],
    variants=[zero_by_position, zero_by_format, zero_by_join],
)


# few_shot_prompt ---------------------------------------------------------------------------------


def few_shot_cases(rng: Generator) -> list[Case]:
    a, b, c, d, e, f = words(rng, 6)
    return [
        Case([("dull", "bad"), ("warm and wise", "good")], "clumsy", "Good or bad?").titled(
            "two demonstrations and an instruction"
        ),
        Case([(a, b), (c, d), (e, f)], c, template=REVIEW).titled(
            "one of the demonstrations is the query"
        ),
        Case([], a, b).titled("no demonstration"),
        Case([(b, "yes"), (a[:4], "no"), (c, "yes")], a, template=SUM).titled(
            "a demonstration that is a part of the query"
        ),
        Case([(f, a), (d, b), (f, c), (e, a)], f, "Go on.", LINES).titled(
            "the query stands among the demonstrations twice"
        ),
        Case([(e, d), (c, "hot"), (b, d)], f, template=ARROW).titled("arrows"),
    ]


def few_with_leak(demonstrations, query, instruction="", template=TEMPLATE):
    before, after = template.split("{answer}")
    parts = [instruction] if instruction else []
    for text, answer in demonstrations:
        parts.append(before.replace("{text}", text) + answer + after)
    parts.append(before.rstrip(" ").replace("{text}", query))
    return "\n\n".join(parts)


def few_query_first(demonstrations, query, instruction="", template=TEMPLATE):
    before, after = template.split("{answer}")
    parts = [instruction] if instruction else []
    parts.append(before.rstrip(" ").replace("{text}", query))
    for text, answer in demonstrations:
        if text != query:
            parts.append(before.replace("{text}", text) + answer + after)
    return "\n\n".join(parts)


def few_unanswered(demonstrations, query, instruction="", template=TEMPLATE):
    before = template.split("{answer}")[0].rstrip(" ")
    parts = [instruction] if instruction else []
    parts += [before.replace("{text}", text) for text, _ in demonstrations if text != query]
    return "\n\n".join([*parts, before.replace("{text}", query)])


def few_one_newline(demonstrations, query, instruction="", template=TEMPLATE):
    before, after = template.split("{answer}")
    parts = [instruction] if instruction else []
    for text, answer in demonstrations:
        if text != query:
            parts.append(before.replace("{text}", text) + answer + after)
    return "\n".join([*parts, before.rstrip(" ").replace("{text}", query)])


def few_glued(demonstrations, query, instruction="", template=TEMPLATE):
    before, after = template.split("{answer}")
    before = before.rstrip(" ")
    parts = [instruction] if instruction else []
    for text, answer in demonstrations:
        if text != query:
            parts.append(before.replace("{text}", text) + answer + after)
    return "\n\n".join([*parts, before.replace("{text}", query)])


def few_instruction_each_time(demonstrations, query, instruction="", template=TEMPLATE):
    before, after = template.split("{answer}")
    head = instruction + "\n\n" if instruction else ""
    parts = []
    for text, answer in demonstrations:
        if text != query:
            parts.append(head + before.replace("{text}", text) + answer + after)
    return "\n\n".join([*parts, head + before.rstrip(" ").replace("{text}", query)])


def few_with_space(demonstrations, query, instruction="", template=TEMPLATE):
    before, after = template.split("{answer}")
    parts = [instruction] if instruction else []
    for text, answer in demonstrations:
        if text != query:
            parts.append(before.replace("{text}", text) + answer + after)
    return "\n\n".join([*parts, before.replace("{text}", query)])


def few_reversed(demonstrations, query, instruction="", template=TEMPLATE):
    before, after = template.split("{answer}")
    parts = [instruction] if instruction else []
    for text, answer in reversed(demonstrations):
        if text != query:
            parts.append(before.replace("{text}", text) + answer + after)
    return "\n\n".join([*parts, before.rstrip(" ").replace("{text}", query)])


def few_no_instruction(demonstrations, query, instruction="", template=TEMPLATE):
    before, after = template.split("{answer}")
    parts = []
    for text, answer in demonstrations:
        if text != query:
            parts.append(before.replace("{text}", text) + answer + after)
    return "\n\n".join([*parts, before.rstrip(" ").replace("{text}", query)])


def few_leaves_out_parts(demonstrations, query, instruction="", template=TEMPLATE):
    before, after = template.split("{answer}")
    parts = [instruction] if instruction else []
    for text, answer in demonstrations:
        if text not in query:
            parts.append(before.replace("{text}", text) + answer + after)
    return "\n\n".join([*parts, before.rstrip(" ").replace("{text}", query)])


def few_one_leak_removed(demonstrations, query, instruction="", template=TEMPLATE):
    before, after = template.split("{answer}")
    texts = [text for text, _ in demonstrations]
    kept = list(demonstrations)
    if query in texts:
        del kept[texts.index(query)]
    parts = [instruction] if instruction else []
    for text, answer in kept:
        parts.append(before.replace("{text}", text) + answer + after)
    return "\n\n".join([*parts, before.rstrip(" ").replace("{text}", query)])


def few_by_format(demonstrations, query, instruction="", template=TEMPLATE):
    blocks = [template.format(text=t, answer=a) for t, a in demonstrations if t != query]
    blocks.append(template.partition("{answer}")[0].rstrip(" ").format(text=query))
    return "\n\n".join([instruction, *blocks] if instruction else blocks)


def few_by_adding(demonstrations, query, instruction="", template=TEMPLATE):
    prompt = instruction + "\n\n" if instruction else ""
    for demonstration in demonstrations:
        if demonstration[0] == query:
            continue
        filled = template.replace("{text}", demonstration[0])
        prompt += filled.replace("{answer}", demonstration[1]) + "\n\n"
    return prompt + template[: template.index("{answer}")].rstrip(" ").replace("{text}", query)


def few_by_filter(demonstrations, query, instruction="", template=TEMPLATE):
    others = filter(lambda pair: pair[0] != query, demonstrations)
    fill = lambda pair: template.replace("{answer}", pair[1]).replace("{text}", pair[0])
    question = template.split("{answer}")[0].rstrip(" ").replace("{text}", query)
    return "\n\n".join(part for part in [instruction, *map(fill, others), question] if part)


FEW_SHOT_PROMPT = Check(
    reference=reference.few_shot_prompt,
    points=3,
    cases=few_shot_cases,
    misconceptions=[
        Misconception(
            "the query is among its own demonstrations, with its answer",
            few_with_leak,
            "What does an accuracy mean if the answer stood in the prompt?",
        ),
        Misconception(
            "the query stands before the demonstrations",
            few_query_first,
            "The model goes on from the end of the prompt. What must stand there?",
        ),
        Misconception(
            "the demonstrations have no answers",
            few_unanswered,
            "What can a model learn from questions alone?",
        ),
        Misconception(
            "one newline stands between the parts, not an empty line",
            few_one_newline,
            "What tells the model where one demonstration ends, if each has two lines itself?",
        ),
        Misconception(
            "the space before an answer is missing in the demonstrations",
            few_glued,
            'Cut the space where the model is to go on. Does "Answer: bad" need it?',
        ),
        Misconception(
            "the instruction is repeated before each demonstration",
            few_instruction_each_time,
            "How often must one say what the task is?",
        ),
        Misconception(
            "the prompt ends with the space that belongs to the answer",
            few_with_space,
            "You solved this in Exercise 1. How does the last part differ from the others?",
        ),
        Misconception(
            "the demonstrations stand in reverse order",
            few_reversed,
            "Which demonstration of the list should stand next to the query?",
        ),
        Misconception(
            "the instruction is left out",
            few_no_instruction,
            "What does your function do with `instruction`?",
        ),
        Misconception(
            "a demonstration is left out if the query merely contains it",
            few_leaves_out_parts,
            'Is "art" in "start"? Is it the same text?',
        ),
        Misconception(
            "only the first demonstration of the query is left out",
            few_one_leak_removed,
            "What if the query stands among the demonstrations twice?",
        ),
    ],
    variants=[few_by_format, few_by_adding, few_by_filter],
)


# choice_batch ------------------------------------------------------------------------------------


def choice_batch_cases(rng: Generator) -> list[Case]:
    tokens = lambda number: (whole(rng, 90, number) + 10).tolist()
    return [
        Case([7, 8], [[5], [6, 9]]).titled("a short choice and a longer one"),
        Case(tokens(3), [tokens(2), tokens(4), tokens(1)], pad=99).titled("padded with 99"),
        Case(tokens(4), [[12, 0], [0], [31, 0, 0, 17]]).titled("a token that is 0 itself"),
        Case([40, 2, 40], [tokens(1), [2, 40, 2], tokens(2)], pad=2).titled(
            "a prompt that holds the padding's token"
        ),
        Case(tokens(5), [tokens(3)]).titled("a single choice"),
    ]


def batch_left(prompt: list[int], choices: list[list[int]], pad: int = 0):
    width = len(prompt) + max(len(choice) for choice in choices)
    ids, mask = [], []
    for choice in choices:
        fill = width - len(prompt) - len(choice)
        ids.append([pad] * fill + prompt + choice)
        mask.append([False] * (fill + len(prompt)) + [True] * len(choice))
    return torch.tensor(ids), torch.tensor(mask)


def batch_pad_inside(prompt: list[int], choices: list[list[int]], pad: int = 0):
    longest = max(len(choice) for choice in choices)
    ids, mask = [], []
    for choice in choices:
        fill = longest - len(choice)
        ids.append(prompt + [pad] * fill + choice)
        mask.append([False] * (len(prompt) + fill) + [True] * len(choice))
    return torch.tensor(ids), torch.tensor(mask)


def batch_counts_padding(prompt: list[int], choices: list[list[int]], pad: int = 0):
    longest = max(len(choice) for choice in choices)
    ids = [prompt + choice + [pad] * (longest - len(choice)) for choice in choices]
    mask = [[False] * len(prompt) + [True] * longest for _ in choices]
    return torch.tensor(ids), torch.tensor(mask)


def batch_counts_prompt(prompt: list[int], choices: list[list[int]], pad: int = 0):
    longest = max(len(choice) for choice in choices)
    ids, mask = [], []
    for choice in choices:
        fill = longest - len(choice)
        ids.append(prompt + choice + [pad] * fill)
        mask.append([True] * (len(prompt) + len(choice)) + [False] * fill)
    return torch.tensor(ids), torch.tensor(mask)


def batch_shifted(prompt: list[int], choices: list[list[int]], pad: int = 0):
    longest = max(len(choice) for choice in choices)
    ids, mask = [], []
    for choice in choices:
        fill = longest - len(choice)
        ids.append(prompt + choice + [pad] * fill)
        mask.append([False] * (len(prompt) - 1) + [True] * len(choice) + [False] * (fill + 1))
    return torch.tensor(ids), torch.tensor(mask)


def batch_truncated(prompt: list[int], choices: list[list[int]], pad: int = 0):
    shortest = min(len(choice) for choice in choices)
    ids = [prompt + choice[:shortest] for choice in choices]
    mask = [[False] * len(prompt) + [True] * shortest for _ in choices]
    return torch.tensor(ids), torch.tensor(mask)


def batch_zero_padding(prompt: list[int], choices: list[list[int]], pad: int = 0):
    longest = max(len(choice) for choice in choices)
    ids, mask = [], []
    for choice in choices:
        fill = longest - len(choice)
        ids.append(prompt + choice + [0] * fill)
        mask.append([False] * len(prompt) + [True] * len(choice) + [False] * fill)
    return torch.tensor(ids), torch.tensor(mask)


def batch_by_value(prompt: list[int], choices: list[list[int]], pad: int = 0):
    longest = max(len(choice) for choice in choices)
    ids = torch.tensor([prompt + choice + [pad] * (longest - len(choice)) for choice in choices])
    mask = ids != pad
    mask[:, : len(prompt)] = False
    return ids, mask


def batch_of_floats(prompt: list[int], choices: list[list[int]], pad: int = 0):
    longest = max(len(choice) for choice in choices)
    ids = torch.ones(len(choices), len(prompt) + longest) * pad
    mask = torch.zeros(len(choices), len(prompt) + longest, dtype=torch.bool)
    for i, choice in enumerate(choices):
        row = prompt + choice
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.float32)
        mask[i, len(prompt) : len(row)] = True
    return ids, mask


def batch_growing(prompt: list[int], choices: list[list[int]], pad: int = 0):
    rows, starts = [], []
    row = list(prompt)
    for choice in choices:
        starts.append(len(row))
        row = row + choice
        rows.append(row)
    width = max(len(row) for row in rows)
    ids = [row + [pad] * (width - len(row)) for row in rows]
    pairs = zip(rows, starts, strict=True)
    mask = [[start <= t < len(row) for t in range(width)] for row, start in pairs]
    return torch.tensor(ids), torch.tensor(mask)


def batch_by_lists(prompt: list[int], choices: list[list[int]], pad: int = 0):
    longest = max(map(len, choices))
    fills = [longest - len(choice) for choice in choices]
    ids = [[*prompt, *c, *[pad] * fill] for c, fill in zip(choices, fills, strict=True)]
    mask = [
        [False] * len(prompt) + [True] * len(c) + [False] * fill
        for c, fill in zip(choices, fills, strict=True)
    ]
    return torch.tensor(ids), torch.tensor(mask)


def batch_by_pad_sequence(prompt: list[int], choices: list[list[int]], pad: int = 0):
    rows = [torch.tensor([*prompt, *choice]) for choice in choices]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad)
    places = torch.arange(ids.shape[1])
    ends = torch.tensor([len(row) for row in rows])
    return ids, (places >= len(prompt)) & (places < ends[:, None])


def batch_by_loops(prompt: list[int], choices: list[list[int]], pad: int = 0):
    width = len(prompt) + max(len(choice) for choice in choices)
    ids = torch.zeros(len(choices), width, dtype=torch.long) + pad
    mask = torch.zeros(len(choices), width) > 0
    for n, choice in enumerate(choices):
        for t, token in enumerate(prompt):
            ids[n, t] = token
        for t, token in enumerate(choice):
            ids[n, len(prompt) + t] = token
            mask[n, len(prompt) + t] = True
    return ids, mask


CHOICE_BATCH = Check(
    reference=reference.choice_batch,
    points=3,
    cases=choice_batch_cases,
    misconceptions=[
        Misconception(
            "the padding stands on the left",
            batch_left,
            "Which tokens may a causal model look at? Who sees padding that stands first?",
        ),
        Misconception(
            "the padding stands between the prompt and the choice",
            batch_pad_inside,
            "Is the choice still what follows the prompt?",
        ),
        Misconception(
            "the padding counts as part of the choice",
            batch_counts_padding,
            "Does a choice get less likely because another one is longer?",
        ),
        Misconception(
            "the prompt counts as part of the choice",
            batch_counts_prompt,
            "Which tokens does a choice not share with the others?",
        ),
        Misconception(
            "the mask stands one position too far to the left",
            batch_shifted,
            "The mask marks the choice's own tokens. Which position has its first one?",
        ),
        Misconception(
            "choices are cut to the length of the shortest",
            batch_truncated,
            "Is the beginning of an answer the answer?",
        ),
        Misconception(
            "the padding is always 0: `pad` is not used",
            batch_zero_padding,
            "What does your function do when it is called with pad=99?",
        ),
        Misconception(
            "padding is recognized by its value, so a choice's own token can be taken for it",
            batch_by_value,
            "May a choice hold the token that you pad with?",
        ),
        Misconception(
            "the token ids are floating-point numbers",
            batch_of_floats,
            "An id is an index into a table. Of which dtype must an index be?",
        ),
        Misconception(
            "each row goes on from the row before: it holds the earlier choices too",
            batch_growing,
            "Does each choice follow the prompt, or the choices before it?",
        ),
    ],
    variants=[batch_by_lists, batch_by_pad_sequence, batch_by_loops],
)


# score_choices -----------------------------------------------------------------------------------


def score_cases(rng: Generator) -> list[Case]:
    def case(rows: int, width: int, vocabulary: int, starts: list[int], ends: list[int]):
        logits = 3 * torch.randn(rows, width, vocabulary, generator=rng)
        places = torch.arange(width)
        starts, ends = torch.tensor(starts)[:, None], torch.tensor(ends)[:, None]
        return logits, whole(rng, vocabulary, rows, width), (places >= starts) & (places < ends)

    third = math.log(3)
    hand = torch.tensor([[[0.0, third, 0.0], [third, 0.0, 0.0], [0.0, 0.0, 9.0]]])
    logits, ids, mask = case(3, 7, 11, [3, 3, 3], [5, 7, 4])
    impossible, its_ids, its_mask = case(2, 6, 5, [3, 3], [4, 6])
    impossible[0, 0, its_ids[0, 1]] = -math.inf
    narrow, narrow_ids, narrow_mask = case(4, 6, 9, [2, 2, 2, 2], [3, 4, 5, 6])
    strided, strided_ids, strided_mask = case(3, 8, 6, [1, 4, 2], [3, 6, 8])
    return [
        Case(hand, torch.tensor([[2, 1, 0]]), torch.tensor([[False, True, True]])).titled(
            "two tokens, each with probability 0.6"
        ),
        Case(logits, ids, mask).titled("three choices of different lengths"),
        Case(impossible, its_ids, its_mask).titled("a prompt's token that was impossible"),
        Case(narrow.bfloat16(), narrow_ids, narrow_mask).titled("logits in bfloat16"),
        Case(
            strided.transpose(0, 1).contiguous().transpose(0, 1), strided_ids, strided_mask
        ).titled("prompts of different lengths, transposed in memory"),
    ]


def score_unshifted(logits: Tensor, input_ids: Tensor, is_choice: Tensor):
    log_probs = torch.log_softmax(logits.float(), -1)
    picked = log_probs.gather(-1, input_ids[..., None])[..., 0]
    sums = torch.where(is_choice, picked, 0.0).sum(-1)
    return sums, sums / is_choice.sum(-1)


def score_prompt_too(logits: Tensor, input_ids: Tensor, is_choice: Tensor):
    log_probs = torch.log_softmax(logits[:, :-1].float(), -1)
    picked = log_probs.gather(-1, input_ids[:, 1:, None])[..., 0]
    return picked.sum(-1), picked.mean(-1)


def score_mean_of_all(logits: Tensor, input_ids: Tensor, is_choice: Tensor):
    log_probs = torch.log_softmax(logits[:, :-1].float(), -1)
    picked = log_probs.gather(-1, input_ids[:, 1:, None])[..., 0]
    kept = torch.where(is_choice[:, 1:], picked, 0.0)
    return kept.sum(-1), kept.mean(-1)


def score_raw_logits(logits: Tensor, input_ids: Tensor, is_choice: Tensor):
    picked = logits[:, :-1].float().gather(-1, input_ids[:, 1:, None])[..., 0]
    sums = torch.where(is_choice[:, 1:], picked, 0.0).sum(-1)
    return sums, sums / is_choice.sum(-1)


def score_probabilities(logits: Tensor, input_ids: Tensor, is_choice: Tensor):
    probabilities = torch.softmax(logits[:, :-1].float(), -1)
    picked = probabilities.gather(-1, input_ids[:, 1:, None])[..., 0]
    sums = torch.where(is_choice[:, 1:], picked, 0.0).sum(-1)
    return sums, sums / is_choice.sum(-1)


def score_in_bits(logits: Tensor, input_ids: Tensor, is_choice: Tensor):
    log_probs = torch.log_softmax(logits[:, :-1].float(), -1) / math.log(2)
    picked = log_probs.gather(-1, input_ids[:, 1:, None])[..., 0]
    sums = torch.where(is_choice[:, 1:], picked, 0.0).sum(-1)
    return sums, sums / is_choice.sum(-1)


def score_as_loss(logits: Tensor, input_ids: Tensor, is_choice: Tensor):
    log_probs = torch.log_softmax(logits[:, :-1].float(), -1)
    picked = log_probs.gather(-1, input_ids[:, 1:, None])[..., 0]
    sums = -torch.where(is_choice[:, 1:], picked, 0.0).sum(-1)
    return sums, sums / is_choice.sum(-1)


def score_softmax_over_positions(logits: Tensor, input_ids: Tensor, is_choice: Tensor):
    log_probs = torch.log_softmax(logits[:, :-1].float(), 1)
    picked = log_probs.gather(-1, input_ids[:, 1:, None])[..., 0]
    sums = torch.where(is_choice[:, 1:], picked, 0.0).sum(-1)
    return sums, sums / is_choice.sum(-1)


def score_mask_unshifted(logits: Tensor, input_ids: Tensor, is_choice: Tensor):
    log_probs = torch.log_softmax(logits[:, :-1].float(), -1)
    picked = log_probs.gather(-1, input_ids[:, 1:, None])[..., 0]
    sums = torch.where(is_choice[:, :-1], picked, 0.0).sum(-1)
    return sums, sums / is_choice.sum(-1)


def score_mask_times(logits: Tensor, input_ids: Tensor, is_choice: Tensor):
    log_probs = torch.log_softmax(logits[:, :-1].float(), -1)
    picked = log_probs.gather(-1, input_ids[:, 1:, None])[..., 0]
    sums = (picked * is_choice[:, 1:]).sum(-1)
    return sums, sums / is_choice.sum(-1)


def score_swapped(logits: Tensor, input_ids: Tensor, is_choice: Tensor):
    log_probs = torch.log_softmax(logits[:, :-1].float(), -1)
    picked = log_probs.gather(-1, input_ids[:, 1:, None])[..., 0]
    sums = torch.where(is_choice[:, 1:], picked, 0.0).sum(-1)
    return sums / is_choice.sum(-1), sums


def score_in_given_dtype(logits: Tensor, input_ids: Tensor, is_choice: Tensor):
    log_probs = torch.log_softmax(logits[:, :-1], -1)
    picked = log_probs.gather(-1, input_ids[:, 1:, None])[..., 0]
    sums = picked.masked_fill(~is_choice[:, 1:], 0).sum(-1)
    return sums, sums / is_choice.sum(-1)


def score_by_loops(logits: Tensor, input_ids: Tensor, is_choice: Tensor):
    sums, means = [], []
    for n in range(len(logits)):
        terms = []
        for t in range(1, input_ids.shape[1]):
            if is_choice[n, t]:
                row = logits[n, t - 1].float()
                terms.append(row[input_ids[n, t]] - torch.logsumexp(row, 0))
        sums.append(torch.stack(terms).sum())
        means.append(torch.stack(terms).mean())
    return torch.stack(sums), torch.stack(means)


def score_by_loss(logits: Tensor, input_ids: Tensor, is_choice: Tensor):
    targets = input_ids[:, 1:].masked_fill(~is_choice[:, 1:], -100)
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), targets, reduction="none"
    )
    return -losses.sum(-1), -losses.sum(-1) / (targets != -100).sum(-1)


def score_by_indexing(logits: Tensor, input_ids: Tensor, is_choice: Tensor):
    rows, places = is_choice.nonzero(as_tuple=True)
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    terms = log_probs[rows, places - 1, input_ids[rows, places]]
    sums = torch.zeros(len(logits)).index_add(0, rows, terms)
    return sums, sums / torch.bincount(rows, minlength=len(logits))


SCORE_CHOICES = Check(
    reference=reference.score_choices,
    points=5,
    cases=score_cases,
    misconceptions=[
        Misconception(
            "the logits at a token are taken to predict that token itself",
            score_unshifted,
            "What do the logits at position t say: which token stands at t, or at t + 1?",
        ),
        Misconception(
            "the prompt and the padding are scored too",
            score_prompt_too,
            "Which tokens does `is_choice` tell you to count?",
        ),
        Misconception(
            "the mean divides by the length of the row, not of the choice",
            score_mean_of_all,
            "How many tokens are in your sum?",
        ),
        Misconception(
            "raw logits are added up: they are no logarithms of probabilities yet",
            score_raw_logits,
            "Add 100 to all logits of a row. Does the model believe anything else than before?",
        ),
        Misconception(
            "probabilities are added where their logarithms should be",
            score_probabilities,
            "What is the probability that two things happen one after the other?",
        ),
        Misconception(
            "these are bits, not nats",
            score_in_bits,
            "Which logarithm gives nats?",
        ),
        Misconception(
            "these are losses: the sign is turned round",
            score_as_loss,
            "Should the likeliest choice have the highest score, or the lowest?",
        ),
        Misconception(
            "softmax runs over the positions, not over the vocabulary",
            score_softmax_over_positions,
            "Which of the dimensions (N, T, V) holds the tokens that compete with each other?",
        ),
        Misconception(
            "the logits are shifted and the mask is not",
            score_mask_unshifted,
            "After the shift, column 0 is about token 1. Which token has column 0 of the mask?",
        ),
        Misconception(
            "the mask is multiplied, and 0 times −inf is NaN",
            score_mask_times,
            "What is 0 times minus infinity to a computer? Which function chooses without it?",
        ),
        Misconception(
            "the mean comes first and the sum second",
            score_swapped,
            "In which order does the docstring name the two results?",
        ),
        Misconception(
            "the scores are computed in the dtype of the logits",
            score_in_given_dtype,
            "bfloat16 keeps about three digits. What is left of them after a sum?",
        ),
    ],
    variants=[score_by_loops, score_by_loss, score_by_indexing],
)


# pmi_choice --------------------------------------------------------------------------------------


def pmi_cases(rng: Generator) -> list[Case]:
    sums = lambda *shape: -9 * torch.rand(*shape, generator=rng) - 0.5
    return [
        Case(torch.tensor([[-1.0, -2.0], [-0.5, -4.0]]), torch.tensor([-0.7, -2.5])).titled(
            "a prior that turns the first question round"
        ),
        Case(sums(40, 5), sums(5)).titled("forty questions with five choices"),
        Case(sums(6), sums(6)).titled("one question, of shape (N,)"),
        Case(sums(7, 30).double().T, sums(7).double()).titled("float64, transposed in memory"),
        Case(sums(3, 9, 4), sums(4)).titled("a batch of batches"),
    ]


def pmi_no_prior(sums: Tensor, priors: Tensor) -> Tensor:
    return sums.argmax(-1)


def pmi_added(sums: Tensor, priors: Tensor) -> Tensor:
    return (sums + priors).argmax(-1)


def pmi_least(sums: Tensor, priors: Tensor) -> Tensor:
    return (sums - priors).argmin(-1)


def pmi_first_dimension(sums: Tensor, priors: Tensor) -> Tensor:
    return (sums - priors).argmax(0)


def pmi_of_probabilities(sums: Tensor, priors: Tensor) -> Tensor:
    return (sums.exp() - priors.exp()).argmax(-1)


def pmi_ratio(sums: Tensor, priors: Tensor) -> Tensor:
    return (sums / priors).argmax(-1)


def pmi_scores(sums: Tensor, priors: Tensor) -> Tensor:
    return (sums - priors).max(-1).values


def pmi_only_prior(sums: Tensor, priors: Tensor) -> Tensor:
    return priors.expand_as(sums).argmax(-1)


def pmi_differences(sums: Tensor, priors: Tensor) -> Tensor:
    return sums - priors


def pmi_by_ratio_of_probabilities(sums: Tensor, priors: Tensor) -> Tensor:
    return torch.argmax(sums.exp() / priors.exp(), dim=-1)


def pmi_by_sorting(sums: Tensor, priors: Tensor) -> Tensor:
    return torch.sort(sums - priors, dim=-1, descending=True).indices[..., 0]


def pmi_by_loops(sums: Tensor, priors: Tensor) -> Tensor:
    prior, best = priors.tolist(), []
    for row in sums.reshape(-1, sums.shape[-1]).tolist():
        raised = [score - p for score, p in zip(row, prior, strict=True)]
        best.append(raised.index(max(raised)))
    return torch.tensor(best).reshape(sums.shape[:-1])


PMI_CHOICE = Check(
    reference=reference.pmi_choice,
    points=2,
    cases=pmi_cases,
    misconceptions=[
        Misconception(
            "the priors are not used",
            pmi_no_prior,
            "What did the model say of each choice before it saw the question?",
        ),
        Misconception(
            "the priors are added: what was likely anyway is favoured twice",
            pmi_added,
            "To see what the question changed, do you add what was there before, or take it away?",
        ),
        Misconception(
            "the choice that the prompt raises least is taken",
            pmi_least,
            "Is the answer where the difference is largest, or smallest?",
        ),
        Misconception(
            "the best question for each choice is found, not the best choice for each question",
            pmi_first_dimension,
            "Which dimension holds the choices?",
        ),
        Misconception(
            "probabilities are subtracted, not their logarithms",
            pmi_of_probabilities,
            "From 0.001 to 0.01, or from 0.90 to 0.91: which did the prompt raise more?",
        ),
        Misconception(
            "a log-probability is divided by another one",
            pmi_ratio,
            "The logarithm of a quotient is what of the two logarithms?",
        ),
        Misconception(
            "the score of the best choice is given, not its index",
            pmi_scores,
            "Does the docstring ask how much, or which?",
        ),
        Misconception(
            "only the priors decide: the question is not used",
            pmi_only_prior,
            "Can one answer be right for all questions?",
        ),
        Misconception(
            "the differences are given, and nothing is chosen",
            pmi_differences,
            "Which shape does the docstring promise?",
        ),
    ],
    variants=[pmi_by_ratio_of_probabilities, pmi_by_sorting, pmi_by_loops],
)


# wilson_interval ---------------------------------------------------------------------------------


def wilson_cases(rng: Generator) -> list[Case]:
    trials = int(whole(rng, 60, 1)) + 20
    some = int(whole(rng, trials // 4, 1)) + trials // 5
    return [
        Case(30, 40).titled("30 of 40"),
        Case(1, 29).titled("1 of 29"),
        Case(0, 20).titled("none of 20"),
        Case(20, 20).titled("all of 20"),
        Case(some, trials, z=2.575829).titled("99 % confidence"),
        Case(some, trials, 1.0).titled("z = 1"),
        Case(1, 1).titled("a single trial"),
        Case(some + 400, trials + 900).titled("many trials"),
    ]


def wilson_wald(successes: int, trials: int, z: float = 1.959964):
    p = successes / trials
    reach = z * math.sqrt(p * (1 - p) / trials)
    return p - reach, p + reach


def wilson_wald_clipped(successes: int, trials: int, z: float = 1.959964):
    p = successes / trials
    reach = z * math.sqrt(p * (1 - p) / trials)
    return max(p - reach, 0.0), min(p + reach, 1.0)


def wilson_undivided(successes: int, trials: int, z: float = 1.959964):
    p = successes / trials
    center = p + z**2 / (2 * trials)
    reach = z * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    return center - reach, center + reach


def wilson_half_divided(successes: int, trials: int, z: float = 1.959964):
    p = successes / trials
    center = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    reach = z * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    return center - reach, center + reach


def wilson_around_p(successes: int, trials: int, z: float = 1.959964):
    p = successes / trials
    reach = z * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    reach /= 1 + z**2 / trials
    return p - reach, p + reach


def wilson_fixed_z(successes: int, trials: int, z: float = 1.959964):
    z, p = 1.959964, successes / trials
    center = p + z**2 / (2 * trials)
    reach = z * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    return (center - reach) / (1 + z**2 / trials), (center + reach) / (1 + z**2 / trials)


def wilson_z_not_squared(successes: int, trials: int, z: float = 1.959964):
    p = successes / trials
    center = p + z / (2 * trials)
    reach = z * math.sqrt(p * (1 - p) / trials + z / (4 * trials**2))
    return (center - reach) / (1 + z / trials), (center + reach) / (1 + z / trials)


def wilson_no_root(successes: int, trials: int, z: float = 1.959964):
    p = successes / trials
    center = p + z**2 / (2 * trials)
    reach = z * (p * (1 - p) / trials + z**2 / (4 * trials**2))
    return (center - reach) / (1 + z**2 / trials), (center + reach) / (1 + z**2 / trials)


def wilson_high_first(successes: int, trials: int, z: float = 1.959964):
    p = successes / trials
    center = p + z**2 / (2 * trials)
    reach = z * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    return (center + reach) / (1 + z**2 / trials), (center - reach) / (1 + z**2 / trials)


def wilson_center_and_reach(successes: int, trials: int, z: float = 1.959964):
    p = successes / trials
    center = p + z**2 / (2 * trials)
    reach = z * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    return center / (1 + z**2 / trials), reach / (1 + z**2 / trials)


def wilson_by_roots(successes: int, trials: int, z: float = 1.959964):
    p = successes / trials  # the two q for which (p - q)² = z² q (1 - q) / n
    a, b, c = 1 + z * z / trials, -2 * p - z * z / trials, p * p
    root = math.sqrt(max(b * b - 4 * a * c, 0.0))
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def wilson_by_counts(successes: int, trials: int, z: float = 1.959964):
    failures = trials - successes
    center = (successes + z**2 / 2) / (trials + z**2)
    reach = z / (trials + z**2) * (successes * failures / trials + z**2 / 4) ** 0.5
    return max(0.0, center - reach), min(1.0, center + reach)


def wilson_by_torch(successes: int, trials: int, z: float = 1.959964):
    n = torch.tensor(float(trials), dtype=torch.float64)
    p = successes / n
    signs = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    reach = signs * z * (p * (1 - p) / n + z**2 / (4 * n**2)).sqrt()
    low, high = ((p + z**2 / (2 * n) + reach) / (1 + z**2 / n)).clamp(0, 1).tolist()
    return low, high


WILSON_INTERVAL = Check(
    reference=reference.wilson_interval,
    points=3,
    cases=wilson_cases,
    misconceptions=[
        Misconception(
            "this is p ± z·√(p(1−p)/n), which is a point when all or none succeed",
            wilson_wald,
            "After 20 successes in 20 trials, are you certain that the next one succeeds?",
        ),
        Misconception(
            "this is p ± z·√(p(1−p)/n), cut off at 0 and 1",
            wilson_wald_clipped,
            "Cutting keeps the ends in range. Is the interval of 0 of 20 still a point?",
        ),
        Misconception(
            "the division by 1 + z²/n is missing",
            wilson_undivided,
            "What does the formula divide by? Is your upper end of 20 of 20 above 1?",
        ),
        Misconception(
            "only the centre is divided by 1 + z²/n",
            wilson_half_divided,
            "How far does the fraction bar of the formula reach?",
        ),
        Misconception(
            "the interval is centred on p",
            wilson_around_p,
            "With p = 1, can the truth lie above p as well as below?",
        ),
        Misconception(
            "z is always 1.959964: the argument is not used",
            wilson_fixed_z,
            "Should an interval that holds 99 % be as wide as one that holds 95 %?",
        ),
        Misconception(
            "z is not squared where the formula squares it",
            wilson_z_not_squared,
            "How often does z² stand in the formula?",
        ),
        Misconception(
            "the square root is missing",
            wilson_no_root,
            "How does the width of an interval shrink with n: as 1/n, or as 1/√n?",
        ),
        Misconception(
            "the upper end comes first",
            wilson_high_first,
            "In which order does the docstring name the ends?",
        ),
        Misconception(
            "the centre and the reach are given, not the two ends",
            wilson_center_and_reach,
            "Where does the interval begin, and where does it end?",
        ),
    ],
    variants=[wilson_by_roots, wilson_by_counts, wilson_by_torch],
)


# accuracy_by_shots -------------------------------------------------------------------------------


def accuracy_cases(rng: Generator) -> list[Case]:
    def trials(number: int) -> list[bool]:
        return [True, True, False, *(torch.rand(number, generator=rng) < 0.7).tolist()]

    return [
        Case({0: [True, False, True, True], 1: [False, True]}).titled("four trials, and two"),
        Case({0: trials(30), 4: trials(50), 8: trials(21)}).titled("three numbers of shots"),
        Case({16: trials(40), 2: trials(25)}, z=2.575829).titled("99 % confidence"),
        Case({0: [False] * 12, 32: [True] * 17}).titled("all wrong, all right"),
        Case({5: trials(60)}, 1.0).titled("a single number of shots, z = 1"),
    ]


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    p = successes / trials
    center = p + z**2 / (2 * trials)
    reach = z * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    low, high = (center - reach) / (1 + z**2 / trials), (center + reach) / (1 + z**2 / trials)
    return max(low, 0.0), min(high, 1.0)


def accuracy_counts(correct, z=1.959964):
    return {k: (sum(r), *wilson(sum(r), len(r), z)) for k, r in correct.items()}


def accuracy_pooled(correct, z=1.959964):
    everything = [right for r in correct.values() for right in r]
    interval = wilson(sum(everything), len(everything), z)
    return {k: (sum(r) / len(r), *interval) for k, r in correct.items()}


def accuracy_half_width(correct, z=1.959964):
    result = {}
    for k, r in correct.items():
        low, high = wilson(sum(r), len(r), z)
        result[k] = (sum(r) / len(r), (high - low) / 2, (high - low) / 2)
    return result


def accuracy_distances(correct, z=1.959964):
    result = {}
    for k, r in correct.items():
        p, (low, high) = sum(r) / len(r), wilson(sum(r), len(r), z)
        result[k] = (p, p - low, high - p)
    return result


def accuracy_fixed_z(correct, z=1.959964):
    return {k: (sum(r) / len(r), *wilson(sum(r), len(r))) for k, r in correct.items()}


def accuracy_of_errors(correct, z=1.959964):
    result = {}
    for k, r in correct.items():
        wrong = len(r) - sum(r)
        result[k] = (wrong / len(r), *wilson(wrong, len(r), z))
    return result


def accuracy_one_count(correct, z=1.959964):
    number = len(next(iter(correct.values())))
    result = {}
    for k, r in correct.items():
        hits = min(sum(r), number)
        result[k] = (hits / number, *wilson(hits, number, z))
    return result


def accuracy_of_middle(correct, z=1.959964):
    result = {}
    for k, r in correct.items():
        low, high = wilson(sum(r), len(r), z)
        result[k] = ((low + high) / 2, low, high)
    return result


def accuracy_in_the_middle(correct, z=1.959964):
    result = {}
    for k, r in correct.items():
        low, high = wilson(sum(r), len(r), z)
        result[k] = (low, sum(r) / len(r), high)
    return result


def accuracy_in_percent(correct, z=1.959964):
    result = {}
    for k, r in correct.items():
        low, high = wilson(sum(r), len(r), z)
        result[k] = (100 * sum(r) / len(r), 100 * low, 100 * high)
    return result


def accuracy_by_mean(correct, z=1.959964):
    result = {}
    for shots in sorted(correct):
        right = torch.tensor(correct[shots], dtype=torch.float64)
        low, high = wilson(int(right.sum()), right.numel(), z)
        result[shots] = (right.mean().item(), low, high)
    return result


def accuracy_by_counting(correct, z=1.959964):
    result = {}
    for shots, results in correct.items():
        hits = results.count(True)
        result[shots] = (hits / len(results), *wilson(hits, len(results), z))
    return dict(sorted(result.items()))


def accuracy_by_comprehension(correct, z=1.959964):
    return {
        k: (sum(r) / len(r), wilson(sum(r), len(r), z)[0], wilson(sum(r), len(r), z)[1])
        for k, r in sorted(correct.items())
    }


ACCURACY_BY_SHOTS = Check(
    reference=reference.accuracy_by_shots,
    points=2,
    cases=accuracy_cases,
    misconceptions=[
        Misconception(
            "right answers are counted, not divided by the number of trials",
            accuracy_counts,
            "Is 30 right answers a good result? What else must one know?",
        ),
        Misconception(
            "all numbers of shots share one interval",
            accuracy_pooled,
            "Which trials tell you something about 8 shots?",
        ),
        Misconception(
            "half the width of the interval is given, not its ends",
            accuracy_half_width,
            "Where does the interval begin, and where does it end?",
        ),
        Misconception(
            "the ends are given as distances from the accuracy",
            accuracy_distances,
            "Where does the interval begin, and where does it end?",
        ),
        Misconception(
            "z is not handed on to the interval",
            accuracy_fixed_z,
            "What does your function do with `z`?",
        ),
        Misconception(
            "wrong answers are counted as right",
            accuracy_of_errors,
            "What does True say of a trial?",
        ),
        Misconception(
            "the number of trials is taken from the first number of shots",
            accuracy_one_count,
            "Does each number of shots have the same number of trials?",
        ),
        Misconception(
            "the middle of the interval is given for the accuracy",
            accuracy_of_middle,
            "Is Wilson's interval centred on the share that you measured?",
        ),
        Misconception(
            "the accuracy stands between the ends of its interval",
            accuracy_in_the_middle,
            "In which order does the docstring name the three numbers?",
        ),
        Misconception(
            "these are percentages",
            accuracy_in_percent,
            "Between which two numbers does a share lie?",
        ),
    ],
    variants=[accuracy_by_mean, accuracy_by_counting, accuracy_by_comprehension],
)


# induction_guess ---------------------------------------------------------------------------------


def guess_cases(rng: Generator) -> list[Case]:
    a, b, c, d, e, f = (torch.randperm(900, generator=rng)[:6] + 10).tolist()
    return [
        Case([7, 3, 9, 7]).titled("seen once before"),
        Case([a, b, c, a, d, e, a]).titled("seen twice before, with two followers"),
        Case([a, b, c, d]).titled("never seen before"),
        Case([c, a, d, b, b]).titled("the same token twice in a row"),
        Case([f, a, f, c, b, f, c, f, d, e, f]).titled("followed by one token most often"),
        Case([e]).titled("a single token"),
        Case([d, c, b, a, f, e, d]).titled("seen at the very start"),
        Case([a, a, b, c, a, d, a, e, b, a, d, c, b]).titled("a longer text"),
    ]


def guess_first(tokens: list[int]) -> int | None:
    for i in range(len(tokens) - 1):
        if tokens[i] == tokens[-1]:
            return tokens[i + 1]
    return None


def guess_same(tokens: list[int]) -> int | None:
    return tokens[-1] if tokens[-1] in tokens[:-1] else None


def guess_before(tokens: list[int]) -> int | None:
    for i in range(len(tokens) - 2, 0, -1):
        if tokens[i] == tokens[-1]:
            return tokens[i - 1]
    return None


def guess_place(tokens: list[int]) -> int | None:
    for i in range(len(tokens) - 2, -1, -1):
        if tokens[i] == tokens[-1]:
            return i + 1
    return None


def guess_commonest(tokens: list[int]) -> int | None:
    followers = [tokens[i + 1] for i in range(len(tokens) - 1) if tokens[i] == tokens[-1]]
    return max(followers, key=followers.count) if followers else None


def guess_last_token(tokens: list[int]) -> int | None:
    for i in range(len(tokens) - 2, -1, -1):
        if tokens[i] == tokens[-1]:
            return tokens[i + 1]
    return tokens[-1]


def guess_stops_early(tokens: list[int]) -> int | None:
    for i in range(len(tokens) - 2, 0, -1):
        if tokens[i] == tokens[-1]:
            return tokens[i + 1]
    return None


def guess_not_next_door(tokens: list[int]) -> int | None:
    for i in range(len(tokens) - 3, -1, -1):
        if tokens[i] == tokens[-1]:
            return tokens[i + 1]
    return None


def guess_minus_one(tokens: list[int]) -> int | None:
    for i in range(len(tokens) - 2, -1, -1):
        if tokens[i] == tokens[-1]:
            return tokens[i + 1]
    return -1


def guess_by_dictionary(tokens: list[int]) -> int | None:
    followed = dict(itertools.pairwise(tokens))
    return followed.get(tokens[-1])


def guess_by_reversing(tokens: list[int]) -> int | None:
    last, *earlier = tokens[::-1]
    if last not in earlier:
        return None
    return [last, *earlier][earlier.index(last)]


def guess_by_list(tokens: list[int]) -> int | None:
    found = [b for a, b in itertools.pairwise(tokens) if a == tokens[-1]]
    return found[-1] if found else None


INDUCTION_GUESS = Check(
    reference=reference.induction_guess,
    points=2,
    cases=guess_cases,
    misconceptions=[
        Misconception(
            "the first time that the token stood there is taken, not the last",
            guess_first,
            "If a token stood there twice before, which of the two should count?",
        ),
        Misconception(
            "the token itself is repeated, not what followed it",
            guess_same,
            "A B … A: is the guess A, or B?",
        ),
        Misconception(
            "the token before is given, not the one that followed",
            guess_before,
            "A B … A: on which side of the first A does the guess stand?",
        ),
        Misconception(
            "the position of the guess is given, not its token",
            guess_place,
            "Does the docstring ask where, or which token?",
        ),
        Misconception(
            "the commonest follower is taken, as a bigram model would",
            guess_commonest,
            "That is chapter 01. Which follower came last?",
        ),
        Misconception(
            "a token that never stood before is repeated, where nothing can be guessed",
            guess_last_token,
            "What followed a token that has never stood there before?",
        ),
        Misconception(
            "the very first position is not searched",
            guess_stops_early,
            "Where does a loop down to, but without, 0 stop?",
        ),
        Misconception(
            "the position just before the last is not searched",
            guess_not_next_door,
            "In A A, what followed the first A?",
        ),
        Misconception(
            "−1 stands for no guess, and not None",
            guess_minus_one,
            "What does the docstring promise when there is nothing to guess from?",
        ),
    ],
    variants=[guess_by_dictionary, guess_by_reversing, guess_by_list],
)


# induction_score ---------------------------------------------------------------------------------


def score_heads_cases(rng: Generator) -> list[Case]:
    def weights(*shape: int) -> Tensor:
        scores = 2 * torch.randn(*shape, generator=rng)
        future = torch.ones(shape[-1], shape[-1], dtype=torch.bool).triu(1)
        return scores.masked_fill(future, -math.inf).softmax(-1)

    perfect = torch.zeros(6, 6).index_put(
        (torch.arange(6), torch.tensor([0, 0, 0, 1, 2, 3])), torch.ones(6)
    )
    return [
        Case(perfect, 3).titled("a perfect induction head"),
        Case(weights(2, 3, 10, 10), 5).titled("two layers of three heads, said twice"),
        Case(weights(4, 11, 11), 3).titled("four heads, said more than three times"),
        Case(weights(9, 9), 7).titled("one head, not said twice to the end"),
        Case(weights(3, 2, 8, 8).double().transpose(0, 1), 4).titled(
            "float64, transposed in memory"
        ),
    ]


def heads_same_token(weights: Tensor, period: int) -> Tensor:
    length = weights.shape[-1]
    total = torch.zeros(weights.shape[:-2], dtype=weights.dtype)
    for t in range(period, length):
        for s in range(t - period, -1, -period):
            total = total + weights[..., t, s]
    return total / (length - period)


def heads_previous_token(weights: Tensor, period: int) -> Tensor:
    length = weights.shape[-1]
    steps = [weights[..., t, t - 1] for t in range(period, length)]
    return torch.stack(steps).sum(0) / (length - period)


def heads_transposed(weights: Tensor, period: int) -> Tensor:
    length = weights.shape[-1]
    total = torch.zeros(weights.shape[:-2], dtype=weights.dtype)
    for t in range(period, length):
        for s in range(t - period + 1, 0, -period):
            total = total + weights[..., s, t]
    return total / (length - period)


def heads_summed(weights: Tensor, period: int) -> Tensor:
    length = weights.shape[-1]
    total = torch.zeros(weights.shape[:-2], dtype=weights.dtype)
    for t in range(period, length):
        for s in range(t - period + 1, 0, -period):
            total = total + weights[..., t, s]
    return total


def heads_over_all(weights: Tensor, period: int) -> Tensor:
    length = weights.shape[-1]
    total = torch.zeros(weights.shape[:-2], dtype=weights.dtype)
    for t in range(period, length):
        for s in range(t - period + 1, 0, -period):
            total = total + weights[..., t, s]
    return total / length


def heads_last_round(weights: Tensor, period: int) -> Tensor:
    length = weights.shape[-1]
    steps = [weights[..., t, t - period + 1] for t in range(period, length)]
    return torch.stack(steps).sum(0) / (length - period)


def heads_whole_diagonal(weights: Tensor, period: int) -> Tensor:
    return weights.diagonal(1 - period, -2, -1).mean(-1)


def heads_two_further(weights: Tensor, period: int) -> Tensor:
    length = weights.shape[-1]
    total = torch.zeros(weights.shape[:-2], dtype=weights.dtype)
    for t in range(period, length):
        for s in range(t - period + 2, 1, -period):
            total = total + weights[..., t, s]
    return total / (length - period)


def heads_averaged(weights: Tensor, period: int) -> Tensor:
    length = weights.shape[-1]
    total = torch.zeros(weights.shape[:-2], dtype=weights.dtype)
    for t in range(period, length):
        for s in range(t - period + 1, 0, -period):
            total = total + weights[..., t, s]
    return (total / (length - period)).mean()


def heads_highest(weights: Tensor, period: int) -> Tensor:
    length = weights.shape[-1]
    steps = []
    for t in range(period, length):
        steps.append(sum(weights[..., t, s] for s in range(t - period + 1, 0, -period)))
    return torch.stack(steps).max(0).values


def heads_by_mask(weights: Tensor, period: int) -> Tensor:
    length = weights.shape[-1]
    t, s = torch.arange(length)[:, None], torch.arange(length)[None]
    back = t + 1 - s
    mask = (s >= 1) & (back >= period) & (back % period == 0)
    return (weights * mask).sum((-1, -2)) / (length - period)


def heads_by_diagonals(weights: Tensor, period: int) -> Tensor:
    length = weights.shape[-1]
    total = torch.zeros(weights.shape[:-2], dtype=weights.dtype)
    for back in range(period, length, period):  # the first query of a diagonal sees key 0: not it
        total = total + weights.diagonal(1 - back, -2, -1)[..., 1:].sum(-1)
    return total / (length - period)


def heads_by_loops(weights: Tensor, period: int) -> Tensor:
    length = weights.shape[-1]
    tokens = [t % period for t in range(length)]
    per_query = []
    for t in range(period, length):
        keys = [s for s in range(1, t + 1) if tokens[s - 1] == tokens[t]]
        per_query.append(weights[..., t, keys].sum(-1))
    return torch.stack(per_query).mean(0)


INDUCTION_SCORE = Check(
    reference=reference.induction_score,
    points=5,
    cases=score_heads_cases,
    misconceptions=[
        Misconception(
            "this looks at the same token, one round before, not at the one that followed it",
            heads_same_token,
            "A B … A: does an induction head look at the first A, or at B?",
        ),
        Misconception(
            "this looks at the token just before: a previous-token head",
            heads_previous_token,
            "How far back did the same token stand? What followed it there?",
        ),
        Misconception(
            "queries and keys are swapped: rows are the queries",
            heads_transposed,
            "Which index of the weights says who looks, and which says at whom?",
        ),
        Misconception(
            "the attention is added up over the queries, not averaged",
            heads_summed,
            "A perfect head has a score of 1. What has yours?",
        ),
        Misconception(
            "the mean is taken over all queries, also those that have seen no repetition",
            heads_over_all,
            "How many queries stand at position `period` or later?",
        ),
        Misconception(
            "only the round just before is looked at, not all earlier rounds",
            heads_last_round,
            "In the third round, at how many positions did the same token's follower stand?",
        ),
        Misconception(
            "one whole diagonal is averaged, with a query that has seen no repetition",
            heads_whole_diagonal,
            "At position period − 1, has any token come a second time?",
        ),
        Misconception(
            "this looks one position too far",
            heads_two_further,
            "The same token stood at t − period. Where did the next one stand?",
        ),
        Misconception(
            "all heads are averaged into one number",
            heads_averaged,
            "Which shape does the docstring promise for weights of shape (L, H, T, T)?",
        ),
        Misconception(
            "the highest weight of a head is taken, not the mean over its queries",
            heads_highest,
            "Is one lucky position enough to call a head an induction head?",
        ),
    ],
    variants=[heads_by_mask, heads_by_diagonals, heads_by_loops],
)


# Questions ---------------------------------------------------------------------------------------

SPACE_AT_THE_END = Question(
    "space_at_the_end",
    answer="b",
    choices=("a", "b", "c", "d"),
    misconceptions=[
        Misconception(
            "the space is thought to cost a token that matters",
            "a",
            "Is one token more or less why the model hesitates? Look at which token comes next.",
        ),
        Misconception(
            "the tokenizer is thought to drop spaces",
            "c",
            "Chapter 03: can its tokenizer lose a character?",
        ),
        Misconception(
            "the choices are thought to be scored alike",
            "d",
            "After a space of its own, can the next token still begin with its usual space?",
        ),
    ],
)

QUERIES_NEEDED = Question(
    "queries_needed",
    answer=1.959964**2 * 0.25 / 0.05**2,
    tolerance=(0.02, 0.0),
    misconceptions=[
        Misconception(
            "5 points is taken for the whole width of the interval",
            1.959964**2 * 0.25 / 0.025**2,
            "Does ± 5 points mean a width of 5 points, or of 10?",
        ),
        Misconception(
            "z is not squared",
            1.959964 * 0.25 / 0.05**2,
            "Square both sides of 0.05 = z·√(p(1−p)/n). What becomes of z?",
        ),
        Misconception(
            "z is left out: that interval holds 68 %",
            0.25 / 0.05**2,
            "How many standard deviations does a 95 % interval reach?",
        ),
        Misconception(
            "0.05 is not squared",
            1.959964**2 * 0.25 / 0.05,
            "Square both sides of 0.05 = z·√(p(1−p)/n). What becomes of 0.05?",
        ),
        Misconception(
            "p is taken for p(1−p)",
            1.959964**2 * 0.5 / 0.05**2,
            "What is p(1−p) when p is a half?",
        ),
    ],
)

WHERE_IT_LEARNED = Question(
    "where_it_learned",
    answer="d",
    choices=("a", "b", "c", "d"),
    misconceptions=[
        Misconception(
            "the prompt is thought to change weights",
            "a",
            "The cell compares all parameters before and after. What does it print?",
        ),
        Misconception(
            "a few weights are thought to change",
            "b",
            "The cell compares all parameters before and after. What does it print?",
        ),
        Misconception(
            "the tokenizer is thought to learn",
            "c",
            "Are merges ever learned after chapter 03?",
        ),
    ],
)

PROMPT_CACHE_BYTES = Question(
    "prompt_cache_bytes",
    points=2,
    answer=2.0 * 30 * 3 * 64 * 4 * 300,
    tolerance=(0.0, 0.5),
    misconceptions=[
        Misconception(
            "this is half of it: values are missing, or each number has two bytes",
            30.0 * 3 * 64 * 4 * 300,
            "Which two things does a cache keep for each token? How many bytes has a float32?",
        ),
        Misconception(
            "one layer is counted",
            2.0 * 3 * 64 * 4 * 300,
            "How many layers have a cache of their own?",
        ),
        Misconception(
            "query heads are counted, not key/value heads",
            2.0 * 30 * 9 * 64 * 4 * 300,
            "Whose vectors does the cache keep: those of queries, or of keys and values?",
        ),
        Misconception(
            "numbers are counted, not bytes",
            2.0 * 30 * 3 * 64 * 300,
            "How many bytes does one float32 take?",
        ),
    ],
)
