"""The writable layer of a microVM: a sparse ext4 image, copied from a template that is formatted once.

Only the template is ever touched by the host's mkfs; nothing is mounted. Out of scope: what the guest writes.
"""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile

from knarr.model.errors import Failed, Unavailable

SIZE = 16 << 30
_MKFS = "/usr/sbin/mkfs.ext4"
_OPTIONS = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"
_FORM = ("-q", "-F", "-m", "0", "-J", "size=8", "-i", "65536")
_FOLDERS = ("upper", "work")
"""what the overlay needs: to make them in the guest would cost its start some 14 ms"""
_VERSION = "3"


def make_upper(root: str, path: str) -> None:
    """A fresh disk at `path`. Raises `Unavailable`, `Failed` and OSError."""
    template = os.path.join(root, "kernels", f"upper-{_VERSION}.img")
    if not os.path.exists(template):
        _format(template)
    scratch = f"{path}.new"
    try:
        _copy_sparse(template, scratch)
        os.rename(scratch, path)
    finally:
        if os.path.exists(scratch):
            os.unlink(scratch)


def _format(template: str) -> None:
    os.makedirs(os.path.dirname(template), mode=0o700, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(template), delete=False) as file:
        file.truncate(SIZE)
    try:
        with tempfile.TemporaryDirectory() as content:
            for name in _FOLDERS:
                folder = os.path.join(content, name)
                os.mkdir(folder)
                os.chmod(folder, 0o755)  # the workload's root, whatever the daemon's umask
            done = subprocess.run(
                (_MKFS, *_FORM, "-E", _OPTIONS, "-d", content, file.name),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
        if done.returncode:
            raise Failed(f"the writable disk can't be formatted: {done.stderr.strip()}")
        os.rename(file.name, template)
    except FileNotFoundError as error:
        raise Unavailable("mkfs.ext4 is not installed", hint="apt-get install e2fsprogs") from error
    finally:
        if os.path.exists(file.name):
            os.unlink(file.name)


def _copy_sparse(source: str, target: str) -> None:
    """Data extents only, in the kernel, which shares blocks where the file system can."""
    with open(source, "rb") as read, open(target, "wb") as write:
        size = os.fstat(read.fileno()).st_size
        os.ftruncate(write.fileno(), size)
        position = 0
        while (extent := _next_extent(read.fileno(), position, size)) is not None:
            begin, position = extent
            _copy_range(read.fileno(), write.fileno(), begin, position)
    os.chmod(target, 0o600)


def _next_extent(fd: int, position: int, size: int) -> tuple[int, int] | None:
    if position >= size:
        return None
    try:
        begin = os.lseek(fd, position, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise
    return begin, os.lseek(fd, begin, os.SEEK_HOLE)


def _copy_range(read: int, write: int, begin: int, end: int) -> None:
    while begin < end:
        copied = os.copy_file_range(read, write, end - begin, begin, begin)
        if not copied:
            raise Failed("the writable disk's template is shorter than it says")
        begin += copied
