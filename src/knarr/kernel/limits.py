"""A workload's limits as files of its control groups, both dialects. Pure: values for a plan to hold.

Conversions between the dialects are the OCI runtime specification's. Out of scope: groups themselves
(`kernel.cgroups`), limits that change (`kernel.relimit`), which disk a path is (the caller brings numbers).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from knarr.kernel.cgroups import V2
from knarr.model.workload import CPU_PERIOD

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from knarr.kernel.cgroups import Layout
    from knarr.model.workload import Resources

Files = tuple[tuple[str, str], ...]
DEFAULT_PIDS = 4096
RATES = ("device_read_bps", "device_write_bps", "device_read_iops", "device_write_iops")
_IO_MAX = dict(zip(RATES, ("rbps", "wbps", "riops", "wiops"), strict=True))


def files(
    layout: Layout, paths: Mapping[str, str], wanted: Resources, disks: Mapping[str, str] | None = None
) -> Files:
    """(file, value) to write, in order. `disks`: path → MAJOR:MINOR; a disk without one is left out."""
    if layout.version == 2:
        rows = [(V2, name, value) for name, value in _v2(layout, wanted, disks or {})]
    else:
        rows = list(_v1(layout, wanted, disks or {}))
    return tuple((f"{paths[key]}/{name}", value) for key, name, value in rows if key in paths)


def free(layout: Layout, paths: Mapping[str, str]) -> Files:
    """No limit, in so many words, of all that a change may take back."""
    if layout.version == 2:
        rows = [(V2, name, value) for name, value in _free_v2(layout)]
    else:
        rows = _free_v1(layout)
    return tuple((f"{paths[key]}/{name}", value) for key, name, value in rows if key in paths)


def lacking(layout: Layout, wanted: Resources) -> tuple[str, str] | None:
    """(option, reason) of the first wish that this host's controllers can't grant."""
    v2 = layout.version == 2
    needs = (
        ("memory-swap", wanted.memory_swap, layout.swap, "this kernel does not account swap"),
        ("memory-swappiness", wanted.swappiness, not v2, "cgroup v2 has no such setting"),
        ("oom-kill-disable", wanted.oom_kill_disable or None, not v2, "cgroup v2 has no such setting"),
        ("blkio-weight", _weighed(wanted), bool(layout.weight), "this kernel's disks have no bfq"),
    )
    for option, value, can, reason in needs:
        if value is not None and not can:
            return option, reason
    for option, controller in _controllers(wanted, "io" if v2 else "blkio"):
        if controller not in layout.controllers:
            return option, f"this host has no {controller} controller"
    return None


def _weighed(wanted: Resources) -> object:
    return wanted.blkio_weight if wanted.blkio_weight is not None else wanted.blkio_weight_device or None


def _controllers(wanted: Resources, disk: str) -> Iterator[tuple[str, str]]:
    rows = (
        ("memory", "memory", wanted.memory),
        ("memory-reservation", "memory", wanted.memory_reservation),
        ("cpus", "cpu", wanted.cpus),
        ("cpu-quota", "cpu", wanted.cpu_quota),
        ("cpu-period", "cpu", wanted.cpu_period),
        ("cpu-shares", "cpu", wanted.cpu_shares),
        ("cpuset-cpus", "cpuset", wanted.cpuset),
        ("cpuset-mems", "cpuset", wanted.mems),
        ("pids-limit", "pids", wanted.pids),
        *((name.replace("_", "-"), disk, getattr(wanted, name) or None) for name in RATES),
    )
    return ((option, controller) for option, controller, value in rows if value is not None)


def quota(wanted: Resources) -> tuple[int, int] | None:
    """(microseconds or -1, period) of CPU time; None = nothing is said."""
    if wanted.cpus is not None:
        return max(1000, int(wanted.cpus * CPU_PERIOD)), CPU_PERIOD
    if wanted.cpu_quota is None and wanted.cpu_period is None:
        return None
    return wanted.cpu_quota or -1, wanted.cpu_period or CPU_PERIOD


def cpu_max(wanted: Resources) -> str | None:
    """The same as a value of v2's cpu.max."""
    found = quota(wanted)
    return None if found is None else f"{'max' if found[0] < 0 else found[0]} {found[1]}"


def cpu_weight(shares: int) -> int:
    """2 … 262144 → 1 … 10000."""
    return 1 + (shares - 2) * 9999 // 262142


def swap_max(wanted: Resources) -> str | None:
    """v2 limits swap by itself, not together with the memory; without a word it is as much as the memory."""
    if wanted.memory is None:
        return None
    if wanted.memory_swap is None:
        return str(wanted.memory)
    return "max" if wanted.memory_swap < 0 else str(wanted.memory_swap - wanted.memory)


def _pids(wanted: Resources) -> str:
    """A fork bomb must not take the host's last pid: there is a limit unless -1 says that there is none."""
    if wanted.pids is None:
        return str(DEFAULT_PIDS)
    return "max" if wanted.pids < 0 else str(wanted.pids)


