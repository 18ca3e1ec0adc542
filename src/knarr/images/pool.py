"""The pool: one sparse file with every distinct file content once, at 4 KiB-aligned places.

Contents are appended, never moved and never overwritten; freed ones become holes, a freed tail is cut off.
Places of removed contents are not used again (16 TiB of addresses), so a reader of an old tree can never
see foreign bytes. A `Session` is one ingest: it pins what it uses and adds, and either its rows are
recorded after the pool's fsync (`rows`, `recorded`), or `abort` gives back what nobody else uses. A
`Writer` belongs to one thread of a session. Block 0 holds a mark, so that 0 can mean "no place". Out of
scope: what the contents are, trees, the records' form.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from typing import TYPE_CHECKING

from knarr.kernel import holes
from knarr.model.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from knarr.images.records import Records

BLOCK = 4096
MARK = b"knarr pool 1\n"
_ARENA = 4096  # blocks a writer reserves at a time
_BATCH = 4 << 20
_COPY = 1 << 16
_VECTORS = 900  # below IOV_MAX
_MAX_BLOCKS = 0xFFFF_FFFE  # what EROFS can address
_ZEROS = bytes(BLOCK)
_PAD = memoryview(_ZEROS)


class Content:
    """One content in use by sessions."""

    __slots__ = ("block", "blocks", "pins", "recorded", "sha", "writer")

    def __init__(self, sha: bytes, block: int, blocks: int, *, recorded: bool, writer: Writer | None) -> None:
        self.sha = sha
        self.block = block
        self.blocks = blocks
        self.recorded = recorded
        self.writer = writer
        self.pins = 0


class Pool:
    def __init__(self, path: str, records: Records, lock: threading.RLock) -> None:
        self.path = path
        self.lock = lock
        self.records = records
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self.fd).st_size < BLOCK:
            os.pwrite(self.fd, MARK.ljust(BLOCK, b"\0"), 0)
        self._in_use: dict[bytes, Content] = {}
        self._sessions = 0
        self.changes = 0
        self._tail = records.end()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def recover(self) -> None:
        """After a crash: give back every block that no record names."""
        at = 1
        for block, blocks in self.records.contents():
            self._punch(at, block - at)
            at = block + blocks
        self._tail = at
        os.ftruncate(self.fd, at * BLOCK)

    def session(self) -> Session:
        with self.lock:
            self._sessions += 1
            return Session(self)

    @property
    def busy(self) -> bool:
        return self._sessions > 0

    def pinned(self, sha: bytes) -> bool:
        return sha in self._in_use

    def free(self, extents: Iterable[tuple[int, int]]) -> None:
        """Punch out contents whose rows are gone."""
        with self.lock:
            for block, blocks in _join(extents):
                self._punch(block, blocks)
            self.shrink()

    def shrink(self) -> None:
        """Cut off what lies behind the last content, unless somebody is writing."""
        if not self._sessions:
            self._tail = self.records.end()
            os.ftruncate(self.fd, self._tail * BLOCK)

    def _punch(self, block: int, blocks: int) -> None:
        if blocks > 0 and holes.has_data(self.fd, block * BLOCK, blocks * BLOCK):
            holes.punch_hole(self.fd, block * BLOCK, blocks * BLOCK)

    def reserve(self, blocks: int) -> int:
        with self.lock:
            block = self._tail
            if block + blocks > _MAX_BLOCKS:
                raise Unavailable(
                    "image pool is full: 16 TiB of addresses are used up", hint="start a new root"
                )
            self._tail += blocks
            return block

    def give_back(self, block: int, blocks: int) -> None:
        """Return the unused end of a reservation; only possible while it is the last one."""
        with self.lock:
            if block + blocks == self._tail:
                self._tail = block

    def find(self, sha: bytes, seen: int = -1) -> Content | None:
        """With the lock held. `seen`: what `changes` was when the records were last asked for it."""
        content = self._in_use.get(sha)
        if content is None and seen != self.changes and (row := self.records.content(sha)) is not None:
            content = self._in_use[sha] = Content(sha, *row, recorded=True, writer=None)
        return content

    def put(self, content: Content) -> None:
        """With the lock held."""
        self._in_use[content.sha] = content

    def leave(self, contents: Iterable[Content]) -> None:
        """A session ends: unpin, and punch out what no row and no other session names."""
        with self.lock:
            self._sessions -= 1
            self.changes += 1
            orphans = []
            for content in contents:
                content.pins -= 1
                if not content.pins:
                    del self._in_use[content.sha]
                    if not content.recorded:
                        orphans.append((content.block, content.blocks))
            self.free(orphans)


class Session:
    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._contents: dict[bytes, Content] = {}
        self._writers: list[Writer] = []
        self._open = True

    def writer(self) -> Writer:
        writer = Writer(self)
        self._writers.append(writer)
        return writer

    def flush(self) -> None:
        """All that this session's trees point to is in the file, also what other sessions had in hand."""
        with self.pool.lock:
            writers = {content.writer for content in self._contents.values() if content.writer is not None}
        for writer in writers.union(self._writers):
            writer.flush()
        with self.pool.lock:
            size = (
                max((content.block + content.blocks for content in self._contents.values()), default=1)
                * BLOCK
            )
            if os.fstat(self.pool.fd).st_size < size:
                os.ftruncate(self.pool.fd, size)

    def rows(self) -> list[tuple[int, int, bytes]]:
        """(block, blocks, sha) of contents that have no row yet."""
        return [
            (content.block, content.blocks, content.sha)
            for content in self._contents.values()
            if not content.recorded
        ]

    def recorded(self) -> None:
        for content in self._contents.values():
            content.recorded = True
            content.writer = None

    def close(self) -> None:
        """The end, after `recorded` or instead of it."""
        if self._open:
            self._open = False
            for writer in self._writers:
                writer.close()
            self.pool.leave(self._contents.values())

    # with the pool's lock held:

    def find(self, sha: bytes, seen: int = -1) -> Content | None:
        content = self._contents.get(sha)
        if content is None:
            content = self.pool.find(sha, seen)
            if content is not None:
                self.adopt(content)
        return content

    def adopt(self, content: Content) -> None:
        content.pins += 1
        self._contents[content.sha] = content


