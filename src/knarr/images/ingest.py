"""One image into the store: layers in parallel, one merged tree, durable files, then one transaction.

Order: contents, blobs and tree are written and synced under names nobody reads; then, with the store's
lock, files are renamed into place and the rows committed. Whatever fails or is killed before leaves no
image, and the store's recovery or the ingest's own way back removes what was written. Out of scope: where
bytes come from (`source`), the queries.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import zstandard

from knarr.images import erofs, partial
from knarr.images.config import make_manifest, parse_config, parse_manifest
from knarr.images.pool import session as pool_session
from knarr.images.tree import Entry, merge
from knarr.images.unpack import Meter, unpack_layer
from knarr.model.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Callable

    from knarr.images.pool import Session
    from knarr.images.source import ImageSource, Layer, Progress
    from knarr.images.store import ImageStore

TREE_FORMAT = 1
"""part of a tree's name: raise it when the writer's output changes"""
_PARALLEL = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadyLayer:
    diff_id: str
    digest: str
    size: int
    media_type: str
    entries: bytes
    """packed"""
    blocks: bytes
    """the pool blocks (u32) at which the layer's contents begin, each once"""
    kept: str | None
    """where its blob waits to be published"""


def tree_id(diff_ids: tuple[str, ...]) -> str:
    text = "\n".join((f"knarr tree {TREE_FORMAT}", *diff_ids))
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def pack_entries(entries: list[Entry]) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(msgspec.msgpack.encode(entries))


def unpack_entries(data: bytes) -> list[Entry]:
    return msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(data), type=list[Entry])


