"""Chapter 12: a model that continues text learns to answer."""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from autograder.check import Case, Check, Misconception, Question
from llmkit import finetuning as reference
from llmkit import lora

# Wrong solutions and variants are written as a student would write them, without llmkit: a class
# of synthetic students is made of their source.

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
IGNORE = -100
WORDS = ["amber", "brisk", "cedar", "dune", "ember", "frost", "grove", "harbour", "ivory", "jolly"]

# What gradients of other styles differ by, in float32.
ROUNDING = (1e-3, 1e-5)


def whole(rng: Generator, low: int, high: int, number: int) -> list[int]:
    return torch.randint(low, high, (number,), generator=rng).tolist()


def normal(rng: Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng)


def words(rng: Generator, number: int) -> list[str]:
    """Different words, in random order, each with a number of its own."""
    order = torch.randperm(len(WORDS), generator=rng)[:number].tolist()
    return [f"{WORDS[i]} {n}" for i, n in zip(order, whole(rng, 100, 999, number), strict=True)]


# render_chat -------------------------------------------------------------------------------------


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def render_cases(rng: Generator) -> list[Case]:
    a, b, c, d, e, f, g = words(rng, 7)
    return [
        Case([said("user", a)]).titled("one question"),
        Case([said("user", a), said("assistant", b)], False).titled("a question and its answer"),
        Case([said("system", c), said("user", d)]).titled("a system message of its own"),
        Case([said("user", e), said("assistant", f), said("user", g)], True, "Be brief.").titled(
            "two questions and another system prompt"
        ),
        Case([said("user", f" {b}\n\n"), said("assistant", c)], False, None).titled(
            "no system prompt, and spaces at the ends"
        ),
        Case([said("user", g), said("user", d)], False).titled("two messages of one person"),
        Case([said("user", a), said("system", e)], False).titled("a system message comes later"),
        Case([said("user", c)], True, "").titled("an empty system prompt"),
        Case([], True).titled("no message yet"),
    ]


def render_no_line_feed_after_role(messages, add_generation_prompt=True, system=SYSTEM):
    if messages and messages[0]["role"] != "system" and system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    text = ""
    for m in messages:
        text += f"<|im_start|>{m['role']} {m['content']}<|im_end|>\n"
    return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")


def render_no_line_feed_after_end(messages, add_generation_prompt=True, system=SYSTEM):
    if messages and messages[0]["role"] != "system" and system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    text = ""
    for m in messages:
        text += f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>"
    return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")


def render_no_system(messages, add_generation_prompt=True, system=SYSTEM):
    text = ""
    for m in messages:
        text += f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n"
    return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")


def render_two_systems(messages, add_generation_prompt=True, system=SYSTEM):
    if messages and system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    text = ""
    for m in messages:
        text += f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n"
    return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")


def render_unless_empty(messages, add_generation_prompt=True, system=SYSTEM):
    if messages and messages[0]["role"] != "system" and system:
        messages = [{"role": "system", "content": system}, *messages]
    text = ""
    for m in messages:
        text += f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n"
    return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")


def render_system_anywhere(messages, add_generation_prompt=True, system=SYSTEM):
    told = any(m["role"] == "system" for m in messages)
    if messages and not told and system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    text = ""
    for m in messages:
        text += f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n"
    return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")


def render_always_opens(messages, add_generation_prompt=True, system=SYSTEM):
    if messages and messages[0]["role"] != "system" and system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    text = ""
    for m in messages:
        text += f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n"
    return text + "<|im_start|>assistant\n"


def render_never_opens(messages, add_generation_prompt=True, system=SYSTEM):
    if messages and messages[0]["role"] != "system" and system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    text = ""
    for m in messages:
        text += f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n"
    return text


def render_header_without_line_feed(messages, add_generation_prompt=True, system=SYSTEM):
    if messages and messages[0]["role"] != "system" and system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    text = ""
    for m in messages:
        text += f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n"
    return text + ("<|im_start|>assistant" if add_generation_prompt else "")


def render_stripped(messages, add_generation_prompt=True, system=SYSTEM):
    if messages and messages[0]["role"] != "system" and system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    text = ""
    for m in messages:
        text += f"<|im_start|>{m['role']}\n{m['content'].strip()}<|im_end|>\n"
    return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")


def render_by_turns(messages, add_generation_prompt=True, system=SYSTEM):
    text = ""
    if messages and messages[0]["role"] == "system":
        system, messages = messages[0]["content"], messages[1:]
    if messages and system is not None:
        text += f"<|im_start|>system\n{system}<|im_end|>\n"
    for i, m in enumerate(messages):
        role = ("user", "assistant")[i % 2]
        text += f"<|im_start|>{role}\n{m['content']}<|im_end|>\n"
    return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")


def render_system_is_user(messages, add_generation_prompt=True, system=SYSTEM):
    if messages and messages[0]["role"] != "system" and system is not None:
        first = {"role": "user", "content": f"{system}\n{messages[0]['content']}"}
        messages = [first, *messages[1:]]
    text = ""
    for m in messages:
        text += f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n"
    return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")


def render_open_last_turn(messages, add_generation_prompt=True, system=SYSTEM):
    if messages and messages[0]["role"] != "system" and system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    text = ""
    for i, m in enumerate(messages):
        end = "" if i == len(messages) - 1 and not add_generation_prompt else "<|im_end|>\n"
        text += f"<|im_start|>{m['role']}\n{m['content']}{end}"
    return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")


def render_by_join(messages, add_generation_prompt=True, system=SYSTEM):
    turns = [(m["role"], m["content"]) for m in messages]
    if turns and turns[0][0] != "system" and system is not None:
        turns.insert(0, ("system", system))
    parts = ["<|im_start|>" + role + "\n" + content + "<|im_end|>\n" for role, content in turns]
    if add_generation_prompt:
        parts.append("<|im_start|>assistant\n")
    return "".join(parts)


def render_by_replacing(messages, add_generation_prompt=True, system=SYSTEM):
    shape, told = "<|im_start|>{}\n{}<|im_end|>\n", any(m["role"] == "system" for m in messages[:1])
    text = "" if told or system is None or not messages else shape.format("system", system)
    for message in messages:
        text += shape.format(message["role"], message["content"])
    return text + "<|im_start|>assistant\n" * add_generation_prompt


def render_by_recursion(messages, add_generation_prompt=True, system=SYSTEM):
    if not messages:
        return "<|im_start|>assistant\n" if add_generation_prompt else ""
    first, *rest = messages
    if first["role"] != "system" and system is not None:
        first, rest = {"role": "system", "content": system}, messages
    head = f"<|im_start|>{first['role']}\n{first['content']}<|im_end|>\n"
    return head + render_by_recursion(rest, add_generation_prompt, None)


RENDER_CHAT = Check(
    reference=reference.render_chat,
    points=3,
    cases=render_cases,
    misconceptions=[
        Misconception(
            "a space, not a line feed, follows the role",
            render_no_line_feed_after_role,
            "Print your text. What stands between the role and the content in the example?",
        ),
        Misconception(
            "no line feed follows <|im_end|>",
            render_no_line_feed_after_end,
            "In the example, does the next <|im_start|> stand on a line of its own?",
        ),
        Misconception(
            "the system prompt is never put in",
            render_no_system,
            "What does your function do with `system`?",
        ),
        Misconception(
            "the system prompt is put in although the conversation has one",
            render_two_systems,
            "If the first message is the system's already, how many of them should there be?",
        ),
        Misconception(
            "an empty system prompt counts as none",
            render_unless_empty,
            "None means: put none in. Is an empty text None?",
        ),
        Misconception(
            "a system message that comes later counts as the first",
            render_system_anywhere,
            "At which message does the text tell you to look?",
        ),
        Misconception(
            "the head of an answer is always added",
            render_always_opens,
            "What should come last when add_generation_prompt is False?",
        ),
        Misconception(
            "the head of an answer is never added",
            render_never_opens,
            "When the model is to speak next, how does it know that it is the assistant's turn?",
        ),
        Misconception(
            "the head of an answer lacks its line feed",
            render_header_without_line_feed,
            "In training, which character stood just before the answer's first one?",
        ),
        Misconception(
            "the content is stripped",
            render_stripped,
            "Who decides which spaces belong to a message: its writer or the template?",
        ),
        Misconception(
            "the roles are taken in turns, not read",
            render_by_turns,
            "Each message says whose it is. May one person speak twice?",
        ),
        Misconception(
            "the system prompt is put into the user's message",
            render_system_is_user,
            "Whose turn is the system prompt? How many turns does the example have?",
        ),
        Misconception(
            "the last message is left open",
            render_open_last_turn,
            "A finished conversation ends with a finished answer. Which mark says that it is?",
        ),
    ],
    variants=[render_by_join, render_by_replacing, render_by_recursion],
)


