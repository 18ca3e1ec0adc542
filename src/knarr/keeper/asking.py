"""Questions to the keeper from outside the daemon's event loop: one at a time, waiting for each answer.

Out of scope: the daemon's own line (`keeper.link`).
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from knarr.keeper import protocol
from knarr.kernel import fds as descriptors
from knarr.kernel import steps as _  # noqa: F401 - registers the plans' vocabulary
from knarr.kernel.plan import vocabulary
from knarr.model.errors import Unavailable

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

_PATIENCE = 15.0


@contextmanager
def keeper(run: str) -> Iterator[socket.socket]:
    """A line of one's own. Raises OSError when nobody listens."""
    sock = protocol.widen(descriptors.connect_unix(os.path.join(run, protocol.KEEPER)))
    sock.settimeout(20.0)
    try:
        yield sock
    finally:
        sock.close()


def ask(sock: socket.socket, **message: Any) -> list[dict[str, Any]]:
    """The keeper's answer, all its parts. Raises OSError, also when it ends meanwhile."""
    parts = []
    sock.send(protocol.encode({"seq": 1, **message}))
    while True:
        data, fds = protocol.receive(sock)
        descriptors.close_all(fds)
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "the keeper ended")
        answer = protocol.decode(data)
        if answer.get("seq") == 1:
            parts.append(answer)
            if answer["type"] != "part":
                return parts


def upgrade(run: str) -> None:
    """In place: the same process, so its children stay its children. Raises `Unavailable`, OSError."""
    end = time.monotonic() + _PATIENCE
    while True:
        with keeper(run) as sock:
            (answer,) = ask(sock, type="upgrade")
            if answer["type"] == "ok":
                # its exec closes the line: nobody meets the old program any more
                data, _ = protocol.receive(sock)
                if not data:
                    return
                answer = protocol.decode(data)
        if answer.get("errno") != errno.EBUSY or time.monotonic() > end:
            raise Unavailable(f"the keeper can't be upgraded now: {answer['message']}", hint="try again")
        time.sleep(0.01)


def make_equal(run: str) -> None:
    """A keeper that knows other steps than this program is from before an upgrade: let it become this one.

    Raises `Unavailable` when it can't, OSError when it is not there.
    """
    if _knows_other_steps(run):
        upgrade(run)
        if _knows_other_steps(run):
            raise Unavailable(
                f"the keeper of {run} is of another installation than the daemon",
                hint="start the daemon with the knarr that started it, or: knarr daemon stop --workloads",
            )


def _knows_other_steps(run: str) -> bool:
    # not by `hello`, which would make this line the one that is told of ends
    with keeper(run) as sock:
        answer = ask(sock, type="list")[-1]
    return answer.get("vocabulary") != vocabulary()
