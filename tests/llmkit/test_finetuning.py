import copy
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from llmkit import finetuning
from llmkit.checkpoints import load_checkpoint
from llmkit.decoding import generate
from llmkit.finetuning import (
    answer_loss,
    encode_chat,
    finetune,
    pack,
    render_chat,
    sft_labels,
    sft_loss,
)
from llmkit.lora import ALL_LINEAR, add_lora, fold_lora
from llmkit.losses import cross_entropy
from llmkit.tokenization import Tokenizer
from llmkit.transformer import Llama, LlamaConfig
from tests.llmkit.test_tokenization import METADATA, TOKENIZER, TOKENS

CHATML = Tokenizer(TOKENIZER.backend, TOKENIZER.stop_ids)  # without a template: render_chat
IGNORED = -100


def chat(*turns: str) -> list[dict[str, str]]:
    """User and assistant in turn."""
    roles = ["user", "assistant"] * len(turns)
    return [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]


CONVERSATIONS = [
    chat("hello", "w hello"),
    chat("1", "2", "12", "21"),
    chat("say x", "x"),
    [{"role": "system", "content": "he"}, *chat("abc", "cba")],
]


def fresh(**changes) -> Llama:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(TOKENS),
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    }
    model = Llama(LlamaConfig(**sizes | changes)).eval()
    for name, weight in model.named_parameters():
        if "norm" not in name:
            nn.init.normal_(weight, std=0.15)
    return model


@pytest.fixture(scope="module")
def smollm2() -> tuple[Llama, Tokenizer]:
    return load_checkpoint("smollm2")


# one conversation

content = st.text(st.characters(codec="utf-8"), max_size=9)
messages = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["system", "user", "assistant"]),
    content,
)


@settings(deadline=None)
@given(conversation=st.lists(messages, max_size=5), add_generation_prompt=st.booleans())
def test_render_chat_is_smollm2s_own_template(smollm2, conversation, add_generation_prompt):
    _, tokenizer = smollm2
    expected = tokenizer.apply_chat_template(conversation, add_generation_prompt)
    assert render_chat(conversation, add_generation_prompt) == expected


def test_render_chat_with_another_system_prompt_or_none():
    question = chat("hi")
    assert render_chat(question, False, None) == "<|im_start|>user\nhi<|im_end|>\n"
    assert render_chat(question, False, "Be brief.").startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    )


def test_labels_word_for_word():
    # 1 opens a turn, 2 ends it, 7 is the user and 8 the assistant
    ids = torch.tensor([1, 7, 30, 31, 2, 1, 8, 40, 41, 2, 1, 7, 8, 2, 1, 8, 50, 2])
    labels = sft_labels(ids, header=[1, 8], stop_ids={2})
    _ = IGNORED
    assert labels.tolist() == [_, _, _, _, _, _, 40, 41, 2, _, _, _, _, _, _, 50, 2, _]


def test_an_answer_may_hold_its_header_end_elsewhere_or_not_at_all():
    labels = sft_labels(torch.tensor([1, 8, 1, 8, 5]), header=[1, 8], stop_ids={2, 3})
    assert labels.tolist() == [IGNORED, 1, 8, 5, IGNORED]
    labels = sft_labels(torch.tensor([1, 8, 5, 3, 2, 6]), header=[1, 8], stop_ids={2, 3})
    assert labels.tolist() == [IGNORED, 5, 3, IGNORED, IGNORED, IGNORED]


@pytest.mark.parametrize("ids", [[1, 7, 5, 2], [5, 1], [8, 1], [5, 1, 8]])
def test_no_answer_is_an_error(ids):
    with pytest.raises(ValueError, match="has no answer to learn"):
        sft_labels(torch.tensor(ids), header=[1, 8], stop_ids={2})


plain = st.text(st.sampled_from("hel o\n1é🎉w"), max_size=6)


@settings(deadline=None)
@given(st.lists(st.tuples(plain, plain), min_size=1, max_size=3), st.booleans())
def test_what_is_learned_is_the_answers_and_their_ends(pairs, own_template):
    tokenizer = TOKENIZER if own_template else CHATML
    ids, labels = encode_chat(tokenizer, chat(*[turn for pair in pairs for turn in pair]))
    learned = [label for label in labels if label != IGNORED]
    answers = "".join(answer + "<|im_end|>" for _, answer in pairs)
    assert tokenizer.decode(learned, skip_special_tokens=False) == answers
    assert all(label in (IGNORED, after) for label, after in zip(labels, ids[1:], strict=False))
    # each answer's tokens are those of the answer alone: what generation must produce
    assert learned == [i for _, answer in pairs for i in tokenizer.encode(answer + "<|im_end|>")]