# sft_labels --------------------------------------------------------------------------------------


def labels_cases(rng: Generator) -> list[Case]:
    def text(number: int) -> list[int]:
        return whole(rng, 20, 60, number)

    def case(ids: list[int], header: list[int], stop_ids: list[int]) -> Case:
        return Case(torch.tensor(ids), header, stop_ids)

    ask, head = [1, 7], [1, 8]
    first = [*ask, *text(3), 2, *head, *text(2), 2]
    second = [*ask, *text(2), 2, *head, *text(4), 2]
    long_head = [1, 8, 9]
    return [
        case(first, head, [2]).titled("one question, one answer"),
        case([*first, 9, *second, 9], head, [2]).titled(
            "two answers, line feeds between the turns"
        ),
        case([*first, *ask, *text(1), 2, *head, *text(3)], head, [2]).titled(
            "cut off in an answer"
        ),
        case(
            [*ask, *text(2), 3, *long_head, *text(3), 3, *ask, *text(2), 2, *long_head, 5, 2, 9],
            long_head,
            [2, 3],
        ).titled("a longer header, and two tokens that stop"),
        case([*ask, 8, *text(1), 2, *head, 8, *text(2), 1, 7, 2], head, [2]).titled(
            "parts of a header within an answer and a question"
        ),
        case([*first[:-1], *head, 41, 2], head, [2]).titled("a whole header within an answer"),
        case([*ask, *text(4), 2, 1], head, [2]).titled("a question without an answer: ValueError"),
        case([*ask, *text(2), 2, *head], head, [2]).titled("cut off behind the header: ValueError"),
    ]


def answered_places(ids, header, stop_ids):
    """True at each token of an answer, its stop included."""
    inside, found = False, []
    for i, token in enumerate(ids):
        found.append(inside)
        if inside:
            inside = token not in stop_ids
        else:
            inside = ids[max(0, i + 1 - len(header)) : i + 1] == header
    return found


def labels_of(ids, learned):
    """The next token where that is learned, else −100."""
    if not any(learned):
        raise ValueError("there is no answer")
    after = zip(ids[1:], learned[1:], strict=True)
    return torch.tensor([token if yes else -100 for token, yes in after] + [-100])


def labels_not_shifted(input_ids, header, stop_ids):
    ids, header = input_ids.tolist(), list(header)
    learned = answered_places(ids, header, stop_ids)
    if not any(learned):
        raise ValueError("there is no answer")
    return torch.tensor([t if yes else -100 for t, yes in zip(ids, learned, strict=True)])


def labels_shifted_back(input_ids, header, stop_ids):
    ids, header = input_ids.tolist(), list(header)
    learned = answered_places(ids, header, stop_ids)
    if not any(learned):
        raise ValueError("there is no answer")
    before = zip(ids[:-1], learned[:-1], strict=True)
    return torch.tensor([-100] + [t if yes else -100 for t, yes in before])


def labels_without_stop(input_ids, header, stop_ids):
    ids, header = input_ids.tolist(), list(header)
    learned = answered_places(ids, header, stop_ids)
    kept = [yes and t not in stop_ids for t, yes in zip(ids, learned, strict=True)]
    return labels_of(ids, kept)


def labels_with_header(input_ids, header, stop_ids):
    ids, header = input_ids.tolist(), list(header)
    learned = answered_places(ids, header, stop_ids)
    if not any(learned):
        raise ValueError("there is no answer")
    for i in range(1, len(ids)):
        if learned[i] and not learned[i - 1]:
            learned[max(0, i - len(header)) : i] = [True] * min(i, len(header))
    return labels_of(ids, learned)


def labels_first_answer_only(input_ids, header, stop_ids):
    ids, header = input_ids.tolist(), list(header)
    learned = answered_places(ids, header, stop_ids)
    begun = False
    for i, yes in enumerate(learned):
        begun = begun or yes
        if begun and not yes:
            learned[i:] = [False] * (len(ids) - i)
            break
    return labels_of(ids, learned)


def labels_last_answer_only(input_ids, header, stop_ids):
    ids, header = input_ids.tolist(), list(header)
    learned = answered_places(ids, header, stop_ids)
    starts = [i for i, yes in enumerate(learned) if yes and not learned[i - 1]]
    if starts:
        learned[: starts[-1]] = [False] * starts[-1]
    return labels_of(ids, learned)


def labels_all_behind_the_first(input_ids, header, stop_ids):
    ids, header = input_ids.tolist(), list(header)
    learned = answered_places(ids, header, stop_ids)
    if any(learned):
        first = learned.index(True)
        learned[first:] = [True] * (len(ids) - first)
    return labels_of(ids, learned)


def labels_one_late(input_ids, header, stop_ids):
    ids, header = input_ids.tolist(), list(header)
    learned = answered_places(ids, header, stop_ids)
    late = [yes and learned[i - 1] for i, yes in enumerate(learned)]
    return labels_of(ids, late)


def labels_one_too_far(input_ids, header, stop_ids):
    ids, header = input_ids.tolist(), list(header)
    learned = answered_places(ids, header, stop_ids)
    far = [yes or (i > 0 and learned[i - 1]) for i, yes in enumerate(learned)]
    return labels_of(ids, far)


def labels_begun_anew(input_ids, header, stop_ids):
    ids, header = input_ids.tolist(), list(header)
    inside, learned = False, []
    for i, token in enumerate(ids):
        learned.append(inside)
        if ids[max(0, i + 1 - len(header)) : i + 1] == header:
            learned[i + 1 - len(header) :] = [False] * len(header)
            inside = True
        elif token in stop_ids:
            inside = False
    return labels_of(ids, learned)


def labels_if_there_is_a_header(input_ids, header, stop_ids):
    ids, header = input_ids.tolist(), list(header)
    if not any(ids[i : i + len(header)] == header for i in range(len(ids))):
        raise ValueError("there is no answer")
    learned = answered_places(ids, header, stop_ids)
    after = zip(ids[1:], learned[1:], strict=True)
    return torch.tensor([token if yes else -100 for token, yes in after] + [-100])


def labels_with_zeros(input_ids, header, stop_ids):
    ids, header = input_ids.tolist(), list(header)
    labels = labels_of(ids, answered_places(ids, header, stop_ids))
    return torch.where(labels == -100, 0, labels)


def labels_of_the_prompt(input_ids, header, stop_ids):
    ids, header = input_ids.tolist(), list(header)
    learned = answered_places(ids, header, stop_ids)
    if not any(learned):
        raise ValueError("there is no answer")
    return labels_of(ids, [not yes for yes in learned])


def labels_of_everything(input_ids, header, stop_ids):
    ids, header = input_ids.tolist(), list(header)
    if not any(answered_places(ids, header, stop_ids)):
        raise ValueError("there is no answer")
    return labels_of(ids, [True] * len(ids))


def labels_without_an_error(input_ids, header, stop_ids):
    ids, header = input_ids.tolist(), list(header)
    learned = answered_places(ids, header, stop_ids)
    after = zip(ids[1:], learned[1:], strict=True)
    return torch.tensor([token if yes else -100 for token, yes in after] + [-100])


def labels_at_the_last_header_token(input_ids, header, stop_ids):
    ids, inside, learned = input_ids.tolist(), False, []
    for token in ids:
        learned.append(inside)
        inside = token not in stop_ids if inside else token == header[-1]
    return labels_of(ids, learned)


def labels_by_spans(input_ids, header, stop_ids):
    ids, header, labels = input_ids.tolist(), list(header), torch.full_like(input_ids, -100)
    place, found = 0, False
    while place + len(header) < len(ids):
        if ids[place : place + len(header)] != header:
            place += 1
            continue
        start = end = place + len(header)
        while end < len(ids) and ids[end] not in stop_ids:
            end += 1
        end = min(end + 1, len(ids))
        labels[start - 1 : end - 1] = input_ids[start:end]
        place, found = end, True
    if not found:
        raise ValueError("There is nothing to learn.")
    return labels


def labels_by_tensors(input_ids, header, stop_ids):
    ids, width = input_ids, len(header)
    stops = torch.isin(ids, torch.tensor(list(stop_ids)))
    learned, start = torch.zeros_like(ids, dtype=torch.bool), 0
    heads = (ids.unfold(0, width, 1) == torch.tensor(list(header))).all(-1).nonzero().flatten()
    for head in heads.tolist():
        if head < start or head + width >= len(ids):
            continue
        ends = stops[head + width :].nonzero().flatten()
        start = head + width + int(ends[0]) + 1 if len(ends) else len(ids)
        learned[head + width : start] = True
    if not learned.any():
        raise ValueError("no answer")
    following = torch.cat([ids[1:], ids.new_tensor([-100])])
    return following.masked_fill(~torch.cat([learned[1:], learned.new_zeros(1)]), -100)


