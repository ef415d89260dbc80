"""A Llama of real shape and random weights on a GPU: llmkit beside transformers, in bfloat16.

Decoding one text waits for memory, so its ceiling is the measured copy bandwidth; reading a prompt
and training wait for arithmetic, so theirs is a large matrix product.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.figure import Figure, in_turn, seconds
from llmkit.decoding import generate
from llmkit.efficiency import decode_bytes, llama_flops, measure_ceilings
from llmkit.quantization import quantize_model
from llmkit.transformer import Llama, LlamaConfig, preset

DECODED, TRAINED = ("llama-3.2-1b", "llama-3.1-8b"), "llama-3.2-1b"
PROMPT, NEW, PREFILL = 64, 128, 2048  # tokens
BATCH, LENGTH = 4, 2048  # of a training step
ROUNDS = 3
BFLOAT16 = torch.bfloat16


def waited(device: torch.device, function: Callable[[], Any]) -> float:
    """Seconds of a call, the work that it left to the GPU included."""

    def call() -> None:
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return seconds(call)


def random_llama(config: LlamaConfig, device: torch.device) -> Llama:
    torch.manual_seed(0)
    with torch.device(device):
        return Llama(config).to(BFLOAT16)


def their_llama(ours: Llama, device: torch.device) -> Any:
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM

    with torch.device(device):
        theirs = LlamaForCausalLM(TheirConfig(**ours.config.to_hf(), dtype=BFLOAT16)).to(BFLOAT16)
    theirs.load_state_dict(ours.state_dict())
    return theirs.eval()


def decoding_figures(name: str, config: LlamaConfig, device: torch.device) -> Iterator[Figure]:
    ceilings = measure_ceilings(device, BFLOAT16)
    model = random_llama(config, device).eval()
    theirs = their_llama(model, device)
    ids = torch.randint(0, config.vocab_size, (PREFILL,), device=device)

    def mine() -> float:
        return waited(device, lambda: list(generate(model, ids[:PROMPT], NEW)))

    def other(**settings: Any) -> float:
        prompt = ids[None, :PROMPT]
        fixed = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
        return waited(
            device,
            lambda: theirs.generate(
                prompt, attention_mask=torch.ones_like(prompt), pad_token_id=0, **fixed, **settings
            ),
        )

    runs = {"transformers eager": (other, 4.0)}
    if device.type == "cuda":  # elsewhere transformers does not compile
        runs["transformers compiled"] = (lambda: other(cache_implementation="static"), 1.0)
    for run in (mine, *(run for run, _ in runs.values())):
        run()  # to warm up
    own, *others = in_turn(ROUNDS, mine, *(run for run, _ in runs.values()))
    ceiling = ceilings.copy_bandwidth / decode_bytes(config, PROMPT + NEW // 2)
    for (peer, (_, goal)), time_of in zip(runs.items(), others, strict=True):
        yield Figure(
            f"{name}: {NEW} tokens after {PROMPT}",
            "tokens/s",
            NEW / own,
            peer,
            NEW / time_of,
            goal,
            ceiling,
            "copy bandwidth",
        )

    def prefill() -> float:
        cache = model.new_cache(PREFILL)
        return waited(device, lambda: model(ids[None], cache, logits_to_keep=1))

    with torch.inference_mode():
        prefill()
        own_prefill, their_prefill = in_turn(
            ROUNDS, prefill, lambda: waited(device, lambda: theirs(ids[None], logits_to_keep=1))
        )
    yield Figure(
        f"{name}: prefill of {PREFILL} tokens",
        "tokens/s",
        PREFILL / own_prefill,
        "transformers eager",
        PREFILL / their_prefill,
        ceiling=PREFILL * ceilings.matmul_flops / llama_flops(config, PREFILL),
        limit="bfloat16 matmul",
    )
    quantize_model(model)
    mine()
    yield Figure(
        f"{name}: with int8 weights", "tokens/s", NEW / mine(), "own bfloat16", NEW / own, 1.6
    )


def training_figure(name: str, config: LlamaConfig, device: torch.device) -> Figure:
    model = random_llama(config, device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(0, config.vocab_size, (BATCH, LENGTH + 1), device=device)

    def loss() -> Tensor:
        return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    (own,) = in_turn(ROUNDS, lambda: waited(device, step))
    flops = 3 * BATCH * llama_flops(config, LENGTH)
    return Figure(
        f"{name}: training step of {BATCH} × {LENGTH}",
        "tokens/s",
        BATCH * LENGTH / own,
        ceiling=BATCH * LENGTH * measure_ceilings(device, BFLOAT16).matmul_flops / flops,
        limit="bfloat16 matmul",
    )


def figures() -> Iterator[Figure]:
    if not torch.cuda.is_available():
        print("There is no CUDA device here: these figures are open.")
        return
    device = torch.device("cuda")
    for name in DECODED:
        yield from decoding_figures(name, preset(name), device)
        torch.cuda.empty_cache()
    yield training_figure(TRAINED, preset(TRAINED), device)
