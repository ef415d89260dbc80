"""SmolLM2-135M on this machine's CPU: llmkit beside transformers and llama.cpp, on the same file.

llmkit decodes with int8 weights; transformers in the faster of bfloat16 and float32, into which it
unpacks the file; llama.cpp with the file's own 4-bit weights. Each has a process of its own, as it
would with its users: in one, their idle threads slow each other down to half.
"""

import io
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.figure import Figure, in_turn, seconds
from llmkit.assets import fetch, shakespeare_text
from llmkit.checkpoints import load_checkpoint
from llmkit.decoding import generate
from llmkit.efficiency import decode_bytes, llama_flops, measure_ceilings
from llmkit.losses import cross_entropy
from llmkit.quantization import quantize_model
from llmkit.transformer import Llama

PROMPT, NEW, PREFILL = 64, 128, 512  # tokens
QUALITY = 20_000  # characters of Shakespeare
ROUNDS = 3


class LlamaCpp:
    """The server of llama.cpp inside this process, asked without HTTP; it measures by itself."""

    def __init__(self, gguf: Path):
        import xllamacpp

        threads = torch.get_num_threads()
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(gguf)
        parameters.n_ctx, parameters.n_parallel, parameters.verbosity = 2048, 1, -1
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        self.server = xllamacpp.Server(parameters)

    def _timings(self, ids: Sequence[int], new: int) -> dict[str, float]:
        settings = {"temperature": 0, "ignore_eos": True, "cache_prompt": False}
        answer = self.server.handle_completions({"prompt": list(ids), "n_predict": new, **settings})
        return answer["timings"]

    def decode(self, ids: Tensor) -> float:
        """Seconds for each token after the first."""
        timings = self._timings(ids.tolist(), NEW)
        return timings["predicted_ms"] / 1000 / timings["predicted_n"]

    def prefill(self, ids: Tensor) -> float:
        timings = self._timings(ids.tolist(), 1)
        assert timings["prompt_n"] == len(ids)
        return timings["prompt_ms"] / 1000


class Transformers:
    """Hugging Face's own Llama with the same weights, in one dtype."""

    def __init__(self, gguf: Path, dtype: torch.dtype):
        from transformers import AutoModelForCausalLM

        with redirect_stderr(io.StringIO()):
            self.model = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=dtype
            ).eval()

    def _generate(self, ids: Tensor, new: int) -> None:
        self.model.generate(
            ids[None],
            attention_mask=torch.ones_like(ids)[None],
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
        )

    def decode(self, ids: Tensor) -> float:
        first = seconds(lambda: self._generate(ids, 1))
        return (seconds(lambda: self._generate(ids, NEW)) - first) / (NEW - 1)

    @torch.inference_mode()
    def prefill(self, ids: Tensor) -> float:
        return seconds(lambda: self.model(ids[None], logits_to_keep=1))


class Ours:
    def __init__(self) -> None:
        self.model = quantize_model(load_checkpoint("smollm2")[0], compiled=True)

    def decode(self, ids: Tensor, **settings: bool) -> float:
        times = [time.perf_counter() for _ in generate(self.model, ids, NEW, **settings)]
        return (times[-1] - times[0]) / (NEW - 1)

    def tokens(self, ids: Tensor, **settings: bool) -> list[int]:
        return list(map(int, generate(self.model, ids, NEW, **settings)))

    @torch.inference_mode()
    def prefill(self, ids: Tensor) -> float:
        return seconds(
            lambda: self.model(ids[None], self.model.new_cache(len(ids)), logits_to_keep=1)
        )


class Apart:
    """An object in a process of its own: what is asked of this one is asked of that."""

    def __init__(self, name: str, make: Callable[..., Any], *arguments: Any):
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(1, context, _begin, (make, arguments))

    def ask(self, method: str, *arguments: Any, **settings: Any) -> Any:
        return self.pool.submit(_answer, method, arguments, settings).result()


def _begin(make: Callable[..., Any], arguments: tuple) -> None:
    global apart
    apart = make(*arguments)


def _answer(method: str, arguments: tuple, settings: dict[str, Any]) -> Any:
    return getattr(apart, method)(*arguments, **settings)


