"""What no image needs any more: layers, contents, trees, maps, blobs; and the clean-up after a crash.

Rows go first, in the caller's transaction; holes are punched and files unlinked after its commit. The flag
`dirty` is up from before the first change until nothing is left to clean, so a crash in between ends in
`recover`. All calls with the store's lock held.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import Counter

    from knarr.images.pool import Pool
    from knarr.images.records import Records


@dataclass(kw_only=True, slots=True)
class Doomed:
    extents: list[tuple[int, int]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    """relative to the store"""


class Collector:
    def __init__(self, root: str, records: Records, pool: Pool, pins: Counter[str]) -> None:
        self._root = root
        self._records = records
        self._pool = pool
        self._pins = pins

    def recover(self) -> None:
        """After a crash: drop rows and files that no image needs, holes where no row points."""
        self._records.begin()
        try:
            self.unreferenced()
            self._records.commit()
        finally:
            self._records.rollback()
        for folder, wanted in self._wanted_files().items():
            for name in os.listdir(os.path.join(self._root, folder)):
                if name not in wanted:
                    os.unlink(os.path.join(self._root, folder, name))
        self._pool.recover()
        self._records.set_flag("dirty", 0)

    def settle(self) -> None:
        """After an ingest or a removal: nothing is in flight any more, so take the flag down."""
        if self._pool.busy:
            return
        if self._records.flag("loose"):
            # a removal found contents in use by an ingest that has ended since
            self._records.begin()
            try:
                doomed = self.unreferenced()
                self._records.set_flag("loose", 0)
                self._records.commit()
            finally:
                self._records.rollback()
            self.destroy(doomed)
        self._pool.shrink()
        self._records.set_flag("dirty", 0)

    def unreferenced(self) -> Doomed:
        """Delete the rows, inside the caller's transaction; what they stood for is returned."""
        doomed = Doomed()
        self._drop_layers()
        self._drop_contents(doomed)
        self._drop_trees(doomed)
        self._find_blobs(doomed)
        return doomed

    def destroy(self, doomed: Doomed) -> None:
        for name in doomed.files:
            try:
                os.unlink(os.path.join(self._root, name))
            except FileNotFoundError:
                pass
        self._pool.free(doomed.extents)

    def _drop_layers(self) -> None:
        used: set[str] = set()
        for (layers,) in self._records.all("SELECT layers FROM images"):
            used.update(layers.split("\n"))
        for (diff_id,) in self._records.all("SELECT diff_id FROM layers"):
            if diff_id in used:
                continue
            if self._pins[diff_id]:
                self._records.set_flag("loose", 1)
                continue
            (blocks,) = self._records.one("SELECT contents FROM layers WHERE diff_id = ?", diff_id)
            self._records.run_many(
                "UPDATE contents SET refs = refs - 1 WHERE block = ?", struct.iter_unpack("<I", blocks)
            )
            self._records.run("DELETE FROM layers WHERE diff_id = ?", diff_id)
            self._records.run("DELETE FROM layer_blobs WHERE diff_id = ?", diff_id)

    def _drop_contents(self, doomed: Doomed) -> None:
        for block, blocks, sha in self._records.all(
            "SELECT block, blocks, sha FROM contents WHERE refs <= 0"
        ):
            if self._pool.pinned(sha):
                self._records.set_flag("loose", 1)
                continue
            self._records.run("DELETE FROM contents WHERE block = ?", block)
            doomed.extents.append((block, blocks))

    def _drop_trees(self, doomed: Doomed) -> None:
        rows = self._records.all(
            "SELECT tree_id FROM trees WHERE tree_id NOT IN (SELECT tree_id FROM images)"
        )
        for (tree_id,) in rows:
            if self._pins[tree_id]:
                self._records.set_flag("loose", 1)
                continue
            self._records.run("DELETE FROM trees WHERE tree_id = ?", tree_id)
            doomed.files += [f"trees/{tree_id}.erofs", f"maps/{tree_id}.qcow2"]

    def _find_blobs(self, doomed: Doomed) -> None:
        wanted = self._wanted_blobs()
        for name in os.listdir(os.path.join(self._root, "blobs/sha256")):
            if name in wanted:
                continue
            if self._pins["sha256:" + name]:
                self._records.set_flag("loose", 1)
                continue
            doomed.files.append(f"blobs/sha256/{name}")

    def _wanted_blobs(self) -> set[str]:
        return {
            digest.removeprefix("sha256:")
            for (blobs,) in self._records.all("SELECT blobs FROM images")
            for digest in blobs.split("\n")
        }

    def _wanted_files(self) -> dict[str, set[str]]:
        trees = [row[0] for row in self._records.all("SELECT tree_id FROM trees")]
        return {
            "blobs/sha256": self._wanted_blobs(),
            "trees": {f"{tree}.erofs" for tree in trees},
            "maps": {f"{tree}.qcow2" for tree in trees},
        }
