"""What a user asks for: one workload behind one wall, in the words all walls share."""

from __future__ import annotations

import enum
import fnmatch
from dataclasses import dataclass, field

from knarr.model.health import Health
from knarr.model.logs import Logging
from knarr.model.namespaces import Sharing, UserNamespace

CPU_PERIOD = 100_000
"""microseconds"""


class Isolation(enum.Enum):
    """The wall."""

    CONTAINER = "container"
    SANDBOX = "sandbox"
    MICROVM = "microvm"
    MACHINE = "machine"


class MountKind(enum.Enum):
    BIND = "bind"
    TMPFS = "tmpfs"
    VOLUME = "volume"


@dataclass(frozen=True, kw_only=True, slots=True)
class Mount:
    """One `-v`, `--mount` or `--tmpfs`. `source` is an absolute host path for binds, a name for
    volumes (None makes one without), None for tmpfs.
    """

    kind: MountKind
    target: str
    source: str | None = None
    read_only: bool = False
    options: tuple[str, ...] = ()
    """tmpfs: `size=…`, `mode=…`, `noexec` …; bind: a propagation such as `rprivate`, `rslave`;
    volume: `nocopy`
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskLimit:
    """A weight, or a rate in bytes or operations a second, of one disk of the host."""

    path: str
    value: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """Limits of the workload itself, behind every wall. None = no limit. The words are docker's."""

    memory: int | None = None
    """bytes"""
    memory_swap: int | None = None
    """bytes of memory and swap together; -1 = no limit of swap; None = twice the memory"""
    memory_reservation: int | None = None
    """bytes that it keeps as long as others can be asked first"""
    swappiness: int | None = None
    """0 to 100 (cgroup v1)"""
    oom_kill_disable: bool = False
    """its processes wait at the limit of memory instead (cgroup v1)"""
    cpus: float | None = None
    """CPU seconds per second"""
    cpu_quota: int | None = None
    """microseconds of CPU time in each period; excludes `cpus`"""
    cpu_period: int | None = None
    """microseconds; None = 100,000"""
    cpu_shares: int | None = None
    """2 to 262,144: its part when CPUs are short, beside others' 1024"""
    cpuset: str | None = None
    """a list such as `0-1,3`"""
    mems: str | None = None
    """memory nodes, such a list too"""
    pids: int | None = None
    blkio_weight: int | None = None
    """10 to 1000: its part of a busy disk"""
    blkio_weight_device: tuple[DiskLimit, ...] = ()
    device_read_bps: tuple[DiskLimit, ...] = ()
    device_write_bps: tuple[DiskLimit, ...] = ()
    device_read_iops: tuple[DiskLimit, ...] = ()
    device_write_iops: tuple[DiskLimit, ...] = ()

    @property
    def cpu_time(self) -> float | None:
        """CPU seconds per second by either way of saying it."""
        if self.cpus is not None or self.cpu_quota is None or self.cpu_quota < 0:
            return self.cpus
        return self.cpu_quota / (self.cpu_period or CPU_PERIOD)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rlimit:
    name: str
    """without prefix, lower case: nofile, nproc, core …"""
    soft: int
    """-1 = unlimited"""
    hard: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PortMapping:
    container_port: int
    host_port: int = 0
    """0 = choose a free one at start"""
    host_ip: str = ""
    """empty = all addresses"""
    protocol: str = "tcp"


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A device of the host that a container may open."""

    source: str
    target: str = ""
    """below /dev; empty = as on the host"""
    access: str = "rwm"


class SecurityProfile(enum.Enum):
    DEFAULT = "default"
    HARDENED = "hardened"


@dataclass(frozen=True, kw_only=True, slots=True)
class Security:
    profile: SecurityProfile = SecurityProfile.DEFAULT
    privileged: bool = False
    cap_add: tuple[str, ...] = ()
    """names without the CAP_ prefix, upper case, or ALL"""
    cap_drop: tuple[str, ...] = ()
    no_new_privileges: bool = False
    seccomp: str = "default"
    """`default`, `unconfined`, or a profile: docker's JSON as text"""
    system_paths: str = "default"
    """`default` masks what the kernel tells too much in; `unconfined` leaves /proc and /sys as they are"""
    mask: tuple[str, ...] = ()
    """more paths to cover"""
    unmask: tuple[str, ...] = ()
    """paths to leave open that `default` covers or makes read-only; may hold `*`; ALL = every one"""


