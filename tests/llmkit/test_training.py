"""Training runs: what they compute, stopped and resumed to the bit, interrupted, on real text."""

import functools
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from torch import Tensor, nn
from typer.testing import CliRunner

from llmkit.assets import shakespeare_text
from llmkit.pretraining import mask_tokens
from llmkit.rnn import RecurrentLM
from llmkit.training import (
    SHAKESPEARE,
    SHAKESPEARE_LLAMA,
    PretrainingConfig,
    batch,
    byte_tokens,
    hold_out,
    main,
)
from llmkit.transformer import Llama
from tests.llmkit.runs import CONFIG, STREAM, fresh, gru, run, stop_after, tied_llama, with_dropout

ROOT = Path(__file__).parents[2]


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# Batches


def test_every_block_comes_once_an_epoch_in_a_fresh_order():
    tokens = torch.arange(10 * 8 + 3)  # 10 blocks of 8, the last one's label, and a rest
    batches = [batch(tokens, CONFIG, step) for step in range(5)]  # 20 sequences, 2 epochs
    starts = torch.cat([input_ids[:, 0] for input_ids, _ in batches]).tolist()
    blocks = [start // 8 for start in starts]
    assert sorted(blocks[:10]) == sorted(blocks[10:]) == list(range(10))
    assert blocks[:10] != blocks[10:]
    assert all(torch.equal(labels, input_ids + 1) for input_ids, labels in batches)
    other, _ = batch(tokens, replace(CONFIG, seed=1), 0)
    assert not torch.equal(other, batches[0][0])


def test_a_batch_can_be_larger_than_an_epoch():
    input_ids, _ = batch(torch.arange(2 * 8 + 1), replace(CONFIG, batch_size=5), 0)
    assert sorted(set(input_ids[:, 0].tolist())) == [0, 8]


# What a run computes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_batch_is_learned_by_heart(dtype):
    config = replace(CONFIG, steps=60, warmup_steps=5)
    model = fresh(tied_llama)
    records = run(model, STREAM[:33], config=config, dtype=dtype)
    assert next(model.parameters()).dtype == torch.float32
    assert records[0].loss == pytest.approx(math.log(256), abs=0.2)
    assert records[-1].loss < 0.1


class Around(nn.Module):
    """Each position sees its two neighbours' embeddings, and its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 2 * x.roll(1, dims=1) + 3 * x.roll(-1, dims=1)


def test_masked_tokens_are_learned_too():
    mask = functools.partial(mask_tokens, mask_id=255, vocab_size=256)
    tokens = torch.arange(4).repeat(100)  # a token's neighbours tell it
    model = fresh(lambda: nn.Sequential(nn.Embedding(256, 16), Around(), nn.Linear(16, 256)))
    config = replace(CONFIG, steps=150, batch_size=16, peak_lr=0.03)
    records = run(model, tokens, tokens, config, mask=mask)
    assert records[0].loss > 5
    assert records[-1].held_out < 1.0  # by chance: ln 4 = 1.39


def test_micro_batches_change_memory_alone():
    one, many = fresh(tied_llama).double(), fresh(tied_llama).double()
    expected = run(one)
    records = run(many, micro_batch_size=3)
    for ours, theirs in zip(records, expected, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-6)
    for p, q in zip(one.parameters(), many.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


def test_every_step_is_recorded_and_some_are_measured():
    seen = []
    records = run(fresh(gru), eval_every=4, on_step=seen.append)
    assert seen == records
    assert [record.step for record in records] == [1, 2, 3, 4, 5, 6]
    assert [record.held_out is not None for record in records] == [False] * 3 + [True, False, True]
    assert [record.lr for record in records] == [CONFIG.lr(step) for step in range(6)]


def test_shakespeare_is_learned_for_some_seconds():
    # the full run, of about a minute, is measured beside SHAKESPEARE
    tokens, held_out = hold_out(byte_tokens(shakespeare_text()))
    config = replace(SHAKESPEARE, steps=100, warmup_steps=10)
    records = run(fresh(lambda: Llama(SHAKESPEARE_LLAMA)), tokens, held_out, config)
    assert records[-1].held_out < 2.75  # single bytes, whatever stands before them: 3.3


# Runs that stop and go on


@pytest.mark.parametrize("make", [tied_llama, gru, with_dropout])
def test_three_steps_and_three_more_are_six_to_the_bit(make, tmp_path):
    one_go, first, second = (fresh(make, seed) for seed in (0, 0, 1))
    torch.manual_seed(2)
    expected = run(one_go, eval_every=2)

    checkpoint = tmp_path / "new" / "run.pt"
    kept = functools.partial(run, checkpoint=checkpoint, eval_every=2)
    torch.manual_seed(2)
    assert kept(first, on_step=stop_after(3)) == expected[:3]
    torch.manual_seed(3)
    assert kept(second) == expected
    assert same_weights(second, one_go)
    assert list(checkpoint.parent.iterdir()) == [checkpoint]

    third = fresh(make, seed=4)  # the run is over: it is read, not continued
    assert kept(third) == expected
    assert same_weights(third, one_go)
    plain = fresh(make, seed=5)
    plain.load_state_dict(torch.load(checkpoint)["model"])
    assert same_weights(plain, one_go)


INTERRUPTED = """
import sys, time
from tests.llmkit.runs import CONFIG, fresh, gru, replace, run

def on_step(record):
    print(record.step, flush=True)
    time.sleep(0.005)

config = replace(CONFIG, steps=200)
records = run(fresh(gru), config=config, checkpoint=sys.argv[1], on_step=on_step, progress=True)
print("left after", len(records))
"""


def test_ctrl_c_at_any_moment_saves_and_leaves(tmp_path):
    checkpoint = tmp_path / "run.pt"
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(checkpoint)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "1\n"
        delay = random.uniform(0, 0.5)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    left = int(output.splitlines()[-1].removeprefix("left after "))
    assert 1 <= left < 200, f"interrupted {delay} s after the first step"
    assert len(torch.load(checkpoint)["records"]) == left

    config = replace(CONFIG, steps=200)
    one_go, resumed = fresh(gru), fresh(gru, seed=1)
    assert run(resumed, config=config, checkpoint=checkpoint) == run(one_go, config=config)
    assert same_weights(resumed, one_go)


def test_a_second_ctrl_c_does_not_wait_and_handlers_are_put_back():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def twice(record):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(fresh(gru), on_step=twice)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_run_in_a_thread_needs_no_signals():
    found = []
    thread = threading.Thread(target=lambda: found.extend(run(fresh(gru))))
    thread.start()
    thread.join()
    assert len(found) == 6


def test_a_save_that_fails_leaves_the_last_one(tmp_path, monkeypatch):
    checkpoint = tmp_path / "run.pt"
    kept = functools.partial(run, checkpoint=checkpoint, save_every=2)
    kept(fresh(gru), on_step=stop_after(3))
    before = checkpoint.read_bytes()

    def half(content, file):
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space left"):
        kept(fresh(gru))
    assert checkpoint.read_bytes() == before
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_a_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(tmp_path):
    checkpoint = tmp_path / "run.pt"
    kept = functools.partial(run, checkpoint=checkpoint)
    kept(fresh(gru))
    whole_file = checkpoint.read_bytes()
    model = fresh(gru, seed=1)
    with pytest.raises(ValueError, match=r"belongs to a run with peak_lr 0\.01, not 0\.02: give"):
        kept(model, config=replace(CONFIG, peak_lr=0.02))
    with pytest.raises(ValueError, match=r"another model: its embed_tokens\.weight is \(256, 16\)"):
        kept(RecurrentLM(256, 20))
    with pytest.raises(ValueError, match=r"another model: its .* is missing, here it is \("):
        kept(RecurrentLM(256, 16, num_layers=2))
    for damaged in (b"", b"not a checkpoint", whole_file[: len(whole_file) // 2]):
        checkpoint.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"run\.pt is damaged, or no checkpoint"):
            kept(model)
        assert checkpoint.read_bytes() == damaged
    assert same_weights(model, fresh(gru, seed=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": STREAM[:8]}, r"tokens must be one stream of at least 9 integers, not torch"),
        ({"held_out": STREAM.float()}, r"held_out must be .* not torch\.float32 of shape \(200,\)"),
        ({"tokens": STREAM + 1000}, r"tokens holds token 1\d+, but .* vocabulary ends at 255\."),
        ({"dtype": torch.float16}, r"dtype must be bfloat16, or the model's own torch\.float32"),
        ({"micro_batch_size": 0}, r"micro_batch_size must be at least 1, not 0\."),
        ({"eval_every": 0}, r"eval_every must be at least 1, not 0\."),
        ({"parallel": "tp"}, r"parallel must be one of ddp, fsdp, not 'tp'\."),
        ({"device": "tpu"}, r"'tpu' is not a device"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        run(fresh(gru), **changes)


def test_bad_settings_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"batch_size must be above 0, not 0\."):
        PretrainingConfig(batch_size=0)
    with pytest.raises(ValueError, match=r"warmup_steps lie in 0 … 6"):
        replace(CONFIG, warmup_steps=7)
    with pytest.raises(ValueError, match=r"between 0 and 1, not 1\."):
        hold_out(STREAM, 1)


# The command


@pytest.fixture
def command(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The rest is silence. Words, words, words. " * 30)
    app = typer.Typer()
    app.command()(main)
    small = ["--text", str(text), "--preset", "tiny", "--batch-size", "2", "--length", "8"]
    return lambda *options: CliRunner().invoke(app, [*small, "--device", "cpu", *options])


def test_the_command_trains_stops_and_goes_on(command, tmp_path):
    checkpoint = str(tmp_path / "run.pt")
    done = command("--steps", "3", "--checkpoint", checkpoint)
    assert done.exit_code == 0, done.output
    assert "nats per byte" in done.stdout
    again = command("--steps", "3", "--checkpoint", checkpoint)
    assert again.stdout == done.stdout

    timer = threading.Timer(1.0, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    stopped = command("--steps", "100000")
    timer.join()
    assert stopped.exit_code == 130
    assert "of 100000: nothing kept" in stopped.stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--preset", "llama-9"], 2, "'llama-9' is not one of small, llama-1-7b"),
        (["--text", "nowhere.txt"], 1, "No such file"),
        (["--peak-lr", "0"], 1, "Error: peak_lr must be above 0, not 0.0."),
        (["--length", "5000"], 1, "Error: tokens must be one stream of at least 5001 integers"),
    ],
)
def test_the_command_refuses_in_a_sentence(command, options, code, message):
    done = command("--steps", "3", *options)
    assert done.exit_code == code
    assert message in " ".join(done.stderr.replace("│", " ").split())


# A GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_computes_in_bfloat16_and_learns_alike(tmp_path):
    model = fresh(tied_llama)
    options = {
        "tokens": STREAM[:33],
        "config": replace(CONFIG, steps=60, warmup_steps=5),
        "device": "cuda",
        "checkpoint": tmp_path / "run.pt",
    }
    records = run(model, **options)
    assert next(model.parameters()).is_cuda
    assert next(model.parameters()).dtype == torch.float32
    assert records[-1].loss < 0.1
    again = fresh(tied_llama, seed=1)
    assert run(again, **options) == records
    assert same_weights(again, model)
