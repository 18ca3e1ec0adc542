"""Control groups, both dialects: where they are mounted, a workload's folders, use and end.

A workload's group is `/knarr_<instance>/<id>` in every v1 hierarchy, or once in the v2 tree. Making and
removing folders are steps. Out of scope: limits (`kernel.limits`).
"""

from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import dataclass

V1_CONTROLLERS = ("memory", "pids", "cpuacct", "cpu", "cpuset", "devices", "freezer", "blkio")
V2 = "unified"
ENGINE = "engine"
"""the engine's own group in a scope that a service manager gave it (`keeper.scope`)"""
_NO_LIMIT_V1 = 1 << 62
_RETRIES = 40
_FREEZE_RETRIES = 1000
_PAUSE = 0.002


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where this host's groups are."""

    version: int
    """1 (also hybrid), 2, or 0: none usable"""
    roots: dict[str, str]
    """controller → mount point (v1), or `unified` → mount point (v2)"""
    controllers: tuple[str, ...] = ()
    """what can be limited"""
    cpus: str = "0"
    """all that the root group may use: a v1 cpuset starts empty, and a v2 one can't be emptied again"""
    mems: str = "0"
    swap: bool = False
    """swap is accounted"""
    weight: str = ""
    """name of the file that holds a group's weight at disks; empty = this kernel has none"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What a group uses now; 0 also for what this host can't tell."""

    memory: int = 0
    """bytes, without page cache that could go at once, as docker shows it"""
    memory_limit: int = 0
    """0 = none"""
    cpu_ns: int = 0
    pids: int = 0
    read_bytes: int = 0
    write_bytes: int = 0


def unified_root(mounts: str = "/proc/self/mounts") -> str:
    """Where the v2 tree is mounted, if it has the controllers; else empty."""
    v2 = _mounted(mounts)[1]
    return v2 if v2 and "memory" in _controllers(v2) else ""


def detect(mounts: str = "/proc/self/mounts", own: str = "/proc/self/cgroup") -> Layout:
    """The layout in use: v2 where it has the controllers, else v1 with what is mounted.

    In a scope of the engine's own, v2 begins there.
    """
    v1, v2 = _mounted(mounts)
    if unified_root(mounts):
        v2 += _delegated(own)
        controllers = _controllers(v2)
        return Layout(
            version=2,
            roots={V2: v2},
            controllers=controllers,
            cpus=_read(f"{v2}/cpuset.cpus.effective") or "0",
            mems=_read(f"{v2}/cpuset.mems.effective") or "0",
            swap=_has_swap_v2(),
            weight=_weight_v2(v2),
        )
    if not v1:
        return Layout(version=0, roots={})
    cpuset, memory = v1.get("cpuset"), v1.get("memory")
    return Layout(
        version=1,
        roots=v1,
        controllers=tuple(v1),
        cpus=(_read(f"{cpuset}/cpuset.cpus") if cpuset else None) or "0",
        mems=(_read(f"{cpuset}/cpuset.mems") if cpuset else None) or "0",
        swap=memory is not None and os.path.exists(f"{memory}/memory.memsw.usage_in_bytes"),
        weight=_weight_v1(v1.get("blkio", "/nowhere")),
    )


def group_paths(layout: Layout, instance: str, workload: str) -> dict[str, str]:
    """controller → the workload's folder; a v1 hierarchy of two controllers gives the same one twice."""
    return {key: f"{root}/knarr_{instance}/{workload}" for key, root in layout.roots.items()}


def parent_files(layout: Layout, instance: str) -> tuple[tuple[str, str], ...]:
    """What the instance's own groups need before a workload's group can be made below them."""
    if layout.version == 2:
        root = layout.roots[V2]
        wanted = [name for name in ("memory", "pids", "cpu", "cpuset", "io") if name in layout.controllers]
        return tuple(
            (f"{folder}/cgroup.subtree_control", f"+{name}")
            for folder in (root, f"{root}/knarr_{instance}")
            for name in wanted
        )
    cpuset = layout.roots.get("cpuset")
    if cpuset is None:
        return ()
    group = f"{cpuset}/knarr_{instance}"
    # clone_children: a new child starts with its parent's cpus and mems instead of none
    return (
        (f"{group}/cpuset.cpus", layout.cpus),
        (f"{group}/cpuset.mems", layout.mems),
        (f"{group}/cgroup.clone_children", "1"),
    )


def entry_files(layout: Layout, paths: dict[str, str]) -> tuple[str, ...]:
    """The files to write `0` into, to move the writing (single-threaded) process.

    v1's `tasks` moves one thread and so spares the grace period that `cgroup.procs` waits for (6 to 10 ms).
    """
    if layout.version == 2:
        return (f"{paths[V2]}/cgroup.procs",)
    return tuple(f"{path}/tasks" for path in dict.fromkeys(paths.values()))


