"""A second witness of an exec's end: the keeper tells it once, and a keeper killed in that moment never does.

The daemon's own pidfd does not depend on anybody. Workloads need none: their exits are repeated until the
daemon has recorded them.
"""

from __future__ import annotations

import asyncio
import os

from knarr.kernel import process
from knarr.model.state import EXIT_UNKNOWN

_GRACE = 3.0
"""seconds in which the keeper's own word is waited for"""


def watch(pid: int, ended: asyncio.Future[int]) -> None:
    """Settle `ended` with the status the kernel remembers, or unknown, when nobody else does."""
    try:
        pidfd = process.pidfd_open(pid)
    except (OSError, ValueError):
        # reaped before we looked, so the keeper has told it or will in a moment
        asyncio.get_running_loop().call_later(_GRACE, _settle, ended, EXIT_UNKNOWN)
        return
    loop = asyncio.get_running_loop()

    def gone() -> None:
        loop.remove_reader(pidfd)
        loop.call_later(_GRACE, judge)

    def judge() -> None:
        if not ended.done():
            status = process.pidfd_exit_status(pidfd)
            _settle(ended, EXIT_UNKNOWN if status is None else status)

    def release(_: object) -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)

    loop.add_reader(pidfd, gone)
    ended.add_done_callback(release)


def _settle(ended: asyncio.Future[int], status: int) -> None:
    if not ended.done():
        ended.set_result(status)
