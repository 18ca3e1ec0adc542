"""A guest that floods its console: cut each time, told once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from knarr.engine.guestfiles import GuestFiles
from knarr.machines import trim
from knarr.model.state import Status
from knarr.model.workload import Isolation

if TYPE_CHECKING:
    from knarr.engine.table import Table


def test_each_flood_is_cut_and_only_the_first_is_told(tmp_path, caplog) -> None:
    spec = SimpleNamespace(isolation=Isolation.MICROVM)
    w = SimpleNamespace(id="a", name="loud", dir=str(tmp_path), status=Status.RUNNING, spec=spec)
    console = tmp_path / "console.log"

    async def play() -> list[int]:
        files = GuestFiles(cast("Table", [SimpleNamespace(w=w)]))
        sizes = []
        for _ in range(3):
            console.write_bytes(b"x" * (trim.LARGEST + 1))
            files._look()
            files.close()
            sizes.append(console.stat().st_size)
        return sizes

    assert asyncio.run(play()) == [trim.KEPT] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "loud: its guest floods console.log, which is cut"
    ]
