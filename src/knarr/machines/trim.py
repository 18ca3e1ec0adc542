"""Bounds the files that QEMU appends to on a guest's word: console, messages, status.

They are open for appending, so what is cut goes on at the new end. Out of scope: when to look
(`engine.guestfiles`), and the streams, whose files the mover rotates.
"""

from __future__ import annotations

import os
from typing import Final

from knarr.machines import status

LARGEST: Final = 1 << 20
"""bytes of a console's or QEMU's messages, beyond which only the last `KEPT` stay"""
KEPT: Final = 256 << 10
_TAILS: Final = ("console.log", "qemu.log")
_HEAD: Final = "vm-status"


def trim(folder: str) -> list[str]:
    """Cut what is too large in a workload's folder; the files' names. What is missing is small enough."""
    found = [name for name in _TAILS if _cut(os.path.join(folder, name), LARGEST, KEPT)]
    # the first words of each kind count, so its end says nothing
    if _cut(os.path.join(folder, _HEAD), status.LIMIT, 0):
        found.append(_HEAD)
    return found


def _cut(path: str, largest: int, kept: int) -> bool:
    try:
        if os.stat(path, follow_symlinks=False).st_size <= largest:
            return False
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not kept:
            os.ftruncate(fd, largest)
            return True
        tail = os.pread(fd, kept, max(0, os.fstat(fd).st_size - kept))
        os.ftruncate(fd, 0)
        os.write(fd, tail)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
