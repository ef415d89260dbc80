"""Chapter 09: labels from raw text, the parts of a training step, and recurrent networks."""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from autograder.check import Case, Check, Misconception, Question
from llmkit import pretraining as reference
from llmkit import rnn


def normal(rng: Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=rng).to(dtype)


def whole(rng: Generator, high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=rng)


def between(rng: Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng))


# clm_batch ---------------------------------------------------------------------------------------


def clm_cases(rng: Generator) -> list[Case]:
    return [
        Case(torch.tensor([7, 3, 9, 4, 8, 5]), torch.tensor([0, 2]), 3).titled("six tokens"),
        Case(whole(rng, 90, 40), whole(rng, 33, 5), 7).titled("five sequences"),
        Case(whole(rng, 90, 30), torch.tensor([24, 0]), 5).titled("up to the stream's last token"),
        Case(whole(rng, 90, 12).to(torch.uint8), torch.tensor([6, 1, 6]), 4).titled("bytes"),
        Case(whole(rng, 90, 9), torch.tensor([3]), 1).titled("length 1"),
    ]


def clm_not_shifted(tokens, starts, length):
    positions = starts[:, None] + torch.arange(length)
    return tokens[positions].long(), tokens[positions].long()


def clm_shifted_back(tokens, starts, length):
    positions = starts[:, None] + torch.arange(length)
    return tokens[positions + 1].long(), tokens[positions].long()


def clm_last_ignored(tokens, starts, length):
    inputs = tokens[starts[:, None] + torch.arange(length)].long()
    labels = torch.full_like(inputs, -100)
    labels[:, :-1] = inputs[:, 1:]
    return inputs, labels


def clm_one_shorter(tokens, starts, length):
    window = tokens[starts[:, None] + torch.arange(length)].long()
    return window[:, :-1], window[:, 1:]


def clm_next_block(tokens, starts, length):
    positions = starts[:, None] + torch.arange(length)
    return tokens[positions].long(), tokens[(positions + length) % len(tokens)].long()


def clm_starts_are_blocks(tokens, starts, length):
    positions = (starts[:, None] * length + torch.arange(length)) % (len(tokens) - 1)
    return tokens[positions].long(), tokens[positions + 1].long()


def clm_as_stored(tokens, starts, length):
    positions = starts[:, None] + torch.arange(length)
    return tokens[positions], tokens[positions + 1]


def clm_loop(tokens, starts, length):
    inputs = torch.stack([tokens[s : s + length] for s in starts.tolist()])
    labels = torch.stack([tokens[s + 1 : s + 1 + length] for s in starts.tolist()])
    return inputs.long(), labels.long()


def clm_one_longer(tokens, starts, length):
    window = tokens[starts.unsqueeze(1) + torch.arange(length + 1)].to(torch.int64)
    return window[:, :-1], window[:, 1:]


def clm_unfold(tokens, starts, length):
    windows = tokens.long().unfold(0, length + 1, 1)[starts]
    return windows[:, :length].clone(), windows[:, 1:].clone()


CLM_BATCH = Check(
    reference=reference.clm_batch,
    points=3,
    cases=clm_cases,
    misconceptions=[
        Misconception(
            "the labels are the inputs themselves: nothing is shifted",
            clm_not_shifted,
            "What is left to predict if the label at each position is the token that stands there?",
        ),
        Misconception(
            "inputs and labels are exchanged: the model is asked for the token before",
            clm_shifted_back,
            "After 7, 3 the stream goes on with 9. Of 3, is that the input or the label?",
        ),
        Misconception(
            "the last position has no label, though the stream goes on",
            clm_last_ignored,
            "Which token of the stream follows the last one of the sequence? Can you look it up?",
        ),
        Misconception(
            "the sequences are one token too short",
            clm_one_shorter,
            "How many tokens of the stream does it take for `length` inputs and their labels?",
        ),
        Misconception(
            "the labels are the block after the inputs",
            clm_next_block,
            "How far from an input does its label stand: one token, or `length` tokens?",
        ),
        Misconception(
            "starts counts blocks, not tokens",
            clm_starts_are_blocks,
            "With a start of 2, which token of the stream comes first: number 2 or 2 · length?",
        ),
        Misconception(
            "the result has the dtype of the stream, not int64",
            clm_as_stored,
            "A byte cannot hold −100. Which dtype can?",
        ),
    ],
    variants=[clm_loop, clm_one_longer, clm_unfold],
)


# mask_tokens -------------------------------------------------------------------------------------


def mask_probe(mask_tokens, input_ids, mask_id, vocab_size, special_ids, probability, seed):
    """What two equal generators give, whatever the default one is at."""
    found = []
    for other in (1, 2):
        torch.default_generator.manual_seed(seed + other)
        rng = torch.Generator().manual_seed(seed)
        found.append(mask_tokens(input_ids, mask_id, vocab_size, special_ids, probability, rng))
    return found


def mask_reading(found, input_ids, mask_id, vocab_size, special_ids, probability, seed):
    """What a masking does in proportion: any order of the random draws gives the same."""

    def amount(found, share, total):
        expected = share * total
        if found == 0:
            return "none"
        slack = 6 * (total * share * (1 - share)) ** 0.5 + 1e-6
        if abs(found - expected) <= slack:
            return "as asked"
        return "too few" if found < expected else "too many"

    (masked, labels), (again, _) = found
    kinds = [(tuple(tensor.shape), str(tensor.dtype)) for tensor in (masked, labels)]
    if {shape for shape, _ in kinds} != {tuple(input_ids.shape)}:
        return {"shapes and dtypes": kinds}  # broadcast, they could take all memory
    special = torch.isin(input_ids, torch.tensor([*special_ids], dtype=torch.int64))
    chosen = labels != -100
    is_mask = chosen & (masked == mask_id)
    stays = chosen & ~is_mask & (masked == input_ids)
    changed = chosen & ~is_mask & ~stays
    count, luck = int(chosen.sum()), 0.1 / vocab_size
    return {
        "shapes and dtypes": kinds,
        "labels": amount(count, probability, int((~special).sum())),
        "a label is the token that stood there": bool((labels == input_ids)[chosen].all()),
        "tokens without a label are left alone": bool((masked == input_ids)[~chosen].all()),
        "a special token has a label": bool((chosen & special).any()),
        "of the labelled, masks": amount(int(is_mask.sum()), 0.8 + luck, count),
        "of the labelled, random tokens": amount(int(changed.sum()), 0.1 - 2 * luck, count),
        "of the labelled, left as they were": amount(int(stays.sum()), 0.1 + luck, count),
        "random tokens are of many kinds": len(masked[changed].unique()) > vocab_size // 4,
        "the same generator, the same masks": torch.equal(masked, again),
    }


def mask_cases(rng: Generator) -> list[Case]:
    def case(shape, mask_id, vocab_size, special, probability, title) -> Case:
        tokens = whole(rng, vocab_size, *shape)
        seed = int(whole(rng, 10_000, 1))
        return Case(tokens, mask_id, vocab_size, special, probability, seed).titled(title)

    return [
        case((150, 200), 4, 300, [], 0.15, "one token in seven"),
        case((100, 250), 103, 400, [0, 1, 103], 0.4, "more often, with special tokens"),
        case((7, 3000), 2, 90, [0, 2, 5], 1.0, "every token"),
        case((30, 40), 2, 50, [], 0.0, "no token"),
    ]


def masking(
    tokens, mask_id, vocab_size, special_ids, probability, generator, masks=0.8, randoms=0.1
):
    """The mask, the random token or the token itself, and which positions are chosen."""
    u = torch.rand(tokens.shape, generator=generator)
    v = torch.rand(tokens.shape, generator=generator)
    drawn = torch.randint(vocab_size, tokens.shape, generator=generator)
    special = torch.isin(tokens, torch.tensor([*special_ids], dtype=torch.int64))
    chosen = (u < probability) & ~special
    masked = torch.where(chosen & (v < masks), mask_id, tokens)
    masked = torch.where(chosen & (v >= masks) & (v < masks + randoms), drawn, masked)
    return masked, torch.where(chosen, tokens, -100)


