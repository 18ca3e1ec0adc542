"""A tar stream from a stranger, entry by entry: pax and GNU long names understood, sizes capped.

A guest's agent has the same rules (csrc/agent/unpack.h), and a test compares the two. Out of scope: what
to do with an entry (`archive_unpack`). Raises ValueError for an archive that is broken or tries something.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_BLOCK = tarfile.BLOCKSIZE
_EXTRA_LIMIT = 1 << 20
_SIZE_LIMIT = 1 << 50
_DEPTH = 512
_MAJOR_LIMIT, _MINOR_LIMIT = 0xFFF, 0xFFFFF
_CONTENT = frozenset((tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE))
_XATTR = "SCHILY.xattr."


@dataclass(slots=True)
class Entry:
    """One thing of the archive; `names` are the components of its path, without `.` and empty ones."""

    names: tuple[str, ...]
    type: bytes
    mode: int
    uid: int
    gid: int
    mtime: int
    """nanoseconds"""
    size: int
    link: str
    device: tuple[int, int]
    attributes: list[tuple[str, bytes]] = field(default_factory=list)


class Reader:
    """Iterate over entries; `content` gives the bytes of the current one (what is left over is skipped)."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        self._buffer = bytearray()
        self._left = 0
        self._padding = 0

    def __iter__(self) -> Iterator[Entry]:
        pax: dict[str, bytes] = {}
        long: dict[str, bytes] = {}
        while (header := self._next_header()) is not None:
            kind = header[156:157]
            if kind == tarfile.XHDTYPE:
                pax |= _parse_pax(self._extra(header))
            elif kind == tarfile.XGLTYPE:
                self._extra(header)
            elif kind == tarfile.GNUTYPE_LONGNAME:
                long["path"] = _long(self._extra(header))
            elif kind == tarfile.GNUTYPE_LONGLINK:
                long["linkpath"] = _long(self._extra(header))
            else:
                entry = _entry(header, long | pax)
                pax, long = {}, {}
                self._expect(entry.size)
                yield entry
                self._skip()

    def content(self) -> Iterator[bytes]:
        while self._left:
            if not self._buffer:
                self._fill()
            size = min(self._left, len(self._buffer))
            piece = bytes(self._buffer[:size])
            del self._buffer[:size]
            self._left -= size
            yield piece

    def drain(self) -> None:
        """Read what follows the archive's end, so that the sender isn't cut off."""
        while self._read():
            pass

    def _next_header(self) -> bytes | None:
        while len(self._buffer) < _BLOCK:
            piece = self._read()
            if not piece:
                if self._buffer:
                    raise ValueError("the archive is cut off")
                return None
            self._buffer += piece
        block = bytes(self._buffer[:_BLOCK])
        del self._buffer[:_BLOCK]
        if not any(block):
            self.drain()
            return None
        if not _summed(block):
            raise ValueError("not a tar archive: a header's checksum is wrong")
        return block

    def _extra(self, header: bytes) -> bytes:
        size = _within(_number(header[124:136], "size"), _SIZE_LIMIT, "size")
        if size > _EXTRA_LIMIT:
            raise ValueError("an extended header of the archive is too large")
        self._expect(size)
        data = b"".join(self.content())
        self._skip()
        return data

    def _expect(self, size: int) -> None:
        self._left = size
        self._padding = -size % _BLOCK

    def _skip(self) -> None:
        for _ in self.content():
            pass
        self._left, self._padding = self._padding, 0
        for _ in self.content():
            pass

    def _fill(self) -> None:
        piece = self._read()
        if not piece:
            raise ValueError("the archive is cut off")
        self._buffer += piece


def split(path: str) -> tuple[str, ...]:
    """The components of an archive's path. Raises ValueError for what no archive needs: `..`, NUL, depth."""
    names = tuple(name for name in path.split("/") if name not in ("", "."))
    if ".." in names or "\0" in path:
        raise ValueError(f"entry {path[:200]!r} leads out of the archive")
    if len(names) > _DEPTH:
        raise ValueError(f"entry {path[:80]!r} lies deeper than {_DEPTH} folders")
    return names


def _long(body: bytes) -> bytes:
    name = body.rstrip(b"\0")
    if b"\0" in name:
        raise ValueError(f"the archive has a name with a zero byte: {name[:80]!r}")
    return name


def _number(field: bytes, what: str) -> int:
    """Octal digits up to the first space or zero byte, or GNU's base 256, which may be negative."""
    if field[0] & 0x80:
        rest = field if field[0] == 0xFF else bytes((field[0] & 0x7F,)) + field[1:]
        value = int.from_bytes(rest, "big", signed=True)
        if not -(1 << 63) <= value < 1 << 63:
            raise ValueError(f"a header of the archive has an impossible {what}")
        return value
    digits = field.lstrip(b" ").replace(b" ", b"\0").split(b"\0", 1)[0]
    if digits.strip(b"01234567"):
        raise ValueError(f"a header of the archive has a broken {what}")
    return int(digits or b"0", 8)


