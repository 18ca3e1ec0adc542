"""Steps that close a root after everything is mounted: masks, read-only paths, a read-only root.

Out of scope: which paths (`containers.security`), and mounting (`steps_mounts`).
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from knarr.kernel import libc, mounts, paths
from knarr.kernel.plan import Context, Step, register
from knarr.kernel.steps_mounts import PLAIN

_NULL = os.makedev(1, 3)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Mask(Step):
    """Cover what the kernel tells too much in: folders by an empty read-only tmpfs, files by /dev/null."""

    paths: tuple[str, ...]

    def describe(self) -> str:
        return "mask " + ", ".join(self.paths)

    def execute(self, context: Context) -> None:
        root = context.fds["root"]
        null = paths.openat2(root, "dev/null", os.O_PATH | os.O_NOFOLLOW, resolve=PLAIN)
        empty = -1
        try:
            if os.fstat(null).st_rdev != _NULL:
                raise OSError(errno.ENODEV, "not the null device", "/dev/null")
            for path in self.paths:
                empty = _mask(root, path, null, empty)
        finally:
            os.close(null)
            if empty >= 0:
                os.close(empty)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOnlyPaths(Step):
    """Bind each path onto itself, read-only."""

    paths: tuple[str, ...]

    def describe(self) -> str:
        return "read-only " + ", ".join(self.paths)

    def execute(self, context: Context) -> None:
        root = context.fds["root"]
        for path in self.paths:
            try:
                target = paths.openat2(root, path, os.O_PATH | os.O_NOFOLLOW, resolve=PLAIN)
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                tree = mounts.open_tree("", directory=target)
                try:
                    mounts.set_attributes(tree, add=mounts.MOUNT_ATTR_RDONLY)
                    mounts.attach(tree, target)
                finally:
                    os.close(tree)
            finally:
                os.close(target)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOnlyRoot(Step):
    """`--read-only`: the root's own mount; what is mounted on it stays as it was made."""

    def describe(self) -> str:
        return "read-only root"

    def execute(self, context: Context) -> None:  # noqa: ARG002
        mounts.set_attributes(libc.AT_FDCWD, add=mounts.MOUNT_ATTR_RDONLY, recursive=False, path="/")


_EMPTY = (
    mounts.MOUNT_ATTR_RDONLY | mounts.MOUNT_ATTR_NOSUID | mounts.MOUNT_ATTR_NODEV | mounts.MOUNT_ATTR_NOEXEC
)


def _mask(root: int, path: str, null: int, empty: int) -> int:
    """Cover one path. `empty` is the tmpfs to cover folders with, made with the first: the result."""
    try:
        target = paths.openat2(root, path, os.O_PATH | os.O_NOFOLLOW, resolve=PLAIN)
    except (FileNotFoundError, NotADirectoryError):
        return empty
    try:
        folder = stat.S_ISDIR(os.fstat(target).st_mode)
        if folder and empty < 0:
            empty = mounts.new_filesystem("tmpfs", {"mode": "555", "nr_inodes": "2"}, _EMPTY)
            mounts.attach(empty, target)
            return empty
        tree = mounts.open_tree("", directory=empty if folder else null, recursive=False)
        try:
            mounts.attach(tree, target)
        finally:
            os.close(tree)
        return empty
    finally:
        os.close(target)
