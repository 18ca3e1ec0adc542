"""pool.db: which contents, layers, trees, images and references the store holds.

Plain SQL over one connection; the caller (`store`) holds its lock around every call and begins and ends
transactions. A row means that what it names is durable: rows are written after the fsync of pool, blobs and
tree.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

from knarr.model.errors import Conflict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FORMAT = 1

_SCHEMA = """
CREATE TABLE contents (block INTEGER PRIMARY KEY, blocks INTEGER NOT NULL, sha BLOB NOT NULL UNIQUE,
    refs INTEGER NOT NULL);
CREATE TABLE layers (diff_id TEXT PRIMARY KEY, entries BLOB NOT NULL, contents BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE layer_blobs (digest TEXT PRIMARY KEY, diff_id TEXT NOT NULL, size INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE trees (tree_id TEXT PRIMARY KEY, size INTEGER NOT NULL, extents BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE images (id TEXT PRIMARY KEY, digest TEXT NOT NULL, tree_id TEXT NOT NULL, config BLOB NOT NULL,
    layers TEXT NOT NULL, blobs TEXT NOT NULL, pulled INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE image_references (reference TEXT PRIMARY KEY, image TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE state (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


class Records:
    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "cache_size=-8192", "temp_store=MEMORY"):
            self._db.execute(f"PRAGMA {pragma}")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > FORMAT:
            raise Conflict(
                f"image store {path!r} has format {version}, newer than {FORMAT}",
                hint="use the newer knarr on it",
            )
        if version == 0:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={FORMAT}; COMMIT;")

    def close(self) -> None:
        self._db.close()

    def begin(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self._db.execute("COMMIT")

    def rollback(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def all(self, sql: str, *values: Any) -> list[Any]:
        return self._db.execute(sql, values).fetchall()

    def one(self, sql: str, *values: Any) -> Any:
        return self._db.execute(sql, values).fetchone()

    def run(self, sql: str, *values: Any) -> None:
        self._db.execute(sql, values)

    def run_many(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        self._db.executemany(sql, rows)

    # --- what the pool asks -----------------------------------------------------------------------

    def content(self, sha: bytes) -> tuple[int, int] | None:
        """(block, blocks)"""
        row: tuple[int, int] | None = self._db.execute(
            "SELECT block, blocks FROM contents WHERE sha = ?", (sha,)
        ).fetchone()
        return row

    def contents(self) -> Iterator[tuple[int, int]]:
        """(block, blocks) of all, by block."""
        return iter(self._db.execute("SELECT block, blocks FROM contents ORDER BY block"))

    def end(self) -> int:
        """The block behind the last recorded content."""
        row = self._db.execute("SELECT block + blocks FROM contents ORDER BY block DESC LIMIT 1").fetchone()
        return int(row[0]) if row else 1

    def flag(self, name: str) -> int:
        row = self._db.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else 0

    def set_flag(self, name: str, value: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, value))
