"""Ranges of user ids for workloads, claimed in blocks that no other instance of this host has.

A block is held by a lock file whose descriptor lies with the holder, so a killed daemon loses nothing. Out
of scope: which workload gets which part (the caller tells what is in use).
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Final, Protocol

from knarr.model.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable

DEFAULT_FOLDER: Final = "/run/lock/knarr"
FIRST: Final = 0x70000000
LAST: Final = 0x7FFFFFFF
"""what systemd's table of ids leaves unused: above its containers', below the sign bit"""
BLOCK: Final = 1 << 24
SHARED: Final = 1 << 16
"""the first ids of each block are for workloads that share one range"""
_HELD: Final = "lock/ids/"
_SUB_IDS: Final = ("/etc/subuid", "/etc/subgid")


class FdStore(Protocol):
    """The holder's client."""

    def put(self, name: str, fd: int) -> None: ...
    def delete(self, pattern: str) -> int: ...
    def list(self, prefix: str = "") -> list[str]: ...


class Ranges:
    def __init__(self, instance: str, store: FdStore, folder: str = DEFAULT_FOLDER) -> None:
        self._instance = instance
        self._store = store
        self._folder = folder

    def blocks(self) -> list[int]:
        """The first ids of the blocks that are this instance's."""
        return sorted(int(name.removeprefix(_HELD), 16) for name in self._store.list(_HELD))

    def take(self, size: int, used: Iterable[tuple[int, int]]) -> int:
        """The first of `size` ids that nobody has. `used`: (first, count). Raises `Unavailable`."""
        taken = sorted(used)
        mine = self.blocks()
        for block in mine:
            start = _gap(block + SHARED, block + BLOCK, size, taken)
            if start is not None:
                return start
        if size <= BLOCK - SHARED:
            for block in range(FIRST, LAST, BLOCK):
                if block not in mine and self._claim(block):
                    return block + SHARED
        raise Unavailable(
            f"no {size} user ids are free on this host",
            hint="remove workloads, or ask for fewer: auto:size=N",
        )

    def shared(self) -> int:
        """The first id of the range that workloads share."""
        mine = self.blocks() or [self.take(1, ()) - SHARED]
        return mine[0]

    def hold(self, start: int, count: int) -> bool:
        """These ids are ours, now if not before; False when another instance has them."""
        mine = self.blocks()
        first = start - (start - FIRST) % BLOCK
        return all(
            block in mine or (FIRST <= block < LAST and self._claim(block))
            for block in range(first, start + count, BLOCK)
        )

    def release(self) -> None:
        """With the last workload."""
        for block in self.blocks():
            self._store.delete(_name(block))
            fd = self._lock(block)
            if fd is not None:
                # under the lock: without it another instance could have the file that goes, a third the next
                os.unlink(self._path(block))
                os.close(fd)

    def _path(self, block: int) -> str:
        return os.path.join(self._folder, f"ids-{block:08x}")

    def _claim(self, block: int) -> bool:
        if any(start < block + BLOCK and block < start + count for start, count in _delegated()):
            return False
        fd = self._lock(block)
        if fd is None:
            return False
        try:
            os.ftruncate(fd, 0)
            os.write(fd, self._instance.encode())
            self._store.put(_name(block), fd)
        finally:
            os.close(fd)
        return True

    def _lock(self, block: int) -> int | None:
        """The block's file, locked, for the caller to close; None while another has it."""
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        fd = os.open(self._path(block), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(fd, self._path(block)):
                return fd
        except BlockingIOError:
            pass
        except BaseException:
            os.close(fd)
            raise
        # it was released, and its file removed, in between: the next one asks again
        os.close(fd)
        return None


def _name(block: int) -> str:
    return f"{_HELD}{block:08x}"


def _gap(first: int, end: int, size: int, taken: list[tuple[int, int]]) -> int | None:
    for start, count in taken:
        if start + count <= first or start >= end:
            continue
        if start - first >= size:
            break
        first = max(first, start + count)
    return first if end - first >= size else None


def _same(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _delegated() -> list[tuple[int, int]]:
    """(first, count) of what this host gave to its users."""
    found = []
    for path in _SUB_IDS:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                rows = [line.strip().split(":") for line in file]
        except FileNotFoundError:
            continue
        found += [(int(row[1]), int(row[2])) for row in rows if len(row) == 3 and "".join(row[1:]).isdigit()]
    return found