def mask_always(input_ids, mask_id, vocab_size, special_ids=(), probability=0.15, generator=None):
    return masking(
        input_ids, mask_id, vocab_size, special_ids, probability, generator, masks=1.0, randoms=0.0
    )


def mask_no_random(
    input_ids, mask_id, vocab_size, special_ids=(), probability=0.15, generator=None
):
    return masking(input_ids, mask_id, vocab_size, special_ids, probability, generator, randoms=0.0)


def mask_tenth_of_rest(
    input_ids, mask_id, vocab_size, special_ids=(), probability=0.15, generator=None
):
    return masking(
        input_ids, mask_id, vocab_size, special_ids, probability, generator, randoms=0.02
    )


def mask_labels_everywhere(
    input_ids, mask_id, vocab_size, special_ids=(), probability=0.15, generator=None
):
    masked, _ = masking(input_ids, mask_id, vocab_size, special_ids, probability, generator)
    return masked, input_ids.clone()


def mask_labels_masked(
    input_ids, mask_id, vocab_size, special_ids=(), probability=0.15, generator=None
):
    masked, labels = masking(input_ids, mask_id, vocab_size, special_ids, probability, generator)
    return masked, torch.where(labels == -100, labels, masked)


def mask_labels_inverted(
    input_ids, mask_id, vocab_size, special_ids=(), probability=0.15, generator=None
):
    masked, labels = masking(input_ids, mask_id, vocab_size, special_ids, probability, generator)
    return masked, torch.where(labels == -100, input_ids, -100)


def mask_special_too(
    input_ids, mask_id, vocab_size, special_ids=(), probability=0.15, generator=None
):
    return masking(input_ids, mask_id, vocab_size, (), probability, generator)


def mask_fixed_share(
    input_ids, mask_id, vocab_size, special_ids=(), probability=0.15, generator=None
):
    return masking(input_ids, mask_id, vocab_size, special_ids, 0.15, generator)


def mask_generator_unused(
    input_ids, mask_id, vocab_size, special_ids=(), probability=0.15, generator=None
):
    return masking(input_ids, mask_id, vocab_size, special_ids, probability, None)


def mask_one_random_token(
    input_ids, mask_id, vocab_size, special_ids=(), probability=0.15, generator=None
):
    masked, labels = masking(
        input_ids, mask_id, vocab_size, special_ids, probability, generator, randoms=0.0
    )
    token = torch.randint(vocab_size, (), generator=generator)
    left = (labels != -100) & (masked != mask_id)
    half = torch.rand(input_ids.shape, generator=generator) < 0.5
    return torch.where(left & half, token, masked), labels


def mask_two_draws(
    input_ids, mask_id, vocab_size, special_ids=(), probability=0.15, generator=None
):
    return masking(input_ids, mask_id, vocab_size, special_ids, probability, generator)


def mask_bernoulli(
    input_ids, mask_id, vocab_size, special_ids=(), probability=0.15, generator=None
):
    chances = torch.full(input_ids.shape, float(probability))
    for token in special_ids:
        chances[input_ids == token] = 0.0
    chosen = torch.bernoulli(chances, generator=generator).bool()
    masked, labels = input_ids.clone(), input_ids.clone()
    labels[~chosen] = -100
    hide = torch.bernoulli(torch.full(input_ids.shape, 0.8), generator=generator).bool() & chosen
    masked[hide] = mask_id
    half = torch.bernoulli(torch.full(input_ids.shape, 0.5), generator=generator).bool()
    swap = half & chosen & ~hide
    drawn = torch.randint(vocab_size, input_ids.shape, generator=generator)
    masked[swap] = drawn[swap]
    return masked, labels


def mask_by_fate(input_ids, mask_id, vocab_size, special_ids=(), probability=0.15, generator=None):
    drawn = torch.randint(vocab_size, input_ids.shape, generator=generator)
    fate = torch.randint(10, input_ids.shape, generator=generator)
    chosen = torch.rand(input_ids.shape, generator=generator) < probability
    for token in special_ids:
        chosen = chosen & (input_ids != token)
    replaced = torch.where(fate == 9, input_ids, torch.where(fate == 8, drawn, mask_id))
    return torch.where(chosen, replaced, input_ids), input_ids.masked_fill(~chosen, -100)


MASK_TOKENS = Check(
    reference=reference.mask_tokens,
    points=5,
    cases=mask_cases,
    probe=mask_probe,
    reading=mask_reading,
    misconceptions=[
        Misconception(
            "every chosen token becomes the mask: 100/0/0, not 80/10/10",
            mask_always,
            "When the model is used there is no mask. What did it learn about other tokens?",
        ),
        Misconception(
            "no chosen token becomes a random one: 80/0/20",
            mask_no_random,
            "Three things can happen to a chosen token. Which one never happens in yours?",
        ),
        Misconception(
            "a tenth of what the masks left becomes random, not a tenth of the chosen",
            mask_tenth_of_rest,
            "Of 100 chosen tokens 80 are masks. How many of the other 20 must be random: 2 or 10?",
        ),
        Misconception(
            "every position has a label, not the chosen ones alone",
            mask_labels_everywhere,
            "What does a model learn from a position where the answer stands in the input?",
        ),
        Misconception(
            "the labels are taken after masking: they hold the mask",
            mask_labels_masked,
            "Which token should the model find behind a mask: the mask?",
        ),
        Misconception(
            "the labels are the wrong way round: the chosen positions are ignored",
            mask_labels_inverted,
            "What does −100 say about a position: ask here, or do not?",
        ),
        Misconception(
            "special tokens are chosen too",
            mask_special_too,
            "What is special_ids for? Can a text be understood by guessing where it ends?",
        ),
        Misconception(
            "the share is always 0.15: `probability` is not used",
            mask_fixed_share,
            "Which number does u have to be below if the caller asks for 0.4?",
        ),
        Misconception(
            "the generator is not used",
            mask_generator_unused,
            "Two calls with equal generators must agree. To which of your draws do you hand it?",
        ),
        Misconception(
            "one random token is drawn for all positions",
            mask_one_random_token,
            "How many tokens does torch.randint draw for the shape ()? How many do you need?",
        ),
    ],
    variants=[mask_two_draws, mask_bernoulli, mask_by_fate],
)


# mlm_loss ----------------------------------------------------------------------------------------


def some_labels(rng: Generator, vocab: int, *shape: int) -> Tensor:
    """Labels of which about half are ignored, never the first and always the last."""
    labels = whole(rng, vocab, *shape).masked_fill(whole(rng, 2, *shape).bool(), -100)
    flat = labels.view(-1)
    flat[0], flat[-1] = int(whole(rng, vocab - 1, 1)) + 1, -100
    return labels


def mlm_cases(rng: Generator) -> list[Case]:
    two = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    return [
        Case(two, torch.tensor([1, -100])).titled("one of two is chosen"),
        Case(normal(rng, 2, 6, 5), some_labels(rng, 5, 2, 6)).titled("two texts"),
        Case(30 * normal(rng, 4, 7), some_labels(rng, 7, 4)).titled("large logits"),
        Case(
            normal(rng, 6, 3, dtype=torch.float64).T.reshape(1, 3, 6), some_labels(rng, 6, 1, 3)
        ).titled("float64"),
        Case(normal(rng, 2, 3, 4), torch.full((2, 3), -100)).titled("nothing is chosen"),
    ]


