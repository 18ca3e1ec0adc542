"""All workloads in memory, found by id, prefix of an id, or name.

Out of scope: their persistence (`engine.records`) and their moves (`engine.lifecycle`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from knarr.engine.driver import ExitResult, Workload
from knarr.model.errors import Conflict, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator


class Entry:
    """A workload, the lock that makes its acts a queue, and those who wait for its end."""

    __slots__ = ("_exit_waiters", "_remove_waiters", "drained", "lock", "pause", "staying", "timer", "w")

    def __init__(self, w: Workload) -> None:
        self.w = w
        self.lock = asyncio.Lock()
        self.drained: asyncio.Future[None] | None = None
        """the output of the last run is complete in the log files (made by the first who asks)"""
        self.pause = 0.0
        """seconds waited before its policy's last start"""
        self.timer: asyncio.TimerHandle | None = None
        """of its policy's next start"""
        self.staying = 0
        """> 0: it ends to be started again at once, so `auto_remove` does not hold for this end"""
        self._exit_waiters: list[asyncio.Future[ExitResult]] = []
        self._remove_waiters: list[asyncio.Future[ExitResult]] = []

    @property
    def result(self) -> ExitResult:
        return ExitResult(code=self.w.exit_code, oom_killed=self.w.oom_killed)

    def next_exit(self) -> asyncio.Future[ExitResult]:
        return _add(self._exit_waiters)

    def removal(self) -> asyncio.Future[ExitResult]:
        return _add(self._remove_waiters)

    def tell_exit(self) -> None:
        _tell(self._exit_waiters, self.result)

    def tell_removal(self) -> None:
        _tell(self._exit_waiters, self.result)
        _tell(self._remove_waiters, self.result)


def _add(waiters: list[asyncio.Future[ExitResult]]) -> asyncio.Future[ExitResult]:
    future: asyncio.Future[ExitResult] = asyncio.get_running_loop().create_future()
    waiters.append(future)
    future.add_done_callback(lambda done: waiters.remove(done) if done in waiters else None)
    return future


def _tell(waiters: list[asyncio.Future[ExitResult]], result: ExitResult) -> None:
    for future in tuple(waiters):
        if not future.done():
            future.set_result(result)
    waiters.clear()


class Table:
    """Names and ids are unique; both index the same entries."""

    def __init__(self) -> None:
        self._by_id: dict[str, Entry] = {}
        self._by_name: dict[str, Entry] = {}

    def __iter__(self) -> Iterator[Entry]:
        return iter(tuple(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, entry: Entry) -> None:
        self._by_id[entry.w.id] = entry
        self._by_name[entry.w.name] = entry

    def discard(self, entry: Entry) -> None:
        self._by_id.pop(entry.w.id, None)
        self._by_name.pop(entry.w.name, None)

    def rename(self, entry: Entry, old: str) -> None:
        """The entry has its new name already."""
        self._by_name.pop(old, None)
        self._by_name[entry.w.name] = entry

    def has_name(self, name: str) -> bool:
        return name in self._by_name

    def get(self, workload_id: str) -> Entry | None:
        return self._by_id.get(workload_id)

    def find(self, text: str) -> Entry:
        """By id, name, or the unique beginning of an id, in docker's order. Raises `NotFound`, `Conflict`."""
        entry = self._by_id.get(text) or self._by_name.get(text)
        if entry is not None:
            return entry
        found = [item for key, item in self._by_id.items() if key.startswith(text)] if text else []
        if len(found) == 1:
            return found[0]
        if found:
            raise Conflict(f"{text!r} is the beginning of {len(found)} ids", hint="give more of it")
        raise NotFound(f"no such workload: {text!r}", hint="knarr ps -a lists them")
