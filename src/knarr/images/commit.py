"""An image of another one and one more layer: its config with what was changed, its history, its blobs.

Out of scope: where the layer's bytes come from (`layer`), pausing whoever writes to it (engine).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from knarr.images import saving
from knarr.images.changes import change
from knarr.images.config import GZIP_LAYER_TYPE, strict_json
from knarr.images.source import ImageSource, Layer
from knarr.model.errors import Failed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from knarr.images.store import ImageStore
    from knarr.model.resource import Image

_PIECE = 1 << 20
_PLAIN_TYPE = GZIP_LAYER_TYPE.removesuffix("+gzip")
_DOCKER_TYPES = {
    "application/vnd.docker.image.rootfs.diff.tar.gzip": GZIP_LAYER_TYPE,
    "application/vnd.docker.image.rootfs.diff.tar": _PLAIN_TYPE,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    settings: dict[str, Any]
    """over the parent's `config` object"""
    changes: tuple[str, ...]
    """instructions, such as `CMD ["sh"]`"""
    author: str
    message: str
    command: str
    """what made the layer, for the history"""
    created: str
    references: tuple[str, ...]
    """canonical"""


def source(
    store: ImageStore, parent: Image, layer: IO[bytes], wanted: Wanted, cancel: Callable[[], bool]
) -> ImageSource:
    """`layer`: the whole tar. Raises `NotFound` when a blob of the parent's is not kept."""
    kept = saving.stored(store, parent)
    with open(store.blob(parent.id), "rb") as file:
        document = strict_json(file.read(), "image config", store.limits)
    return ImageSource(
        manifest=b"",
        manifest_digest="",
        config=_config(document, _digest(layer, cancel), wanted),
        layers=(*(_kept(store, blob) for blob in kept.layers), _new(layer)),
        references=wanted.references,
    )


def _config(document: dict[str, Any], diff_id: str, wanted: Wanted) -> bytes:
    for key in ("container", "container_config", "id", "parent", "parent_id"):
        document.pop(key, None)
    document["config"] = {**(document.get("config") or {}), **wanted.settings}
    change(document["config"], wanted.changes)
    document["created"] = wanted.created
    if wanted.author:
        document["author"] = wanted.author
    step = {
        "created": wanted.created,
        "created_by": wanted.command,
        "author": wanted.author,
        "comment": wanted.message,
    }
    document["history"] = [
        *(document.get("history") or ()), {key: text for key, text in step.items() if text}
    ]  # fmt: skip
    rootfs = document["rootfs"]
    document["rootfs"] = {"type": "layers", "diff_ids": [*(rootfs.get("diff_ids") or ()), diff_id]}
    return json.dumps(document, separators=(",", ":")).encode()


def _kept(store: ImageStore, blob: saving.Blob) -> Layer:
    @contextlib.contextmanager
    def opened() -> Iterator[Iterator[bytes]]:
        with open(store.blob(blob.digest), "rb", buffering=0) as file:
            yield iter(lambda: file.read(_PIECE), b"")

    kind = _DOCKER_TYPES.get(blob.media_type, blob.media_type)
    return Layer(digest=blob.digest, media_type=kind, size=blob.size, open=opened)


def _new(layer: IO[bytes]) -> Layer:
    def opened() -> contextlib.AbstractContextManager[Iterator[bytes]]:
        layer.seek(0)
        return contextlib.nullcontext(iter(lambda: layer.read(_PIECE), b""))

    return Layer(digest="", media_type="", size=None, open=opened)


def _digest(layer: IO[bytes], cancel: Callable[[], bool]) -> str:
    seen = hashlib.sha256()
    layer.seek(0)
    while piece := layer.read(_PIECE):
        if cancel():
            raise Failed("committing was cancelled")
        seen.update(piece)
    return f"sha256:{seen.hexdigest()}"
