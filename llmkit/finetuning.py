"""Fine-tuning: a model that continues text learns to answer.

A conversation becomes one text (`render_chat`) whose answers alone are learned (`sft_labels`,
`sft_loss`); short conversations share a row without seeing each other (`pack`). `finetune` trains
whatever parameters require gradients: all of them, or the adapters that `llmkit.lora.add_lora` set.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from llmkit.losses import IGNORE_INDEX, cross_entropy, shift_labels
from llmkit.pretraining import cosine_schedule, decay_groups, train_step
from llmkit.tokenization import Tokenizer
from llmkit.transformer import Llama

Message = Mapping[str, str]  # "role" (system, user or assistant) and "content"
Example = tuple[Sequence[int], Sequence[int]]  # input ids and labels of one conversation

# what SmolLM2 was told in training where nobody told it otherwise
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def render_chat(
    messages: Sequence[Message], add_generation_prompt: bool = True, system: str | None = SYSTEM
) -> str:
    """A conversation as ChatML, exactly as SmolLM2's own template writes it.

    Each message is <|im_start|>role, a line feed, content, <|im_end|>, a line feed. Where the first
    message is not the system's, one that says `system` is put before it, unless that is None. With
    `add_generation_prompt` the text ends with the head of an answer, for the model to go on with.
    """
    told = bool(messages) and messages[0]["role"] == "system"
    if messages and not told and system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
    return "".join([*turns, "<|im_start|>assistant\n" if add_generation_prompt else ""])


def sft_labels(input_ids: Tensor, header: Sequence[int], stop_ids: Collection[int]) -> Tensor:
    """The labels of a conversation: the next token where that is an answer's, else −100.

    An answer begins after `header`, the tokens that open an assistant's turn, and ends with the
    first of `stop_ids`, which is learned too: else the model never learns to stop. A conversation
    may hold several answers, and end within one.

    Shapes: (T,) -> (T,). Raises ValueError if there is no answer.
    """
    ids, header = input_ids.tolist(), list(header)
    answered, within = [], False
    for i, token in enumerate(ids):
        answered.append(within)
        if within:
            within = token not in stop_ids
        else:
            within = ids[max(i + 1 - len(header), 0) : i + 1] == header
    if not any(answered):
        raise ValueError("The conversation has no answer to learn: it needs an assistant's turn.")
    answers = torch.tensor(answered, device=input_ids.device)
    return shift_labels(input_ids.where(answers, IGNORE_INDEX))


def sft_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the answers' tokens, averaged over all of them in the batch, in nats.

    The prompts' tokens have label −100: their logits get no gradient at all.

    Shapes: logits (..., V), labels (...) as `sft_labels` makes them -> ().
    Raises ValueError if every label is −100.
    """
    learned = labels != IGNORE_INDEX
    return cross_entropy(logits[learned], labels[learned])  # no softmax where nothing is asked


