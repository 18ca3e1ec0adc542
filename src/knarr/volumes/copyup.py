"""A folder of an image copied into an empty volume: modes, owners, times, attributes, links, nodes.

Everything is reached beneath two descriptors without following a link, since the image's bytes chose the
names. The walk keeps relative paths, not descriptors, so that depth costs nothing. Out of scope: when to
copy, and publishing the copy (`volumes.store`).
"""

from __future__ import annotations

import errno
import os
import stat

from knarr.kernel import paths

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = _READ | os.O_DIRECTORY
_PIECE = 1 << 24
_UNSUPPORTED = frozenset({errno.ENOTSUP, errno.ENODATA, errno.EPERM})


def copy(root: int, path: str, target: str) -> bool:
    """Copy the folder that a workload sees at `path` beneath `root` over the empty folder `target`.

    False when there is no folder. Raises OSError.
    """
    try:
        place = paths.open_folder(root, path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        source = os.open(".", _FOLDER | os.O_CLOEXEC, dir_fd=place)
    finally:
        os.close(place)
    try:
        into = os.open(target, _FOLDER | os.O_CLOEXEC)
        try:
            _Copy(source, into).run()
        finally:
            os.close(into)
    finally:
        os.close(source)
    return True


def attributes(source: int, target: int) -> None:
    """Owner, mode, extended attributes and times of one open file to another."""
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    # after the owner, whose change takes set-id bits and file capabilities away
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


class _Copy:
    def __init__(self, source: int, target: int) -> None:
        self._source = source
        self._target = target
        self._links: dict[tuple[int, int], str] = {}

    def run(self) -> None:
        waiting = ["."]
        while waiting:
            waiting += self._folder(waiting.pop())

    def _folder(self, path: str) -> list[str]:
        """Copy one folder's entries; the sub-folders, made but empty."""
        found = []
        source = paths.openat2(self._source, path, _FOLDER, resolve=paths.BENEATH_PLAIN)
        try:
            target = paths.openat2(self._target, path, _FOLDER, resolve=paths.BENEATH_PLAIN)
            try:
                for name in os.listdir(source):
                    status = os.stat(name, dir_fd=source, follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        os.mkdir(name, 0o700, dir_fd=target)
                        found.append(f"{path}/{name}")
                    else:
                        self._entry(source, target, name, f"{path}/{name}", status)
                attributes(source, target)
            finally:
                os.close(target)
        finally:
            os.close(source)
        return found

    def _entry(self, source: int, target: int, name: str, path: str, status: os.stat_result) -> None:
        if status.st_nlink > 1:
            first = self._links.setdefault((status.st_dev, status.st_ino), path)
            if first != path:
                os.link(first, name, src_dir_fd=self._target, dst_dir_fd=target, follow_symlinks=False)
                return
        if stat.S_ISREG(status.st_mode):
            _file(source, target, name)
            return
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        else:
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=target)
        os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=target)
        os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def _file(source: int, target: int, name: str) -> None:
    read = os.open(name, _READ | os.O_CLOEXEC, dir_fd=source)
    try:
        written = os.open(name, _WRITE, 0o600, dir_fd=target)
        try:
            while os.sendfile(written, read, None, _PIECE):
                pass
            attributes(read, written)
        finally:
            os.close(written)
    finally:
        os.close(read)