def create(folder: str) -> None:
    """Make one group. Raises FileNotFoundError while its parent is missing."""
    try:
        os.mkdir(folder, 0o755)
    except FileExistsError:
        return
    # whatever the umask: a workload's users read their groups, and the root of a user namespace mounts them
    os.chmod(folder, 0o755)


def write(path: str, *values: str) -> None:
    """Each value by a write of its own, as lists such as `devices.allow` want them."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for value in values:
            os.write(fd, value.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def remove(folder: str) -> None:
    """Remove a group and those made below it; retried for a bounded time while its processes go away."""
    for left in range(_RETRIES, -1, -1):
        try:
            os.rmdir(folder)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or not left:
                raise
        for name in _children(folder):
            remove(f"{folder}/{name}")
        time.sleep(_PAUSE)


def remove_instance(layout: Layout, instance: str) -> None:
    """Remove the instance's own groups, at its end: no workload may be left. Raises EBUSY otherwise."""
    for root in dict.fromkeys(layout.roots.values()):
        remove(f"{root}/knarr_{instance}")


def stats(paths: dict[str, str]) -> Usage:
    """The use of a workload's group; a group that is gone gives zeros."""
    if V2 in paths:
        return _stats_v2(paths[V2])
    limit = _number(paths, "memory", "memory.limit_in_bytes")
    read, written = _block_v1(paths.get("blkio", ""))
    return Usage(
        memory=_working_set_v1(paths),
        memory_limit=0 if limit >= _NO_LIMIT_V1 else limit,
        cpu_ns=_number(paths, "cpuacct", "cpuacct.usage"),
        pids=_number(paths, "pids", "pids.current"),
        read_bytes=read,
        write_bytes=written,
    )


def oom_killed(paths: dict[str, str]) -> bool:
    """The kernel killed a process of the group for its memory limit."""
    path = f"{paths[V2]}/memory.events" if V2 in paths else f"{paths.get('memory', '')}/memory.oom_control"
    return _table(path).get("oom_kill", 0) > 0


def pids(paths: dict[str, str]) -> tuple[int, ...]:
    """The processes of the group, in the caller's pid namespace."""
    folder = paths.get(V2) or paths.get("pids") or next(iter(paths.values()), "")
    return tuple(int(word) for word in (_read(f"{folder}/cgroup.procs") or "").split())


def kill_all(paths: dict[str, str]) -> None:
    """SIGKILL to every process of the group (cgroup.kill on v2 since 5.14, else a loop until it is empty)."""
    if V2 in paths:
        try:
            write(f"{paths[V2]}/cgroup.kill", "1")
            return
        except OSError:
            pass
    for _ in range(_RETRIES):
        alive = pids(paths)
        if not alive:
            return
        for pid in alive:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(_PAUSE)


def remove_whole(groups: tuple[str, ...]) -> None:
    """Kill what is in these groups of one workload, then remove them. A process that shares another's pid
    namespace leaves its children behind.
    """
    busy = []
    for folder in groups:
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            busy.append(folder)
    for folder in busy:
        _try_write(f"{folder}/pids.max", "0")
        # a frozen process of v1 does not even die
        _try_write(f"{folder}/freezer.state", "THAWED")
    for folder in busy:
        if not _try_write(f"{folder}/cgroup.kill", "1"):
            _kill_group(folder)
        remove(folder)


def _kill_group(folder: str) -> None:
    for _ in range(_RETRIES):
        alive = [(group, pid) for group in _nested(folder) for pid in _members(group)]
        if not alive:
            return
        for group, pid in alive:
            _kill_member(group, pid)
        time.sleep(_PAUSE)


def _nested(folder: str) -> list[str]:
    found = [folder]
    for group in found:
        found += [f"{group}/{name}" for name in _children(group)]
    return found


def _try_write(path: str, value: str) -> bool:
    try:
        write(path, value)
    except OSError:
        return False
    return True


def _members(folder: str) -> list[int]:
    return [int(word) for word in (_read(f"{folder}/cgroup.procs") or "").split()]


def _kill_member(folder: str, pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        # still the one that was read: its number may be another's by now
        if pid in _members(folder):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)


