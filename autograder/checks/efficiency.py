"""Chapter 13: what a language model costs."""

import math

import torch
from torch import Generator, Tensor

from autograder.check import Case, Check, Misconception, Question
from llmkit import efficiency, quantization

# Wrong solutions and variants are written as a student would write them, each whole in itself,
# without llmkit: a class of synthetic students is made of their source.


def normal(rng: Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=rng).to(dtype)


def whole(rng: Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high, (), generator=rng))


def real(rng: Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng))


# forward_flops -----------------------------------------------------------------------------------


def forward_cases(rng: Generator) -> list[Case]:
    size, layers = whole(rng, 10_000, 90_000), whole(rng, 3, 40)
    width, length = whole(rng, 50, 90), whole(rng, 5, 45)
    past = whole(rng, 100, 900)
    return [
        Case(6, 0, 0, 1).titled("the matrix of section 1, one token"),
        Case(10, 1, 1, 3, past=2).titled("10 weights, 3 tokens after 2"),
        Case(size, layers, width, length).titled("a text from its start"),
        Case(size, layers, width, 1, past).titled("one token behind a cache"),
        Case(size, layers, width, length, past=past).titled("several tokens behind a cache"),
    ]


def forward_one_flop(
    num_parameters: int, num_layers: int, attention_width: int, length: int, past: int = 0
) -> int:
    pairs = length * (past + length)
    return num_parameters * length + 2 * num_layers * attention_width * pairs


def forward_without_attention(
    num_parameters: int, num_layers: int, attention_width: int, length: int, past: int = 0
) -> int:
    return 2 * num_parameters * length


def forward_without_past(
    num_parameters: int, num_layers: int, attention_width: int, length: int, past: int = 0
) -> int:
    return 2 * num_parameters * length + 4 * num_layers * attention_width * length**2


def forward_scores_only(
    num_parameters: int, num_layers: int, attention_width: int, length: int, past: int = 0
) -> int:
    pairs = length * (past + length)
    return 2 * num_parameters * length + 2 * num_layers * attention_width * pairs


def forward_one_layer(
    num_parameters: int, num_layers: int, attention_width: int, length: int, past: int = 0
) -> int:
    return 2 * num_parameters * length + 4 * attention_width * length * (past + length)


def forward_past_again(
    num_parameters: int, num_layers: int, attention_width: int, length: int, past: int = 0
) -> int:
    total = past + length
    return 2 * num_parameters * total + 4 * num_layers * attention_width * total**2


def forward_one_query(
    num_parameters: int, num_layers: int, attention_width: int, length: int, past: int = 0
) -> int:
    keys = past + length
    return 2 * num_parameters * length + 4 * num_layers * attention_width * keys


def forward_weights_once(
    num_parameters: int, num_layers: int, attention_width: int, length: int, past: int = 0
) -> int:
    pairs = length * (past + length)
    return 2 * num_parameters + 4 * num_layers * attention_width * pairs


def forward_visible_pairs(
    num_parameters: int, num_layers: int, attention_width: int, length: int, past: int = 0
) -> int:
    pairs = length * past + length * (length + 1) // 2
    return 2 * num_parameters * length + 4 * num_layers * attention_width * pairs


def forward_in_parts(
    num_parameters: int, num_layers: int, attention_width: int, length: int, past: int = 0
) -> int:
    products = num_parameters * length
    scores = num_layers * attention_width * length * (length + past)
    mixing = scores
    return 2 * (products + scores + mixing)


def forward_token_by_token(
    num_parameters: int, num_layers: int, attention_width: int, length: int, past: int = 0
) -> int:
    keys = past + length
    total = 0
    for _ in range(length):
        total += 2 * num_parameters
        total += num_layers * (2 * attention_width * keys + 2 * attention_width * keys)
    return total


def forward_factored(
    num_parameters: int, num_layers: int, attention_width: int, length: int, past: int = 0
) -> int:
    per_token = num_parameters + 2 * num_layers * attention_width * (past + length)
    return 2 * length * per_token


FORWARD_FLOPS = Check(
    reference=efficiency.forward_flops,
    points=4,
    cases=forward_cases,
    misconceptions=[
        Misconception(
            "a multiplication and an addition are counted as one",
            forward_one_flop,
            "A FLOP is one operation. How many are a · b + c?",
        ),
        Misconception(
            "attention's own arithmetic is left out",
            forward_without_attention,
            "Scores are products of queries and keys. In which weight matrix are those?",
        ),
        Misconception(
            "the cached tokens are not looked at: past is not used",
            forward_without_past,
            "A new token's query meets the keys of which tokens?",
        ),
        Misconception(
            "the scores are counted, the weighted sum of values is not",
            forward_scores_only,
            "After softmax, what is done with the weights of each query?",
        ),
        Misconception(
            "the attention of one layer only is counted",
            forward_one_layer,
            "num_parameters counts all layers. Does your second term?",
        ),
        Misconception(
            "the cached tokens are computed again",
            forward_past_again,
            "What was the cache of chapter 05 for?",
        ),
        Misconception(
            "attention is counted for one query, not for each new token",
            forward_one_query,
            "How many queries are there, and how many keys does each of them meet?",
        ),
        Misconception(
            "each weight is used once, however many tokens there are",
            forward_weights_once,
            "Every token is multiplied by every weight. How many tokens are there?",
        ),
        Misconception(
            "pairs that the mask hides are left out",
            forward_visible_pairs,
            "Does the plain product of all queries and all keys know what will be masked?",
        ),
    ],
    variants=[forward_in_parts, forward_token_by_token, forward_factored],
)


# training_flops ----------------------------------------------------------------------------------


def training_cases(rng: Generator) -> list[Case]:
    size, tokens = whole(rng, 10_000, 90_000), whole(rng, 100_000, 900_000)
    layers, width, length = whole(rng, 4, 40), whole(rng, 50, 90), whole(rng, 100, 900)
    return [
        Case(10, 7).titled("10 weights, 7 tokens"),
        Case(size, tokens).titled("the rule of thumb"),
        Case(size, tokens, layers, width, length).titled("with attention"),
        Case(size, tokens, num_layers=layers, attention_width=width, length=2 * length).titled(
            "with attention, longer texts"
        ),
    ]


def training_forward_only(
    num_parameters: int,
    num_tokens: int,
    num_layers: int = 0,
    attention_width: int = 0,
    length: int = 0,
) -> int:
    return num_tokens * (2 * num_parameters + 4 * num_layers * attention_width * length)


def training_backward_like_forward(
    num_parameters: int,
    num_tokens: int,
    num_layers: int = 0,
    attention_width: int = 0,
    length: int = 0,
) -> int:
    return num_tokens * (4 * num_parameters + 8 * num_layers * attention_width * length)


def training_one_flop(
    num_parameters: int,
    num_tokens: int,
    num_layers: int = 0,
    attention_width: int = 0,
    length: int = 0,
) -> int:
    return num_tokens * (3 * num_parameters + 6 * num_layers * attention_width * length)


def training_recomputed(
    num_parameters: int,
    num_tokens: int,
    num_layers: int = 0,
    attention_width: int = 0,
    length: int = 0,
) -> int:
    return num_tokens * (8 * num_parameters + 16 * num_layers * attention_width * length)


