"""What the agent is told at its start: the workload as records, and the mounts of its root in order. Pure.

The records' names are those that csrc/agent/ reads. Out of scope: QEMU's own command line (`machines.plan`).
"""

from __future__ import annotations

import ipaddress
import os
import posixpath
import resource
from dataclasses import dataclass, field

from knarr.kernel import devices, limits
from knarr.model.errors import Invalid
from knarr.model.resource import Attachment
from knarr.model.workload import CPU_PERIOD, Mount, MountKind, Process, Resources, left_open

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
_DEFAULT_FLAGS = MS_NOSUID | MS_NODEV | MS_NOEXEC
_MASKED = (
    *(
        f"/proc/{name}"
        for name in ("acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "sched_debug")
    ),
    *(f"/proc/{name}" for name in ("scsi", "timer_list", "timer_stats")),
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/devices/system/cpu/cpu*/thermal_throttle",
)
_PROTECTED = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_TMPFS_FLAGS = {
    "ro": MS_RDONLY,
    "nosuid": MS_NOSUID,
    "nodev": MS_NODEV,
    "noexec": MS_NOEXEC,
    "noatime": 1024,
}
_TMPFS_CLEAR = {"rw": MS_RDONLY, "suid": MS_NOSUID, "dev": MS_NODEV, "exec": MS_NOEXEC}

_DEVICE_FILTER = ("device_filter", devices.compile_filter(devices.WORKLOAD))

Records = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """A bind mount as the guest sees it: a virtiofs device by tag, or one file in it."""

    tag: str
    target: str
    file: str = ""
    read_only: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class GuestInput:
    process: Process
    hostname: str
    capability_mask: int
    seccomp: bytes
    """struct sock_filter array, empty for none"""
    mounts: tuple[Mount, ...] = ()
    folders: tuple[Folder, ...] = ()
    read_only: bool = False
    privileged: bool = False
    system_paths: bool = True
    """mask and protect the paths that Docker does"""
    mask: tuple[str, ...] = ()
    """more paths to cover"""
    unmask: tuple[str, ...] = ()
    """of those paths, what stays open"""
    shm_size: int | None = None
    sysctls: dict[str, str] = field(default_factory=dict)
    stdin: bool = False
    attachment: Attachment | None = None
    resources: Resources = field(default_factory=Resources)
    etc: tuple[tuple[str, bytes], ...] = ()
    """target inside → content"""


def start_records(guest: GuestInput, *, time_ns: int, seed: bytes) -> Records:
    """The START message. `seed`: 64 random bytes for the guest's entropy pool."""
    return (
        ("time", b"%d" % time_ns),
        ("seed", seed),
        ("hostname", guest.hostname.encode()),
        *process_records(guest.process, guest.capability_mask, guest.seccomp),
        ("init", b"%d" % guest.process.init),
        ("stdin", b"%d" % guest.stdin),
        ("read_only", b"%d" % guest.read_only),
        ("folders", b"%d" % bool(guest.folders)),
        *_network(guest.attachment),
        *limit_records(guest.resources),
        *(("etc", _etc_name(target).encode() + b"\0" + content) for target, content in guest.etc),
        *(("mount", item) for item in _mounts(guest)),
        *(("sysctl", f"{name.replace('.', '/')}\0{value}".encode()) for name, value in guest.sysctls.items()),
        *_guards(guest),
    )


def prepare_records(*, network: bool) -> Records:
    """What a template is asked to do ahead of every start of its class."""
    return (("network", b"%d" % network), _DEVICE_FILTER)


def describe(guest: GuestInput) -> tuple[str, ...]:
    """What the agent will do, as text."""
    lines = ["image, pool and writable layer become one root"]
    if guest.attachment is not None:
        lines.append(f"address {guest.attachment.address}/{guest.attachment.prefix} on eth0")
    lines += [f"limit {name} {value.decode()}" for name, value in limit_records(guest.resources)]
    lines += [f"sysctl {name}={value}" for name, value in guest.sysctls.items()]
    lines.append("new namespaces: mount, pid, uts, ipc, cgroup")
    lines += [_describe_mount(item) for item in _mounts(guest)]
    lines += [_describe_guard(*guard) for guard in _guards(guest)]
    lines.append(f"user {guest.process.user or 'root'}, looked up inside")
    return (*lines, f"exec {' '.join(guest.process.args)}")


def _describe_guard(name: str, value: bytes) -> str:
    if name == "device_filter":
        return f"only {len(devices.WORKLOAD)} kinds of devices"
    return f"{name} {value.decode()}"


def _describe_mount(item: bytes) -> str:
    _, kind, _, target, flags, *_ = (os.fsdecode(part) for part in item.split(b"\0"))
    return f"mount {kind} at {target}{' read-only' if int(flags) & MS_RDONLY else ''}"


def idle_records(*, time_ns: int, seed: bytes) -> Records:
    """The START of a machine that only serves archives of a stopped workload."""
    return (("time", b"%d" % time_ns), ("seed", seed), ("idle", b"1"))


def process_records(process: Process, capability_mask: int, seccomp: bytes) -> Records:
    """What START and EXEC share."""
    columns, rows = process.tty_size if len(process.tty_size) == 2 else (80, 24)
    return (
        *(("arg", os.fsencode(arg)) for arg in process.args),
        *(("env", os.fsencode(item)) for item in process.env),
        ("cwd", os.fsencode(process.cwd)),
        ("user", process.user.encode()),
        *(("group", group.encode()) for group in process.groups),
        ("tty", b"%d" % process.tty),
        ("columns", b"%d" % columns),
        ("rows", b"%d" % rows),
        ("capabilities", b"%d" % capability_mask),
        ("no_new_privileges", b"%d" % process.no_new_privileges),
        ("seccomp", seccomp),
        *(("rlimit", _rlimit(item.name, item.soft, item.hard)) for item in process.rlimits),
        *((("oom_score_adj", b"%d" % process.oom_score_adj),) if process.oom_score_adj is not None else ()),
    )


def limit_records(resources: Resources) -> Records:
    """cgroup v2 values; absent = unlimited."""
    records: list[tuple[str, bytes]] = []
    if resources.memory is not None:
        records += [("memory", b"%d" % resources.memory), ("swap", b"0")]
    if resources.memory_reservation is not None:
        records.append(("low", b"%d" % resources.memory_reservation))
    cpu = limits.cpu_max(resources)
    if cpu is not None:
        records.append(("cpu", cpu.encode()))
    if resources.pids is not None and resources.pids > 0:
        records.append(("pids", b"%d" % resources.pids))
    return tuple(records)


def all_limit_records(resources: Resources) -> Records:
    """The same for limits that change: "none" in so many words."""
    free = (
        *(("memory", b"max"), ("swap", b"max"), ("low", b"0")),
        *(("cpu", b"max %d" % CPU_PERIOD), ("pids", b"max")),
    )
    return tuple({**dict(free), **dict(limit_records(resources))}.items())


def _rlimit(name: str, soft: int, hard: int) -> bytes:
    number = getattr(resource, f"RLIMIT_{name.upper()}", None)
    if number is None:
        raise Invalid(f"unknown rlimit {name!r}", hint="such as nofile, nproc or core")
    return b"%d %d %d" % (number, soft, hard)


def _network(attachment: Attachment | None) -> Records:
    if attachment is None:
        return ()
    netmask = ipaddress.IPv4Network(f"0.0.0.0/{attachment.prefix}").netmask
    return (
        ("mac", attachment.mac.encode()),
        ("address", attachment.address.encode()),
        ("netmask", str(netmask).encode()),
        ("gateway", attachment.gateway.encode()),
        ("mtu", b"%d" % attachment.mtu),
    )


def _mount(
    kind: str, source: str, target: str, flags: int = 0, data: str = "", *, shape: str = "", place: str = "in"
) -> bytes:
    return b"\0".join(os.fsencode(item) for item in (place, kind, source, target, str(flags), data, shape))


def _mounts(guest: GuestInput) -> list[bytes]:
    """Docker's mounts, then the user's by depth, as docker sorts them."""
    kernel_flags = _DEFAULT_FLAGS | (0 if guest.privileged else MS_RDONLY)
    found = [
        _mount("proc", "proc", "/proc", _DEFAULT_FLAGS),
        _mount("tmpfs", "tmpfs", "/dev", MS_NOSUID, "mode=755,size=65536k", shape="devices"),
        _mount(
            "devpts", "devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"
        ),
        _mount("sysfs", "sysfs", "/sys", kernel_flags),
        _mount("cgroup2", "cgroup", "/sys/fs/cgroup", kernel_flags),
        _mount("mqueue", "mqueue", "/dev/mqueue", _DEFAULT_FLAGS),
        _mount("tmpfs", "shm", "/dev/shm", _DEFAULT_FLAGS, f"mode=1777,size={guest.shm_size or 64 << 20}"),
    ]
    wanted: list[tuple[str, list[bytes]]] = [
        (target, [_mount("bind", f"/run/etc/{_etc_name(target)}", target, shape="file")])
        for target, _ in guest.etc
    ]
    wanted += [(item.target, [_tmpfs(item)]) for item in guest.mounts if item.kind is MountKind.TMPFS]
    wanted += [(item.target, _folder(item)) for item in guest.folders]
    for _, mounts in sorted(wanted, key=lambda item: posixpath.normpath(item[0]).count("/")):
        found += mounts
    return found


def _tmpfs(mount: Mount) -> bytes:
    flags = _DEFAULT_FLAGS | (MS_RDONLY if mount.read_only else 0)
    data = []
    for option in mount.options:
        if option in _TMPFS_FLAGS:
            flags |= _TMPFS_FLAGS[option]
        elif option in _TMPFS_CLEAR:
            flags &= ~_TMPFS_CLEAR[option]
        else:
            data.append(option)
    return _mount("tmpfs", "tmpfs", mount.target, flags, ",".join(data))


def _folder(folder: Folder) -> list[bytes]:
    flags = MS_RDONLY if folder.read_only else 0
    if not folder.file:
        return [_mount("virtiofs", folder.tag, folder.target, flags)]
    private = f"/run/{folder.tag}"
    return [
        _mount("virtiofs", folder.tag, private, flags, place="out"),
        _mount("bind", f"{private}/{folder.file}", folder.target, flags, shape="file"),
    ]


def _guards(guest: GuestInput) -> Records:
    if guest.privileged:
        return ()
    usual = (("mask", _MASKED), ("protect", _PROTECTED)) if guest.system_paths else ()
    found = [(name, path) for name, group in usual for path in group if not left_open(path, guest.unmask)]
    found += [("mask", path) for path in guest.mask]
    return (*((name, path.encode()) for name, path in found), _DEVICE_FILTER)


def _etc_name(target: str) -> str:
    return posixpath.basename(target)
