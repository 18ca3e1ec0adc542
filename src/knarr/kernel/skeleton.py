"""Places that every container mounts something at, as the lowest layer below its image's.

An image rarely has all of them, and what is missing would be made in the writable layer of each workload:
copies of folders, new files, and all of it to be removed again. Whatever the image has there wins.
Out of scope: mounting (`steps_mounts.Overlay`).
"""

from __future__ import annotations

import os

_FOLDERS = ("dev", "etc", "proc", "sys")
_FILES = ("etc/hostname", "etc/hosts", "etc/resolv.conf")


def path(run: str) -> str:
    """The folder, in the instance's RUN folder."""
    return os.path.join(run, "skeleton")


def make(run: str) -> None:
    """Raises OSError; what is there already stays."""
    root = path(run)
    for name in ("", *_FOLDERS):
        place = os.path.join(root, name)
        os.makedirs(place, exist_ok=True)
        os.chmod(place, 0o755)
    for name in _FILES:
        fd = os.open(os.path.join(root, name), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        os.fchmod(fd, 0o644)
        os.close(fd)