def training_without_attention(
    num_parameters: int,
    num_tokens: int,
    num_layers: int = 0,
    attention_width: int = 0,
    length: int = 0,
) -> int:
    return 6 * num_parameters * num_tokens


def training_attention_forward_only(
    num_parameters: int,
    num_tokens: int,
    num_layers: int = 0,
    attention_width: int = 0,
    length: int = 0,
) -> int:
    return num_tokens * (6 * num_parameters + 4 * num_layers * attention_width * length)


def training_attention_once(
    num_parameters: int,
    num_tokens: int,
    num_layers: int = 0,
    attention_width: int = 0,
    length: int = 0,
) -> int:
    return 6 * num_parameters * num_tokens + 12 * num_layers * attention_width * length


def training_attention_squared(
    num_parameters: int,
    num_tokens: int,
    num_layers: int = 0,
    attention_width: int = 0,
    length: int = 0,
) -> int:
    return num_tokens * (6 * num_parameters + 12 * num_layers * attention_width * length**2)


def training_one_layer(
    num_parameters: int,
    num_tokens: int,
    num_layers: int = 0,
    attention_width: int = 0,
    length: int = 0,
) -> int:
    return num_tokens * (6 * num_parameters + 12 * attention_width * length)


def training_passes(
    num_parameters: int,
    num_tokens: int,
    num_layers: int = 0,
    attention_width: int = 0,
    length: int = 0,
) -> int:
    forward = 2 * num_parameters + 4 * num_layers * attention_width * length
    backward = 2 * forward
    return (forward + backward) * num_tokens


def training_in_parts(
    num_parameters: int,
    num_tokens: int,
    num_layers: int = 0,
    attention_width: int = 0,
    length: int = 0,
) -> int:
    weights = 6 * num_parameters * num_tokens
    scores = 6 * num_layers * attention_width * length * num_tokens
    mixing = 6 * num_layers * attention_width * length * num_tokens
    return weights + scores + mixing


def training_by_layer(
    num_parameters: int,
    num_tokens: int,
    num_layers: int = 0,
    attention_width: int = 0,
    length: int = 0,
) -> int:
    total = 6 * num_parameters * num_tokens
    for _ in range(num_layers):
        total += 12 * attention_width * length * num_tokens
    return total


TRAINING_FLOPS = Check(
    reference=efficiency.training_flops,
    points=3,
    cases=training_cases,
    misconceptions=[
        Misconception(
            "only the forward pass is counted",
            training_forward_only,
            "What does a training step do after it knows the loss?",
        ),
        Misconception(
            "the backward pass is counted like one forward pass",
            training_backward_like_forward,
            "Backward finds gradients of the inputs and of the weights. How many products is that?",
        ),
        Misconception(
            "a multiplication and an addition are counted as one",
            training_one_flop,
            "How many FLOPs does one weight take for one token in the forward pass?",
        ),
        Misconception(
            "the forward pass is counted twice, as where activations are computed again",
            training_recomputed,
            "Are the activations kept here, or thrown away and computed a second time?",
        ),
        Misconception(
            "attention is left out even where its shape is given",
            training_without_attention,
            "What does your function do with num_layers, attention_width and length?",
        ),
        Misconception(
            "attention is counted in the forward pass only",
            training_attention_forward_only,
            "Do gradients pass through scores and weighted sums as well?",
        ),
        Misconception(
            "attention is counted for one token, not for all",
            training_attention_once,
            "12 · layers · width · length is for each token. How many tokens are there?",
        ),
        Misconception(
            "attention grows with the square of the length for each token",
            training_attention_squared,
            "How many keys does one token meet: length, or its square?",
        ),
        Misconception(
            "the attention of one layer only is counted",
            training_one_layer,
            "Does your attention term know how many layers there are?",
        ),
    ],
    variants=[training_passes, training_in_parts, training_by_layer],
)


# adamw_memory ------------------------------------------------------------------------------------


def adamw_cases(rng: Generator) -> list[Case]:
    size = whole(rng, 1000, 9000)
    return [
        Case(1000).titled("1000 parameters, all in float32"),
        Case(size, "bfloat16", "float16", "float32").titled("three formats"),
        Case(size, "bfloat16", "bfloat16", master_weights="float32").titled("mixed precision"),
        Case(size, gradients="bfloat16", moments="int8").titled("moments of 8 bits"),
        Case(size, "int8", "float32", "bfloat16", "float16").titled("a master copy in float16"),
        Case(size, weights="float8").titled("a format that is not known"),
        Case(size, "bfloat16", master_weights="double").titled("a master copy of no known format"),
    ]


def adamw_one_moment(
    num_parameters: int,
    weights: str = "float32",
    gradients: str = "float32",
    moments: str = "float32",
    master_weights: str | None = None,
) -> dict[str, int]:
    sizes = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
    for name in (weights, gradients, moments, master_weights or "float32"):
        if name not in sizes:
            raise ValueError(f"unknown format {name}")
    return {
        "weights": num_parameters * sizes[weights],
        "gradients": num_parameters * sizes[gradients],
        "moments": num_parameters * sizes[moments],
        "master_weights": num_parameters * sizes[master_weights] if master_weights else 0,
    }


def adamw_all_float32(
    num_parameters: int,
    weights: str = "float32",
    gradients: str = "float32",
    moments: str = "float32",
    master_weights: str | None = None,
) -> dict[str, int]:
    for name in (weights, gradients, moments, master_weights or "float32"):
        if name not in ("float32", "bfloat16", "float16", "int8"):
            raise ValueError(f"unknown format {name}")
    return {
        "weights": 4 * num_parameters,
        "gradients": 4 * num_parameters,
        "moments": 8 * num_parameters,
        "master_weights": 4 * num_parameters if master_weights else 0,
    }


def adamw_in_bits(
    num_parameters: int,
    weights: str = "float32",
    gradients: str = "float32",
    moments: str = "float32",
    master_weights: str | None = None,
) -> dict[str, int]:
    bits = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 8}
    for name in (weights, gradients, moments, master_weights or "float32"):
        if name not in bits:
            raise ValueError(f"unknown format {name}")
    return {
        "weights": num_parameters * bits[weights],
        "gradients": num_parameters * bits[gradients],
        "moments": 2 * num_parameters * bits[moments],
        "master_weights": num_parameters * bits[master_weights] if master_weights else 0,
    }


def adamw_counted(
    num_parameters: int,
    weights: str = "float32",
    gradients: str = "float32",
    moments: str = "float32",
    master_weights: str | None = None,
) -> dict[str, int]:
    for name in (weights, gradients, moments, master_weights or "float32"):
        if name not in ("float32", "bfloat16", "float16", "int8"):
            raise ValueError(f"unknown format {name}")
    return {
        "weights": num_parameters,
        "gradients": num_parameters,
        "moments": 2 * num_parameters,
        "master_weights": num_parameters if master_weights else 0,
    }


def adamw_always_a_master(
    num_parameters: int,
    weights: str = "float32",
    gradients: str = "float32",
    moments: str = "float32",
    master_weights: str | None = None,
) -> dict[str, int]:
    sizes = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
    master_weights = master_weights or "float32"
    for name in (weights, gradients, moments, master_weights):
        if name not in sizes:
            raise ValueError(f"unknown format {name}")
    return {
        "weights": num_parameters * sizes[weights],
        "gradients": num_parameters * sizes[gradients],
        "moments": 2 * num_parameters * sizes[moments],
        "master_weights": num_parameters * sizes[master_weights],
    }