def mlm_per_token(logits, labels):
    """The loss of each chosen position; ValueError if there is none."""
    chosen = labels != -100
    if not chosen.any():
        raise ValueError("no token is chosen")
    return F.cross_entropy(logits[chosen], labels[chosen], reduction="none")


def mlm_mean_over_all(logits, labels):
    return mlm_per_token(logits, labels).sum() / labels.numel()


def mlm_sum(logits, labels):
    return mlm_per_token(logits, labels).sum()


def mlm_each(logits, labels):
    return mlm_per_token(logits, labels)


def mlm_nan(logits, labels):
    chosen = labels != -100
    return F.cross_entropy(logits[chosen], labels[chosen])


def mlm_zero(logits, labels):
    if (labels == -100).all():
        return logits.new_zeros(())
    return mlm_per_token(logits, labels).mean()


def mlm_ignored_as_first_token(logits, labels):
    if (labels == -100).all():
        raise ValueError("no token is chosen")
    targets = labels.clamp_min(0)
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def mlm_shifted(logits, labels):
    if (labels == -100).all():
        raise ValueError("no token is chosen")
    before = logits.roll(1, dims=-2)
    return mlm_per_token(before, labels).mean()


def mlm_by_text(logits, labels):
    rows = zip(
        logits.reshape(-1, *logits.shape[-2:]), labels.reshape(-1, labels.shape[-1]), strict=True
    )
    return torch.stack([mlm_per_token(x, y).sum() for x, y in rows if (y != -100).any()]).mean()


def mlm_indexed(logits, labels):
    where = labels >= 0
    if where.sum() == 0:
        raise ValueError("nothing to predict")
    picked = logits[where].log_softmax(-1)
    return -picked[torch.arange(len(picked)), labels[where]].mean()


def mlm_built_in(logits, labels):
    if bool((labels == -100).all()):
        raise ValueError("nothing to predict")
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.flatten())


def mlm_weighted(logits, labels):
    counts = (labels != -100).to(logits.dtype)
    if counts.sum() == 0:
        raise ValueError("nothing to predict")
    lost = -logits.log_softmax(-1).gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return (lost * counts).sum() / counts.sum()


MLM_LOSS = Check(
    reference=reference.mlm_loss,
    points=3,
    cases=mlm_cases,
    misconceptions=[
        Misconception(
            "the sum is divided by all positions, not by the chosen ones",
            mlm_mean_over_all,
            "If you chose fewer tokens, should the loss of each look smaller?",
        ),
        Misconception(
            "the losses are summed, not averaged",
            mlm_sum,
            "Should a longer text have a larger loss than a short one?",
        ),
        Misconception(
            "one loss is returned for each chosen position",
            mlm_each,
            "The result has shape (). What turns the losses into one number?",
        ),
        Misconception(
            "with nothing chosen the result is NaN",
            mlm_nan,
            "What is 0 divided by 0? What would the optimizer do with it?",
        ),
        Misconception(
            "with nothing chosen the loss is 0",
            mlm_zero,
            "Zero is the loss of a perfect model. Was this model asked anything?",
        ),
        Misconception(
            "an ignored position counts as if token 0 were its answer",
            mlm_ignored_as_first_token,
            "Where the label is −100, which token should the model be punished for?",
        ),
        Misconception(
            "logits are shifted against labels, as for next tokens",
            mlm_shifted,
            "Where does the answer of a masked token stand: at its own position, or one further?",
        ),
        Misconception(
            "each text's losses are summed, and the texts averaged",
            mlm_by_text,
            "Is the mean over texts of sums the mean over chosen tokens?",
        ),
    ],
    variants=[mlm_indexed, mlm_built_in, mlm_weighted],
)


# cosine_schedule ---------------------------------------------------------------------------------


def schedule_probe(schedule, steps, peak, warmup_steps, floor, asked):
    return [float(schedule(step, steps, peak, warmup_steps, floor)) for step in asked]


def schedule_cases(rng: Generator) -> list[Case]:
    peak, floor = between(rng, 1.0, 3.0), between(rng, 0.1, 0.5)
    steps, warmup = int(whole(rng, 30, 1)) + 60, int(whole(rng, 8, 1)) + 5
    edges = [0, 1, warmup - 1, warmup, warmup + 1, steps // 2, steps - 1, steps, steps + 9]
    return [
        Case(10, 1.0, 2, 0.0, [*range(10)]).titled("ten steps, two of warm-up"),
        Case(steps, peak, warmup, floor, edges).titled("with a floor"),
        Case(steps, peak, 0, floor, [0, 1, steps - 1, steps]).titled("without warm-up"),
        Case(warmup, peak, warmup, floor, [0, warmup - 1, warmup]).titled("warm-up alone"),
    ]


def schedule(
    step, steps, peak, warmup_steps=0, floor=0.0, first=1, start=None, full=1, base=None, down=None
):
    """The schedule below with one part changed."""
    if step < warmup_steps:
        return peak * (step + first) / warmup_steps
    if step >= steps:
        return floor
    start = warmup_steps if start is None else start
    part = (step - start) / (steps - start)
    curve = (1 + math.cos(math.pi * full * part)) / 2 if down is None else down(part)
    return (floor if base is None else base) + (peak - (floor if base is None else base)) * curve


def schedule_first_is_zero(step, steps, peak, warmup_steps=0, floor=0.0):
    return schedule(step, steps, peak, warmup_steps, floor, first=0)


def schedule_from_the_start(step, steps, peak, warmup_steps=0, floor=0.0):
    return schedule(step, steps, peak, warmup_steps, floor, start=0)


def schedule_whole_wave(step, steps, peak, warmup_steps=0, floor=0.0):
    return schedule(step, steps, peak, warmup_steps, floor, full=2)


def schedule_quarter_wave(step, steps, peak, warmup_steps=0, floor=0.0):
    return schedule(
        step, steps, peak, warmup_steps, floor, down=lambda part: math.cos(math.pi * part / 2)
    )


def schedule_line(step, steps, peak, warmup_steps=0, floor=0.0):
    return schedule(step, steps, peak, warmup_steps, floor, down=lambda part: 1 - part)


def schedule_no_floor(step, steps, peak, warmup_steps=0, floor=0.0):
    return schedule(step, steps, peak, warmup_steps, 0.0)


def schedule_floor_added(step, steps, peak, warmup_steps=0, floor=0.0):
    if step < warmup_steps or step >= steps:
        return schedule(step, steps, peak, warmup_steps, floor)
    return floor + schedule(step, steps, peak, warmup_steps, 0.0)


def schedule_no_warmup(step, steps, peak, warmup_steps=0, floor=0.0):
    return schedule(step, steps, peak, 0, floor)


def schedule_rises_again(step, steps, peak, warmup_steps=0, floor=0.0):
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    part = (step - warmup_steps) / max(steps - warmup_steps, 1)
    return floor + (peak - floor) * (1 + math.cos(math.pi * part)) / 2


def schedule_clipped(step, steps, peak, warmup_steps=0, floor=0.0):
    if step < warmup_steps:
        return (step + 1) / warmup_steps * peak
    part = min(1.0, (step - warmup_steps) / max(steps - warmup_steps, 1))
    if steps == warmup_steps:
        part = 1.0
    return floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * part))


def schedule_sine(step, steps, peak, warmup_steps=0, floor=0.0):
    if step >= steps:
        return floor
    if step + 1 <= warmup_steps:
        return peak * (step + 1) / warmup_steps
    left = (steps - step) / (steps - warmup_steps)
    return floor + (peak - floor) * math.sin(math.pi / 2 * left) ** 2


def schedule_table(step, steps, peak, warmup_steps=0, floor=0.0):
    table = [peak * (i + 1) / warmup_steps for i in range(warmup_steps)]
    rest = steps - warmup_steps
    middle, half = (peak + floor) / 2, (peak - floor) / 2
    table += [middle + half * math.cos(math.pi * i / rest) for i in range(rest)]
    return table[step] if step < steps else floor


