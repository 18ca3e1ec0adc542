"""Paths beneath a directory descriptor that an untrusted tree can't lead astray, by openat2(2).

Symbolic links resolve as if the directory were `/`; magic links (/proc/PID/fd, exe, cwd, root) never.
Out of scope: reading or writing what was opened.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING

from knarr.kernel import libc

if TYPE_CHECKING:
    from collections.abc import Callable

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
BENEATH_PLAIN = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS

_RETRIES = 64


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(directory: int, path: str | bytes, flags: int, *, resolve: int = IN_ROOT, mode: int = 0) -> int:
    """The raw call, close-on-exec. A rename racing with a `..` gives EAGAIN: tried again, boundedly."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    name = os.fsencode(path)
    for left in range(_RETRIES, -1, -1):
        try:
            return libc.syscall(
                libc.OPENAT2, directory, name, ctypes.byref(how), ctypes.sizeof(how), path=path
            )
        except OSError as error:
            if error.errno != errno.EAGAIN or not left:
                raise
    raise AssertionError("unreachable")


def open_folder(root: int, path: str | bytes, *, resolve: int = IN_ROOT) -> int:
    """An O_PATH descriptor of a folder beneath `root`."""
    return openat2(root, path or ".", os.O_PATH | os.O_DIRECTORY, resolve=resolve)


def open_path(root: int, path: str | bytes, *, follow: bool = True, resolve: int = IN_ROOT) -> int:
    """An O_PATH descriptor of whatever lies at `path`; with `follow` off a final symbolic link itself."""
    return openat2(root, path or ".", os.O_PATH | (0 if follow else os.O_NOFOLLOW), resolve=resolve)


def make_folders(root: int, path: str, mode: int = 0o755, made: Callable[[int], None] | None = None) -> int:
    """An O_PATH descriptor of the folder at `path`, made with its parents where missing.

    `made` is called with each new one's descriptor, outermost first.
    """
    missing: list[str] = []
    while (fd := _there(root, path)) < 0:
        path, name = _split(path)
        missing.append(name)
    for name in reversed(missing):
        fd = _make_folder(fd, name, mode, made)
    return fd


def _there(root: int, path: str) -> int:
    """A descriptor, or -1 where there is nothing."""
    try:
        return open_folder(root, path)
    except FileNotFoundError:
        return -1


def _make_folder(above: int, name: str, mode: int, made: Callable[[int], None] | None) -> int:
    """A folder in `above`, which is closed."""
    try:
        try:
            os.mkdir(name, mode, dir_fd=above)
            new = True
        except FileExistsError:
            new = False
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
        fd = openat2(above, name, flags, resolve=RESOLVE_NO_MAGICLINKS)
    finally:
        os.close(above)
    if new and made is not None:
        try:
            made(fd)
        except BaseException:
            os.close(fd)
            raise
    return fd


def _split(path: str) -> tuple[str, str]:
    parent, name = os.path.split(os.path.normpath("/" + path).rstrip("/"))
    if not name:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return parent, name