def adamw_never_a_master(
    num_parameters: int,
    weights: str = "float32",
    gradients: str = "float32",
    moments: str = "float32",
    master_weights: str | None = None,
) -> dict[str, int]:
    sizes = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
    for name in (weights, gradients, moments, master_weights or "float32"):
        if name not in sizes:
            raise ValueError(f"unknown format {name}")
    return {
        "weights": num_parameters * sizes[weights],
        "gradients": num_parameters * sizes[gradients],
        "moments": 2 * num_parameters * sizes[moments],
        "master_weights": 0,
    }


def adamw_moments_like_weights(
    num_parameters: int,
    weights: str = "float32",
    gradients: str = "float32",
    moments: str = "float32",
    master_weights: str | None = None,
) -> dict[str, int]:
    sizes = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
    for name in (weights, gradients, moments, master_weights or "float32"):
        if name not in sizes:
            raise ValueError(f"unknown format {name}")
    return {
        "weights": num_parameters * sizes[weights],
        "gradients": num_parameters * sizes[gradients],
        "moments": 2 * num_parameters * sizes[weights],
        "master_weights": num_parameters * sizes[master_weights] if master_weights else 0,
    }


def adamw_key_error(
    num_parameters: int,
    weights: str = "float32",
    gradients: str = "float32",
    moments: str = "float32",
    master_weights: str | None = None,
) -> dict[str, int]:
    sizes = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
    return {
        "weights": num_parameters * sizes[weights],
        "gradients": num_parameters * sizes[gradients],
        "moments": 2 * num_parameters * sizes[moments],
        "master_weights": num_parameters * sizes[master_weights] if master_weights else 0,
    }


def adamw_anything_goes(
    num_parameters: int,
    weights: str = "float32",
    gradients: str = "float32",
    moments: str = "float32",
    master_weights: str | None = None,
) -> dict[str, int]:
    sizes = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
    return {
        "weights": num_parameters * sizes.get(weights, 4),
        "gradients": num_parameters * sizes.get(gradients, 4),
        "moments": 2 * num_parameters * sizes.get(moments, 4),
        "master_weights": num_parameters * sizes.get(master_weights, 4) if master_weights else 0,
    }


def adamw_itemsize(
    num_parameters: int,
    weights: str = "float32",
    gradients: str = "float32",
    moments: str = "float32",
    master_weights: str | None = None,
) -> dict[str, int]:
    known = ("float32", "bfloat16", "float16", "int8")
    copies = {"weights": 1, "gradients": 1, "moments": 2, "master_weights": 1}
    formats = dict(zip(copies, (weights, gradients, moments, master_weights), strict=True))
    if any(name not in known for name in formats.values() if name is not None):
        raise ValueError(f"the formats are {known}")
    return {
        part: 0 if name is None else copies[part] * num_parameters * getattr(torch, name).itemsize
        for part, name in formats.items()
    }


def adamw_one_by_one(
    num_parameters: int,
    weights: str = "float32",
    gradients: str = "float32",
    moments: str = "float32",
    master_weights: str | None = None,
) -> dict[str, int]:
    def size(name: str) -> int:
        if name == "float32":
            return 4
        if name in ("bfloat16", "float16"):
            return 2
        if name == "int8":
            return 1
        raise ValueError(f"what is {name}?")

    found = {"weights": num_parameters * size(weights)}
    found["gradients"] = num_parameters * size(gradients)
    found["moments"] = num_parameters * size(moments) + num_parameters * size(moments)
    found["master_weights"] = 0
    if master_weights is not None:
        found["master_weights"] = num_parameters * size(master_weights)
    return found


def adamw_tried(
    num_parameters: int,
    weights: str = "float32",
    gradients: str = "float32",
    moments: str = "float32",
    master_weights: str | None = None,
) -> dict[str, int]:
    sizes = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, None: 0}
    try:
        return {
            "weights": num_parameters * sizes[weights],
            "gradients": num_parameters * sizes[gradients],
            "moments": 2 * num_parameters * sizes[moments],
            "master_weights": num_parameters * sizes[master_weights],
        }
    except KeyError as error:
        raise ValueError(f"unknown format {error}") from error


ADAMW_MEMORY = Check(
    reference=efficiency.adamw_memory,
    points=4,
    cases=adamw_cases,
    misconceptions=[
        Misconception(
            "one moment is counted, not two",
            adamw_one_moment,
            "AdamW remembers a mean of the gradients and a mean of what else?",
        ),
        Misconception(
            "every number takes 4 bytes: the formats are not used",
            adamw_all_float32,
            "How many bytes does one bfloat16 take?",
        ),
        Misconception(
            "this is in bits",
            adamw_in_bits,
            "A float32 has 32 bits. How many bytes are those?",
        ),
        Misconception(
            "the numbers are counted, not their bytes",
            adamw_counted,
            "How many bytes does one float32 take?",
        ),
        Misconception(
            "a master copy is counted where there is none",
            adamw_always_a_master,
            "What does master_weights=None say?",
        ),
        Misconception(
            "the master copy is never counted",
            adamw_never_a_master,
            "Where is the copy of the weights that takes up the small steps?",
        ),
        Misconception(
            "the moments have the format of the weights",
            adamw_moments_like_weights,
            "Which argument names the format of the moments?",
        ),
        Misconception(
            "an unknown format raises KeyError, not ValueError",
            adamw_key_error,
            "What does a dictionary raise for a key that it has not? Which error is asked for?",
        ),
        Misconception(
            "an unknown format is taken for one of 4 bytes",
            adamw_anything_goes,
            'What should a caller learn who has written "float8", which you do not know?',
        ),
    ],
    variants=[adamw_itemsize, adamw_one_by_one, adamw_tried],
)


# arithmetic_intensity ----------------------------------------------------------------------------


def intensity_cases(rng: Generator) -> list[Case]:
    rows, inputs, outputs = whole(rng, 5, 20), whole(rng, 30, 60), whole(rng, 70, 90)
    return [
        Case(1, 3, 2, 4, 4).titled("the matrix of section 1, one token, float32"),
        Case(1, inputs, outputs).titled("one token"),
        Case(rows, inputs, outputs).titled("several tokens"),
        Case(rows, outputs, inputs, 1, 4).titled("weights of 1 byte, values of 4"),
        Case(rows, inputs, outputs, bytes_per_weight=0.625).titled("weights of 5 bits"),
        Case(40 * rows, inputs, outputs, bytes_per_value=4).titled("many tokens"),
    ]


def intensity_one_flop(
    rows: int, inputs: int, outputs: int, bytes_per_weight: float = 2, bytes_per_value: float = 2
) -> float:
    moved = bytes_per_weight * inputs * outputs + bytes_per_value * rows * (inputs + outputs)
    return rows * inputs * outputs / moved


def intensity_weight_only(
    rows: int, inputs: int, outputs: int, bytes_per_weight: float = 2, bytes_per_value: float = 2
) -> float:
    return 2 * rows * inputs * outputs / (bytes_per_weight * inputs * outputs)


