"""What an instance takes on the disk: images and what they share, writable layers, logs.

Out of scope: how it is shown; what an image is made of (`images.compare`).
"""

from __future__ import annotations

import asyncio
import os
import stat
from typing import TYPE_CHECKING, Any

from knarr.images import compare

if TYPE_CHECKING:
    from knarr.engine.driver import Workload
    from knarr.engine.engine import Engine


async def usage(engine: Engine) -> dict[str, Any]:
    found = [entry.w for entry in engine.table]
    used = engine.images_in_use()
    images = await asyncio.to_thread(compare.usage, engine.images.store, used)
    workloads = await asyncio.to_thread(lambda: [_workload(w) for w in found])
    other = await asyncio.to_thread(engine.images.store.usage)
    return {
        **images,
        "trees": other["trees"],
        "index": other["index"],
        "maps": other["maps"],
        "workloads": workloads,
        "workloads_reclaimable": sum(
            row["layer"] + row["logs"] for row in workloads if row["status"] in ("created", "exited")
        ),
    }


def _workload(w: Workload) -> dict[str, Any]:
    return {
        "id": w.id,
        "name": w.name,
        "status": w.status.value,
        "image": w.spec.image,
        "isolation": w.spec.isolation.value,
        "layer": layer_size(w.dir),
        "logs": _allocated(os.path.join(w.dir, "log")),
    }


def layer_size(folder: str) -> int:
    """Bytes on the disk of the writable layer below a workload's folder."""
    return sum(_allocated(os.path.join(folder, name)) for name in ("upper", "upper.img"))


def _allocated(path: str) -> int:
    """Bytes of a tree on the disk, a file with several names once; what goes meanwhile is nothing."""
    seen: set[tuple[int, int]] = set()
    total, todo = 0, [path]
    while todo:
        at = todo.pop()
        try:
            status = os.lstat(at)
            if stat.S_ISDIR(status.st_mode):
                todo += [entry.path for entry in os.scandir(at)]
        except OSError:
            continue
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            total += status.st_blocks * 512
    return total