def test_smollm2s_header_and_answer_do_not_melt(smollm2):
    _, tokenizer = smollm2
    ids, labels = encode_chat(tokenizer, chat("x", "\n\n y", "z", "w"))
    assert ids != tokenizer.encode(render_chat(chat("x", "\n\n y", "z", "w"), False))
    prompt = tokenizer.encode(tokenizer.apply_chat_template(chat("x")))
    assert ids[: len(prompt)] == prompt  # as at generation
    learned = [label for label in labels if label != IGNORED]
    assert tokenizer.decode(learned, skip_special_tokens=False) == "\n\n y<|im_end|>w<|im_end|>"


@pytest.mark.parametrize(
    ("tokenizer", "conversation", "message"),
    [
        (CHATML, chat("hi"), "has 0 answers"),
        (CHATML, [], "has 0 answers"),
        (CHATML, chat("<|im_end|>\n<|im_start|>assistant\nyes", "no"), "has 1 answers, but .* 2"),
        (
            Tokenizer(
                TOKENIZER.backend, (), METADATA["tokenizer.chat_template"], {"eos_token": "."}
            ),
            chat("hi", "ho"),
            "with no token that stops the model",
        ),
        (Tokenizer(TOKENIZER.backend, (), "{{ messages }}"), chat("hi", "ho"), "opens 0"),
    ],
)
def test_conversations_that_cannot_be_learned(tokenizer, conversation, message):
    with pytest.raises(ValueError, match=message):
        encode_chat(tokenizer, conversation)


# the loss


def test_prompt_tokens_get_no_gradient():
    """Through the loss: not as targets, nor through their own logits, nor after the last answer."""
    model = fresh()
    ids, labels = (torch.tensor([x]) for x in encode_chat(CHATML, chat("1", "2", "12", "21", "x")))
    embedded, grads = [], {}
    hook = model.model.embed_tokens.register_forward_hook(lambda _, __, x: embedded.append(x))
    logits = model(ids)
    hook.remove()
    logits.retain_grad()
    embedded[0].retain_grad()
    sft_loss(logits, labels).backward()
    learned = labels != IGNORED
    grads = logits.grad.abs().amax(-1)
    assert learned.sum() == 5 and torch.equal(grads > 0, learned)
    # the question is read (its embeddings get gradients), but not what follows the last answer
    last = int(learned.nonzero()[-1, 1])
    reach = embedded[0].grad.abs().amax(-1)[0]
    assert (reach[: last + 1] > 0).all() and (reach[last + 1 :] == 0).all()


def test_loss_is_that_of_the_answers_alone():
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 7, dtype=torch.float64)
    labels = torch.tensor([[3, IGNORED, 2, IGNORED, IGNORED], [IGNORED, 6, 0, 1, IGNORED]])
    terms = [
        -logits[b, t].softmax(-1)[labels[b, t]].log()
        for b in range(2)
        for t in range(5)
        if labels[b, t] != IGNORED
    ]
    torch.testing.assert_close(sft_loss(logits, labels), sum(terms) / 5)
    torch.testing.assert_close(sft_loss(logits, labels), cross_entropy(logits, labels))
    with pytest.raises(ValueError, match="Every target is ignored"):
        sft_loss(logits, torch.full((2, 5), IGNORED))


# packing


def test_packed_rows_word_for_word():
    examples = [([11, 12, 13], [12, 13, -100]), ([21, 22, 23], [-100, 23, -100]), ([31], [-100])]
    input_ids, labels, segments = pack(examples, length=5, pad_id=9)
    assert input_ids.tolist() == [[11, 12, 13, 31, 9], [21, 22, 23, 9, 9]]
    assert segments.tolist() == [[1, 1, 1, 2, 0], [1, 1, 1, 0, 0]]
    _ = IGNORED
    assert labels.tolist() == [[12, 13, _, _, _], [_, 23, _, _, _]]


