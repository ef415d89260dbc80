"""Tests run side by side, each in a process with one thread: see the Makefile."""

import os
import signal

import pytest
import torch

# where the tests run in the background SIGINT is ignored, and what they start would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, default=0, help="random seeds more, to prove checks on")


def pytest_itemcollected(item: pytest.Item) -> None:
    """The tests of a file run in one process and share its fixtures, unless they say otherwise."""
    if item.get_closest_marker("xdist_group") is None:
        item.add_marker(pytest.mark.xdist_group(item.path.name))
