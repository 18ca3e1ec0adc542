"""The options of limits, for `run`, `create` and `update`, and what they mean. Pure."""

from __future__ import annotations

from knarr.cli.options import Arguments, Option
from knarr.model.errors import Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CHANGEABLE = (
    Option("-m --memory", "memory limit, such as 512m", value="SIZE"),
    Option("--memory-swap", "limit of memory and swap together; -1 is none", value="SIZE"),
    Option("--memory-reservation", "memory that it keeps while others can be asked first", value="SIZE"),
    Option("--cpus", "CPU limit, such as 1.5", value="NUMBER"),
    Option("--cpu-quota", "microseconds of CPU in each period", value="NUMBER"),
    Option("--cpu-period", "microseconds of a period (100000)", value="NUMBER"),
    Option("-c --cpu-shares", "its part of busy CPUs, beside others' 1024", value="NUMBER"),
    Option("--cpuset-cpus", "CPUs it may use, such as 0-1", value="LIST"),
    Option("--cpuset-mems", "memory nodes it may use", value="LIST"),
    Option("--pids-limit", "limit of processes; -1 is none", value="NUMBER"),
    Option("--blkio-weight", "its part of busy disks, 10 to 1000", value="NUMBER"),
)
OPTIONS = (
    *CHANGEABLE,
    Option("--memory-swappiness", "how soon its memory is swapped, 0 to 100 (cgroup v1)", value="NUMBER"),
    Option("--oom-kill-disable", "at the memory limit it waits instead of being killed (cgroup v1)"),
    Option("--oom-score-adj", "how soon it is killed when the host has no memory", value="NUMBER"),
    Option("--blkio-weight-device", "its part of one disk", value="PATH:WEIGHT", many=True),
    Option("--device-read-bps", "bytes a second read of a disk", value="PATH:RATE", many=True),
    Option("--device-write-bps", "bytes a second written to a disk", value="PATH:RATE", many=True),
    Option("--device-read-iops", "reads a second of a disk", value="PATH:RATE", many=True),
    Option("--device-write-iops", "writes a second to a disk", value="PATH:RATE", many=True),
    Option("--ulimit", "resource limit of its processes", value="NAME=SOFT[:HARD]", many=True),
)
_NUMBERS = ("cpu_quota", "cpu_period", "cpu_shares", "blkio_weight", "memory_swappiness")
_SIZES = ("memory", "memory_swap", "memory_reservation")
_RATES = ("blkio_weight_device", *(f"device_{what}" for what in ("read_iops", "write_iops")))
_NAMES = {"cpuset_cpus": "cpuset", "cpuset_mems": "mems", "memory_swappiness": "swappiness"}
_NAMES |= {"pids_limit": "pids"}


def said(a: Arguments) -> dict[str, Any]:
    """What was said of `CHANGEABLE`, as the fields of resources. Raises `Invalid`."""
    found: dict[str, Any] = {}
    for name in ("memory", "memory_swap", "memory_reservation", "cpus", "cpu_quota", "cpu_period"):
        found[name] = _value(name, getattr(a, name))
    for name in ("cpu_shares", "cpuset_cpus", "cpuset_mems", "blkio_weight", "pids_limit"):
        found[name] = _value(name, getattr(a, name))
    return {_NAMES.get(name, name): value for name, value in found.items() if value is not None}


def _value(name: str, text: str | None) -> Any:
    from knarr.cli.spec import sized, whole
    from knarr.model import units

    option = "--" + name.replace("_", "-")
    if text is None or name.startswith("cpuset"):
        return text
    if name in _SIZES:
        return int(text) if text in ("0", "-1") else sized(option, text)
    if name == "cpus":
        return 0.0 if text == "0" else units.parse_cpus(text)
    return whole(option, text)


def resources(a: Arguments) -> dict[str, Any]:
    """All of `OPTIONS` but the ulimits and the score, for a new workload: nothing is taken back there."""
    from knarr.cli.spec import whole

    found = {name: value for name, value in said(a).items() if value not in (0, "") or name == "pids"}
    for name in ("memory", "memory_reservation", "cpu_quota"):
        if found.get(name) == -1:
            del found[name]
    if "pids" in found:
        found["pids"] = found["pids"] or -1
    if a.memory_swappiness not in (None, "-1"):
        found["swappiness"] = whole("--memory-swappiness", a.memory_swappiness)
    if a.oom_kill_disable:
        found["oom_kill_disable"] = True
    for name in (*_RATES, "device_read_bps", "device_write_bps"):
        rows = [_disk(name, text) for text in getattr(a, name)]
        if rows:
            found[name] = rows
    return found


def _disk(name: str, text: str) -> dict[str, Any]:
    from knarr.cli.spec import sized, whole

    option = "--" + name.replace("_", "-")
    path, colon, value = text.rpartition(":")
    if not colon or not path.startswith("/"):
        raise Invalid(f"{option}: {text!r}", hint="/dev/NAME:VALUE")
    number = sized(option, value) if name.endswith("_bps") else whole(option, value)
    return {"path": path, "value": number}
