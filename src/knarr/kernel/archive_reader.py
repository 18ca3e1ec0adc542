"""A tar stream from a stranger, entry by entry: pax and GNU long names understood, sizes capped.

Header blocks are decoded by tarfile's TarInfo; everything that decides is here. Out of scope: what to do with
an entry (`archive_unpack`). Raises ValueError for an archive that is broken or tries something.
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
        while (info := self._next_header()) is not None:
            if info.type == tarfile.XHDTYPE:
                pax |= _parse_pax(self._extra(info))
            elif info.type == tarfile.XGLTYPE:
                self._extra(info)
            elif info.type == tarfile.GNUTYPE_LONGNAME:
                pax["path"] = self._extra(info).rstrip(b"\0")
            elif info.type == tarfile.GNUTYPE_LONGLINK:
                pax["linkpath"] = self._extra(info).rstrip(b"\0")
            else:
                entry = _entry(info, pax)
                pax = {}
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

    def _next_header(self) -> tarfile.TarInfo | None:
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
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise ValueError(f"not a tar archive: {error}") from error

    def _extra(self, info: tarfile.TarInfo) -> bytes:
        if not 0 <= info.size <= _EXTRA_LIMIT:
            raise ValueError("an extended header of the archive is too large")
        self._expect(info.size)
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
    """The components of an archive's path. Raises ValueError for `..` and NUL: no archive needs them."""
    names = tuple(name for name in path.split("/") if name not in ("", "."))
    if ".." in names or "\0" in path:
        raise ValueError(f"entry {path[:200]!r} leads out of the archive")
    return names


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
        if end > len(data) or end <= space or not equals or data[end - 1 : end] != b"\n":
            raise ValueError("an extended header of the archive is broken")
        found[key.decode("utf-8", "surrogateescape")] = value
        position = end
    return found


def _entry(info: tarfile.TarInfo, pax: dict[str, bytes]) -> Entry:
    if info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in pax):
        raise ValueError("sparse entries are not supported: make the archive without --sparse")
    has_data = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
    size = _integer(pax, "size", info.size)
    if not 0 <= size <= _SIZE_LIMIT:
        raise ValueError("an entry of the archive has an impossible size")
    link = _text(pax, "linkpath", info.linkname)
    return Entry(
        names=split(_text(pax, "path", info.name)),
        type=tarfile.REGTYPE if has_data else info.type,
        mode=info.mode & 0o7777,
        uid=_identity(pax, "uid", info.uid),
        gid=_identity(pax, "gid", info.gid),
        mtime=_nanoseconds(pax, int(info.mtime)),
        size=size if has_data else 0,
        link=link,
        device=(info.devmajor, info.devminor),
        attributes=[
            (key.removeprefix(_XATTR), value) for key, value in pax.items() if key.startswith(_XATTR)
        ],
    )


def _text(pax: dict[str, bytes], key: str, fallback: str) -> str:
    return pax[key].decode("utf-8", "surrogateescape") if key in pax else fallback


def _integer(pax: dict[str, bytes], key: str, fallback: int) -> int:
    if key not in pax:
        return fallback
    text = pax[key]
    if not text.isdigit() or len(text) > 20:
        raise ValueError(f"an extended header of the archive has a broken {key}")
    return int(text)


def _identity(pax: dict[str, bytes], key: str, fallback: int) -> int:
    value = _integer(pax, key, fallback)
    if not 0 <= value < 0xFFFFFFFF:
        raise ValueError(f"an entry of the archive has an impossible {key}")
    return value


def _nanoseconds(pax: dict[str, bytes], fallback: int) -> int:
    if "mtime" not in pax:
        return min(max(fallback, 0), _LATEST) * 1_000_000_000
    whole, _, fraction = pax["mtime"].lstrip(b"-").partition(b".")
    if not whole.isdigit() or len(whole) > 12 or (fraction and not fraction.isdigit()):
        raise ValueError("an extended header of the archive has a broken mtime")
    if pax["mtime"].startswith(b"-"):
        return 0
    return min(int(whole), _LATEST) * 1_000_000_000 + int((fraction + b"0" * 9)[:9])


_LATEST = (1 << 33) - 1
