"""HTTP/1.1 as a client speaks it, without I/O: bytes in, events out.

For what the native API needs: one request at a time, bodies by length or chunked, and the change to raw
bytes after a 101. Out of scope: sockets (`transport`, `aio`), redirects, compression, pipelining. Its own
because the command line cannot afford the start-up time of the standard library's client.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_HEAD = 64 * 1024
"""bytes of status line and headers together"""
MAX_CHUNK_LINE = 256

_PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
_UNRESERVED = frozenset(_PLAIN)
_NO_BODY = frozenset({101, 204, 304})


class ProtocolError(Exception):
    """The peer does not speak HTTP as this client understands it."""


class Head:
    """Status and headers of one response; header names are lower case."""

    __slots__ = ("headers", "reason", "status")

    def __init__(self, status: int, reason: str, headers: dict[str, str]) -> None:
        self.status = status
        self.reason = reason
        self.headers = headers


class End:
    """The response is complete; `rest` are bytes that belong to whatever follows (after a 101: raw data)."""

    __slots__ = ("rest",)

    def __init__(self, rest: bytes) -> None:
        self.rest = rest


def quote(text: str, safe: str = "") -> str:
    """Percent-encode for a path segment or query value; bytes that are not UTF-8 survive a round trip."""
    raw = text.encode("utf-8", "surrogateescape")
    if not raw.translate(None, _PLAIN):
        return text
    allowed = _UNRESERVED | frozenset(safe.encode())
    return "".join(chr(byte) if byte in allowed else f"%{byte:02X}" for byte in raw)


def encode_query(query: Mapping[str, object]) -> str:
    """`?a=1&b=x`, leaving out None; True is 1, False is 0; a list repeats its key."""
    pairs = [
        f"{quote(key)}={quote(_query_value(item))}"
        for key, value in query.items()
        if value is not None
        for item in (value if isinstance(value, (list, tuple)) else (value,))
    ]
    return "?" + "&".join(pairs) if pairs else ""


def _query_value(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def encode_request(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    """The head of a request. Raises `ProtocolError` for text that would break out of its line."""
    lines = [f"{method} {target} HTTP/1.1", "Host: knarr"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if any(character in line for line in lines for character in "\r\n\0"):
        raise ProtocolError("a control character in a request line or header")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def encode_chunk(data: bytes) -> bytes:
    """One chunk of a chunked request body; empty data would end the body, so it encodes to nothing."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


LAST_CHUNK = b"0\r\n\r\n"


class ResponseParser:
    """One response. `feed` it bytes, `b""` at the end of the stream; it yields `Head`, bytes, `End`."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._buffer = bytearray()
        self._state: _State = self._head
        self._left = 0
        self._eof = False
        self.keep_alive = False
        """true after `End` when the connection may carry another request"""
        self.complete = False

    def feed(self, data: bytes) -> Iterator[Head | bytes | End]:
        """Raises `ProtocolError` on bad input, and on an end of stream in the middle."""
        if not data:
            self._eof = True
        self._buffer += data
        while not self.complete:
            event = self._state()
            if event is None:
                break
            if event != b"":
                yield event
        if self._eof and not self.complete:
            raise ProtocolError("the connection ended in the middle of an answer")

    def _take(self, count: int) -> bytes:
        piece = bytes(self._buffer[:count])
        del self._buffer[:count]
        return piece

    def _end(self) -> End:
        self.complete = True
        return End(self._take(len(self._buffer)))

    def _head(self) -> Head | None:
        end = self._buffer.find(b"\r\n\r\n", 0, MAX_HEAD + 4)
        if end < 0:
            if len(self._buffer) > MAX_HEAD:
                raise ProtocolError(f"an answer's head is longer than {MAX_HEAD} bytes")
            return None
        head = parse_head(self._take(end + 4)[:-4])
        self._state = self._choose_body(head)
        return head

    def _choose_body(self, head: Head) -> _State:
        if 100 <= head.status < 200 and head.status != 101:
            return self._head
        closing = "close" in head.headers.get("connection", "").lower()
        self.keep_alive = not closing and head.status != 101
        if self._method == "HEAD" or head.status in _NO_BODY:
            return self._end
        if head.headers.get("transfer-encoding", "").lower() == "chunked":
            return self._chunk_size
        if "transfer-encoding" in head.headers:
            raise ProtocolError("an unknown transfer encoding")
        length = head.headers.get("content-length")
        if length is None:
            self.keep_alive = False
            return self._until_eof
        self._left = _decimal(length)
        return self._by_length

    def _by_length(self) -> bytes | End | None:
        if not self._left:
            return self._end()
        piece = self._take(min(self._left, len(self._buffer)))
        self._left -= len(piece)
        return piece or None

    def _until_eof(self) -> bytes | End | None:
        if self._buffer:
            return self._take(len(self._buffer))
        return self._end() if self._eof else None

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n", 0, MAX_CHUNK_LINE + 2)
        if end >= 0:
            return self._take(end + 2)[:-2]
        if len(self._buffer) > MAX_CHUNK_LINE:
            raise ProtocolError("a chunk's head is too long")
        return None

    def _chunk_size(self) -> bytes | None:
        line = self._line()
        if line is None:
            return None
        self._left = _hexadecimal(line.partition(b";")[0].strip())
        self._state = self._chunk_data if self._left else self._trailer
        return b""

    def _chunk_data(self) -> bytes | None:
        piece = self._take(min(self._left, len(self._buffer)))
        self._left -= len(piece)
        if not self._left:
            self._state = self._chunk_end
        return piece or None

    def _chunk_end(self) -> bytes | None:
        if len(self._buffer) < 2:
            return None
        if self._take(2) != b"\r\n":
            raise ProtocolError("a chunk does not end where it said")
        self._state = self._chunk_size
        return b""

    def _trailer(self) -> bytes | End | None:
        line = self._line()
        if line is None:
            return None
        return self._end() if not line else b""


def parse_head(data: bytes) -> Head:
    """Status line and headers without the empty line. A repeated header's values are joined by a comma."""
    status_line, *lines = data.decode("latin-1").split("\r\n")
    version, _, rest = status_line.partition(" ")
    code, _, reason = rest.partition(" ")
    if version not in ("HTTP/1.1", "HTTP/1.0") or len(code) != 3 or not (code.isascii() and code.isdigit()):
        raise ProtocolError("the answer is not HTTP")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise ProtocolError("a malformed header")
        key = name.lower()
        if key in headers and key in ("content-length", "transfer-encoding"):
            raise ProtocolError(f"two {key} headers")
        headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
    if "content-length" in headers and "transfer-encoding" in headers:
        raise ProtocolError("both a length and a transfer encoding")
    return Head(int(code), reason, headers)


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise ProtocolError("a content-length that is not a number")
    return int(text)


def _hexadecimal(text: bytes) -> int:
    if not text or len(text) > 15 or text.strip(b"0123456789abcdefABCDEF"):
        raise ProtocolError("a chunk size that is not a number")
    return int(text, 16)


if TYPE_CHECKING:
    from collections.abc import Callable

    _State = Callable[[], Head | bytes | End | None]
