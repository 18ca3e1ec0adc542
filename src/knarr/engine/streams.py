"""Output and input of workloads and execs for the front ends: attach, logs, exec.

Output is read from the log files that the mover writes, so a client that is slow or dies holds nobody up,
and a new daemon goes on where the old one was. Out of scope: the files' form (`keeper.logs`), frames (`api`).
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any, Protocol

from knarr.engine import logdrivers, merge
from knarr.keeper.logs import LogReader
from knarr.model.errors import Conflict, NotFound
from knarr.model.state import Status

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator

    from knarr.engine.driver import ExecSession, ExitResult, Stdin
    from knarr.engine.lifecycle import Lifecycle
    from knarr.engine.table import Entry


Piece = tuple[int, int, bytes]
"""(time, stream, bytes)"""
_TURN = 16
_JOINED = 64 << 10
_LOOK = 0.1
_FOREVER = 1 << 63


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
        async for _, stream, data in _follow(self._life, self._entry, self._reader, self._exited, {}):
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
        logdrivers.renew(w)
        reader = LogReader(os.path.join(w.dir, "log"), hold=True)
        if not logs:
            reader.position = reader.end()
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

    async def logs(
        self,
        entry: Entry,
        *,
        since: int | None,
        until: int | None,
        tail: int | None,
        follow: bool,
        streams: set[int],
        whole: bool,
    ) -> AsyncGenerator[Piece, None]:
        """`whole`: pieces keep the times at which they were written, else neighbours are joined."""
        if not entry.w.status.alive and entry.w.started:
            await self._life.drained(entry)
        wanted = {"since": since or 0, "until": until, "tail": tail if tail is None or tail >= 0 else None}
        reader = LogReader(os.path.join(entry.w.dir, "log"))
        exited = entry.next_exit()
        try:
            if follow and entry.w.status.alive:
                pieces = self._over_restarts(entry, reader, exited, wanted, whole=whole)
            else:
                pieces = _present(reader, wanted, whole=whole)
            async for piece in pieces:
                if piece[1] in streams:
                    yield piece
        finally:
            exited.cancel()
            reader.close()

    async def _over_restarts(
        self,
        entry: Entry,
        reader: LogReader,
        exited: asyncio.Future[ExitResult],
        wanted: dict[str, Any],
        *,
        whole: bool,
    ) -> AsyncGenerator[Piece, None]:
        """One run after the other, as long as somebody or its policy starts it again."""
        until = wanted.get("until") or _FOREVER
        while True:
            try:
                async for piece in _follow(self._life, entry, reader, exited, wanted, whole=whole):
                    yield piece
            finally:
                exited.cancel()
            async with entry.lock:
                # what ended it also says whether it comes back, under this lock
                pass
            while _comes_back(entry) and time.time_ns() < until:
                await asyncio.sleep(_LOOK)
            if not entry.w.status.alive or time.time_ns() >= until:
                return
            wanted = {**wanted, "tail": None}
            exited = entry.next_exit()


def _comes_back(entry: Entry) -> bool:
    """It has ended, and is about to begin again."""
    status = entry.w.status
    return status in (Status.RESTARTING, Status.STARTING) or (entry.staying > 0 and not status.running)


async def _present(reader: LogReader, wanted: dict[str, Any], *, whole: bool) -> AsyncGenerator[Piece, None]:
    """What is in the files now."""
    pieces = reader.read(**wanted)
    for count, piece in enumerate(pieces if whole else _join(pieces), 1):
        yield piece
        if count % _TURN == 0:
            # a client that takes all at once never makes us wait, but others want their turn
            await asyncio.sleep(0)


async def _follow(
    life: Lifecycle,
    entry: Entry,
    reader: LogReader,
    exited: asyncio.Future[ExitResult],
    wanted: dict[str, Any],
    *,
    whole: bool = False,
) -> AsyncGenerator[Piece, None]:
    """What is there and what comes, until the run has ended and its last byte is in the files."""
    until = wanted.get("until")
    complete = False
    while True:
        reader.changed()
        async for piece in _present(reader, wanted, whole=whole):
            yield piece
        wanted = {**wanted, "tail": None}
        if complete:
            return
        if exited.done():
            await life.drained(entry)
            complete = True
        else:
            complete = not await _news(reader.fileno(), exited, until)


async def _news(fd: int, exited: asyncio.Future[ExitResult], until: int | None) -> bool:
    """Wait for the mover or the end; False when the time is over."""
    loop = asyncio.get_running_loop()
    woken: asyncio.Future[None] = loop.create_future()

    def wake(*_: object) -> None:
        if not woken.done():
            woken.set_result(None)

    # registered only while waiting: a descriptor that stays readable would keep the loop busy
    loop.add_reader(fd, wake)
    exited.add_done_callback(wake)
    left = None if until is None else max(0.0, (until - time.time_ns()) / 1e9)
    try:
        done, _ = await asyncio.wait({woken}, timeout=left)
        return bool(done)
    finally:
        loop.remove_reader(fd)
        exited.remove_done_callback(wake)


def _join(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Neighbours of one stream as one piece: a chatty program's index has a record for every few bytes."""
    joined: list[bytes] = []
    size, first, current = 0, 0, 0
    for moment, stream, data in pieces:
        if joined and (stream != current or size + len(data) > _JOINED):
            yield first, current, b"".join(joined)
            joined, size = [], 0
        if not joined:
            first, current = moment, stream
        joined.append(data)
        size += len(data)
    if joined:
        yield first, current, b"".join(joined)
