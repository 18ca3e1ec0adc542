"""Questions that the zone can't answer, on their way to the host's resolvers and back; nothing ever waits.

Every question goes out through a socket and an id of its own, so that nobody off the path can answer it.
Standard library only.

Out of scope: caching, and choosing the best resolver: they are tried in the order of resolv.conf.
"""

from __future__ import annotations

import collections
import os
import selectors
import socket
import struct
from typing import TYPE_CHECKING, Final

from knarr.networks import dnscodec

if TYPE_CHECKING:
    from collections.abc import Callable

_PATIENCE: Final = 2.0
_ROUNDS: Final = 2
_SERVERS: Final = 3
_MOST: Final = 512
_MOST_EACH: Final = 64
"""questions under way for one workload, so that none of them starves the others"""
_PORT: Final = 53


class Resolvers:
    """The nameservers of resolv.conf, read again when it changes."""

    def __init__(self, path: str, own: frozenset[str]) -> None:
        self._path = path
        self._own = own
        self._stamp: tuple[int, int] | None = None
        self._servers: tuple[str, ...] = ()

    def servers(self) -> tuple[str, ...]:
        try:
            status = os.stat(self._path)
        except OSError:
            return ()
        stamp = (status.st_mtime_ns, status.st_ino)
        if stamp != self._stamp:
            self._stamp = stamp
            with open(self._path, encoding="utf-8", errors="replace") as file:
                words = [line.split() for line in file]
            found = [line[1] for line in words if len(line) > 1 and line[0] == "nameserver"]
            self._servers = tuple(server for server in found if server not in self._own)[:_SERVERS]
        return self._servers


class Question:
    """One question under way."""

    def __init__(
        self,
        query: dnscodec.Query,
        message: bytes,
        asker: str,
        *,
        stream: bool,
        reply: Callable[[bytes], None],
    ) -> None:
        self.query = query
        self.message = message
        self.asker = asker
        self.stream = stream
        self.reply = reply
        self.tries: list[str] = []
        self.socket: socket.socket | None = None
        self.number = 0
        self.deadline = 0.0
        self.output = b""
        self.input = b""


class Forwarder:
    """`ask` starts a question, `expire` is called with the time; the rest happens through the selector."""

    def __init__(
        self, selector: selectors.BaseSelector, resolvers: Resolvers, clock: Callable[[], float]
    ) -> None:
        self._selector = selector
        self._resolvers = resolvers
        self._clock = clock
        self._waiting: collections.OrderedDict[Question, None] = collections.OrderedDict()
        self._each: collections.Counter[str] = collections.Counter()

    def ask(self, question: Question) -> None:
        servers = self._resolvers.servers()
        if not servers or len(self._waiting) >= _MOST or self._each[question.asker] >= _MOST_EACH:
            question.reply(dnscodec.response(question.query, dnscodec.SERVFAIL))
            return
        question.tries = list(servers) * _ROUNDS
        self._each[question.asker] += 1
        self._next(question)

    def expire(self) -> float | None:
        """Go on with what has waited too long. Returns the seconds until the next one."""
        now = self._clock()
        while self._waiting:
            question = next(iter(self._waiting))
            if question.deadline > now:
                return question.deadline - now
            self._next(question)
        return None

    def _next(self, question: Question) -> None:
        """Ask the next server, or give up."""
        self._close(question)
        while question.tries:
            try:
                self._send(question, question.tries.pop(0))
            except OSError:
                self._close(question)
                continue
            return
        self._finish(question, dnscodec.response(question.query, dnscodec.SERVFAIL))

    def _send(self, question: Question, server: str) -> None:
        kind = socket.SOCK_STREAM if question.stream else socket.SOCK_DGRAM
        family, _, _, _, address = socket.getaddrinfo(server, _PORT, 0, kind, 0, socket.AI_NUMERICHOST)[0]
        sock = socket.socket(family, kind)
        question.socket = sock
        sock.setblocking(False)
        question.number = int.from_bytes(os.urandom(2), "big")
        message = dnscodec.with_id(question.message, question.number)
        try:
            sock.connect(address)
        except BlockingIOError:
            pass
        question.input = b""
        question.output = struct.pack("!H", len(message)) + message if question.stream else b""
        if not question.stream:
            sock.send(message)
        wanted = selectors.EVENT_WRITE if question.stream else selectors.EVENT_READ
        self._selector.register(sock, wanted, (self._ready, question))
        question.deadline = self._clock() + _PATIENCE
        self._waiting[question] = None

    def _ready(self, question: Question) -> None:
        try:
            message = self._stream_ready(question) if question.stream else self._datagram(question)
        except BlockingIOError:
            return
        except OSError:
            self._next(question)
            return
        if message is not None:
            self._finish(question, dnscodec.with_id(message, question.query.id))

    def _datagram(self, question: Question) -> bytes | None:
        assert question.socket is not None
        message = question.socket.recv(65535)
        return message if dnscodec.answers(message, question.number, question.query.question) else None

    def _stream_ready(self, question: Question) -> bytes | None:
        sock = question.socket
        assert sock is not None
        if question.output:
            question.output = question.output[sock.send(question.output) :]
            if not question.output:
                self._selector.modify(sock, selectors.EVENT_READ, (self._ready, question))
            return None
        data = sock.recv(65537)
        if not data:
            raise ConnectionError
        question.input += data
        if len(question.input) < 2 or len(question.input) < 2 + int.from_bytes(question.input[:2], "big"):
            return None
        message = question.input[2 : 2 + int.from_bytes(question.input[:2], "big")]
        if not dnscodec.answers(message, question.number, question.query.question):
            raise ConnectionError
        return message

    def _finish(self, question: Question, message: bytes) -> None:
        self._close(question)
        self._each[question.asker] -= 1
        if not self._each[question.asker]:
            del self._each[question.asker]
        question.reply(message)

    def _close(self, question: Question) -> None:
        self._waiting.pop(question, None)
        if question.socket is not None:
            try:
                self._selector.unregister(question.socket)
            except KeyError:
                pass
            question.socket.close()
            question.socket = None
