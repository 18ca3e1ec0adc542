"""inotify(7): one folder's files have been written to. Out of scope: which file, and what it says."""

from __future__ import annotations

import ctypes
import os

from knarr.kernel import libc

_IN_MODIFY = 0x002
_IN_CREATE = 0x100
_IN_DELETE = 0x200
_IN_ONLYDIR = 0x01000000

_init = libc.function("inotify_init1", [ctypes.c_int])
_add = libc.function("inotify_add_watch", [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32])


def watch(folder: str, *, removals: bool = False) -> int:
    """A non-blocking descriptor, readable once a file in `folder` was made or written (or removed). Raises
    OSError.
    """
    wanted = _IN_MODIFY | _IN_CREATE | _IN_ONLYDIR | (_IN_DELETE if removals else 0)
    fd = int(_init(os.O_CLOEXEC | os.O_NONBLOCK))
    if fd < 0:
        raise libc.fail(folder)
    if _add(fd, os.fsencode(folder), wanted) < 0:
        error = libc.fail(folder)
        os.close(fd)
        raise error
    return fd