COSINE_SCHEDULE = Check(
    reference=reference.cosine_schedule,
    points=4,
    cases=schedule_cases,
    probe=schedule_probe,
    misconceptions=[
        Misconception(
            "the first step has a learning rate of 0",
            schedule_first_is_zero,
            "Steps are counted from 0. What does a step with a rate of 0 change?",
        ),
        Misconception(
            "the cosine begins at step 0, so the rate jumps at the end of the warm-up",
            schedule_from_the_start,
            "What is the rate in the first step after the warm-up? What part of the rest is over?",
        ),
        Misconception(
            "a whole wave: the rate falls and rises again",
            schedule_whole_wave,
            "From where to where must the angle go for the cosine to fall from 1 to −1 once?",
        ),
        Misconception(
            "a quarter of a wave: the rate falls fastest at the end",
            schedule_quarter_wave,
            "Halfway down the rate is halfway between peak and floor. What is cos(π/4)?",
        ),
        Misconception(
            "the rate falls in a straight line",
            schedule_line,
            "Which function stands in the formula between peak and floor?",
        ),
        Misconception(
            "the rate falls to 0, not to the floor",
            schedule_no_floor,
            "What should the formula give where the cosine is −1?",
        ),
        Misconception(
            "the floor is added on top: the peak is too high",
            schedule_floor_added,
            "What does your formula give where the cosine is 1: the peak, or more?",
        ),
        Misconception(
            "there is no warm-up",
            schedule_no_warmup,
            "Adam's averages rest on few gradients at first. Should the first step be largest?",
        ),
        Misconception(
            "after the last step the rate rises again",
            schedule_rises_again,
            "What does a cosine do beyond π? Which steps lie there?",
        ),
    ],
    variants=[schedule_clipped, schedule_sine, schedule_table],
)


# clip_gradients ----------------------------------------------------------------------------------


def clip_cases(rng: Generator) -> list[Case]:
    return [
        Case([torch.tensor([3.0]), torch.tensor([4.0])], 1.0).titled("3 and 4, limit 1"),
        Case([torch.tensor([3.0]), torch.tensor([4.0])], 10.0).titled("below the limit"),
        Case([normal(rng, 5, 3), 9 * normal(rng, 4), normal(rng, 2, 3, 2)], 2.5).titled("three"),
        Case([0.01 * normal(rng, 5, 3), 0.02 * normal(rng, 4)], 0.5).titled("far below the limit"),
        Case([normal(rng, 3, 6, dtype=torch.float64).T, normal(rng, 7).double()], 0.75).titled(
            "float64, transposed in memory"
        ),
        Case([torch.zeros(3), torch.zeros(2, 2)], 1.0).titled("all zero"),
    ]


def joint_norm(gradients):
    return torch.sqrt(sum((g**2).sum() for g in gradients))


def clip_one_by_one(gradients, max_norm):
    clipped = [g * (max_norm / g.norm()).clamp(max=1.0) for g in gradients]
    return clipped, joint_norm(gradients)


def clip_by_value(gradients, max_norm):
    return [g.clamp(-max_norm, max_norm) for g in gradients], joint_norm(gradients)


def clip_always(gradients, max_norm):
    norm = joint_norm(gradients)
    return [g * max_norm / (norm + 1e-12) for g in gradients], norm


def clip_norm_after(gradients, max_norm):
    scale = (max_norm / joint_norm(gradients)).clamp(max=1.0)
    clipped = [g * scale for g in gradients]
    return clipped, joint_norm(clipped)


def clip_sum_of_norms(gradients, max_norm):
    norm = sum(g.norm() for g in gradients)
    return [g * (max_norm / norm).clamp(max=1.0) for g in gradients], norm


def clip_squared_norm(gradients, max_norm):
    norm = sum((g**2).sum() for g in gradients)
    return [g * (max_norm / norm).clamp(max=1.0) for g in gradients], norm


def clip_to_direction(gradients, max_norm):
    norm = joint_norm(gradients)
    if norm <= max_norm:
        return list(gradients), norm
    return [g / norm for g in gradients], norm


def clip_mean_square(gradients, max_norm):
    norm = torch.cat([g.flatten() for g in gradients]).square().mean().sqrt()
    return [g * (max_norm / norm).clamp(max=1.0) for g in gradients], norm


def clip_flattened(gradients, max_norm):
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    if norm > max_norm:
        return [g / norm * max_norm for g in gradients], norm
    return [g.clone() for g in gradients], norm


def clip_loop(gradients, max_norm):
    total = 0
    for gradient in gradients:
        total = total + torch.sum(gradient * gradient)
    norm = total**0.5
    scale = min(1.0, max_norm / max(float(norm), 1e-30))
    return [scale * gradient for gradient in gradients], norm


