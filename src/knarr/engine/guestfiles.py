"""Looks every few seconds whether a guest floods the files that its QEMU writes, and cuts them.

QEMU writes them itself, so that nothing is lost when the daemon is away: that is why nobody tells. Out of
scope: the files (`machines.trim`).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Self

from knarr.machines import trim
from knarr.model.workload import Isolation

if TYPE_CHECKING:
    from knarr.engine.driver import Workload
    from knarr.engine.table import Table

_SECONDS = 3.0
_log = logging.getLogger(__name__)


class GuestFiles:
    """Between `start` and `close`."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._timer: asyncio.TimerHandle | None = None
        self._told: set[tuple[str, str]] = set()
        """ids and files of which the log has a line: one each, or the log would be what the guest floods"""

    def start(self) -> Self:
        self._timer = asyncio.get_running_loop().call_later(_SECONDS, self._look)
        return self

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        for entry in self._table:
            if entry.w.spec.isolation is Isolation.MICROVM and entry.w.status.alive:
                self._tell(entry.w, trim.trim(entry.w.dir))
        self.start()

    def _tell(self, w: Workload, cut: list[str]) -> None:
        for name in cut:
            if (w.id, name) not in self._told:
                self._told.add((w.id, name))
                _log.warning("%s: its guest floods %s, which is cut", w.name, name)
