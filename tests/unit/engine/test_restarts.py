"""The pauses between restarts are docker's."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from knarr.engine import restarts
from knarr.model.errors import Unavailable
from knarr.model.state import Status
from knarr.model.workload import RestartKind, RestartPolicy

if TYPE_CHECKING:
    from knarr.engine.lifecycle import Lifecycle
    from knarr.engine.table import Entry


def test_pauses_double_up_to_a_minute_and_begin_anew_after_a_good_run() -> None:
    pause, seen = 0.0, []
    for _ in range(12):
        pause = restarts.next_pause(pause, 0.5)
        seen.append(pause)
    assert seen[:4] == [0.1, 0.2, 0.4, 0.8]
    assert seen[-1] == 60.0
    assert restarts.next_pause(60.0, 10.0) == 0.1


def test_a_disk_that_takes_no_record_calls_no_restart_off() -> None:
    def refuse(_: object) -> None:
        raise Unavailable("the records can't be written: disk full")

    async def play() -> bool:
        kept = restarts.Restarts(cast("Lifecycle", SimpleNamespace(save=refuse)))
        w = SimpleNamespace(name="w", status=Status.EXITED, exit_code=1, failures=0, stopped=False)
        w.started = w.finished = 0
        w.spec = SimpleNamespace(restart=RestartPolicy(kind=RestartKind.ALWAYS))
        entry = SimpleNamespace(w=w, pause=0.0, timer=None)
        kept.ended(cast("Entry", entry))
        waits = entry.timer is not None and w.status is Status.RESTARTING
        kept.forget(cast("Entry", entry))
        return waits

    assert asyncio.run(play())


def test_a_start_that_fails_after_a_good_run_is_tried_ever_more_rarely() -> None:
    async def pauses() -> list[float]:
        kept = restarts.Restarts(
            cast("Lifecycle", SimpleNamespace(save=lambda _: None, spawn=lambda _: None))
        )
        w = SimpleNamespace(
            name="w",
            status=Status.EXITED,
            exit_code=125,
            failures=0,
            stopped=False,
            started=0,
            finished=10**12,
        )
        w.spec = SimpleNamespace(restart=RestartPolicy(kind=RestartKind.ALWAYS))
        entry = SimpleNamespace(w=w, pause=60.0, timer=None)
        kept.ended(cast("Entry", entry))
        seen = [entry.pause]
        for _ in range(3):
            kept.forget(cast("Entry", entry))
            w.status = Status.EXITED
            kept.ended(cast("Entry", entry), began=False)
            seen.append(entry.pause)
        kept.forget(cast("Entry", entry))
        return seen

    assert asyncio.run(pauses()) == [0.1, 0.2, 0.4, 0.8]