def _summed(block: bytes) -> bool:
    try:
        return (
            not block[148] & 0x80
            and _number(block[148:156], "checksum") == sum(block) - sum(block[148:156]) + 8 * 0x20
        )
    except ValueError:
        return False


def _within(value: int, limit: int, what: str) -> int:
    if not 0 <= value <= limit:
        raise ValueError(f"an entry of the archive has an impossible {what}")
    return value


def _parse_pax(data: bytes) -> dict[str, bytes]:
    """Records of `LENGTH KEY=VALUE newline`."""
    found: dict[str, bytes] = {}
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 20)
        digits = data[position:space]
        if space < 0 or not digits.isdigit():
            raise ValueError("an extended header of the archive is broken")
        end = position + int(digits)
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if (
            end > len(data)
            or end <= space
            or not equals
            or not key
            or b"\0" in key
            or data[end - 1 : end] != b"\n"
        ):
            raise ValueError("an extended header of the archive is broken")
        found[key.decode("utf-8", "surrogateescape")] = value
        position = end
    return found


def _entry(header: bytes, pax: dict[str, bytes]) -> Entry:
    kind = header[156:157]
    if kind == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in pax):
        raise ValueError("sparse entries are not supported: make the archive without --sparse")
    path = _text(pax, "path", _name(header))
    if kind in _CONTENT:
        kind = tarfile.DIRTYPE if path.endswith("/") else tarfile.REGTYPE
    names = split(path)
    if not names and kind != tarfile.DIRTYPE:
        raise ValueError(f"entry {path[:80]!r} would replace the folder itself")
    size = _within(_integer(pax, "size", _number(header[124:136], "size")), _SIZE_LIMIT, "size")
    return Entry(
        names=names,
        type=kind,
        mode=_within(_number(header[100:108], "mode"), 1 << 56, "mode") & 0o7777,
        uid=_identity(pax, "uid", header[108:116]),
        gid=_identity(pax, "gid", header[116:124]),
        mtime=_nanoseconds(pax, header[136:148]),
        size=size if kind == tarfile.REGTYPE else 0,
        link=_no_nul(_text(pax, "linkpath", _decoded(header[157:257]))),
        device=_device(header) if kind in (tarfile.CHRTYPE, tarfile.BLKTYPE) else (0, 0),
        attributes=[
            (_no_nul(key.removeprefix(_XATTR)), value) for key, value in pax.items() if key.startswith(_XATTR)
        ],
    )


def _name(header: bytes) -> str:
    """Only ustar has a prefix: older forms keep other things there."""
    prefix = _decoded(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{_decoded(header[:100])}" if prefix else _decoded(header[:100])


def _decoded(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _device(header: bytes) -> tuple[int, int]:
    return (
        _within(_number(header[329:337], "device"), _MAJOR_LIMIT, "device"),
        _within(_number(header[337:345], "device"), _MINOR_LIMIT, "device"),
    )


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError(f"the archive has a name with a zero byte: {text[:80]!r}")
    return text


def _text(pax: dict[str, bytes], key: str, fallback: str) -> str:
    """An empty record says nothing (POSIX pax)."""
    return pax[key].decode("utf-8", "surrogateescape") if pax.get(key) else fallback


def _integer(pax: dict[str, bytes], key: str, fallback: int) -> int:
    text = pax.get(key)
    if not text:
        return fallback
    if not text.isdigit() or len(text) > 18:
        raise ValueError(f"an extended header of the archive has a broken {key}")
    return int(text)


def _identity(pax: dict[str, bytes], key: str, field: bytes) -> int:
    return _within(_integer(pax, key, _number(field, key)), 0xFFFFFFFE, key)


def _nanoseconds(pax: dict[str, bytes], field: bytes) -> int:
    """What lies before 1970 or far ahead is brought to the edge: file systems differ beyond."""
    text = pax.get("mtime")
    if not text:
        return min(max(_number(field, "mtime"), 0), _LATEST) * 1_000_000_000
    whole, _, fraction = text.removeprefix(b"-").partition(b".")
    if not whole.isdigit() or len(whole) > 12 or (fraction and not fraction.isdigit()):
        raise ValueError("an extended header of the archive has a broken mtime")
    if text.startswith(b"-"):
        return 0
    return min(int(whole), _LATEST) * 1_000_000_000 + int((fraction + b"0" * 9)[:9])


_LATEST = (1 << 33) - 1
