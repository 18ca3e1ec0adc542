"""Unpack a stranger's tar into a folder of a tree that may change meanwhile; never a byte outside the tree.

docker's rules: parents are made when missing, links of the image on the way to an entry are followed inside
the tree, existing entries are replaced, but a folder never by something else nor the reverse. Out of scope:
the tar's form (`archive_reader`).
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from typing import TYPE_CHECKING

from knarr.kernel import paths, userids
from knarr.kernel.archive_reader import Entry, Reader, split

if TYPE_CHECKING:
    from collections.abc import Callable

    from knarr.model.namespaces import IdMap

_NODES = {tarfile.CHRTYPE: stat.S_IFCHR, tarfile.BLKTYPE: stat.S_IFBLK, tarfile.FIFOTYPE: stat.S_IFIFO}
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ATTRIBUTES = ("user.", "security.capability", "system.posix_acl_")


def unpack(root: int, path: str, read: Callable[[], bytes], *, ids: IdMap | None = None) -> None:
    """Extract the tar that `read` gives (b"" at its end) into the folder `path`. `ids`: of the user
    namespace that the root belongs to; the archive's owners are those inside.

    Raises OSError, and ValueError for an archive that is broken or tries something.
    """
    # before the first byte: is it a folder at all?
    os.close(paths.open_folder(root, path or "/"))
    reader = Reader(read)
    target = _Target(root, path)
    try:
        with userids.acting(ids):
            for entry in reader:
                entry.uid, entry.gid = userids.to_host(ids, entry.uid, entry.gid)
                target.add(entry, reader)
            target.finish()
    finally:
        target.close()


class _Target:
    """The destination; each entry's parent is opened by a path from the root, the last one kept."""

    def __init__(self, root: int, path: str) -> None:
        self._root = root
        self._path = path.rstrip("/")
        self._parent_names: tuple[str, ...] | None = None
        self._parent = -1
        self._folders: list[tuple[tuple[str, ...], int]] = []

    def add(self, entry: Entry, reader: Reader) -> None:
        if not entry.names:
            # the folder itself: it exists, and keeps its own mode
            return
        parent, name = self._open_parent(entry.names), entry.names[-1]
        if entry.type == tarfile.DIRTYPE:
            self._add_folder(parent, name, entry)
            return
        _make_room(parent, name)
        if entry.type == tarfile.REGTYPE:
            _write_file(parent, name, entry, reader)
        elif entry.type == tarfile.LNKTYPE:
            self._add_link(parent, name, entry)
        elif entry.type == tarfile.SYMTYPE:
            os.symlink(entry.link, name, dir_fd=parent)
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
            os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)
        elif entry.type in _NODES:
            os.mknod(name, _NODES[entry.type] | 0o600, os.makedev(*entry.device), dir_fd=parent)
            _finish_by_name(parent, name, entry)
        else:
            raise ValueError(f"entry {'/'.join(entry.names)[:200]!r} is of an unknown type {entry.type!r}")

    def finish(self) -> None:
        """Times of folders last: filling them changed them."""
        for names, mtime in reversed(self._folders):
            try:
                fd = paths.open_folder(self._root, self._absolute(names))
            except OSError:
                continue
            try:
                os.utime(f"/proc/self/fd/{fd}", ns=(mtime, mtime))
            finally:
                os.close(fd)

    def close(self) -> None:
        if self._parent >= 0:
            os.close(self._parent)
            self._parent = -1

    def _absolute(self, names: tuple[str, ...]) -> str:
        return "/".join((self._path, *names)) or "/"

    def _open_parent(self, names: tuple[str, ...]) -> int:
        above = names[:-1]
        if self._parent_names != above:
            self.close()
            self._parent_names = None
            self._parent = paths.make_folders(self._root, self._absolute(above), made=_plain)
            self._parent_names = above
        return self._parent

    def _add_folder(self, parent: int, name: str, entry: Entry) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            self._check_folder(entry)
        fd = paths.open_folder(self._root, self._absolute(entry.names))
        try:
            _apply(fd, entry)
        finally:
            os.close(fd)
        self._folders.append((entry.names, entry.mtime))

    def _check_folder(self, entry: Entry) -> None:
        """A link of the tree's that leads to a folder inside it counts as one."""
        try:
            os.close(paths.open_folder(self._root, self._absolute(entry.names)))
        except (NotADirectoryError, FileNotFoundError) as error:
            name = "/".join(entry.names)
            raise OSError(errno.EEXIST, "a folder can't replace what is there", name) from error

    def _add_link(self, parent: int, name: str, entry: Entry) -> None:
        target = split(entry.link)
        if not target:
            raise ValueError(f"entry {'/'.join(entry.names)[:200]!r} is a hard link to nothing")
        above = paths.open_folder(self._root, self._absolute(target[:-1]))
        try:
            os.link(target[-1], name, src_dir_fd=above, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(above)


def _plain(fd: int) -> None:
    """A folder that only the names of others speak of; the process's umask is not theirs."""
    os.chmod(f"/proc/self/fd/{fd}", 0o755)


def _make_room(parent: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    except (IsADirectoryError, PermissionError) as error:
        raise OSError(
            errno.EISDIR, "a folder is there and can't be replaced by something else", name
        ) from error


def _write_file(parent: int, name: str, entry: Entry, reader: Reader) -> None:
    fd = os.open(name, _CREATE, 0o600, dir_fd=parent)
    try:
        for piece in reader.content():
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(fd, rest) :]
        _apply(fd, entry)
        os.utime(fd, ns=(entry.mtime, entry.mtime))
    finally:
        os.close(fd)


def _finish_by_name(parent: int, name: str, entry: Entry) -> None:
    fd = paths.openat2(parent, name, os.O_PATH | os.O_NOFOLLOW, resolve=paths.BENEATH_PLAIN)
    try:
        _apply(fd, entry)
        os.utime(f"/proc/self/fd/{fd}", ns=(entry.mtime, entry.mtime))
    finally:
        os.close(fd)


def _apply(fd: int, entry: Entry) -> None:
    """Owner first: it would clear set-id bits and capabilities."""
    path = f"/proc/self/fd/{fd}"
    os.chown(path, entry.uid, entry.gid)
    os.chmod(path, entry.mode)
    for key, value in entry.attributes:
        if not key.startswith(_ATTRIBUTES):
            continue
        try:
            os.setxattr(path, key, value)
        except OSError as error:
            # a file system without them, or a capability that a namespace may not grant
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL):
                raise
