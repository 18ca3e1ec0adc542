"""The resolver of the bridges: a process of its own that outlives the daemon. `main` is its entry.

It answers names of workloads from the zone and forwards everything else. Its listening sockets come from
the holder (`dns/ADDRESS/udp`, `dns/ADDRESS/tcp`), so it may be killed and started again at any moment. One
thread, one selector, nothing that waits. Standard library only: it is started with `python -IS`.

Out of scope: who has which name (`networks.zone`), and the messages' form (`networks.dnscodec`).
"""

from __future__ import annotations

import collections
import ipaddress
import os
import selectors
import socket
import sys
import time
from typing import TYPE_CHECKING, Final

from knarr.networks import dnscodec
from knarr.networks.forward import Forwarder, Question, Resolvers
from knarr.networks.zone import Zone

if TYPE_CHECKING:
    from collections.abc import Callable

_PREFIX: Final = "dns/"
_TURN: Final = 64
"""datagrams taken before the others get their turn"""
_CLIENTS: Final = 128
_CLIENTS_EACH: Final = 16
_IDLE: Final = 10.0
_BACKLOG: Final = 1 << 18
_ANY_CLASS: Final = 255


class _Client:
    """One TCP connection of a workload."""

    def __init__(self, sock: socket.socket, address: str, deadline: float) -> None:
        self.socket = sock
        self.address = address
        self.deadline = deadline
        self.input = b""
        self.output = b""
        self.closed = False


class Server:
    """Serves the given listening sockets, datagram and stream, until the process ends."""

    def __init__(
        self, sockets: list[socket.socket], zone: str, resolv_conf: str = "/etc/resolv.conf"
    ) -> None:
        self._selector = selectors.DefaultSelector()
        self._zone = Zone(zone)
        own = frozenset(str(sock.getsockname()[0]) for sock in sockets)
        self._forwarder = Forwarder(self._selector, Resolvers(resolv_conf, own), time.monotonic)
        self._clients: collections.OrderedDict[_Client, None] = collections.OrderedDict()
        self._each: collections.Counter[str] = collections.Counter()
        for sock in sockets:
            sock.setblocking(False)
            accept = self._datagrams if sock.type == socket.SOCK_DGRAM else self._accept
            self._selector.register(sock, selectors.EVENT_READ, (accept, sock))

    def serve(self) -> None:
        while True:
            waits = [wait for wait in (self._forwarder.expire(), self._expire()) if wait is not None]
            for key, _ in self._selector.select(min(waits) if waits else None):
                if (
                    key.fileobj in self._selector.get_map()
                ):  # an earlier event of this turn may have closed it
                    act, argument = key.data
                    act(argument)

    def _datagrams(self, sock: socket.socket) -> None:
        for _ in range(_TURN):
            try:
                data, asker = sock.recvfrom(4096)
            except OSError:  # nothing more, or an earlier answer that nobody took
                return
            self._handle(data, asker[0], stream=False, reply=_sender(sock, asker))

    def _handle(self, data: bytes, asker: str, *, stream: bool, reply: Callable[[bytes], None]) -> None:
        try:
            query = dnscodec.parse_query(data)
        except dnscodec.Malformed as error:
            if error.rcode is not None:
                reply(dnscodec.refusal(data, error.rcode))
            return
        answer = self._own_answer(query)
        if answer is not None:
            reply(answer)
        else:
            self._forwarder.ask(Question(query, data, asker, stream=stream, reply=reply))

    def _own_answer(self, query: dnscodec.Query) -> bytes | None:
        """The answer that the zone has; None = it is not about a workload."""
        self._zone.refresh()
        if query.klass not in (dnscodec.IN, _ANY_CLASS):
            return None
        known = self._zone.addresses.get(query.name)
        if known is not None:
            if len(known) > 1:
                known.append(known.pop(0))
            wanted = query.type == dnscodec.A
            return dnscodec.response(query, dnscodec.NOERROR, dnscodec.addresses(known) if wanted else ())
        address = dnscodec.reverse_address(query.name)
        if (
            address is None
            or self._zone.pool is None
            or ipaddress.IPv4Address(address) not in self._zone.pool
        ):
            return None
        name = self._zone.names.get(address)
        if name is None:
            return dnscodec.response(query, dnscodec.NXDOMAIN)
        records = [(dnscodec.PTR, dnscodec.encode_name(name))] if query.type == dnscodec.PTR else []
        return dnscodec.response(query, dnscodec.NOERROR, records)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, address = listener.accept()
        except OSError:
            return
        if len(self._clients) >= _CLIENTS or self._each[address[0]] >= _CLIENTS_EACH:
            sock.close()
            return
        sock.setblocking(False)
        client = _Client(sock, address[0], time.monotonic() + _IDLE)
        self._clients[client] = None
        self._each[client.address] += 1
        self._selector.register(sock, selectors.EVENT_READ, (self._client_ready, client))

    def _client_ready(self, client: _Client) -> None:
        try:
            if client.output:
                client.output = client.output[client.socket.send(client.output) :]
                self._watch(client)
            else:
                self._read_client(client)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)

    def _read_client(self, client: _Client) -> None:
        data = client.socket.recv(4096)
        if not data:
            raise ConnectionError
        client.input += data
        while not client.closed and len(client.input) >= 2:
            end = 2 + int.from_bytes(client.input[:2], "big")
            if len(client.input) < end:
                return
            message, client.input = client.input[2:end], client.input[end:]
            client.deadline = time.monotonic() + _IDLE
            self._clients.move_to_end(client)
            self._handle(message, client.address, stream=True, reply=self._client_reply(client))

    def _client_reply(self, client: _Client) -> Callable[[bytes], None]:
        def reply(message: bytes) -> None:
            if client.closed:
                return
            client.output += len(message).to_bytes(2, "big") + message
            if len(client.output) > _BACKLOG:
                self._drop(client)
            else:
                self._watch(client)

        return reply

    def _watch(self, client: _Client) -> None:
        # While it does not take its answers it is not asked for more questions.
        wanted = selectors.EVENT_WRITE if client.output else selectors.EVENT_READ
        self._selector.modify(client.socket, wanted, (self._client_ready, client))

    def _expire(self) -> float | None:
        now = time.monotonic()
        while self._clients:
            client = next(iter(self._clients))
            if client.deadline > now:
                return client.deadline - now
            self._drop(client)
        return None

    def _drop(self, client: _Client) -> None:
        if client.closed:
            return
        client.closed = True
        self._selector.unregister(client.socket)
        client.socket.close()
        del self._clients[client]
        self._each[client.address] -= 1
        if not self._each[client.address]:
            del self._each[client.address]


