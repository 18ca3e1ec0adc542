"""The images of one trust domain, as values: ingest, get, list, tag, remove, prune.

One daemon owns the folder; its threads may call anything at any time. The lock covers the records and
renames, never the reading of a layer. Out of scope: where images come from, mounting, who uses which image
(the engine says).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import struct
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from knarr.images import partial
from knarr.images.catalog import Catalog, canonical
from knarr.images.collect import Collector
from knarr.images.config import parse_config
from knarr.images.ingest import Ingest, ReadyLayer
from knarr.images.limits import DEFAULT, Limits
from knarr.images.pool import Pool, Session
from knarr.images.pool import session as pool_session
from knarr.images.qcow2 import make_map
from knarr.images.records import Records
from knarr.images.source import NoProgress, never
from knarr.model.errors import Conflict, Failed, Invalid, KnarrError, NotFound, Unavailable
from knarr.model.resource import Image, ImageConfig, RootFs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from knarr.images.erofs import Written
    from knarr.images.source import ImageSource, Progress

_FOLDERS = ("blobs", "blobs/sha256", "trees", "maps")


class ImageStore:
    def __init__(self, root: str, limits: Limits = DEFAULT) -> None:
        self.root = os.path.abspath(root)
        self.limits = limits
        self.lock = threading.RLock()
        for name in ("", *_FOLDERS):
            os.makedirs(os.path.join(self.root, name), mode=0o700, exist_ok=True)
        self._temporary = os.path.join(self.root, "tmp")
        self.partials = os.path.join(self.root, "partial")
        for name in os.listdir(self._temporary) if os.path.isdir(self._temporary) else ():
            partial.save(os.path.join(self._temporary, name), self.partials)
        partial.expire(self.partials)
        shutil.rmtree(self._temporary, ignore_errors=True)
        os.makedirs(self._temporary, mode=0o700, exist_ok=True)
        with _readable(self.root):
            self._open()

    def _open(self) -> None:
        self.records = Records(os.path.join(self.root, "pool.db"))
        self.pool = Pool(os.path.join(self.root, "pool"), self.records, self.lock)
        self.pins: Counter[str] = Counter()
        self._counter = 0
        self._jobs: set[str] = set()
        """folders of ingests that are under way"""
        self._collector = Collector(self.root, self.records, self.pool, self.pins)
        if self.records.flag("dirty"):
            self._collector.recover()
        self._catalog = Catalog({}, {})
        self._reload()

    def close(self) -> None:
        self.pool.close()
        self.records.close()

    # --- questions --------------------------------------------------------------------------------

    def get(self, name: str) -> Image:
        """By id, unique prefix of an id, digest or reference. Raises `NotFound`."""
        return self._catalog.find(name)[0]

    def list(self) -> tuple[Image, ...]:
        """Newest first."""
        return tuple(self._catalog.images.values())

    def blob(self, digest: str) -> str:
        """Path of a kept blob. Raises `NotFound`."""
        path = self._blob_path(digest)
        if not os.path.exists(path):
            raise NotFound(f"blob {digest!r} is not here")
        return path

    def usage(self) -> dict[str, int]:
        """What the store takes. `distinct`: pool + trees + index, each content rounded up to 4 KiB."""
        with self.lock:
            contents, blocks = self.records.one("SELECT count(*), coalesce(sum(blocks), 0) FROM contents")
        trees = _folder_size(os.path.join(self.root, "trees"))
        index = sum(_size(os.path.join(self.root, name)) for name in ("pool.db", "pool.db-wal"))
        return {
            "images": len(self._catalog.images),
            "contents": contents,
            "pool": blocks * 4096,
            "pool_allocated": os.fstat(self.pool.fd).st_blocks * 512,
            "trees": trees,
            "index": index,
            "maps": _folder_size(os.path.join(self.root, "maps")),
            "blobs": _folder_size(os.path.join(self.root, "blobs/sha256")),
            "distinct": blocks * 4096 + trees + index,
        }

    # --- changes ----------------------------------------------------------------------------------

    def ingest(
        self, source: ImageSource, progress: Progress | None = None, cancel: Callable[[], bool] = never
    ) -> Image:
        """Take an image in; synchronous, for a worker thread. Nothing is kept of one that fails."""
        with self.lock:
            self._counter += 1
            folder = os.path.join(self._temporary, str(self._counter))
            self._jobs.add(folder)
        try:
            with _translated():
                os.mkdir(folder, 0o700)
                with self.lock:
                    self.records.set_flag("dirty", 1)
                job = Ingest(self, source, progress or NoProgress(), cancel, folder)
                job.run()
        except (Failed, Unavailable):
            partial.save(folder, self.partials)
            raise
        except Invalid:
            for layer in source.layers:
                partial.drop(self.partials, layer.digest)
            raise
        finally:
            self._sweep(folder)
            # what can't be cleaned now, on a full disk, is when the store is opened next: the flag stays up
            with self.lock, contextlib.suppress(OSError, sqlite3.Error):
                self._collector.settle()
        with self.lock:
            return self._catalog.images[job.id]

    def _sweep(self, folder: str) -> None:
        """What could not be removed when its ingest ended goes with a later one's."""
        with self.lock:
            self._jobs.discard(folder)
            with contextlib.suppress(OSError):
                there = {entry.path for entry in os.scandir(self._temporary) if entry.name.isdigit()}
                for path in there - self._jobs:
                    shutil.rmtree(path, ignore_errors=True)

    def tag(self, name: str, reference: str) -> None:
        full = canonical(reference)
        if "@" in full:
            raise Invalid(f"reference {reference!r} has a digest, a tag is wanted")
        with self.lock:
            image = self._catalog.find(name)[0]
            self.records.run("INSERT OR REPLACE INTO image_references VALUES (?, ?)", full, image.id)
            self._reload()

    def remove(self, name: str, force: bool = False) -> tuple[str, ...]:  # noqa: FBT001, FBT002 - the agreed form
        """Untag, and delete with the last tag. Returns lines `untagged: …`, `deleted: …`."""
        with self.lock:
            image, reference = self._catalog.find(name)
            references = image.references
            if reference is None and len(references) > 1 and not force:
                raise Conflict(
                    f"image {name!r} has {len(references)} tags",
                    hint="remove them one by one, or use --force",
                )
            gone = (reference,) if reference is not None else references
            return self._drop([(image.id, gone, set(gone) == set(references))])

    def prune(self, everything: bool, used: set[str]) -> tuple[str, ...]:  # noqa: FBT001 - the agreed form
        """Delete images without a tag (`everything`: any) that are not in `used` (ids)."""
        with self.lock:
            chosen = [
                (image.id, image.references, True)
                for image in self._catalog.images.values()
                if image.id not in used and (everything or not image.references)
            ]
            return self._drop(chosen)

    def _drop(self, chosen: Sequence[tuple[str, tuple[str, ...], bool]]) -> tuple[str, ...]:
        lines = []
        with self._transaction():
            for image_id, references, last in chosen:
                for reference in references:
                    self.records.run("DELETE FROM image_references WHERE reference = ?", reference)
                    lines.append(f"untagged: {reference}")
                if last:
                    self.records.run("DELETE FROM images WHERE id = ?", image_id)
                    lines.append(f"deleted: {image_id}")
            self.records.set_flag("dirty", 1)
            doomed = self._collector.unreferenced()
        self._reload()
        with _translated():
            self._collector.destroy(doomed)
            self._collector.settle()
        return tuple(lines)

    def disk_map(self, rootfs: RootFs) -> str:
        """The per-image qcow2 of the pool, made on first use."""
        with self.lock:
            if os.path.exists(rootfs.disk_map):
                return rootfs.disk_map
            row = self.records.one("SELECT extents FROM trees WHERE tree_id = ?", rootfs.tree_id)
            if row is None:
                raise NotFound(f"image tree {rootfs.tree_id!r} is not here")
            extents = list(struct.iter_unpack("<II", row[0]))
            temporary = os.path.join(self._temporary, rootfs.tree_id)
            with open(temporary, "wb") as file:
                file.write(make_map(extents, "../pool"))
                file.flush()
                os.fdatasync(file.fileno())
            os.rename(temporary, rootfs.disk_map)
            return rootfs.disk_map

    @contextlib.contextmanager
    def held(self, images: Iterable[Image]) -> Iterator[None]:
        """Whatever is removed meanwhile, nothing of these is destroyed before the end."""
        with self.lock:
            rows = [
                self.records.one("SELECT blobs, layers, tree_id FROM images WHERE id = ?", image.id)
                for image in images
            ]
        keys = [key for row in rows if row is not None for key in "\n".join(row).split("\n")]
        try:
            with self.pinned(keys), pool_session(self.pool):
                yield
        finally:
            with self.lock, contextlib.suppress(OSError, sqlite3.Error):
                self._collector.settle()

    def replace_blob(self, digest: str, data: bytes) -> None:
        self.replace_file(self._blob_path(digest), data)

    def drop_blob(self, digest: str) -> None:
        """A damaged one: the next pull fetches it again."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._blob_path(digest))

    def replace_file(self, path: str, data: bytes) -> None:
        """A blob, tree or map as it should be, whole or not at all."""
        with _translated():
            temporary = os.path.join(self._temporary, f"repair-{os.path.basename(path)}")
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fdatasync(file.fileno())
            os.rename(temporary, path)

    def blob_size(self, digest: str) -> int:
        """0 for one that is not kept."""
        return _size(self._blob_path(digest))

    def collect(self) -> int:
        """Give back all that no image needs; the bytes freed. Raises `Conflict` while images come in."""
        with self.lock, _translated():
            if self.pool.busy:
                raise Conflict("images are being taken in or given out", hint="try again when that is done")
            before = self._taken()
            shutil.rmtree(self.partials, ignore_errors=True)
            self._collector.recover()
            return max(0, before - self._taken())

    def _taken(self) -> int:
        folders = (os.path.join(self.root, name) for name in ("blobs/sha256", "trees", "maps"))
        return os.fstat(self.pool.fd).st_blocks * 512 + sum(map(_folder_size, folders))

    # --- for `ingest` -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def pinned(self, keys: Sequence[str]) -> Iterator[None]:
        """Layers, blobs and trees of these names are not collected meanwhile."""
        with self.lock:
            self.pins.update(keys)
        try:
            yield
        finally:
            with self.lock:
                self.pins -= Counter(keys)

    def known_layer(self, digest: str, diff_id: str) -> tuple[int, bytes, bytes] | None:
        """(blob size, packed entries, blocks)"""
        with self.lock:
            row: tuple[int, bytes, bytes] | None = self.records.one(
                "SELECT size, entries, contents FROM layer_blobs JOIN layers USING (diff_id)"
                " WHERE digest = ? AND diff_id = ?",
                digest,
                diff_id,
            )
            return row

    def layer_entries(self, diff_id: str) -> bytes:
        with self.lock:
            data: bytes = self.records.one("SELECT entries FROM layers WHERE diff_id = ?", diff_id)[0]
            return data

    def has_blob(self, digest: str) -> bool:
        return os.path.exists(self._blob_path(digest))

    def has_tree(self, tree_id: str) -> bool:
        with self.lock:
            return self.records.one("SELECT 1 FROM trees WHERE tree_id = ?", tree_id) is not None

    def publish(
        self,
        session: Session,
        layers: Sequence[ReadyLayer],
        tree: tuple[str, Written] | None,
        blobs: Mapping[str, str | None],
        *,
        row: tuple[Any, ...],
        references: tuple[str, ...],
    ) -> None:
        """Everything named here is on disk: rename it into place and record it."""
        with self.lock:
            for digest, path in blobs.items():
                if path is not None and not self.has_blob(digest):
                    os.rename(path, self._blob_path(digest))
            if tree is not None and not self.has_tree(row[2]):
                os.rename(tree[0], self._tree_path(row[2]))
            for folder in ("blobs/sha256", "trees"):
                _sync_folder(os.path.join(self.root, folder))
            with self._transaction():
                self._record(session, layers, tree, row, references)
            session.recorded()
            self._reload()

    def _record(
        self,
        session: Session,
        layers: Sequence[ReadyLayer],
        tree: tuple[str, Written] | None,
        row: tuple[Any, ...],
        references: tuple[str, ...],
    ) -> None:
        run, run_many = self.records.run, self.records.run_many
        run_many("INSERT INTO contents VALUES (?, ?, ?, 0)", session.rows())
        for layer in layers:
            if self.records.one("SELECT 1 FROM layers WHERE diff_id = ?", layer.diff_id) is None:
                run("INSERT INTO layers VALUES (?, ?, ?)", layer.diff_id, layer.entries, layer.blocks)
                blocks = struct.iter_unpack("<I", layer.blocks)
                run_many("UPDATE contents SET refs = refs + 1 WHERE block = ?", blocks)
            run(
                "INSERT OR REPLACE INTO layer_blobs VALUES (?, ?, ?)", layer.digest, layer.diff_id, layer.size
            )
        if tree is not None:
            facts = tree[1]
            extents = b"".join(struct.pack("<II", *extent) for extent in facts.extents)
            run("INSERT OR IGNORE INTO trees VALUES (?, ?, ?)", row[2], facts.size, extents)
        before = self.records.one("SELECT blobs FROM images WHERE id = ?", row[0])
        if before is not None and before[0] != row[5]:
            # the same image in other blobs: the old ones go when the ingest settles
            self.records.set_flag("loose", 1)
        run("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?, ?)", *row)
        for reference in references:
            run("INSERT OR REPLACE INTO image_references VALUES (?, ?)", reference, row[0])

    # --- insides ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with _translated():
            self.records.begin()
            try:
                yield
                self.records.commit()
            finally:
                self.records.rollback()

    def _reload(self) -> None:
        references: dict[str, str] = dict(
            self.records.all("SELECT reference, image FROM image_references ORDER BY reference")
        )
        tags: dict[str, list[str]] = {}
        for reference, image in references.items():
            tags.setdefault(image, []).append(reference)
        rows = self.records.all(
            "SELECT id, digest, tree_id, size, config, layers FROM images JOIN trees USING (tree_id)"
            " ORDER BY pulled DESC, id"
        )
        self._catalog = Catalog({row[0]: self._image(row, tags.get(row[0], ())) for row in rows}, references)

    def _image(self, row: tuple[str, str, str, int, bytes, str], references: Iterable[str]) -> Image:
        image_id, digest, tree_id, size, config, layers = row
        parsed = self._stored_config(config)
        return Image(
            id=image_id,
            digest=digest,
            references=tuple(references),
            created=parsed.created,
            size=size,
            rootfs=RootFs(
                tree_id=tree_id,
                tree=self._tree_path(tree_id),
                pool=self.pool.path,
                disk_map=os.path.join(self.root, "maps", f"{tree_id}.qcow2"),
            ),
            config=parsed,
            layers=tuple(layers.split("\n")) if layers else (),
        )

    def _stored_config(self, data: bytes) -> ImageConfig:
        """One that an earlier, laxer version took in can be listed and removed, and keeps no daemon down.

        It can't be run: that would be as root, for want of a user that can be read.
        """
        try:
            return parse_config(data, self.limits)[0]
        except KnarrError:
            return ImageConfig(user=_UNREADABLE)

    def _blob_path(self, digest: str) -> str:
        return os.path.join(self.root, "blobs/sha256", digest.removeprefix("sha256:"))

    def _tree_path(self, tree_id: str) -> str:
        return os.path.join(self.root, "trees", f"{tree_id}.erofs")


_UNREADABLE = "unreadable-image-config"


@contextlib.contextmanager
def _readable(root: str) -> Iterator[None]:
    """What a broken disk made of the index is told, not followed."""
    try:
        yield
    except (sqlite3.Error, struct.error, TypeError, UnicodeError) as error:
        raise Failed(
            f"image store {root!r} has an index that can't be read: {error}",
            hint="move that folder away, then pull or load the images again",
        ) from error


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        raise Unavailable(
            f"image store can't be written: {text or error}", hint="is the disk full?"
        ) from error


def _sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _folder_size(path: str) -> int:
    return sum(_size(entry.path) for entry in os.scandir(path))
