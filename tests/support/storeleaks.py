"""What an image store has that no image needs, read from its files beside the store's own code.

Out of scope: whether what it needs is whole (`image check`).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3

BLOCK = 4096


def found(store: str) -> list[str]:
    """Sentences; none is good. The store must not be busy."""
    path = os.path.join(store, "pool.db")
    if not os.path.exists(path):
        return []
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        leaks = _files(store, db) + _rows(db) + _extents(os.path.join(store, "pool"), db)
        if (db.execute("SELECT value FROM state WHERE name = 'dirty'").fetchone() or (0,))[0]:
            leaks.append("store: marked as dirty")
    temporary = os.path.join(store, "tmp")
    leaks += [f"store: temporary {name}" for name in os.listdir(temporary)]
    leaks += [f"store: {name}" for name in os.listdir(store) if name.startswith(("incoming-", "archive-"))]
    return leaks


def trees(store: str) -> set[str]:
    path = os.path.join(store, "pool.db")
    if not os.path.exists(path):
        return set()
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return {tree for (tree,) in db.execute("SELECT tree_id FROM trees")}


def _files(store: str, db: sqlite3.Connection) -> list[str]:
    blobs = {
        digest.removeprefix("sha256:")
        for (text,) in db.execute("SELECT blobs FROM images")
        for digest in text.split("\n")
    }
    kept = [tree for (tree,) in db.execute("SELECT tree_id FROM trees")]
    wanted = {
        "blobs/sha256": blobs,
        "trees": {f"{tree}.erofs" for tree in kept},
        "maps": {f"{tree}.qcow2" for tree in kept},
    }
    leaks = []
    for folder, names in wanted.items():
        there = set(os.listdir(os.path.join(store, folder)))
        leaks += [f"store: {folder}/{name} is nobody's" for name in sorted(there - names)]
        if folder != "maps":
            leaks += [f"store: {folder}/{name} is missing" for name in sorted(names - there)]
    return leaks


def _rows(db: sqlite3.Connection) -> list[str]:
    used = {diff for (text,) in db.execute("SELECT layers FROM images") for diff in text.split("\n")}
    layers = {diff for (diff,) in db.execute("SELECT diff_id FROM layers")}
    leaks = [f"store: layer {diff} is nobody's" for diff in sorted(layers - used)]
    leaks += [f"store: layer {diff} is missing" for diff in sorted(used - layers)]
    (dead,) = db.execute("SELECT count(*) FROM contents WHERE refs <= 0").fetchone()
    (blobs,) = db.execute(
        "SELECT count(*) FROM layer_blobs WHERE diff_id NOT IN (SELECT diff_id FROM layers)"
    ).fetchone()
    (homeless,) = db.execute(
        "SELECT count(*) FROM trees WHERE tree_id NOT IN (SELECT tree_id FROM images)"
    ).fetchone()
    told = {
        "contents without a use": dead,
        "layer blobs without a layer": blobs,
        "trees without an image": homeless,
    }
    return leaks + [f"store: {count} {what}" for what, count in told.items() if count]


def _extents(pool: str, db: sqlite3.Connection) -> list[str]:
    """Data in the pool that no row names, by the holes the file system tells of."""
    named = db.execute("SELECT block, blocks FROM contents ORDER BY block").fetchall()
    fd = os.open(pool, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        gaps, at = [], BLOCK
        for block, blocks in named:
            gaps.append((at, block * BLOCK))
            at = (block + blocks) * BLOCK
        gaps.append((at, size))
        return [f"pool: data at {start} to {end}" for gap in gaps for start, end in _data(fd, *gap)]
    finally:
        os.close(fd)


def _data(fd: int, start: int, end: int) -> list[tuple[int, int]]:
    pieces = []
    while start < end:
        try:
            begin = os.lseek(fd, start, os.SEEK_DATA)
        except OSError:
            break
        if begin >= end:
            break
        start = min(os.lseek(fd, begin, os.SEEK_HOLE), end)
        pieces.append((begin, start))
    return pieces
