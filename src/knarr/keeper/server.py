"""The keeper's side of RUN/keeper.sock: connections, packets in, packets out, nothing of their meaning.

One packet is one JSON object with its descriptors; answers never wait for a slow reader.
Out of scope: the messages (`keeper.supervisor`).
"""

from __future__ import annotations

import errno
import selectors
from typing import TYPE_CHECKING, Any, NamedTuple

from knarr.keeper import protocol
from knarr.kernel import fds as descriptors

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


_NO_DESCRIPTORS = {"step": "receive", "errno": errno.EMFILE, "message": "Too many open files"}


class Peer:
    """One connection, with what could not be sent yet."""

    __slots__ = ("queue", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.queue: list[bytes] = []


class Request(NamedTuple):
    """One message with its descriptors; the handler owns them."""

    peer: Peer
    message: dict[str, Any]
    fds: dict[str, int]
    raw: bytes

    @property
    def seq(self) -> Any:
        return self.message.get("seq")

    def take(self) -> dict[str, int]:
        """The descriptors, which are the caller's to close from now on."""
        taken = dict(self.fds)
        self.fds.clear()
        return taken


class Server:
    def __init__(
        self,
        selector: selectors.BaseSelector,
        obey: Callable[[Request], None],
        gone: Callable[[Peer], None],
    ) -> None:
        self._selector = selector
        self._obey = obey
        self._gone = gone
        self._peers: list[Peer] = []

    def listen(self, listener: socket.socket) -> None:
        def accept(_events: int) -> None:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            self._watch(Peer(protocol.widen(sock)))

        self._selector.register(listener, selectors.EVENT_READ, accept)

    def answer(self, request: Request, ends: dict[str, int] | None = None, **values: Any) -> None:
        """`ends` are descriptors by name; the receiver gets copies."""
        if ends:
            values["fds"] = list(ends)
        self.send(request.peer, {"type": "ok", "seq": request.seq, **values}, tuple((ends or {}).values()))

    def fail(self, request: Request, error: dict[str, Any]) -> None:
        descriptors.close_all(list(request.take().values()))
        self.send(request.peer, {"type": "error", "seq": request.seq, **error})

    def send(self, peer: Peer, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        """Send or queue. A peer that lets megabytes pile up gets no descriptors: it is hung up on."""
        data = protocol.encode(message)
        if peer.sock.fileno() < 0:
            return
        if peer.queue or not self._post(peer, data, fds):
            if fds:
                self.hang_up(peer)
            elif peer.sock.fileno() >= 0:
                peer.queue.append(data)
                self._interest(peer)

    def catch_up(self, but: Peer) -> None:
        """Take in all that peers other than this one have sent: it came before what this one sent last."""
        for peer in tuple(self._peers):
            while peer is not but and self._receive(peer):
                pass

    def hang_up(self, peer: Peer) -> None:
        if peer.sock.fileno() < 0:
            return
        self._peers.remove(peer)
        self._selector.unregister(peer.sock)
        peer.sock.close()
        self._gone(peer)

    def _watch(self, peer: Peer) -> None:
        def ready(events: int) -> None:
            if events & selectors.EVENT_WRITE:
                self._flush(peer)
            if events & selectors.EVENT_READ and peer.sock.fileno() >= 0:
                self._receive(peer)

        self._peers.append(peer)
        self._selector.register(peer.sock, selectors.EVENT_READ, ready)

    def _interest(self, peer: Peer) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.queue else 0)
        self._selector.modify(peer.sock, events, self._selector.get_key(peer.sock).data)

    def _flush(self, peer: Peer) -> None:
        while peer.queue and self._post(peer, peer.queue[0], ()):
            peer.queue.pop(0)
        if peer.sock.fileno() >= 0:
            self._interest(peer)

    def _post(self, peer: Peer, data: bytes, fds: tuple[int, ...]) -> bool:
        """False if the socket is full (or the peer gone, which closes it)."""
        try:
            descriptors.send_fds(peer.sock, data, fds)
        except BlockingIOError:
            return False
        except OSError:
            self.hang_up(peer)
            return False
        return True

    def _receive(self, peer: Peer) -> bool:
        """False when there is no more for now, or ever."""
        if peer.sock.fileno() < 0:
            return False
        try:
            data, fds = protocol.receive(peer.sock, short=True)
        except BlockingIOError:
            return False
        except OSError:
            data, fds = b"", []
        try:
            message = protocol.decode(data) if data else {}
            names = protocol.names_of(message)
            short = len(fds) < len(names)
            named = protocol.take_named(names[: len(fds)] if short else names, fds)
        except ValueError:
            descriptors.close_all(fds)
            message, named, short = {}, {}, False
        if message and short:
            # the kernel had no room for them here: whoever asks must be told, or it would ask again
            self.fail(Request(peer, message, named, data), _NO_DESCRIPTORS)
        elif message:
            self._obey(Request(peer, message, named, data))
        else:
            self.hang_up(peer)
        return bool(message)
