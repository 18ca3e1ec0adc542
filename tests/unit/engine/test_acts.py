"""An update that can't be recorded is none."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from knarr.engine import acts
from knarr.model.errors import Unavailable
from knarr.model.state import Status
from knarr.model.workload import Resources, Update, WorkloadSpec

if TYPE_CHECKING:
    from knarr.engine.lifecycle import Lifecycle
    from knarr.engine.table import Entry

OLD, NEW = 64 << 20, 128 << 20


def test_limits_go_back_when_the_record_can_not_be_written() -> None:
    limits: list[tuple[int | None, int | None]] = []

    async def change(w: SimpleNamespace, resources: Resources) -> None:
        limits.append((w.spec.resources.memory, resources.memory))

    def refuse(*_: object) -> None:
        raise Unavailable("the records can't be written")

    async def play() -> WorkloadSpec:
        spec = WorkloadSpec(image="i", resources=Resources(memory=OLD))
        w = SimpleNamespace(name="w", spec=spec, image=None, status=Status.RUNNING)
        driver = SimpleNamespace(check=lambda *_: (), update=change)
        life = SimpleNamespace(driver=lambda _: driver, rewrite=refuse)
        entry = SimpleNamespace(w=w, lock=asyncio.Lock())
        with pytest.raises(Unavailable):
            await acts.update(cast("Lifecycle", life), cast("Entry", entry), Update(memory=NEW))
        return cast("WorkloadSpec", w.spec)

    assert asyncio.run(play()).resources.memory == OLD
    assert limits == [(OLD, NEW), (NEW, OLD)]
