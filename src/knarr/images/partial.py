"""What interrupted pulls had of a layer: kept by digest, read first by the next pull, then gone on with.

Nothing is believed of it: the whole blob's digest is judged at the end, and bytes that do not fit are
dropped. Out of scope: asking for the rest (`registry`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from knarr.images.source import Layer

_PREFIX = "partial-"
_PIECE = 1 << 20
_LEAST = 64 << 10
"""bytes worth keeping"""
_SECONDS = 7 * 24 * 3600.0


def name(digest: str, index: int) -> str:
    """Of a layer's file while it is being written; `index` tells equal layers of one image apart."""
    return f"{_PREFIX}{digest.removeprefix('sha256:')}-{index}"


def save(folder: str, partials: str) -> None:
    """Keep what an ingest that did not end well has written in its folder."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if not entry.name.startswith(_PREFIX) or entry.stat().st_size < _LEAST:
                continue
            digest = entry.name.removeprefix(_PREFIX).partition("-")[0]
            os.makedirs(partials, mode=0o700, exist_ok=True)
            if _size(os.path.join(partials, digest)) < entry.stat().st_size:
                os.rename(entry.path, os.path.join(partials, digest))


def expire(partials: str) -> None:
    """Nobody came back for them in a week."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(partials):
            if entry.stat().st_mtime < time.time() - _SECONDS:
                os.unlink(entry.path)


def drop(partials: str, digest: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(_path(partials, digest))


def continued(partials: str, layer: Layer) -> Layer:
    """The layer with its first bytes from here, if some are."""
    path = _path(partials, layer.digest)
    have = _size(path)
    resume = layer.resume
    if resume is None or layer.size is None or not 0 < have <= layer.size:
        return layer

    @contextlib.contextmanager
    def opened() -> Iterator[Iterator[bytes]]:
        with open(path, "rb", buffering=0) as file, resume(have) as rest:
            yield _joined(iter(lambda: file.read(_PIECE), b""), rest)

    return dataclasses.replace(layer, open=opened)


def _joined(first: Iterator[bytes], rest: Iterator[bytes]) -> Iterator[bytes]:
    yield from first
    yield from rest


def _path(partials: str, digest: str) -> str:
    return os.path.join(partials, digest.removeprefix("sha256:") or "none")


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
