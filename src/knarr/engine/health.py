"""Health checks: a command inside, run again and again, and what its exit codes say of the workload.

Out of scope: what happens to an unhealthy workload (nothing, as with docker: somebody watches the events).
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import signal
import time
from typing import TYPE_CHECKING, Any

from knarr.engine import merge
from knarr.model.errors import KnarrError
from knarr.model.health import Health
from knarr.model.state import EXIT_UNKNOWN, Status
from knarr.model.workload import ExecSpec

if TYPE_CHECKING:
    from knarr.engine.driver import ExecSession, Workload
    from knarr.engine.lifecycle import Lifecycle
    from knarr.engine.table import Entry

_log = logging.getLogger(__name__)
_DEFAULTS = Health(interval=30.0, timeout=30.0, start_interval=5.0, retries=3)
_SHELL = ("/bin/sh", "-c")
_KEPT = 5
_OUTPUT = 4096


def effective(w: Workload) -> Health | None:
    """The user's, over the image's, over docker's defaults; None = it is never asked."""
    if w.spec.health is None and w.image.config.health is None:
        return None
    merged = _over(_over(w.spec.health, w.image.config.health), _DEFAULTS)
    return merged if merged.test and merged.test[0] in ("CMD", "CMD-SHELL") and len(merged.test) > 1 else None


def _over(own: Health | None, base: Health | None) -> Health:
    given = {} if own is None else dataclasses.asdict(own)
    return dataclasses.replace(base or Health(), **{key: value for key, value in given.items() if value})


def command(check: Health) -> tuple[str, ...]:
    kind, *words = check.test
    return tuple(words) if kind == "CMD" else (*_SHELL, words[0])


def judge(found: dict[str, Any], check: Health, *, code: int, early: bool) -> str:
    """The new status. `found` is changed: failures in a row; `early`: in the start period."""
    if code == 0:
        found["failing_streak"] = 0
        return "healthy"
    if early and found["status"] == "starting":
        return "starting"
    found["failing_streak"] += 1
    return "unhealthy" if found["failing_streak"] >= check.retries else str(found["status"])


class HealthChecks:
    """One task for each workload that runs and has a check."""

    def __init__(self, life: Lifecycle) -> None:
        self._life = life
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self, entry: Entry, *, fresh: bool) -> None:
        """`fresh`: it has just started, nothing is known of it."""
        w = entry.w
        check = effective(w)
        if fresh:
            w.health = {"status": "starting", "failing_streak": 0, "log": []} if check else {}
        if check is not None and w.health:
            self.end(entry)
            self._tasks[w.id] = asyncio.ensure_future(self._watch(w, check))

    def end(self, entry: Entry) -> None:
        task = self._tasks.pop(entry.w.id, None)
        if task is not None:
            task.cancel()

    def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    async def _watch(self, w: Workload, check: Health) -> None:
        while True:
            await asyncio.sleep(check.start_interval if _early(w, check) else check.interval)
            if w.status is Status.RUNNING:
                began = time.time_ns()
                code, output = await self._probe(w, check)
                try:
                    self._record(w, check, began, code, output)
                except KnarrError as error:
                    # the next check says it again
                    _log.warning("%s: its health can't be recorded: %s", w.name, error.message)

    async def _probe(self, w: Workload, check: Health) -> tuple[int, str]:
        """(exit code, the beginning of what it said); -1 when it did not end by itself, or never began."""
        spec = ExecSpec(args=command(check))
        try:
            session = await self._life.driver(w).exec(w, spec, merge.merge_exec(spec, w.process, ()))
        except (KnarrError, OSError) as error:
            return EXIT_UNKNOWN, str(error)
        output = bytearray()
        try:
            code = await asyncio.wait_for(_finish(session, output), check.timeout)
        except TimeoutError:
            await session.signal(signal.SIGKILL)
            return EXIT_UNKNOWN, f"the check took longer than {check.timeout:g} s"
        except (KnarrError, OSError) as error:
            return EXIT_UNKNOWN, str(error)
        finally:
            await session.close()
        return code, bytes(output).decode("utf-8", "replace")

    def _record(self, w: Workload, check: Health, began: int, code: int, output: str) -> None:
        found = w.health
        new = judge(found, check, code=code, early=_early(w, check))
        entry = {"start": began, "end": time.time_ns(), "exit_code": code, "output": output}
        found["log"] = [*found["log"], entry][-_KEPT:]
        changed, found["status"] = new != found["status"], new
        if changed:
            self._life.commit(w, "health_status", {"health_status": new})
        else:
            self._life.save(w)


def _early(w: Workload, check: Health) -> bool:
    young = time.time_ns() - w.started < check.start_period * 1e9
    return young and w.health.get("status") == "starting"


async def _finish(session: ExecSession, output: bytearray) -> int:
    while (item := await session.read()) is not None:
        output += item[1][: max(0, _OUTPUT - len(output))]
    return await session.wait()
