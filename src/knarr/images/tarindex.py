"""Where the regular files of a tar lie: names → offset and size, by positioned reads, nothing extracted.

For archives that hold an image's documents and layers (`docker save`, OCI archive). Modes, owners, times and
everything else a layer's tar means are `tarstream`'s business.
"""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from typing import Final

from knarr.model.errors import Invalid

HEADER: Final = 512
_MAX_MEMBERS = 100_000
_MAX_HEADER = 1 << 20
_MAX_LINKS = 8
_REGULAR: Final = frozenset(b"\x000" + b"7")
_LINKS: Final = frozenset(b"12")
_EXTENDED: Final = frozenset(b"xgLK")
_HINT = "it is no image archive, or it was cut short"
_FORMS = "docker save, or an OCI archive, plain or with gzip or zstd"


@dataclass(frozen=True, slots=True)
class Extent:
    offset: int
    size: int


class TarIndex:
    """The regular files of an uncompressed tar in an open file (read with pread, so threads may share it)."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._files: dict[str, Extent] = {}
        self._links: dict[str, str] = {}
        self._scan(os.fstat(fd).st_size)

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def names(self) -> tuple[str, ...]:
        return tuple(self._files)

    def extent(self, name: str) -> Extent:
        found = self._find(name)
        if found is None:
            raise Invalid(f"the archive has no member {name[:200]!r}", hint=_HINT)
        return found

    def read(self, name: str, limit: int) -> bytes:
        extent = self.extent(name)
        if extent.size > limit:
            raise Invalid(
                f"the archive's {name[:200]!r} is larger than {limit} bytes", hint="it is no image archive"
            )
        return _pread(self.fd, extent.size, extent.offset)

    def _find(self, name: str) -> Extent | None:
        # docker's older archives hold links in place of a layer that stands there already
        for _ in range(_MAX_LINKS):
            if name in self._files:
                return self._files[name]
            if name not in self._links:
                return None
            name = self._links[name]
        return None

    def _scan(self, end: int) -> None:
        position, members = 0, 0
        said: dict[bytes, bytes] = {}
        while position + HEADER <= end:
            header = _pread(self.fd, HEADER, position)
            if not header.strip(b"\0"):
                break
            members += 1
            if members > _MAX_MEMBERS:
                raise Invalid(
                    f"the archive has more than {_MAX_MEMBERS} members", hint="it is no image archive"
                )
            check_header(header)
            kind = header[156]
            extended = kind in _EXTENDED
            size = _number(header[124:136]) if extended or b"size" not in said else _decimal(said[b"size"])
            start = position + HEADER
            if size > end - start:
                raise Invalid("the archive ends in the middle of a member", hint=_HINT)
            position = start + (size + HEADER - 1) // HEADER * HEADER
            if extended:
                said |= self._extended(kind, start, size)
                continue
            name = said.get(b"path") or _name(header)
            self._add(kind, _text(name), _text(said.get(b"linkpath") or header[157:257]), Extent(start, size))
            said = {}

    def _extended(self, kind: int, start: int, size: int) -> dict[bytes, bytes]:
        if kind == ord("g"):
            return {}
        if size > _MAX_HEADER:
            raise Invalid(
                "the archive has an extended header that is too large", hint="it is no image archive"
            )
        data = _pread(self.fd, size, start)
        if kind == ord("x"):
            return _pax(data)
        return {b"path" if kind == ord("L") else b"linkpath": data}

    def _add(self, kind: int, name: str, link: str, extent: Extent) -> None:
        name = posixpath.normpath(name.lstrip("/"))
        if kind in _LINKS:
            # '2' is relative to the link's folder, '1' to the archive's root
            base = posixpath.dirname(name) if kind == ord("2") else ""
            self._links[name] = posixpath.normpath(posixpath.join(base, link))
        elif kind in _REGULAR:
            if name in self._files:
                raise Invalid(
                    f"the archive has two members {name[:200]!r}", hint="it may be read in two ways"
                )
            self._files[name] = extent


def _pread(fd: int, size: int, offset: int) -> bytes:
    data = os.pread(fd, size, offset)
    if len(data) == size:
        return data
    pieces = [data]
    got = len(data)
    while got < size:
        piece = os.pread(fd, size - got, offset + got)
        if not piece:
            raise Invalid("the archive ends in the middle of a member", hint=_HINT)
        pieces.append(piece)
        got += len(piece)
    return b"".join(pieces)


def check_header(header: bytes) -> None:
    """Raises `Invalid` if these 512 bytes are not a tar header with its right sum."""
    stored = _number(header[148:156])
    if stored != sum(header) - sum(header[148:156]) + 8 * 0x20:
        raise Invalid("the file is not a tar archive", hint=_FORMS)


def _number(field: bytes) -> int:
    if field[0] & 0x80:
        value = int.from_bytes(bytes((field[0] & 0x7F,)) + field[1:], "big")
        if field[0] & 0x40:
            raise Invalid("the archive has a member of negative size", hint=_HINT)
        return value
    text = field.replace(b"\0", b" ").strip()
    if text and not text.isdigit():
        raise Invalid("the file is not a tar archive", hint=_FORMS)
    try:
        return int(text or b"0", 8)
    except ValueError:
        raise Invalid("the file is not a tar archive", hint=_FORMS) from None


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 18:
        raise Invalid("the archive has a broken extended header", hint=_HINT)
    return int(text)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0]
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _pax(data: bytes) -> dict[bytes, bytes]:
    """The records of an extended header: `LENGTH KEY=VALUE` and a line feed."""
    said: dict[bytes, bytes] = {}
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 20)
        length = _decimal(data[position:space]) if space > 0 else 0
        if length <= space - position + 1 or position + length > len(data):
            raise Invalid("the archive has a broken extended header", hint=_HINT)
        key, _, value = data[space + 1 : position + length - 1].partition(b"=")
        said[key] = value
        position += length
    return said