def intensity_without_output(
    rows: int, inputs: int, outputs: int, bytes_per_weight: float = 2, bytes_per_value: float = 2
) -> float:
    moved = bytes_per_weight * inputs * outputs + bytes_per_value * rows * inputs
    return 2 * rows * inputs * outputs / moved


def intensity_one_format(
    rows: int, inputs: int, outputs: int, bytes_per_weight: float = 2, bytes_per_value: float = 2
) -> float:
    numbers = inputs * outputs + rows * inputs + rows * outputs
    return 2 * rows * inputs * outputs / (bytes_per_weight * numbers)


def intensity_weight_for_each_row(
    rows: int, inputs: int, outputs: int, bytes_per_weight: float = 2, bytes_per_value: float = 2
) -> float:
    moved = bytes_per_weight * inputs * outputs + bytes_per_value * (inputs + outputs)
    return 2 * rows * inputs * outputs / (rows * moved)


def intensity_inverse(
    rows: int, inputs: int, outputs: int, bytes_per_weight: float = 2, bytes_per_value: float = 2
) -> float:
    moved = bytes_per_weight * inputs * outputs + bytes_per_value * rows * (inputs + outputs)
    return moved / (2 * rows * inputs * outputs)


def intensity_formats_swapped(
    rows: int, inputs: int, outputs: int, bytes_per_weight: float = 2, bytes_per_value: float = 2
) -> float:
    moved = bytes_per_value * inputs * outputs + bytes_per_weight * rows * (inputs + outputs)
    return 2 * rows * inputs * outputs / moved


def intensity_per_number(
    rows: int, inputs: int, outputs: int, bytes_per_weight: float = 2, bytes_per_value: float = 2
) -> float:
    return 2 * rows * inputs * outputs / (inputs * outputs + rows * (inputs + outputs))


def intensity_one_row_of_values(
    rows: int, inputs: int, outputs: int, bytes_per_weight: float = 2, bytes_per_value: float = 2
) -> float:
    moved = bytes_per_weight * inputs * outputs + bytes_per_value * (inputs + outputs)
    return 2 * rows * inputs * outputs / moved


def intensity_in_parts(
    rows: int, inputs: int, outputs: int, bytes_per_weight: float = 2, bytes_per_value: float = 2
) -> float:
    weight = bytes_per_weight * inputs * outputs
    read, written = bytes_per_value * rows * inputs, bytes_per_value * rows * outputs
    return 2 * (rows * inputs * outputs) / (weight + read + written)


def intensity_by_output(
    rows: int, inputs: int, outputs: int, bytes_per_weight: float = 2, bytes_per_value: float = 2
) -> float:
    flops = sum(2 * inputs for _ in range(rows) for _ in range(outputs))
    moved = outputs * inputs * bytes_per_weight + (inputs + outputs) * rows * bytes_per_value
    return flops / moved


def intensity_closed(
    rows: int, inputs: int, outputs: int, bytes_per_weight: float = 2, bytes_per_value: float = 2
) -> float:
    # over 2 · rows · inputs · outputs: a share for the weight, one for each of the values
    weight = bytes_per_weight / (2 * rows)
    values = bytes_per_value / (2 * outputs) + bytes_per_value / (2 * inputs)
    return 1 / (weight + values)


ARITHMETIC_INTENSITY = Check(
    reference=efficiency.arithmetic_intensity,
    points=3,
    cases=intensity_cases,
    misconceptions=[
        Misconception(
            "a multiplication and an addition are counted as one",
            intensity_one_flop,
            "How many FLOPs has a product with 6 weights for one token?",
        ),
        Misconception(
            "only the weight's bytes are counted",
            intensity_weight_only,
            "With many tokens, what else is read and written?",
        ),
        Misconception(
            "the output is not counted",
            intensity_without_output,
            "Where does the result go?",
        ),
        Misconception(
            "inputs and outputs are counted in the weight's format",
            intensity_one_format,
            "How many bytes has a weight, and how many has a value? Two arguments say so.",
        ),
        Misconception(
            "the weight is read again for each token",
            intensity_weight_for_each_row,
            "If it were read again for each token, what would be gained by having many at once?",
        ),
        Misconception(
            "this is bytes per FLOP",
            intensity_inverse,
            "How much arithmetic is there for one byte: which number goes on top?",
        ),
        Misconception(
            "the two formats are swapped",
            intensity_formats_swapped,
            "Which of the three tensors holds weights?",
        ),
        Misconception(
            "numbers are counted, not bytes",
            intensity_per_number,
            "How many bytes does one number take?",
        ),
        Misconception(
            "inputs and outputs of one token only are counted",
            intensity_one_row_of_values,
            "What shape has the input, and what shape has the output?",
        ),
    ],
    variants=[intensity_in_parts, intensity_by_output, intensity_closed],
)


# roofline ----------------------------------------------------------------------------------------


def roofline_cases(rng: Generator) -> list[Case]:
    peak, bandwidth = real(rng, 800.0, 900.0), real(rng, 20.0, 30.0)
    ridge = peak / bandwidth
    return [
        Case(0.5, 100.0, 8.0).titled("the machine of section 1, one token"),
        Case(50.0, 100.0, 8.0).titled("the machine of section 1, a hundred tokens"),
        Case(ridge * real(rng, 0.01, 0.1), peak, bandwidth).titled("far left of the ridge"),
        Case(ridge * real(rng, 0.6, 0.9), peak, bandwidth).titled("a little left of the ridge"),
        Case(ridge * real(rng, 1.1, 1.6), peak, bandwidth).titled("a little right of the ridge"),
        Case(ridge * real(rng, 20.0, 90.0), peak, bandwidth).titled("far right of the ridge"),
    ]


def roofline_largest(intensity: float, peak_flops: float, bandwidth: float) -> float:
    return max(peak_flops, intensity * bandwidth)


def roofline_memory_only(intensity: float, peak_flops: float, bandwidth: float) -> float:
    return intensity * bandwidth


def roofline_peak_only(intensity: float, peak_flops: float, bandwidth: float) -> float:
    return peak_flops


def roofline_without_intensity(intensity: float, peak_flops: float, bandwidth: float) -> float:
    return min(peak_flops, bandwidth)


def roofline_divided(intensity: float, peak_flops: float, bandwidth: float) -> float:
    return min(peak_flops, bandwidth / intensity)


def roofline_one_after_the_other(intensity: float, peak_flops: float, bandwidth: float) -> float:
    return 1 / (1 / peak_flops + 1 / (intensity * bandwidth))


def roofline_mean(intensity: float, peak_flops: float, bandwidth: float) -> float:
    return (peak_flops + intensity * bandwidth) / 2


def roofline_by_ridge(intensity: float, peak_flops: float, bandwidth: float) -> float:
    ridge = peak_flops / bandwidth
    return peak_flops if intensity > ridge else intensity * bandwidth


def roofline_by_time(intensity: float, peak_flops: float, bandwidth: float) -> float:
    seconds_of_arithmetic, seconds_of_memory = 1 / peak_flops, 1 / (intensity * bandwidth)
    return 1 / max(seconds_of_arithmetic, seconds_of_memory)


