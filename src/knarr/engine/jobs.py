"""Long work in a thread, its progress as a stream in the event loop. Out of scope: what the work is."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_TICK = 0.1
"""seconds between two progress lines of one item"""


class Job:
    """Progress from worker threads into the event loop; only the newest figure of an item is kept."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._lines: dict[tuple[str, str], dict[str, Any]] = {}
        self._last: dict[str, float] = {}
        self._ready = asyncio.Event()

    def update(self, item: str, phase: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        key = f"{item}\0{phase}"
        if done != total and now - self._last.get(key, 0.0) < _TICK:
            return
        self._last[key] = now
        line = {"item": item, "phase": phase, "done": done, "total": total}
        self._loop.call_soon_threadsafe(self._put, line)

    def cancel(self) -> bool:
        return self.cancelled.is_set()

    def _put(self, line: dict[str, Any]) -> None:
        self._lines[line["item"], line["phase"]] = line
        self._ready.set()

    async def lines(self, work: asyncio.Future[Any]) -> AsyncIterator[dict[str, Any]]:
        work.add_done_callback(lambda _: self._ready.set())
        while True:
            finished = work.done()
            self._ready.clear()
            lines, self._lines = self._lines, {}
            for line in lines.values():
                yield line
            if finished:
                return
            await self._ready.wait()
