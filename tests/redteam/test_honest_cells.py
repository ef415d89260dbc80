"""Honest cells that clumsy limits would punish. Each passes."""

import pytest

HONEST = {
    "warnings": "import warnings; warnings.warn('careful'); import sys; sys.stderr.write('hm')",
    "progress bar": (
        "import time\nfrom tqdm.auto import tqdm\nfor _ in tqdm(range(50)): time.sleep(0.001)"
    ),
    "plot": (
        "import matplotlib.pyplot as plt\nfig, ax = plt.subplots()\nax.plot([1, 2])\n"
        "ax.set_title('loss')\nfig.savefig('/tmp/loss.png')\nplt.show()"
    ),
    "forty open figures": (
        "import matplotlib.pyplot as plt\nfor _ in range(40): plt.figure().canvas.draw()"
    ),
    "prints a lot": "for i in range(100_000): print(i, 'a line of thirty characters')",
    "50 MB on one line": "print('x' * 50_000_000)",
    "slow import": "import importlib, time; time.sleep(1); import torch.distributions, sqlite3",
    "threads left running": (
        "import threading, time\nfor _ in range(5):\n"
        "    threading.Thread(target=time.sleep, args=(100,), daemon=True).start()\n"
        "threading.Thread(target=time.sleep, args=(100,)).start()"
    ),
    "autograd and an optimizer": (
        "import torch\nm = torch.nn.Linear(64, 64)\no = torch.optim.AdamW(m.parameters())\n"
        "for _ in range(20):\n"
        "    o.zero_grad(); m(torch.randn(32, 64)).square().mean().backward(); o.step()"
    ),
    "multiprocessing": (
        "import multiprocessing as mp\nwith mp.get_context('fork').Pool(4) as p:\n"
        "    assert p.map(abs, [-1, -2]) == [1, 2]"
    ),
    "a data loader with workers": (
        "import torch\nfrom torch.utils.data import DataLoader\n"
        "assert len(list(DataLoader(torch.arange(8), batch_size=2, num_workers=2))) == 4"
    ),
    "a subprocess": (
        "import subprocess, sys\n"
        "assert subprocess.run([sys.executable, '-c', 'print(1)'], capture_output=True).stdout"
    ),
    "a good share of memory": "import torch\nx = torch.ones(64, 2**20)\ndel x",
    "temporary files": (
        "import tempfile\nwith tempfile.NamedTemporaryFile() as t:\n    t.write(b'x' * 2**20)"
    ),
    "numpy and its threads": "import numpy as np\nnp.linalg.svd(np.random.rand(100, 100))",
    "the time and the date": "import datetime; datetime.datetime.now().astimezone()\n%time 1",
    "a home folder": "from pathlib import Path; Path('~/x').expanduser().write_text('x')",
    "a user's name": "import getpass; getpass.getuser()",
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_cell_passes(sandbox, name):
    with sandbox.worker() as worker:
        worker.run("def f(x): return x + 1")
        cell = worker.run(HONEST[name])
        assert cell.error is None, cell.error
        assert worker.call("f", (1,), {}).value == 2
        assert len(cell.output) <= 2**20 + 100


def test_what_is_cut_off_is_said(sandbox):
    with sandbox.worker() as worker:
        output = worker.run("print('x' * 3 * 2**20)").output
        assert output.endswith("[2,097,153 bytes more]")
        assert worker.run("print(1)").output == "1\n", "each cell has its own output"


def test_output_comes_in_order_and_from_every_source(sandbox):
    with sandbox.worker() as worker:
        output = worker.run(
            "import os, sys\nprint('a')\nsys.stderr.write('b\\n')\nos.system('echo c')\n"
            "os.write(1, b'd\\n')\nprint('e', end='')"
        ).output
        assert output == "a\nb\nc\nd\ne"
