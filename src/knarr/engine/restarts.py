"""Restart policies: whether a workload that ended begins again, and when.

Docker's rules: 100 ms, doubled up to a minute, from the beginning again after a run of ten seconds.
Out of scope: starting and ending (`engine.lifecycle`), which calls this under the workload's lock.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from knarr.model.errors import KnarrError
from knarr.model.state import Status, move
from knarr.model.workload import RestartKind

if TYPE_CHECKING:
    from knarr.engine.driver import Workload
    from knarr.engine.lifecycle import Lifecycle
    from knarr.engine.table import Entry

_log = logging.getLogger(__name__)
_FIRST = 0.1
_LONGEST = 60.0
_GOOD_RUN = 10.0


def wanted(w: Workload) -> bool:
    """Of one that has ended by itself; `w.failures` counts this end."""
    policy = w.spec.restart
    if w.stopped or policy.kind is RestartKind.NO:
        return False
    if policy.kind is RestartKind.ON_FAILURE:
        return w.exit_code != 0 and (not policy.retries or w.failures <= policy.retries)
    return True


def wanted_at_boot(w: Workload) -> bool:
    """Of one that the engine finds ended when it is started with nothing running."""
    if w.status is not Status.EXITED or not w.started:
        return False
    return w.spec.restart.kind is RestartKind.ALWAYS or wanted(w)


def next_pause(pause: float, ran: float) -> float:
    """Seconds until the next try. `pause` is the one before, 0 at first."""
    return _FIRST if not pause or ran >= _GOOD_RUN else min(2 * pause, _LONGEST)


class Restarts:
    """The pauses of one engine."""

    def __init__(self, life: Lifecycle) -> None:
        self._life = life
        self.halted = False
        """the engine ends: nothing begins again"""

    def halt(self) -> None:
        self.halted = True

    def ended(self, entry: Entry, *, began: bool = True) -> None:
        """Under its lock, after its end is recorded and cleaned up. `began`: it ran at all this time."""
        w = entry.w
        w.failures = w.failures + 1 if w.exit_code else 0
        if self.halted or not wanted(w):
            return
        entry.pause = next_pause(entry.pause, (w.finished - w.started) / 1e9 if began else 0.0)
        w.status = move(w.name, w.status, Status.RESTARTING)
        try:
            self._life.save(w)
        except KnarrError as error:
            # it comes back all the same, but not under another daemon
            _log.warning("%s: that it restarts can't be recorded: %s", w.name, error.message)
        self.resume(entry)

    def resume(self, entry: Entry) -> None:
        """One that waits for its next start, also after the daemon has been replaced."""
        entry.pause = entry.pause or _FIRST
        loop = asyncio.get_running_loop()
        entry.timer = loop.call_later(entry.pause, lambda: self._life.spawn(self._again(entry)))

    def forget(self, entry: Entry) -> None:
        """Somebody has decided otherwise."""
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None

    async def _again(self, entry: Entry) -> None:
        if self.halted:
            return
        try:
            await self._life.start(entry, again=True)
        except (KnarrError, OSError) as error:
            _log.warning("%s: restart: %s", entry.w.name, error)
            async with entry.lock:
                if entry.w.status is Status.EXITED:
                    self.ended(entry, began=False)