def left_open(path: str, unmask: tuple[str, ...]) -> bool:
    """`Security.unmask` names this path."""
    return any(pattern == "ALL" or fnmatch.fnmatchcase(path, pattern) for pattern in unmask)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dns:
    """What /etc/resolv.conf says; empty = as the network has it."""

    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class NetworkMode(enum.Enum):
    BRIDGE = "bridge"
    NONE = "none"
    HOST = "host"
    CONTAINER = "container"
    """another workload's, which `Sharing.network` names"""


class RestartKind(enum.Enum):
    NO = "no"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"
    UNLESS_STOPPED = "unless-stopped"


@dataclass(frozen=True, kw_only=True, slots=True)
class RestartPolicy:
    kind: RestartKind = RestartKind.NO
    retries: int = 0
    """on-failure: how often in a row; 0 = for ever"""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadSpec:
    """Everything of `knarr create`. `None` means "as the image says"."""

    image: str
    isolation: Isolation = Isolation.CONTAINER
    name: str | None = None
    command: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    """`KEY=value`, merged over the image's"""
    user: str | None = None
    """`name|uid[:group|gid]`"""
    groups: tuple[str, ...] = ()
    workdir: str | None = None
    hostname: str | None = None
    tty: bool = False
    tty_size: tuple[int, ...] = ()
    """(columns, rows) or empty"""
    stdin_open: bool = False
    init: bool = False
    read_only: bool = False
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    shm_size: int | None = None
    """bytes of /dev/shm; None = 64 MiB"""
    sysctls: dict[str, str] = field(default_factory=dict)
    """settings of the workload's own namespaces, such as `net.core.somaxconn`"""
    extra_hosts: tuple[str, ...] = ()
    """`NAME:ADDRESS` for /etc/hosts; `host-gateway` is the host's address on the workload's network"""
    dns: Dns = field(default_factory=Dns)
    volumes_from: tuple[str, ...] = ()
    """`WORKLOAD[:ro]`: the binds and volumes of that one too"""
    ports: tuple[PortMapping, ...] = ()
    network: NetworkMode = NetworkMode.BRIDGE
    sharing: Sharing = field(default_factory=Sharing)
    userns: UserNamespace | None = None
    """None = as the security profile and the settings say"""
    resources: Resources = field(default_factory=Resources)
    rlimits: tuple[Rlimit, ...] = ()
    oom_score_adj: int | None = None
    """-1000 to 1000: how soon the kernel takes its processes when the host is out of memory"""
    security: Security = field(default_factory=Security)
    labels: dict[str, str] = field(default_factory=dict)
    auto_remove: bool = False
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    health: Health | None = None
    log: Logging = field(default_factory=Logging)
    stop_signal: str | None = None
    stop_timeout: int = 10
    """seconds between the stop signal and SIGKILL"""
    kernel: str | None = None
    """microvm: a kernel image of one's own instead of the fetched one"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """Everything of `knarr update`. None = as it is."""

    memory: int | None = None
    """bytes; 0 = no limit"""
    memory_swap: int | None = None
    """-1 = no limit of swap, 0 = twice the memory"""
    memory_reservation: int | None = None
    """0 = none"""
    cpus: float | None = None
    """0 = no limit"""
    cpu_quota: int | None = None
    """0 or -1 = no limit"""
    cpu_period: int | None = None
    """0 = 100,000"""
    cpu_shares: int | None = None
    """0 = 1024"""
    cpuset: str | None = None
    """empty = all"""
    mems: str | None = None
    """empty = all"""
    pids: int | None = None
    """-1 = no limit"""
    blkio_weight: int | None = None
    """0 = as every other"""
    restart: RestartPolicy | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecSpec:
    """Everything of `knarr exec`."""

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    user: str | None = None
    workdir: str | None = None
    tty: bool = False
    tty_size: tuple[int, ...] = ()
    stdin_open: bool = False
    privileged: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """One process to run behind a wall: spec, image config and security profile merged by the engine."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    """complete, `KEY=value`; PATH is always there; HOME is added inside from the passwd entry if missing"""
    cwd: str = "/"
    user: str = ""
    """`name|uid[:group|gid]`, resolved *inside* from the image's own passwd and group; empty = 0:0"""
    groups: tuple[str, ...] = ()
    tty: bool = False
    tty_size: tuple[int, ...] = ()
    capabilities: tuple[str, ...] = ()
    """names without CAP_: bounding = permitted = effective for uid 0; others keep the bounding set only"""
    no_new_privileges: bool = False
    seccomp: bool = True
    """load a filter for these capabilities"""
    seccomp_profile: str = ""
    """docker's JSON; empty = the default one"""
    rlimits: tuple[Rlimit, ...] = ()
    oom_score_adj: int | None = None
    init: bool = False
