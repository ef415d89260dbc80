"""The warm parent: imports everything once, forks a worker per submission and watches over it.

It runs inside bubblewrap, in one thread. The judge asks for a worker over the control socket and
sends along the descriptors that the worker is to hold. A worker is the first process of a PID
namespace of its own: when it ends, or is killed from here, the kernel ends all that it started.
The parent is outside that namespace, where nothing can see, signal or slow it.
"""

import contextlib
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from . import isolation

WATCH_EVERY = 0.025  # seconds; what a worker can exceed a limit by is what it does in this time


@dataclass
class Ward:
    """A worker under watch: where to report its end, and its /proc, /tmp and /dev/shm held open."""

    pid: int
    pidfd: int
    report: socket.socket
    proc: int
    tmpfs: list[int]
    inherited: int  # bytes of the parent's memory that every fork starts with
    reason: str = ""
    next_count: float = 0.0


def main() -> None:
    """Arguments: the control socket, a pidfd of the judge, the limits and module paths as JSON."""
    control, judge = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    limits, sys.path[len(sys.path) :] = json.loads(sys.argv[3]), json.loads(sys.argv[4])
    try:
        _enter_own_namespaces()
        from . import worker  # after the last privilege is gone; this takes seconds

        shell = worker.start_shell()
        worker.warm_up(shell)
    except BaseException as error:
        control.sendall(f"{type(error).__name__}: {error}".encode()[:4000])
        raise
    gc.collect()
    gc.freeze()  # a collection in a worker then leaves the parent's pages alone
    isolation.use_huge_pages()
    control.sendall(b"ready")

    def serve(descriptor: int) -> None:
        requests, replies = os.fdopen(descriptor, "rb"), os.fdopen(os.dup(descriptor), "wb")
        worker.serve(requests, replies, limits["result_bytes"], shell)

    _watch(control, judge, limits, serve)


def _enter_own_namespaces() -> None:
    """Leave what bubblewrap lent: root, if it was that, and its capabilities.

    What remains are capabilities over namespaces of our own, to make the workers' from.
    """
    isolation.mount_proc()  # bubblewrap's has parts covered, and then no worker could mount its own
    isolation.stop_being_root()
    isolation.new_user_namespace(isolation.CLONE_NEWNS | isolation.CLONE_NEWPID)
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 255)
    isolation.die_with_parent()
    isolation.mount_proc()


def _watch(control: socket.socket, judge: int, limits: dict, serve: Callable[[int], None]) -> None:
    own_pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY)
    wards: dict[int, Ward] = {}  # by the descriptors to poll: pidfd and report
    poller = select.poll()
    poller.register(control, select.POLLIN)
    poller.register(judge, select.POLLIN)
    next_look = 0.0
    while True:
        for descriptor, _ in poller.poll(WATCH_EVERY * 1000 if wards else None):
            if descriptor == judge:
                return
            if descriptor == control.fileno():
                asked, descriptors, *_ = socket.recv_fds(control, 1, 3)
                if not asked:
                    return
                ward = _fork_worker(descriptors, limits, serve, own_pid_namespace)
                for watched in (ward.pidfd, ward.report.fileno()) if ward else ():
                    wards[watched] = ward
                    poller.register(watched, select.POLLIN)
                continue
            ward = wards.get(descriptor)
            if ward is None:  # reaped a moment ago
                continue
            if descriptor == ward.pidfd:
                for watched in (ward.pidfd, ward.report.fileno()):
                    del wards[watched]
                    poller.unregister(watched)
                _reap(ward, limits)
            else:  # the judge is done with it
                poller.modify(descriptor, 0)
                os.kill(ward.pid, signal.SIGKILL)
        if time.monotonic() >= next_look:
            for ward in {id(w): w for w in wards.values()}.values():
                ward.reason = ward.reason or _excess(ward, limits)
                if ward.reason:
                    os.kill(ward.pid, signal.SIGKILL)
            next_look = time.monotonic() + WATCH_EVERY


