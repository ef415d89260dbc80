"""Cells that hang, crash, flood or devour. Each costs its own worker, with the reason in words."""

import dataclasses
import time

import pytest

from autograder.sandbox import WorkerDied

LATE = r"^ran longer than 1.5 s$"
MEMORY = r"^used more than 0.625 GiB of memory$"
CROWD = r"^started more than 32 processes and threads$"

DEADLY = {
    # time
    "infinite loop": ("while True: pass", LATE),
    "loop that swallows KeyboardInterrupt": (
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        LATE,
    ),
    "sleep": ("import time; time.sleep(1000)", LATE),
    "stop itself": ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP); input_never()", None),
    "all signals ignored": (
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass",
        LATE,
    ),
    "uninterruptible C code": ("(10**9999999) ** 9", LATE),
    "two threads that hold the interpreter": (
        "import threading, re\nfor _ in range(2):\n"
        "    threading.Thread(target=lambda: re.match('(a+)+b', 'a' * 60)).start()\n"
        "re.match('(a+)+b', 'a' * 60)",
        LATE,
    ),
    # ends
    "os._exit": ("import os; os._exit(3)", r"^ended its process with exit code 3$"),
    "os._exit(0)": ("import os; os._exit(0)", r"^ended its process with exit code 0$"),
    "exec": ("import os; os.execv('/bin/true', ['true'])", r"exit code 0$"),
    "segmentation fault": ("import ctypes; ctypes.string_at(0)", r"^crashed: segmentation fault$"),
    "abort": ("import os; os.abort()", r"^crashed: "),
    "stack overflow": (
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n"
        "    def __getattr__(self, name): return getattr(self, name + 'a')\nA().a",
        r"^(crashed: |used more than|ran longer)",
    ),
    "stack overflow in C": (
        "x = []\nfor _ in range(10**5): x = [x]\nimport sys; sys.setrecursionlimit(10**9); repr(x)",
        r"^crashed: segmentation fault$",
    ),
    "the main thread ends, another goes on": (
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(100,)).start()\n"
        "ctypes.CDLL(None).syscall(60, 0)",
        LATE,
    ),
    # the connection
    "closes every descriptor": (
        "import os, time; os.closerange(0, 100); time.sleep(9)",
        r"^closed its",
    ),
    "garbage on the connection": (
        "import os\nfor fd in range(3, 20):\n    try: os.write(fd, b'x' * 4096)\n"
        "    except OSError: pass",
        r"^sent something that is not a result$",
    ),
    "a length of exabytes": (
        "import os\nfor fd in range(3, 20):\n    try: os.write(fd, b'\\x0f' * 8)\n"
        "    except OSError: pass",
        r"^sent something that is not a result$",
    ),
    "half a message, then silence": (
        "import os, time\nfor fd in range(3, 20):\n"
        "    try: os.write(fd, (1000).to_bytes(8, 'big') + b'half')\n    except OSError: pass\n"
        "time.sleep(100)",
        LATE,
    ),
    "an endless reply": (
        "import os\nhead = (30 << 20).to_bytes(8, 'big')\nfor fd in range(3, 20):\n    try:\n"
        "        os.write(fd, head)\n        while True: os.write(fd, b'x' * 65536)\n"
        "    except OSError: pass",
        r"^sent something that (is not a result|was not asked for)$|^ran longer",
    ),
    # processes
    "fork bomb": (
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        CROWD,
    ),
    "fork bomb of a shell": (
        "import os; os.system(\"bash -c 'b() { b | b & sleep 9; }; b'\")",
        CROWD,
    ),
    "fork bomb that detaches": (
        "import os\nwhile True:\n    try:\n        if os.fork() == 0: os.setsid()\n"
        "    except OSError: pass",
        CROWD,
    ),
    "thread bomb": (
        "import threading, time\nwhile True:\n"
        "    try: threading.Thread(target=time.sleep, args=(100,)).start()\n"
        "    except RuntimeError: pass",
        CROWD,
    ),
    # memory
    "a slow leak": (
        "import time\nx = []\nwhile True:\n    x.append(bytearray(2**24)); time.sleep(0.02)",
        MEMORY,
    ),
    "many processes each below the limit": (
        "import os, time\nfor _ in range(12):\n    if os.fork() == 0:\n"
        "        x = b'x' * 10**8; time.sleep(100)\ntime.sleep(100)",
        MEMORY,
    ),
    "a leak after the main thread ended": (
        "import ctypes, threading\nx = []\ndef leak():\n"
        "    while True: x.append(bytearray(2**22))\n"
        "threading.Thread(target=leak).start()\nctypes.CDLL(None).syscall(60, 0)",
        MEMORY,
    ),
    "a leak that hides from inspection": (
        "import ctypes, os, time\nctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\nfor _ in range(9):\n"
        "    if os.fork() == 0:\n        x = b'x' * 10**8; time.sleep(100)\ntime.sleep(100)",
        MEMORY,
    ),
    "shared memory": (
        "import mmap\nx = [mmap.mmap(-1, 2**24) for _ in range(60)]\n"
        "for m in x: m.write(b'x' * 2**24)",
        MEMORY,
    ),
    # output
    "endless stderr": ("import sys\nwhile True: sys.stderr.write('x' * 65536)", r"^printed more"),
    "endless stdout of a child": ("import os; os.system('yes')", r"^printed more than 64 MiB$"),
}


@pytest.mark.parametrize("name", DEADLY)
def test_a_deadly_cell_costs_its_worker_and_says_why(sandbox, name, monkeypatch):
    source, reason = DEADLY[name]
    if reason == LATE:
        impatient = dataclasses.replace(sandbox.limits, wall_per_cell=1.5)
        monkeypatch.setattr(sandbox, "limits", impatient)
    started = time.monotonic()
    with sandbox.worker() as worker:
        if reason is None:  # nothing happens: the first process ignores it
            assert worker.run(source).error.type == "NameError"
            return
        with pytest.raises(WorkerDied, match=reason):
            worker.run(source)
        with pytest.raises(WorkerDied, match=reason):
            worker.run("1")
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("name", ["os._exit", "segmentation fault", "fork bomb"])
def test_a_deadly_function_costs_its_worker_and_says_why(sandbox, name):
    source, reason = DEADLY[name]
    with sandbox.worker() as worker:
        body = "\n    ".join(source.splitlines())
        assert worker.run(f"def f(x):\n    {body}").error is None
        with pytest.raises(WorkerDied, match=reason):
            worker.call("f", (1,), {})


def test_a_second_worker_goes_on_while_one_is_killed(sandbox):
    with sandbox.worker() as honest, sandbox.worker() as hostile:
        honest.run("x = 1")
        with pytest.raises(WorkerDied):
            hostile.run("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass")
        assert honest.get("x").value == 1


def test_unasked_replies_are_not_taken_for_answers(sandbox):
    forged = (
        "import os, struct\nfrom inside.codec import encode\n"
        "reply = encode((42, (), {}, None))\n"
        "def f(): return 0\n"
        "for fd in range(3, 20):\n"
        "    try: os.write(fd, (struct.pack('>Q', len(reply)) + reply) * 3)\n"
        "    except OSError: pass\n"
    )
    with sandbox.worker() as worker, pytest.raises(WorkerDied, match="not asked for"):
        worker.run(forged)  # seen here, or before the next request, as the forgeries come in
        worker.call("f", (), {})
