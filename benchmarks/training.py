"""A training step of a small Llama: llmkit's model beside transformers' LlamaForCausalLM.

The same shape, weights, batch and optimizer; float32 on the CPU's threads.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.figure import Figure, in_turn, seconds
from llmkit.efficiency import llama_flops, measure_ceilings
from llmkit.transformer import Llama, LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=4096,
    hidden_size=320,
    intermediate_size=864,
    num_hidden_layers=7,
    num_attention_heads=5,
    num_key_value_heads=5,
    max_position_embeddings=256,
    tie_word_embeddings=True,
)
BATCH, LENGTH, ROUNDS = 8, 256, 5


def step_of(model: nn.Module, loss_of: Callable[[], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        loss_of().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def figures() -> Iterator[Figure]:
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    ours = Llama(CONFIG).train()
    theirs = LlamaForCausalLM(TheirConfig(**CONFIG.to_hf())).train()
    theirs.load_state_dict(ours.state_dict())
    ids = torch.randint(0, CONFIG.vocab_size, (BATCH, LENGTH + 1))
    inputs, labels = ids[:, :-1], ids[:, 1:].contiguous()
    my_loss = lambda: F.cross_entropy(ours(inputs).flatten(0, 1), labels.flatten())
    their_loss = lambda: theirs(inputs, labels=inputs, shift_labels=labels).loss
    torch.testing.assert_close(my_loss(), their_loss(), rtol=1e-4, atol=1e-4)
    steps = step_of(ours, my_loss), step_of(theirs, their_loss)
    for step in steps:  # to warm up
        step()
    mine, other = in_turn(ROUNDS, *(lambda s=s: seconds(s) for s in steps))
    size = sum(parameter.numel() for parameter in ours.parameters())
    tokens = BATCH * LENGTH
    flops = 3 * BATCH * llama_flops(CONFIG, LENGTH)
    yield Figure(
        f"training step, {size / 1e6:.1f}M parameters",
        "tokens/s",
        tokens / mine,
        "transformers",
        tokens / other,
        1.3,
        tokens * measure_ceilings().matmul_flops / flops,
        "float32 matmul",
    )
