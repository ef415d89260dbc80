"""What only a CUDA device can show. Run with `pytest -m gpu`."""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from llmkit.attention import GroupedQueryAttention, KVCache, causal_mask
from llmkit.bert import BertConfig, BertForMaskedLM
from llmkit.checkpoints import load_checkpoint, save_checkpoint
from llmkit.device import best_device
from llmkit.transformer import PRESETS, Llama, LlamaConfig
from tests.llmkit.test_tokenization import TOKENIZER, TOKENS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

CONFIG = LlamaConfig(97, 128, 192, 3, 4, 2, head_dim=64)  # a head width that fused kernels take


def llama(**changes) -> Llama:
    torch.manual_seed(0)
    model = Llama(dataclasses.replace(CONFIG, **changes)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return model


def fed_in_pieces(model: Llama, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Logits of a prefill, a chunk and single steps, on the model's device."""
    cache, pieces, start = model.new_cache(ids.shape[1], len(ids)), [], 0
    for size in (9, 4, 1, 1, 1):
        here, end = slice(start, start + size), start + size
        pieces.append(model(ids[:, here], cache, None if mask is None else mask[:, :end]))
        start = end
    return torch.cat(pieces, 1)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("window", [None, 5])
@torch.no_grad()
def test_logits_are_those_of_the_cpu(ragged, window):
    model = llama(sliding_window=window)
    ids, mask = torch.randint(0, 97, (3, 16)), torch.ones(3, 16, dtype=torch.long)
    if ragged:
        mask[0, :3] = mask[2, :7] = 0
    expected = model(ids, attention_mask=mask)[mask == 1]
    model.cuda()
    assert best_device().type == "cuda"
    ids, mask = ids.cuda(), mask.cuda()
    whole = model(ids, attention_mask=mask)
    pieces = fed_in_pieces(model, ids, mask if ragged else None)
    for logits in (whole, pieces):
        assert logits.is_cuda
        torch.testing.assert_close(logits[mask == 1].cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ragged", [False, True])
@torch.no_grad()
def test_bfloat16_is_near_float32_with_and_without_a_cache(ragged):
    model = llama().cuda()
    ids, mask = torch.randint(0, 97, (2, 16)).cuda(), torch.ones(2, 16, dtype=torch.long).cuda()
    if ragged:
        mask[0, :3] = 0
    expected = model(ids, attention_mask=mask)[mask == 1]
    model.to(torch.bfloat16)
    scale = expected.abs().max()
    for logits in (model(ids, attention_mask=mask), fed_in_pieces(model, ids, mask)):
        assert logits.dtype == torch.bfloat16
        assert (logits[mask == 1].float() - expected).abs().max() < 0.03 * scale


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("case", ["prefill", "ragged prefill", "chunk", "step", "ragged step"])
def test_attention_runs_in_fused_kernels_only(dtype, case):
    """The plain kernel would hold T x S scores; here it is forbidden."""
    layer = GroupedQueryAttention(128, 8, 2, 64).to("cuda", dtype)
    reference = GroupedQueryAttention(128, 8, 2, 64)
    reference.load_state_dict(layer.state_dict())
    x, length = torch.randn(3, 40, 128), {"chunk": 5, "step": 1, "ragged step": 1}.get(case, 40)
    real = torch.arange(40) >= torch.tensor([0, 3, 11])[:, None]
    seen = causal_mask(length, 40, 40 - length) & real[:, None, None]
    mask = seen if "ragged" in case else None

    def run(layer, device, dtype):
        cache = KVCache(3, 2, 40, 64, dtype, device) if length < 40 else None
        start, rest = x.to(device, dtype).split([40 - length, length], 1)
        if cache is not None:
            with torch.no_grad():
                layer(start, cache=cache)
                return layer(rest, cache=cache, mask=None if mask is None else mask.to(device))
        out = layer(rest, mask=None if mask is None else mask.to(device))
        out.float().pow(2).sum().backward()
        return out

    expected = run(reference, "cpu", torch.float32)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        out = run(layer, "cuda", dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out.float().cpu(), expected, rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(layer.parameters(), reference.parameters(), strict=True):
        if theirs.grad is not None:
            difference = (ours.grad.float().cpu() - theirs.grad).abs().max()
            assert difference < 5 * tolerance * theirs.grad.abs().max()


@torch.no_grad()
def test_a_step_copies_no_cache():
    layer = GroupedQueryAttention(128, 8, 2, 64).to("cuda", torch.bfloat16)
    cache = KVCache(1, 2, 200_000, 64, torch.bfloat16, "cuda")
    cache.offset = 199_000
    x = torch.randn(1, 1, 128, device="cuda", dtype=torch.bfloat16)
    layer(x, cache=cache)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    layer(x, cache=cache)
    assert torch.cuda.max_memory_allocated() - before < cache.keys.nbytes / 4


@torch.no_grad()
def test_compiled_decode_gives_the_same_tokens():
    model = llama().cuda()
    prompt = torch.randint(0, 97, (2, 7)).cuda()

    def continue_(step) -> list[torch.Tensor]:
        cache, tokens = model.new_cache(40, 2), []
        logits = model(prompt, cache)
        for _ in range(20):
            tokens.append(logits[:, -1:].argmax(-1))
            logits = step(tokens[-1], cache)
        return torch.cat(tokens, 1)

    torch.testing.assert_close(continue_(torch.compile(model)), continue_(model))


@torch.no_grad()
def test_devices_that_do_not_match_are_named():
    model, ids = llama().cuda(), torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"input_ids is on cpu, the model on cuda:0"):
        model(ids)
    with pytest.raises(ValueError, match=r"attention_mask must be .* on cuda:0.* on cpu"):
        model(ids.cuda(), attention_mask=torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"cache does not fit: .* on cuda:0"):
        model(ids.cuda(), llama().new_cache(5, 2))
    with pytest.raises(ValueError, match=r"cache does not fit: .* torch\.bfloat16 on cuda:0"):
        model.to(torch.bfloat16)(ids.cuda(), llama().cuda().new_cache(5, 2))


@torch.no_grad()
def test_checkpoints_go_to_the_gpu_and_come_from_it(tmp_path):
    config = dataclasses.replace(PRESETS["tiny"], vocab_size=len(TOKENS))
    model = Llama(config).to("cuda", torch.bfloat16)
    save_checkpoint(model, tmp_path / "model", TOKENIZER)
    again, _ = load_checkpoint(tmp_path / "model", device="cuda", dtype=torch.bfloat16)
    for name, weight in again.state_dict().items():
        assert weight.is_cuda and torch.equal(weight, model.state_dict()[name])


@torch.no_grad()
def test_bert_is_that_of_the_cpu():
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(97, 36, 50, 2, 4, 23)).eval()
    ids, mask = torch.randint(0, 97, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[1, 4:] = 0
    expected = model(ids, mask)[mask == 1]
    logits = model.cuda()(ids.cuda(), mask.cuda()).cpu()[mask == 1]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
