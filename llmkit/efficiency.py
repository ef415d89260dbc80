"""What a language model costs: parameters, arithmetic, bytes, and the time these take at least.

First counts that need no machine, then the roofline that turns them into time, then measurements of
the machine's own ceilings. FLOPs count a multiplication and an addition as two.
"""

from dataclasses import dataclass

import torch
from torch.utils.benchmark import Timer

from llmkit.attention import kv_cache_bytes
from llmkit.transformer import LlamaConfig

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}  # of one number


# parameters


def parameters_by_part(config: LlamaConfig) -> dict[str, int]:
    """The parameters of a Llama, counted by what they serve; they sum to `count_parameters`.

    A head tied to the embedding is counted there: "head" is then 0.
    """
    c = config
    table, layers = c.vocab_size * c.hidden_size, c.num_hidden_layers
    heads = 2 * c.num_attention_heads + 2 * c.num_key_value_heads  # q and o; k and v
    return {
        "embedding": table,
        "attention": layers * heads * c.head_dim * c.hidden_size,
        "feed-forward": layers * 3 * c.hidden_size * c.intermediate_size,
        "norms": (2 * layers + 1) * c.hidden_size,
        "head": 0 if c.tie_word_embeddings else table,
    }


def matrix_parameters(config: LlamaConfig) -> int:
    """The weights that every token is multiplied by: all matrices of the layers, and the head.

    Not the norms, which are vectors, nor the embedding, of which a token reads one row. A tied
    head counts, since it is multiplied by.
    """
    parts = parameters_by_part(config)
    return parts["attention"] + parts["feed-forward"] + config.vocab_size * config.hidden_size


# arithmetic


def forward_flops(
    num_parameters: int, num_layers: int, attention_width: int, length: int, past: int = 0
) -> int:
    """FLOPs of a forward pass over `length` tokens of one sequence, behind `past` cached ones.

    Two for each weight and token, and in each layer two for each feature of each query-key pair
    for the scores, two again for the weighted sum of values (Kaplan et al., 2020, table 1):

        2 · num_parameters · length + 4 · num_layers · attention_width · length · (past + length)

    `num_parameters` counts matrices only (`matrix_parameters`); `attention_width` is H·d. All pairs
    count, also those that the causal mask hides, as PyTorch's FlopCounterMode counts them. Norms,
    rotations, softmax and activations, well under 1 % of a real model's, do not.
    """
    pairs = length * (past + length)
    return 2 * num_parameters * length + 4 * num_layers * attention_width * pairs


def llama_flops(config: LlamaConfig, length: int, past: int = 0) -> int:
    """`forward_flops` of a Llama of this config that computes the logits of every position."""
    width = config.num_attention_heads * config.head_dim
    return forward_flops(matrix_parameters(config), config.num_hidden_layers, width, length, past)


def training_flops(
    num_parameters: int,
    num_tokens: int,
    num_layers: int = 0,
    attention_width: int = 0,
    length: int = 0,
) -> int:
    """FLOPs of training on that many tokens: 6ND, and attention's if its shape is given.

    Forward takes 2 FLOPs for each weight and token and backward 4, twice as many, for gradients of
    both inputs and weights. So 6 · num_parameters · num_tokens (Kaplan et al., 2020, §2.1), which
    leaves out what attention takes, 12 · num_layers · attention_width · length for each token of a
    sequence of that length (Chowdhery et al., 2022, appendix B). The rule of thumb breaks where

    - sequences are long: attention takes as much at length = N / (2 · num_layers · width);
    - N counts an embedding that is only looked up, much of a small model's;
    - activations are computed again rather than kept: 8ND instead.
    """
    return num_tokens * (6 * num_parameters + 12 * num_layers * attention_width * length)


# bytes


def adamw_memory(
    num_parameters: int,
    weights: str = "float32",
    gradients: str = "float32",
    moments: str = "float32",
    master_weights: str | None = None,
) -> dict[str, int]:
    """Bytes that training with AdamW keeps for its parameters, by what they hold.

    The optimizer has two moments for each parameter. Mixed precision often keeps a copy of the
    weights in float32, the `master_weights`. Activations come on top: they depend on the batch.

    The number formats are names, "float32", "bfloat16", "float16" or "int8". The result has the
    keys "weights", "gradients", "moments" and "master_weights". Raises ValueError for other names.
    """
    formats = {
        "weights": (1, weights),
        "gradients": (1, gradients),
        "moments": (2, moments),
        "master_weights": (1 if master_weights else 0, master_weights or "float32"),
    }
    for part, (_, name) in formats.items():
        if name not in BYTES:
            raise ValueError(f"{part} must be one of {', '.join(BYTES)}, not {name!r}.")
    return {part: copies * num_parameters * BYTES[name] for part, (copies, name) in formats.items()}


def decode_bytes(
    config: LlamaConfig,
    context: int,
    bytes_per_weight: float = 2,
    bytes_per_value: int = 2,
    batch_size: int = 1,
) -> float:
    """Bytes read to generate the next token of each of `batch_size` sequences.

    Every matrix once, whatever the batch, and the keys and values of `context` positions for each.
    int8 weights take 1 byte, Q4_1's 4 bits and two float16 for every 32 weights take 0.625.
    """
    weights = matrix_parameters(config) * bytes_per_weight
    return weights + kv_cache_bytes(
        config.num_hidden_layers,
        config.num_key_value_heads,
        config.head_dim,
        context,
        batch_size,
        bytes_per_value,
    )


# time


def arithmetic_intensity(
    rows: int, inputs: int, outputs: int, bytes_per_weight: float = 2, bytes_per_value: float = 2
) -> float:
    """FLOPs per byte of the product of (rows, inputs) with a weight (inputs, outputs).

    2 · rows · inputs · outputs FLOPs, over the bytes of the weight, the input and the output, each
    moved once. With one row, as in decoding, it is near 2 / bytes_per_weight: every weight is read
    for a single multiplication and addition.
    """
    values = rows * inputs + rows * outputs
    moved = bytes_per_weight * inputs * outputs + bytes_per_value * values
    return 2 * rows * inputs * outputs / moved


def roofline(intensity: float, peak_flops: float, bandwidth: float) -> float:
    """The most FLOP/s that work of this intensity can reach (Williams et al., 2009).

    Whichever ends first: arithmetic, in FLOP/s, or memory, bandwidth in bytes/s times intensity in
    FLOPs per byte.
    """
    return min(peak_flops, intensity * bandwidth)


def decode_roofline(
    weight_bytes: float, kv_bytes: float, bandwidth: float, batch_size: int = 1
) -> float:
    """The most tokens per second that decoding can reach, if it waits for memory alone.

    A step reads all weights once, and each sequence's own KV cache, of `kv_bytes`; it gives
    `batch_size` tokens. Bandwidth in bytes per second.
    """
    return batch_size * bandwidth / (weight_bytes + batch_size * kv_bytes)


def expected_accepted(acceptance: float, draft_length: int) -> float:
    """Tokens that one run of the target yields in speculative decoding, on average.

    (1 - a^(g+1)) / (1 - a), if each of g guesses is accepted with probability a, independently
    (Leviathan et al., 2023, eq. 1): guesses up to the first refusal, and always one token of the
    target's own. At a = 1 that is g + 1.

    Raises ValueError unless 0 ≤ acceptance ≤ 1 and draft_length ≥ 0.
    """
    if not 0 <= acceptance <= 1:
        raise ValueError(f"acceptance must be a probability, from 0 to 1, not {acceptance}.")
    if draft_length < 0:
        raise ValueError(f"draft_length must be 0 or more, not {draft_length}.")
    # the geometric series, which needs no special case at a = 1
    return float(sum(acceptance**i for i in range(draft_length + 1)))


def speculative_speedup(acceptance: float, draft_length: int, cost: float) -> float:
    """How many times as fast speculative decoding is (Leviathan et al., 2023, theorem 3.8).

    `cost` is the time of one run of the draft over that of the target, which is taken to be as
    quick with g + 1 tokens as with one, as it is while it waits for memory.
    """
    return expected_accepted(acceptance, draft_length) / (draft_length * cost + 1)


# the machine


@dataclass(frozen=True)
class Ceilings:
    """What a machine was seen to reach, in bytes/s and FLOP/s."""

    copy_bandwidth: float
    matvec_bandwidth: float
    matmul_flops: float


def measure_ceilings(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    megabytes: int = 256,
    size: int = 2048,
) -> Ceilings:
    """Measure this machine, in about two seconds: all from the best of several runs.

    Bandwidth by a copy of that many megabytes, both read and written ones counted, and by a product
    of a matrix of as many with a vector, which decoding is like; arithmetic by a product of two
    square matrices. The megabytes should exceed the processor's caches several times.
    """
    width = 4096
    numbers = (megabytes << 20) // dtype.itemsize
    source = torch.ones(numbers // width, width, dtype=dtype, device=device)
    target, vector = torch.empty_like(source), source[0].clone()
    square = torch.ones(size, size, dtype=dtype, device=device)
    copied, read = 2 * source.nbytes, source.nbytes
    return Ceilings(
        copied / _best_seconds("target.copy_(source)", target=target, source=source),
        read / _best_seconds("source @ vector", source=source, vector=vector),
        2 * size**3 / _best_seconds("square @ square", square=square),
    )


def _best_seconds(statement: str, **tensors: torch.Tensor) -> float:
    # PyTorch's own timer waits for a GPU to finish; by default it uses one thread
    timer = Timer(statement, globals=tensors, num_threads=torch.get_num_threads())
    return min(timer.blocked_autorange(min_run_time=0.3).times)
