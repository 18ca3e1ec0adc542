"""What can be done with a workload besides starting and ending it: pause, restart, rename, update.

Functions over `engine.lifecycle`, one per verb, each under the workload's lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

from knarr.engine import validate
from knarr.kernel import relimit
from knarr.model.errors import Conflict, KnarrError
from knarr.model.state import Status, move

if TYPE_CHECKING:
    from knarr.engine.lifecycle import Lifecycle
    from knarr.engine.table import Entry
    from knarr.model.workload import Update


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


async def rename(life: Lifecycle, entry: Entry, name: str) -> None:
    async with entry.lock:
        w = entry.w
        if life.table.has_name(name):
            raise Conflict(f"the name {name!r} is in use", hint="choose another or remove that one")
        old, spec = w.name, w.spec
        w.name, w.spec = name, dataclasses.replace(spec, name=name)
        try:
            life.rewrite(w, "rename", {"old_name": old})
        except BaseException:
            w.name, w.spec = old, spec
            raise
        life.table.rename(entry, old)


async def update(life: Lifecycle, entry: Entry, wanted: Update) -> None:
    """In force at once for one that runs; else from its next start on."""
    async with entry.lock:
        w = entry.w
        resources = relimit.merged(w.spec.resources, wanted)
        policy = wanted.restart or w.spec.restart
        spec = validate.spec(dataclasses.replace(w.spec, resources=resources, restart=policy))
        driver = life.driver(w)
        driver.check(spec, w.image)
        before, live = w.spec, w.status.running and resources != w.spec.resources
        if live:
            await driver.update(w, resources)
        w.spec = spec
        try:
            life.rewrite(w, "update")
        except BaseException:
            if live:
                with contextlib.suppress(KnarrError, OSError):
                    await driver.update(w, before.resources)
            w.spec = before
            raise
