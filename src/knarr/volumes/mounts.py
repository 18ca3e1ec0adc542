"""Mounts that a user asks for, checked before anything is made: targets, sources, options.

Out of scope: mounting (`kernel.steps`, the guest's agent) and the volumes behind the names (`volumes.store`).
"""

from __future__ import annotations

import dataclasses
import os
import posixpath
import re

from knarr.model.errors import Invalid
from knarr.model.workload import Mount, MountKind
from knarr.volumes.store import check_name

_PROPAGATION = frozenset({"private", "rprivate", "shared", "rshared", "slave", "rslave"})
_BIND = frozenset({"idmap", "bind-nonrecursive"})
_FLAGS = frozenset({"noexec", "exec", "nosuid", "suid", "nodev", "dev", "ro", "rw", "noatime", "relatime"})
_VALUED = re.compile(r"size=[0-9]+[kKmMgG%]?|mode=[0-7]{1,4}|uid=[0-9]{1,10}|gid=[0-9]{1,10}", re.ASCII)
_RESERVED = ("/", "/proc", "/sys", "/dev")


def check(mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
    """The same mounts with clean paths, parents before children. Raises `Invalid`, `Unsupported`."""
    clean = [_check(mount) for mount in mounts]
    targets = [mount.target for mount in clean]
    for target in targets:
        if targets.count(target) > 1:
            raise Invalid(f"mount target {target!r} is given twice")
    # a child mounted before its parent would be hidden by it
    return tuple(sorted(clean, key=lambda mount: mount.target.count("/")))


def _check(mount: Mount) -> Mount:
    target = _target(mount.target)
    if mount.kind is MountKind.VOLUME:
        return _volume(mount, target)
    if mount.kind is MountKind.TMPFS:
        return _tmpfs(mount, target)
    return _bind(mount, target)


def _target(target: str) -> str:
    if not target.startswith("/") or "\0" in target:
        raise Invalid(f"mount target {target!r} is not an absolute path")
    clean = posixpath.normpath("/" + target.lstrip("/"))
    if clean in _RESERVED:
        raise Invalid(f"mount target {clean!r} belongs to the wall itself", hint="choose another folder")
    return clean


def _tmpfs(mount: Mount, target: str) -> Mount:
    if mount.source is not None:
        raise Invalid(f"tmpfs at {target!r} has a source", hint="leave it out")
    for option in mount.options:
        if option not in _FLAGS and not _VALUED.fullmatch(option):
            raise Invalid(
                f"tmpfs option {option!r} is unknown", hint="size=, mode=, uid=, gid=, noexec, exec …"
            )
    return dataclasses.replace(mount, target=target)


def _volume(mount: Mount, target: str) -> Mount:
    if mount.source is not None:
        check_name(mount.source)
    for option in mount.options:
        if option != "nocopy":
            raise Invalid(f"volume option {option!r} is unknown", hint="nocopy")
    return dataclasses.replace(mount, target=target)


def _bind(mount: Mount, target: str) -> Mount:
    source = mount.source or ""
    if not source.startswith("/") or "\0" in source:
        raise Invalid(f"mount source {source!r} is not an absolute path")
    for option in mount.options:
        if option not in _PROPAGATION | _BIND:
            raise Invalid(f"bind option {option!r} is unknown", hint=", ".join(sorted(_PROPAGATION | _BIND)))
    return dataclasses.replace(mount, target=target, source=os.path.normpath("/" + source.lstrip("/")))


def require_sources(mounts: tuple[Mount, ...]) -> None:
    """Raises `Invalid` when a bind's source is missing (right before a start: folders come and go)."""
    for mount in mounts:
        if mount.kind is MountKind.BIND and not os.path.lexists(mount.source or ""):
            raise Invalid(f"mount source {mount.source!r} does not exist", hint="make the folder first")