class Writer:
    """Adds contents, batching what is small. Not for two threads at once, but `flush` may come from any."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._pool = session.pool
        self._lock = threading.Lock()
        self._next = self._left = 0
        self._vectors: list[memoryview] = []
        self._start = self._bytes = 0
        self._synced = 0
        self._broken: OSError | None = None

    def add(self, sha: bytes, views: list[memoryview], size: int) -> int:
        """The block of a content that is in memory; written unless the pool has it. `size` > 0."""
        with self._pool.lock:
            content = self._session.find(sha)
            seen = self._pool.changes
        if content is not None:
            return content.block
        blocks = (size + BLOCK - 1) // BLOCK
        block = self._place(blocks)
        with self._lock:
            self._append(block, views, size)
        return self._publish(sha, block, blocks, seen)

    def add_stream(self, views: Iterable[memoryview], size: int) -> tuple[int, int]:
        """(block, blocks) of a content too large to hold: written first, given back if the pool had it."""
        blocks = (size + BLOCK - 1) // BLOCK
        return self.add_pieces(((0, views),), blocks, hashlib.sha256()), blocks

    def add_pieces(
        self, pieces: Iterable[tuple[int, Iterable[memoryview]]], blocks: int, sha: hashlib._Hash
    ) -> int:
        """The block of a content of which only some (offset, bytes) are data; `sha` may hold a prefix."""
        block = self._pool.reserve(blocks)
        try:
            for offset, views in pieces:
                at = block * BLOCK + offset
                for view in views:
                    sha.update(view)
                    self._write(at, view)
                    at += len(view)
            return self._publish(sha.digest(), block, blocks, -1)
        except BaseException:
            with contextlib.suppress(OSError):
                self.flush()
            self._pool.free([(block, blocks)])
            raise

    def flush(self) -> None:
        with self._lock:
            self._write_out()

    def close(self) -> None:
        with self._lock:
            # another session may count on what is in hand here; if it can't be written, its flush says so
            with contextlib.suppress(OSError):
                self._write_out()
            if self._left:
                self._pool.give_back(self._next, self._left)
                self._left = 0

    def _publish(self, sha: bytes, block: int, blocks: int, seen: int) -> int:
        """Make a written content findable. If two writers wrote the same, the first to come here wins."""
        with self._pool.lock:
            first = self._session.find(sha, seen)
            if first is None:
                content = Content(sha, block, blocks, recorded=False, writer=self)
                self._pool.put(content)
                self._session.adopt(content)
                return block
        with self._lock:
            self._write_out()
        self._pool.free([(block, blocks)])
        return first.block

    def _place(self, blocks: int) -> int:
        if blocks > self._left:
            self._pool.give_back(self._next, self._left)
            self._left = max(blocks, _ARENA)
            self._next = self._pool.reserve(self._left)
        block = self._next
        self._next += blocks
        self._left -= blocks
        return block

    # with self._lock held:

    def _append(self, block: int, views: list[memoryview], size: int) -> None:
        if block * BLOCK != self._start + self._bytes:
            self._write_out()
            self._start = block * BLOCK
        for view in views:
            self._append_view(view)
        padding = -size % BLOCK
        if padding:
            self._vectors.append(_PAD[:padding])
            self._bytes += padding
        if self._bytes >= _BATCH or len(self._vectors) >= _VECTORS - 4:
            self._write_out()

    def _append_view(self, view: memoryview) -> None:
        """Batch a view, leaving its whole zero blocks out of the file."""
        if len(view) < _COPY:
            # a small view would keep its whole chunk in memory until the batch is written
            view = memoryview(bytes(view))
        done = 0
        for start, end in _zero_runs(view, (self._start + self._bytes) % BLOCK):
            if start > done:
                self._vectors.append(view[done:start])
                self._bytes += start - done
            next_start = self._start + self._bytes + end - start
            self._write_out()
            self._start = next_start
            done = end
        if done < len(view):
            self._vectors.append(view[done:])
            self._bytes += len(view) - done

    def _write(self, at: int, view: memoryview) -> None:
        with self._lock:
            if at != self._start + self._bytes:
                self._write_out()
                self._start = at
            self._append_view(view)
            if self._bytes >= _BATCH:
                self._write_out()

    def _write_out(self) -> None:
        if self._broken is not None:
            raise self._broken
        start, vectors = self._start, self._vectors
        self._start, self._vectors, self._bytes = start + self._bytes, [], 0
        at = start
        try:
            for index in range(0, len(vectors), _VECTORS):
                at += _write_all(self._pool.fd, vectors[index : index + _VECTORS], at)
        except OSError as error:
            # whoever shares these contents must fail as well
            self._broken = error
            raise
        if at > start:
            holes.start_writeback(self._pool.fd, start, at - start)


def _write_all(fd: int, vectors: list[memoryview], at: int) -> int:
    total = sum(map(len, vectors))
    done = os.pwritev(fd, vectors, at)
    if done < total:
        rest = memoryview(b"".join(vectors))
        while done < total:
            done += os.pwrite(fd, rest[done:], at + done)
    return total


def _zero_runs(view: memoryview, phase: int) -> Iterator[tuple[int, int]]:
    """(start, end) of the runs of whole zero blocks in a view that begins `phase` bytes into a block."""
    first = -phase % BLOCK
    if len(view) - first < BLOCK:
        return
    # one byte of every block in a single C call: most blocks are judged by that
    heads = bytes(view[first::BLOCK])
    index = heads.find(0)
    while index >= 0:
        start = end = first + index * BLOCK
        while end + BLOCK <= len(view) and view[end] == 0 and bytes(view[end : end + BLOCK]) == _ZEROS:
            end += BLOCK
        if end > start:
            yield start, end
        index = heads.find(0, index + max(1, (end - start) // BLOCK))


def _join(extents: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    start = length = 0
    for block, blocks in sorted(extents):
        if length and block == start + length:
            length += blocks
            continue
        if length:
            yield start, length
        start, length = block, blocks
    if length:
        yield start, length


@contextlib.contextmanager
def session(pool: Pool) -> Iterator[Session]:
    current = pool.session()
    try:
        yield current
    finally:
        current.close()
