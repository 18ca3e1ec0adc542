"""A workload's writable layer, as overlayfs keeps it, into the layer of an image (image-spec layer.md).

A device 0:0 becomes a whiteout, an opaque folder gets its mark, the empty places of mounts that every start
makes are left out. The archive may come from a guest: all of it is judged again by whoever ingests the
layer. Out of scope: the image around it (`commit`).
"""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING

from knarr.images.tree import OPAQUE, WHITEOUT
from knarr.kernel.archive_reader import Entry, Reader
from knarr.model.errors import Failed, Invalid

if TYPE_CHECKING:
    from collections.abc import Callable

_OPAQUE_MARK = "trusted.overlay.opaque"
_BLOCK = tarfile.BLOCKSIZE
_PLACES = frozenset((("etc", "hosts"), ("etc", "hostname"), ("etc", "resolv.conf")))
"""files that are mounted: empty, they are only the place of the mount"""
_WHITEOUT_NAME = WHITEOUT.decode()


def write_layer(read: Callable[[], bytes], write: Callable[[bytes], object]) -> None:
    """Raises `Invalid` for what no layer can hold, `Failed` for a broken archive."""
    reader = Reader(read)
    try:
        for entry in reader:
            _write_entry(reader, entry, write)
    except ValueError as error:
        raise Failed(f"the writable layer can't be read: {error}") from error
    write(bytes(2 * _BLOCK))


def _write_entry(reader: Reader, entry: Entry, write: Callable[[bytes], object]) -> None:
    if not entry.names or (entry.names in _PLACES and entry.type == tarfile.REGTYPE and not entry.size):
        return
    if any(name.startswith(_WHITEOUT_NAME) for name in entry.names):
        raise Invalid(
            f"file {'/'.join(entry.names)!r} can't be kept: in an image such a name hides another file",
            hint="rename or remove it",
        )
    if entry.type == tarfile.CHRTYPE and entry.device == (0, 0):
        *folders, name = entry.names
        write(_mark(entry, (*folders, _WHITEOUT_NAME + name)))
        return
    write(_header(entry))
    for piece in reader.content():
        write(piece)
    write(bytes(-entry.size % _BLOCK))
    if any(name == _OPAQUE_MARK and value == b"y" for name, value in entry.attributes):
        write(_mark(entry, (*entry.names, OPAQUE.decode())))


def _mark(entry: Entry, names: tuple[str, ...]) -> bytes:
    info = tarfile.TarInfo("/".join(names))
    info.mtime, info.mode = entry.mtime // 1_000_000_000, 0o600
    return _encode(info)


def _header(entry: Entry) -> bytes:
    info = tarfile.TarInfo("/".join(entry.names))
    info.type, info.size, info.mode = entry.type, entry.size, entry.mode
    info.uid, info.gid = entry.uid, entry.gid
    info.devmajor, info.devminor = entry.device
    info.linkname = entry.link
    if entry.type == tarfile.LNKTYPE:
        info.linkname = "/".join(part for part in entry.link.split("/") if part not in ("", "."))
    info.mtime, nanoseconds = divmod(entry.mtime, 1_000_000_000)
    info.pax_headers = {
        f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape")
        for name, value in entry.attributes
        if not name.startswith("trusted.overlay.")
    }
    if nanoseconds:
        info.pax_headers["mtime"] = f"{info.mtime}.{nanoseconds:09d}"
    return _encode(info)


def _encode(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
