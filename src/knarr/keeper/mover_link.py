"""The keeper's line to its mover (RUN/mover-0.sock): hand over pipes, have a forgotten workload's closed.

The holder has a copy of every pipe, so nothing here is needed for the bytes: a mover that starts anew, or
is told to `look`, finds all of them there. Out of scope: moving (`keeper.mover`).

    keeper → mover    add ID STREAM… + descriptors      (out, err | tty, ttypipe-r, ttypipe-w)
    keeper → mover    look                              an `add` may have been lost
    keeper → mover    drop ID                           mover → keeper   dropped ID     emptied and closed
    daemon → mover    drain ID                          mover → daemon   drained ID    everything is in files
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from knarr.keeper import protocol
from knarr.kernel import fds as descriptors

if TYPE_CHECKING:
    from collections.abc import Callable


class MoverLink:
    def __init__(self, run: str, dropped: Callable[[str], None]) -> None:
        self._path = os.path.join(run, protocol.MOVER)
        self._dropped = dropped
        self.dropping: set[str] = set()
        self.sock = self._connect()

    def reconnect(self) -> None:
        """The listening socket outlives its mover: this never waits."""
        self.sock.close()
        self.sock = self._connect()
        self._send(("look",))
        for workload_id in self.dropping:
            self._send(("drop", workload_id))

    def add(self, workload_id: str, streams: dict[str, int]) -> None:
        self._send(("add", workload_id, *streams), tuple(streams.values()))

    def drop(self, workload_id: str) -> None:
        if workload_id not in self.dropping:
            self.dropping.add(workload_id)
            self._send(("drop", workload_id))

    def receive(self) -> bool:
        """Take in answers; False if the mover is gone."""
        try:
            while data := self.sock.recv(4096):
                words = protocol.decode_words(data)
                if words[0] == "dropped":
                    self.dropping.discard(words[1])
                    self._dropped(words[1])
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def _connect(self) -> socket.socket:
        sock = descriptors.connect_unix(self._path)
        sock.setblocking(False)
        return sock

    def _send(self, words: tuple[str, ...], fds: tuple[int, ...] = ()) -> None:
        try:
            descriptors.send_fds(self.sock, protocol.encode_words(words), fds)
        except OSError:
            # a dead mover, or one that is so far behind that its socket is full: the end of file that this
            # makes is the loop's cue to connect anew
            try:
                self.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