def labels_by_steps(input_ids, header, stop_ids):
    ids, header, labels, inside = input_ids.tolist(), list(header), [], False
    for i in range(len(ids)):
        if inside and ids[i] in stop_ids:
            inside = False
        elif not inside and ids[: i + 1][-len(header) :] == header:
            inside = True
        labels.append(ids[i + 1] if inside and i + 1 < len(ids) else -100)
    if set(labels) == {-100}:
        raise ValueError("no answer")
    return torch.tensor(labels)


SFT_LABELS = Check(
    reference=reference.sft_labels,
    points=4,
    cases=labels_cases,
    misconceptions=[
        Misconception(
            "the label at a position is its own token, not the next one",
            labels_not_shifted,
            "At the position of a token the model predicts the one that follows. Which is that?",
        ),
        Misconception(
            "the labels are shifted to the wrong side",
            labels_shifted_back,
            "Does the label at position t stand at t + 1 or at t − 1 in the text?",
        ),
        Misconception(
            "the token that stops is not learned",
            labels_without_stop,
            "A model that never learned to write <|im_end|>: when does its answer end?",
        ),
        Misconception(
            "the header is learned too",
            labels_with_header,
            "Who writes <|im_start|>assistant when the model is asked: the model or you?",
        ),
        Misconception(
            "only the first answer is learned",
            labels_first_answer_only,
            "What does your loop do after the first stop?",
        ),
        Misconception(
            "only the last answer is learned",
            labels_last_answer_only,
            "A conversation of two answers: are both of them answers?",
        ),
        Misconception(
            "all that follows the first header is learned",
            labels_all_behind_the_first,
            "Should the model learn to write the user's second question?",
        ),
        Misconception(
            "a header within an answer begins a new one",
            labels_begun_anew,
            "May somebody quote a header in an answer? What does the text say of it?",
        ),
        Misconception(
            "a header with nothing behind it counts as an answer",
            labels_if_there_is_a_header,
            "A conversation is cut off right behind the header. How many tokens are learned?",
        ),
        Misconception(
            "an answer's first token is not learned",
            labels_one_late,
            "Which position predicts the answer's first token? Does the header end one too late?",
        ),
        Misconception(
            "the token behind the stop is learned too",
            labels_one_too_far,
            "The line feed behind <|im_end|> belongs to the template. Is it part of the answer?",
        ),
        Misconception(
            "what does not count is 0, not −100",
            labels_with_zeros,
            "0 is a token. Which label does the loss of chapter 02 pass over?",
        ),
        Misconception(
            "the prompt is learned and the answer is not",
            labels_of_the_prompt,
            "Which tokens keep their label: those with −100 or the others?",
        ),
        Misconception(
            "everything is learned",
            labels_of_everything,
            "Which of these tokens will the model have to write itself?",
        ),
        Misconception(
            "a conversation without an answer raises no error",
            labels_without_an_error,
            "What is the mean of no loss at all? When should somebody be told?",
        ),
        Misconception(
            "the header is told by its last token alone",
            labels_at_the_last_header_token,
            "May the header's last token stand somewhere else, too? Compare all of the header.",
        ),
    ],
    variants=[labels_by_spans, labels_by_tensors, labels_by_steps],
)


# sft_loss ----------------------------------------------------------------------------------------


def loss_probe(loss_of, logits, labels):
    """The loss, and its gradient with respect to the logits."""
    leaf = logits.clone().requires_grad_()
    loss = loss_of(leaf, labels)
    loss.backward()
    return loss.detach(), leaf.grad


def loss_cases(rng: Generator) -> list[Case]:
    def drawn(*shape: int, scale: float = 2.0, learned: list[int]) -> tuple[Tensor, Tensor]:
        """Logits (rows, T, V), and labels of which so many in each row count."""
        logits = scale * normal(rng, *shape)
        labels = torch.full(shape[:-1], IGNORE)
        for row, number in enumerate(learned):
            places = torch.randperm(shape[1] - 2, generator=rng)[:number] + 1
            labels[row, places] = torch.randint(1, shape[-1], (number,), generator=rng)
        return logits, labels

    logits, labels = drawn(3, 7, 5, learned=[1, 4, 2])
    one, its = drawn(1, 6, 9, learned=[3])
    double, doubles = drawn(2, 6, 4, learned=[4, 1])
    high, highs = drawn(2, 5, 6, scale=700.0, learned=[3, 2])
    none = torch.full((2, 5), IGNORE)
    return [
        Case(logits, labels).titled("answers of different length"),
        Case(one[0], its[0]).titled("one conversation, without a batch"),
        Case(double.double(), doubles).titled("float64"),
        Case(high, highs).titled("large logits"),
        Case(normal(rng, 2, 5, 6), none).titled("no answer at all: ValueError"),
    ]


def answers_of(logits, labels):
    """Logits and labels where a label counts."""
    counted = labels != -100
    if not counted.any():
        raise ValueError("no label counts")
    return logits[counted], labels[counted]


def loss_over_all(logits, labels):
    kept, targets = answers_of(logits, labels)
    return F.cross_entropy(kept, targets, reduction="sum") / labels.numel()


def loss_by_row(logits, labels):
    if logits.ndim == 2:
        logits, labels = logits[None], labels[None]
    rows = []
    for its_logits, its_labels in zip(logits, labels, strict=True):
        kept, targets = answers_of(its_logits, its_labels)
        rows.append(F.cross_entropy(kept, targets))
    return sum(rows) / len(rows)


def loss_sum(logits, labels):
    kept, targets = answers_of(logits, labels)
    return F.cross_entropy(kept, targets, reduction="sum")


def loss_with_zeros(logits, labels):
    answers_of(logits, labels)
    targets = torch.where(labels == -100, 0, labels)
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def loss_shifted_again(logits, labels):
    kept, targets = answers_of(logits[..., :-1, :], labels[..., 1:])
    return F.cross_entropy(kept, targets)


def loss_log_of_softmax(logits, labels):
    kept, targets = answers_of(logits, labels)
    chances = kept.exp() / kept.exp().sum(-1, keepdim=True)
    return -chances[torch.arange(len(targets)), targets].log().mean()


def loss_in_bits(logits, labels):
    kept, targets = answers_of(logits, labels)
    return F.cross_entropy(kept, targets) / math.log(2)


def loss_negative(logits, labels):
    kept, targets = answers_of(logits, labels)
    return -F.cross_entropy(kept, targets)


def loss_of_zeroed_logits(logits, labels):
    answers_of(logits, labels)
    counted = labels != -100
    zeroed = logits * counted[..., None]
    targets = torch.where(counted, labels, 0)
    return F.cross_entropy(zeroed.flatten(0, -2), targets.flatten())


def loss_without_softmax(logits, labels):
    kept, targets = answers_of(logits, labels)
    return -kept[torch.arange(len(targets)), targets].mean()


def loss_nan_for_nothing(logits, labels):
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=-100)


def loss_by_ignoring(logits, labels):
    if bool((labels == -100).all()):
        raise ValueError("Nothing to learn.")
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))


def loss_by_gather(logits, labels):
    counted = labels.ne(-100)
    if counted.sum() == 0:
        raise ValueError("Nothing to learn.")
    chosen = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return -(chosen * counted).sum() / counted.sum()


def loss_by_loop(logits, labels):
    terms = []
    for row, label in zip(logits.flatten(0, -2), labels.flatten().tolist(), strict=True):
        if label != -100:
            terms.append(row.logsumexp(0) - row[label])
    if not terms:
        raise ValueError("Nothing to learn.")
    return torch.stack(terms).mean()


