"""`python -m benchmarks [name …]`: run the benchmarks that fit in a quarter of an hour, or some.

Prints each figure beside its peer and the machine's limit; build/benchmarks.json has them all, and
build/benchmarks.md the table.
"""

import argparse
import importlib
import json
import os
import platform
from importlib import metadata
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.figure import Figure, markdown, number, table
from llmkit.efficiency import measure_ceilings
from llmkit.native import vectors

QUICK = ("decoding", "training", "tokenization", "checks", "grading", "gpu")
LONG = ("soak",)  # only when asked for
PEERS = ("torch", "transformers", "tokenizers", "xllamacpp", "nbgrader")


def machine() -> dict[str, str | int | float]:
    """What the figures hold for: versions, threads, and the measured limits of this machine."""
    ceilings = measure_ceilings()
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "vector instructions": vectors(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "copy, GB/s": round(ceilings.copy_bandwidth / 1e9, 1),
        "matrix-vector, GB/s": round(ceilings.matvec_bandwidth / 1e9, 1),
        "matrix product, GFLOP/s": round(ceilings.matmul_flops / 1e9, 1),
        "Python": platform.python_version(),
        **{name: metadata.version(name) for name in PEERS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join((*QUICK, *LONG)))
    parser.add_argument(
        "--notebooks", type=int, default=1000, help="size of the class that is graded (1,000)"
    )
    parser.add_argument("--json", type=Path, default=Path("build/benchmarks.json"))
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in (*QUICK, *LONG)]:
        parser.error(f"there is no {unknown[0]!r}; there are: {', '.join((*QUICK, *LONG))}")

    console, figures = Console(), []
    if not console.is_terminal:  # a log, which has room for the table
        console = Console(width=150)
    facts = machine()
    for name, value in facts.items():
        console.print(f"{name:24} {value}", highlight=False)
    for name in options.names or QUICK:
        console.rule(name)
        sized = {"notebooks": options.notebooks} if name == "grading" else {}
        for figure in importlib.import_module(f"benchmarks.{name}").figures(**sized):
            console.print(f"{figure.name}: {number(figure.ours)} {figure.unit}")
            figures.append(figure)
    console.print(table(figures))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    everything = {"machine": facts, "figures": [figure.as_json() for figure in figures]}
    options.json.write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n")
    page = options.json.with_suffix(".md")
    page.write_text(as_page(facts, figures))
    console.print(f"written to {options.json} and {page}")


def as_page(facts: dict[str, str | int | float], figures: list[Figure]) -> str:
    """What docs/performance.md holds: the table, and what it was measured on."""
    return markdown(figures) + "\n" + "; ".join(f"{n}: {v}" for n, v in facts.items()) + ".\n"


if __name__ == "__main__":
    main()
