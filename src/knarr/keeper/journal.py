"""What a keeper must not forget: which processes it started and how they ended.

An append-only file of checked lines, RUN/keeper.journal, written before each act becomes visible:

    ["B", boot id]                                  the machine's boot that pids and start times belong to
    ["O", key, outside]                             before the outside steps begin
    ["S", key, pid, start time, outside, trees]     before the child gets `go`; outside is null: as in its "O"
    ["R", key]                                      the program runs (the exec succeeded)
    ["E", key, wait status, time]                   before the process is reaped
    ["F", key]                                      forgotten: the daemon has recorded the end, or it never
    began

It must survive the keeper's death, not the machine's (after that no process is left to know about), so
nothing is synced. On a full disk a start fails; what follows a start has its place reserved with it.

Out of scope: processes themselves (`keeper.main`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import zlib
from dataclasses import dataclass, field
from typing import Any

from knarr.kernel import holes

_COMPACT = 1 << 20
_REST = 3 * 64
"""bytes of an entry's R, E and F lines beside its keys"""


@dataclass(slots=True)
class Entry:
    """One started process. Its key is the workload's id, or `ID/EXEC_ID`."""

    key: str
    pid: int
    started: int
    """clock ticks since boot: tells it from a later process with the same pid"""
    outside: list[Any] = field(default_factory=list)
    """the plan's outside steps as JSON, to be undone when it is forgotten"""
    trees: list[str] = field(default_factory=list)
    """images whose mounts it uses"""
    running: bool = False
    status: int | None = None
    time: int = 0

    @property
    def id(self) -> str:
        return self.key.partition("/")[0]

    @property
    def exec_id(self) -> str | None:
        return self.key.partition("/")[2] or None

    def records(self) -> list[list[Any]]:
        lines: list[list[Any]] = [["S", self.key, self.pid, self.started, self.outside, self.trees]]
        if self.running:
            lines.append(["R", self.key])
        if self.status is not None:
            lines.append(["E", self.key, self.status, self.time])
        return lines


class Journal:
    """The file and what it says. `entries` is in the order of the starts."""

    def __init__(self, path: str, boot_id: str) -> None:
        self._path = path
        self._boot_id = boot_id
        self._file = -1
        self._size = 0
        self._limit = 0
        data = _read(path)
        self.entries, self.intents, same_boot = replay(data, boot_id)
        """`intents`: outside steps, by key, of starts that a keeper did not live to record"""
        if not same_boot:
            _end_all(self.entries)
        self._owed = sum(map(_rest, self.entries.values()))
        """bytes of lines that are sure to come"""
        self.compact()

    def close(self) -> None:
        os.close(self._file)

    def intended(self, key: str, outside: list[Any]) -> None:
        """Raises OSError with nothing written."""
        line = _line(["O", key, outside])
        self._reserve(self._file, self._size, len(line) + 3 * len(key) + _REST)
        self._put(line)
        self.intents[key] = outside

    def withdrawn(self, key: str) -> None:
        """Its outside steps are undone."""
        if self.intents.pop(key, None) is not None:
            self._strike(key)

    def started(self, entry: Entry) -> None:
        """Raises OSError, with nothing written, when the disk has no room for it up to its end."""
        record = entry.records()[0]
        if entry.key in self.intents:
            record[4] = None
        line = _line(record)
        self._reserve(self._file, self._size, len(line) + _rest(entry))
        self._put(line)
        self.intents.pop(entry.key, None)
        self._owed += _rest(entry)
        self.entries[entry.key] = entry

    def running(self, entry: Entry) -> None:
        """Not written, it is found out again: what a process executes can be seen."""
        entry.running = True
        with contextlib.suppress(OSError):
            self._append(["R", entry.key])

    def ended(self, entry: Entry, status: int, time: int) -> None:
        """Raises OSError: then it must not be reaped."""
        entry.status, entry.time = status, time
        try:
            self._append(["E", entry.key, status, time])
        except OSError:
            # a new file says it as well as the one that is broken
            self.compact()

    def forgotten(self, entry: Entry) -> None:
        if self.entries.pop(entry.key, None) is not None:
            self._owed -= _rest(entry)
        self._strike(entry.key)

    def compact(self) -> None:
        """Write anew what still counts; whole or not at all."""
        records: list[list[Any]] = [["B", self._boot_id]]
        records += [["O", key, outside] for key, outside in self.intents.items()]
        for entry in self.entries.values():
            records += entry.records()
        data = b"".join(_line(record) for record in records)
        temporary = self._path + ".new"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_APPEND, 0o600)
        try:
            _write(fd, data)
            self._reserve(fd, len(data), 0)
            os.rename(temporary, self._path)
        except OSError:
            os.close(fd)
            os.unlink(temporary)
            raise
        if self._file >= 0:
            os.close(self._file)
        self._file, self._size = fd, len(data)
        self._limit = max(_COMPACT, 3 * self._size)

    def _strike(self, key: str) -> None:
        """What the file keeps too long does no harm: the daemon has it forgotten again."""
        try:
            self._append(["F", key])
        except OSError:
            self._limit = 0

    def _append(self, record: list[Any]) -> None:
        self._put(_line(record))
        if self._size > self._limit:
            try:
                self.compact()
            except OSError:
                # a full disk: the file at hand is whole, only longer
                self._limit = 2 * self._size

    def _put(self, line: bytes) -> None:
        """Whole or not at all: behind a torn line nothing would be read."""
        try:
            _write(self._file, line)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(line)

    def _reserve(self, fd: int, end: int, more: int) -> None:
        try:
            holes.reserve(fd, end, 1 + more + self._owed)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise


def replay(data: bytes, boot_id: str) -> tuple[dict[str, Entry], dict[str, list[Any]], bool]:
    """What the lines say up to the first that is torn, the intents, and whether they are of this boot."""
    entries: dict[str, Entry] = {}
    intents: dict[str, list[Any]] = {}
    same_boot = True
    for line in data.split(b"\n"):
        record = _checked(line)
        if record is None:
            break
        if record[0] == "B":
            same_boot = record[1] == boot_id
        else:
            _apply(entries, intents, record)
    return entries, intents, same_boot


def _apply(entries: dict[str, Entry], intents: dict[str, list[Any]], record: list[Any]) -> None:
    kind, key = record[0], record[1]
    if kind == "O":
        intents[key] = record[2]
        return
    if kind == "S":
        intended = intents.pop(key, [])
        entries[key] = Entry(key, record[2], record[3], record[4] or intended, record[5])
        return
    if kind == "F":
        intents.pop(key, None)
        entries.pop(key, None)
        return
    entry = entries.get(key)
    if entry is None:
        return
    if kind == "R":
        entry.running = True
    elif kind == "E":
        entry.status, entry.time = record[2], record[3]


def _end_all(entries: dict[str, Entry]) -> None:
    """Another boot: nothing of it runs, and how it ended nobody knows."""
    for key, entry in list(entries.items()):
        if entry.exec_id is not None:
            del entries[key]
        elif entry.status is None:
            entry.status = -1


def _rest(entry: Entry) -> int:
    """What its further lines take at most."""
    return 3 * len(entry.key) + _REST


def _line(record: list[Any]) -> bytes:
    text = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _checked(line: bytes) -> list[Any] | None:
    text = line[9:]
    try:
        if int(line[:8], 16) != zlib.crc32(text) or line[8:9] != b" ":
            return None
        record = json.loads(text)
    except ValueError:
        return None
    return record if isinstance(record, list) else None


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