SFT_LOSS = Check(
    reference=reference.sft_loss,
    points=3,
    cases=loss_cases,
    probe=loss_probe,
    tolerance=ROUNDING,
    misconceptions=[
        Misconception(
            "the sum is divided by all positions, not by those that count",
            loss_over_all,
            "If the prompt were twice as long, should the loss of the same answer be halved?",
        ),
        Misconception(
            "the mean of the conversations' means",
            loss_by_row,
            "An answer of one token and one of four: do all five tokens weigh the same?",
        ),
        Misconception(
            "the sum, not the mean",
            loss_sum,
            "What does your loss become if the batch holds every conversation twice?",
        ),
        Misconception(
            "−100 is taken for token 0",
            loss_with_zeros,
            "Which positions of your loss have nothing to do with an answer?",
        ),
        Misconception(
            "the labels are shifted once more",
            loss_shifted_again,
            "sft_labels gave the NEXT token at each position. What is left to shift?",
        ),
        Misconception(
            "softmax overflows for large logits",
            loss_log_of_softmax,
            "What is exp(700) in float32? What did chapter 02 subtract first?",
        ),
        Misconception(
            "the loss is in bits",
            loss_in_bits,
            "Which logarithm counts in nats?",
        ),
        Misconception(
            "the sign is lost",
            loss_negative,
            "Is the logarithm of a probability positive or negative? And a loss?",
        ),
        Misconception(
            "the prompt's logits are set to 0, and counted",
            loss_of_zeroed_logits,
            "What is the loss of V equal logits? Is it 0?",
        ),
        Misconception(
            "logits are taken for log-probabilities",
            loss_without_softmax,
            "Do the exponentials of a row of logits add up to 1?",
        ),
        Misconception(
            "a batch without an answer gives nan and no error",
            loss_nan_for_nothing,
            "What is 0 / 0? What happens to the weights after a step along nan?",
        ),
    ],
    variants=[loss_by_ignoring, loss_by_gather, loss_by_loop],
)


# pack --------------------------------------------------------------------------------------------


def pack_cases(rng: Generator) -> list[Case]:
    def examples(*lengths: int) -> list[tuple[list[int], list[int]]]:
        made = []
        for n in lengths:
            ids, labels = whole(rng, 100, 999, n), whole(rng, 100, 999, n)
            made.append((ids, [label if i % 3 else IGNORE for i, label in enumerate(labels)]))
        return made

    return [
        Case(examples(3, 3, 2, 4), 8).titled("two rows"),
        Case(examples(5, 4, 3, 1, 2, 6), 7, 9).titled("a gap in an earlier row, and pad_id 9"),
        Case(examples(5, 8, 2), 10).titled("two rows have room: the first, not the fullest"),
        Case(examples(4), 4).titled("one example as long as a row"),
        Case(examples(1, 6, 2, 5, 3, 4), 9).titled("in the order given"),
        Case(examples(3, 6, 2), 5).titled("an example longer than a row: ValueError"),
    ]


def packed(rows, length, pad_id):
    """Rows of (ids, labels, segment) as three tensors."""
    ids = torch.full((len(rows), length), pad_id)
    labels = torch.full((len(rows), length), -100)
    segments = torch.zeros((len(rows), length), dtype=torch.long)
    for i, row in enumerate(rows):
        start = 0
        for its_ids, its_labels, segment in row:
            end = start + len(its_ids)
            ids[i, start:end] = torch.tensor(its_ids)
            labels[i, start:end] = torch.tensor(its_labels)
            segments[i, start:end] = segment
            start = end
    return ids, labels, segments


def check_lengths(examples, length):
    for ids, _ in examples:
        if len(ids) > length:
            raise ValueError("an example is longer than a row")


def used(row):
    return sum(len(one[0]) for one in row)


def pack_last_row_only(examples, length, pad_id=0):
    check_lengths(examples, length)
    rows = [[]]
    for ids, labels in examples:
        if used(rows[-1]) + len(ids) > length:
            rows.append([])
        rows[-1].append((ids, labels, len(rows[-1]) + 1))
    return packed(rows, length, pad_id)


def pack_one_a_row(examples, length, pad_id=0):
    check_lengths(examples, length)
    return packed([[(ids, labels, 1)] for ids, labels in examples], length, pad_id)


def first_fit(examples, length, room=0):
    rows = []
    for ids, labels in examples:
        for row in rows:
            if used(row) + len(ids) + room <= length:
                break
        else:
            row = []
            rows.append(row)
        row.append((ids, labels, len(row) + 1))
    return rows


