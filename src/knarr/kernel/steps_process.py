"""Steps about the process itself: its groups, namespaces, limits, privileges, folder.

Out of scope: mounts (`steps_mounts`), users and terminals (`steps_user`), and any decision (the planners).
"""

from __future__ import annotations

import base64
import errno
import itertools
import os
import resource
from dataclasses import dataclass

from knarr.kernel import caps, cgroups, devices, namespaces
from knarr.kernel.plan import Context, Outside, Step, Wire, register


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class CgroupCreate(Outside):
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
        cgroups.remove_whole(tuple(reversed(self.groups)))


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceFilter(Outside):
    """v2: only these character devices can be opened in the group; it goes with the group."""

    group: str
    characters: tuple[tuple[int, int], ...]

    def describe(self) -> str:
        return f"only {len(self.characters)} kinds of devices"

    def execute(self, context: Context) -> None:  # noqa: ARG002
        devices.attach_filter(self.group, self.characters)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class CgroupOpen(Outside):
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


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Guard(Step):
    """Own session, plain umask, and no look into this process from inside a namespace it joins."""

    def describe(self) -> str:
        return "new session, not dumpable"


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Unshare(Step):
    flags: int

    def describe(self) -> str:
        return f"new namespaces: {namespaces.describe(self.flags)}"


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class SetNs(Step):
    """Join what the descriptor `fd` is: one namespace, or several of a pidfd's process."""

    fd: str
    flags: int

    def describe(self) -> str:
        return f"join namespaces of {self.fd!r}: {namespaces.describe(self.flags)}"


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class LoopbackUp(Step):
    """A network namespace starts with its loopback down."""

    def describe(self) -> str:
        return "loopback up"


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Sethostname(Step):
    name: str

    def describe(self) -> str:
        return f"hostname {self.name}"


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Sysctl(Step):
    """Settings of namespaces that the workload owns; `optional` ones may be unknown to the kernel."""

    values: tuple[tuple[str, str], ...]
    optional: bool = False

    def describe(self) -> str:
        return "set " + ", ".join(f"{name}={value}" for name, value in self.values)

    def wire(self) -> tuple[Wire, ...]:
        values = tuple((f"/proc/sys/{name.replace('.', '/')}", value) for name, value in self.values)
        return values, self.optional


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Rlimits(Step):
    """Soft and hard limits, capped at what the kernel allows, or at the own hard limit."""

    limits: tuple[tuple[str, int, int], ...]
    """(name without prefix in lower case, soft, hard); -1 = unlimited"""

    def describe(self) -> str:
        return "limits " + ", ".join(f"{name}={soft}:{hard}" for name, soft, hard in self.limits)

    def wire(self) -> tuple[Wire, ...]:
        return (tuple((_limit_number(name), soft, hard) for name, soft, hard in self.limits),)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class OomScore(Step):
    """How soon the kernel takes the process when the host is out of memory."""

    value: int

    def describe(self) -> str:
        return f"score for want of memory {self.value:+d}"

    def wire(self) -> tuple[Wire, ...]:
        return (str(self.value),)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class BoundingSet(Step):
    """No exec can ever gain more than these. While still root: needs SETPCAP."""

    keep: tuple[str, ...]

    def describe(self) -> str:
        return f"bounding set: {', '.join(self.keep).lower() or 'nothing'}"

    def wire(self) -> tuple[Wire, ...]:
        return (caps.mask(self.keep),)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities(Step):
    """Permitted and effective for uid 0, nothing for others; inheritable and ambient always empty."""

    keep: tuple[str, ...]

    def describe(self) -> str:
        return f"capabilities for root: {', '.join(self.keep).lower() or 'none'}"

    def wire(self) -> tuple[Wire, ...]:
        return (caps.mask(self.keep),)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class NoNewPrivs(Step):
    def describe(self) -> str:
        return "no new privileges"


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Seccomp(Step):
    """Load a filter: before privileges go without no_new_privs, after them with it."""

    program: str
    """base64 of struct sock_filter[]"""

    def describe(self) -> str:
        return f"system call filter ({len(self.program) * 3 // 4 // 8} instructions)"

    def wire(self) -> tuple[Wire, ...]:
        return (base64.b64decode(self.program),)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Chdir(Step):
    """The working folder, made when missing, as root; opened beneath the root, so never outside of it."""

    path: str

    def describe(self) -> str:
        return f"working folder {self.path}"


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class InitProgram(Step):
    """Copy the `--init` program into a sealed memfd, while the host's files are still there."""

    path: str

    def describe(self) -> str:
        return "reaper as first process"


def _open_group(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _limit_number(name: str) -> int:
    found = getattr(resource, f"RLIMIT_{name.upper()}", None)
    if found is None:
        raise OSError(errno.EINVAL, f"unknown limit {name!r}")
    return int(found)