def clip_built_in(gradients, max_norm):
    parameters = [nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    return [parameter.grad for parameter in parameters], norm


CLIP_GRADIENTS = Check(
    reference=reference.clip_gradients,
    points=4,
    cases=clip_cases,
    misconceptions=[
        Misconception(
            "each gradient is clipped by its own norm",
            clip_one_by_one,
            "3 and 4 have the ratio 3 : 4. What ratio has your result? Does the step keep its way?",
        ),
        Misconception(
            "each number is cut off at ±max_norm",
            clip_by_value,
            "The arrow (3, 4) should become shorter. Does it still point the same way in yours?",
        ),
        Misconception(
            "gradients below the limit are made larger",
            clip_always,
            "What should happen to a gradient whose norm is already below the limit?",
        ),
        Misconception(
            "the norm is measured after clipping",
            clip_norm_after,
            "Which number tells you that training is in trouble: the norm before, or after?",
        ),
        Misconception(
            "the norms are added",
            clip_sum_of_norms,
            "An arrow goes 3 east and 4 north. Is it 7 long, or 5?",
        ),
        Misconception(
            "the root of the sum of squares is not taken",
            clip_squared_norm,
            "9 and 16 make 25. How long is the arrow (3, 4)?",
        ),
        Misconception(
            "the gradients are scaled to norm 1, whatever the limit",
            clip_to_direction,
            "The norm of your result is always 1 there. Which argument says what it should be?",
        ),
        Misconception(
            "the mean of the squares is taken, not their sum",
            clip_mean_square,
            "The arrow (3, 4) is 5 long. What does the root of the mean of 9 and 16 give?",
        ),
    ],
    variants=[clip_flattened, clip_loop, clip_built_in],
    tolerance=(1e-4, 1e-6),  # PyTorch's own adds 1e-6 to the norm before it divides by it
)


# adamw_step --------------------------------------------------------------------------------------


def adamw_cases(rng: Generator) -> list[Case]:
    def case(shape, step, title, dtype=torch.float32, **given) -> Case:
        parameter, gradient, mean = (normal(rng, *shape, dtype=dtype) for _ in range(3))
        square = 0.5 + normal(rng, *shape, dtype=dtype).square()
        return Case(parameter, gradient, mean, square, step, **given).titled(title)

    first = [normal(rng, 5), normal(rng, 5), torch.zeros(5), torch.zeros(5), 1]
    strong = {"lr": 0.2, "betas": (0.7, 0.95), "eps": 0.05, "weight_decay": 0.4}
    return [
        Case(*first, lr=0.1).titled("the first step"),
        case((4, 3), 6, "later, with other betas", **strong),
        case((2, 3, 5), 2, "float64", dtype=torch.float64, **strong | {"lr": 0.05}),
        case((7,), 40, "no decay", lr=0.3, betas=(0.8, 0.9), eps=0.1, weight_decay=0.0),
        Case(*first[:4], 0, lr=0.1).titled("step 0"),
    ]


def adamw(
    parameter,
    gradient,
    mean,
    square,
    step,
    lr,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.01,
    root=lambda square, eps: square.sqrt() + eps,
    correct=lambda average, beta, step: average / (1 - beta**step),
    squared=lambda gradient, mean: gradient**2,
    keep=lambda new, corrected: new,
    decayed=lambda parameter, lr, decay: parameter * (1 - lr * decay),
    into_gradient=False,
):
    """AdamW with one part changed."""
    if step < 1:
        raise ValueError("steps count from 1")
    if into_gradient:
        gradient, weight_decay = gradient + weight_decay * parameter, 0.0
    new = betas[0] * mean + (1 - betas[0]) * gradient
    new_square = betas[1] * square + (1 - betas[1]) * squared(gradient, new)
    m, s = correct(new, betas[0], step), correct(new_square, betas[1], step)
    after = decayed(parameter, lr, weight_decay) - lr * m / root(s, eps)
    return after, keep(new, m), keep(new_square, s)


def adamw_decay_in_gradient(*args, **kwargs):
    return adamw(*args, **kwargs, into_gradient=True)


def adamw_no_decay(*args, **kwargs):
    return adamw(*args, **kwargs, decayed=lambda parameter, lr, decay: parameter)


def adamw_decay_without_rate(*args, **kwargs):
    return adamw(*args, **kwargs, decayed=lambda parameter, lr, decay: parameter * (1 - decay))


def adamw_no_correction(*args, **kwargs):
    return adamw(*args, **kwargs, correct=lambda average, beta, step: average)


def adamw_correction_late(*args, **kwargs):
    return adamw(
        *args, **kwargs, correct=lambda average, beta, step: average / (1 - beta ** (step + 1))
    )


def adamw_eps_in_root(*args, **kwargs):
    return adamw(*args, **kwargs, root=lambda square, eps: (square + eps).sqrt())


def adamw_no_root(*args, **kwargs):
    return adamw(*args, **kwargs, root=lambda square, eps: square + eps)


def adamw_square_of_mean(*args, **kwargs):
    return adamw(*args, **kwargs, squared=lambda gradient, mean: mean**2)


def adamw_corrected_kept(*args, **kwargs):
    return adamw(*args, **kwargs, keep=lambda new, corrected: corrected)


def adamw_betas_swapped(
    parameter,
    gradient,
    mean,
    square,
    step,
    lr,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.01,
):
    return adamw(parameter, gradient, mean, square, step, lr, betas[::-1], eps, weight_decay)


def adamw_built_in(
    parameter,
    gradient,
    mean,
    square,
    step,
    lr,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.01,
):
    if step < 1:
        raise ValueError("steps count from 1")
    leaf = nn.Parameter(parameter.clone())
    leaf.grad = gradient.clone()
    optimizer = torch.optim.AdamW([leaf], lr, betas, eps, weight_decay)
    optimizer.state[leaf] = {
        "step": torch.tensor(float(step - 1)),
        "exp_avg": mean.clone(),
        "exp_avg_sq": square.clone(),
    }
    optimizer.step()
    state = optimizer.state[leaf]
    return leaf.detach(), state["exp_avg"], state["exp_avg_sq"]


def adamw_lerp(
    parameter,
    gradient,
    mean,
    square,
    step,
    lr,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.01,
):
    if step <= 0:
        raise ValueError(f"step is {step}")
    first, second = betas
    mean = mean.lerp(gradient, 1 - first)
    square = torch.addcmul(second * square, gradient, gradient, value=1 - second)
    scale = (square / (1 - second**step)) ** 0.5 + eps
    change = weight_decay * parameter + mean / (1 - first**step) / scale
    return parameter - lr * change, mean, square


def adamw_in_order(
    parameter,
    gradient,
    mean,
    square,
    step,
    lr,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.01,
):
    if step == 0:
        raise ValueError("step counts from 1")
    new = parameter.clone()
    new -= lr * weight_decay * parameter
    m = mean.mul(betas[0]).add(gradient, alpha=1 - betas[0])
    v = square.mul(betas[1]).add(gradient * gradient, alpha=1 - betas[1])
    m_hat = m.div(1 - math.pow(betas[0], step))
    v_hat = v.div(1 - math.pow(betas[1], step))
    return new.addcdiv(m_hat, v_hat.sqrt().add(eps), value=-lr), m, v


ADAMW_STEP = Check(
    reference=reference.adamw_step,
    points=5,
    cases=adamw_cases,
    misconceptions=[
        Misconception(
            "the decay is added to the gradient: that is Adam with an L2 penalty",
            adamw_decay_in_gradient,
            "Does your decay pass through the two averages? Where does it stand in the formula?",
        ),
        Misconception(
            "nothing decays",
            adamw_no_decay,
            "Give it a gradient of 0 again and again. Should the parameter stay where it is?",
        ),
        Misconception(
            "the decay is not multiplied by the learning rate",
            adamw_decay_without_rate,
            "How much should a parameter shrink in a step with a learning rate of almost 0?",
        ),
        Misconception(
            "the averages' start at 0 is not undone",
            adamw_no_correction,
            "After one step the mean holds a tenth of the gradient. What is it divided by?",
        ),
        Misconception(
            "the averages are corrected as if one more step had been made",
            adamw_correction_late,
            "In the first step, step is 1. Which power of beta stands in your correction?",
        ),
        Misconception(
            "eps is added under the root",
            adamw_eps_in_root,
            "LayerNorm adds its eps under the root. Where does it stand in this formula?",
        ),
        Misconception(
            "the root of the mean square is not taken",
            adamw_no_root,
            "A gradient ten times as large should make the same first step. Does it in yours?",
        ),
        Misconception(
            "the mean is squared, not the gradient",
            adamw_square_of_mean,
            "Gradients of +3 and −3 have the mean 0. What is the mean of their squares?",
        ),
        Misconception(
            "the corrected averages are returned",
            adamw_corrected_kept,
            "The next step corrects again. Which of the two should it start from?",
        ),
        Misconception(
            "the two betas are exchanged",
            adamw_betas_swapped,
            "The first beta belongs to the mean, the second to the square. Which is which?",
        ),
    ],
    variants=[adamw_built_in, adamw_lerp, adamw_in_order],
)


# train_step --------------------------------------------------------------------------------------


class Bigrams(nn.Module):
    """Logits of the next token from the token alone."""

    def __init__(self, embedding: Tensor, head: Tensor):
        super().__init__()
        self.embedding, self.head = nn.Parameter(embedding), nn.Parameter(head)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.embedding[input_ids] @ self.head


def train_probe(train_step, embedding, head, micro_batches, max_norm, lr):
    """The loss, the norm and the weights after one step, with old gradients lying about."""
    model = Bigrams(embedding.clone(), head.clone())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    batches = [(inputs.clone(), labels.clone()) for inputs, labels in micro_batches]
    loss, norm = train_step(model, optimizer, batches, max_norm)
    after = [parameter.detach().clone() for parameter in model.parameters()]
    return float(loss), float(norm), *after


def train_cases(rng: Generator) -> list[Case]:
    vocabulary, width = 11, 6

    def batch(rows, length, targets):
        inputs = whole(rng, vocabulary, rows, length)
        labels = torch.full((rows * length,), -100)
        chosen = torch.randperm(rows * length, generator=rng)[:targets]
        labels[chosen] = whole(rng, vocabulary, targets)
        return inputs, labels.view(rows, length)

    def case(batches, max_norm, title, scale=1.0) -> Case:
        embedding = scale * normal(rng, vocabulary, width)
        return Case(embedding, normal(rng, width, vocabulary), batches, max_norm, 0.5).titled(title)

    none = (whole(rng, vocabulary, 2, 3), torch.full((2, 3), -100))
    return [
        case([batch(3, 5, 15)], 100.0, "one micro-batch"),
        case([batch(2, 4, 8), batch(3, 7, 3), batch(1, 5, 4)], 100.0, "three of different size"),
        case([batch(2, 6, 9), batch(4, 3, 2)], 0.05, "above the limit"),
        case([batch(2, 4, 5), none, batch(2, 2, 3)], 100.0, "one without targets"),
        case([none, none], 1.0, "no target at all"),
        case([batch(2, 4, 6)], 1.0, "a gradient that is not finite", scale=float("inf")),
    ]


def training(
    model,
    optimizer,
    micro_batches,
    max_norm=1.0,
    forget=True,
    weight=lambda count, number, total: count / total,
    clip=True,
    zero_each=False,
    step_each=False,
    report=None,
    norm_after=False,
    check=True,
    clip_last=False,
):
    """A training step with one part changed."""
    batches = list(micro_batches)
    counts = [int((labels != -100).sum()) for _, labels in batches]
    if check and sum(counts) == 0:
        raise ValueError("no target")
    if forget:
        optimizer.zero_grad()
    losses = []
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for (inputs, labels), count in zip(batches, counts, strict=True):
        if zero_each:
            optimizer.zero_grad()
        if count == 0 and check:
            losses.append(0.0)
            continue
        loss = F.cross_entropy(model(inputs).flatten(0, 1), labels.flatten())
        share = loss * weight(count, len(batches), sum(counts))
        share.backward()
        losses.append(share.item())
        if step_each:
            optimizer.step()
    norm = joint_norm([p.grad for p in parameters])
    if check and not norm.isfinite():
        raise FloatingPointError("the gradient is not finite")
    if clip_last:
        optimizer.step()
    if clip:
        nn.utils.clip_grad_norm_(parameters, max_norm)
    if norm_after:
        norm = joint_norm([p.grad for p in parameters])
    if not step_each and not clip_last:
        optimizer.step()
    return (sum(losses) if report is None else report(losses)), norm.item()


def train_mean_of_means(model, optimizer, micro_batches, max_norm=1.0):
    return training(
        model, optimizer, micro_batches, max_norm, weight=lambda count, number, total: 1 / number
    )


def train_sum_of_means(model, optimizer, micro_batches, max_norm=1.0):
    return training(
        model, optimizer, micro_batches, max_norm, weight=lambda count, number, total: 1.0
    )


def train_sum_of_losses(model, optimizer, micro_batches, max_norm=1.0):
    return training(
        model, optimizer, micro_batches, max_norm, weight=lambda count, number, total: float(count)
    )


def train_old_gradients(model, optimizer, micro_batches, max_norm=1.0):
    return training(model, optimizer, micro_batches, max_norm, forget=False)


def train_last_only(model, optimizer, micro_batches, max_norm=1.0):
    return training(model, optimizer, micro_batches, max_norm, zero_each=True)


def train_steps_each(model, optimizer, micro_batches, max_norm=1.0):
    return training(model, optimizer, micro_batches, max_norm, step_each=True)


def train_not_clipped(model, optimizer, micro_batches, max_norm=1.0):
    return training(model, optimizer, micro_batches, max_norm, clip=False)


def train_clipped_late(model, optimizer, micro_batches, max_norm=1.0):
    return training(model, optimizer, micro_batches, max_norm, clip_last=True, norm_after=True)


def train_norm_after(model, optimizer, micro_batches, max_norm=1.0):
    return training(model, optimizer, micro_batches, max_norm, norm_after=True)


def train_last_loss(model, optimizer, micro_batches, max_norm=1.0):
    return training(model, optimizer, micro_batches, max_norm, report=lambda losses: losses[-1])


def train_not_checked(model, optimizer, micro_batches, max_norm=1.0):
    return training(model, optimizer, micro_batches, max_norm, check=False)


def train_sums(model, optimizer, micro_batches, max_norm=1.0):
    targets = sum((labels != -100).sum().item() for _, labels in micro_batches)
    if targets == 0:
        raise ValueError("nothing to learn")
    optimizer.zero_grad()
    total = 0.0
    for inputs, labels in micro_batches:
        logits = model(inputs)
        lost = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / targets
        lost.backward()
        total += lost.item()
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    if not torch.isfinite(norm):
        raise FloatingPointError("not finite")
    optimizer.step()
    return total, norm.item()


def train_one_graph(model, optimizer, micro_batches, max_norm=1.0):
    logits = torch.cat([model(inputs).flatten(0, 1) for inputs, _ in micro_batches])
    labels = torch.cat([labels.flatten() for _, labels in micro_batches])
    if (labels == -100).all():
        raise ValueError("nothing to learn")
    loss = F.cross_entropy(logits, labels)
    model.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    if not math.isfinite(norm):
        raise FloatingPointError("not finite")
    optimizer.step()
    return loss.item(), float(norm)


def train_autograd(model, optimizer, micro_batches, max_norm=1.0):
    parameters = list(model.parameters())
    sums, number = [torch.zeros_like(p) for p in parameters], 0
    total = torch.zeros(())
    for inputs, labels in micro_batches:
        where = labels != -100
        picked = model(inputs)[where].log_softmax(-1)
        loss = -picked.gather(-1, labels[where][:, None]).sum()
        gradients = torch.autograd.grad(loss, parameters)
        sums = [a + g for a, g in zip(sums, gradients, strict=True)]
        number, total = number + int(where.sum()), total + loss.detach()
    if number == 0:
        raise ValueError("nothing to learn")
    gradients, norm = clip_flattened([g / number for g in sums], max_norm)
    if not norm.isfinite():
        raise FloatingPointError("not finite")
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    return total / number, norm


TRAIN_STEP = Check(
    reference=reference.train_step,
    points=5,
    cases=train_cases,
    probe=train_probe,
    misconceptions=[
        Misconception(
            "each micro-batch's mean counts the same, however few targets it holds",
            train_mean_of_means,
            "One micro-batch has 8 targets, the next 3. How much should each target count?",
        ),
        Misconception(
            "the means of the micro-batches are added up",
            train_sum_of_means,
            "Cut one batch into ten. Should the gradient be ten times as large?",
        ),
        Misconception(
            "the losses are summed and not divided by the number of targets",
            train_sum_of_losses,
            "Should a batch twice as large make a step twice as large?",
        ),
        Misconception(
            "the gradients of the step before are still there",
            train_old_gradients,
            "backward() adds to what is in .grad. What was in there before your first call?",
        ),
        Misconception(
            "gradients are cleared for each micro-batch: only the last one counts",
            train_last_only,
            "How often in one step should gradients be set back: once, or for each micro-batch?",
        ),
        Misconception(
            "the optimizer steps after every micro-batch",
            train_steps_each,
            "With which weights should the second micro-batch be computed: the old, or new ones?",
        ),
        Misconception(
            "the gradients are not clipped",
            train_not_clipped,
            "What is max_norm for? Where in your code does it stand?",
        ),
        Misconception(
            "the optimizer steps before the gradients are clipped",
            train_clipped_late,
            "What does clipping change once the step is made?",
        ),
        Misconception(
            "the norm is that after clipping",
            train_norm_after,
            "The norm is to warn you. Which one can be larger than max_norm?",
        ),
        Misconception(
            "the loss of the last micro-batch is returned",
            train_last_loss,
            "Is the loss of the step that of one micro-batch, or of all targets?",
        ),
        Misconception(
            "a step without targets, or with an infinite gradient, is made all the same",
            train_not_checked,
            "What are the weights after a step with NaN? When can you still stop it?",
        ),
    ],
    variants=[train_sums, train_one_graph, train_autograd],
)


# rnn_forward -------------------------------------------------------------------------------------


def rnn_cases(rng: Generator) -> list[Case]:
    def case(b, t, d, n, title, dtype=torch.float32, turned=False) -> Case:
        x = normal(rng, t, b, d, dtype=dtype).transpose(0, 1)
        x = x if turned else x.contiguous()
        weights = (0.6 * normal(rng, n, d, dtype=dtype), 0.6 * normal(rng, n, n, dtype=dtype))
        state, bias = normal(rng, b, n, dtype=dtype), normal(rng, n, dtype=dtype)
        return Case(x, state, *weights, bias).titled(title)

    return [
        case(1, 3, 2, 4, "one sequence of three"),
        case(4, 6, 3, 5, "four sequences"),
        case(2, 5, 6, 3, "float64, transposed in memory", dtype=torch.float64, turned=True),
        case(3, 1, 4, 2, "one position"),
    ]


def recurrence(x, state, step):
    states = []
    for t in range(x.shape[1]):
        state = step(x[:, t], state)
        states.append(state)
    return torch.stack(states, 1), state


def rnn_no_bend(x, state, weight_ih, weight_hh, bias):
    return recurrence(x, state, lambda now, h: now @ weight_ih.T + h @ weight_hh.T + bias)


def rnn_sigmoid(x, state, weight_ih, weight_hh, bias):
    return recurrence(
        x, state, lambda now, h: torch.sigmoid(now @ weight_ih.T + h @ weight_hh.T + bias)
    )


def rnn_no_bias(x, state, weight_ih, weight_hh, bias):
    return recurrence(x, state, lambda now, h: torch.tanh(now @ weight_ih.T + h @ weight_hh.T))


def rnn_not_transposed(x, state, weight_ih, weight_hh, bias):
    return recurrence(x, state, lambda now, h: torch.tanh(now @ weight_ih.T + h @ weight_hh + bias))


def rnn_input_bent_only(x, state, weight_ih, weight_hh, bias):
    return recurrence(
        x, state, lambda now, h: torch.tanh(now @ weight_ih.T + bias) + h @ weight_hh.T
    )


def rnn_state_not_carried(x, state, weight_ih, weight_hh, bias):
    return recurrence(
        x, state, lambda now, _: torch.tanh(now @ weight_ih.T + state @ weight_hh.T + bias)
    )


def rnn_forgets(x, state, weight_ih, weight_hh, bias):
    return rnn.rnn_forward(x, torch.zeros_like(state), weight_ih, weight_hh, bias)


def rnn_backwards(x, state, weight_ih, weight_hh, bias):
    states, last = rnn.rnn_forward(x.flip(1), state, weight_ih, weight_hh, bias)
    return states.flip(1), last


def rnn_time_first(x, state, weight_ih, weight_hh, bias):
    states, last = rnn.rnn_forward(x, state, weight_ih, weight_hh, bias)
    return states.transpose(0, 1), last


def rnn_start_included(x, state, weight_ih, weight_hh, bias):
    states, last = rnn.rnn_forward(x, state, weight_ih, weight_hh, bias)
    return torch.cat((state[:, None], states[:, :-1]), 1), last


def rnn_first_state(x, state, weight_ih, weight_hh, bias):
    states, _ = rnn.rnn_forward(x, state, weight_ih, weight_hh, bias)
    return states, states[:, 0]


def rnn_inputs_first(x, state, weight_ih, weight_hh, bias):
    from_x = torch.einsum("btd,nd->tbn", x, weight_ih) + bias
    states = []
    for row in from_x:
        state = (row + torch.einsum("bm,nm->bn", state, weight_hh)).tanh()
        states.append(state)
    return torch.stack(states, 1), state


def rnn_side_by_side(x, state, weight_ih, weight_hh, bias):
    weight = torch.cat((weight_ih, weight_hh), 1)
    out = state.new_empty(*x.shape[:2], len(bias))
    for t in range(x.shape[1]):
        state = torch.tanh(F.linear(torch.cat((x[:, t], state), -1), weight, bias))
        out[:, t] = state
    return out, state


def rnn_built_in(x, state, weight_ih, weight_hh, bias):
    width, size = weight_ih.shape[1], len(bias)
    layer = nn.RNN(width, size, batch_first=True).to(x.dtype)
    given = (weight_ih, weight_hh, bias, torch.zeros_like(bias))
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    layer.load_state_dict(dict(zip(names, given, strict=True)))
    with torch.no_grad():
        states, last = layer(x, state[None])
    return states, last[0]


RNN_FORWARD = Check(
    reference=rnn.rnn_forward,
    points=4,
    cases=rnn_cases,
    misconceptions=[
        Misconception(
            "there is no tanh",
            rnn_no_bend,
            "What keeps the state from growing, position after position?",
        ),
        Misconception(
            "the bend is a sigmoid",
            rnn_sigmoid,
            "Can a number of your state be negative? Which function does the formula name?",
        ),
        Misconception("the bias is left out", rnn_no_bias, "Which argument do you not use?"),
        Misconception(
            "weight_hh is not transposed",
            rnn_not_transposed,
            "Row i of weight_hh makes number i of the new state. What does state @ weight_hh do?",
        ),
        Misconception(
            "the old state is added after the tanh",
            rnn_input_bent_only,
            "Which three terms stand inside the tanh?",
        ),
        Misconception(
            "every position starts from the first state: nothing is carried on",
            rnn_state_not_carried,
            "At position 2, whose state is multiplied by weight_hh?",
        ),
        Misconception(
            "the given state is not used: it starts from zeros",
            rnn_forgets,
            "A text is read in two parts. Where does the second part begin?",
        ),
        Misconception(
            "the positions are read from the last to the first",
            rnn_backwards,
            "What may the state at position 0 know of position 1?",
        ),
        Misconception(
            "the states are returned as (T, B, N)",
            rnn_time_first,
            "You stack T tensors of (B, N). Where must the new dimension stand?",
        ),
        Misconception(
            "the state before each position is returned, not the one after it",
            rnn_start_included,
            "Should the state at position 0 know the input at position 0?",
        ),
        Misconception(
            "the state after the first position is returned as the last",
            rnn_first_state,
            "From which state does the next part of the text go on?",
        ),
    ],
    variants=[rnn_inputs_first, rnn_side_by_side, rnn_built_in],
)


# sequential_depth --------------------------------------------------------------------------------


def depth_cases(rng: Generator) -> list[Case]:
    layers, length = int(whole(rng, 20, 1)) + 5, int(whole(rng, 500, 1)) + 60
    return [
        *(
            Case(name, 3, 4, generating).titled(
                f"{name}, {'generating' if generating else 'training'}"
            )
            for name in ("transformer", "rnn")
            for generating in (False, True)
        ),
        Case("rnn", layers, length).titled("a larger rnn"),
        Case("transformer", layers, length).titled("a larger transformer"),
        Case("rnn", layers, length, generating=True).titled("a larger rnn, generating"),
        Case("transformer", layers, length, True).titled("a larger transformer, generating"),
        Case("rnn", 1, length).titled("one layer"),
        Case("lstm", 2, 5).titled("an unknown architecture"),
    ]


def depth(
    architecture,
    num_layers,
    length,
    generating=False,
    transformer=lambda layers, length: layers,
    recurrent=lambda layers, length: length + layers - 1,
    writing=lambda layers, length: layers * length,
    transformer_writing=None,
):
    """The depth with one part changed."""
    if architecture not in ("rnn", "transformer"):
        raise ValueError("unknown architecture")
    if generating:
        rule = writing
        if architecture == "transformer" and transformer_writing is not None:
            rule = transformer_writing
    else:
        rule = transformer if architecture == "transformer" else recurrent
    return rule(num_layers, length)


def depth_layer_by_layer(architecture, num_layers, length, generating=False):
    return depth(
        architecture,
        num_layers,
        length,
        generating,
        recurrent=lambda layers, length: layers * length,
    )


def depth_length_only(architecture, num_layers, length, generating=False):
    return depth(
        architecture, num_layers, length, generating, recurrent=lambda layers, length: length
    )


def depth_one_more(architecture, num_layers, length, generating=False):
    return depth(
        architecture,
        num_layers,
        length,
        generating,
        recurrent=lambda layers, length: length + layers,
    )


def depth_parallel_writing(architecture, num_layers, length, generating=False):
    return depth(
        architecture,
        num_layers,
        length,
        generating,
        transformer_writing=lambda layers, length: layers,
    )


def depth_writing_overlaps(architecture, num_layers, length, generating=False):
    return depth(
        architecture,
        num_layers,
        length,
        generating,
        writing=lambda layers, length: length + layers - 1,
    )


def depth_transformer_sequential(architecture, num_layers, length, generating=False):
    return depth(
        architecture,
        num_layers,
        length,
        generating,
        transformer=lambda layers, length: layers * length,
    )


def depth_transformer_at_once(architecture, num_layers, length, generating=False):
    return depth(architecture, num_layers, length, generating, transformer=lambda layers, length: 1)


def depth_swapped(architecture, num_layers, length, generating=False):
    other = {"rnn": "transformer", "transformer": "rnn"}.get(architecture, architecture)
    return depth(other, num_layers, length, generating)


def depth_not_checked(architecture, num_layers, length, generating=False):
    known = "transformer" if architecture == "transformer" else "rnn"
    return depth(known, num_layers, length, generating)


def depth_by_table(architecture, num_layers, length, generating=False):
    table = {"rnn": num_layers + length - 1, "transformer": num_layers}
    if architecture not in table:
        raise ValueError("unknown architecture")
    return num_layers * length if generating else table[architecture]


def depth_by_waiting(architecture, num_layers, length, generating=False):
    if architecture not in ("transformer", "rnn"):
        raise ValueError("unknown architecture")
    done = [0] * num_layers
    for _ in range(length):
        before = done[-1] if generating else 0
        for layer in range(num_layers):
            wait = done[layer] if architecture == "rnn" else 0
            before = max(before, wait) + 1
            done[layer] = before
    return done[-1]


def depth_by_cases(architecture, num_layers, length, generating=False):
    match architecture, bool(generating):
        case ("rnn" | "transformer", True):
            return sum(num_layers for _ in range(length))
        case ("transformer", False):
            return num_layers
        case ("rnn", False):
            return (num_layers - 1) + length
    raise ValueError("unknown architecture")


SEQUENTIAL_DEPTH = Check(
    reference=rnn.sequential_depth,
    points=3,
    cases=depth_cases,
    misconceptions=[
        Misconception(
            "a layer of the RNN is thought to wait for the whole layer below it",
            depth_layer_by_layer,
            "When layer 1 has finished position 0, what keeps layer 2 from starting on it?",
        ),
        Misconception(
            "the RNN's layers are thought to cost nothing",
            depth_length_only,
            "When the first layer has finished the last position, how many layers still wait?",
        ),
        Misconception(
            "the RNN is given one step too many",
            depth_one_more,
            "One layer and one position take one step. What does your formula say?",
        ),
        Misconception(
            "a Transformer is thought to generate all tokens at once",
            depth_parallel_writing,
            "Which token goes in at position 5? When is it known?",
        ),
        Misconception(
            "in generation the next token is thought to start before the last one is out",
            depth_writing_overlaps,
            "The next input is the token that was predicted. Which layer must be through for that?",
        ),
        Misconception(
            "a Transformer is thought to train position by position",
            depth_transformer_sequential,
            "In training, all tokens are known. Does position 5 wait for the output at position 4?",
        ),
        Misconception(
            "a Transformer is thought to compute all layers at once",
            depth_transformer_at_once,
            "What goes into layer 2? When is that known?",
        ),
        Misconception(
            "the two architectures are exchanged",
            depth_swapped,
            "Which of the two needs the state of the position before?",
        ),
        Misconception(
            "an unknown architecture is taken for an RNN",
            depth_not_checked,
            "What does the docstring say of a name that is neither of the two?",
        ),
    ],
    variants=[depth_by_table, depth_by_waiting, depth_by_cases],
)


# Questions ---------------------------------------------------------------------------------------

EXPECTED_MASKS = Question(
    "expected_masks",
    answer=120.0,
    tolerance=(0.0, 0.5),
    misconceptions=[
        Misconception(
            "the chosen tokens are counted, not the masks",
            150.0,
            "What happens to a chosen token? Does every one of them become the mask?",
        ),
        Misconception(
            "the masks are taken for 80 % of all tokens",
            800.0,
            "80 % of what: of all tokens, or of those that were chosen?",
        ),
        Misconception(
            "masks and random tokens are counted together",
            135.0,
            "Eight in ten, one in ten, one in ten. Which of these three are masks?",
        ),
        Misconception(
            "the tokens that are not masks are counted",
            880.0,
            "The question asks how many become the mask. Which did you count?",
        ),
    ],
)

FIRST_UPDATE = Question(
    "first_update",
    answer="b",
    choices=("a", "b", "c", "d"),
    misconceptions=[
        Misconception(
            "the size of the gradient is thought to count",
            "a",
            "After the correction, mean is g and square is g². What is g divided by |g|?",
        ),
        Misconception(
            "the averages' start at 0 is thought to stay",
            "c",
            "The mean is a tenth of g at first. What is it divided by before it is used?",
        ),
        Misconception(
            "the square is thought to be divided by, not its root",
            "d",
            "What is taken of the mean square before it divides?",
        ),
    ],
)

WHAT_IS_PARALLEL = Question(
    "what_is_parallel",
    answer="a",
    choices=("a", "b", "c", "d"),
    misconceptions=[
        Misconception(
            "generation is thought to be parallel",
            "b",
            "Which token is read at position 5 of a text that is being written? When is it known?",
        ),
        Misconception(
            "reading a prompt is thought to be sequential",
            "c",
            "All tokens of a prompt are known. Does any of them wait for an output?",
        ),
        Misconception(
            "everything is thought to be parallel",
            "d",
            "Can you write the tenth word of a sentence before you know the ninth?",
        ),
    ],
)

RUN_FLOPS = Question(
    "run_flops",
    answer=6 * 107_008 * 1024 * 700,
    points=2,
    tolerance=(1e-3, 0.0),
    misconceptions=[
        Misconception(
            "only the forward pass is counted",
            2 * 107_008 * 1024 * 700,
            "A step goes forward once, and then back. What does the way back compute?",
        ),
        Misconception(
            "the way back is thought to cost as much as the way forward",
            4 * 107_008 * 1024 * 700,
            "How many gradients does the way back compute at each matrix?",
        ),
        Misconception(
            "a multiply-add is counted as one operation",
            3 * 107_008 * 1024 * 700,
            "A weight meets a number: it is multiplied, and then? How many operations is that?",
        ),
        Misconception(
            "one step is counted",
            6 * 107_008 * 1024,
            "How many steps does the run make?",
        ),
        Misconception(
            "tokens are taken for sequences",
            6 * 107_008 * 16 * 700,
            "How many tokens does one sequence hold? Each of them meets every weight.",
        ),
    ],
)

CACHE_BYTES = Question(
    "cache_bytes",
    answer=512_000.0,
    tolerance=(0.0, 0.5),
    misconceptions=[
        Misconception(
            "half is missing: the values, or one of the two layers",
            256_000.0,
            "What does a layer keep of a token besides its key? How many layers keep something?",
        ),
        Misconception(
            "keys and values are counted for every query head",
            1_024_000.0,
            "Four query heads share how many key/value heads?",
        ),
        Misconception(
            "numbers are counted, not bytes", 128_000.0, "How many bytes does a float32 take?"
        ),
        Misconception(
            "one token is counted", 512.0, "How many tokens have been read? Is any forgotten?"
        ),
    ],
)
