"""Cells that look, reach or write beyond their walls. Each finds nothing there."""

import os
import signal
import socket
from pathlib import Path

import pytest
import torch

from autograder.inside.codec import Opaque
from autograder.sandbox import _environment

ROOT = Path(__file__).parents[2]


def seen(sandbox, source, files=None):
    """What `source` leaves in `found`."""
    with sandbox.worker(files) as worker:
        cell = worker.run(source)
        assert cell.error is None, cell.error
        return worker.get("found").value


# ---- expected values, the reference, other submissions ------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "import llmkit.losses",
        "import autograder",
        "import autograder.checks.losses",
        "import importlib; importlib.import_module('llmkit.losses')",
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport llmkit",
        "import importlib.util as u\n"
        f"s = u.spec_from_file_location('x', {str(ROOT / 'llmkit/losses.py')!r})\n"
        "s.loader.exec_module(u.module_from_spec(s))",
        f"open({str(ROOT / 'pyproject.toml')!r})",
    ],
)
def test_the_reference_cannot_be_imported(sandbox, source):
    with sandbox.worker() as worker:
        error = worker.run(source).error
        assert error.type in ("ModuleNotFoundError", "FileNotFoundError")


def test_only_the_modules_of_earlier_chapters_can_be_imported(sandbox):
    files = {"llmkit/__init__.py": "", "llmkit/losses.py": "x = 1"}
    with sandbox.worker(files) as worker:
        assert worker.run("import llmkit.losses").error is None
        assert worker.run("import llmkit.positions").error.type == "ModuleNotFoundError"


def test_no_file_of_the_course_or_the_host_is_visible(sandbox):
    """Outside of Python's and the system's own folders there is next to nothing."""
    found = seen(
        sandbox,
        "import os\nfound = []\n"
        "system = ('/proc', '/sys', '/usr', '/lib', '/bin', '/sbin', '/etc/fonts')\n"
        "for folder, below, names in os.walk('/'):\n"
        "    below[:] = [b for b in below if not os.path.join(folder, b).startswith(system)\n"
        "        and os.path.exists(os.path.join(folder, b)) and b != 'site-packages'\n"
        "        and not os.path.join(folder, b) in (python + '/lib', python + '/bin')]\n"
        "    found += [os.path.join(folder, n) for n in names]".replace(
            "import os\n", "import os, sys\npython = sys.base_prefix\n"
        ),
    )
    assert not [f for f in found if str(ROOT) in f]
    assert not [f for f in found if not f.startswith(("/dev/", "/etc/", "/course/inside/"))]
    assert not [
        f
        for f in found
        if f.startswith("/etc/")
        and "alternatives" not in f
        and f not in ("/etc/ld.so.cache", "/etc/localtime")
    ]


def test_nothing_but_tmp_can_be_written(sandbox):
    found = seen(
        sandbox,
        "import os\nfound = []\n"
        "mounts = [l.split()[4] for l in open('/proc/self/mountinfo')]\n"
        "for folder in {*mounts, *(os.path.dirname(m) for m in mounts), '/usr/lib', '/var/tmp'}:\n"
        "    try:\n        open(folder + '/x', 'w').close(); found.append(folder)\n"
        "    except OSError: pass",
    )
    assert sorted(found) == ["/dev/shm", "/tmp"]


def test_memory_frames_and_environment_hold_no_expected_value(sandbox):
    with sandbox.worker() as worker:
        worker.run("def f(x): return 0")
        worker.call("f", (torch.full((3,), 1234.5),), {})
        cell = worker.run(
            "import gc, os, sys, torch\n"
            "tensors = [o for o in gc.get_objects() if isinstance(o, torch.Tensor)]\n"
            "names = set(sys.modules)\n"
            "frame, frames = sys._getframe(), []\n"
            "while frame: frames.append(frame.f_code.co_filename); frame = frame.f_back\n"
            "frames = ['/'.join(f.split('/')[-2:]) for f in frames]\n"
            "found = ([n for n in names if n.split('.')[0] in ('llmkit', 'autograder')],\n"
            "    [f for f in frames if 'judge' in f or 'check' in f],\n"
            "    sorted(os.environ), open('/proc/self/environ').read())"
        )
        assert cell.error is None
        modules, frames, environment, raw = worker.get("found").value
    assert modules == [] and frames == []
    assert set(environment) & set(os.environ) <= {*_environment("/tmp"), "PWD", "LC_CTYPE"}
    assert str(ROOT) not in raw


def test_grading_cannot_be_told_from_practice_by_the_call(sandbox):
    """The function is called by its name, with plain arguments, by the code that practice runs."""
    with sandbox.worker() as worker:
        worker.run(
            "import sys\ndef f(x):\n    caller = sys._getframe(1)\n"
            "    return caller.f_code.co_name, caller.f_code.co_filename.rsplit('/', 1)[1]"
        )
        assert worker.call("f", (1,), {}).value == ("call", "outcome.py")


# ---- lies ---------------------------------------------------------------------------------------


