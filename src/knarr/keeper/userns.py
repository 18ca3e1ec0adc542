"""A user namespace with its maps, and a network namespace that belongs to it, as descriptors.

They live by their descriptors alone: nothing of a start that failed has to be removed. Out of scope: which
ids (the daemon claims them), entering (`kernel.steps_userns`).
"""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack

from knarr.kernel import namespaces, spawn

Extents = tuple[tuple[int, int, int], ...]


def make(uids: Extents, gids: Extents, *, network: bool) -> dict[str, int]:
    """`userns` and, if wanted, `netns`. Raises OSError."""
    flags = namespaces.CLONE_NEWUSER | (namespaces.CLONE_NEWNET if network else 0)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        # it waits for a plan that never comes
        pid = spawn.spawn(theirs.fileno(), flags)
        try:
            with ExitStack() as undo:
                for name, extents in (("uid_map", uids), ("gid_map", gids)):
                    _write_map(f"/proc/{pid}/{name}", extents)
                found = {}
                for name, kind in (("userns", "user"), ("netns", "net"))[: 1 + network]:
                    found[name] = namespaces.open_namespace(kind, pid)
                    undo.callback(os.close, found[name])
                undo.pop_all()
                return found
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _write_map(path: str, extents: Extents) -> None:
    text = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in extents)
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)
