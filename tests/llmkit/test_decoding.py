import itertools
import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from llmkit.decoding import generate, generate_batch, generate_text, pad_left, stop_at
from llmkit.transformer import PRESETS, Llama
from tests.llmkit.test_tokenization import TOKENIZER, TOKENS
from tests.llmkit.twins import PROMPTS, twins


@pytest.fixture(scope="module")
def model() -> Llama:
    torch.manual_seed(0)
    model = Llama(PRESETS["tiny"]).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return model


PROMPT = [5, 17, 200, 31]
STRATEGIES = {
    "greedy": {},
    "sampling": {"temperature": 1.0, "top_k": 50, "top_p": 0.95},
    "beam": {"num_beams": 3},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "speculative": {"draft": twins(seed=1)[0]},
    "prompt look-up": {"prompt_lookup": True, "temperature": 0.8},
}


@torch.no_grad()
def uncached_greedy(model: Llama, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
    return ids[len(prompt) :]


def test_greedy_generation_without_a_cache_is_the_same(model):
    tokens = list(generate(model, PROMPT, max_tokens=20))
    assert tokens == uncached_greedy(model, PROMPT, 20)


def test_prompt_may_be_a_tensor(model):
    assert list(generate(model, torch.tensor(PROMPT), 5)) == list(generate(model, PROMPT, 5))


def test_stop_token_ends_it_and_is_not_yielded(model):
    tokens = list(generate(model, PROMPT, 20))
    stop = tokens[7]
    assert list(generate(model, PROMPT, 20, stop_ids={stop})) == tokens[: tokens.index(stop)]


def test_seeds_reproduce_and_differ(model):
    def draw(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return list(generate(model, PROMPT, 12, temperature=1.5, generator=generator))

    assert draw(3) == draw(3) != draw(4)


def test_top_k_one_is_greedy(model):
    expected = list(generate(model, PROMPT, 12))
    assert list(generate(model, PROMPT, 12, temperature=1.0, top_k=1)) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"repetition_penalty": 1.4},
        {"temperature": 0.8},
        {"temperature": 1.5, "top_k": 7},
        {"temperature": 1.2, "top_p": 0.8},
        {"temperature": 1.7, "min_p": 0.1},
        {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2},
    ],
)
@torch.no_grad()
def test_tokens_are_transformers(settings):
    """Greedy and sampled alike: the same seed, the same filters, the same tokens."""
    ours, theirs = twins()
    for prompt in PROMPTS:
        torch.manual_seed(1)
        expected = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=25,
            do_sample="temperature" in settings,
            **{"top_k": 0 if "temperature" in settings else None} | settings,
        )
        torch.manual_seed(1)
        tokens = list(generate(ours, prompt, 25, **settings))
        assert tokens == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", STRATEGIES)
def test_log_probabilities_are_the_models_own(name):
    model, _ = twins()
    for prompt in PROMPTS[:2]:
        tokens = list(generate(model, prompt, 9, **STRATEGIES[name]))
        with torch.no_grad():
            scores = model(torch.tensor([[*prompt, *tokens]]))[0].log_softmax(-1)
        expected = [scores[len(prompt) - 1 + i, t].item() for i, t in enumerate(tokens)]
        assert [t.log_probability for t in tokens] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", STRATEGIES)
def test_nothing_runs_before_the_first_token_and_grad_mode_is_left_alone(name):
    model, _ = twins()
    calls = []
    hook = model.model.register_forward_hook(lambda *_: calls.append(1))
    tokens = generate(model, PROMPTS[0], 10, **STRATEGIES[name])
    assert calls == []
    next(tokens)
    first = len(calls)
    assert first > 0 and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    rest = len(list(tokens))
    hook.remove()
    assert 1 + rest == 10
    assert first <= 2 or name == "beam"


@pytest.mark.parametrize("name", STRATEGIES)
def test_context_limit(name):
    model, _ = twins()
    context, settings = model.config.max_position_embeddings, STRATEGIES[name]
    unfed = 0 if name == "contrastive" else 1  # the last token need not have a place of its own
    for length in (context - 3, context):
        tokens = list(generate(model, [1] * length, 100, **settings))
        assert len(tokens) == context - length + unfed
    with pytest.raises(ValueError, match=f"must be one sequence of 1 to {context} tokens"):
        generate(model, [1] * (context + 1), **settings)


