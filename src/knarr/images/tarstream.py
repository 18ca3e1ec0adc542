"""Our own tar reader for hostile input: v7, ustar, star, GNU (long names, sparse), pax (all records that
matter).

One pass over an iterator of chunks, data handed out as views without a copy. A doubtful archive is refused,
not guessed at, for two readers that guess differently are a hole. Names are bytes as they stand, neither
cleaned nor trusted: `tree` judges them. Out of scope: compression, file systems, whiteouts.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import msgspec

from knarr.images import tarfields
from knarr.images.limits import DEFAULT, Limits
from knarr.images.tarfields import number
from knarr.model.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 512
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12s")
_ZERO = bytes(BLOCK)

REGULAR, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = b"0123456"
_TYPES = {
    b"0": REGULAR,
    b"\0": REGULAR,
    b"7": REGULAR,
    b"S": REGULAR,
    b"1": LINK,
    b"2": SYMLINK,
    b"3": CHAR,
    b"4": BLOCK_DEVICE,
    b"5": DIRECTORY,
    b"6": FIFO,
    b"D": DIRECTORY,
}
_EXTENSIONS = b"xXgLKV"


class Member(msgspec.Struct, gc=False):
    """One entry of the archive, its extended headers applied."""

    name: bytes
    kind: int
    mode: int
    uid: int
    gid: int
    mtime: int
    """nanoseconds since the epoch, may be negative"""
    size: int
    """apparent size of a regular file, else 0"""
    stored: int
    """bytes of data in the archive"""
    link: bytes
    major: int
    minor: int
    xattrs: tuple[tuple[bytes, bytes], ...]
    sparse: tuple[tuple[int, int], ...] | None
    """(offset, length) of the data in the file, None = all of it"""


class Buffer:
    """A cursor over chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._at = 0

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes, or fewer at the end of the stream."""
        end = self._at + count
        data = self._chunk[self._at : end]
        if len(data) == count:
            self._at = end
            return data
        parts = [data]
        missing = count - len(data)
        while missing and self._next():
            part = self._chunk[:missing]
            self._at = len(part)
            missing -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _next(self) -> bool:
        self._chunk, self._at = next(self._chunks, b""), 0
        return bool(self._chunk)

    def views(self, count: int) -> Iterator[memoryview]:
        """The next `count` bytes as views of the chunks. Raises `Invalid` where the stream ends early."""
        while count:
            if self._at == len(self._chunk) and not self._next():
                raise Invalid("layer's archive is cut short inside a file")
            view = memoryview(self._chunk)[self._at : self._at + count]
            self._at += len(view)
            count -= len(view)
            yield view

    def view(self, count: int) -> memoryview | None:
        """The same in one piece, None if a chunk ends before."""
        end = self._at + count
        if end > len(self._chunk):
            return None
        view = memoryview(self._chunk)[self._at : end]
        self._at = end
        return view

    def skip(self, count: int) -> None:
        for _ in self.views(count):
            pass

    def drain(self) -> None:
        while self._next():
            pass


class TarReader:
    """`next()` until None; after each member its data may be read, once, by `data()` or `whole()`."""

    def __init__(self, chunks: Iterator[bytes], limits: Limits = DEFAULT) -> None:
        self._buffer = Buffer(chunks)
        self._limits = limits
        self._unread = 0
        self._padding = 0
        self._globals: dict[bytes, bytes] = {}

    def next(self) -> Member | None:
        self._finish()
        pax: dict[bytes, bytes] = {}
        sparse_records: list[tuple[bytes, bytes]] = []
        name = link = None
        while (header := self._header()) is not None:
            flag = header[156:157]
            if flag not in _EXTENSIONS:
                return self._member(header, pax, sparse_records, name, link)
            size = number(header[124:136], "size")
            if flag == b"L":
                name = tarfields.long_text(self._extension(size))
            elif flag == b"K":
                link = tarfields.long_text(self._extension(size))
            elif flag == b"g":
                self._set_globals(self._extension(size))
            elif flag == b"V":
                self._buffer.skip(_padded(size))
            else:
                pax, sparse_records = tarfields.parse_pax(self._extension(size))
        if pax or name is not None or link is not None:
            raise Invalid("layer's archive ends after an extended header")
        return None

    def whole(self) -> list[memoryview]:
        """All data of the current member, usually in one piece."""
        view = self._buffer.view(self._unread)
        if view is not None:
            self._unread = 0
            return [view]
        return list(self.data())

    def data(self) -> Iterator[memoryview]:
        for view in self._buffer.views(self._unread):
            self._unread -= len(view)
            yield view

    def _finish(self) -> None:
        rest = self._unread + self._padding
        if rest:
            self._unread = self._padding = 0
            self._buffer.skip(rest)

    def _header(self) -> bytes | None:
        header = self._buffer.take(BLOCK)
        if not header:
            return None
        if len(header) < BLOCK:
            raise Invalid("layer's archive is cut short inside a header")
        if header == _ZERO:
            second = self._buffer.take(BLOCK)
            if second.strip(b"\0"):
                raise Invalid("layer's archive goes on after its end")
            self._buffer.drain()
            return None
        tarfields.check_sum(header)
        return header

    def _extension(self, size: int) -> bytes:
        if size > self._limits.header_bytes:
            raise Invalid(f"layer's archive has an extended header of {size} bytes")
        data = self._buffer.take(_padded(size))
        if len(data) != _padded(size):
            raise Invalid("layer's archive is cut short inside an extended header")
        return data[:size]

    def _set_globals(self, data: bytes) -> None:
        records, sparse = tarfields.parse_pax(data)
        if sparse or not records.keys().isdisjoint((b"path", b"linkpath", b"size")):
            raise Invalid("layer's archive sets a name or size for all files at once")
        self._globals.update(records)

    def _member(
        self,
        header: bytes,
        pax: dict[bytes, bytes],
        sparse_records: list[tuple[bytes, bytes]],
        name: bytes | None,
        link: bytes | None,
    ) -> Member:
        (raw_name, mode, uid, gid, size, mtime, _, flag, raw_link, magic, _, _, major, minor, prefix, end) = (
            _HEADER.unpack(header)
        )
        kind = _TYPES.get(flag)
        if kind is None:
            raise Invalid(f"layer's archive has an entry of unknown type {flag!r}")
        if name is None:
            name = _name(raw_name, magic, prefix, end)
        if link is None:
            link = raw_link.rstrip(b"\0") if b"\0" not in raw_link else raw_link[: raw_link.index(b"\0")]
        device = kind in (CHAR, BLOCK_DEVICE)
        member = Member(
            name,
            kind,
            number(mode, "mode") & 0o7777,
            number(uid, "uid"),
            number(gid, "gid"),
            number(mtime, "mtime", negative=True) * 1_000_000_000,
            number(size, "size"),
            0,
            link,
            number(major, "device") if device else 0,
            number(minor, "device") if device else 0,
            (),
            None,
        )
        if self._globals:
            pax = {**self._globals, **pax}
        if pax:
            tarfields.apply_pax(member, pax, self._limits)
        self._set_data(member, flag, header, pax, sparse_records)
        tarfields.check_member(member, self._limits)
        return member

    def _set_data(
        self,
        member: Member,
        flag: bytes,
        header: bytes,
        pax: dict[bytes, bytes],
        records: list[tuple[bytes, bytes]],
    ) -> None:
        """How many bytes of data follow, and where in the file they lie."""
        stored = member.size
        if flag == b"D":
            # GNU's list of a directory's names
            self._buffer.skip(_padded(stored))
            stored = 0
        if member.kind == REGULAR and member.name.endswith(b"/"):
            member.kind = DIRECTORY
        if member.kind != REGULAR:
            # links and the like carry no data, whatever the field says (POSIX leaves it open, readers agree)
            member.size = member.stored = self._unread = self._padding = 0
            return
        self._unread, self._padding = stored, -stored % BLOCK
        if flag == b"S":
            tarfields.apply_gnu_sparse(member, header, self._buffer, self._limits)
        elif records or any(key.startswith(b"GNU.sparse.") for key in pax):
            self._unread -= tarfields.apply_pax_sparse(member, pax, records, self._buffer, self._limits)
        member.stored = self._unread
        tarfields.check_sparse(member, self._limits)


def _padded(size: int) -> int:
    return size + -size % BLOCK


def _name(name: bytes, magic: bytes, prefix: bytes, end: bytes) -> bytes:
    name = name.split(b"\0", 1)[0]
    if magic == b"ustar\x0000" and prefix[0]:
        if end[-4:] == b"tar\0":
            prefix = prefix[:131]
        return prefix.split(b"\0", 1)[0] + b"/" + name
    return name
