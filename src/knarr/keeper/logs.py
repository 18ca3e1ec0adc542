"""Log files as the daemon reads them, over all generations as if they were one.

Out of scope: the form (`keeper.logfiles`), writing (`keeper.logwriter`), how a front end prints them.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from knarr.keeper import logfiles
from knarr.keeper.logfiles import BATCH, CONTINUES, HEADER, NAMES, RECORD, Record

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE = 64 * 1024
_FARTHEST = 1 << 62
_SHIFT = 40
_INDEX = (1 << _SHIFT) - 1


class LogReader:
    """One reader of one folder; each yields pieces of at most 64 KiB in the order they were written.

    `position` is where the next `read` goes on (generation and place in its index): keep it and come back for
    more. `fileno` becomes readable when there may be more (call `changed` then). With `hold` nothing that it
    has not read is rotated away.
    """

    def __init__(self, folder: str, *, hold: bool = False) -> None:
        self._folder = folder
        self._hold = hold
        self._files: dict[tuple[str, int], int] = {}
        self._inotify = -1
        self._skip: dict[int, tuple[int, int]] = {}
        """bytes of each stream before this (generation, offset) are not wanted: lines that began before the
        tail"""
        self._cut: set[int] = set()
        """streams that begin within a line whose beginning is gone"""
        self._inside: set[int] = set()
        """streams of which the last byte given ended no line"""
        self._gap = False
        """the generation before this one was not read"""
        self.position = 0

    def end(self) -> int:
        """The position behind everything there is. Who holds it misses nothing from there on."""
        found = self._generations()
        if not found and self._hold:
            os.close(os.open(self._path("index", 0), os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600))
            found = self._generations()
        if not found:
            return 0
        fd = self._file("index", found[-1])
        size = os.fstat(fd).st_size // RECORD.size * RECORD.size if fd >= 0 else 0
        return found[-1] << _SHIFT | size

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
        while records := self._next_records():
            for record in records:
                if record.flags & HEADER:
                    yield from self._enter(record)
                elif since <= record.time and (until is None or record.time <= until):
                    yield from self._pieces(record)
                elif record.stream in self._cut:
                    for _ in self._pieces(record):
                        pass
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
        self._close_but(None)
        if self._inotify >= 0:
            os.close(self._inotify)
        self._inotify = -1

    # generations

    def _generations(self) -> list[int]:
        try:
            return logfiles.generations(self._folder)
        except FileNotFoundError:
            return []

    def _next_records(self) -> list[Record]:
        while True:
            records = self._records(self.position)
            if records:
                return records
            now = self.position >> _SHIFT
            later = self._later(now)
            # the last records of a generation come before the next one does
            records = self._records(self.position)
            if records or not later:
                return records
            self._gap = later[0] != now + 1 or self._file("index", now) < 0
            self.position = later[0] << _SHIFT
            self._file("index", later[0])
            self._close_but(later[0])

    def _later(self, now: int) -> list[int]:
        """The next generation, or those behind a gap. They have no gap but the one at the beginning."""
        if os.path.exists(self._path("index", now + 1)):
            return [now + 1]
        index = self._file("index", now)
        if index >= 0 and os.fstat(index).st_nlink:
            return []
        return [number for number in self._generations() if number > now]

    def _enter(self, header: Record) -> Iterator[tuple[int, int, bytes]]:
        """Behind a gap a line that was begun ends, and one that began in it is left out."""
        if not self._gap:
            return
        if header.flags & CONTINUES:
            self._cut.add(header.stream)
        if header.stream in self._inside:
            self._inside.discard(header.stream)
            yield header.time, header.stream, b"\n"

    def _close_but(self, generation: int | None) -> None:
        for key in [key for key in self._files if key[1] != generation]:
            os.close(self._files.pop(key))

    def _path(self, kind: str, generation: int) -> str:
        return os.path.join(self._folder, logfiles.name(kind, generation))

    def _file(self, kind: str, generation: int) -> int:
        """A descriptor, -1 while nothing was written, or when it has been rotated away."""
        key = (kind, generation)
        if key not in self._files:
            try:
                fd = os.open(self._path(kind, generation), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                return -1
            if self._hold and kind == "index":
                fcntl.flock(fd, fcntl.LOCK_SH)
            self._files[key] = fd
        return self._files[key]

    def _records(self, position: int, size: int = BATCH) -> list[Record]:
        fd = self._file("index", position >> _SHIFT)
        return logfiles.decode(os.pread(fd, size, position & _INDEX)) if fd >= 0 else []

    # bytes

    def _pieces(self, record: Record) -> Iterator[tuple[int, int, bytes]]:
        generation = self.position >> _SHIFT
        start, end = record.offset, record.offset + record.length
        skipped = self._skip.get(record.stream, (0, 0))
        if generation <= skipped[0]:
            start = end if generation < skipped[0] else max(start, skipped[1])
        while start < end:
            data = self._bytes(record.stream, generation, start, min(end - start, _PIECE))
            if not data:
                return
            start += len(data)
            if record.stream in self._cut:
                data = self._uncut(record.stream, data)
            if data:
                if data.endswith(b"\n"):
                    self._inside.discard(record.stream)
                else:
                    self._inside.add(record.stream)
                yield record.time, record.stream, data

    def _uncut(self, stream: int, data: bytes) -> bytes:
        """What follows the rest of a line whose beginning is gone."""
        _, newline, data = data.partition(b"\n")
        if newline:
            self._cut.discard(stream)
        return data

    def _bytes(self, stream: int, generation: int, offset: int, size: int) -> bytes:
        fd = self._file(NAMES.get(stream, "out"), generation)
        # an index that a broken disk changed may speak of places that no file has
        return os.pread(fd, size, offset) if fd >= 0 and offset < _FARTHEST else b""

    # tails

    def _go_to_tail(self, lines: int) -> None:
        """Set `position` and `_skip` so that the last `lines` lines follow."""
        self.position = end = self.end()
        self._skip = {}
        for position, stream, offset in self._line_starts():
            if lines <= 0:
                break
            self.position, self._skip[stream] = position, (position >> _SHIFT, offset)
            lines -= 1
        newest = end >> _SHIFT
        index = self._file("index", newest)
        for stream in NAMES:
            # none of its lines is wanted, nor the rest of one that began before
            if stream not in self._skip and index >= 0:
                self._skip[stream] = (newest, logfiles.recorded_end(index, stream))

    def _line_starts(self) -> Iterator[tuple[int, int, int]]:
        """(position, stream, offset) of each line's first byte, last line first."""
        for generation in reversed(self._generations()):
            index = self._file("index", generation)
            if index < 0:
                return
            yield from self._starts_of(generation, index)
            self._close_but(generation)

    def _starts_of(self, generation: int, index: int) -> Iterator[tuple[int, int, int]]:
        goes_on = {stream for stream, header in logfiles.headers(index).items() if header.flags & CONTINUES}
        position = os.fstat(index).st_size // RECORD.size * RECORD.size
        while position > 0:
            size = min(BATCH, position)
            position -= size
            batch = self._records(generation << _SHIFT | position, size)
            for number in range(len(batch) - 1, -1, -1):
                record, at = batch[number], generation << _SHIFT | position + number * RECORD.size
                if record.flags & HEADER:
                    continue
                for offset in self._starts_inside(record, generation):
                    if offset or record.stream not in goes_on:
                        yield at, record.stream, offset

    def _starts_inside(self, record: Record, generation: int) -> Iterator[int]:
        """Offsets at which lines begin inside the record, last first."""
        end = record.offset + record.length
        while end > record.offset:
            start = max(record.offset, end - _PIECE)
            # a line begins behind the newline before it, which may lie one byte before the record
            base = max(start - 1, 0)
            data = self._bytes(record.stream, generation, base, end - 1 - base)
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
