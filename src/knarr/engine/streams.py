"""Output and input of workloads and execs for the front ends: attach, logs, exec.

Output is read from the log files that the mover writes, so a client that is slow or dies holds nobody up, and a
new daemon goes on where the old one was. Out of scope: the files' form (`keeper.logs`) and frames (`api`).
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Protocol

from knarr.engine import merge
from knarr.keeper.logs import LogReader
from knarr.model.errors import Conflict, NotFound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from knarr.engine.driver import ExecSession, ExitResult, Stdin
    from knarr.engine.lifecycle import Lifecycle
    from knarr.engine.table import Entry

_MAX_PIECE = 256 << 10


class Terminal(Protocol):
    """What a front end speaks to: an attached workload or an exec."""

    def output(self) -> AsyncIterator[tuple[int, bytes]]: ...
    async def result(self) -> int: ...
    async def write(self, data: bytes) -> None: ...
    async def close_stdin(self) -> None: ...
    async def resize(self, columns: int, rows: int) -> None: ...
    async def signal(self, name: str) -> None: ...
    async def close(self) -> None: ...


class ExecTerminal:
    """An exec session as a terminal."""

    def __init__(self, session: ExecSession) -> None:
        self._session = session

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        while (item := await self._session.read()) is not None:
            yield item

    async def result(self) -> int:
        return await self._session.wait()

    async def write(self, data: bytes) -> None:
        await self._session.write(data)

    async def close_stdin(self) -> None:
        await self._session.close_stdin()

    async def resize(self, columns: int, rows: int) -> None:
        await self._session.resize(columns, rows)

    async def signal(self, name: str) -> None:
        await self._session.signal(merge.parse_signal(name))

    async def close(self) -> None:
        await self._session.close()


class AttachTerminal:
    """A workload's own streams from a position of its log on."""

    def __init__(
        self, life: Lifecycle, entry: Entry, follower: Follower, exited: asyncio.Future[ExitResult]
    ) -> None:
        self._life = life
        self._entry = entry
        self._follower = follower
        self._exited = exited
        self.stdin: Stdin | None = None

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        async for _, stream, data in self._follower.records(self._exited):
            yield stream, data

    async def result(self) -> int:
        return (await self._exited).code

    async def write(self, data: bytes) -> None:
        if self.stdin is not None:
            await self.stdin.write(data)

    async def close_stdin(self) -> None:
        if self.stdin is not None:
            await self.stdin.close()

    async def resize(self, columns: int, rows: int) -> None:
        w = self._entry.w
        if w.spec.tty and w.status.running:
            await self._life.driver(w).resize(w, columns, rows)

    async def signal(self, name: str) -> None:
        await self._life.kill(self._entry, merge.parse_signal(name))

    async def close(self) -> None:
        self._follower.close()
        self._exited.cancel()
        if self.stdin is not None:
            await self.stdin.release()
