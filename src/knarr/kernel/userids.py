"""Ids across a user namespace for who stands outside of it: made as its root, named as inside.

Out of scope: the namespace itself (`keeper.userns`, `kernel.steps_userns`).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
from typing import TYPE_CHECKING

from knarr.kernel import caps, libc
from knarr.model import namespaces

if TYPE_CHECKING:
    from collections.abc import Iterator

    from knarr.model.namespaces import IdMap

_setfsuid = libc.function("setfsuid", [ctypes.c_uint])
_setfsgid = libc.function("setfsgid", [ctypes.c_uint])


def act_as(uid: int, gid: int) -> None:
    """File system ids of this thread alone; the capabilities that the change takes away come back."""
    _setfsgid(gid)
    _setfsuid(uid)
    caps.set_own(caps.own()[0])


@contextlib.contextmanager
def acting(ids: IdMap | None) -> Iterator[None]:
    """What this thread makes meanwhile belongs to root inside: an overlay with mapped ids takes nothing of
    the host's root.
    """
    if ids is None:
        yield
        return
    act_as(*ids.root)
    try:
        yield
    finally:
        act_as(0, 0)


def to_host(ids: IdMap | None, uid: int, gid: int) -> tuple[int, int]:
    """Raises EINVAL for one that does not exist inside."""
    if ids is None:
        return uid, gid
    try:
        return namespaces.host_id(ids.uids, uid), namespaces.host_id(ids.gids, gid)
    except ValueError as error:
        raise OSError(errno.EINVAL, f"{error} into the workload's user namespace") from error


def to_inside(ids: IdMap | None, uid: int, gid: int) -> tuple[int, int]:
    if ids is None:
        return uid, gid
    return namespaces.inside_id(ids.uids, uid), namespaces.inside_id(ids.gids, gid)