def pack_cut_at_the_edge(examples, length, pad_id=0):
    check_lengths(examples, length)
    all_ids = [token for ids, _ in examples for token in ids]
    all_labels = [label for _, labels in examples for label in labels]
    numbers = [n for n, (ids, _) in enumerate(examples, start=1) for _ in ids]
    rows = -(-len(all_ids) // length)
    rest = rows * length - len(all_ids)
    shape = (rows, length)
    return (
        torch.tensor(all_ids + [pad_id] * rest).view(shape),
        torch.tensor(all_labels + [-100] * rest).view(shape),
        torch.tensor(numbers + [0] * rest).view(shape),
    )


def pack_from_zero(examples, length, pad_id=0):
    check_lengths(examples, length)
    rows = first_fit(examples, length)
    counted = [[(ids, labels, n) for n, (ids, labels, _) in enumerate(row)] for row in rows]
    return packed(counted, length, pad_id)


def pack_numbers_go_on(examples, length, pad_id=0):
    check_lengths(examples, length)
    rows, number = first_fit(examples, length), 0
    counted = []
    for row in rows:
        counted.append([])
        for ids, labels, _ in row:
            number += 1
            counted[-1].append((ids, labels, number))
    return packed(counted, length, pad_id)


def pack_one_segment(examples, length, pad_id=0):
    check_lengths(examples, length)
    rows = first_fit(examples, length)
    return packed([[(*one[:2], 1) for one in row] for row in rows], length, pad_id)


def pack_padding_is_learned(examples, length, pad_id=0):
    check_lengths(examples, length)
    ids, labels, segments = packed(first_fit(examples, length), length, pad_id)
    return ids, torch.where(segments == 0, pad_id, labels), segments


def pack_longest_first(examples, length, pad_id=0):
    check_lengths(examples, length)
    ordered = sorted(examples, key=lambda one: -len(one[0]))
    return packed(first_fit(ordered, length), length, pad_id)


def pack_fullest_row(examples, length, pad_id=0):
    check_lengths(examples, length)
    rows = []
    for ids, labels in examples:
        fitting = [row for row in rows if used(row) + len(ids) <= length]
        if not fitting:
            rows.append(fitting := [])
            fitting = [rows[-1]]
        best = max(fitting, key=used)
        best.append((ids, labels, len(best) + 1))
    return packed(rows, length, pad_id)


def pack_never_full(examples, length, pad_id=0):
    check_lengths(examples, length)
    return packed(first_fit(examples, length, room=1), length, pad_id)


def pack_pads_with_zero(examples, length, pad_id=0):
    check_lengths(examples, length)
    return packed(first_fit(examples, length), length, 0)


def pack_labels_are_ids(examples, length, pad_id=0):
    check_lengths(examples, length)
    return packed(first_fit([(ids, ids) for ids, _ in examples], length), length, pad_id)


def pack_cuts_long_ones(examples, length, pad_id=0):
    cut = [(ids[:length], labels[:length]) for ids, labels in examples]
    return packed(first_fit(cut, length), length, pad_id)


def pack_from_the_right(examples, length, pad_id=0):
    check_lengths(examples, length)
    ids, labels, segments = packed(first_fit(examples, length), length, pad_id)
    for i, row in enumerate(segments):
        gap = int((row == 0).sum())
        ids[i], labels[i], segments[i] = ids[i].roll(gap), labels[i].roll(gap), row.roll(gap)
    return ids, labels, segments


def pack_by_free_space(examples, length, pad_id=0):
    free, places = [], []
    for ids, _ in examples:
        if not 0 < len(ids) <= length:
            raise ValueError("does not fit")
        row = next((r for r, space in enumerate(free) if space >= len(ids)), len(free))
        if row == len(free):
            free.append(length)
        places.append((row, length - free[row]))
        free[row] -= len(ids)
    shape, counts = (len(free), length), [0] * len(free)
    out = [torch.full(shape, value) for value in (pad_id, -100, 0)]
    for (ids, labels), (row, start) in zip(examples, places, strict=True):
        counts[row] += 1
        for t, (token, label) in enumerate(zip(ids, labels, strict=True)):
            out[0][row, start + t] = token
            out[1][row, start + t] = label
            out[2][row, start + t] = counts[row]
    return tuple(out)


def pack_by_lists(examples, length, pad_id=0):
    if any(len(ids) > length for ids, _ in examples):
        raise ValueError("too long")
    rows = []
    for ids, labels in examples:
        fitting = [row for row in rows if len(row[0]) + len(ids) <= length]
        if not fitting:
            rows.append(([], [], []))
            fitting = rows[-1:]
        row = fitting[0]
        row[2].extend([max(row[2], default=0) + 1] * len(ids))
        row[0].extend(ids)
        row[1].extend(labels)
    fill = lambda column, value: torch.tensor(
        [row[column] + [value] * (length - len(row[0])) for row in rows]
    )
    return fill(0, pad_id), fill(1, -100), fill(2, 0)


def pack_by_padding(examples, length, pad_id=0):
    rows = []
    for ids, labels in examples:
        if len(ids) > length:
            raise ValueError("too long")
        for row in rows:
            if len(row) + len(ids) <= length:
                number = row[-1][2] + 1
                break
        else:
            row, number = [], 1
            rows.append(row)
        row += [(token, label, number) for token, label in zip(ids, labels, strict=True)]
    blank = (pad_id, -100, 0)
    table = torch.tensor([row + [blank] * (length - len(row)) for row in rows])
    return table[..., 0].clone(), table[..., 1].clone(), table[..., 2].clone()


PACK = Check(
    reference=reference.pack,
    points=4,
    cases=pack_cases,
    misconceptions=[
        Misconception(
            "only the last row is looked at",
            pack_last_row_only,
            "A short example comes late. Is there a gap in an earlier row?",
        ),
        Misconception(
            "each example has a row of its own",
            pack_one_a_row,
            "How much of your rows is padding? What was packing for?",
        ),
        Misconception(
            "an example is cut at the end of a row",
            pack_cut_at_the_edge,
            "What does the second half of a conversation mean without the first?",
        ),
        Misconception(
            "segments are counted from 0, the number of the padding",
            pack_from_zero,
            "How would anybody tell the first example from the padding?",
        ),
        Misconception(
            "segments are counted on from row to row",
            pack_numbers_go_on,
            "Rows never see each other. At which number does each begin?",
        ),
        Misconception(
            "all examples of a row have one number",
            pack_one_segment,
            "By what shall attention know where one conversation ends and the next begins?",
        ),
        Misconception(
            "the padding has labels that count",
            pack_padding_is_learned,
            "Should the model learn to write padding? Which label is passed over?",
        ),
        Misconception(
            "an example goes into the fullest row that has room, not into the first",
            pack_fullest_row,
            "Two rows have room. Which of them does the text name?",
        ),
        Misconception(
            "the longest examples go first",
            pack_longest_first,
            "It may save a row. But in which order are the examples to be placed?",
        ),
        Misconception(
            "a row is never filled to its end",
            pack_never_full,
            "Three tokens and room for three: does that fit? Is it < or ≤?",
        ),
        Misconception(
            "the padding is always token 0",
            pack_pads_with_zero,
            "What does your function do with `pad_id`?",
        ),
        Misconception(
            "the labels are the input ids",
            pack_labels_are_ids,
            "Each example comes with labels of its own. Where do yours come from?",
        ),
        Misconception(
            "an example that is too long is cut without a word",
            pack_cuts_long_ones,
            "Which end of the answer is lost? Who is told?",
        ),
        Misconception(
            "the padding stands at the left",
            pack_from_the_right,
            "Where does the first example of a row begin?",
        ),
    ],
    variants=[pack_by_free_space, pack_by_lists, pack_by_padding],
)


# LoRALinear --------------------------------------------------------------------------------------


def adapter_probe(layer_class, weight, bias, x, r, alpha, lora_A, lora_B):
    """How the layer starts; what it does with these adapters; its gradients."""
    base = nn.utils.skip_init(
        nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype
    )
    with torch.no_grad():
        base.weight.copy_(weight)
        if bias is not None:
            base.bias.copy_(bias)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = layer_class(base, r, alpha)
    start = layer(x).detach()
    learned = {name: tuple(p.shape) for name, p in layer.named_parameters() if p.requires_grad}
    zero = {name: not p.detach().any().item() for name, p in layer.named_parameters()}
    for name, given in (("lora_A", lora_A), ("lora_B", lora_B)):
        found = getattr(layer, name).weight
        if found.shape != given.shape:
            shapes = tuple(given.shape), tuple(found.shape)
            raise ValueError(f"{name}.weight should have the shape {shapes[0]}, not {shapes[1]}")
        with torch.no_grad():
            found.copy_(given)
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    y.square().mean().backward()
    gradients = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return {
        "the base, under its name": getattr(layer, "base_layer", None) is base,
        "starts as the base": torch.allclose(start, F.linear(x, weight, bias), 1e-4, 1e-5),
        "learned": learned,
        "is zero": {name: zero[name] for name in ("lora_A.weight", "lora_B.weight")},
        "output": y.detach(),
        "gradient of x": leaf.grad,
        "gradients": {name: gradients[name] for name in sorted(gradients)},
    }


def adapter_cases(rng: Generator) -> list[Case]:
    def case(shape, inputs, r: int, alpha: float, *shape_of_x: int, bias: bool = False) -> Case:
        return Case(
            normal(rng, shape, inputs),
            normal(rng, shape) if bias else None,
            normal(rng, *shape_of_x, inputs),
            r,
            alpha,
            normal(rng, r, inputs),
            normal(rng, shape, r),
        )

    return [
        case(5, 7, 2, 3.0, 4).titled("rank 2, α = 3"),
        case(6, 4, 3, 12.0, 2, 3, bias=True).titled("a base with a bias, and a batch"),
        case(4, 9, 4, 2.0, 3).titled("rank 4, α = 2"),
    ]


class Adapter(nn.Module):
    """A right one, so that each wrong one below changes a single step."""

    def __init__(self, base, r=8, alpha=16.0):
        super().__init__()
        self.scale = alpha / r
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, r, bias=False)
        self.lora_B = nn.Linear(r, base.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x):
        return self.base_layer(x) + self.scale * self.lora_B(self.lora_A(x))


class AdapterBothZero(Adapter):
    def __init__(self, base, r=8, alpha=16.0):
        super().__init__(base, r, alpha)
        nn.init.zeros_(self.lora_A.weight)


class AdapterBothRandom(Adapter):
    def __init__(self, base, r=8, alpha=16.0):
        super().__init__(base, r, alpha)
        self.lora_B.reset_parameters()


class AdapterBaseElsewhere(Adapter):
    def __init__(self, base, r=8, alpha=16.0):
        super().__init__(base, r, alpha)
        del self.base_layer
        self.base = base

    def forward(self, x):
        return self.base(x) + self.scale * self.lora_B(self.lora_A(x))


class AdapterOtherWayRound(Adapter):
    def __init__(self, base, r=8, alpha=16.0):
        super().__init__(base, r, alpha)
        self.lora_B.reset_parameters()
        nn.init.zeros_(self.lora_A.weight)


class AdapterWithoutScale(Adapter):
    def __init__(self, base, r=8, alpha=16.0):
        super().__init__(base, r, alpha)
        self.scale = 1.0


class AdapterScaledByAlpha(Adapter):
    def __init__(self, base, r=8, alpha=16.0):
        super().__init__(base, r, alpha)
        self.scale = alpha


class AdapterScaledByRank(Adapter):
    def __init__(self, base, r=8, alpha=16.0):
        super().__init__(base, r, alpha)
        self.scale = r / alpha


class AdapterScaledByRoot(Adapter):
    def __init__(self, base, r=8, alpha=16.0):
        super().__init__(base, r, alpha)
        self.scale = alpha / r**0.5


class AdapterBaseLearns(Adapter):
    def __init__(self, base, r=8, alpha=16.0):
        super().__init__(base, r, alpha)
        base.requires_grad_(True)


class AdapterBiasLearns(Adapter):
    def __init__(self, base, r=8, alpha=16.0):
        super().__init__(base, r, alpha)
        if base.bias is not None:
            base.bias.requires_grad_(True)


class AdapterAlone(Adapter):
    def forward(self, x):
        return self.scale * self.lora_B(self.lora_A(x))


class AdapterOnTop(Adapter):
    def forward(self, x):
        y = self.base_layer(x)
        return y + self.scale * self.lora_B(self.lora_A(x)) * y


class AdapterWithBiases(Adapter):
    def __init__(self, base, r=8, alpha=16.0):
        super().__init__(base, r, alpha)
        self.lora_A = nn.Linear(base.in_features, r)
        self.lora_B = nn.Linear(r, base.out_features)
        nn.init.zeros_(self.lora_B.weight)
        nn.init.zeros_(self.lora_B.bias)


class AdapterScalesAll(Adapter):
    def forward(self, x):
        return self.scale * (self.base_layer(x) + self.lora_B(self.lora_A(x)))


class AdapterGaussian(Adapter):
    def __init__(self, base, r=8, alpha=16.0):
        super().__init__(base, r, alpha)
        nn.init.normal_(self.lora_A.weight, std=0.02)

    def forward(self, x):
        y = F.linear(x, self.base_layer.weight, self.base_layer.bias)
        return y + F.linear(F.linear(x, self.lora_A.weight), self.lora_B.weight) * self.scale