LIAR = """
class Liar({base}):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = None
    def __repr__(self): return "right"
def f(): return Liar({value})
"""


@pytest.mark.parametrize(
    ("base", "value", "plain"),
    [("int", "5", 5), ("float", "2.5", 2.5), ("str", "'a'", "a"), ("object", "", Opaque("Liar"))],
)
def test_a_lying_value_arrives_as_its_data(sandbox, base, value, plain):
    with sandbox.worker() as worker:
        worker.run(LIAR.format(base=base, value=value))
        there = worker.call("f", (), {}).value
        assert type(there) is type(plain) and there == plain


def test_a_lying_tensor_arrives_as_its_data(sandbox):
    with sandbox.worker() as worker:
        worker.run(
            "import torch\nclass Liar(torch.Tensor):\n"
            "    @classmethod\n    def __torch_function__(cls, f, types, args=(), kwargs=None):\n"
            "        return True if f in (torch.equal, torch.allclose) else "
            "super().__torch_function__(f, types, args, kwargs or {})\n"
            "def f(): return torch.ones(2).as_subclass(Liar)"
        )
        there = worker.call("f", (), {}).value
        assert type(there) is torch.Tensor and not torch.equal(there, torch.zeros(2))


@pytest.mark.parametrize(
    "source",
    [
        "ip = get_ipython(); ip.input_transformers_post.append(lambda lines: [])",
        "ip = get_ipython(); ip.run_cell = lambda *a, **k: None",
        "type(get_ipython()).run_cell = lambda *a, **k: None",
        "import torch; torch.allclose = torch.equal = lambda *a, **k: True",
        "import torch.testing; torch.testing.assert_close = lambda *a, **k: None",
        "import builtins\nbuiltins.isinstance = lambda *a: True",
        "import builtins\nbuiltins.len = lambda x: 0",
        "import sys\nfor name in list(sys.modules): sys.modules[name] = None",
        "import sys, json\njson.dumps = lambda *a, **k: '[]'",
        "import inside.codec as c\nc.encode = lambda *a: b'\\0\\0\\0\\1' + b'1'",
        "import gc\nfor d in gc.get_objects():\n"
        "    if isinstance(d, dict) and 'run_cell' in d: d['run_cell'] = None",
    ],
)
def test_who_tampers_with_the_worker_gains_no_value(sandbox, source):
    """Whatever is replaced inside, outside there is an outcome, an error or a death: data."""
    from autograder.inside.outcome import Outcome
    from autograder.sandbox import WorkerDied

    with sandbox.worker() as worker:
        worker.run("def f(x): return x + 1")
        try:
            worker.run(source)
            outcome = worker.call("f", (1,), {})
        except WorkerDied as died:
            assert died.reason
        else:
            assert type(outcome) is Outcome
            assert outcome.error is not None or outcome.value == 2


# ---- processes ----------------------------------------------------------------------------------


def test_a_worker_sees_itself_alone(sandbox):
    with sandbox.worker() as other:
        other.run("1")
        found = seen(sandbox, "import os\nfound = [p for p in os.listdir('/proc') if p.isdigit()]")
    assert found == ["1"]


@pytest.mark.parametrize("target", [0, -1, 1, -2, "range(2, 5000)"])
def test_no_signal_leaves_the_walls(sandbox, target):
    with sandbox.worker() as worker:
        worker.run(
            "import os, signal\n"
            f"for pid in {target if isinstance(target, str) else [target]}:\n"
            "    for number in (signal.SIGTERM, signal.SIGKILL):\n"
            "        try: os.kill(pid, number)\n"
            "        except OSError: pass"
        )
        assert worker.run("print(1)").output == "1\n"


def test_a_daemon_does_not_outlive_its_worker(sandbox):
    with sandbox.worker() as worker:
        worker.run(
            "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
            "        time.sleep(1000)\n    os._exit(0)\ntime.sleep(0.1)"
        )
        worker.run("import os\nfound = [p for p in os.listdir('/proc') if p.isdigit()]")
        assert len(worker.get("found").value) >= 2
    # the fixture finds no process left


def test_a_fork_that_falls_out_of_its_cell_does_not_answer(sandbox):
    with sandbox.worker() as worker:
        worker.run("import os\ndef f():\n    os.fork()\n    return os.getpid()")
        for _ in range(3):
            assert worker.call("f", (), {}).value == 1


# ---- the kernel ---------------------------------------------------------------------------------


def test_there_are_no_privileges_and_no_way_to_new_ones(sandbox):
    found = seen(
        sandbox,
        "found = {l.split(':')[0]: l.split(':')[1].strip() for l in open('/proc/self/status')}",
    )
    assert {found[f"Cap{s}"] for s in ("Inh", "Prm", "Eff", "Amb")} == {"0" * 16}
    assert found["NoNewPrivs"] == "1" and found["Seccomp"] == "2"
    assert "0" not in found["Uid"].split()


