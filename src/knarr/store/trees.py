"""Removing a folder tree of which a workload wrote the contents.

Never follows a link, never leaves the folder, needs neither stack nor descriptors in proportion to the
depth (a workload may nest deeper than both allow): sub-folders are moved up beside the tree before their
turn.
"""

from __future__ import annotations

import errno
import os
import secrets

PREFIX = ".removing-"
"""Names of folders moved up; what a crash leaves of them may be removed at the next start."""

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Removal:
    """The removal of one tree, in as many turns as the caller likes."""

    def __init__(self, path: str) -> None:
        self._parent, name = os.path.split(os.path.abspath(path))
        self._queue = [name]
        self._token = secrets.token_hex(6)
        self._count = 0

    def run(self, budget: int | None = None) -> bool:
        """Remove `budget` entries or all; True when nothing is left. A missing tree is fine. Raises
        OSError.
        """
        parent = os.open(self._parent, _OPEN)
        left = budget
        try:
            while self._queue:
                if left is not None and left <= 0:
                    return False
                count = self._empty(parent, self._queue[-1], left)
                left = None if left is None else left - count
        finally:
            os.close(parent)
        return True

    def _empty(self, parent: int, name: str, limit: int | None) -> int:
        """Empty one folder and remove it; the number of entries it took."""
        try:
            fd = os.open(name, _OPEN, dir_fd=parent)
        except FileNotFoundError:
            self._queue.pop()
            return 1
        moved: list[str] = []
        count = 0
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    count += 1
                    if limit is not None and count > limit:
                        self._queue[-1:-1] = moved
                        return count
                    if entry.is_dir(follow_symlinks=False):
                        if not _remove_empty(fd, entry.name):
                            moved.append(self._move_up(parent, fd, entry.name))
                    else:
                        os.unlink(entry.name, dir_fd=fd)
        except OSError:
            # the next turn goes on with them
            self._queue[-1:-1] = moved
            raise
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=parent)
        self._queue[-1:] = moved
        return count + 1

    def _move_up(self, parent: int, fd: int, name: str) -> str:
        self._count += 1
        place = f"{PREFIX}{self._token}-{self._count}"
        os.rename(name, place, src_dir_fd=fd, dst_dir_fd=parent)
        return place


def _remove_empty(fd: int, name: str) -> bool:
    """Most folders are; asking costs less than looking."""
    try:
        os.rmdir(name, dir_fd=fd)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True
