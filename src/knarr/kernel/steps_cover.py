"""Steps that close a root after everything is mounted: masks, read-only paths, a read-only root.

Out of scope: which paths (`containers.security`), and mounting (`steps_mounts`).
"""

from __future__ import annotations

from dataclasses import dataclass

from knarr.kernel.plan import Step, register


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Mask(Step):
    """Cover what the kernel tells too much in: folders by an empty read-only tmpfs, files by /dev/null."""

    paths: tuple[str, ...]

    def describe(self) -> str:
        return "mask " + ", ".join(self.paths)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOnlyPaths(Step):
    """Bind each path onto itself, read-only."""

    paths: tuple[str, ...]

    def describe(self) -> str:
        return "read-only " + ", ".join(self.paths)


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOnlyRoot(Step):
    """`--read-only`: the root's own mount; what is mounted on it stays as it was made."""

    def describe(self) -> str:
        return "read-only root"