def _v1(layout: Layout, wanted: Resources, disks: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    yield from _memory_v1(layout, wanted)
    cpu = quota(wanted)
    if cpu is not None:
        yield "cpu", "cpu.cfs_period_us", str(cpu[1])
        yield "cpu", "cpu.cfs_quota_us", str(cpu[0])
    if wanted.cpu_shares is not None:
        yield "cpu", "cpu.shares", str(wanted.cpu_shares)
    if wanted.cpuset is not None:
        yield "cpuset", "cpuset.cpus", wanted.cpuset
    if wanted.mems is not None:
        yield "cpuset", "cpuset.mems", wanted.mems
    yield "pids", "pids.max", _pids(wanted)
    if wanted.blkio_weight is not None:
        yield "blkio", layout.weight, str(wanted.blkio_weight)
    for name, path, value in _disk_limits(wanted):
        if path in disks:
            file = f"{layout.weight}_device" if name == "blkio_weight_device" else _throttle(name)
            yield "blkio", file, f"{disks[path]} {value}"


def _memory_v1(layout: Layout, wanted: Resources) -> Iterator[tuple[str, str, str]]:
    if wanted.memory is not None:
        yield "memory", "memory.limit_in_bytes", str(wanted.memory)
        if layout.swap:
            both = 2 * wanted.memory if wanted.memory_swap is None else wanted.memory_swap
            yield "memory", "memory.memsw.limit_in_bytes", str(both)
    if wanted.memory_reservation is not None:
        yield "memory", "memory.soft_limit_in_bytes", str(wanted.memory_reservation)
    if wanted.swappiness is not None:
        yield "memory", "memory.swappiness", str(wanted.swappiness)
    if wanted.oom_kill_disable:
        yield "memory", "memory.oom_control", "1"


def _throttle(name: str) -> str:
    """`device_read_bps` → its file."""
    return f"blkio.throttle.{name.removeprefix('device_')}_device"


def _disk_limits(wanted: Resources) -> Iterator[tuple[str, str, int]]:
    for name in ("blkio_weight_device", *RATES):
        for item in getattr(wanted, name):
            yield name, item.path, item.value


def _v2(layout: Layout, wanted: Resources, disks: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if wanted.memory is not None:
        yield "memory.max", str(wanted.memory)
    swap = swap_max(wanted)
    if swap is not None and layout.swap:
        yield "memory.swap.max", swap
    if wanted.memory_reservation is not None:
        yield "memory.low", str(wanted.memory_reservation)
    cpu = cpu_max(wanted)
    if cpu is not None:
        yield "cpu.max", cpu
    if wanted.cpu_shares is not None:
        yield "cpu.weight", str(cpu_weight(wanted.cpu_shares))
    if wanted.cpuset is not None:
        yield "cpuset.cpus", wanted.cpuset
    if wanted.mems is not None:
        yield "cpuset.mems", wanted.mems
    if "pids" in layout.controllers:
        yield "pids.max", _pids(wanted)
    yield from _disks_v2(layout, wanted, disks)


def _disks_v2(layout: Layout, wanted: Resources, disks: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if wanted.blkio_weight is not None:
        yield layout.weight, str(_io_weight(layout, wanted.blkio_weight))
    for name, path, value in _disk_limits(wanted):
        if path in disks:
            if name in _IO_MAX:
                yield "io.max", f"{disks[path]} {_IO_MAX[name]}={value}"
            else:
                yield layout.weight, f"{disks[path]} {_io_weight(layout, value)}"


def _io_weight(layout: Layout, weight: int) -> int:
    """bfq takes the value as it is, io.weight has a range of its own: 10 … 1000 → 1 … 10000."""
    return 1 + (weight - 10) * 9999 // 990 if layout.weight == "io.weight" else weight


def _free_v2(layout: Layout) -> list[tuple[str, str]]:
    rows = [("memory.max", "max"), ("memory.low", "0")]
    rows += [("memory.swap.max", "max")] if layout.swap else []
    rows += [("cpu.max", f"max {CPU_PERIOD}"), ("cpu.weight", "100"), ("pids.max", "max")]
    # a group with processes takes no empty list
    rows += [("cpuset.cpus", layout.cpus.strip()), ("cpuset.mems", layout.mems.strip())]
    return rows + ([(layout.weight, "100")] if layout.weight else [])


def _free_v1(layout: Layout) -> list[tuple[str, str, str]]:
    rows = [("memory", "memory.limit_in_bytes", "-1"), ("memory", "memory.soft_limit_in_bytes", "-1")]
    rows += [("memory", "memory.memsw.limit_in_bytes", "-1")] if layout.swap else []
    rows += [
        ("cpu", "cpu.cfs_period_us", str(CPU_PERIOD)),
        ("cpu", "cpu.cfs_quota_us", "-1"),
        ("cpu", "cpu.shares", "1024"),
        ("cpuset", "cpuset.cpus", layout.cpus.strip()),
        ("cpuset", "cpuset.mems", layout.mems.strip()),
        ("pids", "pids.max", "max"),
    ]
    standard = "100" if "bfq" in layout.weight else "500"
    return rows + ([("blkio", layout.weight, standard)] if layout.weight else [])
