"""Log files: what the mover writes, what the daemon reads.

A folder holds `out` and `err`, the raw bytes of each stream, and `index`, an append-only array of 24-byte
records that tell when which bytes came (docs/architecture.md section 7):

    u64 time_ns, u64 offset, u32 length, u32 stream      (1 = out, 2 = err, bit 31: found after a kill)

Bytes are never rewritten. Out of scope: moving bytes (`keeper.stream`), how a front end prints them.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

RECORD = struct.Struct("<QQII")
RECOVERED = 1 << 31
NAMES = {1: "out", 2: "err"}

_PIECE = 64 * 1024
_BATCH = RECORD.size * 1024
_MAX_LENGTH = 1 << 30


class Record(NamedTuple):
    """One line of the index. `stream` is 1 or 2."""

    time: int
    offset: int
    length: int
    stream: int


class LogWriter:
    """The mover's side.

    Files are opened with the first byte; what a kill left unrecorded is recorded then.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._index = -1
        self._files: dict[int, int] = {}
        self._recorded: dict[int, int] = {}
        self._position: dict[int, int] = {}

    def target(self, stream: int) -> tuple[int, int]:
        """The stream's file and where its next byte goes. Raises OSError."""
        if stream not in self._files:
            self._open(stream)
        elif self._recorded[stream] < self._position[stream]:
            self._record(stream, 0)
        return self._files[stream], self._position[stream]

    def moved(self, stream: int, length: int) -> None:
        """`length` bytes are in the file now.

        Raises OSError when the index can't take it: `target` tries again.
        """
        self._position[stream] += length
        self._record(stream, 0)

    def recover(self) -> None:
        """Record what a killed mover moved without: further bytes may never come. Raises OSError."""
        for stream, name in NAMES.items():
            if stream not in self._files and os.path.exists(os.path.join(self._folder, name)):
                self._open(stream)

    def close(self) -> None:
        for fd in (*self._files.values(), self._index):
            if fd >= 0:
                os.close(fd)
        self._files.clear()
        self._index = -1

    def _open(self, stream: int) -> None:
        if self._index < 0:
            self._index = self._open_file("index", os.O_RDWR | os.O_APPEND)
            # a record torn by a full disk would shift all later ones
            os.ftruncate(self._index, os.fstat(self._index).st_size // RECORD.size * RECORD.size)
        fd = self._open_file(NAMES[stream], os.O_WRONLY)
        try:
            self._position[stream] = os.fstat(fd).st_size
            self._recorded[stream] = _recorded_end(self._index, stream)
            if self._recorded[stream] < self._position[stream]:
                self._record(stream, RECOVERED)
        except OSError:
            os.close(fd)
            raise
        self._files[stream] = fd

    def _open_file(self, name: str, flags: int) -> int:
        flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(os.path.join(self._folder, name), flags, 0o600)

    def _record(self, stream: int, flag: int) -> None:
        while (start := self._recorded[stream]) < self._position[stream]:
            length = min(self._position[stream] - start, _MAX_LENGTH)
            record = RECORD.pack(time.time_ns(), start, length, stream | flag)
            size = os.fstat(self._index).st_size
            if os.write(self._index, record) != RECORD.size:
                os.ftruncate(self._index, size)
                raise OSError(errno.ENOSPC, "no space for the index")
            self._recorded[stream] = start + length


class LogReader:
    """One reader of one folder; each yields pieces of at most 64 KiB in the order they were written.

    `position` is where the next `read` goes on: keep it and come back for more. `fileno` becomes readable
    when there may be more (call `changed` then).
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._files: dict[str, int] = {}
        self._inotify = -1
        self._skip: dict[int, int] = {}
        """bytes of each stream below these offsets are not wanted: lines that began before the tail"""
        self.position = 0

    def end(self) -> int:
        """The position behind everything there is."""
        fd = self._file("index")
        return os.fstat(fd).st_size // RECORD.size * RECORD.size if fd >= 0 else 0

    def read(
        self,
        since: int = 0,
        until: int | None = None,
        tail: int | None = None,
        position: int | None = None,
    ) -> Iterator[tuple[int, int, bytes]]:
        """(time_ns, stream, bytes) from `position` (default: where the last read stopped) to the present end.

        `since` and `until` are nanoseconds, both included; `tail` is a number of lines, counted over both
        streams.
        """
        if position is not None:
            self.position = position
            self._skip = {}
        if tail is not None:
            self._go_to_tail(tail)
        while True:
            records = self._records(self.position, _BATCH)
            if not records:
                return
            for record in records:
                if since <= record.time and (until is None or record.time <= until):
                    yield from self._pieces(record)
                self.position += RECORD.size

    def fileno(self) -> int:
        """An inotify descriptor that wakes up when the mover has written."""
        if self._inotify < 0:
            from knarr.kernel import inotify

            self._inotify = inotify.watch(self._folder)
        return self._inotify

    def changed(self) -> None:
        """Take the news off `fileno`."""
        try:
            while os.read(self.fileno(), 65536):
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        for fd in (*self._files.values(), self._inotify):
            if fd >= 0:
                os.close(fd)
        self._files.clear()
        self._inotify = -1

    def _file(self, name: str) -> int:
        """A descriptor, -1 while nothing was written."""
        if name not in self._files:
            try:
                path = os.path.join(self._folder, name)
                self._files[name] = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                return -1
        return self._files[name]

    def _records(self, position: int, size: int) -> list[Record]:
        fd = self._file("index")
        if fd < 0:
            return []
        return _decode(os.pread(fd, size, position))

    def _pieces(self, record: Record) -> Iterator[tuple[int, int, bytes]]:
        start, end = record.offset, record.offset + record.length
        start = max(start, self._skip.get(record.stream, 0))
        while start < end:
            data = self._bytes(record.stream, start, min(end - start, _PIECE))
            if not data:
                return
            yield record.time, record.stream, data
            start += len(data)

    def _bytes(self, stream: int, offset: int, size: int) -> bytes:
        fd = self._file(NAMES.get(stream, "out"))
        return os.pread(fd, size, offset) if fd >= 0 else b""

    def _go_to_tail(self, lines: int) -> None:
        """Set `position` and `_skip` so that the last `lines` lines follow."""
        self.position = end = self.end()
        self._skip = {}
        for position, stream, offset in self._line_starts(end):
            if lines <= 0:
                break
            self.position, self._skip[stream] = position, offset
            lines -= 1
        index = self._file("index")
        for stream in NAMES:
            # none of its lines is wanted, nor the rest of one that began before
            if stream not in self._skip and index >= 0:
                self._skip[stream] = _recorded_end(index, stream)

    def _line_starts(self, position: int) -> Iterator[tuple[int, int, int]]:
        """(position, stream, offset) of each line's first byte, last line first."""
        while position > 0:
            size = min(_BATCH, position)
            position -= size
            batch = self._records(position, size)
            for number in range(len(batch) - 1, -1, -1):
                for offset in self._starts_inside(batch[number]):
                    yield position + number * RECORD.size, batch[number].stream, offset

    def _starts_inside(self, record: Record) -> Iterator[int]:
        """Offsets at which lines begin inside the record, last first."""
        end = record.offset + record.length
        while end > record.offset:
            start = max(record.offset, end - _PIECE)
            # a line begins behind the newline before it, which may lie one byte before the record
            base = max(start - 1, 0)
            data = self._bytes(record.stream, base, end - 1 - base)
            found = data.rfind(b"\n")
            while found >= 0:
                yield base + found + 1
                found = data.rfind(b"\n", 0, found)
            if start == 0:
                yield 0
            end = start


def lines(pieces: Iterator[tuple[int, int, bytes]]) -> Iterator[tuple[int, int, bytes]]:
    """Pieces made into lines with the time of their first byte; a last line may lack its newline."""
    rest: dict[int, tuple[int, bytes]] = {}
    for when, stream, data in pieces:
        began, before = rest.pop(stream, (when, b""))
        for line in _split(before + data):
            if line.endswith(b"\n"):
                yield began, stream, line
                began = when
            else:
                rest[stream] = (began, line)
    for stream, (when, line) in rest.items():
        yield when, stream, line


def _split(data: bytes) -> list[bytes]:
    parts = data.split(b"\n")
    whole = [part + b"\n" for part in parts[:-1]]
    return [*whole, parts[-1]] if parts[-1] else whole


def _decode(data: bytes) -> list[Record]:
    whole = len(data) // RECORD.size * RECORD.size
    return [
        Record(when, offset, length, stream & ~RECOVERED)
        for when, offset, length, stream in RECORD.iter_unpack(data[:whole])
    ]


def _recorded_end(index: int, stream: int) -> int:
    """How far the stream's records reach; they are in order, so the last one tells."""
    position = os.fstat(index).st_size
    while position > 0:
        size = min(_BATCH, position)
        position -= size
        for record in reversed(_decode(os.pread(index, size, position))):
            if record.stream == stream:
                return record.offset + record.length
    return 0
