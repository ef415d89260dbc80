"""Many processes against one: the same steps to 1e-6, the same files, stopped as one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.llmkit.runs import fresh, run, tied_llama

ROOT = Path(__file__).parents[2]

TOGETHER = """
import sys
from pathlib import Path
import torch
from torch import distributed
from tests.llmkit.runs import fresh, run, stop_after, tied_llama

distributed.init_process_group("gloo")
first = distributed.get_rank() == 0

def kept(name, **options):
    model = fresh(tied_llama, seed=0 if first else 1).double()  # the first one's weights count
    checkpoint = Path(sys.argv[1], name + ".pt")
    options |= {"eval_every": 2, "checkpoint": checkpoint}
    return run(model, parallel=name.split("-")[0], **options)

for parallel in ("ddp", "fsdp"):
    kept(parallel)
    kept(parallel + "-micro", micro_batch_size=1)
    kept(parallel + "-low", dtype=torch.bfloat16)
    assert len(kept(parallel + "-stopped", on_step=stop_after(3))) == 3  # told to the first alone
    assert len(kept(parallel + "-stopped")) == 6
distributed.destroy_process_group()
"""


def torchrun(processes: int, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr"]
    command += ["localhost", "--nproc-per-node", str(processes), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """What two processes made of the runs in TOGETHER."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "together.py").write_text(TOGETHER)
    torchrun(2, str(folder / "together.py"), str(folder))
    return folder


@pytest.mark.parametrize("kind", ["", "-micro", "-stopped"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_equal_one_with_twice_the_batch(parallel, kind, together):
    one = fresh(tied_llama).double()
    expected = run(one, eval_every=2)
    state = torch.load(together / f"{parallel}{kind}.pt")
    for record, other in zip(state["records"], expected, strict=True):
        assert record == pytest.approx(tuple(other), abs=1e-6)
    for name, weight in one.state_dict().items():
        torch.testing.assert_close(state["model"][name], weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_bfloat16_is_for_computing_not_for_weights(parallel, together):
    one = fresh(tied_llama).double()
    expected = run(one, dtype=torch.bfloat16)
    state = torch.load(together / f"{parallel}-low.pt")
    for record, other in zip(state["records"], expected, strict=True):
        assert record[1] == pytest.approx(other.loss, rel=0.01)
    assert {weight.dtype for weight in state["model"].values()} == {torch.float64}


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_what_many_saved_one_reads(parallel, together):
    one = fresh(tied_llama, seed=7).double()
    checkpoint = together / f"{parallel}.pt"
    assert len(run(one, checkpoint=checkpoint)) == 6
    saved = torch.load(checkpoint)["model"]
    assert all(torch.equal(saved[name], weight) for name, weight in one.state_dict().items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_torchrun_on_every_gpu(parallel, tmp_path):
    (tmp_path / "text.txt").write_text("The rest is silence. " * 30)
    options = ["--text", str(tmp_path / "text.txt"), "--checkpoint", str(tmp_path / "run.pt")]
    options += ["--parallel", parallel, "--preset", "tiny", "--steps", "5", "--length", "8"]
    options += ["--batch-size", str(2 * torch.cuda.device_count()), "--device", "cuda"]
    done = torchrun(torch.cuda.device_count(), "-m", "llmkit.training", *options)
    assert "nats per byte" in done.stdout
    assert len(torch.load(tmp_path / "run.pt")["records"]) == 5
