"""The life of one workload: start, stop, kill, end, remove, the same over every wall.

Each act on a workload holds its lock, each change of state is committed before the act answers, and a failed
start is taken back by its driver. Out of scope: creating (`engine.engine`), taking over after a restart
(`engine.adopt`), output (`engine.streams`).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import time
from typing import TYPE_CHECKING

from knarr.engine import events, logdrivers, merge, records, removals, views
from knarr.engine.driver import ExecExits, ExitResult
from knarr.engine.health import HealthChecks
from knarr.engine.restarts import Restarts
from knarr.model.errors import Conflict, Failed, KnarrError
from knarr.model.state import EXIT_UNKNOWN, Status, move
from knarr.model.workload import RestartKind
from knarr.store.trees import Removal
from knarr.volumes import mounts

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from knarr.engine.driver import Driver, Workload
    from knarr.engine.table import Entry, Table
    from knarr.engine.volumes import Volumes
    from knarr.keeper.link import KeeperLink
    from knarr.model.workload import Isolation
    from knarr.store.db import Database

_log = logging.getLogger(__name__)
_KILL_PATIENCE = 30.0
_FIRST_PAUSE, _LAST_PAUSE = 0.5, 30.0


class Lifecycle:
    """The moves of `model.state` with their acts."""

    def __init__(
        self,
        table: Table,
        db: Database,
        log: events.EventLog,
        drivers: dict[Isolation, Driver],
        *,
        keeper: KeeperLink,
        volumes: Volumes,
    ) -> None:
        self.table = table
        self.drivers = drivers
        self.execs = ExecExits()
        self.restarts = Restarts(self)
        self.health = HealthChecks(self)
        self._db = db
        self._events = log
        self._keeper = keeper
        self._volumes = volumes
        self._tasks: set[asyncio.Task[None]] = set()
        self.before_start: Callable[[Workload], None] = lambda _: None
        """refuses a start by raising: whom it joins is gone, its ids are another's"""

    def driver(self, w: Workload) -> Driver:
        return self.drivers[w.spec.isolation]

    # records

    def save(self, w: Workload) -> None:
        self._db.update(w.id, records.encode_state(w))

    def emit(self, w: Workload, action: str, attributes: dict[str, str]) -> None:
        self._events.emit("workload", action, w.id, {**_attributes(w), **attributes})

    def commit(self, w: Workload, action: str, attributes: dict[str, str] | None = None) -> None:
        """State and event in one transaction."""
        event = self._events.make("workload", action, w.id, {**_attributes(w), **(attributes or {})})
        self._db.update(w.id, records.encode_state(w), events.row(event))
        self._events.publish(event)

    def rewrite(self, w: Workload, action: str, attributes: dict[str, str] | None = None) -> None:
        """Name and spec as well. Raises `Conflict` when another has the name."""
        event = self._events.make("workload", action, w.id, {**_attributes(w), **(attributes or {})})
        fixed, state = records.encode_fixed(w), records.encode_state(w)
        self._db.replace(w.id, w.name, fixed, state, events.row(event))
        self._events.publish(event)

    def insert(self, w: Workload) -> None:
        event = self._events.make("workload", "create", w.id, _attributes(w))
        self._db.insert(w.id, w.name, records.encode_fixed(w), records.encode_state(w), events.row(event))
        self._events.publish(event)

    # start

    async def start(self, entry: Entry, *, again: bool = False) -> None:
        """An already running workload stays as it is. Raises what the driver raises, with docker's
        exit code. `again`: by its policy, if nobody decided otherwise meanwhile.
        """
        async with entry.lock:
            w = entry.w
            if w.status.running or (again and w.status is not Status.RESTARTING):
                return
            self.restarts.forget(entry)
            if again:
                w.restarts += 1
            else:
                w.stopped, w.restarts, w.failures, entry.pause = False, 0, 0, 0.0
            before = Status.EXITED if w.status is Status.RESTARTING else w.status
            move(w.name, w.status, Status.STARTING)
            mounts.require_sources(w.mounts)
            w.status = Status.STARTING
            w.exit_code, w.oom_killed, w.error, w.private = 0, False, "", {}
            entry.drained = None
            try:
                self.before_start(w)
                w.pid = await self.driver(w).start(w)
            except BaseException as error:
                self._start_failed(entry, before, error)
                raise
            w.status = Status.RUNNING
            w.started = time.time_ns()
            self.health.begin(entry, fresh=True)
            try:
                self.commit(w, "start", w.private.get("start"))
            except KnarrError:
                # a start that nobody can remember is taken back; its end comes like any other's
                await self.driver(w).signal(w, signal.SIGKILL)
                raise

    def _start_failed(self, entry: Entry, before: Status, error: BaseException) -> None:
        w = entry.w
        w.exit_hook = None
        w.status = before
        w.error = error.message if isinstance(error, KnarrError) else str(error)
        w.exit_code = error.exit_code if isinstance(error, KnarrError) else KnarrError.exit_code
        w.pid, w.ports = 0, ()
        w.finished = time.time_ns()
        try:
            self.save(w)
        except KnarrError as refused:
            # the record still says `starting`, which the next daemon reads as never begun
            _log.warning("%s: %s", w.name, refused.message)
        entry.tell_exit()
        if w.spec.auto_remove:
            self.spawn(self._auto_remove(entry))

    # the end

    def on_exit(self, key: str, status: int, when: int, exec_id: str | None = None) -> None:
        """The keeper's message. Keys with a dot are helpers of a workload (a VM's folder daemons)."""
        workload_id, _, part = key.partition(".")
        entry = self.table.get(workload_id)
        if exec_id is not None:
            self.execs.tell(exec_id, status)
            return
        if entry is None or part or not entry.w.status.alive:
            # not a run's: a start that waits for the lock must not meet it
            self.spawn(self._forget(key))
            return
        hook = entry.w.exit_hook
        if hook is not None and hook(status):
            return
        self.spawn(self.ended(entry, status, when))

    async def ended(self, entry: Entry, status: int, when: int) -> None:
        """Record how it ended, tell everyone, clean up; with `auto_remove` remove."""
        async with entry.lock:
            w = entry.w
            if not w.status.alive:
                await self._forget(w.id)
                return
            self.health.end(entry)
            result = await self._result(w, status)
            w.status = Status.EXITED
            w.exit_code, w.oom_killed = result.code, result.oom_killed
            w.finished = when or time.time_ns()
            w.pid, w.ports = 0, ()
            if result.oom_killed:
                self.emit(w, "oom", {})
            recorded = self._record_end(w)
            entry.tell_exit()
            await self._cleanup(w)
            if recorded:
                await self._forget(w.id)
            else:
                self._later(_FIRST_PAUSE, lambda pause: self._end_unrecorded(entry, pause))
            self.restarts.ended(entry)
        if w.spec.auto_remove and not entry.staying:
            await self._auto_remove(entry)

    async def _result(self, w: Workload, status: int) -> ExitResult:
        try:
            return await self.driver(w).exited(w, status)
        except (KnarrError, OSError) as error:
            _log.warning("%s: how it ended could not be read: %s", w.name, error)
            return ExitResult(code=EXIT_UNKNOWN)

    async def _cleanup(self, w: Workload) -> None:
        try:
            await self.driver(w).cleanup(w)
        except (KnarrError, OSError) as error:
            _log.warning("%s: clean-up: %s", w.name, error)

    def _record_end(self, w: Workload) -> bool:
        try:
            self.commit(w, "die", {"exit_code": str(w.exit_code)})
        except KnarrError as error:
            _log.warning("%s: its end can't be recorded yet: %s", w.name, error.message)
            return False
        return True

    def _end_unrecorded(self, entry: Entry, pause: float) -> None:
        """Until then the keeper remembers the end, for the daemon after this one."""
        if entry.w.status is Status.REMOVED or self._record_end(entry.w):
            self.spawn(self._forget(entry.w.id))
        else:
            self._later(pause, lambda longer: self._end_unrecorded(entry, longer))

    async def _forget(self, key: str, pause: float = _FIRST_PAUSE) -> None:
        try:
            await self._keeper.forget(key)
        except (KnarrError, OSError) as error:
            _log.warning("%s: the keeper would not forget it yet: %s", key, error)
            if not isinstance(error, OSError) or error.errno != errno.EBUSY:
                self._later(pause, lambda longer: self.spawn(self._forget(key, longer)))

    def _later(self, pause: float, act: Callable[[float], None]) -> None:
        """`act` after a pause, with the next one: nothing of it holds up the daemon's end."""
        asyncio.get_running_loop().call_later(pause, act, min(2 * pause, _LAST_PAUSE))

    # signals

    async def kill(self, entry: Entry, signum: int) -> None:
        """Raises `Conflict` for a workload that does not run."""
        async with entry.lock:
            w = entry.w
            if not w.status.running:
                raise Conflict(f"workload {w.name!r} is not running", hint=f"it is {w.status.value}")
            await self._signal(w, signum)

    async def _signal(self, w: Workload, signum: int) -> None:
        """What is to end can't stay frozen: it goes on with the signal pending."""
        ends = signum in (signal.SIGKILL, merge.stop_signal(w.spec, w.image.config))
        if ends and not w.stopped:
            w.stopped = True
            if w.spec.restart.kind is not RestartKind.NO:
                # before the act: a daemon killed in between must not let its policy start it again
                self.save(w)
        await self.driver(w).signal(w, signum)
        self.commit(w, "kill", {"signal": str(signum)})
        if ends and w.status is Status.PAUSED:
            await self.thaw(w)

    async def thaw(self, w: Workload) -> None:
        await self.driver(w).freeze(w, frozen=False)
        w.status = move(w.name, w.status, Status.RUNNING)
        self.commit(w, "unpause")

    def _stay_ended(self, entry: Entry) -> None:
        """Between two runs: the next one is called off."""
        w = entry.w
        if w.status is Status.RESTARTING:
            self.restarts.forget(entry)
            w.stopped, w.status = True, move(w.name, w.status, Status.EXITED)
            self.save(w)
            entry.tell_exit()

    async def stop(self, entry: Entry, timeout: float | None = None) -> None:
        """Stop signal, patience, SIGKILL. One that does not run is fine. A negative timeout waits for
        ever.
        """
        async with entry.lock:
            w = entry.w
            if not w.status.running:
                self._stay_ended(entry)
                return
            exited = entry.next_exit()
            await self._signal(w, merge.stop_signal(w.spec, w.image.config))
            if w.status is not Status.STOPPING:
                w.status = move(w.name, w.status, Status.STOPPING)
                self.save(w)
        patience = float(w.spec.stop_timeout) if timeout is None else timeout
        await asyncio.wait({exited}, timeout=None if patience < 0 else patience)
        if not exited.done():
            await self._kill_hard(entry, exited)
        self.emit(w, "stop", {})

    async def _kill_hard(self, entry: Entry, exited: asyncio.Future[ExitResult]) -> None:
        async with entry.lock:
            if entry.w.status.running:
                await self._signal(entry.w, int(signal.SIGKILL))
        await asyncio.wait({exited}, timeout=_KILL_PATIENCE)
        if not exited.done():
            raise Failed(
                f"workload {entry.w.name!r} is still there {_KILL_PATIENCE:.0f} s after SIGKILL",
                hint="one of its processes hangs in the kernel",
            )

    # removal

    async def remove(self, entry: Entry, *, force: bool = False, volumes: bool = False) -> None:
        """Raises `Conflict` for a running one without `force`. `volumes`: also its ones without a name."""
        await self._end_for_removal(entry, force=force)
        async with entry.lock:
            w = entry.w
            if w.status is Status.REMOVED:
                return
            if w.status.alive:
                raise Conflict(f"workload {w.name!r} was started again meanwhile")
            before, w.status = w.status, Status.REMOVING
            try:
                await self.driver(w).remove(w)
                event = self._events.make("workload", "destroy", w.id, _attributes(w))
                self._db.delete(w.id, events.row(event))
            except BaseException:
                w.status = before
                raise
            self.table.discard(entry)
            w.status = Status.REMOVED
            entry.tell_removal()
            self._events.publish(event)
        await self.delete_folder(w.dir)
        if volumes or w.spec.auto_remove:
            await self._volumes.release(w)

    async def _end_for_removal(self, entry: Entry, *, force: bool) -> None:
        async with entry.lock:
            w = entry.w
            if not w.status.alive:
                return
            if not force:
                raise Conflict(
                    f"workload {w.name!r} is {w.status.value}", hint="stop it first, or remove with force"
                )
            if w.status is Status.RESTARTING:
                self._stay_ended(entry)
                return
            exited = entry.next_exit()
        await self._kill_hard(entry, exited)

    async def _auto_remove(self, entry: Entry) -> None:
        """After the last byte is in the files: those who follow them have them open."""
        try:
            await self.drained(entry)
            await self.remove(entry)
        except (KnarrError, OSError) as error:
            _log.warning("%s: automatic removal: %s", entry.w.name, error)

    async def delete_folder(self, path: str) -> None:
        """What can't go now goes later, or at the next daemon's start."""
        try:
            logdrivers.remove(path)
        except OSError as error:
            _log.warning("%s: its log: %s", path, error)
        await removals.remove(Removal(path), path)

    # output

    async def drained(self, entry: Entry) -> None:
        """Return when everything the last run wrote is in the log files; asks the mover once per run."""
        if entry.drained is None:
            entry.drained = asyncio.ensure_future(self._keeper.drain(entry.w.id))
        try:
            await asyncio.shield(entry.drained)
        except (KnarrError, OSError) as error:
            _log.warning("%s: its last output may be missing: %s", entry.w.name, error)

    # tasks of the engine's own

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run beside; a failure is logged, never lost."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("background work failed", exc_info=error)

    async def settle(self) -> None:
        """Wait for what `spawn` started."""
        while self._tasks:
            await asyncio.wait(self._tasks)


def _attributes(w: Workload) -> dict[str, str]:
    return {**views.labels(w), "name": w.name, "image": w.spec.image, "isolation": w.spec.isolation.value}
