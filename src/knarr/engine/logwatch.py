"""Tells when a workload waits because its output can't be written: an event, and a line of the daemon's log.

Out of scope: finding out (`keeper.mover`), what the files say (`keeper.waiting`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Self

from knarr.keeper import waiting
from knarr.kernel import inotify

if TYPE_CHECKING:
    from knarr.engine.lifecycle import Lifecycle

_log = logging.getLogger(__name__)


class LogWatch:
    """Between `start` and `close` it is told by inotify(7): nothing is asked regularly."""

    def __init__(self, run: str, life: Lifecycle) -> None:
        self._run = run
        self._life = life
        self._known: dict[str, str] = {}
        self._fd = -1

    def start(self) -> Self:
        os.makedirs(waiting.folder(self._run), 0o700, exist_ok=True)
        self._fd = inotify.watch(waiting.folder(self._run), removals=True)
        asyncio.get_running_loop().add_reader(self._fd, self._look)
        self._look()
        return self

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def _look(self) -> None:
        try:
            os.read(self._fd, 65536)
        except BlockingIOError:
            pass
        now = {key: reason for key, reason in waiting.read(self._run).items() if reason}
        for key in now.keys() - self._known.keys():
            self._tell(key, "log_waiting", {"reason": now[key]})
        for key in self._known.keys() - now.keys():
            self._tell(key, "log_resumed", {})
        self._known = now

    def _tell(self, workload_id: str, action: str, attributes: dict[str, str]) -> None:
        entry = self._life.table.get(workload_id)
        if entry is None:
            return
        _log.warning("%s: %s %s", entry.w.name, action, attributes.get("reason", ""))
        self._life.emit(entry.w, action, attributes)
