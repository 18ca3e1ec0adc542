"""What a writable layer says about the files below it: overlay's own marks, read without following anything.

The guest's agent does the same for a machine's disk (csrc/agent/verbs.h). Out of scope: what is shown.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

Change = tuple[str, bytes]
"""A (new), C (changed), D (deleted), P (a folder on the way to others), and the absolute path"""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def read(upper: int, lower: int | None, path: bytes = b"") -> Iterator[Change]:
    """Changes below two opened folders."""
    for name in sorted(os.listdir(upper)):
        yield from _entry(upper, lower, os.fsencode(name), path + b"/" + os.fsencode(name))


def parse(data: bytes) -> list[Change]:
    """The agent's form: a letter and a path, each ended by a NUL."""
    found = []
    for item in data.split(b"\0"):
        kind = item[:1].decode("ascii", "replace")
        if kind in ("A", "C", "D", "P") and item[1:2] == b"/":
            found.append((kind, item[1:]))
    return found


def _entry(upper: int, lower: int | None, name: bytes, path: bytes) -> Iterator[Change]:
    now, was = _status(upper, name), _status(lower, name)
    if now is None:
        return
    if stat.S_ISCHR(now.st_mode) and now.st_rdev == 0:
        yield "D", path
    elif not stat.S_ISDIR(now.st_mode):
        yield "C" if was else "A", path
    else:
        both = was is not None and stat.S_ISDIR(was.st_mode)
        yield _folder_kind(now, was), path
        here = os.open(name, _FOLDER, dir_fd=upper)
        try:
            there = os.open(name, _FOLDER, dir_fd=lower) if both else None
            try:
                yield from _hidden(here, there, path)
                yield from read(here, there, path)
            finally:
                if there is not None:
                    os.close(there)
        finally:
            os.close(here)


def _folder_kind(now: os.stat_result, was: os.stat_result | None) -> str:
    if was is None:
        return "A"
    same = (now.st_mode, now.st_uid, now.st_gid) == (was.st_mode, was.st_uid, was.st_gid)
    return "P" if same else "C"


def _hidden(upper: int, lower: int | None, path: bytes) -> Iterator[Change]:
    """An opaque folder hides all of the image's: what it does not have itself is gone."""
    if lower is None or not _opaque(upper):
        return
    own = set(os.listdir(upper))
    for name in sorted(set(os.listdir(lower)) - own):
        yield "D", path + b"/" + os.fsencode(name)


def _opaque(folder: int) -> bool:
    try:
        return os.getxattr(folder, "trusted.overlay.opaque") == b"y"
    except OSError:
        return False


def _status(folder: int | None, name: bytes) -> os.stat_result | None:
    if folder is None:
        return None
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
