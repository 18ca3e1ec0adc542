"""A stand-in for the pool's writer that compares what a layer brings with what the pool has of it.

Only bytes that are wrong are written, at the places the index names; nothing is added. Out of scope: which
layers.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from knarr.images.store import ImageStore

_BLOCK = 4096
_PIECE = 1 << 20


class Repairer:
    def __init__(self, store: ImageStore, *, mend: bool, folder: str) -> None:
        self._store = store
        self._fd = store.pool.fd
        self._mend = mend
        self._folder = folder
        self.wrong: set[int] = set()
        """blocks at which contents begin that were not right"""

    def add(self, sha: bytes, views: list[memoryview], size: int) -> int:
        block = self._place(sha)
        if block:
            # a program that maps the file sees its last block to the end
            self._compare(block, block * _BLOCK, b"".join(views) + bytes(-size % _BLOCK))
        return block

    def add_stream(self, views: Iterable[memoryview], size: int) -> tuple[int, int]:
        blocks = (size + _BLOCK - 1) // _BLOCK
        block = self.add_pieces(((0, views),), blocks, hashlib.sha256())
        if block:
            self._compare(block, block * _BLOCK + size, bytes(-size % _BLOCK))
        return block, blocks

    def add_pieces(
        self, pieces: Iterable[tuple[int, Iterable[memoryview]]], blocks: int, sha: hashlib._Hash
    ) -> int:
        """The digest, and with it the place, is known at the end: until then the bytes wait in a file."""
        del blocks
        ranges: list[tuple[int, int]] = []
        with tempfile.TemporaryFile(dir=self._folder) as spool:
            for offset, views in pieces:
                for view in views:
                    sha.update(view)
                    spool.write(view)
                    ranges.append((offset, len(view)))
                    offset += len(view)  # noqa: PLW2901 - the place of the next view
            block = self._place(sha.digest())
            if block:
                self._compare_ranges(block, spool, ranges)
        return block

    def finish(self) -> None:
        """What was mended is on the disk."""
        if self.wrong and self._mend:
            os.fdatasync(self._fd)

    def _place(self, sha: bytes) -> int:
        with self._store.lock:
            found = self._store.records.content(sha)
        return found[0] if found is not None else 0

    def _compare_ranges(self, block: int, spool: IO[bytes], ranges: list[tuple[int, int]]) -> None:
        spool.seek(0)
        for offset, length in ranges:
            self._compare(block, block * _BLOCK + offset, spool.read(length))

    def _compare(self, block: int, at: int, right: bytes) -> None:
        if os.pread(self._fd, len(right), at) == right:
            return
        self.wrong.add(block)
        view = memoryview(right)
        while self._mend and view:
            done = os.pwrite(self._fd, view, at)
            view, at = view[done:], at + done
