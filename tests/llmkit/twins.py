"""One tiny Llama twice, ours and transformers', and prompts for it."""

import functools

import torch
import transformers

from llmkit.transformer import Llama, LlamaConfig

PROMPTS = [[5, 17, 31], [3, 3, 8, 25, 40, 1, 9, 2], [22], [11, 36, 4, 29, 5]]


@functools.cache
def twins(seed: int = 0) -> tuple[Llama, transformers.LlamaForCausalLM]:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=41,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        eos_token_id=None,
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    for name, weight in theirs.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    ours = Llama(LlamaConfig.from_hf(config.to_dict())).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs
