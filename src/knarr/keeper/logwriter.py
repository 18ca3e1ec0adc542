"""The mover's side of a log folder: where the next byte goes, which bytes came when, the next generation.

A kill at any moment loses and doubles nothing: a byte is in a file or still in the pipe; what is in a file
and not in the index is recorded by the next mover; a generation begins by the rename of its index, after
all of the one before is recorded. Out of scope: moving bytes (`keeper.stream`), the form (`keeper.logfiles`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from knarr.keeper import logfiles
from knarr.keeper.logfiles import CONTINUES, HEADER, NAMES, RECORD, RECOVERED

_MAX_LENGTH = 1 << 30
_HELD = 64 << 20
"""bytes beyond the rotation's bound that wait for who is attached, before the workload does"""


class LogWriter:
    """Files are opened with the first byte; what a kill left unrecorded is recorded then."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._generation = 0
        self._oldest = 0
        """not newer than the oldest generation that is there"""
        self._rotation = logfiles.Rotation()
        self._index = -1
        self._files: dict[int, int] = {}
        self._recorded: dict[int, int] = {}
        self._position: dict[int, int] = {}
        self._before: dict[int, logfiles.Record] = {}
        self._used = 0
        """bytes of both streams in this generation"""

    def target(self, stream: int) -> tuple[int, int, int]:
        """The stream's file, where its next byte goes, and how many may follow. Raises OSError."""
        if stream not in self._files:
            self._open(stream)
        elif self._recorded[stream] < self._position[stream]:
            self._record(stream, 0)
        limit = self._rotation.max_size
        if not limit:
            return self._files[stream], self._position[stream], _MAX_LENGTH
        if self._used >= limit:
            self._rotate()
            self._open(stream)
        return self._files[stream], self._position[stream], limit - self._used

    def moved(self, stream: int, length: int) -> None:
        """`length` bytes are in the file now.

        Raises OSError when the index can't take it: `target` tries again.
        """
        self._position[stream] += length
        self._used += length
        self._record(stream, 0)

    def recover(self) -> None:
        """Record what a killed mover moved without, or an index that was full did not take: further bytes
        may never come. Raises OSError.
        """
        if self._index < 0:
            found = logfiles.generations(self._folder)
            self._generation = found[-1] if found else 0
        for stream, kind in NAMES.items():
            if stream in self._files:
                self._record(stream, 0)
            elif os.path.exists(self._path(kind, self._generation)):
                self._open(stream)

    def close(self) -> None:
        for fd in (*self._files.values(), self._index):
            if fd >= 0:
                os.close(fd)
        self._files.clear()
        self._index = -1

    def _open(self, stream: int) -> None:
        if self._index < 0:
            self._open_generation()
        fd = self._open_file(NAMES[stream], os.O_RDWR)
        try:
            self._position[stream] = os.fstat(fd).st_size
            self._recorded[stream] = logfiles.recorded_end(self._index, stream)
            if self._recorded[stream] < self._position[stream]:
                self._record(stream, RECOVERED)
        except OSError:
            os.close(fd)
            raise
        self._files[stream] = fd

    def _open_generation(self) -> None:
        """The newest that is there."""
        found = logfiles.generations(self._folder)
        # what a kill left of an older one is swept as well
        self._oldest = 0
        self._rotation = logfiles.rotation(self._folder)
        self._begin(found[-1] if found else 0)

    def _begin(self, generation: int) -> None:
        """Its size counts from what is in the files."""
        self._generation = generation
        self._index = self._open_file("index", os.O_RDWR | os.O_APPEND)
        # a record torn by a full disk would shift all later ones
        os.ftruncate(self._index, os.fstat(self._index).st_size // RECORD.size * RECORD.size)
        self._before = logfiles.headers(self._index)
        self._used = sum(self._size(stream) for stream in NAMES)

    def _open_file(self, kind: str, flags: int) -> int:
        flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self._path(kind, self._generation), flags, 0o600)

    def _path(self, kind: str, generation: int) -> str:
        return os.path.join(self._folder, logfiles.name(kind, generation))

    def _size(self, stream: int) -> int:
        try:
            return os.stat(self._path(NAMES[stream], self._generation)).st_size
        except FileNotFoundError:
            return 0

    def _record(self, stream: int, flag: int) -> None:
        while (start := self._recorded[stream]) < self._position[stream]:
            length = min(self._position[stream] - start, _MAX_LENGTH)
            record = RECORD.pack(time.time_ns(), start, length, stream | flag)
            size = os.fstat(self._index).st_size
            if os.write(self._index, record) != RECORD.size:
                os.ftruncate(self._index, size)
                raise OSError(errno.ENOSPC, "no space for the index")
            self._recorded[stream] = start + length

    # the next generation

    def _rotate(self) -> None:
        """Raises OSError with nothing begun."""
        if self._drop_old() > _HELD:
            raise OSError(errno.EAGAIN, "whoever is attached does not read")
        self.recover()
        now = time.time_ns()
        headers = b"".join(RECORD.pack(now, *self._header(stream)) for stream in NAMES)
        begun = os.path.join(self._folder, "begun")
        fd = os.open(begun, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if os.write(fd, headers) != len(headers):
                raise OSError(errno.ENOSPC, "no space for the index")
        finally:
            os.close(fd)
        os.rename(begun, self._path("index", self._generation + 1))
        self.close()
        self._begin(self._generation + 1)
        try:
            self._drop_old()
        except OSError:
            # the next rotation tries again
            pass

    def _header(self, stream: int) -> tuple[int, int, int]:
        """(offset, length, stream and flags)"""
        before, size = self._before.get(stream), self._size(stream)
        total = size + (before.offset if before else 0)
        if size:
            goes_on = os.pread(self._files[stream], 1, size - 1) != b"\n"
        else:
            goes_on = before is not None and bool(before.flags & CONTINUES)
        return total, 0, stream | HEADER | (CONTINUES if goes_on else 0)

    def _drop_old(self) -> int:
        """Bytes beyond the bound that had to stay: who is attached holds what it has not read yet. The index
        goes first, for a generation without one isn't there. Raises OSError.
        """
        if self._generation - self._oldest < self._rotation.max_files:
            return 0
        found = logfiles.generations(self._folder)
        while len(found) > self._rotation.max_files and self._drop(found[0]):
            del found[0]
        for file in os.listdir(self._folder):
            _, number = logfiles.parse(file)
            if found and 0 <= number < found[0]:
                os.unlink(os.path.join(self._folder, file))
        self._oldest = found[0] if found else self._generation
        return (len(found) - self._rotation.max_files) * self._rotation.max_size

    def _drop(self, generation: int) -> bool:
        """False while a reader holds it."""
        path = self._path("index", generation)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True
