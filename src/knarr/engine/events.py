"""The engine's events: kept in the database, bounded, and handed to whoever follows.

A follower that is too slow loses the oldest of its queue, never the engine's time. Out of scope: filters and
the wire's form (front ends).
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Self

from knarr.model.errors import KnarrError
from knarr.model.state import Event
from knarr.store.db import Database, EventRow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_log = logging.getLogger(__name__)
_QUEUE = 10_000
_FOREVER = 1 << 62
_encode = json.JSONEncoder(separators=(",", ":")).encode


class Follower:
    """One reader of events as they happen; use with `with`."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._queue: deque[Event] = deque(maxlen=_QUEUE)
        self._ready = asyncio.Event()

    def __enter__(self) -> Self:
        self._log.followers.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._log.followers.discard(self)

    def put(self, event: Event) -> None:
        self._queue.append(event)
        self._ready.set()

    async def next(self) -> Event:
        while not self._queue:
            self._ready.clear()
            await self._ready.wait()
        return self._queue.popleft()


class EventLog:
    """`make` and `publish` are apart so that an event can commit together with the change it tells of."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.followers: set[Follower] = set()
        self._last = 0

    def make(self, kind: str, action: str, subject: str, attributes: dict[str, str]) -> Event:
        # strictly rising, so that a `since` never shows one event twice
        self._last = max(time.time_ns(), self._last + 1)
        return Event(time=self._last, type=kind, action=action, id=subject, attributes=attributes)

    def publish(self, event: Event) -> None:
        for follower in self.followers:
            follower.put(event)

    def emit(self, kind: str, action: str, subject: str, attributes: dict[str, str]) -> None:
        """A disk that takes no more of them must not stop what they tell of."""
        event = self.make(kind, action, subject, attributes)
        try:
            self._db.add(row(event))
        except KnarrError as error:
            _log.warning("event %s %s of %s: %s", kind, action, subject, error.message)
        self.publish(event)

    async def read(self, since: int | None, until: int | None, *, follow: bool) -> AsyncIterator[Event]:
        """Past events from `since` on (none without it), then the coming ones until `until` or for ever."""
        with Follower(self) as follower:
            now = time.time_ns()
            seen = 0
            if since is not None:
                for item in self._db.events(since, until or _FOREVER):
                    seen = item.time
                    yield _event(item)
            if not follow:
                return
            while until is None or now < until:
                left = None if until is None else (until - time.time_ns()) / 1e9
                try:
                    event = await asyncio.wait_for(follower.next(), left)
                except TimeoutError:
                    return
                if event.time > seen:
                    yield event
                now = time.time_ns()


def row(event: Event) -> EventRow:
    """The database's form."""
    return EventRow(
        time=event.time,
        type=event.type,
        action=event.action,
        id=event.id,
        attributes=_encode(event.attributes),
    )


def _event(item: EventRow) -> Event:
    return Event(
        time=item.time,
        type=item.type,
        action=item.action,
        id=item.id,
        attributes=json.loads(item.attributes),
    )
