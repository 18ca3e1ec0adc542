"""docker cp on a directory descriptor: look at a path, pack it into a tar, unpack a tar into a folder.

The tree belongs to somebody else and may change under our hands: every path is opened by openat2 beneath the
root, without magic links, and what was opened is what is used. The archive is untrusted as well.
Nothing is executed, and no name is looked up through the tree's own files. Out of scope: compression, HTTP.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from knarr.kernel import paths, userids
from knarr.kernel.archive_unpack import unpack

if TYPE_CHECKING:
    from collections.abc import Callable

    from knarr.model.namespaces import IdMap

__all__ = ["PathStat", "pack", "stat_path", "unpack"]

_CHUNK = 256 << 10
_BLOCK = tarfile.BLOCKSIZE
_DEPTH = 512
_CARRIED = ("user.", "security.capability", "system.posix_acl_")
_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PathStat:
    """What docker's `X-Docker-Container-Path-Stat` tells."""

    name: str
    size: int
    mode: int
    """st_mode"""
    mtime: int
    """nanoseconds"""
    link_target: str = ""


def stat_path(root: int, path: str) -> PathStat:
    """A final symbolic link itself, unless the path ends in a slash. Raises OSError."""
    fd = _open_source(root, path)
    try:
        status = os.fstat(fd)
        target = os.readlink("", dir_fd=fd) if stat.S_ISLNK(status.st_mode) else ""
    finally:
        os.close(fd)
    return PathStat(
        name=_base(path) if _base(path) != "." else "/",
        size=status.st_size,
        mode=status.st_mode,
        mtime=status.st_mtime_ns,
        link_target=target,
    )


def pack(
    root: int,
    path: str,
    write: Callable[[bytes], object],
    *,
    layer: bool = False,
    ids: IdMap | None = None,
    base: str | None = None,
) -> None:
    """Write a tar (pax) of `path` and all below it, named by its last component (`.` after a final `/.`), or
    `base`.

    `layer`: it is an overlay's upper folder, whose marks on opaque folders are wanted as well. `ids`: of
    the user namespace that the root belongs to; owners are told as inside.
    """
    source = _open_source(root, path)
    writer = _Writer(write, (*_CARRIED, "trusted.overlay.opaque") if layer else _CARRIED, ids)
    try:
        writer.add(source, base or _base(path), 0)
    finally:
        os.close(source)
    writer.finish()


class _Writer:
    """Entries into blocks, gathered into chunks."""

    def __init__(self, write: Callable[[bytes], object], carried: tuple[str, ...], ids: IdMap | None) -> None:
        self._write = write
        self._ids = ids
        self._carried = carried
        self._pending: list[bytes] = []
        self._size = 0
        self._links: dict[tuple[int, int], str] = {}

    def finish(self) -> None:
        self._put(bytes(2 * _BLOCK))
        self._flush()

    def add(self, fd: int, name: str, depth: int) -> None:
        """One entry by its O_PATH descriptor, then what is in it."""
        status = os.fstat(fd)
        kind = _TYPES.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            # a socket has no form in a tar
            return
        info = _header(fd, name, status, kind, self._carried)
        info.uid, info.gid = userids.to_inside(self._ids, info.uid, info.gid)
        known = self._known_link(status, name)
        if known is not None:
            info.type, info.linkname, info.size = tarfile.LNKTYPE, known, 0
        content = _reopen(fd, os.O_RDONLY) if info.size and info.isreg() else -1
        try:
            self._put(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
            if content >= 0:
                self._copy(content, info.size)
        finally:
            if content >= 0:
                os.close(content)
        if kind == tarfile.DIRTYPE:
            self._add_children(fd, name, depth)

    def _add_children(self, fd: int, name: str, depth: int) -> None:
        if depth >= _DEPTH:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), name)
        folder = _reopen(fd, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for child in sorted(os.listdir(folder)):
                self._add_child(folder, child, f"{name}/{child}", depth + 1)
        finally:
            os.close(folder)

    def _add_child(self, folder: int, child: str, name: str, depth: int) -> None:
        flags = os.O_PATH | os.O_NOFOLLOW
        try:
            entry = paths.openat2(folder, child, flags, resolve=paths.RESOLVE_NO_MAGICLINKS)
        except FileNotFoundError:
            return
        try:
            self.add(entry, name, depth)
        finally:
            os.close(entry)

    def _known_link(self, status: os.stat_result, name: str) -> str | None:
        """The name under which this inode is in the archive already."""
        if status.st_nlink < 2 or stat.S_ISDIR(status.st_mode):
            return None
        key = (status.st_dev, status.st_ino)
        found = self._links.get(key)
        if found is None:
            self._links[key] = name
        return found

    def _copy(self, fd: int, size: int) -> None:
        """Exactly `size` bytes: a file that shrinks meanwhile is filled with zeros, one that grows is cut."""
        left = size
        while left:
            data = os.read(fd, min(left, _CHUNK))
            if not data:
                data = bytes(min(left, _CHUNK))
            left -= len(data)
            self._put(data)
        if size % _BLOCK:
            self._put(bytes(_BLOCK - size % _BLOCK))

    def _put(self, data: bytes) -> None:
        self._pending.append(data)
        self._size += len(data)
        if self._size >= _CHUNK:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            data = b"".join(self._pending)
            self._pending, self._size = [], 0
            self._write(data)


def _header(
    fd: int, name: str, status: os.stat_result, kind: bytes, carried: tuple[str, ...]
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = stat.S_IMODE(status.st_mode)
    info.uid, info.gid = status.st_uid, status.st_gid
    info.mtime = max(status.st_mtime_ns, 0) // 1_000_000_000
    extra: dict[str, str] = {}
    if status.st_mtime_ns % 1_000_000_000 and status.st_mtime_ns > 0:
        extra["mtime"] = f"{info.mtime}.{status.st_mtime_ns % 1_000_000_000:09d}"
    if kind == tarfile.REGTYPE:
        info.size = status.st_size
    elif kind == tarfile.SYMTYPE:
        info.linkname = os.readlink("", dir_fd=fd)
    elif kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    if kind in (tarfile.REGTYPE, tarfile.DIRTYPE):
        for key, value in _attributes(fd, carried):
            extra[f"SCHILY.xattr.{key}"] = value.decode("utf-8", "surrogateescape")
    info.pax_headers = extra
    return info


def _attributes(fd: int, carried: tuple[str, ...]) -> list[tuple[str, bytes]]:
    """Extended attributes worth carrying: the user's, capabilities, ACLs; not overlayfs' own."""
    path = f"/proc/self/fd/{fd}"
    try:
        names = os.listxattr(path)
    except OSError:
        return []
    found: list[tuple[str, bytes]] = []
    for name in names:
        if not name.startswith(carried):
            continue
        try:
            found.append((name, os.getxattr(path, name)))
        except OSError:
            continue
    return found


def _open_source(root: int, path: str) -> int:
    """O_PATH; only the final component may stay a symbolic link."""
    follow = path.endswith(("/", "/.")) or path in ("", ".")
    return paths.open_path(root, path or "/", follow=follow)


def _base(path: str) -> str:
    if path.endswith("/."):
        return "."
    return os.path.basename(path.rstrip("/")) or "."


def _reopen(fd: int, flags: int) -> int:
    """Open what an O_PATH descriptor stands for; O_NONBLOCK keeps a FIFO from hanging us."""
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
