"""Memory that a hostile guest can take of the daemon through one session."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from knarr.machines import wire
from knarr.machines.agent import Agent
from knarr.machines.wire import FromGuest
from knarr.model.errors import Failed


def frame(kind: int, session: int, payload: bytes, flags: int = 0) -> bytes:
    return wire.HEADER.pack(len(payload), kind, flags, session) + payload


class Guest:
    """The other end of the control port: greets, then answers every session with `flood` until hung up on."""

    def __init__(self, port: socket.socket, flood) -> None:
        self._port = port
        self._flood = flood
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            _, hello = self._frame()
            self._port.sendall(b"KNSYNC\r\n" + hello[: wire.NONCE_SIZE])
            session, _ = self._frame()
            for piece in self._flood(session):
                self._port.sendall(piece)
        except OSError:
            return

    def _frame(self) -> tuple[int, bytes]:
        """Session and payload of one whole frame: two may come in one piece."""
        length, _, _, session = wire.HEADER.unpack(self._port.recv(wire.HEADER.size, socket.MSG_WAITALL))
        return session, self._port.recv(length, socket.MSG_WAITALL) if length else b""

    def end(self) -> None:
        self._port.close()
        self._thread.join(10)


def endless_status(session):
    while True:
        yield frame(FromGuest.DATA, session, b"x" * 4000, 1 << 4)


def test_a_status_without_end_is_cut():
    ours, theirs = socket.socketpair()
    guest = Guest(theirs, endless_status)

    async def ask():
        agent = Agent(ours.detach())
        try:
            with pytest.raises(Failed, match="without end"):
                await asyncio.wait_for(agent.stat_path("/etc"), 20)
        finally:
            agent.close()

    try:
        asyncio.run(ask())
    finally:
        guest.end()


def test_empty_pieces_of_output_do_not_pile_up():
    ours, theirs = socket.socketpair()

    def empty(session):
        yield frame(FromGuest.DATA, session, b"", 1 << 4) * 10_000
        yield frame(FromGuest.DATA, session, b"word", 1 << 4)

    guest = Guest(theirs, empty)

    async def ask():
        agent = Agent(ours.detach())
        try:
            session = await agent._program(wire.ToGuest.ASK, (("op", b"get"), ("path", b"/")))
            assert await asyncio.wait_for(session.read(), 20) == (1, b"word")
        finally:
            agent.close()

    try:
        asyncio.run(ask())
    finally:
        guest.end()
