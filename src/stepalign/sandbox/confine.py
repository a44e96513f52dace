"""Limits of a process: resources, privileges, and system calls (seccomp) on Linux.

A confined process starts no process and no thread, opens no socket, sends no signal, and reads no other process'
memory. Without bubblewrap it also writes no file. A program of seccomp is loaded by `prctl`, because bubblewrap's own
would bind the server too, which has to fork.
"""

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
from contextlib import suppress

MAX_FILE_BYTES = 16 * 2**20
MAX_OPEN_FILES = 64

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_NEWER = 424
"""Later system calls (`io_uring`, `clone3`, `pidfd_…`) have one number everywhere. The C library does without."""
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""The name in seccomp's data, and the column of the tables below."""

_DENIED = {
    "fork": (57, None), "vfork": (58, None), "clone": (56, 220), "execve": (59, 221), "execveat": (322, 281),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "setsid": (112, 157), "setpgid": (109, 154), "prctl": (157, 167),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "setrlimit": (160, 164), "prlimit64": (302, 261), "personality": (135, 92),
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "memfd_create": (319, 279), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
}  # fmt: skip
_DENIED_WRITES = {
    "creat": (85, None), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "link": (86, None),
    "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36), "mknod": (133, None), "mknodat": (259, 33),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, None), "lchown": (94, None),
    "fchown": (93, 55), "fchownat": (260, 54), "truncate": (76, 45), "utime": (132, None), "utimes": (235, None),
    "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
}  # fmt: skip
_OPEN: dict[str, tuple[int, int | None, int]] = {"open": (2, None, 1), "openat": (257, 56, 2)}
"""The last number is the argument that holds the flags."""


def confine(*, memory_bytes: int, cpu_s: int, may_write: bool) -> bool:
    """Confine this process for good.

    Args:
        memory_bytes: of address space.
        cpu_s: of processor time.
        may_write: files may be written, because the caller's file system shows a temporary folder only.

    Returns:
        False where system calls cannot be filtered.
    """
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: MAX_FILE_BYTES if may_write else 0,
        resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    for kind, limit in limits.items():
        with suppress(ValueError, OSError):  # a system that has no such limit, or a lower one
            resource.setrlimit(kind, (limit, limit))
    return sys.platform == "linux" and _drop_privileges() and _filter(may_write)


def hide() -> None:
    """Keep other processes of the same user from reading this one's memory and descriptors."""
    if sys.platform == "linux":
        _prctl(_PR_SET_DUMPABLE, 0)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, 9)


def _prctl(option: int, argument: int, pointer: bytes | None = None) -> bool:
    zero = ctypes.c_ulong(0)
    return bool(ctypes.CDLL(None).prctl(option, ctypes.c_ulong(argument), pointer or zero, zero, zero) == 0)


def _drop_privileges() -> bool:
    """Drop all capabilities, which root would have beside the limits."""
    header, none = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    dropped = ctypes.CDLL(None).capset(header, none) == 0
    return dropped and _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _filter(may_write: bool) -> bool:
    """Load the filter of system calls."""
    if platform.machine() not in _MACHINES:
        return False
    name, column = _MACHINES[platform.machine()]
    denied = _DENIED if may_write else _DENIED | _DENIED_WRITES
    numbers = [number for row in denied.values() if (number := row[column]) is not None]
    deny = _ERRNO | errno.EPERM
    program = [
        (_LOAD, 0, 0, 4),
        (_JUMP_EQUAL, 1, 0, name),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_JUMP_AT_LEAST, 0, 1, _NEWER),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    for number in numbers:
        program += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, deny)]
    for row in [] if may_write else _OPEN.values():
        if (number := row[column]) is not None:
            program += [
                (_JUMP_EQUAL, 0, 4, number),
                (_LOAD, 0, 0, 16 + 8 * row[2]),
                (_JUMP_BITS, 0, 1, _WRITING),
                (_RETURN, 0, 0, deny),
                (_RETURN, 0, 0, _ALLOW),
            ]
    program.append((_RETURN, 0, 0, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    return _prctl(_PR_SET_SECCOMP, 2, struct.pack("@HP", len(program), ctypes.addressof(code)))
