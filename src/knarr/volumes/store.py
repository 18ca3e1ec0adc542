"""Named volumes: ROOT/volumes/<name>/{data, volume.json}, each a folder that walls mount.

A volume appears and goes by one rename. Copying an image's content into it ends in `fresh`; what a crash
leaves there is moved into `data` at the next start. Out of scope: who uses a volume (`engine.volumes`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from knarr.model.errors import Failed, Invalid, NotFound
from knarr.store.trees import PREFIX, Removal
from knarr.volumes import copyup

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}", re.ASCII)
_NEW = ".new-"
_COPYING = "copying"
_FRESH = "fresh"


@dataclass(frozen=True, kw_only=True, slots=True)
class Volume:
    name: str
    created: int
    """nanoseconds since the epoch"""
    labels: dict[str, str] = field(default_factory=dict)
    anonymous: bool = False
    """made for one workload that asked for a path only; removed with it where that is asked for"""


def check_name(name: str) -> str:
    """Docker's grammar; a volume's name is a path component. Raises `Invalid`."""
    if not _NAME.fullmatch(name):
        raise Invalid(
            f"{name[:100]!r} is not a volume's name",
            hint="two or more of A-Z a-z 0-9 _ . - and a letter or digit first; a host path begins with /",
        )
    return name


class VolumeStore:
    """All volumes of one ROOT, listed in memory. Raises `Failed` when the folder can't be used."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._known: dict[str, Volume] = {}
        try:
            self._recover()
        except OSError as error:
            raise Failed(f"{error.filename or folder}: {error.strerror}") from error

    def __iter__(self) -> Iterator[Volume]:
        return iter(tuple(self._known.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def get(self, name: str) -> Volume:
        found = self._known.get(name)
        if found is None:
            raise NotFound(f"no such volume: {name[:200]!r}", hint="knarr volume ls lists them")
        return found

    def data(self, name: str) -> str:
        """The folder to mount."""
        return os.path.join(self._folder, name, "data")

    def create(self, name: str, labels: dict[str, str], *, anonymous: bool = False) -> Volume:
        """An existing one is given as it is, as docker does."""
        check_name(name)
        if name in self._known:
            return self._known[name]
        made = Volume(name=name, created=time.time_ns(), labels=labels, anonymous=anonymous)
        place = os.path.join(self._folder, _NEW + secrets.token_hex(8))
        data = os.path.join(place, "data")
        try:
            os.mkdir(place, 0o700)
            os.mkdir(data)
            os.chmod(data, 0o755)
            _write(os.path.join(place, "volume.json"), made)
            os.rename(place, os.path.join(self._folder, name))
        except OSError:
            # what this can't remove goes at the next start
            with contextlib.suppress(OSError):
                Removal(place).run()
            raise
        self._known[name] = made
        return made

    def forget(self, name: str) -> str:
        """Take it out of the list; the folder that is left to be deleted."""
        place = os.path.join(self._folder, f"{PREFIX}{secrets.token_hex(8)}")
        os.rename(os.path.join(self._folder, name), place)
        del self._known[name]
        return place

    def is_empty(self, name: str) -> bool:
        with os.scandir(self.data(name)) as entries:
            return next(entries, None) is None

    def fill(self, name: str, root: int, path: str) -> None:
        """The content of the folder `path` beneath `root` into the empty volume."""
        base = os.path.join(self._folder, name)
        copying = os.path.join(base, _COPYING)
        Removal(copying).run()
        os.mkdir(copying, 0o700)
        if copyup.copy(root, path, copying):
            os.rename(copying, os.path.join(base, _FRESH))
            _publish(base)
        else:
            os.rmdir(copying)

    def _recover(self) -> None:
        with os.scandir(self._folder) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            base = os.path.join(self._folder, name)
            if name.startswith((_NEW, PREFIX)):
                Removal(base).run()
                continue
            Removal(os.path.join(base, _COPYING)).run()
            if os.path.isdir(os.path.join(base, _FRESH)):
                _publish(base)
            self._known[name] = _read(base, name)


def _publish(base: str) -> None:
    """Move the copy's entries into `data`, which running workloads may have mounted already."""
    fresh, data = (os.path.join(base, name) for name in (_FRESH, "data"))
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    source = os.open(fresh, flags)
    try:
        target = os.open(data, flags)
        try:
            times = os.fstat(source)
            for name in os.listdir(source):
                os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
            os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
            copyup.attributes(source, target)
        finally:
            os.close(target)
    finally:
        os.close(source)
    os.rmdir(fresh)


def _write(path: str, volume: Volume) -> None:
    values = {"created": volume.created, "labels": volume.labels, "anonymous": volume.anonymous}
    with open(path, "x", encoding="utf-8") as file:
        json.dump(values, file)
        file.flush()
        os.fsync(file.fileno())


def _read(base: str, name: str) -> Volume:
    """A record that can't be read costs the labels, never the data."""
    values: dict[str, Any] = {}
    try:
        with open(os.path.join(base, "volume.json"), encoding="utf-8") as file:
            values = json.load(file)
    except (OSError, ValueError):
        pass
    return Volume(
        name=name,
        created=int(values.get("created", 0)),
        labels=dict(values.get("labels", {})),
        anonymous=bool(values.get("anonymous", False)),
    )
