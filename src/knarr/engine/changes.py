"""`diff`: what a workload changed, without what its start made. Pure."""

from __future__ import annotations

import os
import posixpath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from knarr.kernel.changes import Change

_MADE = frozenset(("/dev", "/proc", "/sys", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname", "/.dockerenv"))
"""where every start mounts something, so that overlay keeps an empty place for it"""


def present(found: Iterable[Change]) -> list[dict[str, str]]:
    """Sorted by path; a folder that only leads to others counts as changed when one of those is shown."""
    entries = [(kind, os.fsdecode(path)) for kind, path in found]
    kept = {path: kind for kind, path in entries if kind == "D" or (kind != "P" and path not in _MADE)}
    leading = {folder for path in kept for folder in _above(path)}
    kept |= {path: "C" for kind, path in entries if kind == "P" and path in leading}
    return [{"kind": kept[path], "path": path} for path in sorted(kept)]


def _above(path: str) -> list[str]:
    found = []
    while (path := posixpath.dirname(path)) != "/":
        found.append(path)
    return found
