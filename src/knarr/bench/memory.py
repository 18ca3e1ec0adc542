"""What processes take of the host's memory: proportional set sizes, read from /proc."""

from __future__ import annotations

import re
from typing import Final

from knarr.model.errors import Failed

_RANGE: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ [0-9a-f]+ \S+ [0-9]+ *(.*)")


def available() -> float:
    """MiB that new programs could have."""
    return meminfo()["MemAvailable"]


def meminfo() -> dict[str, float]:
    """/proc/meminfo in MiB."""
    with open("/proc/meminfo", encoding="ascii") as file:
        return {line.split(":")[0]: float(line.split()[1]) / 1024 for line in file}


def pss(pid: int) -> float:
    """MiB of a process: its own pages, and its share of those that others have too. Raises `Failed`."""
    return sum(size for _, size, _ in _ranges(pid))


def pss_without_largest(pid: int) -> float:
    """The same without its largest mapping: a QEMU's guest RAM, which is the guest's matter."""
    found = _ranges(pid)
    spans: dict[str, int] = {}
    for name, _, span in found:
        spans[name] = max(span, spans.get(name, 0))
    largest = max(spans, key=lambda name: spans[name])
    return sum(size for name, size, _ in found if name != largest)


def _ranges(pid: int) -> list[tuple[str, float, int]]:
    """(backing, PSS in MiB, bytes of addresses) of each mapping; anonymous ones are apart from each other."""
    found: list[tuple[str, float, int]] = []
    try:
        with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as file:
            for line in file:
                if match := _RANGE.match(line):
                    backing = match[3] or match[1]
                    found.append((backing, 0.0, int(match[2], 16) - int(match[1], 16)))
                elif line.startswith("Pss:"):
                    name, _, span = found[-1]
                    found[-1] = name, float(line.split()[1]) / 1024, span
    except OSError as error:
        raise Failed(f"the memory of process {pid} can't be read: {error.strerror}") from error
    return found
