"""What crosses the instance's sockets: packets of words (holder, mover) and packets of JSON (keeper).

Sockets are SOCK_SEQPACKET, so one send is one message. Out of scope: what the messages mean
(docs/architecture.md sections 5 and 6), and the sockets' owners.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from typing import Any

from knarr.kernel import fds as descriptors

VERSION = 1
PACKET = 4 << 20
"""the largest message; a plan with a seccomp filter is some 30 kB"""
_BUFFER = 8 << 20
_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode

HOLDER = "holder.sock"
KEEPER = "keeper.sock"
MOVER = "mover-0.sock"


def encode_words(words: tuple[str, ...]) -> bytes:
    return b"\0".join(os.fsencode(word) for word in words)


def decode_words(data: bytes) -> list[str]:
    return [os.fsdecode(word) for word in data.split(b"\0")]


def encode(message: dict[str, Any], plan: str = "") -> bytes:
    """`plan` is a JSON text that becomes the message's `plan`."""
    text = _json(message)
    return (f'{text[:-1]},"plan":{plan}}}' if plan else text).encode("utf-8", "surrogateescape")


def decode(data: bytes) -> dict[str, Any]:
    """The message back. Raises ValueError if it is no object."""
    message = json.loads(data.decode("utf-8", "surrogateescape"))
    if isinstance(message, dict):
        return message
    raise ValueError("a message is an object")


def widen(sock: socket.socket) -> socket.socket:
    """Let one large packet pass: the host's default would refuse plans beyond 200 kB."""
    for forced, plain in ((32, socket.SO_SNDBUF), (33, socket.SO_RCVBUF)):  # SO_SNDBUFFORCE, SO_RCVBUFFORCE
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, _BUFFER)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, plain, _BUFFER)
    return sock


def receive(sock: socket.socket, *, short: bool = False) -> tuple[bytes, list[int]]:
    """One packet of any size with its descriptors; empty at the end. Raises BlockingIOError and
    other OSErrors. `short`: descriptors may be missing.
    """
    size = sock.recv_into(bytearray(1), 1, socket.MSG_PEEK | socket.MSG_TRUNC)
    if size > PACKET:
        raise OSError(errno.EMSGSIZE, f"a packet of {size} bytes")
    return descriptors.recv_fds(sock, size or 1, short=short)


def names_of(message: dict[str, Any]) -> list[str]:
    """What the message's descriptors are called. Raises ValueError for anything but texts."""
    names = message.get("fds", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("fds is a list of names")
    return names


def take_named(names: list[str], fds: list[int]) -> dict[str, int]:
    """Descriptors under the names their message gave.

    Raises ValueError (all closed) if the numbers differ.
    """
    if len(names) != len(fds) or len(set(names)) != len(names):
        descriptors.close_all(fds)
        raise ValueError(f"{len(names)} names for {len(fds)} descriptors")
    return dict(zip(names, fds, strict=True))
