"""What a guest said of itself: the status file and its counters. Untrusted, so bounded and lenient."""

from __future__ import annotations

import os
from dataclasses import dataclass

LIMIT = 16384
"""bytes of the status file that count"""
_DIGITS = 18


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    began: bool = False
    """the program ran"""
    exit_code: int | None = None
    oom: bool = False
    failure: tuple[int, str] | None = None
    """(docker's exit code, text): the program could not be started"""

    @property
    def told(self) -> bool:
        return self.began or self.failure is not None


def read(folder: str) -> Told:
    """The status file of a workload's folder; what is missing was not said."""
    try:
        with open(os.path.join(folder, "vm-status"), "rb") as file:
            return parse(file.read(LIMIT))
    except OSError:
        return Told()


def parse(data: bytes) -> Told:
    """Lines `started`, `oom`, `exit CODE`, `failed ERRNO CODE TEXT`; the first of each counts."""
    began, oom, code, failure = False, False, None, None
    for line in data.split(b"\n")[:-1]:
        words = line.decode("utf-8", "replace").split(" ", 3)
        if words == ["started"]:
            began = True
        elif words == ["oom"]:
            oom = True
        elif words[0] == "exit" and len(words) == 2 and code is None:
            code = _small(words[1])
        elif words[0] == "failed" and len(words) == 4 and failure is None and not began:
            wanted = _small(words[2])
            failure = (wanted if wanted in (126, 127) else 125, _printable(words[3]))
    return Told(began=began, oom=oom, exit_code=code if began else None, failure=failure)


def disk_traffic(text: bytes) -> tuple[int, int]:
    """(read, written) bytes of a cgroup's io.stat."""
    read_bytes = written = 0
    for word in text.split():
        key, _, value = word.partition(b"=")
        if key == b"rbytes":
            read_bytes += _number(value)
        elif key == b"wbytes":
            written += _number(value)
    return read_bytes, written


def net_traffic(text: bytes) -> dict[str, int]:
    """Counters of eth0 in /proc/net/dev."""
    for line in text.split(b"\n"):
        name, colon, rest = line.partition(b":")
        fields = rest.split()
        if colon and name.strip() == b"eth0" and len(fields) >= 10:
            places = {"rx_bytes": 0, "rx_packets": 1, "tx_bytes": 8, "tx_packets": 9}
            return {key: _number(fields[place]) for key, place in places.items()}
    return {}


def _number(text: bytes) -> int:
    return int(text) if text.isdigit() and len(text) <= _DIGITS else 0


def _small(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= 255 else None


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:500])