class AdapterAsOneMatrix(nn.Module):
    def __init__(self, base, r=8, alpha=16.0):
        super().__init__()
        self.r, self.alpha, self.base_layer = r, alpha, base
        for parameter in base.parameters():
            parameter.requires_grad = False
        outputs, inputs = base.weight.shape
        self.lora_A, self.lora_B = nn.Module(), nn.Module()
        self.lora_A.weight = nn.Parameter(torch.randn(r, inputs) / r)
        self.lora_B.weight = nn.Parameter(torch.zeros(outputs, r))

    def forward(self, x):
        update = self.lora_B.weight @ self.lora_A.weight * (self.alpha / self.r)
        y = x @ (self.base_layer.weight + update).T
        return y if self.base_layer.bias is None else y + self.base_layer.bias


class AdapterSmallSteps(nn.Module):
    def __init__(self, base, r=8, alpha=16.0):
        super().__init__()
        self.base_layer = base
        self.base_layer.weight.requires_grad_(False)
        if self.base_layer.bias is not None:
            self.base_layer.bias.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, r, bias=False)
        self.lora_B = nn.Linear(r, base.out_features, bias=False)
        with torch.no_grad():
            self.lora_B.weight.mul_(0)
        self.r, self.alpha = r, alpha

    def forward(self, x):
        low = self.lora_A(x)
        change = self.lora_B(low)
        change = change * self.alpha / self.r
        return change + self.base_layer(x)


LORA_LINEAR = Check(
    reference=lora.LoRALinear,
    points=5,
    cases=adapter_cases,
    probe=adapter_probe,
    tolerance=ROUNDING,
    misconceptions=[
        Misconception(
            "A and B are both 0 at the start",
            AdapterBothZero,
            "The gradient of B holds A x, and that of A holds B. What if both are 0?",
        ),
        Misconception(
            "neither A nor B is 0 at the start",
            AdapterBothRandom,
            "What does the model answer before the first step of training?",
        ),
        Misconception(
            "the old layer is not kept as base_layer",
            AdapterBaseElsewhere,
            "Under which three names does the text keep the parts of the layer?",
        ),
        Misconception(
            "A is 0 and B is random",
            AdapterOtherWayRound,
            "It starts as the base and could learn. But which of the two does the text set to 0?",
        ),
        Misconception(
            "the update is not scaled",
            AdapterWithoutScale,
            "What does your layer do with `alpha`?",
        ),
        Misconception(
            "the update is scaled by α, not by α/r",
            AdapterScaledByAlpha,
            "By what does the text divide, so that a larger r does not make a larger update?",
        ),
        Misconception(
            "the update is scaled by r/α",
            AdapterScaledByRank,
            "Should a larger α make the update larger or smaller?",
        ),
        Misconception(
            "the update is scaled by α/√r",
            AdapterScaledByRoot,
            "This is rsLoRA, a later proposal. What does the formula here divide by?",
        ),
        Misconception(
            "the base's weight learns too",
            AdapterBaseLearns,
            "Whose parameters would the optimizer change? Which should stay as they are?",
        ),
        Misconception(
            "the base's bias learns",
            AdapterBiasLearns,
            "A linear layer may have two parameters. Did you freeze both?",
        ),
        Misconception(
            "the base's output is left out",
            AdapterAlone,
            "At the start B is 0. What does your layer give then?",
        ),
        Misconception(
            "the update is multiplied by the base's output",
            AdapterOnTop,
            "How many terms does the formula add, and what is multiplied by what?",
        ),
        Misconception(
            "A and B have biases",
            AdapterWithBiases,
            "Which parameters does nn.Linear make when it is not told otherwise?",
        ),
        Misconception(
            "the base's output is scaled too",
            AdapterScalesAll,
            "Which of the two terms does α/r stand in front of?",
        ),
    ],
    variants=[AdapterGaussian, AdapterAsOneMatrix, AdapterSmallSteps],
)


# merge_lora --------------------------------------------------------------------------------------


def merge_cases(rng: Generator) -> list[Case]:
    def case(outputs: int, inputs: int, r: int, alpha: float) -> Case:
        return Case(
            *(normal(rng, *s) for s in ((outputs, inputs), (r, inputs), (outputs, r))), alpha
        )

    def half(outputs: int, inputs: int, r: int, alpha: float) -> Case:
        """A weight in bfloat16 that a large update nearly cancels: rounding it early shows."""
        lora_A, lora_B = 10 * normal(rng, r, inputs), 10 * normal(rng, outputs, r)
        weight = normal(rng, outputs, inputs) - alpha / r * (lora_B @ lora_A)
        return Case(weight.bfloat16(), lora_A, lora_B, alpha)

    return [
        case(5, 7, 2, 3.0).titled("rank 2, α = 3"),
        case(6, 6, 3, 12.0).titled("a square matrix"),
        case(4, 9, 1, 0.5).titled("rank 1"),
        half(8, 5, 4, 6.0).titled("a base in bfloat16, adapters in float32"),
    ]


def merge_without_scale(weight, lora_A, lora_B, alpha):
    update = lora_B @ lora_A
    return (weight.to(update.dtype) + update).to(weight.dtype)


def merge_by_alpha(weight, lora_A, lora_B, alpha):
    update = alpha * (lora_B @ lora_A)
    return (weight.to(update.dtype) + update).to(weight.dtype)


def merge_rank_from_inputs(weight, lora_A, lora_B, alpha):
    update = alpha / lora_A.shape[1] * (lora_B @ lora_A)
    return (weight.to(update.dtype) + update).to(weight.dtype)


def merge_wrong_order(weight, lora_A, lora_B, alpha):
    update = alpha / lora_A.shape[0] * (lora_A @ lora_B)
    return (weight.to(update.dtype) + update).to(weight.dtype)


def merge_minus(weight, lora_A, lora_B, alpha):
    update = alpha / lora_A.shape[0] * (lora_B @ lora_A)
    return (weight.to(update.dtype) - update).to(weight.dtype)


def merge_update_alone(weight, lora_A, lora_B, alpha):
    update = alpha / lora_A.shape[0] * (lora_B @ lora_A)
    return update.to(weight.dtype)


def merge_keeps_float32(weight, lora_A, lora_B, alpha):
    update = alpha / lora_A.shape[0] * (lora_B @ lora_A)
    return weight.to(update.dtype) + update


def merge_rounds_first(weight, lora_A, lora_B, alpha):
    a, b = lora_A.to(weight.dtype), lora_B.to(weight.dtype)
    return weight + alpha / lora_A.shape[0] * (b @ a)


def merge_in_place(weight, lora_A, lora_B, alpha):
    update = alpha / lora_A.shape[0] * (lora_B @ lora_A)
    weight += update.to(weight.dtype)
    return weight


def merge_by_einsum(weight, lora_A, lora_B, alpha):
    update = torch.einsum("or,ri->oi", lora_B, lora_A) * alpha / len(lora_A)
    return torch.add(weight.float(), update).to(weight.dtype)


def merge_by_terms(weight, lora_A, lora_B, alpha):
    merged = weight.to(lora_A.dtype).clone()
    for i in range(lora_A.shape[0]):
        merged += alpha / lora_A.shape[0] * torch.outer(lora_B[:, i], lora_A[i])
    return merged.type_as(weight)


def merge_by_addmm(weight, lora_A, lora_B, alpha):
    scale = alpha / lora_B.shape[1]
    return torch.addmm(weight.to(lora_B.dtype), lora_B, lora_A, alpha=scale).to(weight.dtype)


MERGE_LORA = Check(
    reference=lora.merge_lora,
    points=2,
    cases=merge_cases,
    misconceptions=[
        Misconception(
            "the update is not scaled",
            merge_without_scale,
            "What does the layer multiply B A x by? Must the merged matrix do the same?",
        ),
        Misconception(
            "the update is scaled by α, not by α/r",
            merge_by_alpha,
            "Where can you read the rank r off? It is the size that A and B share.",
        ),
        Misconception(
            "the rank is read off the wrong axis",
            merge_rank_from_inputs,
            "A is (r, in). Which of its sizes is the rank?",
        ),
        Misconception(
            "A is multiplied by B, not B by A",
            merge_wrong_order,
            "x meets A first, then B. In a product of matrices, which stands next to x?",
        ),
        Misconception(
            "the update is subtracted",
            merge_minus,
            "y = W x + α/r · B A x. Which sign does the update have?",
        ),
        Misconception(
            "the update alone is given back",
            merge_update_alone,
            "What is left of the base in your matrix?",
        ),
        Misconception(
            "the result is not in the base's dtype",
            merge_keeps_float32,
            "The model is in bfloat16. In which format must the new weight be to fit in?",
        ),
        Misconception(
            "the adapter is rounded before it is added",
            merge_rounds_first,
            "How many digits does bfloat16 keep? When should the one rounding come?",
        ),
        Misconception(
            "the base's weight is changed",
            merge_in_place,
            "Who else holds this tensor? What does `+=` do to it?",
        ),
    ],
    variants=[merge_by_einsum, merge_by_terms, merge_by_addmm],
)


