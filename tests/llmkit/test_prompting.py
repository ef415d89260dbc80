import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare

from llmkit.attention import merge_heads, repeat_kv, split_heads
from llmkit.checkpoints import load_checkpoint
from llmkit.prompting import (
    accuracy_by_shots,
    attention_weights,
    choice_batch,
    demonstrations_for,
    few_shot_prompt,
    few_shot_trials,
    induction_guess,
    induction_score,
    induction_scores,
    log_likelihoods,
    pmi_choice,
    score_choices,
    wilson_interval,
    zero_shot_prompt,
)
from llmkit.tokenization import Tokenizer
from llmkit.transformer import Llama, LlamaConfig
from tests.llmkit.test_tokenization import METADATA, TOKENIZER, TOKENS

SIZES = {
    "vocab_size": len(TOKENS),
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
}


@pytest.fixture(scope="module")
def model() -> Llama:
    torch.manual_seed(0)
    model = Llama(LlamaConfig(**SIZES)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


@pytest.fixture(scope="module")
def smollm2() -> tuple[Llama, Tokenizer]:
    return load_checkpoint("smollm2")


# prompts


def test_prompts_word_for_word():
    demonstrations = [("dull", "bad"), ("warm and wise", "good")]
    assert few_shot_prompt(demonstrations, "clumsy", "Good or bad?") == (
        "Good or bad?\n\nText: dull\nAnswer: bad\n\nText: warm and wise\nAnswer: good\n\n"
        "Text: clumsy\nAnswer:"
    )
    assert zero_shot_prompt("clumsy", "Good or bad?") == "Good or bad?\n\nText: clumsy\nAnswer:"
    assert zero_shot_prompt("clumsy", template="{text} -> {answer}") == "clumsy ->"
    assert zero_shot_prompt("1+1", template="{text}={answer}.") == "1+1="
    assert few_shot_prompt([("2+2", "4")], "1+1", template="{text}={answer}.") == "2+2=4.\n\n1+1="


texts = st.text(st.characters(codec="utf-8"), max_size=8)


@settings(deadline=None)
@given(st.lists(st.tuples(texts, texts), max_size=4), texts, texts)
def test_the_query_comes_last_and_is_never_answered(demonstrations, query, instruction):
    prompt = few_shot_prompt(demonstrations, query, instruction)
    assert prompt.endswith(zero_shot_prompt(query))
    assert prompt == few_shot_prompt([*demonstrations, (query, "leak")], query, instruction)
    assert few_shot_prompt([], query, instruction) == zero_shot_prompt(query, instruction)


def test_a_text_may_look_like_a_template():
    text = "{answer} {text} {0}"
    assert zero_shot_prompt(text) == f"Text: {text}\nAnswer:"
    assert few_shot_prompt([(text, text)], "x").startswith(f"Text: {text}\nAnswer: {text}\n\n")


@pytest.mark.parametrize(
    "template", ["{text}", "{answer}", "{answer} {text}", "{text}{text}{answer}"]
)
def test_template_is_checked(template):
    with pytest.raises(ValueError, match="template must hold"):
        zero_shot_prompt("x", template=template)


# scores

token_lists = st.lists(st.integers(0, 9), min_size=1, max_size=5)


@settings(deadline=None)
@given(token_lists, st.lists(token_lists, min_size=1, max_size=4), st.integers(0, 9))
def test_choice_batch_holds_each_choice_behind_the_prompt(prompt, choices, pad):
    input_ids, is_choice = choice_batch(prompt, choices, pad)
    rows = [torch.tensor(prompt + choice) for choice in choices]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    assert torch.equal(input_ids, padded) and input_ids.dtype == torch.int64
    for choice, tokens, mask in zip(choices, input_ids, is_choice, strict=True):
        assert tokens[mask].tolist() == choice
        assert mask.nonzero()[0] == len(prompt)  # and so all of it stands in one piece


@torch.no_grad()
def test_padding_changes_no_score(model):
    prompt, choices = [5, 3, 8], [[4], [2, 7, 1], [0, 0]]
    by_pad = []
    for pad in (0, 9):
        input_ids, is_choice = choice_batch(prompt, choices, pad)
        by_pad.append(score_choices(model(input_ids), input_ids, is_choice))
    torch.testing.assert_close(by_pad[0], by_pad[1], rtol=0, atol=0)
    for choice, got in zip(choices, by_pad[0][0], strict=True):
        assert got.item() == pytest.approx(brute_force(model, prompt + choice, 3), abs=1e-4)


def test_the_last_logits_predict_nothing_and_may_be_left_out():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, 4, generator=generator)
    ids = torch.randint(4, (3, 6), generator=generator)
    is_choice = torch.arange(6).expand(3, 6) >= torch.tensor([[2], [5], [3]])
    whole, short = (score_choices(x, ids, is_choice) for x in (logits, logits[:, :-1]))
    torch.testing.assert_close(whole, short, rtol=0, atol=0)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6), st.floats(-5, 5))
