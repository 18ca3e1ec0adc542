"""What a tree looks like, in words: one line for each entry, so that a case can say exactly what it expects."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_LETTERS = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s",
}
_MANY = 400


def shape(root: str) -> tuple[str, ...]:
    """Sorted lines of all below `root`; only their number beyond 400 (paths may be longer than the host takes)."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = sorted(_walk(fd, b""))
    finally:
        os.close(fd)
    return tuple(found) if len(found) < _MANY else (f"{len(found)} entries",)


def _walk(top: int, above: bytes) -> Iterator[str]:
    """Folder by folder with one descriptor each, since whole paths may be too long to open."""
    waiting = [(os.dup(top), above)]
    while waiting:
        folder, path = waiting.pop()
        try:
            for name in os.listdir(folder):
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                inner = path + os.fsencode(name)
                yield _line(folder, name, inner, status)
                if stat.S_ISDIR(status.st_mode):
                    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                    waiting.append((os.open(name, flags, dir_fd=folder), inner + b"/"))
        finally:
            os.close(folder)


def _line(folder: int, name: str, path: bytes, status: os.stat_result) -> str:
    kind = stat.S_IFMT(status.st_mode)
    words = [_LETTERS[kind], printable(path)]
    if kind == stat.S_IFREG:
        words.append(str(status.st_size))
    elif kind == stat.S_IFLNK:
        words += ["->", printable(os.fsencode(os.readlink(name, dir_fd=folder)))]
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        words.append(f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}")
    if status.st_mode & 0o7000 and kind != stat.S_IFLNK:
        words.append(f"{stat.S_IMODE(status.st_mode):o}")
    if status.st_nlink > 1 and kind != stat.S_IFDIR:
        words.append(f"links={status.st_nlink}")
    return " ".join([*words, *_more(folder, name, status)])


def _more(folder: int, name: str, status: os.stat_result) -> Iterable[str]:
    if status.st_uid or status.st_gid:
        yield f"{status.st_uid}:{status.st_gid}"
    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
        try:
            for key in sorted(os.listxattr(fd)):
                value = os.getxattr(fd, key)
                yield f"{printable(os.fsencode(key))}={len(value) if len(value) > 16 else printable(value)}"
        finally:
            os.close(fd)


def printable(data: bytes) -> str:
    text = data.decode("utf-8", "surrogateescape")
    if text.isprintable() and " " not in text and "\\" not in text:
        return text
    return "".join(
        char if char.isprintable() and char not in " \\" else "".join(f"\\x{byte:02x}" for byte in _raw(char))
        for char in text
    )


def _raw(char: str) -> bytes:
    return char.encode("utf-8", "surrogateescape")
