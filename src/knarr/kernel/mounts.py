"""Mounts: the classic calls, the descriptor-based ones, and EROFS trees whose chunks lie in a pool.

Constants from linux/mount.h and sys/mount.h. Out of scope: what is mounted where (steps, planners).
"""

from __future__ import annotations

import ctypes
import errno
import os

from knarr.kernel import libc

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08

_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6

_mount = libc.function(
    "mount",
    [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p],
    nogil=True,
)
_umount2 = libc.function("umount2", [ctypes.c_char_p, ctypes.c_int], nogil=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """The classic call. Raises OSError naming the target."""
    name = kind.encode() if kind else None
    options = os.fsencode(data) if data else None
    if _mount(os.fsencode(source), os.fsencode(target), name, flags, options) < 0:
        raise libc.fail(target)


def umount(target: str, flags: int = 0) -> None:
    if _umount2(os.fsencode(target), flags) < 0:
        raise libc.fail(target)


def open_tree(
    path: str | bytes, *, directory: int = libc.AT_FDCWD, clone: bool = True, recursive: bool = True
) -> int:
    """The mount at `path` (empty: `directory`) as a descriptor; with `clone` a detached private copy."""
    flags = OPEN_TREE_CLOEXEC | (OPEN_TREE_CLONE if clone else 0) | (libc.AT_EMPTY_PATH if not path else 0)
    flags |= libc.AT_RECURSIVE if clone and recursive else 0
    return libc.syscall(libc.OPEN_TREE, directory, os.fsencode(path), flags, path=path)


def attach(tree: int, target: int) -> None:
    """move_mount(2): put a detached mount onto the file or folder that `target` (O_PATH) is."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    libc.syscall(libc.MOVE_MOUNT, tree, b"", target, b"", flags)


def set_attributes(
    tree: int, *, add: int = 0, clear: int = 0, propagation: int = 0, recursive: bool = True, path: str = ""
) -> None:
    """mount_setattr(2) on the mount `tree` is, or on the one at `path` when `tree` is AT_FDCWD."""
    attributes = _MountAttr(add, clear, propagation, 0)
    flags = (0 if path else libc.AT_EMPTY_PATH) | (libc.AT_RECURSIVE if recursive else 0)
    libc.syscall(
        libc.MOUNT_SETATTR,
        tree,
        os.fsencode(path),
        flags,
        ctypes.byref(attributes),
        ctypes.sizeof(attributes),
        path=path or None,
    )


def new_filesystem(kind: str, options: dict[str, str | None] | None = None, attributes: int = 0) -> int:
    """A detached mount by fsopen, fsconfig, fsmount. An option without value is a flag."""
    context = libc.syscall(libc.FSOPEN, kind.encode(), 1, path=kind)
    try:
        for key, value in (options or {}).items():
            command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
            text = None if value is None else os.fsencode(value)
            libc.syscall_nogil(libc.FSCONFIG, context, command, key.encode(), text, path=f"{kind} {key}")
        libc.syscall_nogil(libc.FSCONFIG, context, _FSCONFIG_CMD_CREATE, path=kind)
        return libc.syscall_nogil(libc.FSMOUNT, context, 1, attributes, path=kind)
    finally:
        os.close(context)


def make_private(path: str = "/") -> None:
    mount("", path, flags=MS_REC | MS_PRIVATE)


def through_fd(fd: int) -> str:
    """A path for calls that want one: short, free of commas and colons, immune to renames. Needs /proc."""
    return f"/proc/self/fd/{fd}"


def mount_erofs(tree: str, pool: str, target: str) -> None:
    """Mount the metadata-only image `tree`, whose chunks lie in `pool`, read-only at `target`.

    Straight from the files on Linux ≥ 6.12, with `directio` where the file system below allows it
    (otherwise the pool would be cached twice); by two loop devices before that.
    """
    opened = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in (tree, pool)]
    try:
        source, device = (through_fd(fd) for fd in opened)
        if _mount_erofs_file(source, device, target):
            return
        from knarr.kernel import loop

        with loop.attached(opened[0]) as first, loop.attached(opened[1]) as second:
            mount(first, target, "erofs", _IMAGE, f"device={second}")
    finally:
        for fd in opened:
            os.close(fd)


_IMAGE = MS_RDONLY | MS_NODEV


def _mount_erofs_file(source: str, device: str, target: str) -> bool:
    for extra in (",directio", ""):
        try:
            mount(source, target, "erofs", _IMAGE, f"device={device}{extra}")
            return True
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTBLK):
                raise
    return False