def roofline_sorted(intensity: float, peak_flops: float, bandwidth: float) -> float:
    return sorted((peak_flops, bandwidth * intensity))[0]


ROOFLINE = Check(
    reference=efficiency.roofline,
    points=2,
    cases=roofline_cases,
    misconceptions=[
        Misconception(
            "the higher of the two limits is taken, not the lower",
            roofline_largest,
            "If two things must both be done, which of them decides: the faster, or the slower?",
        ),
        Misconception(
            "arithmetic has no limit",
            roofline_memory_only,
            "With ever more FLOPs for each byte, can the machine compute ever faster?",
        ),
        Misconception(
            "memory is never waited for",
            roofline_peak_only,
            "Does your result depend on the intensity?",
        ),
        Misconception(
            "bytes per second are compared with FLOPs per second",
            roofline_without_intensity,
            "What turns bytes per second into FLOPs per second?",
        ),
        Misconception(
            "the bandwidth is divided by the intensity",
            roofline_divided,
            "With more FLOPs for each byte, does the same stream of bytes feed more or fewer?",
        ),
        Misconception(
            "reading and computing are done one after the other",
            roofline_one_after_the_other,
            "While one weight is multiplied, can the next already be on its way?",
        ),
        Misconception(
            "the mean of the two limits is taken",
            roofline_mean,
            "Can work go faster than the slower of two things that it needs?",
        ),
    ],
    variants=[roofline_by_ridge, roofline_by_time, roofline_sorted],
)


# decode_roofline ---------------------------------------------------------------------------------


def decode_cases(rng: Generator) -> list[Case]:
    weights, bandwidth = real(rng, 50.0, 90.0), real(rng, 1000.0, 3000.0)
    kv, batch = real(rng, 5.0, 20.0), whole(rng, 3, 30)
    return [
        Case(80.0, 20.0, 1000.0).titled("80 bytes of weights, 20 of cache, 1000 bytes a second"),
        Case(weights, 0.0, bandwidth).titled("the first token: an empty cache"),
        Case(weights, kv, bandwidth).titled("one text"),
        Case(weights, kv, bandwidth, batch).titled("several texts"),
        Case(weights, kv, bandwidth, batch_size=50 * batch).titled("many texts"),
    ]


def decode_one_cache(
    weight_bytes: float, kv_bytes: float, bandwidth: float, batch_size: int = 1
) -> float:
    return batch_size * bandwidth / (weight_bytes + kv_bytes)


def decode_steps(
    weight_bytes: float, kv_bytes: float, bandwidth: float, batch_size: int = 1
) -> float:
    return bandwidth / (weight_bytes + batch_size * kv_bytes)


def decode_weights_for_each(
    weight_bytes: float, kv_bytes: float, bandwidth: float, batch_size: int = 1
) -> float:
    return bandwidth / (weight_bytes + kv_bytes)


def decode_without_cache(
    weight_bytes: float, kv_bytes: float, bandwidth: float, batch_size: int = 1
) -> float:
    return batch_size * bandwidth / weight_bytes


def decode_seconds(
    weight_bytes: float, kv_bytes: float, bandwidth: float, batch_size: int = 1
) -> float:
    return (weight_bytes + batch_size * kv_bytes) / (batch_size * bandwidth)


def decode_all_shared(
    weight_bytes: float, kv_bytes: float, bandwidth: float, batch_size: int = 1
) -> float:
    return batch_size * bandwidth / (batch_size * weight_bytes + kv_bytes)


def decode_by_step(
    weight_bytes: float, kv_bytes: float, bandwidth: float, batch_size: int = 1
) -> float:
    seconds = (weight_bytes + batch_size * kv_bytes) / bandwidth
    return batch_size / seconds


def decode_per_token(
    weight_bytes: float, kv_bytes: float, bandwidth: float, batch_size: int = 1
) -> float:
    return bandwidth / (weight_bytes / batch_size + kv_bytes)


def decode_loop(
    weight_bytes: float, kv_bytes: float, bandwidth: float, batch_size: int = 1
) -> float:
    read = weight_bytes
    for _ in range(batch_size):
        read += kv_bytes
    return bandwidth / read * batch_size


DECODE_ROOFLINE = Check(
    reference=efficiency.decode_roofline,
    points=4,
    cases=decode_cases,
    misconceptions=[
        Misconception(
            "all texts share one KV cache",
            decode_one_cache,
            "Two texts are different. Can they have the same keys?",
        ),
        Misconception(
            "steps per second are given, not tokens per second",
            decode_steps,
            "How many tokens does one step give, with batch_size texts?",
        ),
        Misconception(
            "the weights are read again for each text",
            decode_weights_for_each,
            "Once a weight is there, how many texts can be multiplied by it?",
        ),
        Misconception(
            "the KV cache is not read",
            decode_without_cache,
            "What does the new query of each text look at?",
        ),
        Misconception(
            "this is seconds per token",
            decode_seconds,
            "Which is on top in tokens per second?",
        ),
        Misconception(
            "weights and cache are mixed up: the cache is shared, the weights are not",
            decode_all_shared,
            "Which of the two belongs to the model, and which to one text?",
        ),
    ],
    variants=[decode_by_step, decode_per_token, decode_loop],
)


# quantize_int8 -----------------------------------------------------------------------------------


def clear_of_halves(weight: Tensor) -> Tensor:
    """With zeros where a rounding to whole steps would be a toss-up."""
    wide = weight.float()
    steps = wide / (wide.abs().amax(-1, keepdim=True) / 127)
    return weight.masked_fill(((steps - steps.floor()) - 0.5).abs() < 0.02, 0.0)


def quantize_cases(rng: Generator) -> list[Case]:
    sizes = torch.tensor([0.01, 1.0, 30.0])[:, None]
    lopsided = normal(rng, 3, 7).abs()
    lopsided[:, 4] = -3 - 5 * lopsided[:, 4]  # the largest weights are negative
    empty_row = normal(rng, 4, 5)
    empty_row[2] = 0.0
    not_finite = normal(rng, 3, 4)
    not_finite[1, 2] = math.nan
    infinite = normal(rng, 3, 4)
    infinite[0, 1] = -math.inf
    return [
        Case(torch.tensor([[0.3, -1.27, 0.004]])).titled("the row of section 7"),
        Case(clear_of_halves(normal(rng, 3, 8) * sizes)).titled("rows of different sizes"),
        Case(clear_of_halves(lopsided)).titled("rows whose largest weight is negative"),
        Case(clear_of_halves(normal(rng, 2, 3, 6))).titled("two matrices at once"),
        Case(clear_of_halves(normal(rng, 9))).titled("a single row, of shape (9,)"),
        Case(clear_of_halves(normal(rng, 4, 10, dtype=torch.bfloat16))).titled("bfloat16"),
        Case(clear_of_halves(normal(rng, 6, 5).T)).titled("transposed in memory"),
        Case(clear_of_halves(empty_row)).titled("a row of zeros"),
        Case(not_finite).titled("a weight that is NaN"),
        Case(infinite).titled("a weight that is infinite"),
    ]


def quantize_one_scale(weight: Tensor) -> tuple[Tensor, Tensor]:
    wide = weight.float()
    if not wide.isfinite().all():
        raise ValueError("not finite")
    scale = (wide.abs().max() / 127).expand(weight.shape[:-1])
    scale = torch.where(scale == 0, 1.0, scale)
    return (wide / scale[..., None]).round().to(torch.int8), scale


