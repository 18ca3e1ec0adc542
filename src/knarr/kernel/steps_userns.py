"""Steps of a workload in a user namespace of its own, and of one that shares another's IPC.

The order is the point: image, writable layer and whatever only the host's root may mount come first, with
ids mapped mount by mount; then the child enters the namespace and makes the other ones from inside it, so
that they are the namespace's own. Out of scope: making the namespace and its maps (`keeper.userns`).
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from knarr.kernel import mounts, namespaces, paths, process, userids
from knarr.kernel.plan import Context, Step, register
from knarr.kernel.steps_user import STREAMS


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Idmap(Step):
    """Ids in these detached mounts are the namespace's from here on: on disk 0 is root inside."""

    sources: tuple[tuple[str, str], ...]
    """(descriptor, what an error calls it)"""
    userns: str = "userns"

    def describe(self) -> str:
        return "ids mapped in " + ", ".join(path for _, path in self.sources)

    def execute(self, context: Context) -> None:
        for name, path in self.sources:
            map_ids(context.fds[name], context.fds[self.userns], path)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class IdmapHere(Step):
    """Cover folders of the keeper's, in this process' own mounts, by themselves with mapped ids."""

    paths: tuple[str, ...]
    userns: str = "userns"

    def describe(self) -> str:
        return "ids mapped in " + ", ".join(self.paths)

    def execute(self, context: Context) -> None:
        for path in self.paths:
            tree = mounts.open_tree(path, recursive=False)
            try:
                mounts.set_attributes(tree, propagation=mounts.MS_PRIVATE)
                map_ids(tree, context.fds[self.userns], path)
                mounts.attach_at(tree, path)
            finally:
                os.close(tree)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class FsIds(Step):
    """What this process makes belongs to root inside; its privileges stay. An overlay that is mounted now
    works with these ids for ever.
    """

    uid: int
    gid: int

    def describe(self) -> str:
        return f"new files belong to {self.uid}:{self.gid}"

    def execute(self, context: Context) -> None:  # noqa: ARG002
        userids.act_as(self.uid, self.gid)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class EnterUser(Step):
    """Become root of the user namespace that `fd` (or the process it is) has, with new namespaces of its
    own. The streams become that root's, which could not open them again otherwise.
    """

    fd: str
    uid: int
    gid: int
    """root inside, as the host counts"""
    flags: int = 0

    def describe(self) -> str:
        new = f", new namespaces: {namespaces.describe(self.flags)}" if self.flags else ""
        return f"enter user namespace, root inside is {self.uid}:{self.gid}{new}"

    def execute(self, context: Context) -> None:
        process.set_dumpable(on=False)
        for name in STREAMS:
            _give(context.fds.get(name, -1), self.uid, self.gid)
        namespaces.setns(context.fds[self.fd], namespaces.CLONE_NEWUSER)
        os.setgroups(())
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        process.set_dumpable(on=False)
        if self.flags:
            namespaces.unshare(self.flags)
        if "root" in context.fds:
            # the same folder in the new mounts: in the old ones nothing can be mounted from here
            os.close(context.fds["root"])
            context.fds["root"] = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class JoinedShm(Step):
    """The /dev/shm of the process that `fd` is, as a detached mount for `Bind`."""

    name: str
    fd: str

    def describe(self) -> str:
        return f"take the shared memory of {self.fd!r}"

    def execute(self, context: Context) -> None:
        home = namespaces.open_namespace("mnt")
        try:
            # a mount can only be copied by who stands in its namespace
            namespaces.setns(context.fds[self.fd], namespaces.CLONE_NEWNS)
            try:
                context.fds[self.name] = _shm()
            finally:
                namespaces.setns(home, namespaces.CLONE_NEWNS)
        finally:
            os.close(home)


def map_ids(tree: int, userns: int, path: str) -> None:
    """mount_setattr(2) with MOUNT_ATTR_IDMAP. Raises EOPNOTSUPP where the file system or kernel can't."""
    try:
        mounts.map_ids(tree, userns)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EPERM, errno.ENOSYS):
            text = "its file system can't map user ids"
            raise OSError(errno.EOPNOTSUPP, text, path) from error
        raise


def _shm() -> int:
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
        resolve = paths.RESOLVE_IN_ROOT | paths.RESOLVE_NO_MAGICLINKS | paths.RESOLVE_NO_SYMLINKS
        found = paths.openat2(root, "dev/shm", flags, resolve=resolve)
        try:
            return mounts.open_tree("", directory=found, recursive=False)
        finally:
            os.close(found)
    finally:
        os.close(root)


def _give(fd: int, uid: int, gid: int) -> None:
    if fd < 0:
        return
    status = os.fstat(fd)
    # a pipe or terminal is this workload's alone; /dev/null and its like are everybody's
    if status.st_rdev and os.major(status.st_rdev) == 1:
        return
    try:
        os.fchown(fd, uid, gid)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EROFS, errno.EINVAL):
            raise
