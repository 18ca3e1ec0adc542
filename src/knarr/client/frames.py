"""Frames of attach, exec and logs: `u8 type, 3 zero bytes, u32 big-endian length, payload`, without I/O.

Out of scope: what the control frames mean (`cli.streams` and the daemon know).
"""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

STDIN, STDOUT, STDERR, CONTROL = range(4)

MAX_PAYLOAD = 16 << 20
"""A longer frame is a peer gone mad; memory is bounded by it."""

_HEADER = 8


class FrameError(Exception):
    """The bytes are not frames."""


def encode(kind: int, payload: bytes) -> bytes:
    """One frame."""
    return bytes((kind, 0, 0, 0)) + len(payload).to_bytes(4, "big") + payload


def encode_control(message: dict[str, Any]) -> bytes:
    """One control frame."""
    return encode(CONTROL, json.dumps(message, separators=(",", ":")).encode())


def decode_control(payload: bytes) -> dict[str, Any]:
    """The message of a control frame. Raises `FrameError`."""
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise FrameError("a control frame that is not JSON") from error
    if not isinstance(message, dict):
        raise FrameError("a control frame that is not an object")
    return message


def output(frame: tuple[int, bytes]) -> tuple[int, bytes]:
    """A frame of an answer that has output only; its one message is the error that ended it, raised here."""
    if frame[0] != CONTROL:
        return frame
    from knarr.model import errors

    message = decode_control(frame[1])
    error = message.get("error")
    raise errors.from_json(error if isinstance(error, dict) else message)


class FrameReader:
    """Collects bytes and gives whole frames as `(type, payload)`."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame; not zero at the end of a stream means that it was cut."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Raises `FrameError` for an unknown type, filled padding, or a payload over `MAX_PAYLOAD`."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _HEADER:
            length = int.from_bytes(buffer[4:8], "big")
            if buffer[0] > CONTROL or any(buffer[1:4]) or length > MAX_PAYLOAD:
                raise FrameError("not a frame")
            if len(buffer) < _HEADER + length:
                return
            frame = buffer[0], bytes(buffer[_HEADER : _HEADER + length])
            del buffer[: _HEADER + length]
            yield frame