@pytest.mark.parametrize(
    "path",
    [
        "kernel/core_pattern",
        "kernel/pid_max",
        "vm/overcommit_memory",
        "user/max_user_namespaces",
        "kernel/hostname",
        "net/ipv4/ip_forward",
        "kernel/shmmax",
    ],
)
def test_the_kernel_s_settings_cannot_be_changed(sandbox, path):
    before = Path("/proc/sys", path).read_text()
    with sandbox.worker() as worker:
        error = worker.run(f"with open('/proc/sys/{path}', 'w') as f: f.write('1')").error
        assert "OSError" in error.bases
    assert Path("/proc/sys", path).read_text() == before


@pytest.mark.parametrize(
    "call",
    [
        "libc.unshare(0x10000000)",  # a new user namespace
        "libc.unshare(0)",
        "libc.mount(b'x', b'/tmp', b'tmpfs', 0, None)",
        "libc.umount2(b'/proc', 2)",
        "libc.chroot(b'/tmp')",
        "libc.ptrace(16, 1, 0, 0)",
        "libc.memfd_create(b'x', 0)",
        "libc.shmget(0, 4096, 0o1600)",
        "libc.setuid(0)",
        "libc.sethostname(b'x', 1)",
        "libc.mknod(b'/tmp/d', 0o60666, 0x800)",
        "libc.syscall(56 if __import__('platform').machine() == 'x86_64' else 220, 0x10000011, 0)",
    ],
)
def test_privileged_calls_fail(sandbox, call):
    found = seen(sandbox, f"import ctypes\nlibc = ctypes.CDLL(None)\nfound = {call}")
    assert found == -1


def test_memory_that_no_limit_counts_cannot_be_had(sandbox):
    with sandbox.worker() as worker:
        assert worker.run("import os; os.memfd_create('x')").error.type == "OSError"
        full = "open('{}/x%d' % i, 'wb').write(b'x' * 2**23)"
        for folder in ("/tmp", "/dev/shm"):
            source = f"for i in range(100): {full.format(folder)}"
            assert "No space left" in worker.run(source).error.message
        assert (
            "OSError"
            in worker.run("for i in range(10**5): open(f'/tmp/y{i}', 'w').close()").error.bases
        )
        assert "too large" in worker.run("import os; os.truncate('/tmp/x0', 2**30)").error.message


def test_one_big_allocation_is_an_error_like_any_other(sandbox):
    with sandbox.worker() as worker:
        assert worker.run("x = bytearray(2**40)").error.type == "MemoryError"
        assert "allocate" in worker.run("import torch; torch.ones(2**28)").error.message
        assert worker.run("print(1)").output == "1\n"


@pytest.mark.parametrize(
    "value", ["torch.zeros(1).expand(10 * 2**28)", "'x' * 50_000_000", "list(range(10**6))"]
)
def test_a_result_too_large_is_an_error_in_words(sandbox, value):
    with sandbox.worker() as worker:
        worker.run(f"import torch\ndef f(): return {value}")
        assert "cannot be sent" in worker.call("f", (), {}).error.message
        assert worker.run("print(1)").output == "1\n"


# ---- the network --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "socket.create_connection(('192.0.2.1', 53), 1)",
        "socket.create_connection(('127.0.0.1', {port}), 1)",
        "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))",
        "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
        "socket.getaddrinfo('example.org', 80)",
        "socket.create_connection(('::1', {port}), 1)",
        "socket.socket(socket.AF_UNIX).connect({abstract!r})",
        "socket.socket(socket.AF_UNIX).connect({path!r})",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).send(b'x' * 16); raise OSError",
        "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
        "socket.socket(socket.AF_VSOCK)",  # the host, where this is a virtual machine
        "[socket.socket(family) for family in range(46) if family not in (1, 2, 10)]",
        "__import__('urllib.request').request.urlopen('http://example.org', timeout=1)",
    ],
)
def test_no_network_is_there(sandbox, source, tmp_path):
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_UNIX) as path,
    ):
        name, file = f"\0redteam-{os.getpid()}", str(tmp_path / "socket")
        for end, address in ((abstract, name), (path, file)):
            end.bind(address)
            end.listen()
        filled = source.format(port=tcp.getsockname()[1], abstract=name, path=file)
        with sandbox.worker() as worker:
            error = worker.run(f"import socket\n{filled}").error
            assert "OSError" in error.bases
        for end in (tcp, abstract, path):
            end.setblocking(False)
            with pytest.raises(BlockingIOError):
                end.accept()


def test_workers_cannot_talk_to_each_other(sandbox):
    with sandbox.worker() as one, sandbox.worker() as two:
        one.run("import socket; s = socket.socket(socket.AF_UNIX); s.bind('\\0here'); s.listen()")
        error = two.run("import socket; socket.socket(socket.AF_UNIX).connect('\\0here')").error
        assert error.type == "ConnectionRefusedError"


def test_the_judge_s_own_signals_and_threads_are_untouched(sandbox):
    before = signal.getsignal(signal.SIGINT)
    with sandbox.worker() as worker:
        worker.run("1")
    assert signal.getsignal(signal.SIGINT) is before