def test_pmi_choice_is_bayes_answer_to_which_choice_makes_the_prompt_likeliest(seed, n, shift):
    """ln P(choice | prompt) − ln P(choice) = ln P(prompt | choice) − ln P(prompt)."""
    generator = torch.Generator().manual_seed(seed)
    joint = torch.rand(7, n, generator=generator, dtype=torch.float64) + 0.01
    joint /= joint.sum()  # of 7 prompts and n choices
    given_prompt = (joint / joint.sum(1, keepdim=True)).log()
    priors, likelihood = joint.sum(0).log(), joint / joint.sum(0)
    assert torch.equal(pmi_choice(given_prompt, priors), likelihood.argmax(1))
    assert torch.equal(pmi_choice(given_prompt, priors + shift), likelihood.argmax(1))
    assert pmi_choice(given_prompt[0], priors) == likelihood[0].argmax()


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(2, 7), st.integers(2, 5))
def test_score_choices_by_definition(seed, n, length, vocab):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, length, vocab, generator=generator, dtype=torch.float64) * 4
    ids = torch.randint(vocab, (n, length), generator=generator)
    is_choice = torch.rand(n, length, generator=generator) < 0.5
    is_choice[:, 0] = False
    is_choice[:, 1] = True
    sums, means = score_choices(logits, ids, is_choice)
    for row in range(n):
        terms = []
        for t in range(1, length):
            if is_choice[row, t]:
                p = logits[row, t - 1].exp() / logits[row, t - 1].exp().sum()
                terms.append(math.log(p[ids[row, t]]))
        assert sums[row].item() == pytest.approx(sum(terms), rel=1e-4, abs=1e-5)
        assert means[row].item() == pytest.approx(sum(terms) / len(terms), rel=1e-4, abs=1e-5)


def test_score_choices_refuses_what_nothing_predicts():
    logits, ids = torch.zeros(1, 3, 4), torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="begins at position 0"):
        score_choices(logits, ids, torch.tensor([[True, True, False]]))
    with pytest.raises(ValueError, match="has no token"):
        score_choices(logits, ids, torch.zeros(1, 3, dtype=torch.bool))


@torch.no_grad()
def brute_force(model: Llama, ids: list[int], start: int) -> float:
    """ln P(ids[start:] | ids[:start]), a whole uncached pass for every token."""
    total = 0.0
    for t in range(start, len(ids)):
        total += model(torch.tensor([ids[:t]]))[0, -1].double().log_softmax(-1)[ids[t]].item()
    return total


@pytest.mark.parametrize(
    ("prompt", "choices", "start"),
    [
        ("x y", [" hello", "zzz!", " w"], 3),
        ("é", [" hello hello hello", "o"], 2),  # a prompt of two tokens, one character
        ("xxhell", ["o", "p", "o hello"], 2),  # hell|o is one token: it is the choices' for all
        ("xx ", [" hello", " "], 2),  # so are the border's spaces
        ("x", ["a", "bc"], 1),  # nothing to share but the token that predicts
    ],
)
def test_log_likelihoods_are_the_brute_force_sums(model, prompt, choices, start):
    sums, means = log_likelihoods(model, TOKENIZER, prompt, choices)
    for choice, got_sum, got_mean in zip(choices, sums, means, strict=True):
        ids = TOKENIZER.encode(prompt + choice)
        expected = brute_force(model, ids, start)
        assert got_sum.item() == pytest.approx(expected, abs=1e-4)
        assert got_mean.item() == pytest.approx(expected / (len(ids) - start), abs=1e-4)


def test_tokens_that_merge_across_the_border_stay_comparable(model):
    """Scores differ by ln P of whole texts: what precedes the choice is the same for all."""
    prompt, choices = "x hell", ["o", "p", "ow"]
    sums, _ = log_likelihoods(model, TOKENIZER, prompt, choices)
    whole = [brute_force(model, TOKENIZER.encode(prompt + choice), 1) for choice in choices]
    for got, expected in zip(sums - sums[0], whole, strict=True):
        assert got.item() == pytest.approx(expected - whole[0], abs=1e-4)


def test_a_begin_of_text_token_is_enough_of_a_prompt(model):
    tokenizer = Tokenizer.from_gguf(METADATA | {"tokenizer.ggml.add_bos_token": True})
    sums, _ = log_likelihoods(model, tokenizer, "", ["hello"])
    assert sums.item() == pytest.approx(brute_force(model, tokenizer.encode("hello"), 1), abs=1e-4)


