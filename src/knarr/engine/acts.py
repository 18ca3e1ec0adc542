"""What can be done with a workload besides starting and ending it: pause, restart.

Functions over `engine.lifecycle`, one per verb, each under the workload's lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from knarr.model.errors import Conflict
from knarr.model.state import Status, move

if TYPE_CHECKING:
    from knarr.engine.lifecycle import Lifecycle
    from knarr.engine.table import Entry


async def pause(life: Lifecycle, entry: Entry) -> None:
    """The record first: a daemon that takes over freezes again what may not have been frozen yet."""
    async with entry.lock:
        w = entry.w
        w.status = move(w.name, w.status, Status.PAUSED)
        life.save(w)
        try:
            await life.driver(w).freeze(w, frozen=True)
        except BaseException:
            w.status = Status.RUNNING
            life.save(w)
            raise
        life.emit(w, "pause", {})


async def unpause(life: Lifecycle, entry: Entry) -> None:
    async with entry.lock:
        w = entry.w
        if w.status is not Status.PAUSED:
            raise Conflict(f"workload {w.name!r} is not paused", hint=f"it is {w.status.value}")
        await life.thaw(w)


async def restart(life: Lifecycle, entry: Entry, timeout: float | None) -> None:
    """Stop it if it runs, then start it; one with `auto_remove` stays."""
    entry.staying += 1
    try:
        await life.stop(entry, timeout)
        await life.start(entry)
    finally:
        entry.staying -= 1
    life.emit(entry.w, "restart", {})
