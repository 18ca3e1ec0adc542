"""Processes as `ps` shows them, read from /proc; the same text from a host's and from a guest's kernel.

Out of scope: which processes, and how they are shown.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

_TICKS = 100
"""USER_HZ of every architecture that has containers"""
_CMDLINE = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Proc:
    outer: int
    """the pid for whoever read it"""
    pid: int
    """the pid inside"""
    parent: int
    """an outer pid"""
    uid: int
    name: str
    state: str
    terminal: int
    cpu: float
    """seconds"""
    started: float
    """seconds after the kernel's start"""
    nice: int
    virtual: int
    resident: int
    """bytes"""
    args: str


def read(pid: int) -> bytes | None:
    """`UID PID-INSIDE`, the line of stat, the command line, apart by NULs; None when it has ended."""
    try:
        status, stat, cmdline = (_content(f"/proc/{pid}/{name}") for name in ("status", "stat", "cmdline"))
    except OSError:
        return None
    fields = dict(line.split(b":", 1) for line in status.splitlines() if b":" in line)
    uid, inside = fields.get(b"Uid", b"").split(), fields.get(b"NSpid", b"").split()
    if len(uid) < 2 or not inside:
        return None
    return b"%s %s\0%s\0%s" % (uid[1], inside[-1], stat, cmdline)


def parse(outer: int, text: bytes) -> Proc | None:
    """A process of what `read`, or a guest's agent, gave; None for what makes no sense."""
    head, _, rest = text.partition(b"\0")
    line, _, cmdline = rest.partition(b"\0")
    _, _, tail = line.partition(b"(")
    name, _, numbers = tail.rpartition(b")")
    fields = numbers.split()
    try:
        uid, inside = (int(word) for word in head.split())
        values = [int(word[:20]) for word in fields[1:22]]
        state = fields[0][:1].decode("ascii")
    except (ValueError, IndexError):
        return None
    if len(values) < 21:
        return None
    words = cmdline.rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")
    return Proc(
        outer=outer,
        pid=inside,
        parent=values[0],
        uid=uid,
        name=name.decode("utf-8", "replace"),
        state=state,
        terminal=values[3],
        cpu=(values[10] + values[11]) / _TICKS,
        started=values[18] / _TICKS,
        nice=values[15],
        virtual=values[19],
        resident=values[20] * os.sysconf("SC_PAGE_SIZE"),
        args=words,
    )


def uptime(text: bytes) -> float:
    """Seconds out of /proc/uptime."""
    try:
        return float(text.split()[0][:20])
    except (ValueError, IndexError):
        return 0.0


def host_uptime() -> float:
    return uptime(_content("/proc/uptime"))


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_CMDLINE)
