"""Steps about the process itself: its groups, namespaces, limits, privileges, folder.

Out of scope: mounts (`steps_mounts`), users and terminals (`steps_user`), and any decision (the planners).
"""

from __future__ import annotations

import base64
import errno
import fcntl
import itertools
import os
import resource
import socket
import struct
from dataclasses import dataclass

from knarr.kernel import caps, cgroups, devices, namespaces, paths, process, seccomp
from knarr.kernel.plan import Context, Step, register

_UNLIMITED = -1
_INIT_LIMIT = 4 << 20
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_F_ADD_SEALS = 1033
_ALL_SEALS = 0x0F


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class CgroupCreate(Step):
    """Make a workload's groups and set its limits; the instance's own group is made with the first."""

    groups: tuple[str, ...]
    parent_files: tuple[tuple[str, str], ...] = ()
    """written once, when the instance's group is made; what this kernel refuses is left"""
    files: tuple[tuple[str, str], ...] = ()
    descriptor: bool = False
    """v2: open the group as `cgroup`, for the clone to be born in"""

    def describe(self) -> str:
        values = "".join(f", {os.path.basename(path)}={value}" for path, value in self.files)
        return (
            f"make control group {'/'.join(self.groups[0].split('/')[-2:])}{values}"
            if self.groups
            else "no group"
        )

    def execute(self, context: Context) -> None:
        made: list[str] = []
        try:
            for group in self.groups:
                self._make(group)
                made.append(group)
            for path, entries in itertools.groupby(self.files, key=lambda entry: entry[0]):
                cgroups.write(path, *(value for _, value in entries))
            if self.descriptor:
                context.fds["cgroup"] = _open_group(self.groups[0])
        except OSError:
            for group in reversed(made):
                cgroups.remove(group)
            raise

    def _make(self, group: str) -> None:
        try:
            cgroups.create(group)
        except FileNotFoundError:
            self._make_parent(os.path.dirname(group))
            cgroups.create(group)

    def _make_parent(self, parent: str) -> None:
        cgroups.create(parent)
        for path, value in self.parent_files:
            if os.path.dirname(path) in (parent, os.path.dirname(parent)):
                try:
                    cgroups.write(path, value)
                except OSError:
                    continue

    def undo(self, context: Context) -> None:  # noqa: ARG002
        for group in reversed(self.groups):
            cgroups.remove_whole(group)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceFilter(Step):
    """v2: only these character devices can be opened in the group; it goes with the group."""

    group: str
    characters: tuple[tuple[int, int], ...]

    def describe(self) -> str:
        return f"only {len(self.characters)} kinds of devices"

    def execute(self, context: Context) -> None:  # noqa: ARG002
        devices.attach_filter(self.group, self.characters)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class CgroupOpen(Step):
    """v2: a further process of the workload is born in its group."""

    group: str

    def describe(self) -> str:
        return "enter its control group"

    def execute(self, context: Context) -> None:
        context.fds["cgroup"] = _open_group(self.group)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class CgroupEnter(Step):
    """The child moves itself: as a single thread it needs no grace period (`cgroups.entry_files`)."""

    files: tuple[str, ...]

    def describe(self) -> str:
        return f"enter control group in {len(self.files)} place{'s' if len(self.files) != 1 else ''}"

    def execute(self, context: Context) -> None:  # noqa: ARG002
        for path in self.files:
            cgroups.write(path, "0")


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Guard(Step):
    """Own session, plain umask, and no look into this process from inside a namespace it joins."""

    def describe(self) -> str:
        return "new session, not dumpable"

    def execute(self, context: Context) -> None:  # noqa: ARG002
        process.set_dumpable(on=False)
        os.umask(0o022)
        if os.getsid(0) != os.getpid():
            os.setsid()


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Unshare(Step):
    flags: int

    def describe(self) -> str:
        return f"new namespaces: {namespaces.describe(self.flags)}"

    def execute(self, context: Context) -> None:  # noqa: ARG002
        namespaces.unshare(self.flags)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class SetNs(Step):
    """Join what the descriptor `fd` is: one namespace, or several of a pidfd's process."""

    fd: str
    flags: int

    def describe(self) -> str:
        return f"join namespaces of {self.fd!r}: {namespaces.describe(self.flags)}"

    def execute(self, context: Context) -> None:
        process.set_dumpable(on=False)
        namespaces.setns(context.fds[self.fd], self.flags)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class LoopbackUp(Step):
    """A network namespace starts with its loopback down."""

    def describe(self) -> str:
        return "loopback up"

    def execute(self, context: Context) -> None:  # noqa: ARG002
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            request = struct.pack("=16sH22x", b"lo", _IFF_UP)
            fcntl.ioctl(sock, _SIOCSIFFLAGS, request)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Sethostname(Step):
    name: str

    def describe(self) -> str:
        return f"hostname {self.name}"

    def execute(self, context: Context) -> None:  # noqa: ARG002
        socket.sethostname(self.name)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Sysctl(Step):
    """Settings of namespaces that the workload owns; `optional` ones may be unknown to the kernel."""

    values: tuple[tuple[str, str], ...]
    optional: bool = False

    def describe(self) -> str:
        return "set " + ", ".join(f"{name}={value}" for name, value in self.values)

    def execute(self, context: Context) -> None:  # noqa: ARG002
        for name, value in self.values:
            try:
                cgroups.write("/proc/sys/" + name.replace(".", "/"), value)
            except OSError:
                if not self.optional:
                    raise


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Rlimits(Step):
    """Soft and hard limits, capped at what the kernel allows, or at the own hard limit."""

    limits: tuple[tuple[str, int, int], ...]
    """(name without prefix in lower case, soft, hard); -1 = unlimited"""

    def describe(self) -> str:
        return "limits " + ", ".join(f"{name}={soft}:{hard}" for name, soft, hard in self.limits)

    def execute(self, context: Context) -> None:  # noqa: ARG002
        for name, soft, hard in self.limits:
            which = getattr(resource, f"RLIMIT_{name.upper()}", None)
            if which is None:
                raise OSError(errno.EINVAL, f"unknown limit {name!r}")
            wanted = (_limit(soft), _limit(hard))
            own = resource.getrlimit(which)[1]
            tops = (_nr_open(), own) if which == resource.RLIMIT_NOFILE else (own,)
            _set_limit(which, wanted, tops)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class OomScore(Step):
    """How soon the kernel takes the process when the host is out of memory."""

    value: int

    def describe(self) -> str:
        return f"score for want of memory {self.value:+d}"

    def execute(self, context: Context) -> None:  # noqa: ARG002
        cgroups.write("/proc/self/oom_score_adj", str(self.value))


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class BoundingSet(Step):
    """No exec can ever gain more than these. While still root: needs SETPCAP."""

    keep: tuple[str, ...]

    def describe(self) -> str:
        return f"bounding set: {', '.join(self.keep).lower() or 'nothing'}"

    def execute(self, context: Context) -> None:  # noqa: ARG002
        caps.limit_bounding(caps.mask(self.keep))


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities(Step):
    """Permitted and effective for uid 0, nothing for others; inheritable and ambient always empty."""

    keep: tuple[str, ...]

    def describe(self) -> str:
        return f"capabilities for root: {', '.join(self.keep).lower() or 'none'}"

    def execute(self, context: Context) -> None:
        wanted = caps.mask(self.keep) if context.uid == 0 else 0
        caps.set_own(wanted & caps.own()[0])


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class NoNewPrivs(Step):
    def describe(self) -> str:
        return "no new privileges"

    def execute(self, context: Context) -> None:  # noqa: ARG002
        process.no_new_privileges()


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Seccomp(Step):
    """Load a filter: before privileges go without no_new_privs, after them with it."""

    program: str
    """base64 of struct sock_filter[]"""

    def describe(self) -> str:
        return f"system call filter ({len(self.program) * 3 // 4 // 8} instructions)"

    def execute(self, context: Context) -> None:  # noqa: ARG002
        seccomp.load(base64.b64decode(self.program))


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Chdir(Step):
    """The working folder, made when missing, as root; opened beneath the root, so never outside of it."""

    path: str

    def describe(self) -> str:
        return f"working folder {self.path}"

    def execute(self, context: Context) -> None:  # noqa: ARG002
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            folder = paths.make_folders(root, self.path)
        finally:
            os.close(root)
        try:
            os.fchdir(folder)
        finally:
            os.close(folder)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class InitProgram(Step):
    """Copy the `--init` program into a sealed memfd, while the host's files are still there."""

    path: str

    def describe(self) -> str:
        return "reaper as first process"

    def execute(self, context: Context) -> None:
        with open(self.path, "rb") as file:
            program = file.read(_INIT_LIMIT)
        fd = os.memfd_create("knarr-init", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(fd, program)
        fcntl.fcntl(fd, _F_ADD_SEALS, _ALL_SEALS)
        context.fds["init"] = fd


def _open_group(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _limit(value: int) -> int:
    return resource.RLIM_INFINITY if value == _UNLIMITED else value


def _set_limit(which: int, wanted: tuple[int, int], tops: tuple[int, ...]) -> None:
    for attempt in (wanted, *((_capped(wanted[0], top), _capped(wanted[1], top)) for top in tops)):
        try:
            resource.setrlimit(which, attempt)
        except (ValueError, OSError):
            if attempt[1] == tops[-1]:
                raise
        else:
            return


def _nr_open() -> int:
    """The bound that not even root passes, unless it is hidden from here."""
    try:
        with open("/proc/sys/fs/nr_open", encoding="ascii") as file:
            return int(file.read())
    except OSError:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def _capped(value: int, top: int) -> int:
    if top == resource.RLIM_INFINITY:
        return value
    return top if value == resource.RLIM_INFINITY else min(value, top)