def quantize_by_column(weight: Tensor) -> tuple[Tensor, Tensor]:
    wide = weight.float()
    if not wide.isfinite().all():
        raise ValueError("not finite")
    scale = wide.abs().amax(0) / 127
    scale = torch.where(scale == 0, 1.0, scale)
    return (wide / scale).round().to(torch.int8), scale


def quantize_truncated(weight: Tensor) -> tuple[Tensor, Tensor]:
    wide = weight.float()
    if not wide.isfinite().all():
        raise ValueError("not finite")
    scale = wide.abs().amax(-1) / 127
    scale = torch.where(scale == 0, 1.0, scale)
    return (wide / scale[..., None] * 1.0001).to(torch.int8), scale


def quantize_floored(weight: Tensor) -> tuple[Tensor, Tensor]:
    wide = weight.float()
    if not wide.isfinite().all():
        raise ValueError("not finite")
    scale = wide.abs().amax(-1) / 127
    scale = torch.where(scale == 0, 1.0, scale)
    return (wide / scale[..., None] + 0.0001).floor().to(torch.int8), scale


def quantize_by_128(weight: Tensor) -> tuple[Tensor, Tensor]:
    wide = weight.float()
    if not wide.isfinite().all():
        raise ValueError("not finite")
    scale = wide.abs().amax(-1) / 128
    scale = torch.where(scale == 0, 1.0, scale)
    return (wide / scale[..., None]).round().clamp(-128, 127).to(torch.int8), scale


def quantize_largest_without_sign(weight: Tensor) -> tuple[Tensor, Tensor]:
    wide = weight.float()
    if not wide.isfinite().all():
        raise ValueError("not finite")
    scale = wide.amax(-1) / 127
    scale = torch.where(scale == 0, 1.0, scale)
    return (wide / scale[..., None]).round().clamp(-127, 127).to(torch.int8), scale


def quantize_by_deviation(weight: Tensor) -> tuple[Tensor, Tensor]:
    wide = weight.float()
    if not wide.isfinite().all():
        raise ValueError("not finite")
    scale = 3 * wide.std(-1) / 127
    scale = torch.where(scale == 0, 1.0, scale)
    return (wide / scale[..., None]).round().clamp(-127, 127).to(torch.int8), scale


def quantize_zero_by_zero(weight: Tensor) -> tuple[Tensor, Tensor]:
    wide = weight.float()
    if not wide.isfinite().all():
        raise ValueError("not finite")
    scale = wide.abs().amax(-1) / 127
    return (wide / scale[..., None]).round().nan_to_num().to(torch.int8), scale


def quantize_as_floats(weight: Tensor) -> tuple[Tensor, Tensor]:
    wide = weight.float()
    if not wide.isfinite().all():
        raise ValueError("not finite")
    scale = wide.abs().amax(-1) / 127
    scale = torch.where(scale == 0, 1.0, scale)
    return (wide / scale[..., None]).round(), scale


def quantize_scale_kept_wide(weight: Tensor) -> tuple[Tensor, Tensor]:
    wide = weight.float()
    if not wide.isfinite().all():
        raise ValueError("not finite")
    scale = wide.abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale == 0, 1.0, scale)
    return (wide / scale).round().to(torch.int8), scale


def quantize_scale_inverted(weight: Tensor) -> tuple[Tensor, Tensor]:
    wide = weight.float()
    if not wide.isfinite().all():
        raise ValueError("not finite")
    scale = 127 / wide.abs().amax(-1)
    scale = torch.where(scale.isinf(), 1.0, scale)
    return (wide * scale[..., None]).round().to(torch.int8), scale


def quantize_in_its_dtype(weight: Tensor) -> tuple[Tensor, Tensor]:
    if not weight.isfinite().all():
        raise ValueError("not finite")
    scale = weight.abs().amax(-1) / 127
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return (weight / scale[..., None]).round().clamp(-127, 127).to(torch.int8), scale


def quantize_anything(weight: Tensor) -> tuple[Tensor, Tensor]:
    wide = weight.float()
    scale = wide.abs().amax(-1) / 127
    scale = torch.where(scale == 0, 1.0, scale)
    return (wide / scale[..., None]).round().nan_to_num().clamp(-127, 127).to(torch.int8), scale


def quantize_keepdim(weight: Tensor) -> tuple[Tensor, Tensor]:
    if torch.isnan(weight).any() or torch.isinf(weight).any():
        raise ValueError("the weight must be finite")
    top = weight.to(torch.float32).abs().max(dim=-1, keepdim=True).values
    scale = torch.where(top > 0, top / 127, torch.ones_like(top))
    whole_numbers = torch.round(weight.to(torch.float32) / scale)
    return whole_numbers.char(), scale.squeeze(-1)


def quantize_built_in(weight: Tensor) -> tuple[Tensor, Tensor]:
    wide = weight.float()
    if not bool(torch.isfinite(wide).all()):
        raise ValueError("cannot quantize what is not finite")
    scale = torch.linalg.vector_norm(wide, ord=math.inf, dim=-1) / 127.0
    scale[scale == 0] = 1.0
    steps = wide.mul(1 / scale.unsqueeze(-1))
    return (steps + 0.5).floor().clamp(-127, 127).to(torch.int8), scale


def quantize_loop(weight: Tensor) -> tuple[Tensor, Tensor]:
    rows, scales = [], []
    for row in weight.float().reshape(-1, weight.shape[-1]).tolist():
        if not all(math.isfinite(w) for w in row):
            raise ValueError("a weight is not finite")
        scale = max(abs(w) for w in row) / 127 or 1.0
        rows.append([round(w / scale) for w in row])
        scales.append(scale)
    quantized = torch.tensor(rows, dtype=torch.int8).reshape(weight.shape)
    return quantized, torch.tensor(scales).reshape(weight.shape[:-1])


QUANTIZE_INT8 = Check(
    reference=quantization.quantize_int8,
    points=5,
    cases=quantize_cases,
    misconceptions=[
        Misconception(
            "all rows share one scale",
            quantize_one_scale,
            "If one row is a hundred times as large as another, how many steps has the other?",
        ),
        Misconception(
            "each column has a scale, not each row",
            quantize_by_column,
            "Along which dimension does one row run?",
        ),
        Misconception(
            "the steps are cut off, not rounded",
            quantize_truncated,
            "What does .to(torch.int8) make of 2.9?",
        ),
        Misconception(
            "the steps are rounded down",
            quantize_floored,
            "Which whole number is nearest to 2.9, and which to -0.4?",
        ),
        Misconception(
            "the largest weight becomes 128",
            quantize_by_128,
            "Which is the largest number that an int8 can hold?",
        ),
        Misconception(
            "the largest weight is sought without regard to negative ones",
            quantize_largest_without_sign,
            "Which weight of the row (0.3, -1.27, 0.004) must become 127 or -127?",
        ),
        Misconception(
            "the scale comes from the spread of the row, and larger weights are cut off",
            quantize_by_deviation,
            "By how much may a weight move at most? By how much do yours that are cut off?",
        ),
        Misconception(
            "a row of zeros is divided by zero",
            quantize_zero_by_zero,
            "What is the largest weight of a row of zeros, and what do you divide by?",
        ),
        Misconception(
            "the whole numbers are stored as floats",
            quantize_as_floats,
            "How many bytes does your result take for each weight?",
        ),
        Misconception(
            "the scale keeps a last dimension of size 1",
            quantize_scale_kept_wide,
            "For a weight of shape (3, 8), the scale has shape (3,). Which has yours?",
        ),
        Misconception(
            "the scale is given upside down: steps per unit",
            quantize_scale_inverted,
            "By what must 127 be multiplied to get the largest weight back?",
        ),
        Misconception(
            "the scale is computed in the weight's own format, not in float32",
            quantize_in_its_dtype,
            "A bfloat16 has about two to three decimal digits. Are those enough for a scale?",
        ),
        Misconception(
            "NaN and infinity are taken without a word",
            quantize_anything,
            "Which whole number stands for NaN? What should the caller be told?",
        ),
    ],
    variants=[quantize_keepdim, quantize_built_in, quantize_loop],
)