@torch.inference_mode()
def perplexity(model: Llama, ids: Tensor, window: int = 512) -> float:
    """Of windows of so many tokens each, the first of each unpredicted."""
    rows = ids[: len(ids) // window * window].view(-1, window)
    losses = [cross_entropy(model(row[None])[0, :-1].float(), row[1:]) for row in rows]
    return torch.stack(losses).mean().exp().item()


def fastest_product(size: int = 2048) -> tuple[float, str]:
    """Operations per second of PyTorch's product of two large matrices, in its fastest dtype."""
    a = torch.ones(size, size, dtype=torch.int8)
    integers = min(seconds(lambda: torch._int_mm(a, a)) for _ in range(10))
    return max(
        (measure_ceilings(dtype=torch.float32).matmul_flops, "float32"),
        (measure_ceilings(dtype=torch.bfloat16).matmul_flops, "bfloat16"),
        (2 * size**3 / integers, "int8"),
    )


def first_token(command: list[str]) -> float:
    """Seconds from the start of a program to the first character of what it writes."""
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        character = process.stdout.read(1)
        taken = time.perf_counter() - start
        process.kill()
    if not character:
        raise RuntimeError(f"{' '.join(command)} wrote nothing.")
    return taken


THEIR_PROGRAM = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer
folder, name = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name)
messages = [{"role": "user", "content": "What is the capital of France?"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
class AtOnce(TextStreamer):
    def put(self, value):
        if self.next_tokens_are_prompt:
            self.next_tokens_are_prompt = False
        else:
            print(value, flush=True)
model.generate(**inputs, max_new_tokens=2, streamer=AtOnce(tokenizer, skip_prompt=True))
"""


def figures() -> Iterator[Figure]:
    gguf = fetch("smollm2")
    model, tokenizer = load_checkpoint("smollm2")
    text = shakespeare_text()
    ids = torch.tensor(tokenizer.encode(text[100_000 : 100_000 + 4 * PREFILL]))[:PREFILL]
    sample = torch.tensor(tokenizer.encode(text[:QUALITY]))

    exact = perplexity(model, sample)
    quantized = perplexity(quantize_model(model, compiled=True), sample)
    yield Figure("int8 perplexity above float32's", "%", 100 * (quantized / exact - 1), goal=1.0)

    ceilings = measure_ceilings()
    bandwidth = max(ceilings.copy_bandwidth, ceilings.matvec_bandwidth)
    arithmetic, kind = fastest_product()
    read = decode_bytes(model.config, PROMPT + NEW // 2, bytes_per_weight=1, bytes_per_value=4)
    ours = Apart("llmkit int8", Ours)
    peers = [
        Apart("transformers bfloat16", Transformers, gguf, torch.bfloat16),
        Apart("transformers float32", Transformers, gguf, torch.float32),
        Apart("llama.cpp Q4_1", LlamaCpp, gguf),
    ]
    for contender in (ours, *peers):  # to warm up
        contender.ask("decode", ids[:PROMPT])

    for peer, mine, theirs in _raced(ours, peers, "decode", ids[:PROMPT]):
        yield Figure(
            f"decode {NEW} tokens after {PROMPT}",
            "tokens/s",
            1 / mine,
            peer,
            1 / theirs,
            {"transformers": 4.0, "llama.cpp": 1.2}[peer.split()[0]],
            bandwidth / read,
            "bandwidth",
        )
    for peer, mine, theirs in _raced(ours, peers, "prefill", ids):
        yield Figure(
            f"prefill of {PREFILL} tokens",
            "tokens/s",
            PREFILL / mine,
            peer,
            PREFILL / theirs,
            3.0,
            PREFILL * arithmetic / llama_flops(model.config, PREFILL),
            f"{kind} matmul",
        )

    passage = ids[:150].repeat(3)[:330]
    if ours.ask("tokens", passage, prompt_lookup=True) != ours.ask("tokens", passage):
        raise AssertionError("prompt look-up changed what the model says")
    fast, slow = in_turn(
        ROUNDS,
        lambda: ours.ask("decode", passage, prompt_lookup=True),
        lambda: ours.ask("decode", passage),
    )
    yield Figure("look-up where a text repeats", "tokens/s", 1 / fast, "plain", 1 / slow, 2.0)

    command = ["-m", "llmkit", "generate", "What is the capital of France?", "--dtype", "int8"]
    mine = min(first_token(command) for _ in range(ROUNDS))
    floor = min(first_token(["-c", "import torch; print(1)"]) for _ in range(ROUNDS))
    theirs = first_token(["-c", THEIR_PROGRAM, str(gguf.parent), gguf.name])
    name = "from the command to the first token"
    yield Figure(name, "s", mine, "transformers", theirs, 2.0, floor, "import torch")
    yield Figure(name, "s", mine, goal=2.5, ceiling=floor, limit="import torch")


def _raced(
    ours: Apart, peers: list[Apart], method: str, ids: Tensor
) -> Iterator[tuple[str, float, float]]:
    """(peer, our seconds, its seconds) for llama.cpp and the faster dtype of transformers."""
    mine, *theirs = in_turn(ROUNDS, *(partial(c.ask, method, ids) for c in (ours, *peers)))
    ranked = sorted(zip(theirs, (peer.name for peer in peers), strict=True), reverse=True)
    best = {name.split()[0]: (name, taken) for taken, name in ranked}  # the last one stays
    return ((name, mine, taken) for name, taken in best.values())
