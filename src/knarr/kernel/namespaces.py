"""Namespaces: flags, unshare(2), setns(2); constants from linux/sched.h.

Out of scope: which ones a workload gets.
"""

from __future__ import annotations

import ctypes
import os

from knarr.kernel import libc

CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

NAMES = {
    CLONE_NEWNS: "mount",
    CLONE_NEWCGROUP: "cgroup",
    CLONE_NEWUTS: "uts",
    CLONE_NEWIPC: "ipc",
    CLONE_NEWUSER: "user",
    CLONE_NEWPID: "pid",
    CLONE_NEWNET: "net",
    CLONE_NEWTIME: "time",
}

_unshare = libc.function("unshare", [ctypes.c_int])
_setns = libc.function("setns", [ctypes.c_int, ctypes.c_int])


def unshare(flags: int) -> None:
    if _unshare(flags) < 0:
        raise libc.fail()


def setns(fd: int, flags: int) -> None:
    """Join one namespace by its descriptor, or several at once by a pidfd (Linux ≥ 5.8)."""
    if _setns(fd, flags) < 0:
        raise libc.fail()


def open_namespace(kind: str, pid: int | str = "self") -> int:
    """A descriptor of `/proc/PID/ns/KIND` (mnt, net, pid, …)."""
    return os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)


def describe(flags: int) -> str:
    """`mount, pid, net` of a set of CLONE_NEW… flags."""
    return ", ".join(name for flag, name in NAMES.items() if flags & flag)
