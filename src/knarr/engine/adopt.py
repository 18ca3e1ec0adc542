"""Taking over after a daemon restart: the store's workloads against what the keeper says runs or has ended.

Out of scope: the keeper's own adoption of processes (`keeper.journal`).
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

import msgspec

from knarr.engine import records, restarts
from knarr.engine.commits import STILL
from knarr.engine.driver import Sweeping
from knarr.engine.network import names
from knarr.engine.table import Entry
from knarr.model.errors import KnarrError
from knarr.model.state import EXIT_UNKNOWN, Status
from knarr.model.workload import NetworkMode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from knarr.engine.engine import Engine
    from knarr.model.resource import Attachment
    from knarr.model.workload import PortMapping

_log = logging.getLogger(__name__)


def load(engine: Engine) -> None:
    """Fill the table from the database; a broken record is left alone and named in the log."""
    for workload_id, name, fixed, state in engine.db.workloads():
        folder = engine.state.workload(workload_id)
        try:
            engine.table.add(Entry(records.decode(workload_id, name, folder, fixed, state)))
        except msgspec.MsgspecError as error:
            _log.error("workload %s: its record can't be read: %s", name, error)


async def adopt(engine: Engine, running: Mapping[str, int], exits: Mapping[str, tuple[int, int]]) -> None:
    """`running` is id → pid, `exits` id → (wait status, time): what the keeper knows right now."""
    for driver in engine.life.drivers.values():
        if isinstance(driver, Sweeping):
            ended = await driver.sweep(running.keys())
            running = {key: pid for key, pid in running.items() if key not in ended}
            exits = {key: found for key, found in exits.items() if key not in ended}
    engine.networks.adopt(_live(engine, running))
    for entry in engine.table:
        await _settle(engine, entry, running, exits)
    for key in (*running, *exits):
        workload, _, helper = key.partition(".")
        if engine.table.get(workload) is None or (helper and key in exits):
            await _drop_unknown(engine, key, alive=key in running)
    await _remove_orphans(engine)


def _live(
    engine: Engine, running: Mapping[str, int]
) -> dict[str, tuple[Attachment, tuple[PortMapping, ...], tuple[str, ...]]]:
    live = {}
    for entry in engine.table:
        w = entry.w
        if w.id in running and w.attachment is not None and w.spec.network is NetworkMode.BRIDGE:
            live[w.id] = (w.attachment, w.ports, names(w))
    return live


async def _settle(
    engine: Engine, entry: Entry, running: Mapping[str, int], exits: Mapping[str, tuple[int, int]]
) -> None:
    w = entry.w
    if w.id in running:
        await _take_up(engine, entry, running[w.id])
    elif w.id in exits:
        status, when = exits[w.id]
        w.status = Status.RUNNING if not w.status.alive and w.started == 0 else w.status
        await engine.life.ended(entry, status, when)
    elif w.status is Status.RESTARTING or (w.status is Status.STARTING and w.restarts):
        w.status = Status.RESTARTING
        engine.life.restarts.resume(entry)
    elif w.status is Status.STARTING:
        # its start never reached the keeper: as if nobody had asked
        w.status = Status.EXITED if w.finished else Status.CREATED
        w.error, w.exit_code = "the daemon ended before the start did", 125
        engine.life.save(w)
        if w.spec.auto_remove:
            engine.life.spawn(engine.life.remove(entry))
    elif w.status.alive:
        await engine.life.ended(entry, EXIT_UNKNOWN, time.time_ns())
    elif w.status in (Status.REMOVING, Status.EXITED) and (w.spec.auto_remove or w.status is Status.REMOVING):
        engine.life.spawn(engine.life.remove(entry))


def start_again(engine: Engine) -> None:
    """An engine that was started anew, not only its daemon: policies hold over its end."""
    for entry in engine.table:
        if restarts.wanted_at_boot(entry.w):
            engine.life.spawn(_start_quietly(engine, entry))


async def _start_quietly(engine: Engine, entry: Entry) -> None:
    try:
        await engine.life.start(entry)
    except (KnarrError, OSError) as error:
        _log.warning("%s: start by its policy: %s", entry.w.name, error)


async def _take_up(engine: Engine, entry: Entry, pid: int) -> None:
    w = entry.w
    if w.status is not Status.PAUSED:
        w.status = Status.RUNNING
    w.pid = pid
    w.started = w.started or time.time_ns()
    engine.life.save(w)
    try:
        driver = engine.life.driver(w)
        await driver.adopt(w)
        if w.private.pop(STILL, None):
            await driver.freeze(w, frozen=False)
            engine.life.save(w)
        if w.status is Status.PAUSED:
            # the record is written before the act: the daemon may have died in between
            await driver.freeze(w, frozen=True)
        engine.life.health.begin(entry, fresh=False)
    except (KnarrError, OSError) as error:
        _log.warning("%s: taking over: %s", w.name, error)


async def _drop_unknown(engine: Engine, key: str, *, alive: bool) -> None:
    """No record needs it: a start whose create was taken back, or a helper that has ended."""
    _log.info("the keeper knows %s, which no record needs", key)
    try:
        if alive:
            await engine.keeper.signal(key, 9)
        else:
            await engine.keeper.forget(key)
    except (KnarrError, OSError) as error:
        _log.warning("%s: %s", key, error)


async def _remove_orphans(engine: Engine) -> None:
    """Folders whose record is gone: a removal or a creation that a kill cut short."""
    for name in os.listdir(engine.state.workloads):
        if engine.table.get(name) is None:
            await engine.life.delete_folder(os.path.join(engine.state.workloads, name))
