"""Which user namespace a container gets, and which ids of the host it stands for.

On disk every id is the one that is seen inside (the wall maps mount by mount), so a range may change between
two runs; only what is written into binds shows it. Out of scope: making the namespace (keeper).
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

from knarr.engine import sharing
from knarr.model.errors import Invalid
from knarr.model.namespaces import IdMap, UserMode, UserNamespace
from knarr.model.workload import Isolation, SecurityProfile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from knarr.engine.driver import Workload
    from knarr.engine.table import Table
    from knarr.model.workload import WorkloadSpec
    from knarr.store.ranges import Ranges
    from knarr.store.settings import SettingsFile

_SIZE = 1 << 16
_MOST = 1 << 24
_LEAST_START = 1 << 16
_LAST = (1 << 31) - 1
_AUTO = UserNamespace(mode=UserMode.AUTO)


class UserNamespaces:
    def __init__(self, ranges: Ranges, settings: SettingsFile, table: Table) -> None:
        self._ranges = ranges
        self._settings = settings
        self._table = table
        self._claims: dict[str, IdMap] = {}

    def complete(self, spec: WorkloadSpec) -> WorkloadSpec:
        """The spec with the mode that holds for it. Raises `Invalid`."""
        if spec.isolation is not Isolation.CONTAINER:
            return spec
        wanted = spec.userns
        if wanted is None and spec.security.profile is SecurityProfile.HARDENED:
            wanted = _AUTO
        if wanted is None:
            wanted = self._settings.read().userns
        if wanted is None or wanted.mode is UserMode.HOST:
            return spec if wanted is None else dataclasses.replace(spec, userns=wanted)
        _check(wanted)
        sharing.check_users(spec, wanted.mode)
        spec = dataclasses.replace(spec, userns=wanted)
        if wanted.mode is UserMode.KEEP_ID and spec.user is None:
            # as podman has it: who keeps an id wants to be that user
            return dataclasses.replace(spec, user=f"{_inside(wanted)[0]}:{_inside(wanted)[1]}")
        return spec

    def choose(self, spec: WorkloadSpec) -> IdMap | None:
        """Ids for a new workload. Raises `Unavailable`."""
        wanted = spec.userns
        if spec.isolation is not Isolation.CONTAINER or wanted is None or wanted.mode is UserMode.HOST:
            return None
        size = wanted.size or _SIZE
        if wanted.mode is UserMode.REMAP:
            start = self._ranges.shared() if wanted.start is None else wanted.start
            return IdMap(uids=((0, start, size),), gids=((0, start, size),))
        start = self._ranges.take(size, self._used())
        if wanted.mode is UserMode.AUTO:
            return IdMap(uids=((0, start, size),), gids=((0, start, size),))
        uid, gid = _inside(wanted)
        return IdMap(
            uids=_around(uid, wanted.owner_uid or 0, start, size),
            gids=_around(gid, wanted.owner_gid or 0, start, size),
        )

    @contextlib.contextmanager
    def claimed(self, w: Workload) -> Iterator[None]:
        """Nobody else gets its ids until it is in the table."""
        if w.ids is not None:
            self._claims[w.id] = w.ids
        try:
            yield
        finally:
            self._claims.pop(w.id, None)

    def renew(self, w: Workload) -> bool:
        """Before a start: its ids are this instance's. True when it got others, for another has them now."""
        wanted = w.spec.userns
        if w.ids is None or wanted is None or wanted.start is not None:
            return False
        if all(self._ranges.hold(start, count) for start, count in _ranges(w.ids, wanted)):
            return False
        w.ids = self.choose(w.spec)
        return True

    def release(self) -> None:
        self._ranges.release()

    def _used(self) -> list[tuple[int, int]]:
        maps = [*self._claims.values(), *(entry.w.ids for entry in self._table if entry.w.ids is not None)]
        return [
            (outside, count)
            for ids in maps
            for extents in (ids.uids, ids.gids)
            for _, outside, count in extents
        ]


def _ranges(ids: IdMap, wanted: UserNamespace) -> Iterator[tuple[int, int]]:
    for owner, extents in ((wanted.owner_uid, ids.uids), (wanted.owner_gid, ids.gids)):
        for _, outside, count in extents:
            if outside != owner:
                yield outside, count


def _inside(wanted: UserNamespace) -> tuple[int, int]:
    uid = wanted.owner_uid if wanted.uid is None else wanted.uid
    gid = wanted.owner_gid if wanted.gid is None else wanted.gid
    return uid or 0, gid or 0


def _around(inside: int, owner: int, start: int, size: int) -> tuple[tuple[int, int, int], ...]:
    """All ids from `start` on, but `inside`, which is the host's `owner`."""
    rows = ((0, start, inside), (inside, owner, 1), (inside + 1, start + inside + 1, size - inside - 1))
    return tuple(row for row in rows if row[2] > 0)


def _check(wanted: UserNamespace) -> None:
    size = wanted.size or _SIZE
    if wanted.size is not None and not 1 <= wanted.size < _MOST:
        raise Invalid(f"a user namespace of {wanted.size} ids can't be made", hint=f"1 to {_MOST - 1}")
    if wanted.start is not None and not _LEAST_START <= wanted.start <= _LAST - size:
        raise Invalid(
            f"remapping to {wanted.start} would hand out ids of the host's own users",
            hint=f"{_LEAST_START} to {_LAST - size}",
        )
    if wanted.mode is not UserMode.KEEP_ID:
        return
    if not wanted.owner_uid or not wanted.owner_gid:
        raise Invalid(
            "keep-id would make the host's root the workload's: it keeps the id of a plain user",
            hint="call knarr with sudo as that user, or use --userns auto",
        )
    if max(_inside(wanted)) >= size:
        raise Invalid(f"keep-id: {max(_inside(wanted))} is not among {size} ids", hint="add size=N")