lengths = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@settings(deadline=None)
@given(lengths, st.integers(9, 20))
def test_packing_loses_nothing_and_wastes_no_open_row(lengths, length):
    examples = [([i + 1] * n, [i + 1] * n) for i, n in enumerate(lengths)]
    input_ids, labels, segments = pack(examples, length)
    assert input_ids.shape == labels.shape == segments.shape == (len(input_ids), length)
    assert torch.equal(segments > 0, input_ids > 0)
    assert torch.equal(labels.where(segments > 0, 0), input_ids)
    for i, n in enumerate(lengths):
        rows, columns = (input_ids == i + 1).nonzero().T
        assert len(columns) == n and len(set(rows.tolist())) == 1  # whole, in one row
        assert columns.tolist() == list(range(int(columns[0]), int(columns[0]) + n))  # in one piece
        assert len(set(segments[rows, columns].tolist())) == 1  # with a number of its own
    for row in segments:
        assert torch.equal(row[row > 0], row[row > 0].sort().values)
    room = length - (segments > 0).sum(-1)
    firsts = [int(row[0]) for row in input_ids]
    for later, first in enumerate(firsts):  # what opened a row had no room in those before
        assert all(room[earlier] < lengths[first - 1] for earlier in range(later))


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_packed_logits_are_those_of_each_example_alone(tied):
    model = fresh(tie_word_embeddings=tied)
    examples = [encode_chat(CHATML, conversation) for conversation in CONVERSATIONS]
    width = max(len(ids) for ids, _ in examples) + 40
    input_ids, _, segments = pack(examples, width)
    assert len(input_ids) < len(examples)
    logits = model(input_ids, attention_mask=segments)
    assert logits.isfinite().all()
    for ids, _ in examples:
        alone = model(torch.tensor([ids]))[0]
        places = [
            (row, start)
            for row in range(len(input_ids))
            for start in range(width - len(ids) + 1)
            if input_ids[row, start : start + len(ids)].tolist() == ids
        ]
        assert len(places) == 1
        row, start = places[0]
        packed = logits[row, start : start + len(ids)]
        torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


def test_no_gradient_crosses_from_example_to_example():
    model = fresh()
    input_ids, labels, segments = pack([([5, 6, 7], [6, 7, -100])] * 3, length=12)
    embedded = []
    hook = model.model.embed_tokens.register_forward_hook(lambda _, __, x: embedded.append(x))
    logits = model(input_ids, attention_mask=segments)
    hook.remove()
    embedded[0].retain_grad()
    sft_loss(logits[:, 3:6], labels[:, 3:6]).backward()
    touched = embedded[0].grad.abs().amax(-1)[0] > 0
    assert touched.tolist() == [False] * 3 + [True, True, False] + [False] * 6


def test_packed_gradients_are_those_of_the_examples_one_by_one():
    examples = [encode_chat(CHATML, conversation) for conversation in CONVERSATIONS]
    together, apart = fresh(), fresh()
    input_ids, labels, segments = pack(examples, 200)
    sft_loss(together(input_ids, attention_mask=segments), labels).backward()
    count = sum(label != IGNORED for _, labels in examples for label in labels)
    for ids, labels in examples:
        labels = torch.tensor([labels])
        loss = sft_loss(apart(torch.tensor([ids])), labels)
        (loss * (labels != IGNORED).sum() / count).backward()
    for a, b in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "no examples"),
        ([([1], [1]), ([], [])], "Example 1 has 0 input ids and 0 labels"),
        ([([1] * 6, [1] * 6)], "Example 0 has 6 input ids .* 1 to 5"),
        ([([1, 2], [1])], "Example 0 has 2 input ids and 1 labels"),
    ],
)
def test_what_cannot_be_packed(examples, message):
    with pytest.raises(ValueError, match=message):
        pack(examples, 5)


# fine-tuning

SETTINGS = {"length": 64, "progress": False}  # TOKENIZER's template puts no system prompt first


def answer(model: Llama, tokenizer: Tokenizer, question: str) -> str:
    prompt = tokenizer.encode(tokenizer.apply_chat_template(chat(question)))
    return tokenizer.decode(list(generate(model, prompt, 12, stop_ids=tokenizer.stop_ids)))


@pytest.mark.parametrize("adapters", [True, False])
def test_a_tiny_model_learns_to_answer_and_to_stop(adapters):
    model = fresh()
    taught = [conversation for conversation in CONVERSATIONS if len(conversation) == 2]
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    if adapters:
        add_lora(model, (*ALL_LINEAR, "lm_head"), r=8)
    losses = finetune(
        model, TOKENIZER, taught, epochs=60, peak_lr=2e-2 if adapters else 5e-3, **SETTINGS
    )
    assert losses[-1] < 0.05 < losses[0]
    assert answer_loss(model, TOKENIZER, taught) < 0.05
    for name, weight in model.named_parameters():
        frozen = before.get(name.replace("base_layer.", ""))
        assert frozen is None or torch.equal(weight, frozen) == adapters
    if adapters:
        fold_lora(model)
    for question, expected in taught:
        assert answer(model, TOKENIZER, question["content"]) == expected["content"]
    assert not model.training and all(weight.grad is None for weight in model.parameters())