def _fork_worker(
    descriptors: list[int], limits: dict, serve: Callable[[int], None], own_pid_namespace: int
) -> Ward | None:
    connection, output, report = descriptors
    ready, ready_in_worker = socket.socketpair()
    isolation.unshare(isolation.CLONE_NEWPID)  # for the next child only, not for us
    pid = os.fork()
    if pid == 0:
        _be_worker(connection, output, ready_in_worker, limits, serve)
    isolation.setns(own_pid_namespace, isolation.CLONE_NEWPID)
    ready_in_worker.close()
    os.close(connection)
    os.close(output)
    ready.settimeout(10)
    report = socket.socket(fileno=report)
    try:
        said, folders, *_ = socket.recv_fds(ready, 1000, 3)
    except TimeoutError:
        said, folders = b"the worker did not start", []
    if said != b"ready":
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        _say(report, failed=said.decode(errors="replace") or "the worker died while it started")
        return None
    inherited = _status("/proc/self/status")["RssAnon"]
    return Ward(pid, os.pidfd_open(pid), report, folders[0], folders[1:], inherited)


def _be_worker(
    connection: int, output: int, ready: socket.socket, limits: dict, serve: Callable[[int], None]
) -> None:
    """Never returns. From here on there is one way: every step leaves the process with less."""
    try:
        os.setsid()  # a process group reaches across namespaces: kill(0) would reach us
        os.dup2(output, 1)
        os.dup2(output, 2)
        for low, high in pairwise([2, *sorted([connection, ready.fileno()]), 2**20]):
            os.closerange(low + 1, high)
        own = isolation.CLONE_NEWNS | isolation.CLONE_NEWNET
        isolation.unshare(own | isolation.CLONE_NEWIPC | isolation.CLONE_NEWUTS)
        isolation.mount_proc()
        isolation.mount_tmpfs("/tmp", limits["tmp_bytes"])
        isolation.mount_tmpfs("/dev/shm", limits["tmp_bytes"])
        os.chdir("/tmp")
        isolation.new_user_namespace()
        isolation.forbid_user_namespaces()
        folders = [os.open(p, os.O_RDONLY | os.O_DIRECTORY) for p in ("/proc", "/tmp", "/dev/shm")]
        used = _status("/proc/self/status")
        isolation.limit(
            cpu_seconds=limits["cpu_seconds"],
            memory=used["VmData"] + limits["memory_bytes"],
            address_space=used["VmSize"] + 2 * limits["memory_bytes"] + 2**33,
            processes=limits["processes"] + 16,  # past the limit, so that the watcher sees it
            file=limits["file_bytes"],
        )
        isolation.give_up_privileges()
        socket.send_fds(ready, [b"ready"], folders)
        for folder in folders:
            os.close(folder)
        ready.close()
    except BaseException as error:
        ready.sendall(f"{type(error).__name__}: {error}".encode()[:1000])
        os._exit(1)
    code = 1
    try:
        serve(connection)
        code = 0
    finally:
        os._exit(code)


def _reap(ward: Ward, limits: dict) -> None:
    _, status, usage = os.wait4(ward.pid, 0)
    _say(ward.report, died=ward.reason or _last_words(status, usage, limits))
    for descriptor in (ward.pidfd, ward.proc, *ward.tmpfs):
        os.close(descriptor)


def _say(report: socket.socket, **message: str) -> None:
    with contextlib.suppress(OSError):  # the judge no longer listens
        report.sendall(json.dumps(message).encode())
    report.close()


def _last_words(status: int, usage: resource.struct_rusage, limits: dict) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"ended its process with exit code {code}"
    if -code != signal.SIGKILL:
        return f"crashed: {signal.strsignal(-code).lower()}"
    if usage.ru_utime + usage.ru_stime >= limits["cpu_seconds"] - 0.5:
        return f"used more than {limits['cpu_seconds']} s of processor time"
    return "was killed by the system, perhaps for want of memory"