# dequantize_int8 ---------------------------------------------------------------------------------


def int8s(rng: Generator, *shape: int) -> Tensor:
    return torch.randint(-127, 128, shape, generator=rng).to(torch.int8)


def dequantize_cases(rng: Generator) -> list[Case]:
    scales = normal(rng, 4).abs() + 0.01
    return [
        Case(torch.tensor([[30, -127, 0]], dtype=torch.int8), torch.tensor([0.01])).titled(
            "the row of section 7"
        ),
        Case(int8s(rng, 4, 7), scales).titled("four rows"),
        Case(int8s(rng, 2, 3, 5), normal(rng, 2, 3).abs() + 0.01).titled("two matrices at once"),
        Case(int8s(rng, 6), torch.tensor(0.25)).titled("a single row, of shape (6,)"),
        Case(int8s(rng, 5, 3), normal(rng, 5, dtype=torch.float64).abs()).titled("float64 scales"),
        Case(int8s(rng, 8, 4).T, scales).titled("transposed in memory"),
    ]


def dequantize_divided(quantized: Tensor, scale: Tensor) -> Tensor:
    return quantized / scale[..., None]


def dequantize_over_127(quantized: Tensor, scale: Tensor) -> Tensor:
    return quantized / 127 * scale[..., None]


def dequantize_one_scale(quantized: Tensor, scale: Tensor) -> Tensor:
    return quantized * scale.max()


def dequantize_rounded(quantized: Tensor, scale: Tensor) -> Tensor:
    return (quantized * scale[..., None]).round()


def dequantize_along_columns(quantized: Tensor, scale: Tensor) -> Tensor:
    return quantized * scale


def dequantize_unsigned(quantized: Tensor, scale: Tensor) -> Tensor:
    return (quantized.int() & 255) * scale[..., None]


def dequantize_added(quantized: Tensor, scale: Tensor) -> Tensor:
    return quantized + scale[..., None]


def dequantize_still_bytes(quantized: Tensor, scale: Tensor) -> Tensor:
    return (quantized * scale[..., None]).to(torch.int8)


def dequantize_unsqueezed(quantized: Tensor, scale: Tensor) -> Tensor:
    return quantized.to(scale.dtype).mul(scale.unsqueeze(-1))


def dequantize_einsum(quantized: Tensor, scale: Tensor) -> Tensor:
    return torch.einsum("...k,...->...k", quantized.to(scale.dtype), scale)


def dequantize_loop(quantized: Tensor, scale: Tensor) -> Tensor:
    result = torch.empty(quantized.shape, dtype=scale.dtype)
    rows, flat = result.view(-1, quantized.shape[-1]), scale.reshape(-1)
    for i, row in enumerate(quantized.reshape(-1, quantized.shape[-1])):
        rows[i] = row * flat[i]
    return result


DEQUANTIZE_INT8 = Check(
    reference=quantization.dequantize_int8,
    points=2,
    cases=dequantize_cases,
    misconceptions=[
        Misconception(
            "the bytes are divided by the scale",
            dequantize_divided,
            "The scale is the size of one step. What are 30 steps of 0.01?",
        ),
        Misconception(
            "the bytes are divided by 127 again",
            dequantize_over_127,
            "Is the scale the largest weight, or a 127th part of it?",
        ),
        Misconception(
            "all rows are multiplied by the largest scale",
            dequantize_one_scale,
            "Which scale belongs to the second row?",
        ),
        Misconception(
            "the weights are rounded to whole numbers",
            dequantize_rounded,
            "Is a weight of 0.3 a whole number?",
        ),
        Misconception(
            "the scales are laid along the columns, not the rows",
            dequantize_along_columns,
            "To which dimension does (N,) broadcast beside (N, K): the first, or the last?",
        ),
        Misconception(
            "the bytes are read without their sign",
            dequantize_unsigned,
            "Which number is the byte of -127 if it is taken for one from 0 to 255?",
        ),
        Misconception(
            "the scale is added, not multiplied",
            dequantize_added,
            "One step is 0.01 wide. How wide are 30 steps?",
        ),
        Misconception(
            "the result is turned back into int8",
            dequantize_still_bytes,
            "Which dtype can hold a weight of 0.3?",
        ),
    ],
    variants=[dequantize_unsqueezed, dequantize_einsum, dequantize_loop],
)


# expected_accepted -------------------------------------------------------------------------------


def expected_cases(rng: Generator) -> list[Case]:
    return [
        Case(0.5, 2).titled("half of the guesses are right, two guesses"),
        Case(real(rng, 0.2, 0.9), whole(rng, 3, 9)).titled("a draft that is often right"),
        Case(real(rng, 0.2, 0.9), 1).titled("a single guess"),
        Case(0.0, whole(rng, 2, 9)).titled("a draft that is never right"),
        Case(1.0, whole(rng, 2, 9)).titled("a draft that is always right"),
        Case(real(rng, 0.2, 0.9), draft_length=0).titled("no guesses"),
        Case(1.0 + real(rng, 0.1, 0.5), 4).titled("an acceptance above 1"),
        Case(-0.25, 4).titled("an acceptance below 0"),
        Case(0.5, -1).titled("fewer than no guesses"),
    ]


def expected_guesses_only(acceptance: float, draft_length: int) -> float:
    if not 0 <= acceptance <= 1 or draft_length < 0:
        raise ValueError("out of range")
    return float(sum(acceptance**i for i in range(1, draft_length + 1)))


def expected_binomial(acceptance: float, draft_length: int) -> float:
    if not 0 <= acceptance <= 1 or draft_length < 0:
        raise ValueError("out of range")
    return 1 + acceptance * draft_length


def expected_division(acceptance: float, draft_length: int) -> float:
    if not 0 <= acceptance <= 1 or draft_length < 0:
        raise ValueError("out of range")
    return (1 - acceptance ** (draft_length + 1)) / (1 - acceptance)


def expected_one_too_few(acceptance: float, draft_length: int) -> float:
    if not 0 <= acceptance <= 1 or draft_length < 0:
        raise ValueError("out of range")
    return float(sum(acceptance**i for i in range(draft_length)))