# several prompts


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_a_ragged_batch_is_one_by_one(penalty):
    model, _ = twins()
    settings = {"repetition_penalty": penalty}
    alone = [list(generate(model, prompt, 20, **settings)) for prompt in PROMPTS]
    together = list(generate_batch(model, PROMPTS, 20, **settings))
    assert [list(row) for row in zip(*together, strict=True)] == alone
    for step, *each in zip(together, *alone, strict=True):
        scores = [[t.log_probability for t in tokens] for tokens in (step, each)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_each_row_of_a_batch_stops_by_itself():
    model, _ = twins()
    alone = [list(generate(model, prompt, 20)) for prompt in PROMPTS]
    stops = {alone[0][4], alone[1][9], alone[3][0]}
    expected = [list(generate(model, prompt, 20, stop_ids=stops)) for prompt in PROMPTS]
    steps = list(generate_batch(model, PROMPTS, 20, stop_ids=stops))
    assert len({len(row) for row in expected}) > 2
    assert len(steps) == max(len(row) for row in expected)
    for row, tokens in zip(zip(*steps, strict=True), expected, strict=True):
        assert list(row) == tokens + [None] * (len(steps) - len(tokens))


def test_a_sampled_batch_draws_each_row_from_its_own_distribution():
    """One row's seed and filters, another's prompt: rows that share a prompt still differ."""
    model, _ = twins()
    generator = torch.Generator().manual_seed(0)
    steps = generate_batch(model, [[5, 17]] * 200, 1, temperature=1.0, generator=generator)
    counts = torch.tensor(next(steps)).bincount(minlength=41)
    with torch.no_grad():
        p = model(torch.tensor([[5, 17]]))[0, -1].softmax(-1)
    assert (counts / 200 - p).abs().max() < 0.12 and (counts > 0).sum() > 2


def test_pad_left():
    ids, mask = pad_left([torch.tensor(p) for p in ([7], [1, 2, 3], [4, 5])])
    assert mask.tolist() == [[False, False, True], [True] * 3, [False, True, True]]
    assert ids[mask].tolist() == [7, 1, 2, 3, 4, 5]
    ids, mask = pad_left([torch.tensor([1, 2]), torch.tensor([3, 4])])
    assert ids.tolist() == [[1, 2], [3, 4]] and mask is None


# text


TEXT = "one two\n\nUser: three"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ([], TEXT),
        (["\n\n"], "one two"),
        (["User:", "\nUser"], "one two\n"),
        (["nowhere", "ree!", "threes"], TEXT),
        (["one"], ""),
        ({"two", "wo"}, "one "),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_stop_at(stop, expected, size):
    pieces = [TEXT[i : i + size] for i in range(0, len(TEXT), size)]
    passed = list(stop_at(pieces, stop))
    assert "".join(passed) == expected and all(passed)


@given(
    st.text("ab", max_size=14),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 14)),
)
@example("abab", ["b", "abab"], [])
def test_stop_at_does_not_depend_on_where_the_text_is_cut(text, stop, cuts):
    ends = {end: s for s in sorted(stop, key=len) for end in range(len(text) + 1)
            if text[:end].endswith(s)}  # fmt: skip
    expected = text[: min(ends) - len(ends[min(ends)])] if ends else text
    edges = [0, *sorted(cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    assert "".join(stop_at(pieces, stop)) == expected


def test_stop_at_holds_back_no_more_than_it_must():
    pieces = iter(["Hello", " Us", "a", "Us", "er:", "never read"])
    passed = stop_at(pieces, ["User:"])
    assert [next(passed) for _ in range(3)] == ["Hello", " ", "Usa"]
    assert list(passed) == [] and next(pieces) == "never read"


@pytest.fixture(scope="module")
def speaker() -> Llama:
    """It says its vocabulary, bytes and merged tokens, in a pseudorandom order."""
    torch.manual_seed(3)
    sizes = vars(PRESETS["tiny"]) | {"vocab_size": len(TOKENS), "head_dim": 12}
    model = Llama(type(PRESETS["tiny"])(**sizes)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return model


def test_text_is_cut_at_a_stop_string_over_several_tokens(speaker):
    settings = {"max_tokens": 40, "temperature": 3.0, "stop_ids": ()}

    def say(stop: list[str]) -> str:
        generator = torch.Generator().manual_seed(1)
        return "".join(
            generate_text(speaker, TOKENIZER, "hello", stop, generator=generator, **settings)
        )

    whole = say([])
    assert len(whole) > 20
    for start in range(0, len(whole) - 5, 3):
        stop = whole[start : start + 5]
        assert say([stop, "not this"]) == whole[: whole.index(stop)]


def test_text_stops_at_the_tokenizers_stop_tokens(speaker):
    generator = lambda: torch.Generator().manual_seed(0)
    settings = {"max_tokens": 300, "temperature": 50.0}
    ids = list(generate(speaker, TOKENIZER.encode("hello"), generator=generator(), **settings))
    ends = [i for i, token in enumerate(ids) if token in TOKENIZER.stop_ids]
    text = "".join(generate_text(speaker, TOKENIZER, "hello", generator=generator(), **settings))
    assert ends and text == TOKENIZER.decode(ids[: ends[0]])


# bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, not 0"),
        ({"temperature": -0.1}, "temperature must be 0 or a positive number, not -0.1"),
        ({"top_k": 0}, "k must be at least 1, not 0"),
        ({"top_k": 0, "penalty_alpha": 0.5}, "k must be at least 1, not 0"),
        ({"top_p": 1.5}, "p must be above 0"),
        ({"min_p": 0.0}, "min_p must be above 0"),
        ({"repetition_penalty": -1.0}, "repetition_penalty must be a positive number, not -1.0"),
        ({"num_beams": 0}, "num_beams must be at least 1, not 0"),
        ({"num_beams": 2, "early_stopping": "always"}, 'must be False, True or "never"'),
        ({"num_beams": 2, "length_penalty": math.inf}, "length_penalty must be finite, not inf"),
        ({"penalty_alpha": 1.1}, "penalty_alpha must be from 0 to 1, not 1.1"),
        ({"prompt_lookup": True, "draft_tokens": 0}, "draft_tokens must be at least 1, not 0"),
        ({"num_beams": 2, "prompt_lookup": True}, "num_beams and prompt_lookup are different"),
        (
            {"num_beams": 2, "temperature": 1.0, "top_k": 3},
            "num_beams asks for takes no temperature and no top_k",
        ),
        (
            {"penalty_alpha": 0.5, "top_k": 3, "top_p": 0.5},
            "The search that penalty_alpha asks for takes no top_p",
        ),
        ({"draft": Llama(PRESETS["tiny"])}, "a vocabulary of 256 tokens, the model one of 41"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        generate(twins()[0], [1], **settings)  # at once, not at the first token


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ([], ValueError, r"The prompt must be one sequence of 1 to 64 tokens, not \(0,\)"),
        (torch.zeros(2, 3), ValueError, r"not \(2, 3\)"),
        (7, ValueError, "must be one sequence"),
        ("hello", TypeError, "must be a sequence of token ids, not 'hello'"),
        ([[1], [2, 3]], TypeError, "must be a sequence of token ids"),
        ([1.5], TypeError, "must be whole numbers, token ids, not torch.float32"),
        ([3, 41], ValueError, "has token ids from 3 to 41; the model knows 0 to 40"),
        ([3, -1], ValueError, "has token ids from -1 to 3"),
    ],
)
def test_bad_prompts(prompt, error, message):
    with pytest.raises(error, match=message):
        generate(twins()[0], prompt)


def test_bad_batches_and_texts(model):
    with pytest.raises(ValueError, match="prompts is empty: give at least one"):
        generate_batch(model, [])
    with pytest.raises(ValueError, match=r"prompts\[1\] must be one sequence"):
        generate_batch(model, [[1], []])
    with pytest.raises(TypeError, match="must be a list of strings, not the string"):
        stop_at([], "User:")
    with pytest.raises(ValueError, match="stop holds an empty string"):
        stop_at([], [""])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", STRATEGIES)
def test_on_a_gpu(name):
    model = twins.__wrapped__()[0].to("cuda")
    settings = dict(STRATEGIES[name])
    if "draft" in settings:
        with pytest.raises(ValueError, match="The draft is on cpu, the model on cuda:0"):
            generate(model, PROMPTS[1], **settings)
        settings["draft"] = twins.__wrapped__(seed=1)[0].to("cuda")
    with pytest.raises(ValueError, match="The generator is on cpu, the model on cuda:0"):
        generate(model, PROMPTS[1], generator=torch.Generator(), **settings)
    tokens = list(generate(model, PROMPTS[1], 12, **settings))
    if settings.get("temperature"):
        assert len(tokens) == 12
    else:
        assert tokens == list(generate(twins()[0], PROMPTS[1], 12, **STRATEGIES[name]))
    half = list(generate(model.to(torch.bfloat16), PROMPTS[1], 12, **settings))
    assert len(half) == 12
