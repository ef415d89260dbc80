"""What the benchmarks' table says of a figure, and that the small ones run."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks import gpu, training
from benchmarks.__main__ import main
from benchmarks.figure import Figure, in_turn, markdown, table
from llmkit.efficiency import measure_ceilings
from llmkit.transformer import preset

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("unit", "ours", "theirs", "ratio"), [("tokens/s", 90.0, 30.0, 3.0), ("s", 2.0, 6.0, 3.0)]
)
def test_the_ratio_says_how_many_times_better(unit, ours, theirs, ratio):
    figure = Figure("a", unit, ours, "peer", theirs, goal=ratio)
    assert figure.ratio == ratio
    assert figure.holds
    assert not Figure("a", unit, ours, "peer", theirs, goal=ratio + 0.1).holds


def test_the_fraction_is_that_of_the_limit():
    assert Figure("a", "tokens/s", 40.0, ceiling=50.0).fraction == 0.8
    assert Figure("a", "s", 50.0, ceiling=40.0).fraction == 0.8


def test_a_figure_without_a_peer_is_held_against_its_goal():
    assert Figure("a", "%", 0.4, goal=1.0).holds
    assert not Figure("a", "s", 2.6, goal=2.5).holds
    assert Figure("a", "s", 2.6).holds is None


def test_runs_take_turns_and_the_best_of_each_counts():
    seen = []
    runs = [lambda: seen.append("a") or float(len(seen)), lambda: seen.append("b") or -len(seen)]
    assert in_turn(2, *runs) == [1.0, -4]
    assert seen == ["a", "b", "a", "b"]


def test_the_table_holds_every_figure():
    console = Console(width=200, record=True)
    figures = [Figure("speed", "tokens/s", 90.0, "peer", 30.0, 4.0, 100.0, "memory")]
    console.print(table(figures))
    words = ("speed", "90.0", "peer", "3.00 ×", "≥ 4.00", "✗", "90%")
    text = console.export_text()
    assert all(word in text for word in words)
    *_, row = markdown(figures).splitlines()
    assert all(f" {word} |" in row for word in words[:3])
    assert row.count("|") == 11


def test_an_unknown_benchmark_is_one_sentence():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "decodign"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "there is no 'decodign'; there are: decoding," in done.stderr.splitlines()[-1]


def test_figures_reach_the_table_and_the_file(tmp_path, monkeypatch, capsys):
    file = tmp_path / "figures.json"
    monkeypatch.setattr(training, "LENGTH", 8)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "training", "--json", str(file)])
    main()
    assert "training step" in capsys.readouterr().out
    written = json.loads(file.read_text())
    assert written["machine"]["threads"] >= 1
    (figure,) = written["figures"]
    assert figure["ours"] > 0 and figure["theirs"] > 0
    assert figure["ratio"] == pytest.approx(figure["ours"] / figure["theirs"])


def test_the_benchmarks_of_a_gpu_run_at_a_tiny_shape(monkeypatch):
    for name, value in {"PROMPT": 4, "NEW": 5, "PREFILL": 8, "BATCH": 2, "LENGTH": 8}.items():
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(gpu, "measure_ceilings", partial(measure_ceilings, megabytes=1, size=64))
    config, cpu = preset("tiny"), torch.device("cpu")
    made = [*gpu.decoding_figures("tiny", config, cpu), gpu.training_figure("tiny", config, cpu)]
    assert [figure.name.partition(": ")[2].split()[0] for figure in made] == [
        *("5", "prefill", "with", "training"),
    ]
    assert all(figure.ours > 0 for figure in made)