def pack(
    examples: Sequence[Example], length: int, pad_id: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Examples side by side in rows of `length`: input ids, labels, and segment numbers.

    Each example goes, in the order given, into the first row with room for it. A row's examples are
    numbered 1, 2, 3 … in the segments, where padding is 0 (and −100 in the labels): given to
    `Llama` as its attention mask, they let no token see another example, and each one's positions
    count from 0. So the logits are those of each example alone.

    Shapes: -> three of (rows, length) of int64.
    Raises ValueError for no examples, an empty one, or one longer than a row.
    """
    if not examples:
        raise ValueError("There are no examples to pack.")
    rows: list[list[Example]] = []
    for i, (input_ids, labels) in enumerate(examples):
        if len(input_ids) != len(labels) or not 1 <= len(input_ids) <= length:
            raise ValueError(
                f"Example {i} has {len(input_ids)} input ids and {len(labels)} labels: it needs as "
                f"many of both, and 1 to {length}, the length of a row."
            )
        room = (r for r in rows if sum(len(ids) for ids, _ in r) + len(input_ids) <= length)
        row = next(room, None)
        if row is None:
            rows.append(row := [])
        row.append((input_ids, labels))
    packed = torch.empty(3, len(rows), length, dtype=torch.long)
    for fill, tensor in zip((pad_id, IGNORE_INDEX, 0), packed, strict=True):
        tensor.fill_(fill)
    for i, row in enumerate(rows):
        start = 0
        for segment, (input_ids, labels) in enumerate(row, start=1):
            here = slice(start, start := start + len(input_ids))
            packed[0, i, here] = torch.as_tensor(input_ids)
            packed[1, i, here] = torch.as_tensor(labels)
            packed[2, i, here] = segment
    return packed[0], packed[1], packed[2]


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Message]) -> Example:
    """A conversation as input ids and labels, by the model's own chat template.

    A tokenizer without a template gets `render_chat`. An answer is encoded apart from the header
    before it, as in generation, where the header is given and the answer comes token by token.

    Raises ValueError for a conversation without an answer, one whose texts hold the template's own
    marks, and a template that ends answers with no token that stops the model.
    """
    render = tokenizer.apply_chat_template if tokenizer.chat_template else render_chat
    text = render(messages, False)
    header_text = render(messages, True).removeprefix(text)
    opening, *answers = text.split(header_text) if header_text else [text]
    count = sum(message["role"] == "assistant" for message in messages)
    if not count == len(answers) > 0:
        raise ValueError(
            f"The conversation has {count} answers, but its chat template opens {len(answers)}: it "
            "needs one or more, and texts that do not hold the template's own marks."
        )
    ids = tokenizer.encode(opening, add_special_tokens=False)
    header = tokenizer.encode(header_text, add_special_tokens=False)
    for answer in answers:
        its = tokenizer.encode(answer, add_special_tokens=False)
        if not tokenizer.stop_ids & set(its):
            raise ValueError("The chat template ends an answer with no token that stops the model.")
        ids += header + its
    return ids, sft_labels(torch.tensor(ids), header, tokenizer.stop_ids).tolist()


def finetune(
    model: Llama,
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Message]],
    *,
    epochs: int = 3,
    batch_size: int = 1,
    length: int = 512,
    peak_lr: float = 5e-4,
    warmup: float = 0.1,
    weight_decay: float = 0.0,
    max_norm: float = 1.0,
    seed: int = 0,
    progress: bool = True,
) -> list[float]:
    """Teach a model to answer as in these conversations; returns the loss of every step.

    Trains the parameters that require gradients: after `add_lora(model)` the adapters, after
    `model.requires_grad_(True)` all. All want a peak_lr some ten times lower. The model stays on
    its device; on CUDA it computes in bfloat16 (autocast). Ctrl-C ends the run and keeps what was
    learned. The same seed gives the same weights on the same CPU.

    epochs:       how often every conversation is seen
    batch_size:   rows per optimizer step, each `length` tokens of packed conversations
    peak_lr:      AdamW's, after a warm-up over the first part `warmup` of all steps; then a cosine
    weight_decay: of matrices; see also `llmkit.pretraining.clip_gradients` for max_norm

    Raises ValueError for what cannot be trained, FloatingPointError if the training diverges.
    """
    _check(model, length, {"epochs": epochs, "batch_size": batch_size, "peak_lr": peak_lr}, warmup)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(conversations), generator=generator).tolist()
    rows = pack([encode_chat(tokenizer, conversations[i]) for i in order], length)
    steps_per_epoch = -(-len(rows[0]) // batch_size)
    steps = epochs * steps_per_epoch
    optimizer = torch.optim.AdamW(decay_groups(model, weight_decay), peak_lr)
    losses: list[float] = []
    was_training = model.training
    model.train()
    bar = tqdm(range(steps), desc="fine-tuning", unit="step", disable=not progress)
    try:
        for step in bar:
            if step % steps_per_epoch == 0:
                shuffled = torch.randperm(len(rows[0]), generator=generator).split(batch_size)
            for group in optimizer.param_groups:
                group["lr"] = cosine_schedule(step, steps, peak_lr, round(warmup * steps))
            here = shuffled[step % steps_per_epoch]
            batch = _batch(model, *(tensor[here] for tensor in rows))
            loss, _ = train_step(
                lambda given: _answer_logits(model, *given), optimizer, [batch], max_norm
            )
            losses.append(loss)
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
    except KeyboardInterrupt:
        bar.close()
    finally:
        optimizer.zero_grad()
        model.train(was_training)
    return losses


@torch.no_grad()
def answer_loss(
    model: Llama,
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Message]],
    length: int = 512,
) -> float:
    """Mean `sft_loss` over all the answers' tokens, in nats: what `finetune` makes small."""
    rows = pack([encode_chat(tokenizer, messages) for messages in conversations], length)
    total = count = 0
    for row in zip(*rows, strict=True):
        inputs, labels = _batch(model, *(tensor[None] for tensor in row))
        total += sft_loss(_answer_logits(model, *inputs), labels).item() * len(labels)
        count += len(labels)
    return total / count


def _batch(
    model: Llama, input_ids: Tensor, labels: Tensor, segments: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """What `_answer_logits` takes, and the labels that it answers to, on the model's device."""
    device = model.model.embed_tokens.weight.device
    learned = labels != IGNORE_INDEX
    return tuple(t.to(device) for t in (input_ids, segments, learned)), labels[learned].to(device)


def _answer_logits(model: Llama, input_ids: Tensor, segments: Tensor, learned: Tensor) -> Tensor:
    """Logits of the N positions whose labels count, of packed rows (B, T): (N, V) float32.

    The prompts' would be half of the memory, and get no gradient.
    """
    kind = input_ids.device.type
    with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
        hidden = model.model(input_ids, attention_mask=segments)
        return model.lm_head(hidden[learned]).float()


def _check(model: nn.Module, length: int, positive: Mapping[str, float], warmup: float) -> None:
    limit = model.config.max_position_embeddings
    if not 1 <= length <= limit:
        raise ValueError(f"length must lie in 1 … {limit}, the model's context, not {length}.")
    for name, number in positive.items():
        if not number > 0:
            raise ValueError(f"{name} must be above 0, not {number}.")
    if not 0 <= warmup <= 1:
        raise ValueError(f"warmup must lie in 0 … 1, a part of all steps, not {warmup}.")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "No parameter requires gradients: call add_lora(model) to train adapters, or "
            "model.requires_grad_(True) to train all."
        )
