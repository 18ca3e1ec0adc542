"""Folders that are to go: now, or again and again until they have gone.

What a daemon's death leaves of one goes when the next daemon starts. Out of scope: how a tree is removed
(`store.trees`).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from knarr.store.trees import Removal

_log = logging.getLogger(__name__)
_FIRST_PAUSE, _LAST_PAUSE = 0.5, 30.0
_INLINE_ENTRIES = 200
"""A tree with more entries is removed in a thread."""
_tasks: set[asyncio.Task[None]] = set()


async def remove(removal: Removal, name: str, pause: float = _FIRST_PAUSE) -> None:
    """Never raises OSError; `name` is for the log. Returns after the first try."""
    try:
        if not removal.run(_INLINE_ENTRIES):
            await asyncio.to_thread(removal.run)
    except (OSError, RuntimeError) as error:
        _log.warning("%s can't be removed yet: %s", name, error)
        # a timer, not a task: it must not hold up the daemon's end
        asyncio.get_running_loop().call_later(pause, _again, removal, name, min(2 * pause, _LAST_PAUSE))


def _again(removal: Removal, name: str, pause: float) -> None:
    task = asyncio.ensure_future(remove(removal, name, pause))
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
