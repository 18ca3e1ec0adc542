"""A connection that the daemon closed while nobody asked anything is not used again: a POST can't be sent twice."""

from __future__ import annotations

import socket

from knarr.client.transport import Connection


def test_a_connection_the_daemon_closed_is_not_idle() -> None:
    ours, theirs = socket.socketpair()
    connection = Connection(ours)
    assert connection.idle
    theirs.close()
    assert not connection.idle
    connection.close()


def test_one_with_an_exchange_under_way_is_not_idle() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        connection = Connection(ours)
        connection.idle = False
        assert not connection.idle
        connection.close()
