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
    from knarr.engine.table import Table

_SECONDS = 3.0
_log = logging.getLogger(__name__)


class GuestFiles:
    """Between `start` and `close`."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> Self:
        self._timer = asyncio.get_running_loop().call_later(_SECONDS, self._look)
        return self

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        for entry in self._table:
            if entry.w.spec.isolation is Isolation.MICROVM and entry.w.status.alive:
                for name in trim.trim(entry.w.dir):
                    _log.warning("%s: its guest floods %s, which was cut", entry.w.name, name)
        self.start()
