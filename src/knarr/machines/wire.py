"""The agent's protocol without I/O: bytes from and to messages. The table is in csrc/agent/wire.h.

All that arrives here was said by a guest, so every length is capped and nothing is believed beyond its shape.
Out of scope: sockets, sessions, waiting (`machines.agent`).
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from knarr.model.errors import Failed

VERSION = 1
FRAME_MAX = 4096
HEADER = struct.Struct("<HBBI")
PAYLOAD_MAX = FRAME_MAX - HEADER.size
MESSAGE_MAX = 8 << 20
WINDOW = 65536
NONCE_SIZE = 16
_MORE = 1
_MARKER = b"KNSYNC\r\n"
_REPLY_MAX = 1 << 20
_RECORDS_MAX = 4096


class ToGuest(enum.IntEnum):
    HELLO = 1
    START = 2
    SIGNAL = 3
    RESIZE = 4
    EXEC = 5
    DATA = 6
    EOF = 7
    CREDIT = 8
    CLOSE = 9
    ASK = 10
    OFF = 11


class FromGuest(enum.IntEnum):
    HELLO = 33
    STARTED = 34
    ENDED = 35
    DATA = 36
    CREDIT = 37
    EXIT = 38
    RESULT = 39
    ERROR = 40


class State(enum.IntEnum):
    BOOTED = 0
    RUNNING = 1
    ENDED = 2


Records = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Event:
    """One whole message of the guest. `stream` is 1 or 2 for DATA."""

    kind: FromGuest
    session: int
    stream: int
    payload: bytes


def frames(kind: ToGuest, session: int = 0, payload: bytes = b"") -> list[bytes]:
    """The frames of one message; each is to be sent by one send(2)."""
    pieces = [payload[at : at + PAYLOAD_MAX] for at in range(0, len(payload), PAYLOAD_MAX)] or [b""]
    last = len(pieces) - 1
    return [
        HEADER.pack(len(piece), kind, _MORE if index < last else 0, session) + piece
        for index, piece in enumerate(pieces)
    ]


def stdin_frames(data: bytes) -> list[bytes]:
    """For the stdin port; the end of input is `STDIN_END`."""
    return [
        struct.pack("<H", len(piece)) + piece
        for piece in (data[at : at + FRAME_MAX - 2] for at in range(0, len(data), FRAME_MAX - 2))
    ]


STDIN_END = struct.pack("<H", 0)


def pack_records(records: Records) -> bytes:
    return b"".join(
        struct.pack("<I", len(name) + 1 + len(value)) + name.encode() + b"\0" + value
        for name, value in records
    )


def unpack_records(data: bytes) -> dict[str, bytes]:
    """Raises `Failed` on anything that is not a whole number of records."""
    found: dict[str, bytes] = {}
    position = 0
    while position < len(data):
        if position + 4 > len(data) or len(found) >= _RECORDS_MAX:
            raise _broken("records")
        (length,) = struct.unpack_from("<I", data, position)
        body = data[position + 4 : position + 4 + length]
        name, separator, value = body.partition(b"\0")
        if len(body) != length or not separator:
            raise _broken("a record")
        found[name.decode("utf-8", "replace")] = value
        position += 4 + length
    return found


def number(records: dict[str, bytes], name: str, absent: int = 0) -> int:
    """A decimal field, at most 19 characters: more would not fit into 64 bits, nor into an answer's JSON."""
    text = records.get(name, b"")
    if not text:
        return absent
    if len(text) > 19 or not text.removeprefix(b"-").isdigit():
        raise _broken(f"the number {name!r}")
    return int(text)


def text(records: dict[str, bytes], name: str, limit: int = 1000) -> str:
    """A printable line: what a guest says ends on a terminal, so control characters are replaced."""
    decoded = records.get(name, b"")[:limit].decode("utf-8", "replace")
    return "".join(char if char.isprintable() else "?" for char in decoded)


class Decoder:
    """Bytes of the control port to events. Everything before the marker of our own HELLO is skipped."""

    def __init__(self, nonce: bytes) -> None:
        self._marker = _MARKER + nonce
        self._synchronised = False
        self._buffer = bytearray()
        self._parts: dict[tuple[int, int], bytearray] = {}

    def feed(self, data: bytes) -> list[Event]:
        """Raises `Failed` when the guest breaks the protocol; the decoder is useless after that."""
        self._buffer += data
        if not self._synchronised and not self._synchronise():
            return []
        events = []
        while (event := self._next()) is not None:
            events.append(event)
        return events

    def _synchronise(self) -> bool:
        at = self._buffer.find(self._marker)
        if at < 0:
            del self._buffer[: max(0, len(self._buffer) - len(self._marker))]
            return False
        del self._buffer[: at + len(self._marker)]
        self._synchronised = True
        return True

    def _next(self) -> Event | None:
        while len(self._buffer) >= HEADER.size:
            length, kind, flags, session = HEADER.unpack_from(self._buffer)
            if length > PAYLOAD_MAX:
                raise _broken("a frame's length")
            end = HEADER.size + length
            if len(self._buffer) < end:
                return None
            payload = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            if kind not in _KINDS:
                raise _broken(f"a message of kind {kind}")
            whole = self._assemble(kind, session, flags, payload)
            if whole is not None:
                return Event(FromGuest(kind), session, flags >> 4, whole)
        return None

    def _assemble(self, kind: int, session: int, flags: int, payload: bytes) -> bytes | None:
        if kind == FromGuest.DATA:  # a stream has no message boundaries
            return payload
        key = (kind, session)
        if flags & _MORE:
            if len(self._parts) > 16 or len(self._parts.get(key, b"")) > _REPLY_MAX:
                raise _broken("a message's length")
            self._parts.setdefault(key, bytearray()).extend(payload)
            return None
        return bytes(self._parts.pop(key, b"")) + payload


_KINDS = frozenset(FromGuest)


def _broken(what: str) -> Failed:
    return Failed(
        f"the guest's agent broke the protocol: {what}", hint="the machine is not to be trusted; remove it"
    )