def _excess(ward: Ward, limits: dict) -> str:
    """Which limit the worker and all that it started exceed together, in words, or ""."""
    most = limits["memory_bytes"]
    used = _usage(ward)
    if used.threads > limits["processes"]:
        return f"started more than {limits['processes']} processes and threads"
    # Who is about to execute another program shares its memory with the one that started it for a
    # moment, and counts double: hence the second look.
    over = used.own > most and _usage(ward).own > most
    if not over and used.most > most and time.monotonic() > ward.next_count:
        started = time.monotonic()
        over = _proportional(ward) > most and _proportional(ward) > most
        ward.next_count = time.monotonic() + 5 * (time.monotonic() - started) + 0.1
    return f"used more than {most / 2**30:.3g} GiB of memory" if over else ""


@dataclass
class Usage:
    """What a worker and all that it started use. Bytes between two bounds that are quick to read:
    processes share pages with the parent and with each other, `own` counts none of these and
    `most` counts them for each."""

    threads: int
    own: int
    most: int


def _usage(ward: Ward) -> Usage:
    usage = Usage(0, own=_stored(ward), most=_stored(ward))
    for status in _statuses(ward):
        usage.threads += status["Threads"]
        private = status.get("RssAnon", 0) + status.get("VmSwap", 0) + status.get("VmPTE", 0)
        usage.own += max(private - ward.inherited, 0) + status.get("RssShmem", 0)
        usage.most += private + status.get("RssShmem", 0)
    usage.own += ward.inherited
    return usage


def _proportional(ward: Ward) -> int:
    """Bytes with every shared page counted once. The kernel walks all pages for that: slow."""
    total = _stored(ward)
    for status in _statuses(ward):
        try:
            shares = _status(f"{status['process']}/smaps_rollup", ward.proc)
            total += shares["Pss_Anon"] + shares["Pss_Shmem"] + shares["SwapPss"]
        except (OSError, KeyError):  # it hides, then it pays in full; or it has just ended
            total += status.get("RssAnon", 0) + status.get("RssShmem", 0)
    return total


def _stored(ward: Ward) -> int:
    """Bytes of files in /tmp and /dev/shm: they are memory, too."""
    used = map(os.fstatvfs, ward.tmpfs)
    return sum((u.f_blocks - u.f_bfree) * u.f_frsize for u in used)


def _statuses(ward: Ward) -> Iterator[dict[str, int]]:
    """/proc/PID/status of all the worker's processes, with the number under "process"."""
    for process in filter(str.isdigit, os.listdir(ward.proc)):
        try:
            status = _status(f"{process}/status", ward.proc)
            if "VmRSS" not in status and status["Threads"] > 1:  # its first thread has ended
                tasks = os.open(f"{process}/task", os.O_RDONLY, dir_fd=ward.proc)
                try:
                    others = [_status(f"{thread}/status", tasks) for thread in os.listdir(tasks)]
                finally:
                    os.close(tasks)
                status |= max(others, key=lambda s: s.get("VmRSS", 0), default={})
        except (FileNotFoundError, ProcessLookupError):
            continue
        yield status | {"process": int(process)}


def _status(path: str, folder: int | None = None) -> dict[str, int]:
    """The numbers of a file like /proc/self/status, sizes in bytes."""
    descriptor = os.open(path, os.O_RDONLY, dir_fd=folder)
    try:
        # Not splitlines(): a process names itself, and the kernel escapes only the line feed.
        lines = os.read(descriptor, 65536).decode(errors="replace").split("\n")
    finally:
        os.close(descriptor)
    numbers = {}
    for line in lines:
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdecimal():
            numbers[name] = int(words[0]) * (1024 if words[-1] == "kB" else 1)
    return numbers
