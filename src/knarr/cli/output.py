"""Where an archive goes: a file that is only there when it is whole, or standard output."""

from __future__ import annotations

import os

from knarr.model.errors import Invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def write(path: str, pieces: Callable[[], Iterator[bytes]]) -> None:
    """To `path`, or for "" to standard output, which must not be a terminal. Asks for the pieces late."""
    if not path:
        if os.isatty(1):
            raise Invalid("standard output is a terminal", hint="-o FILE, or redirect it into one")
        _write_all(1, pieces())
    elif os.path.exists(path) and not os.path.isfile(path):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            _write_all(fd, pieces())
        finally:
            os.close(fd)
    else:
        _write_file(path, pieces)


def _write_file(path: str, pieces: Callable[[], Iterator[bytes]]) -> None:
    beside = f"{path}.knarr-{os.getpid()}"
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            _write_all(fd, pieces())
        finally:
            os.close(fd)
        os.rename(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def _write_all(fd: int, pieces: Iterator[bytes]) -> None:
    for piece in pieces:
        view = memoryview(piece)
        while view:
            view = view[os.write(fd, view) :]
