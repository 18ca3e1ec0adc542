"""`top`: a workload's processes in the columns of `ps`, pids as they are inside. Pure."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from knarr.model.errors import Invalid, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable

    from knarr.kernel.proctable import Proc

    Show = Callable[[Proc, float, dict[int, int]], str]

_FULL = "uid,pid,ppid,c,stime,tty,time,cmd"
_PTS = range(136, 144)


def _user(p: Proc, _now: float, _pids: dict[int, int]) -> str:
    return "root" if p.uid == 0 else str(p.uid)


def _args(p: Proc, _now: float, _pids: dict[int, int]) -> str:
    return p.args or f"[{p.name}]"


def _terminal(p: Proc, _now: float, _pids: dict[int, int]) -> str:
    major, minor = p.terminal >> 8 & 0xFFF, p.terminal & 0xFF | p.terminal >> 12 & 0xFFF00
    return f"pts/{minor}" if major in _PTS else "?"


def _begin(p: Proc, now: float, _pids: dict[int, int]) -> str:
    age = max(now - p.started, 0)
    return time.strftime("%H:%M" if age < 86400 else "%b%d", time.localtime(time.time() - age))


def _clock(seconds: float) -> str:
    whole = max(int(seconds), 0)
    days = f"{whole // 86400}-" if whole >= 86400 else ""
    return f"{days}{whole // 3600 % 24:02}:{whole // 60 % 60:02}:{whole % 60:02}"


def _share(p: Proc, now: float) -> float:
    return min(100.0 * p.cpu / max(now - p.started, 0.01), 9999.0)


_COLUMNS: dict[str, tuple[str, Show]] = {
    "pid": ("PID", lambda p, _, __: str(p.pid)),
    "ppid": ("PPID", lambda p, _, pids: str(pids.get(p.parent, 0))),
    "uid": ("UID", _user),
    "user": ("USER", _user),
    "c": ("C", lambda p, now, _: str(int(_share(p, now)))),
    "pcpu": ("%CPU", lambda p, now, _: f"{_share(p, now):.1f}"),
    "stime": ("STIME", _begin),
    "start": ("START", _begin),
    "tty": ("TTY", _terminal),
    "time": ("TIME", lambda p, _, __: _clock(p.cpu)),
    "etime": ("ELAPSED", lambda p, now, _: _clock(now - p.started)),
    "stat": ("STAT", lambda p, _, __: p.state),
    "ni": ("NI", lambda p, _, __: str(p.nice)),
    "vsz": ("VSZ", lambda p, _, __: str(p.virtual // 1024)),
    "rss": ("RSS", lambda p, _, __: str(p.resident // 1024)),
    "comm": ("COMMAND", lambda p, _, __: p.name),
    "cmd": ("CMD", _args),
    "args": ("COMMAND", _args),
}
_SAME = {"command": "args", "%cpu": "pcpu", "s": "stat", "state": "stat", "tt": "tty", "nice": "ni"}


def table(found: tuple[Proc, ...], now: float, options: str) -> dict[str, Any]:
    """Titles and rows by docker's API; `options` are ps's."""
    keys = columns(options)
    pids = {p.outer: p.pid for p in found}
    rows = [
        [_COLUMNS[key][1](p, now, pids) for key in keys] for p in sorted(found, key=lambda item: item.pid)
    ]
    return {"titles": [_COLUMNS[key][0] for key in keys], "processes": rows}


def columns(options: str) -> list[str]:
    """Of `-ef`, `-o LIST` and their like. Raises `Unsupported` or `Invalid`."""
    chosen: list[str] = []
    words = options.split()
    while words:
        word = words.pop(0)
        if word in ("-ef", "-e", "-f", "-A", "-eaf"):
            continue
        start, found, rest = word.partition("o")
        if not found or start not in ("", "-", "-e", "-A"):
            raise Unsupported(f"ps option {word!r} is unknown", hint="-ef, or -o with a list of columns")
        chosen += (rest or (words.pop(0) if words else "")).lower().split(",")
    keys = [_SAME.get(key, key) for key in chosen] or _FULL.split(",")
    for key in keys:
        if key not in _COLUMNS:
            raise Invalid(f"ps column {key!r} is unknown", hint=", ".join(sorted(_COLUMNS)))
    return keys
