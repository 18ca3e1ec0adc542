"""The form of a log folder: what its files are called, and what a record of the index says.

Generation 0 is `out`, `err` and `index`, generation N has `.N` behind each name. A generation exists once its
index does; it is written to until the next one exists, and never again. Names and contents don't change, so
a reader that has a file open needs to know nothing of rotation. `index` is an append-only array of 24-byte
records (docs/architecture.md section 7):

    u64 time_ns, u64 offset, u32 length, u32 stream      (1 = out, 2 = err, and the flags below)

From generation 1 on it begins with a header of each stream: length 0, and as its offset the bytes of that
stream in all generations before. Out of scope: writing (`keeper.logwriter`), reading (`keeper.logs`).
"""

from __future__ import annotations

import errno
import os
import struct
from typing import NamedTuple

RECORD = struct.Struct("<QQII")
RECOVERED = 1 << 31
"""found after a kill; the time is the recovery's"""
HEADER = 1 << 30
CONTINUES = 1 << 29
"""of a header: the stream's first byte here goes on with a line of the generation before"""
NAMES = {1: "out", 2: "err"}
BATCH = RECORD.size * 1024
_STREAM = 3
_ROTATION = "rotation"


class Record(NamedTuple):
    """One record of the index. `stream` is 1 or 2."""

    time: int
    offset: int
    length: int
    stream: int
    flags: int


class Rotation(NamedTuple):
    """When a generation ends, and how many there are at most. 0 = never; then there is one."""

    max_size: int = 0
    """bytes of both streams together"""
    max_files: int = 1


def name(kind: str, generation: int) -> str:
    """`out`, `err.3`, `index.3`."""
    return f"{kind}.{generation}" if generation else kind


def parse(file: str) -> tuple[str, int]:
    """The kind and the generation of a file's name; -1 for one that is none of ours."""
    kind, dot, number = file.partition(".")
    if kind not in ("out", "err", "index") or (dot and not number.isdigit()):
        return "", -1
    return kind, int(number) if dot else 0


def generations(folder: str) -> list[int]:
    """Those that are there, oldest first. Raises OSError."""
    found = (parse(file) for file in os.listdir(folder))
    return sorted(number for kind, number in found if kind == "index")


def decode(data: bytes) -> list[Record]:
    whole = len(data) // RECORD.size * RECORD.size
    return [
        Record(when, offset, length, stream & _STREAM, stream & ~_STREAM)
        for when, offset, length, stream in RECORD.iter_unpack(data[:whole])
    ]


def recorded_end(index: int, stream: int) -> int:
    """How far the stream's records reach; they are in order, so the last one tells."""
    position = os.fstat(index).st_size
    while position > 0:
        size = min(BATCH, position)
        position -= size
        for record in reversed(decode(os.pread(index, size, position))):
            if record.stream == stream and not record.flags & HEADER:
                return record.offset + record.length
    return 0


def headers(index: int) -> dict[int, Record]:
    """Of each stream; generation 0 has none."""
    first = decode(os.pread(index, len(NAMES) * RECORD.size, 0))
    return {record.stream: record for record in first if record.flags & HEADER}


def totals(folder: str) -> dict[int, int]:
    """Bytes of each stream since the workload was made, those that are gone by now too."""
    try:
        newest = generations(folder)[-1]
        index = os.open(os.path.join(folder, name("index", newest)), os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, IndexError):
        return dict.fromkeys(NAMES, 0)
    try:
        before = headers(index)
    finally:
        os.close(index)
    found = {}
    for stream, kind in NAMES.items():
        base = before[stream].offset if stream in before else 0
        found[stream] = base + _size(os.path.join(folder, name(kind, newest)))
    return found


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def rotation(folder: str) -> Rotation:
    """Raises OSError, also for a file that a broken disk changed: it must not end whoever moves all logs."""
    path = os.path.join(folder, _ROTATION)
    try:
        with open(path, "rb") as file:
            size, files = map(int, file.read(64).split())
    except FileNotFoundError:
        return Rotation()
    except ValueError as error:
        raise OSError(errno.EINVAL, "not a log's bounds", path) from error
    return Rotation(size, files)


def set_rotation(folder: str, wanted: Rotation) -> None:
    """Before the first byte, whole or not at all. Raises OSError."""
    path = os.path.join(folder, _ROTATION)
    with open(f"{path}.new", "w", encoding="ascii") as file:
        file.write(f"{wanted.max_size} {wanted.max_files}")
    os.rename(f"{path}.new", path)


def has_rotation(folder: str) -> bool:
    return os.path.exists(os.path.join(folder, _ROTATION))
