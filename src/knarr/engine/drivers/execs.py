"""An exec in a container: the streams that the keeper handed over and the status it will report."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from knarr.engine.driver import STDERR, STDOUT
from knarr.engine.drivers.pipes import Reader, Writer, set_size
from knarr.model import state
from knarr.model.errors import Conflict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class ContainerExec:
    """`driver.ExecSession` over pipes or a pty's master."""

    def __init__(
        self,
        exec_id: str,
        fds: dict[str, int],
        ended: asyncio.Future[int],
        send_signal: Callable[[int], Awaitable[None]],
    ) -> None:
        self.id = exec_id
        self._ended = ended
        self._send_signal = send_signal
        self._tty = fds.get("tty", -1)
        self._stdin = self._open_stdin(fds)
        self._readers = self._open_output(fds)
        self._pending: dict[asyncio.Future[bytes], tuple[int, Reader]] = {}

    def _open_stdin(self, fds: dict[str, int]) -> Writer | None:
        if self._tty >= 0:
            return Writer(os.dup(self._tty))
        return Writer(fds["stdin"]) if "stdin" in fds else None

    def _open_output(self, fds: dict[str, int]) -> list[tuple[int, Reader]]:
        if self._tty >= 0:
            return [(STDOUT, Reader(self._tty))]
        named = ((STDOUT, "stdout"), (STDERR, "stderr"))
        return [(stream, Reader(fds[name])) for stream, name in named if name in fds]

    async def read(self) -> tuple[int, bytes] | None:
        """All that the process wrote; not what others go on writing after its end into the pipes it left."""
        while self._readers or self._pending:
            for stream, reader in self._readers:
                self._pending[asyncio.ensure_future(reader.read())] = stream, reader
            self._readers = []
            waiting: list[asyncio.Future[Any]] = [*self._pending, self._ended]
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            task = next((task for task in self._pending if task in done), None)
            if task is None:
                return await self._rest()
            stream, reader = self._pending.pop(task)
            data = task.result()
            if data:
                self._readers.append((stream, reader))
                return stream, data
            reader.close()
        return None

    async def _rest(self) -> tuple[int, bytes] | None:
        """The process has ended and no read is ready: what is in the pipes now is the last of it."""
        await self._stop_reading()
        while self._readers:
            stream, reader = self._readers[-1]
            data = reader.read_now()
            if data:
                return stream, data
            reader.close()
            self._readers.pop()
        return None

    async def _stop_reading(self) -> None:
        for task in self._pending:
            task.cancel()
        await asyncio.gather(*self._pending, return_exceptions=True)
        self._readers += self._pending.values()
        self._pending = {}

    async def write(self, data: bytes) -> None:
        if self._stdin is not None:
            await self._stdin.write(data)

    async def close_stdin(self) -> None:
        if self._stdin is not None and self._tty < 0:
            self._stdin.close()

    async def resize(self, columns: int, rows: int) -> None:
        if self._tty < 0 or self._stdin is None or self._stdin.fd < 0:
            raise Conflict(f"exec {self.id[:12]} has no tty", hint="start it with -t")
        set_size(self._stdin.fd, columns, rows)

    async def signal(self, signum: int) -> None:
        if not self._ended.done():
            await self._send_signal(signum)

    async def wait(self) -> int:
        status = await asyncio.shield(self._ended)
        return state.EXIT_UNKNOWN if status < 0 else state.exit_code(status)

    async def close(self) -> None:
        await self._stop_reading()
        for _, reader in self._readers:
            reader.close()
        self._readers = []
        if self._stdin is not None:
            self._stdin.close()