def _sender(sock: socket.socket, asker: tuple[str, int]) -> Callable[[bytes], None]:
    def reply(message: bytes) -> None:
        try:
            sock.sendto(message, asker)
        except OSError:
            pass  # a full or gone receiver asks again

    return reply


def held_sockets(run: str) -> list[socket.socket]:
    """The listening sockets that the holder keeps (docs/architecture.md section 6)."""
    found = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as holder:
        holder.connect(os.path.join(run, "holder.sock"))
        for name in _held_names(holder):
            holder.send(b"get\0" + name)
            answer, fds, _, _ = socket.recv_fds(holder, 4096, 1)
            if answer.startswith(b"ok") and fds:
                found.append(socket.socket(fileno=fds[0]))
    return found


def _held_names(holder: socket.socket) -> list[bytes]:
    names: list[bytes] = []
    more = True
    while more:
        holder.send(b"\0".join((b"list", _PREFIX.encode(), *names[-1:])))
        words = holder.recv(1 << 16).split(b"\0")
        names += words[1:]
        more = words[0] == b"ok"
    return names


def main() -> int:
    """`ROOT RUN [FD …]`: with descriptor numbers those sockets are served, else the holder's."""
    run, *numbers = sys.argv[2:]
    with open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write("knarr-dns")
    sockets = [socket.socket(fileno=int(number)) for number in numbers] or held_sockets(run)
    if not sockets:
        print("knarr-dns: the holder has no socket to serve yet", file=sys.stderr)
        return 1
    Server(sockets, os.path.join(run, "dns", "zone")).serve()
    return 0
