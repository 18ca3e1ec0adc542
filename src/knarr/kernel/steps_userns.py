"""Steps of a workload in a user namespace of its own, and of one that shares another's IPC.

The order is the point: image, writable layer and whatever only the host's root may mount come first, with
ids mapped mount by mount; then the child enters the namespace and makes the other ones from inside it, so
that they are the namespace's own. Out of scope: making the namespace and its maps (`keeper.userns`).
"""

from __future__ import annotations

from dataclasses import dataclass

from knarr.kernel import namespaces
from knarr.kernel.plan import Step, register


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Idmap(Step):
    """Ids in these detached mounts are the namespace's from here on: on disk 0 is root inside."""

    sources: tuple[tuple[str, str], ...]
    """(descriptor, what an error calls it)"""
    userns: str = "userns"

    def describe(self) -> str:
        return "ids mapped in " + ", ".join(path for _, path in self.sources)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class IdmapHere(Step):
    """Cover folders of the keeper's, in this process' own mounts, by themselves with mapped ids."""

    paths: tuple[str, ...]
    userns: str = "userns"

    def describe(self) -> str:
        return "ids mapped in " + ", ".join(self.paths)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class FsIds(Step):
    """What this process makes belongs to root inside; its privileges stay. An overlay that is mounted now
    works with these ids for ever.
    """

    uid: int
    gid: int

    def describe(self) -> str:
        return f"new files belong to {self.uid}:{self.gid}"


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class EnterUser(Step):
    """Become root of the user namespace that `fd` (or the process it is) has, with new namespaces of its
    own. The streams become that root's, which could not open them again otherwise.
    """

    fd: str
    uid: int
    gid: int
    """root inside, as the host counts"""
    flags: int = 0

    def describe(self) -> str:
        new = f", new namespaces: {namespaces.describe(self.flags)}" if self.flags else ""
        return f"enter user namespace, root inside is {self.uid}:{self.gid}{new}"


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class JoinedShm(Step):
    """The /dev/shm of the process that `fd` is, as a detached mount for `Bind`."""

    name: str
    fd: str

    def describe(self) -> str:
        return f"take the shared memory of {self.fd!r}"
