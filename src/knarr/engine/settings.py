"""Checks of what a workload's own namespaces are set to: sysctls, hosts, resolvers, shared memory. Pure.

Out of scope: writing them (the walls) and what a wall can't do (its driver's `check`).
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
from typing import TYPE_CHECKING

from knarr.model.errors import Invalid, Unsupported
from knarr.model.workload import NetworkMode

if TYPE_CHECKING:
    from knarr.model.workload import Device, Dns, WorkloadSpec

_SYSCTL = re.compile(r"[a-z0-9_-]+([.][A-Za-z0-9_-]+)+", re.ASCII)
_IPC = frozenset(
    f"kernel.{name}"
    for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)
_WORD = re.compile(r"[A-Za-z0-9._:-]{1,253}", re.ASCII)
_MAX_VALUE = 4096
_MIN_SHM = 4096


def check(spec: WorkloadSpec) -> None:
    """Raises `Invalid`, `Unsupported`."""
    for name, value in spec.sysctls.items():
        _sysctl(name, value, spec.network)
    for device in spec.devices:
        _device(device)
    for text in spec.extra_hosts:
        _host(text)
    _dns(spec.dns)
    _paths(spec.security.mask, spec.security.unmask)
    if spec.shm_size is not None and spec.shm_size < _MIN_SHM:
        raise Invalid(f"shm size {spec.shm_size} is below {_MIN_SHM}", hint="such as 256m")
    if spec.security.system_paths not in ("default", "unconfined"):
        raise Invalid(
            f"system paths {spec.security.system_paths!r} are unknown", hint="default or unconfined"
        )


def _paths(mask: tuple[str, ...], unmask: tuple[str, ...]) -> None:
    for path in (*mask, *unmask):
        clean = posixpath.normpath(path) == path and path.startswith("/") and path != "/"
        if "\0" in path or not (clean or (path in unmask and path == "ALL")):
            raise Invalid(f"masked path {path[:200]!r} is not a clean absolute path")


def _sysctl(name: str, value: str, network: NetworkMode) -> None:
    if not _SYSCTL.fullmatch(name):
        raise Invalid(f"{name[:100]!r} is not a sysctl", hint="such as net.core.somaxconn=1024")
    if "\0" in value or len(value) > _MAX_VALUE:
        raise Invalid(f"sysctl {name}: {value[:40]!r} is not a value")
    if name.startswith("net."):
        if network in (NetworkMode.HOST, NetworkMode.CONTAINER):
            whose = "the host's" if network is NetworkMode.HOST else "another workload's"
            raise Unsupported(f"sysctl {name!r} would be {whose} with --network {network.value}")
        return
    if name not in _IPC and not name.startswith("fs.mqueue."):
        raise Unsupported(
            f"sysctl {name!r} is not a workload's own: it would hold for the whole host",
            hint="net.*, fs.mqueue.*, " + ", ".join(sorted(_IPC)),
        )


def _device(device: Device) -> None:
    for path in (device.source, device.target or device.source):
        if not path.startswith("/dev/") or posixpath.normpath(path) != path or "\0" in path:
            raise Invalid(
                f"device {path[:200]!r} does not lie below /dev", hint="/dev/NAME[:/dev/NAME][:rwm]"
            )
    if not device.access or set(device.access) - set("rwm"):
        raise Invalid(f"device {device.source!r}: access {device.access[:20]!r}", hint="letters of rwm")


def _host(text: str) -> None:
    name, _, address = text.partition(":")
    if not _WORD.fullmatch(name):
        raise Invalid(f"extra host {text[:100]!r} has no name", hint="NAME:ADDRESS")
    if address != "host-gateway":
        _address(f"extra host {text[:100]!r}", address.strip("[]"))


def _dns(value: Dns) -> None:
    for server in value.servers:
        _address(f"dns server {server[:100]!r}", server)
    for word in (*value.search, *value.options):
        if not _WORD.fullmatch(word):
            raise Invalid(f"dns: {word[:100]!r} is neither a domain nor an option")


def _address(what: str, text: str) -> None:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise Invalid(f"{what}: {text[:100]!r} is not an address", hint="such as 192.0.2.1") from None
