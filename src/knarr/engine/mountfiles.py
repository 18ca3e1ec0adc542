"""`cp` of a workload that does not run: paths below its binds and volumes are files of the host.

By the paths' text: a link inside that leads into a mount is not followed there. Out of scope: the rest of its
root (the drivers), and one that runs, whose own view has everything mounted.
"""

from __future__ import annotations

import os
import posixpath
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from knarr.engine.drivers import archives
from knarr.model.errors import Conflict, NotFound
from knarr.model.workload import MountKind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from knarr.engine.driver import PathStat, Workload
    from knarr.model.workload import Mount


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where on the host a path of a stopped workload is."""

    mount: Mount
    path: str
    """in the mount's folder"""
    name: str | None
    """its last component inside, when `path` does not tell"""


def find(w: Workload, path: str) -> Place | None:
    """None: it is in the root itself, or the workload runs."""
    if w.status.running:
        return None
    wanted = posixpath.normpath("/" + path.lstrip("/"))
    found: Mount | None = None
    for mount in w.mounts:
        target = posixpath.normpath(mount.target)
        inside = wanted == target or wanted.startswith(target + "/")
        if inside and mount.kind is not MountKind.TMPFS and (not found or len(target) > len(found.target)):
            found = replace(mount, target=target)
    if found is None:
        return None
    rest = wanted[len(found.target) :]
    content = path.endswith(("/.", "/"))
    name = None if rest or path.endswith("/.") else posixpath.basename(found.target)
    return Place(mount=found, path=(rest or "/") + ("/." if content else ""), name=name)


async def stat_path(w: Workload, place: Place) -> PathStat:
    with _opened(w, place) as (root, path):
        found = await archives.stat_path(root, w.name, path)
    return found if place.name is None else replace(found, name=place.name)


async def get(w: Workload, place: Place, write: Callable[[bytes], Awaitable[None]]) -> None:
    with _opened(w, place) as (root, path):
        await archives.get(root, w.name, path, write, base=place.name)


async def put(w: Workload, place: Place, read: Callable[[], Awaitable[bytes]]) -> None:
    if place.mount.read_only:
        raise Conflict(f"{w.name}:{place.mount.target} is mounted read-only")
    with _opened(w, place) as (root, path):
        await archives.put(root, w.name, path, read)


@contextmanager
def _opened(w: Workload, place: Place) -> Iterator[tuple[int, str]]:
    """A folder of the host and a path in it; nothing leads out of that folder."""
    source = place.mount.source or ""
    folder, path = source, place.path
    if not os.path.isdir(source):
        folder, path = os.path.dirname(source), "/" + os.path.basename(source)
    try:
        root = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound(f"{w.name}:{place.mount.target}: {source!r} is not there") from error
    try:
        yield root, path
    finally:
        os.close(root)
