"""The walls around one worker: namespaces, limits and system calls, in the order they go up.

Linux only, on x86-64 and arm64. Every call that fails raises `OSError`: no worker runs with a wall
missing.
"""

import ctypes
import os
import platform
import resource
import struct
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_NOBODY = 65534

# Memory that no limit counts (memfd, System V), namespaces, and doors into the kernel that no
# notebook needs. Numbers of x86-64 and arm64.
_FORBIDDEN = {
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "mount_setattr": (442, 442),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "syslog": (103, 116),
    "mq_open": (240, 180),
}
_SOCKET = (41, 198)
# What stays within the network namespace. AF_VSOCK, for one, does not: it reaches the host of a
# virtual machine.
_FAMILIES = {"unix": 1, "inet": 2, "inet6": 10, "netlink": 16}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_libc = ctypes.CDLL(None, use_errno=True)


def mount_proc() -> None:
    """A fresh /proc of the current PID namespace, over whatever is there."""
    _mount(b"proc", b"/proc", b"proc", b"", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def mount_tmpfs(path: str, size: int) -> None:
    """A private, empty, writable folder of at most `size` bytes."""
    options = f"size={size},nr_inodes=4096,mode=0755,uid={os.geteuid()},gid={os.getegid()}"
    _mount(b"tmpfs", path.encode(), b"tmpfs", options.encode(), _MS_NOSUID | _MS_NODEV)


def use_huge_pages() -> None:
    """Move this process's memory into pages of 2 MiB: a fork copies a fraction of the page tables.

    Measured with torch imported: 6 ms instead of 23 for a fork and its end. A kernel that cannot
    do it leaves things as they are.
    """
    huge = 2**21
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, permissions, _, _, _, *file = line.split()
        first, last = (int(bound, 16) for bound in bounds.split("-"))
        first, last = -(-first // huge) * huge, last // huge * huge
        if permissions == "rw-p" and file in ([], ["[heap]"]) and first < last:
            for advice in (_MADV_HUGEPAGE, _MADV_COLLAPSE):
                _libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), advice)


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def setns(descriptor: int, kind: int) -> None:
    _check(_libc.setns(descriptor, kind), "setns")


def new_user_namespace(also: int = 0) -> None:
    """Enter a user namespace in which the current user, and nobody else, exists under its own id.

    The user's id stays what it is: an id that maps to the host's root would pass the permission
    checks of /proc/sys.
    """
    user, group = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER | also)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{user} {user} 1")
    _write("/proc/self/gid_map", f"{group} {group} 1")


def stop_being_root() -> None:
    """Become nobody for good. Capabilities go with the user id."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        _prctl(_PR_SET_DUMPABLE, 1)  # the kernel hides /proc/self from a process that changed user


def die_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, 9)


def forbid_user_namespaces() -> None:
    """No further user namespace below the current one: they are the way to new capabilities."""
    _write("/proc/sys/user/max_user_namespaces", "0")


def limit(cpu_seconds: int, memory: int, address_space: int, processes: int, file: int) -> None:
    """Resource limits of this process and all it starts, hard and soft. Sizes are in bytes."""
    limits = {
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_DATA: memory,
        resource.RLIMIT_AS: address_space,
        resource.RLIMIT_FSIZE: file,
        resource.RLIMIT_NOFILE: 128,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_SIGPENDING: 256,
    }
    # Before 5.14 the kernel counts the user's processes outside, too. There the watcher counts.
    if tuple(int(n) for n in platform.release().split("-")[0].split(".")[:2]) >= (5, 14):
        limits[resource.RLIMIT_NPROC] = processes
    for which, value in limits.items():
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def give_up_privileges() -> None:
    """No capability, none to be had by executing anything, and no forbidden system call."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    header = struct.pack("=Ii", 0x20080522, 0)  # capability version 3, this thread
    _check(_libc.capset(header, bytes(24)), "capset")
    _forbid_system_calls()


def _forbid_system_calls() -> None:
    """A seccomp filter: forbidden calls fail with ENOSYS, sockets of other families as if the
    kernel had none, and calls of a foreign ABI kill."""
    machine = platform.machine()
    if machine not in _AUDIT_ARCH:
        raise OSError(f"the sandbox knows x86-64 and arm64, not {machine}")
    numbers = [pair[machine == "aarch64"] for pair in _FORBIDDEN.values()]
    families = [*_FAMILIES.values()]
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06  # BPF: LD, JEQ, JGE, RET
    kill, allow, refuse = 0x80000000, 0x7FFF0000, 0x00050000 | 38  # 38: ENOSYS
    unknown = 0x00050000 | 97  # EAFNOSUPPORT
    program = [
        (load, 0, 0, 4),  # seccomp_data.arch
        (equal, 1, 0, _AUDIT_ARCH[machine]),
        (answer, 0, 0, kill),
        (load, 0, 0, 0),  # seccomp_data.nr
        (at_least, len(numbers) + 2, 0, 0x40000000),  # the x32 ABI has numbers of its own
        *((equal, len(numbers) + 1 - i, 0, number) for i, number in enumerate(numbers)),
        (equal, 2, 0, _SOCKET[machine == "aarch64"]),
        (answer, 0, 0, allow),
        (answer, 0, 0, refuse),
        (load, 0, 0, 16),  # seccomp_data.args[0], of which the kernel takes 32 bits
        *((equal, len(families) - i, 0, family) for i, family in enumerate(families)),
        (answer, 0, 0, unknown),
        (answer, 0, 0, allow),
    ]
    code = b"".join(struct.pack("=HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_ = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    _prctl(_PR_SET_SECCOMP, 2, filter_)


def _mount(source: bytes, target: bytes, kind: bytes, options: bytes, flags: int) -> None:
    _check(
        _libc.mount(source, target, kind, ctypes.c_ulong(flags), options),
        f"mounting {target.decode()}",
    )


def _prctl(option: int, value: int, pointer: bytes | None = None) -> None:
    arguments = (ctypes.c_ulong(value), pointer or ctypes.c_ulong(0), ctypes.c_ulong(0))
    _check(_libc.prctl(option, *arguments, ctypes.c_ulong(0)), f"prctl {option}")


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
