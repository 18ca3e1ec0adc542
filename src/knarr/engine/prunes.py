"""What `prune` may remove: docker's filters `until`, `label` and `label!`. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from knarr.model.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, kw_only=True, slots=True)
class Filters:
    until: int | None = None
    """nanoseconds since the epoch: only what was made before"""
    labels: tuple[tuple[str, str | None], ...] = ()
    """(name, value or None for any): each must be there"""
    without: tuple[tuple[str, str | None], ...] = ()
    """none of these may be there"""

    def match(self, created: int, labels: Mapping[str, str]) -> bool:
        if self.until is not None and created >= self.until:
            return False
        return all(_has(labels, *item) for item in self.labels) and not any(
            _has(labels, *item) for item in self.without
        )


def parse(texts: list[str], moment: Callable[[str, str], int]) -> Filters:
    """`KEY=VALUE` each; `moment(name, text)` reads a time. Raises `Invalid`."""
    until: int | None = None
    labels: list[tuple[str, str | None]] = []
    without: list[tuple[str, str | None]] = []
    for text in texts:
        key, equals, value = text.partition("=")
        if key == "until" and equals and until is None:
            until = moment("until", value)
        elif key in ("label", "label!") and value:
            name, given, wanted = value.partition("=")
            (labels if key == "label" else without).append((name, wanted if given else None))
        else:
            raise Invalid(
                f"filter {text[:200]!r} is unknown, or given twice",
                hint="until=24h, label=NAME[=VALUE], label!=NAME[=VALUE]",
            )
    return Filters(until=until, labels=tuple(labels), without=tuple(without))


def _has(labels: Mapping[str, str], name: str, value: str | None) -> bool:
    return name in labels and (value is None or labels[name] == value)
