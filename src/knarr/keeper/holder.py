"""The holder's client: short blocking calls over RUN/holder.sock (docs/architecture.md section 6).

Used by daemon, keeper, mover and dns. Out of scope: what the names mean.
"""

from __future__ import annotations

import collections
import os
import socket
import struct
from typing import TYPE_CHECKING, Self

from knarr.keeper import protocol
from knarr.kernel import fds as descriptors
from knarr.model.errors import Failed, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable

_TIMEOUT = 10

Words = list[str]
Fds = list[int]


class HolderClient:
    """One connection. Every call raises `Unavailable` when the holder is gone, `Failed` when it refuses."""

    def __init__(self, run: str) -> None:
        self._run = run
        self.exits: collections.deque[tuple[int, int]] = collections.deque()
        """(pid, wait status) of orphans, after `watch`"""
        try:
            self._socket = descriptors.connect_unix(os.path.join(run, protocol.HOLDER))
        except OSError as error:
            raise self._gone(error) from error
        self._wait_at_most(_TIMEOUT)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, name: str, fd: int) -> None:
        """The holder keeps its own copy of `fd` under `name`; an older one is closed."""
        self._call(("put", name), fd)

    def put_all(self, named: dict[str, int]) -> None:
        """Several in one go: the requests are sent before the first answer is waited for."""
        answers = self._call_all([(("put", name), fd) for name, fd in named.items()])
        for name, words in zip(named, answers, strict=True):
            _check(("put", name), words)

    def get(self, name: str) -> int | None:
        """A copy of the descriptor, which the caller closes; None if there is none."""
        return self._call(("get", name))[1]

    def delete(self, pattern: str) -> int:
        """Close `NAME`, or all that begin with `PREFIX*`; returns how many."""
        return int(self._call(("del", pattern))[0][1])

    def delete_all(self, patterns: Words) -> None:
        self._call_all([(("del", pattern), None) for pattern in patterns])

    def let_go(self, name: str, prefix: str) -> bool:
        """Close `name`, and tell whether there is any name that begins with `prefix`."""
        found = self._call_all([(("del", name), None), (("list", prefix), None)])[1]
        _check(("list", prefix), found)
        return len(found) > 1

    def list(self, prefix: str = "") -> Words:
        names: Words = []
        words = ["ok"]
        while words[0] == "ok":
            after = (names[-1],) if names else ()
            words = self._call(("list", prefix, *after))[0]
            names += words[1:]
        return names

    def role(self, name: str, argv: tuple[str, ...]) -> int:
        """Start a program that is started again whenever it dies. Returns its pid (0 between two lives)."""
        return int(self._call(("role", name, *argv))[0][1])

    def norole(self, name: str) -> None:
        self._call(("norole", name))

    def roles(self) -> dict[str, int]:
        words = self._call(("roles",))[0]
        return {name: int(pid) for name, pid in zip(words[1::2], words[2::2], strict=True)}

    def watch(self) -> None:
        """From now on `exits` fills with orphans' statuses, old ones first."""
        self._call(("watch",))

    def ack(self, pid: int) -> None:
        self._call(("ack", str(pid)))

    def poll(self) -> None:
        """Take in what has arrived unasked, without waiting."""
        self._socket.setblocking(False)
        try:
            while True:
                self._unasked(self._receive()[0])
        except BlockingIOError:
            pass
        finally:
            self._socket.setblocking(True)

    def quit(self) -> None:
        """End all roles, then the holder; returns when it is gone."""
        self._send(("quit",), None)
        self._wait_at_most(60)
        try:
            while self._socket.recv(protocol.PACKET):
                pass
        except ConnectionError:
            pass

    def _wait_at_most(self, seconds: int) -> None:
        """The kernel's own timeout: Python's costs a poll(2) before every call."""
        limit = struct.pack("@ll", seconds, 0)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, limit)

    def _call(self, words: tuple[str, ...], fd: int | None = None) -> tuple[Words, int | None]:
        self._send(words, fd)
        answer, received = self._answer()
        _check(words, answer)
        return answer, received

    def _call_all(self, requests: Iterable[tuple[tuple[str, ...], int | None]]) -> tuple[Words, ...]:
        """All are sent before the first answer is waited for; every one that was sent is waited for."""
        sent = 0
        try:
            for words, fd in requests:
                self._send(words, fd)
                sent += 1
        finally:
            answers = tuple(self._answer()[0] for _ in range(sent))
        return answers

    def _send(self, words: tuple[str, ...], fd: int | None) -> None:
        try:
            descriptors.send_fds(self._socket, protocol.encode_words(words), () if fd is None else (fd,))
        except OSError as error:
            raise self._gone(error) from error

    def _answer(self) -> tuple[Words, int | None]:
        while True:
            try:
                words, fds = self._receive()
            except OSError as error:
                raise self._gone(error) from error
            if words[0] != "exit":
                return words, fds[0] if fds else None
            self._unasked(words)

    def _receive(self) -> tuple[Words, Fds]:
        data, fds = descriptors.recv_fds(self._socket, 1 << 16, 1)
        if not data:
            raise self._gone(None)
        return protocol.decode_words(data), fds

    def _unasked(self, words: Words) -> None:
        if words[0] == "exit":
            self.exits.append((int(words[1]), int(words[2])))

    def _gone(self, cause: OSError | None) -> Unavailable:
        reason = f": {cause.strerror}" if cause is not None and cause.strerror else ""
        return Unavailable(f"the holder of {self._run} does not answer{reason}", hint="knarr daemon start")


def listening(
    holder: HolderClient, run: str, name: str, kind: int = socket.SOCK_STREAM, backlog: int = 1024
) -> socket.socket:
    """The listening socket RUN/NAME: the one that the holder keeps, so that clients of a dead
    owner only wait.
    """
    held = holder.get(f"sock/{name}")
    if held is not None:
        sock = socket.socket(fileno=held)
    else:
        sock = descriptors.bind_unix(os.path.join(run, name), kind)
        sock.listen(backlog)
        holder.put(f"sock/{name}", sock.fileno())
    sock.setblocking(False)
    return sock


def _check(request: tuple[str, ...], answer: list[str]) -> None:
    if answer[0] == "error":
        raise Failed(f"the holder refused {' '.join(request[:2])}: {answer[-1]}")
