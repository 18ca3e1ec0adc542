"""A user namespace with its maps, and a network namespace that belongs to it, as descriptors.

They live by their descriptors alone: nothing of a start that failed has to be removed. Out of scope: which
ids (the daemon claims them), entering (`kernel.steps_userns`).
"""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack

from knarr.kernel import namespaces, process

Extents = tuple[tuple[int, int, int], ...]


def make(uids: Extents, gids: Extents, *, network: bool) -> dict[str, int]:
    """`userns` and, if wanted, `netns`. Raises OSError."""
    flags = namespaces.CLONE_NEWUSER | (namespaces.CLONE_NEWNET if network else 0)
    pid = process.clone(flags)
    if pid == 0:
        _wait_for_the_end()
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


def _wait_for_the_end() -> None:
    try:
        process.set_dumpable(on=False)
        process.die_with_parent()
        signal.set_wakeup_fd(-1)
        while True:
            signal.pause()
    finally:
        os._exit(1)
