"""What no wall accepts of a spec, said before anything is made. Pure; raises `Invalid` or `Unsupported`.

Out of scope: what one wall can't do (its driver's `check`), and names of users (resolved inside).
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from knarr.engine import limits, merge, settings, sharing
from knarr.kernel import seccomp
from knarr.model import names
from knarr.model.errors import Invalid
from knarr.model.workload import NetworkMode, PortMapping, RestartKind, Rlimit, WorkloadSpec
from knarr.volumes import mounts

if TYPE_CHECKING:
    from knarr.model.health import Health
    from knarr.model.resource import Image
    from knarr.model.workload import Process

_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?", re.ASCII)
_RLIMITS = frozenset(
    (
        *("as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc"),
        *("rss", "rtprio", "rttime", "sigpending", "stack"),
    )
)
_MAX_ITEMS = 4096


def spec(value: WorkloadSpec) -> WorkloadSpec:
    """The same spec with clean mounts."""
    if value.name is not None:
        names.check_name(value.name)
    if value.hostname is not None and not _HOSTNAME.fullmatch(value.hostname):
        raise Invalid(f"{value.hostname!r} is not a host name", hint="up to 64 of A-Z a-z 0-9 . - _")
    for what, items in (("env", value.env), ("command", value.command or ()), ("groups", value.groups)):
        if len(items) > _MAX_ITEMS:
            raise Invalid(f"{what} has {len(items)} entries", hint=f"at most {_MAX_ITEMS}")
    merge.require_absolute(value.workdir)
    if value.stop_signal:
        merge.parse_signal(value.stop_signal)
    if value.stop_timeout < -1:
        raise Invalid(f"stop timeout {value.stop_timeout} is negative", hint="-1 waits for ever")
    if value.security.seccomp not in ("default", "unconfined") and value.security.seccomp[:1] != "{":
        raise Invalid(
            f"seccomp profile {value.security.seccomp[:100]!r} is unknown",
            hint="default, unconfined, or a profile's JSON",
        )
    merge.tty_size(value.tty_size)
    limits.check(value.resources)
    _oom_score(value.oom_score_adj)
    _restart(value)
    if value.health is not None:
        _health(value.health)
    for limit in value.rlimits:
        _rlimit(limit)
    _ports(value.ports)
    settings.check(value)
    sharing.check(value)
    return dataclasses.replace(value, mounts=mounts.check(value.mounts))


def system_calls(process: Process) -> None:
    """A wrong profile of the user's own is told at creation. Raises `Invalid`, `Unsupported`."""
    if process.seccomp and process.seccomp_profile:
        seccomp.program(process.seccomp_profile, frozenset(process.capabilities))


def warnings(value: WorkloadSpec, image: Image) -> tuple[str, ...]:
    """What works, though perhaps not as meant."""
    found = []
    host = names.host_platform()
    if image.config.architecture and not host.runs(names.Platform("linux", image.config.architecture)):
        found.append(f"the image is made for {image.config.architecture}, this host is {host.architecture}")
    if value.ports and value.network is not NetworkMode.BRIDGE:
        found.append(f"published ports are ignored with --network {value.network.value}")
    found += [text for item in value.rlimits if (text := _capped(item))]
    return tuple(found)


def _restart(value: WorkloadSpec) -> None:
    policy = value.restart
    if policy.kind is not RestartKind.NO and value.auto_remove:
        raise Invalid("a restart policy and automatic removal exclude each other", hint="leave one away")
    if policy.retries < 0 or (policy.retries and policy.kind is not RestartKind.ON_FAILURE):
        raise Invalid(
            f"restart policy {policy.kind.value}:{policy.retries} makes no sense", hint="on-failure[:number]"
        )


def _health(value: Health) -> None:
    if value.test and value.test[0] not in ("NONE", "CMD", "CMD-SHELL"):
        raise Invalid(f"health check {value.test[0][:40]!r} is unknown", hint="CMD, CMD-SHELL or NONE")
    if value.test and len(value.test) < 2 and value.test[0] != "NONE":
        raise Invalid("the health check has no command")
    times = (value.interval, value.timeout, value.start_period, value.start_interval)
    if not all(item == 0 or 0.001 <= item < 1e9 for item in times):
        raise Invalid("a time of the health check is out of range", hint="1ms or more; 0 as the image says")
    if value.retries < 0:
        raise Invalid(f"health check: {value.retries} retries make no sense", hint="1 or more")


def _oom_score(value: int | None) -> None:
    if value is not None and not -1000 <= value <= 1000:
        raise Invalid(f"oom score {value} is out of range", hint="-1000 to 1000")


def _rlimit(value: Rlimit) -> None:
    if value.name not in _RLIMITS:
        raise Invalid(f"rlimit {value.name!r} is unknown", hint=", ".join(sorted(_RLIMITS)))
    soft, hard = (1 << 64 if item == -1 else item for item in (value.soft, value.hard))
    if soft < 0 or hard < soft:
        raise Invalid(f"rlimit {value.name}: {value.soft}:{value.hard} is not soft:hard", hint="soft <= hard")


def _capped(limit: Rlimit) -> str:
    """Not even root gets more than the kernel's bound, which holds for open files only."""
    top = {"nofile": "/proc/sys/fs/nr_open"}.get(limit.name)
    if top is None:
        return ""
    with open(top, encoding="ascii") as file:
        most = int(file.read())
    if -1 < limit.hard <= most:
        return ""
    wanted = "unlimited" if limit.hard == -1 else limit.hard
    return (
        f"rlimit {limit.name}: {wanted} is more than the kernel allows ({most} here), which it gets instead"
    )


def _ports(ports: tuple[PortMapping, ...]) -> None:
    seen = set()
    for port in ports:
        if port.protocol not in ("tcp", "udp"):
            raise Invalid(f"protocol {port.protocol!r} is unknown", hint="tcp or udp")
        if not 1 <= port.container_port <= 0xFFFF or not 0 <= port.host_port <= 0xFFFF:
            raise Invalid(f"port {port.host_port}:{port.container_port} is out of range", hint="1 to 65535")
        key = (port.host_ip, port.host_port, port.protocol)
        if port.host_port and key in seen:
            raise Invalid(f"host port {port.host_port}/{port.protocol} is published twice")
        seen.add(key)
