"""Small calls answered without the HTTP framework: one JSON value in, one out, the connection kept.

A start is four of these calls, and the framework would take more of the processor for them than the acts
do. `Connection` reads only what it fully understands: a head of known headers, a plain target, a body whose
length is given. With the first request that is anything else the connection goes over to the framework,
bytes unread, and stays there.

Out of scope: what is called (the `find` that it is given), streams, and everything a dialect says in headers.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MAX_HEAD: Final = 4096
MAX_BODY: Final = 64 << 10
_MAX_WAITING: Final = 4 * (MAX_HEAD + MAX_BODY)
"""bytes of requests to come, beyond which the connection is not read"""
_LINE: Final = re.compile(
    r"([A-Z]{1,10}) (/[A-Za-z0-9/_.~-]*)(?:\?([A-Za-z0-9/_.~:,@=&-]*))? HTTP/1[.]1", re.ASCII
)
_HEADER: Final = re.compile(r"([A-Za-z-]{1,40}):([ -~]*)", re.ASCII)
_LENGTH: Final = re.compile(r"[0-9]{1,6}", re.ASCII)
_UNHEEDED: Final = frozenset({"host", "user-agent", "accept", "accept-encoding", "content-type"})
"""headers that change nothing about the answer"""


class Request(NamedTuple):
    """One request in a form that leaves no question open."""

    method: str
    path: str
    query: dict[str, list[str]]
    body: bytes
    size: int
    """bytes of it in the stream"""


class Act(NamedTuple):
    """What a request asks for."""

    run: Awaitable[tuple[int, bytes]]
    """status and JSON; raises nothing"""
    cancels: bool
    """ended when its client goes"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Foreign:
    """Nothing for this module."""


FOREIGN: Final = Foreign()


def parse(data: bytes) -> Request | Foreign | None:
    """The first request in `data`; None when there is less than one."""
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD)
    if end < 0:
        return FOREIGN if len(data) >= MAX_HEAD else None
    first, *lines = data[:end].decode("latin-1").split("\r\n")
    line = _LINE.fullmatch(first)
    length = _length(lines)
    query = _query(line[3]) if line else None
    if line is None or query is None or length is None or length > MAX_BODY:
        return FOREIGN
    size = end + 4 + length
    if len(data) < size:
        return None
    return Request(line[1], line[2], query, data[end + 4 : size], size)


def _length(lines: list[str]) -> int | None:
    """Of the body, by the headers; None when one of them is not known here or stands there twice, or there
    is no host.
    """
    seen: dict[str, str] = {}
    for line in lines:
        header = _HEADER.fullmatch(line)
        key = header[1].lower() if header else ""
        if header is None or key in seen or (key not in _UNHEEDED and key != "content-length"):
            return None
        seen[key] = header[2].strip(" ")
    text = seen.get("content-length", "0")
    return int(text) if "host" in seen and _LENGTH.fullmatch(text) else None


def _query(text: str | None) -> dict[str, list[str]] | None:
    found: dict[str, list[str]] = {}
    for pair in text.split("&") if text else ():
        key, sign, value = pair.partition("=")
        if not key or not sign or "=" in value:
            return None
        found.setdefault(key, []).append(value)
    return found


def encode(status: int, body: bytes) -> bytes:
    return _head(status) % len(body) + body


def _head(status: int) -> bytes:
    return (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    ).encode()


class Framework(Protocol):
    """What makes the protocol of a connection that is given away."""

    def __call__(self) -> asyncio.Protocol: ...


class Connections:
    """All that are here. `find` gives the act of a request, None for one that the framework shall answer."""

    def __init__(
        self, find: Callable[[Request], Act | None], framework: Framework, *, keep_alive: float
    ) -> None:
        self.find = find
        self.framework = framework
        self.keep_alive = keep_alive
        """seconds that a connection may be silent"""
        self.open: set[Connection] = set()

    def __call__(self) -> Connection:
        return Connection(self)

    async def close(self, patience: float) -> None:
        """Idle ones and those that only wait at once; the others with their answer, or after `patience`
        seconds.
        """
        waiting = [task for item in tuple(self.open) if (task := item.finish()) is not None]
        if waiting:
            await asyncio.wait(waiting, timeout=patience)
        for item in tuple(self.open):
            item.abort()


class Connection(asyncio.Protocol):
    """One client; one act at a time, further requests wait their turn."""

    def __init__(self, owner: Connections) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._data = b""
        self._task: asyncio.Task[None] | None = None
        self._cancels = False
        self._paused = False
        self._full = False
        """it does not read our answers"""
        self._last = False
        """the answer under way is the last"""
        self._heard = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._owner.open.add(self)
        self._timer = self._loop.call_later(self._owner.keep_alive, self._silent)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._leave()
        if self._task is not None and self._cancels:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._data = self._data + data if self._data else data
        if self._task is None and not self._full:
            self._next()
        elif len(self._data) > _MAX_WAITING and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        if self._task is None and self._data:
            self._next()

    def finish(self) -> asyncio.Task[None] | None:
        """Answer the act under way, if there is one, then close."""
        self._last = True
        if self._task is None or self._cancels:
            self._transport.close()
            return None
        return self._task

    def abort(self) -> None:
        self._transport.abort()

    def _next(self) -> None:
        self._heard = self._loop.time()
        request = parse(self._data)
        if request is None:
            return
        act = self._owner.find(request) if isinstance(request, Request) else None
        if act is None or not isinstance(request, Request):
            self._give_away()
            return
        self._data = self._data[request.size :]
        self._cancels = act.cancels
        self._task = self._loop.create_task(self._answer(act.run))

    async def _answer(self, run: Awaitable[tuple[int, bytes]]) -> None:
        status, body = await run
        self._task = None
        if self._transport.is_closing():
            return
        self._transport.write(encode(status, body))
        if self._last:
            self._transport.close()
            return
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        self._heard = self._loop.time()
        if self._data and not self._full:
            self._next()

    def _give_away(self) -> None:
        self._leave()
        protocol = self._owner.framework()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(self._data)
        self._data = b""

    def _leave(self) -> None:
        self._owner.open.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _silent(self) -> None:
        """One timer per connection, not per request: it looks how long ago the last one was."""
        left = self._heard + self._owner.keep_alive - self._loop.time()
        if self._task is None and left <= 0:
            self._transport.close()
            return
        self._timer = self._loop.call_later(max(left, 1.0), self._silent)
