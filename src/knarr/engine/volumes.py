"""Volumes as workloads use them: which a spec means, made and filled at creation, kept while in use.

Out of scope: the folders themselves (`volumes.store`) and mounting them (the walls).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from knarr.engine import removals
from knarr.model import names
from knarr.model.errors import Conflict, Failed, Invalid
from knarr.model.workload import Mount, MountKind
from knarr.store.trees import Removal
from knarr.volumes import mounts
from knarr.volumes.store import check_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from knarr.engine.driver import Workload
    from knarr.engine.events import EventLog
    from knarr.engine.prunes import Filters
    from knarr.engine.table import Table
    from knarr.keeper.link import KeeperLink
    from knarr.model.resource import Image
    from knarr.model.workload import WorkloadSpec
    from knarr.volumes.store import VolumeStore

_log = logging.getLogger(__name__)
_ANONYMOUS = "anonymous"
_NO_COPY = "nocopy"


class Volumes:
    """`volume create ls inspect rm prune`, and what creation and removal of workloads need."""

    def __init__(self, store: VolumeStore, table: Table, events: EventLog, keeper: KeeperLink) -> None:
        self._store = store
        self._table = table
        self._events = events
        self._keeper = keeper
        self._claims: dict[str, frozenset[str]] = {}
        self._filling: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    # what a spec means

    def complete(self, spec: WorkloadSpec, image: Image) -> WorkloadSpec:
        """The spec with the mounts of `--volumes-from` and of the image, and a name for every volume."""
        wanted = list(spec.mounts)
        targets = {mount.target for mount in wanted}
        for mount in (*self._inherited(spec), *_of_image(image)):
            if mount.target not in targets:
                targets.add(mount.target)
                wanted.append(mount)
        return dataclasses.replace(spec, mounts=tuple(_named(mount) for mount in mounts.check(tuple(wanted))))

    def _inherited(self, spec: WorkloadSpec) -> Iterator[Mount]:
        for text in spec.volumes_from:
            name, _, mode = text.partition(":")
            if mode not in ("", "ro", "rw"):
                raise Invalid(f"volumes from {text!r}: {mode!r} is neither ro nor rw", hint="WORKLOAD[:ro]")
            for mount in self._table.find(name).w.spec.mounts:
                if mount.kind is not MountKind.TMPFS:
                    options = tuple(item for item in mount.options if item != _ANONYMOUS)
                    read_only = mount.read_only or mode == "ro"
                    yield dataclasses.replace(mount, options=options, read_only=read_only)

    def resolve(self, wanted: tuple[Mount, ...]) -> tuple[Mount, ...]:
        """The mounts with the volumes' folders as their sources."""
        return tuple(
            dataclasses.replace(mount, source=self._store.data(mount.source or ""))
            if mount.kind is MountKind.VOLUME
            else mount
            for mount in wanted
        )

    # for workloads

    @contextlib.contextmanager
    def claimed(self, w: Workload) -> Iterator[None]:
        """Nobody removes its volumes until it is in the table; what a failed creation made for it goes."""
        used = _used(w)
        if not used:
            yield
            return
        self._claims[w.id] = used
        made = [name for name in used if name not in self._store]
        try:
            yield
        except BaseException:
            del self._claims[w.id]
            for name in made:
                if name in self._store and self._store.get(name).anonymous:
                    Removal(self._store.forget(name)).run()
            raise
        del self._claims[w.id]

    async def prepare(self, w: Workload) -> None:
        """Make what is missing, fill what is empty with what the image has there."""
        for mount in w.spec.mounts:
            if mount.kind is not MountKind.VOLUME or mount.source is None:
                continue
            name = mount.source
            if name not in self._store:
                self._create(name, {}, anonymous=_ANONYMOUS in mount.options)
            if _NO_COPY not in mount.options:
                async with self._filling[name]:
                    await self._fill(w, name, mount.target)

    async def _fill(self, w: Workload, name: str, target: str) -> None:
        try:
            if not self._store.is_empty(name):
                return
            place = os.path.join(w.dir, "image-root")
            try:
                root = await self._image(w, place)
                try:
                    await asyncio.to_thread(self._store.fill, name, root, target)
                finally:
                    os.close(root)
            finally:
                Removal(place).run()
        except OSError as error:
            raise Failed(f"volume {name!r}: copying {target!r} of the image: {error.strerror}") from error

    async def _image(self, w: Workload, place: str) -> int:
        """The image as a workload sees it, before any change; nothing is written into `place`."""
        upper, work = (os.path.join(place, name) for name in ("upper", "work"))
        for folder in (upper, work):
            os.makedirs(folder, 0o700)
        await self._keeper.mount(w.image.rootfs)
        return await self._keeper.root(tree_id=w.image.rootfs.tree_id, upper=upper, work=work)

    async def release(self, w: Workload) -> None:
        """After its removal: volumes without a name that nobody else uses."""
        for name in _used(w):
            if name in self._store and self._store.get(name).anonymous and not self._users(name):
                try:
                    await self._delete(name)
                except OSError as error:
                    _log.warning("volume %s: %s", name, error)

    # verbs

    def create(self, name: str, labels: dict[str, str]) -> dict[str, Any]:
        wanted = check_name(name) if name else names.new_id()
        if wanted not in self._store:
            self._create(wanted, labels, anonymous=not name)
        return self.inspect(wanted)

    def _create(self, name: str, labels: dict[str, str], *, anonymous: bool) -> None:
        self._store.create(name, labels, anonymous=anonymous)
        self._events.emit("volume", "create", name, {"driver": "local"})

    def ls(self) -> list[dict[str, Any]]:
        return [self.inspect(volume.name) for volume in sorted(self._store, key=lambda item: item.name)]

    def inspect(self, name: str) -> dict[str, Any]:
        volume = self._store.get(name)
        return {
            "name": volume.name,
            "driver": "local",
            "mountpoint": self._store.data(name),
            "created": volume.created,
            "labels": volume.labels,
            "anonymous": volume.anonymous,
            "used_by": self._users(name),
        }

    async def remove(self, name: str) -> None:
        """Raises `Conflict` with who uses it."""
        self._store.get(name)
        users = self._users(name)
        if users:
            raise Conflict(
                f"volume {name!r} is used by {', '.join(map(repr, users))}",
                hint="remove these workloads first",
            )
        await self._delete(name)

    async def prune(self, *, named: bool, filters: Filters) -> list[str]:
        """Remove those that no workload uses: without a name, or all of them."""
        unused = [
            item.name
            for item in self._store
            if (named or item.anonymous)
            and filters.match(item.created, item.labels)
            and not self._users(item.name)
        ]
        for name in unused:
            await self._delete(name)
        return unused

    async def _delete(self, name: str) -> None:
        place = self._store.forget(name)
        self._filling.pop(name, None)
        self._events.emit("volume", "destroy", name, {"driver": "local"})
        await removals.remove(Removal(place), f"volume {name}")

    def _users(self, name: str) -> list[str]:
        """Names of workloads in any state, and ids of those that are being made."""
        found = [entry.w.name for entry in self._table if name in _used(entry.w)]
        return found + [key[:12] for key, claimed in self._claims.items() if name in claimed]


def _used(w: Workload) -> frozenset[str]:
    return frozenset(
        mount.source for mount in w.spec.mounts if mount.kind is MountKind.VOLUME and mount.source
    )


def _of_image(image: Image) -> Iterator[Mount]:
    for target in image.config.volumes:
        yield Mount(kind=MountKind.VOLUME, target=os.path.normpath("/" + target.lstrip("/")))


def _named(mount: Mount) -> Mount:
    if mount.kind is not MountKind.VOLUME or mount.source:
        return mount
    return dataclasses.replace(mount, source=names.new_id(), options=(*mount.options, _ANONYMOUS))
