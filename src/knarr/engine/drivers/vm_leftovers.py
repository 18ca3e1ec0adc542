"""What a daemon that was killed left of machines that it was about to start, or that only it could use.

Run once when a daemon takes over, before anything can start. Out of scope: machines of workloads that live.
"""

from __future__ import annotations

import glob
import logging
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from knarr.engine.driver import Services

_log = logging.getLogger(__name__)
_SOCKETS = ("agent", "qmp", "stdin", "in")


async def sweep(services: Services, running: Collection[str]) -> None:
    """`running` is what the keeper has: only its sockets stay in the holder, and no helper serves nobody."""
    for prefix in _SOCKETS:
        for name in services.holder.list(f"{prefix}/"):
            if name.split("/")[1] not in running:
                services.holder.delete(name)
    for path in glob.glob(os.path.join(glob.escape(services.run), "*.fs*.sock")):
        os.unlink(path)
    for key in running:
        workload, _, part = key.partition(".")
        # folder servers live as long as their machine; an idle machine belonged to the daemon that is dead
        if part and (part.startswith("cp") or workload not in running):
            try:
                await services.keeper.signal(key, signal.SIGKILL)
            except OSError as error:
                _log.warning("%s: %s", key, error)
