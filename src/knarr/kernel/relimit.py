"""Limits of a group whose processes run: written whole or not at all.

Out of scope: which file holds which limit (`cgroups.limits`).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from knarr.kernel import cgroups

if TYPE_CHECKING:
    from knarr.kernel.cgroups import Layout
    from knarr.model.workload import Resources

Files = tuple[tuple[str, str], ...]


def change(layout: Layout, paths: dict[str, str], old: Resources, new: Resources) -> None:
    """Raises OSError after writing the old ones again."""
    before, after = files(layout, paths, old), files(layout, paths, new)
    wanted = tuple(item for item in after if item not in before)
    try:
        write(wanted)
    except OSError:
        touched = {path for path, _ in wanted}
        write(tuple(item for item in before if item[0] in touched))
        raise


def files(layout: Layout, paths: dict[str, str], resources: Resources) -> Files:
    """What `cgroups.limits` has, and "no limit" in so many words for what may be taken back."""
    if not layout.version:
        return ()
    free = _unlimited(layout, paths)
    return tuple({**dict(free), **dict(cgroups.limits(layout, paths, resources))}.items())


def write(wanted: Files) -> None:
    """Files may bound each other (memory with and without swap), so what is refused is tried again."""
    later = []
    for path, value in wanted:
        try:
            cgroups.write(path, value)
        except OSError:
            later.append((path, value))
    for path, value in reversed(later):
        cgroups.write(path, value)


def _unlimited(layout: Layout, paths: dict[str, str]) -> Files:
    if layout.version == 2:
        group = paths[cgroups.V2]
        found = [("memory.max", "max"), ("cpu.max", "max 100000"), ("pids.max", "max"), ("cpuset.cpus", "\n")]
        found += [("memory.swap.max", "max")] if layout.swap else []
        return tuple((f"{group}/{name}", value) for name, value in found)
    rows = [
        ("cpu", "cpu.cfs_quota_us", "-1"),
        ("cpuset", "cpuset.cpus", layout.cpus.strip()),
        ("pids", "pids.max", "max"),
        ("memory", "memory.limit_in_bytes", "-1"),
    ]
    rows += [("memory", "memory.memsw.limit_in_bytes", "-1")] if layout.swap else []
    return tuple((f"{paths[key]}/{name}", value) for key, name, value in rows if key in paths)


def merged(
    old: Resources, memory: int | None, cpus: float | None, cpuset: str | None, pids: int | None
) -> Resources:
    """None keeps; 0, an empty text and -1 take a limit back. Without a word there is a limit of processes,
    so that "none" is a value of its own there.
    """
    changes: dict[str, object] = {}
    for name, value in (("memory", memory), ("cpus", cpus), ("cpuset", cpuset)):
        if value is not None:
            changes[name] = None if value in (0, -1, "") else value
    if pids is not None:
        changes["pids"] = pids or -1
    return dataclasses.replace(old, **changes)  # type: ignore[arg-type]
