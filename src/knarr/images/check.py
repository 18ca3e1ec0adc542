"""`image check`: index, pool, trees, maps and blobs against their digests; repairs in place.

Contents never move, so a repair writes the right bytes where the wrong ones are, out of the layer's blob.
What only a registry has (blobs) is told. Interrupted at any point it can be run again. The caller holds the
images.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from knarr.images import erofs
from knarr.images.decompress import decompressed
from knarr.images.ingest import unpack_entries
from knarr.images.qcow2 import make_map
from knarr.images.repair import Repairer
from knarr.images.tree import merge
from knarr.images.unpack import Meter, Unpacker
from knarr.model.errors import Failed, KnarrError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from knarr.images.source import Progress
    from knarr.images.store import ImageStore
    from knarr.images.tree import Entry
    from knarr.model.resource import Image

BLOCK = 4096
_PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    item: str
    fact: str
    repaired: bool
    hint: str = ""


@dataclass(kw_only=True)
class Checker:
    store: ImageStore
    progress: Progress
    cancel: Callable[[], bool]
    repair: bool
    problems: list[Problem] = field(default_factory=list)

    def run(self) -> list[Problem]:
        images = self.store.list()
        self._index()
        good = self._blobs(images)
        self._layers(images, good)
        for number, image in enumerate(images):
            self._step("trees", number, len(images))
            self._tree(image)
            self._map(image)
        return self.problems

    def _step(self, phase: str, done: int, total: int) -> None:
        if self.cancel():
            raise Failed("the check was cancelled", hint="what was repaired stays repaired")
        self.progress.update("images", phase, done, total)

    def _found(self, item: str, fact: str, *, repaired: bool = False, hint: str = "") -> None:
        self.problems.append(Problem(item=item, fact=fact, repaired=repaired, hint="" if repaired else hint))

    @property
    def _hint(self) -> str:
        return "" if self.repair else "knarr image check --repair"

    # --- index ------------------------------------------------------------------------------------

    def _index(self) -> None:
        records = self.store.records
        with self.store.lock:
            for (line,) in records.all("PRAGMA integrity_check"):
                if line != "ok":
                    self._found("index", str(line), hint="restore ROOT/images/default/pool.db from a backup")
            wanted: Counter[int] = Counter()
            for (blocks,) in records.all("SELECT contents FROM layers"):
                wanted.update(block for (block,) in struct.iter_unpack("<I", blocks))
            have = dict(records.all("SELECT block, refs FROM contents"))
            wrong = [(wanted[block], block) for block, refs in have.items() if refs != wanted[block]]
            if wrong:
                if self.repair:
                    records.run_many("UPDATE contents SET refs = ? WHERE block = ?", wrong)
                fact = f"{len(wrong)} contents are counted wrongly"
                self._found("index", fact, repaired=self.repair, hint=self._hint)
        lost = len(wanted.keys() - have.keys())
        if lost:
            self._found(
                "index", f"{lost} contents have no place", hint="remove the images and pull them again"
            )

    # --- blobs ------------------------------------------------------------------------------------

    def _blobs(self, images: tuple[Image, ...]) -> set[str]:
        """The digests of those that are as they should be."""
        wanted: dict[str, Image] = {}
        for image in images:
            row = self.store.records.one("SELECT blobs FROM images WHERE id = ?", image.id)
            for digest in row[0].split("\n") if row is not None else ():
                wanted.setdefault(digest, image)
        good = set()
        for number, (digest, image) in enumerate(wanted.items()):
            self._step("blobs", number, len(wanted))
            fact = self._blob_fact(digest)
            if not fact:
                good.add(digest)
            else:
                self._bad_blob(digest, image, fact)
        return good

    def _blob_fact(self, digest: str) -> str:
        seen = hashlib.sha256()
        try:
            with open(self.store.blob(digest), "rb", buffering=0) as file:
                while piece := file.read(_PIECE):
                    seen.update(piece)
        except KnarrError:
            return "is missing"
        except OSError as error:
            return f"can't be read: {error.strerror}"
        return "" if f"sha256:{seen.hexdigest()}" == digest else "does not match its digest"

    def _bad_blob(self, digest: str, image: Image, fact: str) -> None:
        name = image.references[0] if image.references else image.id
        item = f"blob {digest} of {name}"
        if self.repair and digest == image.id:
            row = self.store.records.one("SELECT config FROM images WHERE id = ?", image.id)
            if f"sha256:{hashlib.sha256(row[0]).hexdigest()}" == digest:
                self.store.replace_blob(digest, row[0])
                self._found(item, fact, repaired=True)
                return
        if self.repair:
            # with it gone the next pull fetches it
            self.store.drop_blob(digest)
        hint = f"knarr image pull {name}" if self.repair else f"knarr image check --repair, then pull {name}"
        self._found(item, fact, hint=hint)

    # --- pool -------------------------------------------------------------------------------------

    def _layers(self, images: tuple[Image, ...], good: set[str]) -> None:
        names = {diff_id: image for image in images for diff_id in image.layers}
        seen: set[int] = set()
        for number, (diff_id, image) in enumerate(names.items()):
            self._step("contents", number, len(names))
            name = image.references[0] if image.references else image.id
            bad = self._bad_contents(diff_id, seen)
            if bad:
                self._bad_layer(diff_id, name, bad, good)

    def _bad_contents(self, diff_id: str, seen: set[int]) -> set[int]:
        """Blocks at which contents begin that are not what the index says. Sparse ones need the blob."""
        with self.store.lock:
            row = self.store.records.one("SELECT entries FROM layers WHERE diff_id = ?", diff_id)
            shas = dict(self.store.records.all("SELECT block, sha FROM contents"))
        if row is None:
            self._found(
                f"layer {diff_id}", "is not in the index", hint="remove its images and pull them again"
            )
            return set()
        bad = set()
        for entry in unpack_entries(row[0]):
            if not entry.block or entry.block in seen:
                continue
            seen.add(entry.block)
            if self.cancel():
                raise Failed("the check was cancelled", hint="what was repaired stays repaired")
            if entry.sparse or not self._sound(entry, shas.get(entry.block)):
                bad.add(entry.block)
        return bad

    def _sound(self, entry: Entry, sha: bytes | None) -> bool:
        """The content, and zeros from its end to the end of its last block."""
        seen = hashlib.sha256()
        at, end = entry.block * BLOCK, entry.block * BLOCK + entry.size
        while at < end:
            piece = os.pread(self.store.pool.fd, min(_PIECE, end - at), at)
            if not piece:
                break
            seen.update(piece)
            at += len(piece)
        rest = os.pread(self.store.pool.fd, -entry.size % BLOCK, end)
        return seen.digest() == sha and not any(rest)

    def _bad_layer(self, diff_id: str, name: str, bad: set[int], good: set[str]) -> None:
        """Read the layer's blob again beside the pool: it judges, and with `repair` it mends."""
        row = self.store.records.one("SELECT digest FROM layer_blobs WHERE diff_id = ?", diff_id)
        item = f"layer {diff_id} of {name}"
        if row is None or row[0] not in good:
            fact = f"{len(bad)} files' contents are damaged or can't be judged without its blob"
            self._found(item, fact, hint=f"knarr image pull {name}, then knarr image check --repair")
            return
        repairer = Repairer(self.store, mend=self.repair, folder=self.store.root)
        pieces = decompressed(self._blob_pieces(row[0]), self.store.limits)
        Unpacker(repairer, Meter(self.store.limits, self.cancel)).run(pieces)
        repairer.finish()
        if repairer.wrong:
            fact = f"{len(repairer.wrong)} files' contents are damaged in the pool"
            self._found(item, fact, repaired=self.repair, hint=self._hint)

    def _blob_pieces(self, digest: str) -> Iterator[bytes]:
        with open(self.store.blob(digest), "rb", buffering=0) as file:
            while piece := file.read(_PIECE):
                if self.cancel():
                    raise Failed("the check was cancelled", hint="what was repaired stays repaired")
                yield piece

    # --- trees and maps ---------------------------------------------------------------------------

    def _tree(self, image: Image) -> None:
        pieces: list[bytes] = []
        try:
            root = merge(unpack_entries(self.store.layer_entries(diff_id)) for diff_id in image.layers)
        except TypeError:
            return  # a layer that is not in the index is told already
        erofs.write_tree(root, lambda data: pieces.append(bytes(data)))
        right = b"".join(pieces)
        if _content(image.rootfs.tree) == right:
            return
        if self.repair:
            self.store.replace_file(image.rootfs.tree, right)
        self._found(
            f"tree of {image.id}", "is not what its layers make", repaired=self.repair, hint=self._hint
        )

    def _map(self, image: Image) -> None:
        path = image.rootfs.disk_map
        row = self.store.records.one("SELECT extents FROM trees WHERE tree_id = ?", image.rootfs.tree_id)
        if not os.path.exists(path) or row is None:
            return
        right = make_map(list(struct.iter_unpack("<II", row[0])), "../pool")
        if _content(path) == right:
            return
        if self.repair:
            self.store.replace_file(path, right)
        self._found(f"map of {image.id}", "is not what its tree needs", repaired=self.repair, hint=self._hint)


def _content(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None
