"""A connection taken over from the HTTP server: frames both ways with back-pressure in both directions.

Out of scope: what the frames mean (`api.native.streams`). aiohttp leaves a connection to its handler through
`transport.set_protocol`; its own protocol still learns of the connection's end.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import TYPE_CHECKING, Any

from knarr.model.errors import Invalid

if TYPE_CHECKING:
    from aiohttp import web

STDIN, STDOUT, STDERR, CONTROL = range(4)
HEADER = 8
MAX_PAYLOAD = 1 << 20
"""A longer frame from a client is refused: memory is bounded by it."""
_QUEUE = 64
_HEAD = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: knarr-frames\r\n\r\n"


def encode(kind: int, payload: bytes) -> bytes:
    return bytes((kind, 0, 0, 0)) + len(payload).to_bytes(4, "big") + payload


def encode_control(message: dict[str, Any]) -> bytes:
    return encode(CONTROL, json.dumps(message, separators=(",", ":")).encode())


class Decoder:
    """Bytes in, whole frames out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Raises `Invalid` for what is not a frame."""
        buffer = self._buffer
        buffer += data
        frames = []
        start = 0
        while len(buffer) - start >= HEADER:
            kind = buffer[start]
            length = int.from_bytes(buffer[start + 4 : start + HEADER], "big")
            if kind not in (STDIN, CONTROL) or any(buffer[start + 1 : start + 4]) or length > MAX_PAYLOAD:
                raise Invalid(
                    "the client sent what is not a frame", hint="see docs/architecture.md section 9"
                )
            if len(buffer) - start < HEADER + length:
                break
            frames.append((kind, bytes(buffer[start + HEADER : start + HEADER + length])))
            start += HEADER + length
        del buffer[:start]
        return frames


class Channel(asyncio.Protocol):
    """The upgraded connection. `receive` gives frames, `send` waits for a slow client."""

    def __init__(self, request: web.Request) -> None:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        self._http = request.protocol
        self._transport = transport
        self._decoder = Decoder()
        self._frames: deque[tuple[int, bytes]] = deque()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._gone = False
        self._paused = False
        self._error: Invalid | None = None
        self._transport.write(_HEAD)
        self._transport.set_protocol(self)

    # from the transport

    def data_received(self, data: bytes) -> None:
        try:
            self._frames.extend(self._decoder.feed(data))
        except Invalid as error:
            self._error = error
            self._gone = True
        if len(self._frames) > _QUEUE and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._arrived.set()

    def eof_received(self) -> bool:
        """A client that sends no more has gone: ends of streams are frames. What was decided goes out
        still.
        """
        self._gone = True
        self._arrived.set()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self._arrived.set()
        self._writable.set()
        self._http.connection_lost(exc)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # for the handler

    async def receive(self) -> tuple[int, bytes] | None:
        """The next frame; None when the client has gone. Raises `Invalid` for garbage."""
        while not self._frames:
            if self._error is not None:
                raise self._error
            if self._gone:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        frame = self._frames.popleft()
        if self._paused and len(self._frames) < _QUEUE // 2:
            self._paused = False
            self._transport.resume_reading()
        return frame

    async def send(self, data: bytes) -> None:
        """Raises ConnectionError when the client has gone."""
        if self._transport.is_closing():
            raise ConnectionResetError("the client has gone")
        self._transport.write(data)
        if not self._writable.is_set():
            await self._writable.wait()

    def close(self) -> None:
        """After the bytes on their way; harmless when repeated."""
        self._http.force_close()
        self._transport.close()
