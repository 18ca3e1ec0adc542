"""The engine: what front ends ask for, in terms of the model.

One method per verb; the moves are in `engine.lifecycle`, output in `engine.streams`, images in
`engine.images`. Out of scope: wires (api) and processes (keeper).
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from knarr.engine import (
    acts,
    changes,
    disk,
    logdrivers,
    merge,
    mountfiles,
    network,
    processes,
    sharing,
    validate,
    views,
)
from knarr.engine.driver import Closing, Provisioner, Reserving, Workload, able
from knarr.engine.jobs import Job
from knarr.engine.streams import ExecTerminal
from knarr.engine.table import Entry, Table
from knarr.keeper import waiting
from knarr.model import names
from knarr.model.errors import Conflict, Invalid, KnarrError, NotFound, Unsupported
from knarr.model.state import Status
from knarr.model.workload import ExecSpec, NetworkMode, Security, Update, WorkloadSpec

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from knarr.engine.driver import Driver, ExecSession, ExitResult, PathStat, Stats
    from knarr.engine.events import EventLog
    from knarr.engine.images import Images
    from knarr.engine.lifecycle import Lifecycle
    from knarr.engine.prunes import Filters
    from knarr.engine.streams import Streams, Terminal
    from knarr.engine.system import System
    from knarr.engine.userns import UserNamespaces
    from knarr.engine.volumes import Volumes
    from knarr.keeper.link import KeeperLink
    from knarr.model.resource import Image
    from knarr.networks.manager import NetworkManager
    from knarr.store.db import Database
    from knarr.store.settings import SettingsFile
    from knarr.store.state import StateDir

_NAME_ATTEMPTS = 20
_PRIVILEGED = Security(privileged=True)


@dataclass(kw_only=True)
class Engine:
    """Everything below the front ends, put together by `daemon`."""

    state: StateDir
    db: Database
    table: Table
    events: EventLog
    life: Lifecycle
    streams: Streams
    images: Images
    system: System
    keeper: KeeperLink
    networks: NetworkManager
    volumes: Volumes
    users: UserNamespaces
    settings: SettingsFile
    capabilities: Callable[[Security], tuple[str, ...]]
    """`containers.plan.capabilities_for`"""

    # create

    async def create(self, spec: WorkloadSpec) -> Workload:
        """Raises `NotFound` (image), `Invalid`, `Unsupported`, `Conflict` (name)."""
        w = self._draft(spec, reserve=True)
        with self.volumes.claimed(w), self.users.claimed(w):
            await self._make(w)
        return w

    async def _make(self, w: Workload) -> None:
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self.life.delete_folder, w.dir)
            if not os.path.isdir(w.dir):  # else a wall had it ready
                os.mkdir(w.dir, 0o700)
            logdrivers.make(self.state.run, w)
            driver = self.life.driver(w)
            await driver.prepare(w)
            undo.push_async_callback(driver.remove, w)
            await self.volumes.prepare(w)
            self.life.insert(w)
            self.table.add(Entry(w))
            undo.pop_all()

    def plan(self, spec: WorkloadSpec) -> tuple[str, ...]:
        """The steps that a start would take; nothing is made."""
        w = self._draft(spec)
        return self.life.driver(w).plan(w)

    def _draft(self, spec: WorkloadSpec, *, reserve: bool = False) -> Workload:
        driver = self._driver(spec)
        spec = sharing.resolve(self.users.complete(validate.spec(spec)), self.table)
        image = self.images.get(spec.image)
        spec = self.volumes.complete(spec, image)
        spec = dataclasses.replace(spec, log=logdrivers.complete(spec.log, self.settings.read().log))
        warnings = (*validate.warnings(spec, image), *driver.check(spec, image))
        name, mounts, ids = self._name(spec.name), self.volumes.resolve(spec.mounts), self.users.choose(spec)
        # after what a mistake would stop: what is reserved waits in vain for who never comes
        reserves = reserve and able(type(driver), Reserving)
        ready = cast("Reserving", driver).reserve(spec, image) if reserves else None
        workload_id = ready or names.new_id()
        hostname = spec.hostname or sharing.hostname(spec, workload_id, self.table)
        process = merge.merge(spec, image.config, hostname, self.capabilities(spec.security))
        merge.stop_signal(spec, image.config)
        validate.system_calls(process)
        return Workload(
            id=workload_id,
            name=name,
            spec=spec,
            image=image,
            process=process,
            hostname=hostname,
            dir=self.state.workload(workload_id),
            mounts=mounts,
            ids=ids,
            created=time.time_ns(),
            warnings=warnings,
        )

    def _driver(self, spec: WorkloadSpec) -> Driver:
        driver = self.life.drivers.get(spec.isolation)
        if driver is None:
            ready = " or ".join(sorted(kind.value for kind in self.life.drivers))
            raise Unsupported(
                f"the {spec.isolation.value} wall is not there yet", hint=f"use --isolation {ready}"
            )
        return driver

    def _name(self, wanted: str | None) -> str:
        if wanted is not None:
            if self.table.has_name(wanted):
                raise Conflict(f"the name {wanted!r} is in use", hint="choose another or remove that one")
            return wanted
        for _ in range(_NAME_ATTEMPTS):
            name = names.random_name()
            if not self.table.has_name(name):
                return name
        return f"{names.random_name()}_{os.urandom(3).hex()}"

    # look

    def find(self, text: str) -> Entry:
        return self.table.find(text)

    async def ls(self, *, stopped: bool, filters: list[str], sizes: bool = False) -> list[dict[str, Any]]:
        """Newest first; a status filter asks for stopped ones as well, as docker's does. `sizes`: with
        `size`, the bytes of its writable layer on the disk.
        """
        wanted = views.parse_filters(filters, self._created)
        everything = stopped or "status" in wanted or "exited" in wanted
        found = [e.w for e in self.table if everything or e.w.status.alive]
        found = sorted((w for w in found if views.matches(w, wanted)), key=lambda w: w.created, reverse=True)
        rows = [views.summary(w) for w in found]
        for w, row in zip(found, rows, strict=True) if sizes else ():
            row["size"] = await asyncio.to_thread(disk.layer_size, w.dir)
            row["size_image"] = w.image.size
        return rows

    def _created(self, name: str) -> str:
        """Of the workload of that name, for `before` and `since`."""
        return str(self.find(name).w.created)

    def inspect(self, text: str) -> dict[str, Any]:
        w = self.find(text).w
        return {**views.inspect(w), "log_waiting": waiting.reason(self.state.run, w.id)}

    # life

    def wanting(self, w: Workload) -> str:
        """What its first start would fetch, such as a guest's kernel; empty = nothing."""
        driver = self.life.driver(w)
        return cast("Provisioner", driver).wanting(w) if able(type(driver), Provisioner) else ""

    async def provision(self, text: str) -> AsyncIterator[dict[str, Any]]:
        """Fetch that, with progress; the last line is `ready`."""
        w = self.find(text).w
        driver, item = self.life.driver(w), self.wanting(w)
        if item and isinstance(driver, Provisioner):
            job = Job()
            work = asyncio.ensure_future(driver.provision(w, lambda phase: job.update(item, phase, 0, None)))
            async for line in job.lines(work):
                yield line
            await work
        yield {"ready": True}

    async def start(self, text: str) -> None:
        await self.life.start(self.find(text))

    async def stop(self, text: str, timeout: float | None) -> None:
        await self.life.stop(self.find(text), timeout)

    async def kill(self, text: str, signal: str) -> None:
        await self.life.kill(self.find(text), merge.parse_signal(signal))

    async def pause(self, text: str) -> None:
        await acts.pause(self.life, self.find(text))

    async def unpause(self, text: str) -> None:
        await acts.unpause(self.life, self.find(text))

    async def restart(self, text: str, timeout: float | None) -> None:
        await acts.restart(self.life, self.find(text), timeout)

    async def rename(self, text: str, name: str) -> None:
        """It is found and resolved by the new name from now on."""
        entry = self.find(text)
        await acts.rename(self.life, entry, names.check_name(name))
        w = entry.w
        if w.status.alive and w.attachment is not None and w.spec.network is NetworkMode.BRIDGE:
            self.networks.set_names(w.id, network.names(w), w.attachment.address)

    async def update(self, text: str, wanted: Update) -> None:
        await acts.update(self.life, self.find(text), wanted)

    async def top(self, text: str, options: str) -> dict[str, Any]:
        processes.columns(options)
        w = self._running(text).w
        now, found = await self.life.driver(w).top(w)
        return processes.table(found, now, options)

    async def changes(self, text: str) -> list[dict[str, str]]:
        w = self.find(text).w
        return changes.present(await self.life.driver(w).changes(w))

    async def remove(self, text: str, *, force: bool, volumes: bool = False) -> None:
        await self.life.remove(self.find(text), force=force, volumes=volumes)

    async def prune(self, filters: Filters) -> list[str]:
        """Remove what does not run; the ids."""
        removed = []
        for entry in self.table:
            if not filters.match(entry.w.created, views.labels(entry.w)):
                continue
            if entry.w.status in (Status.CREATED, Status.EXITED) and not entry.lock.locked():
                try:
                    await self.life.remove(entry)
                except KnarrError:
                    continue
                removed.append(entry.w.id)
        return removed

    async def wait(self, text: str, condition: str) -> ExitResult:
        """Condition as docker's: not-running, next-exit, removed."""
        entry = self.find(text)
        if condition == "next-exit":
            return await entry.next_exit()
        if condition == "removed":
            return await entry.removal()
        if condition != "not-running":
            raise Invalid(
                f"wait condition {condition!r} is unknown", hint="not-running, next-exit or removed"
            )
        return await entry.next_exit() if entry.w.status.alive else entry.result

    # inside

    async def exec(self, text: str, spec: ExecSpec, *, detach: bool = False) -> ExecSession:
        """Raises `Conflict` for a workload that does not run; exit_code 126 and 127 as docker's."""
        entry = self._running(text)
        w = entry.w
        if w.status is Status.PAUSED:
            raise Conflict(f"workload {w.name!r} is paused", hint="unpause it first")
        everything = self.capabilities(_PRIVILEGED)
        process = merge.merge_exec(spec, w.process, everything)
        session = await self.life.driver(w).exec(w, spec, process, detach=detach)
        command = {"command": " ".join(spec.args)[:1000], "exec_id": session.id}
        self.life.emit(w, "exec_start", command)
        self.streams.register(session)
        self.life.spawn(self._exec_end(w, session, detach=detach))
        return session

    async def _exec_end(self, w: Workload, session: ExecSession, *, detach: bool) -> None:
        if detach:
            # a terminal still has to be read, or its process would wait for ever
            while await session.read() is not None:
                pass
        code = await session.wait()
        if detach:
            await session.close()
        self.streams.unregister(session)
        self.life.emit(w, "exec_die", {"exec_id": session.id, "exit_code": str(code)})

    async def exec_terminal(self, text: str, spec: ExecSpec) -> Terminal:
        return ExecTerminal(await self.exec(text, spec))

    async def attach(self, text: str, *, stdin: bool, logs: bool, start: bool) -> Terminal:
        return await self.streams.attach(self.find(text), stdin=stdin, logs=logs, start=start)

    def logs(
        self,
        text: str,
        *,
        since: int | None,
        until: int | None,
        tail: int | None,
        follow: bool,
        streams: set[int],
        whole: bool,
    ) -> AsyncGenerator[tuple[int, int, bytes], None]:
        """(time, stream, bytes) in the order of writing."""
        entry = self.find(text)
        logdrivers.require_readable(entry.w)
        return self.streams.logs(
            entry, since=since, until=until, tail=tail, follow=follow, streams=streams, whole=whole
        )

    async def resize(self, text: str, columns: int, rows: int, exec_id: str | None) -> None:
        merge.tty_size((columns, rows))
        entry = self._running(text)
        if exec_id is not None:
            await self.streams.session(exec_id).resize(columns, rows)
            return
        if not entry.w.spec.tty:
            raise Conflict(f"workload {entry.w.name!r} has no tty", hint="create it with -t")
        await self.life.driver(entry.w).resize(entry.w, columns, rows)

    async def stats(self, text: str) -> Stats:
        entry = self._running(text)
        return await self.life.driver(entry.w).stats(entry.w)

    async def stat_path(self, text: str, path: str) -> PathStat:
        w = self.find(text).w
        place = mountfiles.find(w, _clean(path))
        if place is not None:
            return await mountfiles.stat_path(w, place)
        return await self.life.driver(w).stat_path(w, path)

    async def archive_get(self, text: str, path: str, write: Callable[[bytes], Awaitable[None]]) -> None:
        w = self.find(text).w
        place = mountfiles.find(w, _clean(path))
        if place is not None:
            await mountfiles.get(w, place, write)
        else:
            await self.life.driver(w).archive_get(w, path, write)

    async def export(self, text: str, write: Callable[[bytes], Awaitable[None]]) -> None:
        """A tar of the whole root, without what is mounted in it."""
        w = self.find(text).w
        await self.life.driver(w).export(w, write, layer=False)

    async def archive_put(self, text: str, path: str, read: Callable[[], Awaitable[bytes]]) -> None:
        w = self.find(text).w
        place = mountfiles.find(w, _clean(path))
        if place is not None:
            await mountfiles.put(w, place, read)
            return
        if w.spec.read_only:
            raise Conflict(f"workload {w.name!r} has a read-only root", hint="copy into a mount instead")
        await self.life.driver(w).archive_put(w, path, read)

    def _running(self, text: str) -> Entry:
        entry = self.find(text)
        if not entry.w.status.running:
            raise Conflict(f"workload {entry.w.name!r} is not running", hint=f"it is {entry.w.status.value}")
        return entry

    # images that workloads use

    def images_in_use(self) -> set[str]:
        return {entry.w.image.id for entry in self.table}

    async def remove_image(self, name: str, *, force: bool) -> list[str]:
        """Raises `Conflict` while a workload needs it: its tree is that workload's root."""
        image = self.images.get(name)
        users = [entry.w for entry in self.table if entry.w.image.id == image.id]
        alive = [w for w in users if w.status.alive]
        if users and (alive or not force) and _last_name(image, name):
            state = "running" if alive else "stopped"
            raise Conflict(
                f"image {name!r} is used by {state} workload {users[0].name!r}",
                hint="remove the workload first",
            )
        return await self.images.remove(name, force=force)

    async def close(self) -> None:
        """Nothing that runs is touched."""
        self.life.restarts.halt()
        self.life.health.close()
        for driver in self.life.drivers.values():
            if isinstance(driver, Closing):
                await driver.close()
        await asyncio.wait_for(self.life.settle(), 5)


def _clean(path: str) -> str:
    if not path or "\0" in path:
        raise Invalid(f"{path!r} is not a path")
    return path


def _last_name(image: Image, name: str) -> bool:
    """Removing it would remove the image: it is named by id, or by its only reference."""
    try:
        reference = names.parse_reference(name).canonical
    except (Invalid, NotFound):
        return True
    return reference not in image.references or len(image.references) <= 1