class Ingest:
    def __init__(
        self,
        store: ImageStore,
        source: ImageSource,
        progress: Progress,
        cancel: Callable[[], bool],
        folder: str,
    ) -> None:
        self._store = store
        self._source = source
        self._progress = progress
        self._folder = folder
        self._meter = Meter(store.limits, cancel)
        self._failed = False
        self._cancel = cancel
        self._entries: dict[str, list[Entry]] = {}
        self.config, self.diff_ids = parse_config(source.config, store.limits)
        self.id = digest_of(source.config)
        self._check_source()
        self.tree_id = tree_id(self.diff_ids)

    def _check_source(self) -> None:
        source = self._source
        if len(source.layers) != len(self.diff_ids):
            raise Invalid(f"image has {len(source.layers)} layers, its config tells of {len(self.diff_ids)}")
        if not source.manifest:
            return
        if digest_of(source.manifest) != source.manifest_digest:
            raise Invalid(f"image manifest does not match its digest {source.manifest_digest!r}")
        manifest = parse_manifest(source.manifest, self._store.limits)
        if manifest.config_digest != self.id:
            raise Invalid(
                f"image config does not match the digest {manifest.config_digest!r} in its manifest"
            )
        if [digest for digest, _ in manifest.layers] != [layer.digest for layer in source.layers]:
            raise Invalid("image's layers are not those of its manifest")

    def run(self) -> None:
        """Make the image durable and visible; on return it is."""
        names = [
            self.tree_id,
            *self.diff_ids,
            *(layer.digest for layer in self._source.layers if layer.digest),
        ]
        with self._store.pinned(names), pool_session(self._store.pool) as session:
            layers = self._layers(session)
            flusher = _Flusher(session, self._store.pool.fd)
            try:
                tree = self._tree()
            finally:
                flusher.join()
            flusher.check()
            self._meter.check()
            self._publish(session, layers, tree)

    # --- layers -----------------------------------------------------------------------------------

    def _layers(self, session: Session) -> list[ReadyLayer]:
        self._meter = Meter(self._store.limits, lambda: self._failed or self._cancel())
        with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="knarr-image") as workers:
            jobs = [
                workers.submit(self._layer, session, index, layer)
                for index, layer in enumerate(self._source.layers)
            ]
            errors = [error for job in jobs if (error := job.exception()) is not None]
        if errors:
            # later ones may only say that the first one stopped them
            raise errors[0] if self._first is None else self._first
        return [job.result() for job in jobs]

    _first: BaseException | None = None

    def _layer(self, session: Session, index: int, layer: Layer) -> ReadyLayer:
        try:
            self._meter.check()
            return self._known(index, layer) or self._read(session, index, layer)
        except BaseException as error:
            if self._first is None:
                self._first = error
            self._failed = True
            raise

    def _known(self, index: int, layer: Layer) -> ReadyLayer | None:
        """A layer that the store has under this digest and diff id need not be read."""
        diff_id = self.diff_ids[index]
        found = self._store.known_layer(layer.digest, diff_id) if layer.digest else None
        if found is None or (self._source.keep_blobs and not self._store.has_blob(layer.digest)):
            return None
        size, entries, blocks = found
        self._progress.update(_label(layer, index), "exists", size, size)
        return ReadyLayer(
            diff_id=diff_id, digest=layer.digest, size=size, media_type=layer.media_type,
            entries=entries, blocks=blocks, kept=None,
        )  # fmt: skip

    def _read(self, session: Session, index: int, layer: Layer) -> ReadyLayer:
        label = _label(layer, index)
        name = f"layer-{index}" if layer.resume is None else partial.name(layer.digest, index)
        keep = os.path.join(self._folder, name) if self._source.keep_blobs else None
        layer = partial.continued(self._store.partials, layer)
        unpacked = unpack_layer(layer, session.writer(), self._meter, self._progress, label=label, keep=keep)
        if layer.digest and unpacked.digest != layer.digest:
            raise Invalid(f"layer {label} does not match its digest: got {unpacked.digest}")
        if unpacked.diff_id != self.diff_ids[index]:
            raise Invalid(
                f"layer {label} decompresses to {unpacked.diff_id}, not to its diff id {self.diff_ids[index]}"
            )
        self._entries[unpacked.diff_id] = unpacked.entries
        blocks = sorted({entry.block for entry in unpacked.entries if entry.block})
        partial.drop(self._store.partials, layer.digest)
        self._progress.update(label, "complete", unpacked.size, unpacked.size)
        return ReadyLayer(
            diff_id=unpacked.diff_id, digest=unpacked.digest, size=unpacked.size,
            media_type=unpacked.media_type,
            entries=pack_entries(unpacked.entries), blocks=struct.pack(f"<{len(blocks)}I", *blocks),
            kept=unpacked.kept,
        )  # fmt: skip

    # --- tree -------------------------------------------------------------------------------------

    def _tree(self) -> tuple[str, erofs.Written] | None:
        """(path, facts) of the tree, written and synced; None if the store has it."""
        if self._store.has_tree(self.tree_id):
            return None
        self._progress.update("image", "assembling", 0, None)
        root = merge(
            self._entries[diff_id] if diff_id in self._entries else self._stored(diff_id)
            for diff_id in self.diff_ids
        )
        path = os.path.join(self._folder, "tree")
        with open(path, "xb", buffering=0) as file:
            written = erofs.write_tree(root, file.write)
            os.fdatasync(file.fileno())
        return path, written

    def _stored(self, diff_id: str) -> list[Entry]:
        entries = unpack_entries(self._store.layer_entries(diff_id))
        for entry in entries:
            self._meter.entry(len(entry.path) + len(entry.link) + len(entry.inline) + len(entry.sparse))
        return entries

    # --- publishing -------------------------------------------------------------------------------

    def _publish(
        self, session: Session, layers: list[ReadyLayer], tree: tuple[str, erofs.Written] | None
    ) -> None:
        source = self._source
        manifest = source.manifest or make_manifest(
            self.id, len(source.config), [(layer.digest, layer.size, layer.media_type) for layer in layers]
        )
        digest = digest_of(manifest)
        blobs: dict[str, str | None] = {
            digest: self._written("manifest", manifest),
            self.id: self._written("config", source.config),
        }
        for layer in layers:
            if source.keep_blobs:
                blobs.setdefault(layer.digest, layer.kept)
        self._store.publish(
            session, layers, tree, blobs,
            row=(self.id, digest, self.tree_id, source.config, "\n".join(self.diff_ids), "\n".join(blobs),
                 time.time_ns()),
            references=source.references,
        )  # fmt: skip

    def _written(self, name: str, data: bytes) -> str:
        path = os.path.join(self._folder, name)
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fdatasync(file.fileno())
        return path


class _Flusher(threading.Thread):
    """The pool's fsync, while the tree is being made."""

    def __init__(self, session: Session, fd: int) -> None:
        super().__init__(name="knarr-flush", daemon=True)
        self._session = session
        self._fd = fd
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._session.flush()
            os.fdatasync(self._fd)
        except BaseException as error:  # raised again by `check`
            self._error = error

    def check(self) -> None:
        if self._error is not None:
            raise self._error


def _label(layer: Layer, index: int) -> str:
    return layer.digest.removeprefix("sha256:")[:12] or f"layer {index + 1}"
