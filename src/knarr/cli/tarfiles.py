"""Tars of the host's files for `cp`, and tars from a workload onto the host.

A tar from behind a wall is hostile input: members are made through directory descriptors that never follow a
link, below one folder, and only files, folders, links and fifos come to be. Out of scope: whiteouts, images.
"""

from __future__ import annotations

import os
import stat
import tarfile

from knarr.model.errors import Conflict, Failed, Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

_PIECE = 256 * 1024
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class _Sink:
    """The file that `tarfile` writes into; pieces are taken out after each member."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._position = 0

    def tell(self) -> int:
        return self._position

    def write(self, data: bytes) -> int:
        self._pieces.append(data)
        self._position += len(data)
        return len(data)

    def take(self) -> Iterator[bytes]:
        pieces, self._pieces = self._pieces, []
        return iter(pieces)


class _Source:
    """Pieces as a file to read from."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int) -> bytes:
        parts, wanted = [], size
        while wanted > 0:
            if not self._rest:
                self._rest = next(self._pieces, b"")
                if not self._rest:
                    break
            part, self._rest = self._rest[:wanted], self._rest[wanted:]
            parts.append(part)
            wanted -= len(part)
        return b"".join(parts)


def pack(path: str, name: str, *, keep_owner: bool) -> Iterator[bytes]:
    """A tar of a file or tree whose top entry is `name`."""
    sink = _Sink()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
        for real, member in _walk(path, name):
            yield from _add(archive, sink, real, member, keep_owner=keep_owner)
    yield from sink.take()


def _walk(path: str, name: str) -> Iterator[tuple[str, str]]:
    """Parents before children, in a stable order."""
    yield path, name
    if os.path.isdir(path) and (path.endswith("/.") or not os.path.islink(path)):
        for entry in sorted(os.listdir(path)):
            yield from _walk(os.path.join(path, entry), f"{name}/{entry}")


def _add(
    archive: tarfile.TarFile, sink: _Sink, real: str, member: str, *, keep_owner: bool
) -> Iterator[bytes]:
    # a socket has no place in a tar
    if stat.S_ISSOCK(os.lstat(real).st_mode):
        return
    info = archive.gettarinfo(real, member)
    if not keep_owner:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
    if not info.isreg():
        archive.addfile(info)
        yield from sink.take()
        return
    with open(real, "rb") as file:
        archive.addfile(info)
        yield from sink.take()
        yield from _content(archive, file, info.size, real)


def _content(archive: tarfile.TarFile, file: IO[bytes], size: int, real: str) -> Iterator[bytes]:
    """Exactly `size` bytes and the padding: a file that changes its length must not break the tar."""
    left = size
    while left:
        data = file.read(min(left, _PIECE))
        if not data:
            raise Failed(f"{real}: the file became shorter while it was copied")
        left -= len(data)
        yield data
    padding = -size % tarfile.BLOCKSIZE
    yield bytes(padding)
    archive.offset += size + padding


def extract(pieces: Iterator[bytes], folder: str, rename: str, top: str) -> None:
    """Members below `folder`; the first path part `top` becomes `rename` (`.`: drops; empty: stays)."""
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    source = _Source(pieces)
    names = _Names(rename, top)
    modes: list[tuple[list[str], tarfile.TarInfo]] = []
    try:
        with tarfile.open(fileobj=source, mode="r|") as archive:  # type: ignore[call-overload]
            for member in archive:
                _make(root, archive, member, names)
                if member.isdir():
                    modes.append((names.parts(member.name), member))
        for parts, member in reversed(modes):
            _finish_folder(root, parts, member)
    except tarfile.TarError as error:
        raise Failed(f"the archive is damaged: {error}") from error
    finally:
        os.close(root)


class _Names:
    """How members are called on the host: the first part `top` becomes `rename` (`.` drops it)."""

    def __init__(self, rename: str, top: str) -> None:
        self._rename = rename
        self._top = top

    def parts(self, name: str) -> list[str]:
        """Path parts below the folder. Raises `Invalid` for what would lead out of it."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts or name.startswith("/") or any("\0" in part for part in parts):
            raise Invalid(f"the archive names {name!r}, which leads out of the target")
        if not self._rename or not parts or self._top not in (parts[0], "/"):
            return parts
        head = [] if self._rename == "." else [self._rename]
        return head + parts[0 if self._top == "/" else 1 :]


def _open_parent(root: int, parts: list[str]) -> int:
    """The folder that holds the last part; every step is a real folder, none a link."""
    fd = os.dup(root)
    for part in parts[:-1]:
        try:
            below = os.open(part, _FOLDER, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def _make(root: int, archive: tarfile.TarFile, member: tarfile.TarInfo, names: _Names) -> None:
    parts = names.parts(member.name)
    if not parts:
        return
    parent = _open_parent(root, parts)
    try:
        name = parts[-1]
        if member.isdir():
            _make_folder(parent, name)
            return
        _clear(parent, name)
        if member.issym():
            os.symlink(member.linkname, name, dir_fd=parent)
        elif member.islnk():
            _hard_link(root, parent, name, names.parts(member.linkname))
        elif member.isfifo():
            os.mkfifo(name, member.mode & 0o777, dir_fd=parent)
        elif member.isreg():
            _make_file(parent, name, archive, member)
        else:
            raise Invalid(f"{member.name}: devices are not copied to the host")
    finally:
        os.close(parent)


def _make_folder(parent: int, name: str) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        # a link or file of that name refuses here
        os.close(os.open(name, _FOLDER, dir_fd=parent))


def _clear(parent: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    except IsADirectoryError as error:
        raise Conflict(f"{name}: a file can't be copied over a folder") from error


def _hard_link(root: int, parent: int, name: str, target: list[str]) -> None:
    if not target:
        raise Invalid(f"{name}: a link to nothing")
    folder = _open_parent(root, target)
    try:
        os.link(target[-1], name, src_dir_fd=folder, dst_dir_fd=parent, follow_symlinks=False)
    finally:
        os.close(folder)


def _make_file(parent: int, name: str, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    content = archive.extractfile(member)
    fd = os.open(name, _NEW_FILE, 0o600, dir_fd=parent)
    try:
        while content is not None and (data := content.read(_PIECE)):
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        os.fchmod(fd, member.mode & 0o777)
        os.utime(fd, (member.mtime, member.mtime))
    finally:
        os.close(fd)


def _finish_folder(root: int, parts: list[str], member: tarfile.TarInfo) -> None:
    """After its content is there: a read-only folder would have refused it, and the time would change."""
    fd = _open_parent(root, [*parts, ""])
    try:
        if parts:
            os.fchmod(fd, member.mode & 0o777)
            os.utime(fd, (member.mtime, member.mtime))
    finally:
        os.close(fd)