def expected_all_or_nothing(acceptance: float, draft_length: int) -> float:
    if not 0 <= acceptance <= 1 or draft_length < 0:
        raise ValueError("out of range")
    return 1 + draft_length * acceptance**draft_length


def expected_without_end(acceptance: float, draft_length: int) -> float:
    if not 0 <= acceptance <= 1 or draft_length < 0:
        raise ValueError("out of range")
    return draft_length + 1.0 if acceptance == 1 else 1 / (1 - acceptance)


def expected_unchecked(acceptance: float, draft_length: int) -> float:
    return float(sum(acceptance**i for i in range(draft_length + 1)))


def expected_binomial_guesses(acceptance: float, draft_length: int) -> float:
    if not 0 <= acceptance <= 1 or draft_length < 0:
        raise ValueError("out of range")
    return acceptance * draft_length


def expected_closed(acceptance: float, draft_length: int) -> float:
    if draft_length < 0 or acceptance < 0 or acceptance > 1:
        raise ValueError("acceptance is a probability, draft_length not negative")
    if acceptance == 1:
        return float(draft_length + 1)
    return (1 - acceptance ** (draft_length + 1)) / (1 - acceptance)


def expected_horner(acceptance: float, draft_length: int) -> float:
    if draft_length < 0:
        raise ValueError("draft_length must not be negative")
    if not 0 <= acceptance <= 1:
        raise ValueError("acceptance must be a probability")
    tokens = 1.0
    for _ in range(draft_length):
        tokens = 1.0 + acceptance * tokens
    return tokens


def expected_by_outcome(acceptance: float, draft_length: int) -> float:
    if not (0 <= acceptance <= 1 and draft_length >= 0):
        raise ValueError("out of range")
    mean = (draft_length + 1) * acceptance**draft_length
    for right in range(draft_length):
        mean += (right + 1) * acceptance**right * (1 - acceptance)
    return mean


def expected_tensor(acceptance: float, draft_length: int) -> float:
    if not 0 <= acceptance <= 1 or draft_length < 0:
        raise ValueError("out of range")
    stands = torch.full((draft_length,), acceptance, dtype=torch.float64)
    return 1 + float(stands.cumprod(0).sum())


EXPECTED_ACCEPTED = Check(
    reference=efficiency.expected_accepted,
    points=4,
    cases=expected_cases,
    misconceptions=[
        Misconception(
            "the target's own token is not counted",
            expected_guesses_only,
            "If the first guess falls, how many tokens has the round given?",
        ),
        Misconception(
            "guesses after a refusal are counted as well",
            expected_binomial,
            "The second guess continues the first. If the first falls, what is the second worth?",
        ),
        Misconception(
            "an acceptance of 1 gives 0 / 0",
            expected_division,
            "What is 1 - acceptance if every guess is right?",
        ),
        Misconception(
            "the sum ends one term too early",
            expected_one_too_few,
            "If all of 2 guesses stand, how many tokens has the round given?",
        ),
        Misconception(
            "the guesses stand all together or not at all",
            expected_all_or_nothing,
            "If the third of four guesses falls, what becomes of the first two?",
        ),
        Misconception(
            "the number of guesses is not limited",
            expected_without_end,
            "Can a round with 2 guesses give more than 3 tokens?",
        ),
        Misconception(
            "values out of range are taken without a word",
            expected_unchecked,
            "What does an acceptance of 1.2 mean?",
        ),
        Misconception(
            "each guess is counted by itself, and the target's own token is not",
            expected_binomial_guesses,
            "With a draft that is never right, how many tokens does a round give?",
        ),
    ],
    variants=[expected_closed, expected_horner, expected_by_outcome, expected_tensor],
)


# Questions ---------------------------------------------------------------------------------------

MATRIX_PARAMETERS = Question(
    "matrix_parameters",
    points=2,
    answer=134_479_872.0,
    tolerance=(0.0, 0.5),
    misconceptions=[
        Misconception(
            "the head is left out because it is tied",
            106_168_320.0,
            "Tied means stored once. Is the last vector multiplied by the table all the same?",
        ),
        Misconception(
            "the norms are counted",
            134_515_008.0,
            "Is a norm's weight a matrix?",
        ),
        Misconception(
            "the embedding is counted beside the head",
            162_791_424.0,
            "Is a token multiplied by the embedding, or does it read one row of it?",
        ),
        Misconception(
            "one layer is counted",
            884_736.0 + 2_654_208 + 28_311_552,
            "How many layers does SmolLM2 have?",
        ),
        Misconception(
            "keys and values are counted as wide as queries",
            30 * (4.0 * 576 * 576 + 2_654_208) + 28_311_552,
            "How many rows has k_proj: one for each of 9 heads, or of 3?",
        ),
        Misconception(
            "the feed-forward layer is counted with two matrices",
            30 * (884_736.0 + 2 * 576 * 1536) + 28_311_552,
            "Which three matrices has SwiGLU?",
        ),
    ],
)

WAITING = Question(
    "waiting",
    answer="b",
    choices=("a", "b", "c", "d"),
    misconceptions=[
        Misconception(
            "more arithmetic is thought to help what waits for memory",
            "a",
            "On which side of the ridge is one token? Which roof is lower there?",
        ),
        Misconception(
            "the numbers of tokens are thought to make no difference",
            "c",
            "Is a weight read 512 times for 512 tokens?",
        ),
        Misconception(
            "both are thought to be limited by arithmetic",
            "d",
            "How many FLOPs are there for each byte when there is one token?",
        ),
    ],
)

OUTLIER = Question(
    "outlier",
    answer="c",
    choices=("a", "b", "c", "d"),
    misconceptions=[
        Misconception(
            "only the large weight is thought to suffer",
            "a",
            "The large weight becomes exactly 127. How wide is a step of its row now?",
        ),
        Misconception(
            "every row is thought to share the scale",
            "b",
            "From which weights does the scale of another row come?",
        ),
        Misconception(
            "the large weight is thought to be cut off",
            "d",
            "The scale is the largest weight over 127. Can anything be beyond 127 steps?",
        ),
    ],
)

DECODE_BYTES = Question(
    "decode_bytes",
    points=2,
    answer=2.0 * 134_479_872 + 23_040 * 1_000,
    tolerance=(1e-3, 0.0),
    misconceptions=[
        Misconception(
            "the cache is not counted",
            2.0 * 134_479_872,
            "What does the new token's query look at, in every layer?",
        ),
        Misconception(
            "the weights are not counted",
            23_040.0 * 1_000,
            "By what is the new token multiplied?",
        ),
        Misconception(
            "each number is counted as 4 bytes",
            4.0 * 134_479_872 + 2 * 23_040 * 1_000,
            "How many bytes does one bfloat16 take?",
        ),
        Misconception(
            "numbers are counted, not bytes",
            134_479_872.0 + 11_520 * 1_000,
            "How many bytes does one bfloat16 take?",
        ),
        Misconception(
            "the embedding is read whole, beside the head",
            2.0 * 162_791_424 + 23_040 * 1_000,
            "How many rows of the embedding does one token read?",
        ),
        Misconception(
            "keys and values are counted for all 9 query heads",
            2.0 * 134_479_872 + 3 * 23_040 * 1_000,
            "How many key/value heads does SmolLM2 keep?",
        ),
    ],
)
