"""Processes: pidfds, start times, prctl. Out of scope: starting them (`kernel.spawn`)."""

from __future__ import annotations

import fcntl
import os
import signal
import struct

from knarr.kernel import libc

PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_NO_NEW_PRIVS = 38

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_EXIT = 8


def pidfd_open(pid: int) -> int:
    return os.pidfd_open(pid)


def pidfd_send_signal(pidfd: int, number: int) -> None:
    signal.pidfd_send_signal(pidfd, number)


def pidfd_exit_status(pidfd: int) -> int | None:
    """The wait status of an ended, perhaps reaped process (Linux ≥ 6.15); None if unknown."""
    info = bytearray(struct.pack("=Q", _PIDFD_INFO_EXIT) + bytes(56))
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, info, True)
    except OSError:
        return None
    mask = struct.unpack_from("=Q", info)[0]
    return int(struct.unpack_from("=i", info, 60)[0]) if mask & _PIDFD_INFO_EXIT else None


def start_time(pid: int) -> int:
    """Clock ticks since boot (/proc/PID/stat field 22): tells a process from a later one with its pid."""
    fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, 4096)
    finally:
        os.close(fd)
    return int(text[text.rindex(b")") + 2 :].split()[19])


def set_dumpable(*, on: bool) -> None:
    libc.prctl(PR_SET_DUMPABLE, int(on))


def no_new_privileges() -> None:
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1)


def set_name(name: str) -> None:
    libc.prctl(PR_SET_NAME, name.encode()[:15])
