"""Capabilities: names, sets, the calls. Constants from linux/capability.h. Out of scope: who gets which."""

from __future__ import annotations

import ctypes
import struct

from knarr.kernel import libc

_TEXT = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT
SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE
AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ
PERFMON BPF CHECKPOINT_RESTORE
"""
NAMES = tuple(_TEXT.split())
NUMBERS = {name: number for number, name in enumerate(NAMES)}

_PR_CAPBSET_READ = 23
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_VERSION_3 = 0x20080522
_HEADER = struct.pack("=Ii", _VERSION_3, 0)


def mask(names: tuple[str, ...]) -> int:
    """The bits of `names` (upper case, without CAP_). Raises KeyError for an unknown one."""
    bits = 0
    for name in names:
        bits |= 1 << NUMBERS[name]
    return bits


def names(bits: int) -> tuple[str, ...]:
    return tuple(name for number, name in enumerate(NAMES) if bits >> number & 1)


def own() -> tuple[int, int]:
    """This process' (permitted, effective) bits."""
    data = bytearray(24)
    buffer = (ctypes.c_char * 24).from_buffer(data)
    libc.syscall(libc.CAPGET, _HEADER, buffer)
    effective, permitted, _, effective_high, permitted_high, _ = struct.unpack("=6I", data)
    return permitted | permitted_high << 32, effective | effective_high << 32


def bounding() -> int:
    """This process' bounding set, which also tells how many capabilities the kernel has."""
    bits = 0
    for number in range(64):
        try:
            bits |= libc.prctl(_PR_CAPBSET_READ, number) << number
        except OSError:
            break
    return bits


def set_own(bits: int) -> None:
    """Permitted and effective become `bits`, inheritable and ambient nothing."""
    low, high = bits & 0xFFFFFFFF, bits >> 32
    libc.syscall(libc.CAPSET, _HEADER, struct.pack("=6I", low, low, 0, high, high, 0))
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