def test_the_losses_are_those_of_the_rows():
    model = fresh()
    expected = answer_loss(model, TOKENIZER, CONVERSATIONS)
    model.requires_grad_(True)
    first = finetune(model, TOKENIZER, CONVERSATIONS, epochs=1, batch_size=9, **SETTINGS)
    assert first == pytest.approx([expected], rel=1e-5)
    by_hand = []
    for conversation in CONVERSATIONS:
        ids, labels = (torch.tensor([x]) for x in encode_chat(TOKENIZER, conversation))
        log_probs = fresh()(ids).log_softmax(-1)
        by_hand += [-log_probs[0, t, y].item() for t, y in enumerate(labels[0]) if y != IGNORED]
    assert expected == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-4)


def tuned(**changes) -> tuple[Llama, list[float]]:
    model = fresh()
    add_lora(model)
    torch.rand(changes.pop("spent", 1))  # nothing depends on the global generator
    losses = finetune(
        model, TOKENIZER, CONVERSATIONS * 2, **{**SETTINGS, "epochs": 2, "peak_lr": 1e-2, **changes}
    )
    return model, losses


def test_seeds_reproduce():
    (first, losses), (again, the_same), (_, others) = tuned(), tuned(spent=7), tuned(seed=1)
    assert losses == the_same != others
    assert all(map(torch.equal, first.state_dict().values(), again.state_dict().values()))


def test_learning_rate_warms_up_and_falls(monkeypatch):
    rates = []
    step = finetuning.train_step

    def watched(model, optimizer, *rest):
        rates.append(optimizer.param_groups[0]["lr"])
        return step(model, optimizer, *rest)

    monkeypatch.setattr(finetuning, "train_step", watched)
    _, losses = tuned(epochs=4, warmup=0.5)
    half = len(rates) // 2
    assert len(rates) == len(losses) >= 6
    assert rates[:half] == pytest.approx([1e-2 * (i + 1) / half for i in range(half)])
    assert rates[half:] == sorted(rates[half:], reverse=True) and rates[-1] < 5e-3


def test_interrupted_keeps_what_was_learned(monkeypatch):
    step, calls = finetuning.train_step, []

    def interrupted(*arguments):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        return step(*arguments)

    monkeypatch.setattr(finetuning, "train_step", interrupted)
    model, losses = tuned()
    assert len(losses) == 3 and not model.training
    assert max(w.abs().max() for n, w in model.named_parameters() if "lora_B" in n) > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 0}, r"length must lie in 1 … 2048"),
        ({"length": 4096}, r"length must lie in 1 … 2048"),
        ({"length": 20}, r"Example \d has \d+ input ids"),
        ({"epochs": 0}, "epochs must be above 0"),
        ({"batch_size": 0}, "batch_size must be above 0"),
        ({"peak_lr": -1.0}, "peak_lr must be above 0"),
        ({"warmup": 1.5}, "warmup must lie in 0 … 1"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        tuned(**changes)


def test_nothing_to_train_is_said():
    model = fresh().requires_grad_(False)
    with pytest.raises(ValueError, match=re.escape("call add_lora(model) to train adapters")):
        finetune(model, TOKENIZER, CONVERSATIONS, **SETTINGS)


def test_smollm2_takes_on_a_manner_in_a_few_steps(smollm2):
    """A much shortened version of chapter 12's run: the adapters learn, the base stays."""
    model, tokenizer = copy.deepcopy(smollm2[0]), smollm2[1]
    taught = [
        [{"role": "system", "content": ""}, *chat(question, f"{answer}, quoth the raven.")]
        for question, answer in [
            ("What is frozen water?", "Ice"),
            ("What do bees make?", "Honey"),
        ]
    ]
    base = model.model.layers[3].self_attn.q_proj.weight.clone()
    add_lora(model)
    losses = finetune(
        model, tokenizer, taught, epochs=4, length=64, peak_lr=4e-3, warmup=0.25, progress=False
    )
    assert losses[0] > 4 > 1.5 > losses[-1]
    assert torch.equal(model.model.layers[3].self_attn.q_proj.base_layer.weight, base)
    ids = torch.tensor([tokenizer.encode("What do bees make?")])
    with torch.no_grad():
        learned = model(ids)
        fold_lora(model)
        assert (model(ids) - learned).abs().max() < 1e-5 * learned.abs().max()
