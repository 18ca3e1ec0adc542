"""Bytes, CPUs, durations: parse what a user types, print what a user reads."""

from __future__ import annotations

import re

from knarr.model.errors import Invalid

_FACTORS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([bkmgt]?)(?:i?b)?", re.ASCII | re.IGNORECASE)
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|ms|s|m|h|d)", re.ASCII)
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_bytes(text: str) -> int:
    """`512m`, `1.5g`, `4096`: binary multiples, as docker reads them. Raises `Invalid`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise Invalid(f"{text!r} is not a size", hint="a number and b, k, m, g or t, such as 512m")
    return int(float(match[1]) * _FACTORS[match[2].lower()])


def format_bytes(count: int) -> str:
    """Three significant digits, decimal multiples: `170MB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{value:.3g}{unit}"
        value /= 1000
    raise AssertionError


def parse_cpus(text: str) -> float:
    """`0.5`, `2`. Raises `Invalid`."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.01 <= value < 100_000:
        raise Invalid(f"{text!r} is not a number of cpus", hint="such as 0.5 or 2")
    return value


def parse_duration(text: str) -> float:
    """Seconds of `10s`, `1m30s`, `250ms`. Raises `Invalid`."""
    pieces = _DURATION.findall(text)
    if not pieces or "".join(number + unit for number, unit in pieces) != text:
        raise Invalid(f"{text!r} is not a duration", hint="such as 10s, 1m30s or 250ms")
    return float(sum(float(number) * _SECONDS[unit] for number, unit in pieces))


def format_ago(seconds: float) -> str:
    """`12 seconds`, `About a minute` is docker's prose; ours is plain: `3 minutes`."""
    for limit, size, unit in ((60, 1, "second"), (3600, 60, "minute"), (86400, 3600, "hour")):
        if seconds < limit:
            count = int(seconds // size)
            return f"{count} {unit}{'' if count == 1 else 's'}"
    days = int(seconds // 86400)
    return f"{days} day{'' if days == 1 else 's'}"
