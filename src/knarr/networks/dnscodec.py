"""As much of DNS (RFC 1035, 6891) as a forwarder that knows some names needs; bytes in, values out, no I/O.

Everything here comes from workloads or from the network, so it is hostile: nothing is followed, nothing
loops, and what is not understood is `Malformed`. Standard library only.

Out of scope: records other than A and PTR (they are forwarded unread), DNSSEC, zone transfer.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

A: Final = 1
PTR: Final = 12
IN: Final = 1
_OPT: Final = 41
NOERROR: Final = 0
FORMERR: Final = 1
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
NOTIMP: Final = 4
REFUSED: Final = 5
_QR: Final = 0x8000
_RD: Final = 0x0100
_RA: Final = 0x0080
_HEADER: Final = struct.Struct("!HHHHHH")
_MAX_NAME: Final = 255
_SMALLEST: Final = 512
_LARGEST: Final = 4096
_TTL: Final = 5
"""seconds: a workload's address changes when it is made anew"""


class Malformed(Exception):
    """No query that could be answered; `rcode` is None when silence is the answer."""

    def __init__(self, rcode: int | None) -> None:
        super().__init__(f"malformed query (rcode {rcode})")
        self.rcode = rcode


@dataclass(frozen=True, slots=True)
class Query:
    id: int
    recursion: bool
    name: str
    """lower case, without the last dot"""
    type: int
    klass: int
    question: bytes
    """as it came, to be sent back"""
    size: int
    """the largest answer that the asker takes over UDP"""


def parse_query(data: bytes) -> Query:
    """Raises `Malformed`."""
    if len(data) < _HEADER.size:
        raise Malformed(None)
    number, flags, questions, answers, authorities, extra = _HEADER.unpack_from(data)
    if flags & _QR:
        raise Malformed(None)
    if flags & 0x7800:
        raise Malformed(NOTIMP)
    if questions != 1 or answers or authorities:
        raise Malformed(FORMERR)
    name, end = _name(data, _HEADER.size)
    if end + 4 > len(data):
        raise Malformed(FORMERR)
    kind, klass = struct.unpack_from("!HH", data, end)
    question = data[_HEADER.size : end + 4]
    size = _payload_size(data, end + 4) if extra else _SMALLEST
    return Query(number, bool(flags & _RD), name, kind, klass, question, size)


def _name(data: bytes, start: int) -> tuple[str, int]:
    """A name without compression, which has no place in a question. (name, offset behind it)"""
    labels: list[str] = []
    offset = start
    while True:
        if offset >= len(data):
            raise Malformed(FORMERR)
        length = data[offset]
        offset += 1
        if length == 0:
            return ".".join(labels), offset
        if length > 63 or offset + length > len(data) or offset + length - start > _MAX_NAME:
            raise Malformed(FORMERR)
        label = data[offset : offset + length]
        # A dot inside a label must not make two of it.
        labels.append(label.decode("latin-1").lower().replace(".", "\\."))
        offset += length


def _payload_size(data: bytes, offset: int) -> int:
    if len(data) >= offset + 11 and data[offset] == 0:
        kind, size = struct.unpack_from("!HH", data, offset + 1)
        if kind == _OPT:
            return max(_SMALLEST, min(int(size), _LARGEST))
    return _SMALLEST


def encode_name(name: str) -> bytes:
    """Wire form of a name that `zone.usable` let pass."""
    return b"".join(bytes((len(part),)) + part.encode() for part in name.split(".")) + b"\0"


def response(query: Query, rcode: int, records: Iterable[tuple[int, bytes]] = ()) -> bytes:
    """An answer to `query`, whose records (type, data) are about the asked name; as many as fit into UDP."""
    body = b""
    count = 0
    for kind, data in records:
        record = struct.pack("!HHHIH", 0xC00C, kind, IN, _TTL, len(data)) + data
        if _HEADER.size + len(query.question) + len(body) + len(record) > _SMALLEST:
            break
        body += record
        count += 1
    flags = _QR | _RA | (_RD if query.recursion else 0) | rcode
    return _HEADER.pack(query.id, flags, 1, count, 0, 0) + query.question + body


def refusal(data: bytes, rcode: int) -> bytes:
    """An answer to something whose question could not be read."""
    number, flags = struct.unpack_from("!HH", data)
    return _HEADER.pack(number, _QR | _RA | (flags & 0x7900) | rcode, 0, 0, 0, 0)


def addresses(values: Iterable[str]) -> list[tuple[int, bytes]]:
    return [(A, socket.inet_aton(value)) for value in values]


def reverse_address(name: str) -> str | None:
    """The IPv4 address that a PTR question is about."""
    if not name.endswith(".in-addr.arpa"):
        return None
    parts = name[: -len(".in-addr.arpa")].split(".")
    if len(parts) != 4 or not all(p.isascii() and p.isdigit() and len(p) < 4 and int(p) < 256 for p in parts):
        return None
    return ".".join(str(int(part)) for part in reversed(parts))


def with_id(message: bytes, number: int) -> bytes:
    return struct.pack("!H", number) + message[2:]


def answers(message: bytes, number: int, question: bytes) -> bool:
    """Whether `message` is a server's answer to the question we asked under `number`."""
    end = _HEADER.size + len(question)
    if len(message) < end:
        return False
    got, flags, questions = struct.unpack_from("!HHH", message)
    same = message[_HEADER.size : end].lower() == question.lower()
    return got == number and bool(flags & _QR) and questions == 1 and same
