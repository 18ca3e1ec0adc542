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

from knarr.kernel import libc, mounts, paths
from knarr.kernel.plan import Context, Step, register

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
class MountImage(Step):
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

    def execute(self, context: Context) -> None:  # noqa: ARG002
        mounts.make_private()


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Overlay(Step):
    """The writable layer over the image, mounted at `target` (a path of the keeper's)."""

    lower: str
    upper: str
    work: str
    target: str

    def describe(self) -> str:
        return f"overlay over {os.path.basename(self.lower)[:12]}, changes in {self.upper}"

    def execute(self, context: Context) -> None:  # noqa: ARG002
        opened: list[int] = []
        try:
            for path in (self.lower, self.upper, self.work):
                fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                opened.append(fd)
            # by descriptor: no escaping of commas and colons, no limit of a page, no host paths in mountinfo
            lower, upper, work = map(mounts.through_fd, opened)
            mounts.mount(
                "overlay", self.target, "overlay", 0, f"lowerdir={lower},upperdir={upper},workdir={work}"
            )
        finally:
            for fd in opened:
                os.close(fd)


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

    def execute(self, context: Context) -> None:  # noqa: ARG002
        tree = mounts.open_tree(self.source, recursive=self.recursive)
        try:
            add = self.attributes | (mounts.MOUNT_ATTR_RDONLY if self.read_only else 0)
            mounts.set_attributes(tree, add=add, propagation=mounts.MS_PRIVATE, recursive=self.recursive)
            mounts.attach_at(tree, self.target)
        finally:
            os.close(tree)


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

    def execute(self, context: Context) -> None:
        if not self.origin:
            context.fds[self.name] = mounts.open_tree(self.path, recursive=self.recursive)
            return
        flags = os.O_PATH
        found = paths.openat2(context.fds[self.origin], self.path, flags, resolve=paths.RESOLVE_IN_ROOT)
        try:
            context.fds[self.name] = mounts.open_tree("", directory=found, recursive=self.recursive)
        finally:
            os.close(found)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class PivotRoot(Step):
    """`target` becomes the root; nothing of the old one stays reachable."""

    target: str

    def describe(self) -> str:
        return "change root, detach the old one"

    def execute(self, context: Context) -> None:
        os.chdir(self.target)
        mounts.pivot_root(".", ".")
        mounts.umount(".", mounts.MNT_DETACH)
        os.chdir("/")
        context.fds["root"] = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


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

    def execute(self, context: Context) -> None:
        plain_folder(context.fds.get("root", libc.AT_FDCWD), self.target)
        mounts.mount(self.source or self.kind, self.target, self.kind, self.flags, self.data)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Tmpfs(Step):
    """`--tmpfs`: options as mount(8) spells them."""

    target: str
    options: tuple[str, ...] = ()
    attributes: int = mounts.MOUNT_ATTR_NOSUID | mounts.MOUNT_ATTR_NODEV | mounts.MOUNT_ATTR_NOEXEC

    def describe(self) -> str:
        return f"tmpfs at {self.target}{' (' + ','.join(self.options) + ')' if self.options else ''}"

    def execute(self, context: Context) -> None:
        options: dict[str, str | None] = {}
        for item in self.options:
            key, equals, value = item.partition("=")
            options[key] = value if equals else None
        target = paths.make_folders(context.fds["root"], self.target)
        try:
            _refuse_root(context, target, self.target)
            _refuse_proc(context, target, self.target)
            if "mode" not in options:
                options["mode"] = f"{stat.S_IMODE(os.fstat(target).st_mode):o}"
            tree = mounts.new_filesystem("tmpfs", options, self.attributes)
            try:
                mounts.attach(tree, target)
            finally:
                os.close(tree)
        finally:
            os.close(target)


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

    def execute(self, context: Context) -> None:
        tree = context.fds.pop(self.fd)
        try:
            self._attach(context, tree)
        finally:
            os.close(tree)

    def _attach(self, context: Context, tree: int) -> None:
        kind, recursive = PROPAGATION[self.propagation]
        if self.read_only:
            mounts.set_attributes(tree, add=mounts.MOUNT_ATTR_RDONLY)
        if kind != mounts.MS_SHARED:
            mounts.set_attributes(tree, propagation=mounts.MS_PRIVATE)
        if kind != mounts.MS_PRIVATE:
            mounts.set_attributes(tree, propagation=kind, recursive=recursive)
        folder = stat.S_ISDIR(os.fstat(tree).st_mode)
        make = paths.make_folders if folder else paths.make_file
        target = make(context.fds["root"], self.target)
        try:
            _refuse_root(context, target, self.target)
            if os.path.normpath(self.target) not in _PROC_FILES:
                _refuse_proc(context, target, self.target)
            if stat.S_ISDIR(os.fstat(target).st_mode) != folder:
                code = errno.ENOTDIR if folder else errno.EISDIR
                raise OSError(
                    code, "a folder can't be mounted on a file, nor a file on a folder", self.target
                )
            mounts.attach(tree, target)
        finally:
            os.close(target)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Devices(Step):
    """The default nodes in a fresh /dev; the device group's list says what may be opened."""

    folder: str = "/dev"

    def describe(self) -> str:
        return "devices " + ", ".join(name for name, _, _ in _DEVICES)

    def execute(self, context: Context) -> None:  # noqa: ARG002
        mask = os.umask(0)
        try:
            for name, major, minor in _DEVICES:
                os.mknod(f"{self.folder}/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
        finally:
            os.umask(mask)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Nodes(Step):
    """More device nodes in a fresh /dev (`--privileged`: all of the host's); those there already stay."""

    nodes: tuple[tuple[str, int, int], ...]
    """(path below the folder, mode with type, device number)"""
    folder: str = "/dev"

    def describe(self) -> str:
        return f"{len(self.nodes)} more devices"

    def execute(self, context: Context) -> None:  # noqa: ARG002
        mask = os.umask(0)
        try:
            for name, mode, device in self.nodes:
                try:
                    os.makedirs(os.path.dirname(f"{self.folder}/{name}"), 0o755, exist_ok=True)
                    os.mknod(f"{self.folder}/{name}", mode, device)
                except FileExistsError:
                    continue
        finally:
            os.umask(mask)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Symlinks(Step):
    links: tuple[tuple[str, str], ...]
    """(what it says, where it lies)"""

    def describe(self) -> str:
        return "links " + ", ".join(where for _, where in self.links)

    def execute(self, context: Context) -> None:  # noqa: ARG002
        for says, where in self.links:
            os.symlink(says, where)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Folders(Step):
    """Folders in a file system just mounted by an earlier step."""

    paths: tuple[str, ...]
    mode: int = 0o755

    def describe(self) -> str:
        return "folders " + ", ".join(self.paths)

    def execute(self, context: Context) -> None:  # noqa: ARG002
        for path in self.paths:
            os.mkdir(path, self.mode)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class CgroupMounts(Step):
    """The workload's own groups, read-only or not, at /sys/fs/cgroup: needs a cgroup namespace of its own."""

    hierarchies: tuple[tuple[str, str], ...]
    """v1: (folder name, mount options); empty = the v2 tree"""
    read_only: bool = True

    def describe(self) -> str:
        return f"control groups at /sys/fs/cgroup{' read-only' if self.read_only else ''}"

    def execute(self, context: Context) -> None:  # noqa: ARG002
        base = "/sys/fs/cgroup"
        flags = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
        only = mounts.MS_RDONLY if self.read_only else 0
        if not self.hierarchies:
            mounts.mount("cgroup", base, "cgroup2", flags | only)
            return
        mounts.mount("tmpfs", base, "tmpfs", flags, "mode=755")
        for name, options in self.hierarchies:
            os.mkdir(f"{base}/{name}", 0o755)
            mounts.mount("cgroup", f"{base}/{name}", "cgroup", flags | only, options)
            for controller in options.split(",") if "," in options else ():
                os.symlink(name, f"{base}/{controller}")
        if self.read_only:
            mounts.mount("tmpfs", base, flags=flags | mounts.MS_REMOUNT | mounts.MS_BIND | only)


PLAIN = paths.RESOLVE_IN_ROOT | paths.RESOLVE_NO_MAGICLINKS | paths.RESOLVE_NO_SYMLINKS


def plain_folder(root: int, path: str) -> None:
    """Make sure that `path` is a folder reached through no symbolic link; it is made when missing."""
    try:
        os.close(paths.openat2(root, path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, resolve=PLAIN))
    except FileNotFoundError:
        os.close(paths.make_folders(root, path))
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise OSError(error.errno, "the image's own entry there is not a plain folder", path) from error
        raise


def _refuse_root(context: Context, target: int, path: str) -> None:
    """A link of the image's may lead to `/`: execs would stand in the mount, the first process below it."""
    if os.path.samestat(os.fstat(target), os.fstat(context.fds["root"])):
        raise OSError(errno.EPERM, "the image's own link there leads to the root", path)


def _refuse_proc(context: Context, target: int, path: str) -> None:
    """Whatever path led there: a mount over a part of /proc would undo its masks."""
    try:
        proc = os.stat("/proc").st_dev
    except FileNotFoundError:
        return
    if os.fstat(target).st_dev == proc and proc != os.fstat(context.fds["root"]).st_dev:
        raise OSError(errno.EPERM, "nothing can be mounted inside /proc", path)


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
