"""Tells what some processes change in a file system: fanotify on the whole of it, kept by who did it.

The events carry a handle of the folder and the name; the handle is opened to learn the folder's path.
Source: fanotify(7), open_by_handle_at(2). Needs root.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NEW = 0x200 | 0x400 | 0x800 | 0x1 | 0x2 | 0x10  # folder handle, name, UNLIMITED_QUEUE, CLOEXEC, NONBLOCK
_MODIFY, _ATTRIB, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE, _ON_FOLDERS = (
    2,
    4,
    0x40,
    0x80,
    0x100,
    0x200,
    0x40000000,
)
_MASK = _MODIFY | _ATTRIB | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _ON_FOLDERS
_ADD, _FILESYSTEM = 1, 0x100
_EVENT = struct.Struct("=IBBHQii")
_OPEN_BY_HANDLE_AT = 304
_libc = ctypes.CDLL(None, use_errno=True)


class HostWatch:
    """`changes` are the paths that anybody in `pids` touched; read after `stop`."""

    def __init__(self, path: str) -> None:
        self._fd = _checked(_libc.fanotify_init(_NEW | 0x10, os.O_RDONLY | os.O_CLOEXEC))
        where = (ctypes.c_uint64(_MASK), -100, path.encode())
        _checked(_libc.fanotify_mark(self._fd, _ADD | _FILESYSTEM, *where))
        self._mount = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._events: list[tuple[int, bytes, bytes]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        os.close(self._fd)

    def changes(self, pids: set[int]) -> set[str]:
        """Folders that are gone by now are left out: nothing of what was made in them is left either."""
        found = set()
        for pid, handle, name in self._events:
            if pid in pids:
                with contextlib.suppress(OSError):
                    found.add(os.path.join(self._folder(handle), os.fsdecode(name)))
        os.close(self._mount)
        return found

    def _read(self) -> None:
        while True:
            last = self._stopping.is_set()
            try:
                data = os.read(self._fd, 1 << 18)
            except BlockingIOError:
                if last:
                    return
                self._stopping.wait(0.02)
                continue
            self._events.extend(_events(data))

    def _folder(self, handle: bytes) -> str:
        buffer = ctypes.create_string_buffer(handle, len(handle))
        fd = _checked(_libc.syscall(_OPEN_BY_HANDLE_AT, self._mount, buffer, os.O_PATH | os.O_CLOEXEC))
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)


def _events(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    at = 0
    while at < len(data):
        length, _, _, head, mask, _, pid = _EVENT.unpack_from(data, at)
        assert not mask & 0x4000, "fanotify's queue overflowed"
        record = at + head
        while record < at + length:
            kind, _, size = struct.unpack_from("=BBH", data, record)
            if kind in (2, 3):  # a folder's handle, with or without a name
                start = record + 4 + 8  # after the file system's id
                width = 8 + struct.unpack_from("=I", data, start)[0]
                name = data[start + width : record + size].split(b"\0", 1)[0] if kind == 2 else b""
                yield pid, data[start : start + width], name
            record += size
        at += length


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
