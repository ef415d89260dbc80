import pytest
import torch

from llmkit.device import best_device, parse_device, parse_dtype


def test_auto_is_the_best_device_and_it_computes():
    device = parse_device("auto")
    assert device == best_device()
    assert torch.ones(2, device=device).sum().item() == 2


def test_cpu():
    assert parse_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:-1", "cpu cuda", "meta"])
def test_unknown_device(name):
    with pytest.raises(ValueError, match="is not a device: use auto, cpu, cuda, cuda:N or mps"):
        parse_device(name)


@pytest.mark.parametrize("name", ["cpu:1", "cuda:999"])
def test_absent_device(name):
    with pytest.raises(ValueError, match=f"This machine has no device '{name}'; it has .*cpu"):
        parse_device(name)


def test_dtypes():
    assert parse_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(ValueError, match="'int4' is not a number format: use float32, bfloat16"):
        parse_dtype("int4")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_comes_first():
    assert best_device().type == "cuda"
    assert parse_device("cuda:0") == torch.device("cuda:0")