@pytest.mark.parametrize(
    ("prompt", "choices", "message"),
    [
        ("", ["a"], "no token before the choices"),
        ("hell", ["o"], "no token before the choices"),
        ("x", [], "one or more texts, none empty"),
        ("x", ["a", ""], "one or more texts, none empty"),
        ("x", ["a" * 96], "have 97 tokens, but the context holds 96"),
    ],
)
def test_what_cannot_be_scored_is_refused(model, prompt, choices, message):
    with pytest.raises(ValueError, match=message):
        log_likelihoods(model, TOKENIZER, prompt, choices)


def test_smollm2_knows_a_capital_and_answers_from_examples(smollm2):
    model, tokenizer = smollm2
    prompt, choices = "The capital of France is", [" Paris", " Rome", " a small town"]
    sums, means = log_likelihoods(model, tokenizer, prompt, choices)
    assert sums.argmax() == means.argmax() == 0
    start = len(tokenizer.encode(prompt))
    for choice, got in zip(choices, sums, strict=True):
        ids = tokenizer.encode(prompt + choice)
        assert got.item() == pytest.approx(brute_force(model, ids, start), abs=1e-3)


# few-shot evaluation

EXAMPLES = [("a", "yes"), ("b", "no"), ("c", "yes"), ("d", "no"), ("a", "no")]


def test_demonstrations_are_others_seeded_and_nested():
    draw = lambda query, shots, seed: demonstrations_for(
        query, EXAMPLES, shots, torch.Generator().manual_seed(seed)
    )
    for seed in range(20):
        assert sorted(draw(1, 4, seed)) == sorted(EXAMPLES[:1] + EXAMPLES[2:])
        assert {text for text, _ in draw(0, 3, seed)} == {"b", "c", "d"}  # nor its namesake
        assert draw(1, 4, seed)[2:] == draw(1, 2, seed)
        assert draw(1, 0, seed) == []
    assert draw(1, 4, 0) == draw(1, 4, 0) != draw(1, 4, 1)
    with pytest.raises(ValueError, match="shots must lie in 0 … 3"):
        draw(0, 4, 0)


def test_every_other_example_is_drawn_equally_often():
    generator = torch.Generator().manual_seed(0)
    examples = [(str(i), "") for i in range(6)]
    counts = torch.zeros(6)
    for _ in range(3000):
        for text, _ in demonstrations_for(2, examples, 2, generator):
            counts[int(text)] += 1
    assert counts[2] == 0
    assert chisquare(counts[counts > 0].numpy()).pvalue > 0.001


@pytest.mark.parametrize("normalize", [False, True])
def test_trials_are_those_of_the_prompts_one_by_one(model, normalize):
    examples = [("hello", "w"), ("he", "hello w"), ("x", "w"), ("hello w", "hello w")]
    settings = {"instruction": "?", "template": "{text}> {answer}", "normalize": normalize}
    got = few_shot_trials(model, TOKENIZER, examples, (2, 0), seed=5, progress=False, **settings)
    for shots in (0, 2):
        generator = torch.Generator().manual_seed(5)
        for query, (text, answer) in enumerate(examples):
            drawn = demonstrations_for(query, examples, shots, generator)
            prompt = few_shot_prompt(drawn, text, "?", "{text}> {answer}")
            start, scores = len(TOKENIZER.encode(prompt)), {}
            for choice in ("hello w", "w"):
                ids = TOKENIZER.encode(f"{prompt} {choice}")
                total = brute_force(model, ids, start)
                scores[choice] = total / (len(ids) - start) if normalize else total
            assert got[shots][query] == (max(scores, key=scores.get) == answer)


def test_trials_are_checked(model):
    with pytest.raises(ValueError, match="with an answer among the choices"):
        few_shot_trials(model, TOKENIZER, EXAMPLES, choices=["yes"])
    with pytest.raises(ValueError, match="examples must be one or more"):
        few_shot_trials(model, TOKENIZER, [])


@settings(deadline=None)
@given(st.integers(1, 300), st.data())
def test_wilson_is_scipys(trials, data):
    successes = data.draw(st.integers(0, trials))
    expected = binomtest(successes, trials).proportion_ci(0.95, "wilson")
    low, high = wilson_interval(successes, trials)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert 0 <= low <= successes / trials + 1e-12 and successes / trials - 1e-12 <= high <= 1


@pytest.mark.parametrize(
    ("successes", "trials", "interval"),
    [  # Newcombe (1998), table I, method 3
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0000, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_is_as_published(successes, trials, interval):
    assert wilson_interval(successes, trials) == pytest.approx(interval, abs=5e-5)


def test_accuracy_by_shots():
    correct = {4: [True] * 15 + [False] * 133, 0: [False] * 20}
    result = accuracy_by_shots(correct)
    assert list(result) == [0, 4]
    assert result[0] == pytest.approx((0, 0, 0.1611), abs=5e-5)
    assert result[4] == pytest.approx((15 / 148, 0.0624, 0.1605), abs=5e-5)
    narrow = accuracy_by_shots(correct, z=1.0)[4]
    assert result[4][1] < narrow[1] < narrow[0] < narrow[2] < result[4][2]
    with pytest.raises(ValueError, match="not 0 of 0"):
        accuracy_by_shots({1: []})


# induction heads


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_induction_guess_by_definition(tokens):
    earlier = [i for i, token in enumerate(tokens[:-1]) if token == tokens[-1]]
    assert induction_guess(tokens) == (tokens[max(earlier) + 1] if earlier else None)


@given(st.permutations(range(9)), st.integers(2, 9), st.integers(0, 20))
def test_induction_guess_continues_whatever_repeats(order, period, extra):
    text = [order[t % period] for t in range(2 * period + extra)]
    for t in range(period, len(text) - 1):
        assert induction_guess(text[: t + 1]) == text[t + 1]
    assert induction_guess(text[:period]) is None


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 5), st.integers(0, 99))
def test_induction_score_by_definition(period, more_rounds, extra, seed):
    length = period * (1 + more_rounds) + extra
    weights = torch.rand(2, length, length, generator=torch.Generator().manual_seed(seed))
    tokens = [t % period for t in range(length)]
    expected = torch.zeros(2)
    for t in range(period, length):
        for key in range(1, t + 1):
            if tokens[key - 1] == tokens[t]:
                expected += weights[:, t, key]
    torch.testing.assert_close(induction_score(weights, period), expected / (length - period))


def test_perfect_and_indifferent_heads():
    period, length = 7, 14
    perfect = torch.zeros(length, length)
    for t in range(length):
        perfect[t, t - period + 1 if t >= period else 0] = 1
    assert induction_score(perfect, period) == 1
    uniform = torch.ones(length, length).tril()
    uniform /= uniform.sum(-1, keepdim=True)
    expected = sum(1 / (t + 1) for t in range(period, length)) / period
    assert induction_score(uniform, period).item() == pytest.approx(expected)
    previous = torch.eye(length).roll(-1, dims=1)  # looks at the token just before
    assert induction_score(previous, period) == 0


@pytest.mark.parametrize("period", [0, 14])
def test_induction_needs_a_repetition(period):
    with pytest.raises(ValueError, match=r"period must lie in 1 … 13"):
        induction_score(torch.ones(14, 14), period)


def test_attention_weights_are_transformers(model):
    config = transformers.LlamaConfig(**SIZES, attn_implementation="eager")
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.load_state_dict(model.state_dict())
    theirs.config.rms_norm_eps = 1e-5
    for norm in [m for m in theirs.modules() if hasattr(m, "variance_epsilon")]:
        norm.variance_epsilon = 1e-5
    ids = torch.randint(0, SIZES["vocab_size"], (11,))
    with torch.no_grad():
        expected = torch.cat(theirs(ids[None], output_attentions=True).attentions)
    got = attention_weights(model, ids)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert not any(layer.self_attn._forward_pre_hooks for layer in model.model.layers)
    with pytest.raises(ValueError, match="one sequence"):
        attention_weights(model, ids[None])


@pytest.mark.parametrize("window", [None, 4])
@torch.no_grad()
def test_attention_weights_explain_what_the_layers_do(window):
    torch.manual_seed(0)
    model = Llama(LlamaConfig(**SIZES, sliding_window=window)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    ids, seen = torch.randint(0, SIZES["vocab_size"], (11,)), []
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(lambda _, inputs, y: seen.append((inputs[0], y)))
    weights = attention_weights(model, ids)
    for layer, its_weights, (x, y) in zip(model.model.layers, weights, seen, strict=True):
        value = repeat_kv(split_heads(layer.self_attn.v_proj(x), 2), 3)
        mixed = layer.self_attn.o_proj(merge_heads(its_weights @ value))
        torch.testing.assert_close(mixed, y, rtol=1e-5, atol=1e-5)


def test_smollm2_has_induction_heads(smollm2):
    scores = induction_scores(smollm2[0], period=30)
    assert scores.shape == (30, 9)
    assert scores.max() > 0.7  # layer 18, head 6
    assert scores[:8].max() < 0.2  # they need a layer before them that looks one token back
