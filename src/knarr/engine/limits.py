"""Which limits make sense, by docker's rules. Pure; raises `Invalid`.

Out of scope: what this host's controllers or a wall can't do (the drivers' `check`).
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from knarr.model.errors import Invalid

if TYPE_CHECKING:
    from knarr.model.workload import Resources

_MIN_MEMORY = 6 << 20
_LIST = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*", re.ASCII)
_RANGES = (
    ("memory reservation", "memory_reservation", _MIN_MEMORY, 1 << 62),
    ("memory swappiness", "swappiness", 0, 100),
    ("cpu shares", "cpu_shares", 2, 262_144),
    ("cpu period", "cpu_period", 1000, 1_000_000),
    ("block weight", "blkio_weight", 10, 1000),
)
_DISKS = (
    ("blkio_weight_device", 10, 1000),
    *((f"device_{what}", 1, 1 << 62) for what in ("read_bps", "write_bps", "read_iops", "write_iops")),
)


def check(value: Resources) -> None:
    for what, name, low, high in _RANGES:
        number = getattr(value, name)
        if number is not None and not low <= number <= high:
            raise Invalid(f"{what} {number} is out of range", hint=f"{low} to {high}")
    _memory(value)
    _cpus(value)
    for what, text in (("cpu", value.cpuset), ("memory node", value.mems)):
        if text is not None and not _LIST.fullmatch(text):
            raise Invalid(f"{what} set {text!r} is not a list", hint="such as 0-1,3")
    if value.pids is not None and value.pids != -1 and value.pids < 1:
        raise Invalid(f"pids limit {value.pids} is not positive", hint="-1 for none")
    for name, low, high in _DISKS:
        for item in getattr(value, name):
            if not item.path.startswith("/") or "\0" in item.path or not low <= item.value <= high:
                raise Invalid(
                    f"{name.replace('_', ' ')} {item.path[:200]!r}: {item.value} is out of range",
                    hint=f"/dev/NAME and {low} to {high}",
                )


def _memory(value: Resources) -> None:
    memory, swap, kept = value.memory, value.memory_swap, value.memory_reservation
    if memory is not None and memory < _MIN_MEMORY:
        raise Invalid(f"memory limit {memory} is below {_MIN_MEMORY}", hint="at least 6m")
    if swap is not None and memory is None:
        raise Invalid("memory-swap limits both together: without --memory it says nothing")
    if swap is not None and memory is not None and swap != -1 and swap < memory:
        raise Invalid(
            f"memory-swap {swap} is below the memory limit {memory}",
            hint="it is memory and swap together; change both at once, or -1 for no limit",
        )
    if kept is not None and memory is not None and kept > memory:
        raise Invalid(f"memory reservation {kept} is above the memory limit {memory}")


def _cpus(value: Resources) -> None:
    if value.cpus is not None and (value.cpu_quota is not None or value.cpu_period is not None):
        raise Invalid("cpus, and cpu-quota or cpu-period, exclude each other", hint="leave one away")
    if value.cpu_quota is not None and value.cpu_quota < 1000:
        raise Invalid(f"cpu quota {value.cpu_quota} is below 1000 microseconds")
    wanted = value.cpu_time
    if value.cpus is None and wanted is None:
        return
    host = os.cpu_count() or 1
    if value.cpus is not None and not 0.01 <= value.cpus <= host:
        raise Invalid(f"{value.cpus} cpus can't be given", hint=f"0.01 to {host}, what this host has")
    if wanted is not None and wanted > host:
        raise Invalid(f"that quota is {wanted:g} cpus", hint=f"this host has {host}")