# trainable_parameters ----------------------------------------------------------------------------


def trainable_cases(rng: Generator) -> list[Case]:
    def shapes(*layers: int) -> dict[str, tuple[int, ...]]:
        width, narrow, hidden, vocab = whole(rng, 20, 60, 4)
        found = {"embed_tokens.weight": (vocab, width)}
        for i in layers:
            at = f"layers.{i}."
            found |= {
                f"{at}self_attn.q_proj.weight": (width, width),
                f"{at}self_attn.q_proj.bias": (width,),
                f"{at}self_attn.q_proj.norm.weight": (narrow,),
                f"{at}self_attn.k_proj.weight": (narrow, width),
                f"{at}mlp.up_proj.weight": (hidden, width),
                f"{at}mlp.gate_up_proj.weight": (2 * hidden, width),
                f"{at}mlp.down_proj.weight": (width, hidden),
                f"{at}input_layernorm.weight": (width,),
            }
        return found

    return [
        Case(shapes(0), ["q_proj"], 4).titled("one square matrix, and its bias"),
        Case(shapes(0, 1, 2), ["k_proj", "down_proj"], 3).titled("two matrices of three layers"),
        Case(shapes(0, 1), ["up_proj"], 5).titled("a name that is the end of another"),
        Case(shapes(0, 11), ["q_proj", "k_proj", "up_proj", "down_proj"], 1).titled("rank 1"),
        Case(shapes(0), [], 8).titled("no target"),
    ]


def count_whole_matrices(shapes, targets, r):
    total = 0
    for name, shape in shapes.items():
        parts = name.split(".")
        if len(parts) > 1 and parts[-1] == "weight" and parts[-2] in targets:
            total += shape[0] * shape[1]
    return total


def count_product_by_rank(shapes, targets, r):
    return r * count_whole_matrices(shapes, targets, r)


def chosen(shapes, targets):
    """The shapes of the matrices that are adapted."""
    found = []
    for name, shape in shapes.items():
        parts = name.split(".")
        if len(parts) > 1 and parts[-1] == "weight" and parts[-2] in targets:
            found.append(shape)
    return found


def count_a_only(shapes, targets, r):
    return sum(r * inputs for _, inputs in chosen(shapes, targets))


def count_b_only(shapes, targets, r):
    return sum(r * outputs for outputs, _ in chosen(shapes, targets))


def count_twice(shapes, targets, r):
    return sum(2 * r * (outputs + inputs) for outputs, inputs in chosen(shapes, targets))


def count_without_rank(shapes, targets, r):
    return sum(outputs + inputs for outputs, inputs in chosen(shapes, targets))


def count_square_rank(shapes, targets, r):
    return sum(r * (outputs + inputs) + r * r for outputs, inputs in chosen(shapes, targets))


def count_every_matrix(shapes, targets, r):
    return sum(r * sum(shape) for shape in shapes.values() if len(shape) == 2)


def count_any_part(shapes, targets, r):
    total = 0
    for name, shape in shapes.items():
        parts = name.split(".")
        if parts[-1] == "weight" and any(target in parts for target in targets):
            total += r * sum(shape)
    return total


def count_similar_names(shapes, targets, r):
    total = 0
    for name, shape in shapes.items():
        if name.endswith("weight") and any(target in name for target in targets):
            total += r * sum(shape)
    return total


def count_biases_too(shapes, targets, r):
    total = 0
    for name, shape in shapes.items():
        parts = name.split(".")
        if len(parts) > 1 and parts[-2] in targets:
            total += r * sum(shape)
    return total


def count_one_layer_only(shapes, targets, r):
    return sum(
        r * sum(next((s for n, s in shapes.items() if n.split(".")[-2:] == [t, "weight"]), (0, 0)))
        for t in targets
    )


def trainable_by_loop(shapes, targets, r):
    total = 0
    for name in shapes:
        *_, layer, kind = name.split(".")
        if kind == "weight" and layer in targets:
            outputs, inputs = shapes[name]
            total += r * inputs
            total += outputs * r
    return total


def trainable_by_endings(shapes, targets, r):
    endings = tuple(f".{target}.weight" for target in targets)
    return sum(r * sum(shape) for name, shape in shapes.items() if name.endswith(endings))


def trainable_by_building(shapes, targets, r):
    with torch.device("meta"):
        pairs = [
            (torch.empty(r, shape[1]), torch.empty(shape[0], r))
            for name, shape in shapes.items()
            for target in targets
            if ("." + name).endswith(f".{target}.weight")
        ]
    return sum(a.numel() + b.numel() for a, b in pairs)


TRAINABLE_PARAMETERS = Check(
    reference=lora.trainable_parameters,
    points=2,
    cases=trainable_cases,
    misconceptions=[
        Misconception(
            "the adapted matrices themselves are counted",
            count_whole_matrices,
            "Those are frozen. Which two matrices learn, and what are their shapes?",
        ),
        Misconception(
            "the rank is multiplied by in · out",
            count_product_by_rank,
            "How many numbers does A hold, of shape (r, in)? Is it more than W has?",
        ),
        Misconception(
            "B is not counted",
            count_a_only,
            "The update is a product of two matrices. How many did you count?",
        ),
        Misconception(
            "A is not counted",
            count_b_only,
            "The update is a product of two matrices. How many did you count?",
        ),
        Misconception(
            "each adapter is counted twice",
            count_twice,
            "A has r · in numbers and B has r · out. What is their sum?",
        ),
        Misconception(
            "the rank is left out",
            count_without_rank,
            "What does your count become when the rank is doubled?",
        ),
        Misconception(
            "a square matrix between A and B is counted",
            count_square_rank,
            "Which matrices stand in α/r · B A? Is there one between them?",
        ),
        Misconception(
            "every matrix is counted, whether it is a target or not",
            count_every_matrix,
            "What does your function do with `targets`?",
        ),
        Misconception(
            "a module inside a target is counted as well",
            count_any_part,
            "self_attn.q_proj.norm.weight: which module does this weight belong to?",
        ),
        Misconception(
            "names that only contain a target are counted",
            count_similar_names,
            "Is gate_up_proj an up_proj? Compare the layer's whole name.",
        ),
        Misconception(
            "biases are counted",
            count_biases_too,
            "LoRA adds to a matrix. Does a bias have an in and an out?",
        ),
        Misconception(
            "one layer is counted",
            count_one_layer_only,
            "How many layers of that name does the model have?",
        ),
    ],
    variants=[trainable_by_loop, trainable_by_endings, trainable_by_building],
)


# add_lora ----------------------------------------------------------------------------------------


class SmallBlock(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, hidden, bias=False)
        self.o_proj = nn.Linear(hidden, width)
        self.aq_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.o_proj(torch.tanh(self.q_proj(self.norm(x))))
        return x + self.aq_proj(x)


class SmallModel(nn.Module):
    def __init__(self, width: int, hidden: int, blocks: int):
        super().__init__()
        self.layers = nn.ModuleList(SmallBlock(width, hidden) for _ in range(blocks))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def add_probe(add, sizes, seed, x, targets, r, alpha):
    """Which parameters learn, and what the model does before and after its adapters are filled."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = SmallModel(*sizes)
        before = model(x).detach()
        add(model, targets, r, alpha)
        start = model(x).detach()
    generator = torch.Generator().manual_seed(seed)
    learned = {n: tuple(p.shape) for n, p in sorted(model.named_parameters()) if p.requires_grad}
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        after = model(x)
    return {
        "learned": learned,
        "starts as it was": bool(torch.allclose(before, start, rtol=1e-4, atol=1e-5)),
        "output": after,
    }


def add_cases(rng: Generator) -> list[Case]:
    def case(sizes: tuple[int, int, int], targets: list[str], r: int, alpha: float) -> Case:
        (seed,) = whole(rng, 0, 10_000, 1)
        return Case(sizes, seed, normal(rng, 3, sizes[0]), targets, r, alpha)

    return [
        case((6, 4, 2), ["q_proj"], 2, 3.0).titled("one target in two blocks"),
        case((5, 7, 3), ["q_proj", "o_proj"], 3, 1.5).titled("two targets in three blocks"),
        case((6, 4, 1), ["head", "o_proj"], 1, 2.0).titled("a layer outside of the blocks"),
        case((6, 4, 1), ["q_proj", "v_proj"], 2, 3.0).titled(
            "a target that names no layer: ValueError"
        ),
    ]


def layers_named(model, targets):
    """The names of the linear layers whose last part is a target. Raises ValueError."""
    found = {n: n.split(".")[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    if not set(targets) <= set(found.values()):
        raise ValueError("a target names no linear layer")
    return [name for name, last in found.items() if last in targets]


def put(model, name, module):
    """Let the model hold this module under that name."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, last, module)


