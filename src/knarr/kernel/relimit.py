"""Limits of a group whose processes run: written whole or not at all.

Out of scope: which file holds which limit (`kernel.limits`).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from knarr.kernel import cgroups, limits

if TYPE_CHECKING:
    from knarr.kernel.cgroups import Layout
    from knarr.kernel.limits import Files
    from knarr.model.workload import Resources, Update

_NONE: dict[str, tuple[object, ...]] = {"memory_swap": (0,)}


def change(layout: Layout, paths: dict[str, str], old: Resources, new: Resources) -> None:
    """Raises OSError after writing the old ones again."""
    before, after = files(layout, paths, old), files(layout, paths, new)
    wanted = tuple(item for item in after if item not in before)
    try:
        write(wanted)
    except OSError:
        touched = {path for path, _ in wanted}
        write(tuple(item for item in before if item[0] in touched))
        raise


def files(layout: Layout, paths: dict[str, str], resources: Resources) -> Files:
    """What the limits are, and "no limit" in so many words for what may be taken back."""
    if not layout.version:
        return ()
    return tuple({**dict(limits.free(layout, paths)), **dict(limits.files(layout, paths, resources))}.items())


def write(wanted: Files) -> None:
    """Files may bound each other (memory with and without swap), so what is refused is tried again."""
    later = []
    for path, value in wanted:
        try:
            cgroups.write(path, value)
        except OSError:
            later.append((path, value))
    for path, value in reversed(later):
        cgroups.write(path, value)


def merged(old: Resources, wanted: Update) -> Resources:
    """None keeps; 0, an empty text and -1 take a limit back. Where "none" is not what stands without a word
    (processes, swap), it is a value of its own.
    """
    changes: dict[str, object] = {}
    for name in (item.name for item in dataclasses.fields(old) if hasattr(wanted, item.name)):
        value = getattr(wanted, name)
        if value is not None:
            changes[name] = None if value in _NONE.get(name, (0, -1, "")) else value
    if wanted.pids is not None:
        changes["pids"] = wanted.pids or -1
    return dataclasses.replace(old, **changes)  # type: ignore[arg-type]
