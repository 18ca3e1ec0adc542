"""Timestamps at the beginning of each line of a log. Pure."""

from __future__ import annotations

import time


def rfc3339(moment: int) -> bytes:
    """`2026-01-31T12:00:00.123456789Z`, of fixed width so that lines stay aligned."""
    seconds, nanoseconds = divmod(moment, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode() + b".%09dZ" % nanoseconds


class Stamper:
    """Knows for each stream whether the next byte begins a line: chunks end anywhere."""

    def __init__(self) -> None:
        self._inside: set[int] = set()

    def stamp(self, moment: int, stream: int, data: bytes) -> bytes:
        if not data:
            return data
        prefix = rfc3339(moment) + b" "
        lines = _split(data)
        first = b"" if stream in self._inside else prefix
        if data.endswith(b"\n"):
            self._inside.discard(stream)
        else:
            self._inside.add(stream)
        return first + prefix.join(lines)


def _split(data: bytes) -> list[bytes]:
    """Only a line feed ends a line here; a lone carriage return is part of a progress bar's line."""
    pieces = data.split(b"\n")
    lines = [piece + b"\n" for piece in pieces[:-1]]
    return [*lines, pieces[-1]] if pieces[-1] else lines
