"""Limits that a wall on this host can't hold, said at creation; disks by their numbers."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from knarr.kernel import cgroups, limits
from knarr.model.errors import Invalid, Unsupported

if TYPE_CHECKING:
    from knarr.kernel.cgroups import Layout
    from knarr.model.workload import Resources

_SYSFS = "/sys/dev/block"
_NOT_IN_MACHINES = (
    ("cpuset", "cpuset", "it has virtual cpus", "limit it by a number of cpus"),
    ("mems", "cpuset-mems", "its memory has one node", "leave it away"),
    ("swappiness", "memory-swappiness", "a machine has no swap", "limit its memory"),
    ("oom_kill_disable", "oom-kill-disable", "its kernel's groups are v2", "use --isolation container"),
    *(
        (name, name.replace("_", "-"), "its disks are virtual ones", "use --isolation container")
        for name in ("blkio_weight", "blkio_weight_device", *limits.RATES)
    ),
)


def check_machine(wanted: Resources) -> None:
    """Raises `Unsupported` naming the option."""
    for field, option, reason, hint in _NOT_IN_MACHINES:
        if getattr(wanted, field) not in (None, False, ()):
            raise Unsupported(f"isolation microvm can't do {option}: {reason}", hint=hint)
    if wanted.memory_swap not in (None, wanted.memory):
        raise Unsupported(
            "isolation microvm can't do memory-swap: a machine has no swap",
            hint="the same as --memory is fine",
        )


def check_container(layout: Layout, wanted: Resources) -> tuple[str, ...]:
    """Warnings. Raises `Unsupported` naming the option, `Invalid` for what is not a disk."""
    missing = limits.lacking(layout, wanted)
    if missing is not None:
        option, reason = missing
        raise Unsupported(f"isolation container can't do {option} on this host: {reason}")
    found = numbers(wanted)
    for item in wanted.blkio_weight_device:
        if not _weighs(f"{_SYSFS}/{found[item.path]}"):
            raise Unsupported(
                f"isolation container can't do blkio-weight-device of {item.path!r} on this host: "
                "its scheduler is not bfq",
                hint=f"echo bfq > /sys/block/{os.path.basename(item.path)}/queue/scheduler",
            )
    if wanted.blkio_weight is not None and "bfq" in layout.weight and not _any_weighs():
        return ("blkio-weight has no effect: no disk of this host has bfq as its scheduler",)
    return ()


def numbers(wanted: Resources) -> dict[str, str]:
    """path → MAJOR:MINOR, looked at with every start: numbers change. Raises `Invalid`."""
    names = ("blkio_weight_device", *limits.RATES)
    return {item.path: _number(item.path) for name in names for item in getattr(wanted, name)}


def _number(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError as error:
        raise Invalid(f"disk {path!r}: {(error.strerror or '').lower()}") from error
    if not stat.S_ISBLK(status.st_mode):
        raise Invalid(f"{path!r} is not a disk", hint="a block device such as /dev/sda")
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    if os.path.exists(f"{_SYSFS}/{number}/partition"):
        raise Invalid(f"{path!r} is a part of a disk", hint="limits hold for whole disks")
    return number


def _weighs(disk: str) -> bool:
    return "[bfq]" in cgroups.schedulers(disk)


def _any_weighs() -> bool:
    return any(_weighs(f"/sys/block/{name}") for name in os.listdir("/sys/block"))
