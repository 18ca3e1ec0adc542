"""Which namespaces a workload shares, and how its user ids are mapped, in docker's and podman's words."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from knarr.model.errors import Invalid

CONTAINER = "container:"
"""prefix of a mode that joins another workload's namespace; its id follows"""


def joined(mode: str) -> str:
    """The workload that `mode` joins; empty = none."""
    return mode.removeprefix(CONTAINER) if mode.startswith(CONTAINER) else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharing:
    """One mode per namespace; empty = its own, private one."""

    pid: str = ""
    """`host` or `container:ID`"""
    ipc: str = ""
    """`private`, `shareable`, `none`, `host` or `container:ID`"""
    uts: str = ""
    """`host`"""
    cgroup: str = ""
    """`private` or `host`"""
    network: str = ""
    """`container:ID`, with `NetworkMode.CONTAINER`"""

    def joins(self) -> dict[str, str]:
        """Kind of namespace (pid, ipc, net) → id of the workload whose one it shares."""
        modes = {"pid": self.pid, "ipc": self.ipc, "net": self.network}
        return {kind: joined(mode) for kind, mode in modes.items() if joined(mode)}


class UserMode(enum.Enum):
    HOST = "host"
    """no namespace: root inside is the host's"""
    AUTO = "auto"
    """a range of host ids of the workload's own"""
    KEEP_ID = "keep-id"
    """the same, but one user of the host has an id inside too"""
    REMAP = "remap"
    """one range for all workloads that ask for it"""


@dataclass(frozen=True, kw_only=True, slots=True)
class UserNamespace:
    """`--userns`. None = the mode's default."""

    mode: UserMode = UserMode.HOST
    size: int | None = None
    """ids inside, from 0 on"""
    start: int | None = None
    """remap: the first id on the host; None = the instance's own range"""
    uid: int | None = None
    """keep-id: which id inside the host's user gets; None = the same"""
    gid: int | None = None
    owner_uid: int | None = None
    """keep-id: the host's user"""
    owner_gid: int | None = None


Extent = tuple[int, int, int]
"""first id inside, first id on the host, how many"""


@dataclass(frozen=True, kw_only=True, slots=True)
class IdMap:
    """A user namespace's maps, as /proc/PID/uid_map and gid_map have them."""

    uids: tuple[tuple[int, ...], ...]
    gids: tuple[tuple[int, ...], ...]

    @property
    def root(self) -> tuple[int, int]:
        """User and group on the host that are 0 inside."""
        return host_id(self.uids, 0), host_id(self.gids, 0)


def host_id(extents: tuple[tuple[int, ...], ...], inside: int) -> int:
    """The host's id for one inside. Raises ValueError when it is not mapped."""
    for first, outside, count in extents:
        if first <= inside < first + count:
            return outside + inside - first
    raise ValueError(f"id {inside} is not mapped")


def inside_id(extents: tuple[tuple[int, ...], ...], host: int, otherwise: int = 65534) -> int:
    """The id inside for the host's; `otherwise` when it is not mapped, as the kernel shows it."""
    for first, outside, count in extents:
        if outside <= host < outside + count:
            return first + host - outside
    return otherwise


_FORMS = "host, auto[:size=N], keep-id[:uid=N,gid=N], remap[:START:SIZE]"
_LAST_ID = (1 << 31) - 1


def parse_userns(text: str) -> UserNamespace:
    """`--userns`. Raises `Invalid`. Whom keep-id keeps is the caller's to add."""
    name, colon, rest = text.partition(":")
    modes = {mode.value: mode for mode in UserMode}
    if name not in modes or (colon and name == "host"):
        raise Invalid(f"user namespace {text[:100]!r} is unknown", hint=_FORMS)
    mode = modes[name]
    if not colon:
        return UserNamespace(mode=mode)
    if mode is UserMode.REMAP:
        start, _, size = rest.partition(":")
        return UserNamespace(mode=mode, start=_number(text, start), size=_number(text, size))
    known = ("size",) if mode is UserMode.AUTO else ("uid", "gid", "size")
    values: dict[str, int] = {}
    for item in rest.split(","):
        key, _, value = item.partition("=")
        if key not in known:
            raise Invalid(f"user namespace {text[:100]!r}: {key[:40]!r} is unknown", hint=_FORMS)
        values[key] = _number(text, value)
    return UserNamespace(mode=mode, size=values.get("size"), uid=values.get("uid"), gid=values.get("gid"))


def _number(text: str, value: str) -> int:
    if value.isascii() and value.isdigit() and len(value) <= 10 and int(value) <= _LAST_ID:
        return int(value)
    raise Invalid(f"user namespace {text[:100]!r}: {value[:40]!r} is not a number of ids", hint=_FORMS)
