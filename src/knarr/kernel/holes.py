"""Holes in files, and write-back begun early: fallocate(2), lseek(2) SEEK_DATA, sync_file_range(2).

Out of scope: which ranges; the image pool decides.
"""

from __future__ import annotations

import ctypes
import errno
import os

KEEP_SIZE = 1
PUNCH_HOLE = 2
SYNC_WRITE = 2

_lib = ctypes.CDLL(None, use_errno=True)
_fallocate = _lib.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_sync_file_range = _lib.sync_file_range
_sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give the blocks of a range back to the file system; it reads as zeros, the size stays."""
    if _fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, length):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def reserve(fd: int, offset: int, length: int) -> None:
    """Blocks for what will be written there, so that a full disk shows now. The size stays."""
    if _fallocate(fd, KEEP_SIZE, offset, length):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def start_writeback(fd: int, offset: int, length: int) -> None:
    """Begin to write a range's dirty pages and return; a hint, so that a later fsync has less to do."""
    _sync_file_range(fd, offset, length, SYNC_WRITE)


def has_data(fd: int, offset: int, length: int) -> bool:
    """Whether any block of the range is allocated, as far as the file system tells."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA) < offset + length
    except OSError as error:
        if error.errno == errno.ENXIO:
            return False
        raise