def freeze(paths: dict[str, str], *, frozen: bool) -> None:
    """Stop or continue every process of the group; returns when they have stopped (bounded)."""
    if V2 in paths:
        state, word = f"{paths[V2]}/cgroup.freeze", "1" if frozen else "0"
    else:
        state, word = f"{paths['freezer']}/freezer.state", "FROZEN" if frozen else "THAWED"
    write(state, word)
    for _ in range(_FREEZE_RETRIES):
        if not frozen or _is_frozen(paths):
            return
        time.sleep(_PAUSE)
        # v1 wants to be asked again
        write(state, word)
    freeze(paths, frozen=False)
    raise OSError(errno.EBUSY, "processes don't freeze", state)


def _is_frozen(paths: dict[str, str]) -> bool:
    if V2 in paths:
        return _table(f"{paths[V2]}/cgroup.events").get("frozen") == 1
    return (_read(f"{paths['freezer']}/freezer.state") or "").strip() == "FROZEN"


def _controllers(folder: str) -> tuple[str, ...]:
    return tuple((_read(f"{folder}/cgroup.controllers") or "").split())


def _delegated(own: str) -> str:
    """The path of the scope in which this process stands in the engine's group; empty without one."""
    path = next((line[3:] for line in (_read(own) or "").splitlines() if line.startswith("0::")), "")
    scope, _, leaf = path.rpartition("/")
    name = scope.rpartition("/")[2]
    ours = leaf == ENGINE and name.startswith("knarr-") and name.endswith(".scope")
    return scope if ours else ""


def _mounted(mounts: str) -> tuple[dict[str, str], str]:
    found: dict[str, str] = {}
    unified = ""
    for line in (_read(mounts) or "").splitlines():
        fields = line.split(" ")
        if len(fields) < 4:
            continue
        if fields[2] == "cgroup2":
            unified = unified or fields[1]
        elif fields[2] == "cgroup":
            for name in set(fields[3].split(",")) & set(V1_CONTROLLERS):
                found.setdefault(name, fields[1])
    return {name: found[name] for name in V1_CONTROLLERS if name in found}, unified


def _has_swap_v2() -> bool:
    """Part of the memory controller since 5.8; the root group has no such file that could be looked for."""
    return os.path.exists("/proc/swaps") and "swapaccount=0" not in (_read("/proc/cmdline") or "")


def _weight_v1(root: str) -> str:
    """bfq's own files are in groups below the root only; its counters tell of them."""
    if os.path.exists(f"{root}/blkio.weight"):
        return "blkio.weight"
    return "blkio.bfq.weight" if os.path.exists(f"{root}/blkio.bfq.io_serviced") else ""


def _weight_v2(root: str) -> str:
    if any("bfq" in schedulers(f"/sys/block/{name}") for name in _names("/sys/block")):
        return "io.bfq.weight"
    # its model of costs is set at the root only
    return "io.weight" if os.path.exists(f"{root}/io.cost.model") else ""


def schedulers(disk: str) -> str:
    """The schedulers of a disk's folder in sysfs, the one in use in brackets."""
    return _read(f"{disk}/queue/scheduler") or ""


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _children(folder: str) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return None


def _number(paths: dict[str, str], controller: str, name: str) -> int:
    text = (_read(f"{paths.get(controller, '')}/{name}") or "").strip()
    return int(text) if text.isdigit() else 0


def _table(path: str) -> dict[str, int]:
    """Rows of a name and a number."""
    rows = (line.split() for line in (_read(path) or "").splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def _working_set_v1(paths: dict[str, str]) -> int:
    used = _number(paths, "memory", "memory.usage_in_bytes")
    idle = _table(f"{paths.get('memory', '')}/memory.stat").get("total_inactive_file", 0)
    return max(used - idle, 0)


def _block_v1(folder: str) -> tuple[int, int]:
    totals = {"Read": 0, "Write": 0}
    for name in ("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"):
        text = _read(f"{folder}/{name}")
        if text is None:
            continue
        for fields in (line.split() for line in text.splitlines()):
            if len(fields) == 3 and fields[1] in totals:
                totals[fields[1]] += int(fields[2])
        break
    return totals["Read"], totals["Write"]


def _stats_v2(folder: str) -> Usage:
    at = {V2: folder}
    totals = {"rbytes": 0, "wbytes": 0}
    for word in (_read(f"{folder}/io.stat") or "").split():
        key, _, value = word.partition("=")
        if key in totals and value.isdigit():
            totals[key] += int(value)
    idle = _table(f"{folder}/memory.stat").get("inactive_file", 0)
    return Usage(
        memory=max(_number(at, V2, "memory.current") - idle, 0),
        memory_limit=_number(at, V2, "memory.max"),
        cpu_ns=_table(f"{folder}/cpu.stat").get("usage_usec", 0) * 1000,
        pids=_number(at, V2, "pids.current"),
        read_bytes=totals["rbytes"],
        write_bytes=totals["wbytes"],
    )
