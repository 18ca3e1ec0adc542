"""Steps that build a root: image, overlay, pivot, and what is mounted into it.

Before `PivotRoot` paths are the keeper's; after it the old root is gone, and every path is opened beneath
the new one without magic links. Nobody runs in the new root yet, but volumes may be shared with workloads
that do: so a mount point is opened once and mounted by descriptor. Out of scope: what to mount (planners).
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from knarr.kernel import mounts
from knarr.kernel.plan import Context, Outside, Step, Wire, register

_DEVICES = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
# a workload has its own of these, whatever its privileges
_OWN_FOLDERS = frozenset({"pts", "shm", "mqueue", "fd"})
_OWN_NODES = frozenset({"console", "ptmx", "tty"})
_PROC_FILES = frozenset(
    f"/proc/{name}" for name in ("cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg")
)
"""what lxcfs and its like may replace; nothing else in /proc may be covered, for masks would be undone"""
PROPAGATION = {
    "private": (mounts.MS_PRIVATE, False),
    "rprivate": (mounts.MS_PRIVATE, True),
    "slave": (mounts.MS_SLAVE, False),
    "rslave": (mounts.MS_SLAVE, True),
    "shared": (mounts.MS_SHARED, False),
    "rshared": (mounts.MS_SHARED, True),
}


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class MountImage(Outside):
    """The image's tree at RUN/images/<tree_id>, once for all its workloads; left mounted."""

    tree_id: str
    tree: str
    pool: str

    def describe(self) -> str:
        return f"mount image {self.tree_id[:12]}"

    def execute(self, context: Context) -> None:
        if context.mount_image is None:
            raise OSError(errno.EINVAL, "nobody keeps image mounts here", self.tree)
        context.mount_image(self.tree_id, self.tree, self.pool)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class MakePrivate(Step):
    def describe(self) -> str:
        return "no mount travels to the host"


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Overlay(Step):
    """The writable layer over the image, mounted at `target` (a path of the keeper's)."""

    lower: str
    upper: str
    work: str
    target: str
    below: str = ""
    """a further layer under the image's; empty = none"""

    def describe(self) -> str:
        return f"overlay over {os.path.basename(self.lower)[:12]}, changes in {self.upper}"


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class BindHere(Step):
    """Bind a path of the keeper's onto another of its: a jail's root and the few files in it."""

    source: str
    target: str
    read_only: bool = False
    recursive: bool = False
    attributes: int = 0
    """MOUNT_ATTR_… besides"""

    def describe(self) -> str:
        return f"bind {self.source} at {self.target}{' read-only' if self.read_only else ''}"


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class OpenSource(Step):
    """Take a detached copy of a host path's mounts, for `Bind` after the pivot."""

    name: str
    path: str
    recursive: bool = True
    origin: str = ""
    """a descriptor of the root that `path` is beneath; empty = the keeper's own"""

    def describe(self) -> str:
        return f"open {self.path}"


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class PivotRoot(Step):
    """`target` becomes the root; nothing of the old one stays reachable."""

    target: str

    def describe(self) -> str:
        return "change root, detach the old one"


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class MountFs(Step):
    """A kernel file system at a fixed place such as /proc, which must be a plain folder of the image."""

    kind: str
    target: str
    flags: int = 0
    data: str = ""
    source: str = ""

    def describe(self) -> str:
        options = f" ({self.data})" if self.data else ""
        only = " read-only" if self.flags & mounts.MS_RDONLY else ""
        return f"mount {self.kind} at {self.target}{only}{options}"


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Tmpfs(Step):
    """`--tmpfs`: options as mount(8) spells them."""

    target: str
    options: tuple[str, ...] = ()
    attributes: int = mounts.MOUNT_ATTR_NOSUID | mounts.MOUNT_ATTR_NODEV | mounts.MOUNT_ATTR_NOEXEC

    def describe(self) -> str:
        return f"tmpfs at {self.target}{' (' + ','.join(self.options) + ')' if self.options else ''}"


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Bind(Step):
    """Attach what `OpenSource` opened at a path of the workload's root, made if missing, as docker does."""

    fd: str
    target: str
    read_only: bool = False
    propagation: str = "rprivate"

    def describe(self) -> str:
        return f"bind at {self.target}{' read-only' if self.read_only else ''}"

    def wire(self) -> tuple[Wire, ...]:
        in_proc = os.path.normpath(self.target) in _PROC_FILES
        return self.fd, self.target, self.read_only, *PROPAGATION[self.propagation], in_proc


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Devices(Step):
    """The default nodes in a fresh /dev; the device group's list says what may be opened."""

    folder: str = "/dev"

    def describe(self) -> str:
        return "devices " + ", ".join(name for name, _, _ in _DEVICES)

    def wire(self) -> tuple[Wire, ...]:
        mode = stat.S_IFCHR | 0o666
        return tuple((name, mode, os.makedev(major, minor)) for name, major, minor in _DEVICES), self.folder


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Nodes(Step):
    """More device nodes in a fresh /dev (`--privileged`: all of the host's); those there already stay."""

    nodes: tuple[tuple[str, int, int], ...]
    """(path below the folder, mode with type, device number)"""
    folder: str = "/dev"

    def describe(self) -> str:
        return f"{len(self.nodes)} more devices"


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Symlinks(Step):
    links: tuple[tuple[str, str], ...]
    """(what it says, where it lies)"""

    def describe(self) -> str:
        return "links " + ", ".join(where for _, where in self.links)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Folders(Step):
    """Folders in a file system just mounted by an earlier step."""

    paths: tuple[str, ...]
    mode: int = 0o755

    def describe(self) -> str:
        return "folders " + ", ".join(self.paths)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class CgroupMounts(Step):
    """The workload's own groups, read-only or not, at /sys/fs/cgroup: needs a cgroup namespace of its own."""

    hierarchies: tuple[tuple[str, str], ...]
    """v1: (folder name, mount options); empty = the v2 tree"""
    read_only: bool = True

    def describe(self) -> str:
        return f"control groups at /sys/fs/cgroup{' read-only' if self.read_only else ''}"


def host_nodes(folder: str = "/dev", below: str = "") -> list[tuple[str, int, int]]:
    """Every device node of the host, for `Nodes`."""
    found: list[tuple[str, int, int]] = []
    for entry in os.scandir(f"{folder}/{below}"):
        name = f"{below}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            if name not in _OWN_FOLDERS:
                found += host_nodes(folder, f"{name}/")
            continue
        if name in _OWN_NODES:
            continue
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            found.append((name, status.st_mode, status.st_rdev))
    return found
