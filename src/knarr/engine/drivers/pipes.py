"""Pipes and ptys of workloads in the event loop: reading only when asked to, writing with back-pressure.

Descriptors are made non-blocking; each belongs to the object that wraps it. Out of scope: who is at the other
end.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import struct
import termios

CHUNK = 64 << 10


class Reader:
    """The daemon's end of a pipe or pty that a process writes to."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] | None = None

    async def read(self) -> bytes:
        """Up to `CHUNK` bytes; b"" at the end. Not called = the process waits once the pipe is full."""
        while self._fd >= 0:
            try:
                return os.read(self._fd, CHUNK)
            except BlockingIOError:
                await self._readable()
            except OSError as error:
                # a pty whose last slave end has closed
                if error.errno == errno.EIO:
                    return b""
                raise
        return b""

    def read_now(self) -> bytes:
        """What is there; b"" when there is nothing, or nothing will come."""
        try:
            return os.read(self._fd, CHUNK) if self._fd >= 0 else b""
        except (BlockingIOError, InterruptedError):
            return b""
        except OSError as error:
            if error.errno == errno.EIO:
                return b""
            raise

    async def _readable(self) -> None:
        self._ready = self._loop.create_future()
        self._loop.add_reader(self._fd, _wake, self._ready)
        try:
            await self._ready
        finally:
            if self._fd >= 0:
                self._loop.remove_reader(self._fd)

    def close(self) -> None:
        """Whoever waits in here goes on and sees the end."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        if self._ready is not None:
            _wake(self._ready)


class Writer:
    """The daemon's end of a pipe or pty that a process reads from."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] | None = None
        self._turn = asyncio.Lock()

    @property
    def fd(self) -> int:
        return self._fd

    async def write(self, data: bytes) -> None:
        """Waits while the process does not read; a closed reader swallows the data."""
        async with self._turn:
            view = memoryview(data)
            while view and self._fd >= 0:
                try:
                    view = view[os.write(self._fd, view) :]
                except BlockingIOError:
                    await self._writable()
                except OSError as error:
                    if error.errno in (errno.EPIPE, errno.EIO):
                        return
                    raise

    async def _writable(self) -> None:
        self._ready = self._loop.create_future()
        self._loop.add_writer(self._fd, _wake, self._ready)
        try:
            await self._ready
        finally:
            if self._fd >= 0:
                self._loop.remove_writer(self._fd)

    def close(self) -> None:
        """Whoever waits in here goes on and sees the end."""
        if self._fd >= 0:
            self._loop.remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1
        if self._ready is not None:
            _wake(self._ready)


def set_size(fd: int, columns: int, rows: int) -> None:
    """Of the terminal whose master `fd` is. Raises OSError."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
