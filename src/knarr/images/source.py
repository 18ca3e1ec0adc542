"""What an image to be ingested looks like, whoever brings it: registry, archive, bootstrap.

Only the values that the sources and the store share; no I/O here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager


class Progress(Protocol):
    """Called from worker threads. `total` is None where the size isn't known."""

    def update(self, item: str, phase: str, done: int, total: int | None) -> None: ...


class NoProgress:
    """For callers that don't watch."""

    def update(self, item: str, phase: str, done: int, total: int | None) -> None:
        pass


def never() -> bool:
    """The `cancel` of callers that never cancel."""
    return False


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One layer blob, compressed as it is kept or sent."""

    digest: str
    """`sha256:…` of the blob as `open` yields it; empty = not known before it has been read"""
    media_type: str
    """empty = judged by its first bytes, which are judged anyway"""
    size: int | None
    """bytes of the blob, None = unknown"""
    open: Callable[[], AbstractContextManager[Iterator[bytes]]]
    """a new pass over the blob's bytes; called once per ingest, not at all if the layer is already known"""
    resume: Callable[[int], AbstractContextManager[Iterator[bytes]]] | None = None
    """the bytes from an offset on, unverified; what an interrupted ingest had of it is kept for the next"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSource:
    manifest: bytes
    """the manifest exactly as its digest counts it; empty = the store makes one (archives without one)"""
    manifest_digest: str
    """`sha256:…`; empty with an empty manifest"""
    config: bytes
    layers: tuple[Layer, ...]
    """bottom first, one per diff id of the config"""
    references: tuple[str, ...]
    """canonical references that the image gets"""
    keep_blobs: bool = True
    """store the compressed layers for push and save"""
