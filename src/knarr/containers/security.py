"""Tables of the container wall's security profiles. The default is Docker's, row by row.

Out of scope: the system call list (`kernel.seccomp_profile`).
"""

from __future__ import annotations

import functools
import os
import stat
from dataclasses import dataclass

from knarr.kernel import caps, devices
from knarr.model.errors import Invalid, Unsupported
from knarr.model.workload import Security, SecurityProfile, left_open

_HARDENED = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
)
_PROFILES = {
    SecurityProfile.DEFAULT: (*_HARDENED, "MKNOD", "NET_RAW", "AUDIT_WRITE"),
    SecurityProfile.HARDENED: _HARDENED,
}

MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

DEVICES = devices.WORKLOAD


@functools.lru_cache(maxsize=16)
def capabilities_for(security: Security) -> tuple[str, ...]:
    """docker's arithmetic: the profile, minus `cap_drop`, plus `cap_add`; ALL means all. Raises `Invalid`."""
    if security.privileged:
        return tuple(caps.NAMES)
    add, drop = (_normal(names) for names in (security.cap_add, security.cap_drop))
    base = tuple(caps.NAMES) if "ALL" in add else _PROFILES[security.profile]
    if "ALL" in drop:
        base = tuple(caps.NAMES) if "ALL" in add else ()
    kept = {name for name in base if name not in drop} | (add - {"ALL"})
    return tuple(name for name in caps.NAMES if name in kept)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceNode:
    """A device of the host that one workload may open."""

    name: str
    """below /dev"""
    mode: int
    """with its type"""
    number: int
    access: str


@functools.lru_cache(maxsize=16)
def covered(security: Security, more: tuple[str, ...] = ()) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(masked, read-only) paths: the table's without what `unmask` names, and what `mask` names."""
    if security.privileged or security.system_paths == "unconfined":
        return security.mask, ()
    masked = tuple(path for path in (*MASKED, *more) if not left_open(path, security.unmask))
    return (*masked, *security.mask), tuple(
        path for path in READ_ONLY if not left_open(path, security.unmask)
    )


def own_nodes(wanted: tuple[DeviceNode, ...]) -> tuple[tuple[str, int, int], ...]:
    return tuple((node.name, node.mode, node.number) for node in wanted)


def characters(wanted: tuple[DeviceNode, ...]) -> tuple[tuple[int, int], ...]:
    """What a v2 group's filter lets through besides. Raises `Unsupported` for what it can't tell apart."""
    for node in wanted:
        if not stat.S_ISCHR(node.mode) or not set("rw") <= set(node.access):
            raise Unsupported(
                f"container can't do device '/dev/{node.name}' here: control groups v2 give "
                "character devices only, for reading and writing",
                hint="--privileged gives all devices",
            )
    return tuple((os.major(node.number), os.minor(node.number)) for node in wanted)


def device_rules(group: str, more: tuple[DeviceNode, ...] = ()) -> tuple[tuple[str, str], ...]:
    """(file, value) for a v1 devices group."""
    allow = f"{group}/devices.allow"
    # nodes may be made, which is harmless, but only these opened
    made = ((allow, "c *:* m"), (allow, "b *:* m"))
    opened = ((allow, f"c {major}:{'*' if minor < 0 else minor} rwm") for major, minor in DEVICES)
    own = ((allow, f"{_kind_and_number(node)} {node.access}") for node in more)
    return ((f"{group}/devices.deny", "a"), *made, *opened, *own)


def _kind_and_number(node: DeviceNode) -> str:
    return f"{'c' if stat.S_ISCHR(node.mode) else 'b'} {os.major(node.number)}:{os.minor(node.number)}"


def _normal(names: tuple[str, ...]) -> frozenset[str]:
    found = {name.upper().removeprefix("CAP_") for name in names}
    for name in sorted(found - {"ALL"}):
        if name not in caps.NUMBERS:
            raise Invalid(f"capability {name!r} is unknown", hint="such as NET_ADMIN; see capabilities(7)")
    return frozenset(found)
