"""Namespaces shared between workloads or with the host: what goes together, whom a name means, who must run.

The refusals are docker's. Out of scope: joining (the container wall's plan), user ids (`engine.userns`).
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

from knarr.model.errors import Conflict, Invalid, Unsupported
from knarr.model.namespaces import CONTAINER, UserMode, joined
from knarr.model.workload import Dns, Isolation, NetworkMode

if TYPE_CHECKING:
    from knarr.engine.driver import Workload
    from knarr.engine.table import Table
    from knarr.model.workload import WorkloadSpec

_MODES = {
    "pid": ("host",),
    "ipc": ("private", "shareable", "none", "host"),
    "uts": ("host",),
    "cgroup": ("private", "host"),
}
_JOINABLE = ("pid", "ipc")
_NOUNS = {"pid": "PID", "ipc": "IPC", "uts": "UTS", "cgroup": "cgroup"}
_OPTIONS = {"pid": "--pid", "ipc": "--ipc", "uts": "--uts", "cgroup": "--cgroupns"}


def check(spec: WorkloadSpec) -> None:
    """Raises `Invalid`, `Unsupported`."""
    for kind, modes in _MODES.items():
        _mode(kind, getattr(spec.sharing, kind), modes)
    if (spec.network is NetworkMode.CONTAINER) != bool(joined(spec.sharing.network)):
        raise Invalid("network container names no workload", hint="--network container:NAME")
    if spec.sharing.uts == "host" and spec.hostname:
        raise _conflict("hostname and the UTS mode", "the host has a name already")
    if spec.network is NetworkMode.CONTAINER:
        _network(spec)
    _ipc(spec)


def _mode(kind: str, mode: str, known: tuple[str, ...]) -> None:
    if not mode or mode in known or (kind in _JOINABLE and joined(mode)):
        return
    names = ", ".join((*known, f"{CONTAINER}NAME") if kind in _JOINABLE else known)
    raise Invalid(f"{_NOUNS[kind]} mode {mode[:100]!r} is unknown", hint=f"{_OPTIONS[kind]} takes {names}")


def _network(spec: WorkloadSpec) -> None:
    found = {
        "hostname and the network mode": spec.hostname,
        "port publishing and the container type network mode": spec.ports,
        "dns and the network mode": spec.dns != Dns(),
        "custom host-to-IP mapping and the network mode": spec.extra_hosts,
    }
    for what, given in found.items():
        if given:
            raise _conflict(what, "set it where the network is made: at the workload that is joined")


def _ipc(spec: WorkloadSpec) -> None:
    mode = spec.sharing.ipc
    foreign = mode == "host" or bool(joined(mode))
    if spec.shm_size is not None and (foreign or mode == "none"):
        raise _conflict("shm size and the IPC mode", f"/dev/shm is not this workload's with --ipc {mode}")
    for name in spec.sysctls:
        if foreign and not name.startswith("net."):
            raise Unsupported(f"sysctl {name!r} would be another's with --ipc {mode}")


def check_users(spec: WorkloadSpec, mode: UserMode) -> None:
    """What no workload in a user namespace can have, as docker refuses it. Raises `Invalid`."""
    if mode is UserMode.HOST:
        return
    hint = "--userns host"
    if spec.security.privileged:
        raise Invalid("privileged mode and a user namespace exclude each other", hint=hint)
    if spec.network is NetworkMode.HOST:
        raise Invalid("the host's network can't be shared from within a user namespace", hint=hint)
    for kind in ("pid", "ipc"):
        if getattr(spec.sharing, kind) == "host":
            raise Invalid(
                f"the host's {_NOUNS[kind]} namespace can't be shared from within a user namespace", hint=hint
            )


def refuse_machine(spec: WorkloadSpec) -> None:
    """A machine has a kernel of its own. Raises `Unsupported` naming wall and option."""
    wall = spec.isolation.value
    given = {_OPTIONS[kind]: getattr(spec.sharing, kind) for kind in _MODES}
    given["--network"] = spec.sharing.network
    for option, mode in given.items():
        if mode and mode != "private":
            raise Unsupported(
                f"isolation {wall} can't do {option} {mode}: a machine's namespaces are its own kernel's",
                hint="use --isolation container",
            )
    if spec.userns is not None and spec.userns.mode is not UserMode.HOST:
        raise Unsupported(
            f"isolation {wall} can't do --userns {spec.userns.mode.value}: its kernel is the wall, and root "
            "inside is nobody on this host already",
            hint="leave it away, or use --isolation container",
        )


def _conflict(what: str, hint: str) -> Invalid:
    return Invalid(f"conflicting options: {what}", hint=hint)


def resolve(spec: WorkloadSpec, table: Table) -> WorkloadSpec:
    """Names become ids: who is joined stays so when renamed. Raises `NotFound`, `Conflict`."""
    sharing = spec.sharing
    if spec.isolation is not Isolation.CONTAINER:
        refuse_machine(spec)
    if not sharing.joins():
        return spec
    found = {}
    for kind in ("pid", "ipc", "network"):
        name = joined(getattr(sharing, kind))
        if name:
            found[kind] = CONTAINER + _donor(table, name, kind).id
    return dataclasses.replace(spec, sharing=dataclasses.replace(sharing, **found))


def _donor(table: Table, name: str, kind: str) -> Workload:
    w = table.find(name).w
    if w.spec.isolation is not Isolation.CONTAINER:
        wall = w.spec.isolation.value
        raise Unsupported(f"{kind} of {w.name!r} can't be joined: isolation {wall} has it inside the machine")
    if kind == "ipc" and w.spec.sharing.ipc not in ("shareable", "host"):
        if joined(w.spec.sharing.ipc):
            return _donor(table, joined(w.spec.sharing.ipc), kind)
        raise Conflict(f"the IPC of {w.name!r} is not shareable", hint="start that one with --ipc shareable")
    if kind == "network" and w.spec.network is NetworkMode.CONTAINER:
        return _donor(table, joined(w.spec.sharing.network), kind)
    return w


def hostname(spec: WorkloadSpec, workload_id: str, table: Table) -> str:
    """Of a workload that has none of its own: the host's, or that of whose network it joins."""
    donor = joined(spec.sharing.network)
    if donor:
        return table.find(donor).w.hostname
    hosts = spec.network is NetworkMode.HOST or spec.sharing.uts == "host"
    if hosts and spec.isolation is Isolation.CONTAINER:
        return os.uname().nodename
    return workload_id[:12]


def require(table: Table, w: Workload) -> None:
    """Whoever is joined must run. Raises `Conflict`, `NotFound`."""
    for kind, workload_id in w.spec.sharing.joins().items():
        donor = table.find(workload_id).w
        if not donor.status.running:
            noun = "network" if kind == "net" else _NOUNS[kind]
            raise Conflict(
                f"workload {w.name!r} can't join the {noun} namespace of {donor.name!r}: it does not run",
                hint=f"it is {donor.status.value}: start it first",
            )