def add_rest_learns(model, targets, r=8, alpha=16.0):
    for name in layers_named(model, targets):
        put(model, name, Adapter(model.get_submodule(name), r, alpha))


def add_all_frozen(model, targets, r=8, alpha=16.0):
    for name in layers_named(model, targets):
        put(model, name, Adapter(model.get_submodule(name), r, alpha))
    model.requires_grad_(False)


def add_first_only(model, targets, r=8, alpha=16.0):
    names = layers_named(model, targets)
    model.requires_grad_(False)
    for target in targets:
        name = next(name for name in names if name.split(".")[-1] == target)
        put(model, name, Adapter(model.get_submodule(name), r, alpha))


def add_children_only(model, targets, r=8, alpha=16.0):
    layers_named(model, targets)
    model.requires_grad_(False)
    for name, child in list(model.named_children()):
        if name in targets:
            setattr(model, name, Adapter(child, r, alpha))


def add_similar_names(model, targets, r=8, alpha=16.0):
    layers_named(model, targets)
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.endswith(tuple(targets)):
            put(model, name, Adapter(module, r, alpha))


def add_everywhere(model, targets, r=8, alpha=16.0):
    layers_named(model, targets)
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            put(model, name, Adapter(module, r, alpha))


def add_default_rank(model, targets, r=8, alpha=16.0):
    names = layers_named(model, targets)
    model.requires_grad_(False)
    for name in names:
        put(model, name, Adapter(model.get_submodule(name)))


def add_default_alpha(model, targets, r=8, alpha=16.0):
    names = layers_named(model, targets)
    model.requires_grad_(False)
    for name in names:
        put(model, name, Adapter(model.get_submodule(name), r))


def add_without_error(model, targets, r=8, alpha=16.0):
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.split(".")[-1] in targets:
            put(model, name, Adapter(module, r, alpha))


def add_norms_learn(model, targets, r=8, alpha=16.0):
    names = layers_named(model, targets)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.requires_grad_(False)
    for name in names:
        put(model, name, Adapter(model.get_submodule(name), r, alpha))


def add_first_target(model, targets, r=8, alpha=16.0):
    names = layers_named(model, targets)
    model.requires_grad_(False)
    for name in names:
        if name.split(".")[-1] == targets[0]:
            put(model, name, Adapter(model.get_submodule(name), r, alpha))


def add_by_modules(model, targets, r=8, alpha=16.0):
    known = {name.rpartition(".")[2] for name, m in model.named_modules() if type(m) is nn.Linear}
    for target in targets:
        if target not in known:
            raise ValueError(f"{target} names no linear layer")
    model.requires_grad_(False)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if name in targets and isinstance(child, nn.Linear):
                setattr(parent, name, Adapter(child, r, alpha))


def add_by_recursion(model, targets, r=8, alpha=16.0):
    wanted = set(targets)

    def adapt(module):
        seen = set()
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and name in wanted:
                module._modules[name] = Adapter(child, r, alpha)
                seen.add(name)
            else:
                seen |= adapt(child)
        return seen

    names = {n.split(".")[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    if wanted - names:
        raise ValueError(f"no layer is called {min(wanted - names)}")
    for parameter in model.parameters():
        parameter.requires_grad = False
    adapt(model)


def add_by_set_submodule(model, targets, r=8, alpha=16.0):
    linear = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    if any(all(name.split(".")[-1] != target for name in linear) for target in targets):
        raise ValueError("a target names no linear layer")
    model.requires_grad_(False)
    for name in linear:
        if name.split(".")[-1] in targets:
            model.set_submodule(name, Adapter(model.get_submodule(name), r, alpha))


ADD_LORA = Check(
    reference=lora.add_lora,
    points=4,
    cases=add_cases,
    probe=add_probe,
    tolerance=ROUNDING,
    misconceptions=[
        Misconception(
            "what is not adapted learns on",
            add_rest_learns,
            "Print the names of the parameters that require gradients. Are norms among them?",
        ),
        Misconception(
            "the adapters are frozen as well",
            add_all_frozen,
            "In which order do you freeze and add? Which parameters are there when you freeze?",
        ),
        Misconception(
            "only the first layer of each name is adapted",
            add_first_only,
            "How many layers of that name does the model have? Where does your loop end?",
        ),
        Misconception(
            "only the model's own children are looked at",
            add_children_only,
            "The layers lie deep inside. Which method lists modules at every depth?",
        ),
        Misconception(
            "names that only end like a target are adapted",
            add_similar_names,
            "Does aq_proj end with q_proj? Is it one?",
        ),
        Misconception(
            "every linear layer is adapted",
            add_everywhere,
            "What does your function do with `targets`?",
        ),
        Misconception(
            "the adapters have a rank and an α of their own",
            add_default_rank,
            "What does your function do with `r` and `alpha`?",
        ),
        Misconception(
            "the adapters have an α of their own",
            add_default_alpha,
            "What does your function do with `alpha`?",
        ),
        Misconception(
            "a target that names no layer raises no error",
            add_without_error,
            "Somebody writes v_prj. How long do they train before they see it?",
        ),
        Misconception(
            "only linear layers are frozen",
            add_norms_learn,
            "Which parameters does a norm have? Who freezes them?",
        ),
        Misconception(
            "only the first target is adapted",
            add_first_target,
            "`targets` is a list. Which of its names do you compare with?",
        ),
    ],
    variants=[add_by_modules, add_by_recursion, add_by_set_submodule],
)


# questions ---------------------------------------------------------------------------------------

MINUS_HUNDRED = Question(
    "minus_hundred",
    answer="c",
    choices=("a", "b", "c", "d"),
    misconceptions=[
        Misconception(
            "−100 hides the prompt from the model",
            "a",
            "Labels enter at the loss only. What does the attention mask depend on?",
        ),
        Misconception(
            "nothing about the prompt can change",
            "b",
            "The answer's tokens attend to the prompt's. Where do gradients flow back to?",
        ),
        Misconception(
            "the logits are made smaller",
            "d",
            "What happens to a position whose label is −100 in the sum of the losses?",
        ),
    ],
)
ZERO_START = Question(
    "zero_start",
    answer="b",
    choices=("a", "b", "c", "d"),
    misconceptions=[
        Misconception(
            "zeros everywhere would save memory",
            "a",
            "A tensor of zeros takes as many bytes as any other. What about its gradient?",
        ),
        Misconception(
            "with both at random the layer could not learn",
            "c",
            "Both gradients would be there. What would the model answer before the first step?",
        ),
        Misconception(
            "B learns nothing while it is 0",
            "d",
            "The gradient of B holds A x. Is that 0 because B is?",
        ),
    ],
)
LORA_SHARE = Question(
    "lora_share",
    answer=100 * 921_600 / 134_515_008,
    tolerance=(0.01, 0.0),
    misconceptions=[
        Misconception(
            "a share, not per cent", 921_600 / 134_515_008, "How many per cent is one half?"
        ),
        Misconception(
            "k_proj and v_proj are taken for as wide as q_proj",
            100 * 30 * 8 * 4 * 1152 / 134_515_008,
            "SmolLM2 has 9 query heads and 3 key/value heads. How many rows does k_proj have?",
        ),
        Misconception(
            "one layer is counted",
            100 * 8 * 3840 / 134_515_008,
            "How many layers does SmolLM2 have?",
        ),
        Misconception(
            "only A is counted",
            100 * 30 * 8 * 4 * 576 / 134_515_008,
            "The update is a product of two matrices. How many did you count?",
        ),
    ],
)
TRAINING_BYTES = Question(
    "training_bytes",
    answer=12 * 921_600,
    tolerance=(0.001, 0.0),
    misconceptions=[
        Misconception(
            "two numbers a parameter are counted, not three",
            8 * 921_600,
            "AdamW keeps two numbers for each parameter. What else does it read in each step?",
        ),
        Misconception(
            "the weights are counted as well",
            16 * 921_600,
            "The adapters' weights are taken as given. What does a step of training add to them?",
        ),
        Misconception(
            "numbers are counted, not bytes",
            3 * 921_600,
            "How many bytes does a float32 have?",
        ),
        Misconception(
            "all parameters are counted",
            12 * 134_515_008,
            "Which parameters have a gradient at all?",
        ),
    ],
)
