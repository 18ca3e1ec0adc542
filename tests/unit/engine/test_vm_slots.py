"""Warm slots that go while somebody asks for them."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

from knarr.engine.drivers.vm_slots import Slot, Slots
from knarr.model.resource import RootFs
from knarr.model.workload import Resources, WorkloadSpec

ID = "5107"


class Host:
    """Machines that take their time to die, and the order in which things happen."""

    def __init__(self, folder: str) -> None:
        self.root = self.run = folder
        self.network = self
        self.seen: list[str] = []
        self.dead = asyncio.Event()

    async def destroy(self, key: str) -> None:
        self.seen.append(f"kill {key}")
        await self.dead.wait()
        self.seen.append(f"gone {key}")

    def release(self, key: str) -> None:
        self.seen.append(f"release {key}")


def slots_with_one(host: Any, folder: str) -> Slots:
    os.makedirs(folder)
    agent: Any = SimpleNamespace(closed=False, close=lambda: None)
    made = Slots(host, host, {ID: 1})
    made._slots[ID] = Slot(
        id=ID,
        kind=("tree", 1, 1, True),
        stamp=(),
        pid=0,
        agent=agent,
        kernel="k",
        resources=Resources(),
        folder=folder,
        rootfs=RootFs(tree_id="t", tree="tree", pool="pool", disk_map="map"),
    )
    return made


def test_a_start_waits_until_a_slot_of_its_id_that_goes_has_gone(tmp_path) -> None:
    async def play() -> list[str]:
        host = Host(str(tmp_path))
        slots = slots_with_one(host, str(tmp_path / "workloads" / ID))
        going = asyncio.ensure_future(slots.drop(ID))
        w: Any = SimpleNamespace(
            id=ID,
            spec=WorkloadSpec(image="i"),
            image=SimpleNamespace(rootfs=SimpleNamespace(tree="tree")),
        )
        asking = asyncio.ensure_future(slots.take(w, "k"))
        done, _ = await asyncio.wait({asking}, timeout=0.05)
        assert not done
        host.dead.set()
        assert await asking is None
        host.seen.append("start")
        await going
        return host.seen

    assert asyncio.run(play()) == [f"kill {ID}", f"gone {ID}", f"release {ID}", "start"]
    assert not (tmp_path / "workloads" / ID).exists()
