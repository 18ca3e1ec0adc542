"""Output and input of workloads and execs for the front ends: attach, logs, exec.

Output is read from the log files that the mover writes, so a client that is slow or dies holds nobody up,
and a new daemon goes on where the old one was. Out of scope: the files' form (`keeper.logs`), frames (`api`).
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Protocol

from knarr.engine import merge
from knarr.keeper.logs import LogReader
from knarr.model.errors import Conflict, NotFound

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from knarr.engine.driver import ExecSession, ExitResult, Stdin
    from knarr.engine.lifecycle import Lifecycle
    from knarr.engine.table import Entry


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
    """A workload's own streams from a position of its log on, until the end of its run."""

    def __init__(self, life: Lifecycle, entry: Entry, reader: LogReader) -> None:
        self._life = life
        self._entry = entry
        self._reader = reader
        self._exited = entry.next_exit()
        self.stdin: Stdin | None = None

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        async for _, stream, data in follow(self._life, self._entry, self._reader, self._exited):
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
        self._reader.close()
        self._exited.cancel()
        if self.stdin is not None:
            await self.stdin.release()


class Streams:
    """Attach, logs, and the execs under way by their ids."""

    def __init__(self, life: Lifecycle) -> None:
        self._life = life
        self._sessions: dict[str, ExecSession] = {}

    def register(self, session: ExecSession) -> None:
        self._sessions[session.id] = session

    def unregister(self, session: ExecSession) -> None:
        self._sessions.pop(session.id, None)

    def session(self, exec_id: str) -> ExecSession:
        """Raises `NotFound`."""
        found = self._sessions.get(exec_id)
        if found is None:
            raise NotFound(f"no such exec: {exec_id[:64]!r}", hint="it may have ended")
        return found

    async def attach(self, entry: Entry, *, stdin: bool, logs: bool, start: bool) -> AttachTerminal:
        """With `start` nothing of the coming run is missed, without it the workload must run."""
        w = entry.w
        if not start and not w.status.running:
            raise Conflict(f"workload {w.name!r} is not running", hint="start it, or attach with start")
        reader = LogReader(_log_folder(entry))
        if not logs:
            reader.seek_end()
        terminal = AttachTerminal(self._life, entry, reader)
        try:
            if start:
                await self._life.start(entry)
            if stdin and w.spec.stdin_open:
                terminal.stdin = await self._open_stdin(entry)
        except BaseException:
            await terminal.close()
            raise
        return terminal

    async def _open_stdin(self, entry: Entry) -> Stdin | None:
        """One that ended meanwhile, or whose stdin was closed, has none."""
        try:
            return await self._life.driver(entry.w).stdin(entry.w)
        except Conflict:
            return None
