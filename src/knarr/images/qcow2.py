"""A map of the pool for one image's VMs: a qcow2 (version 3) without data of its own, whose data file is the
pool.

Only the given extents are mapped, at their own offsets; everything else of the disk reads as zeros, so a
guest's root can't see other images. Format: QEMU docs/interop/qcow2.txt. Out of scope: which extents,
starting QEMU.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CLUSTER = 4096
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_EXTERNAL_DATA = 1 << 2
_DATA_FILE_NAME = 0x44415441
_COPIED = 1 << 63
_L2_ENTRIES = CLUSTER // 8
_REFCOUNTS = CLUSTER // 2  # 16 bits each


def make_map(extents: Sequence[tuple[int, int]], data_file: str) -> bytes:
    """The qcow2 file. `extents`: (first block, count) of 4 KiB, sorted, none at block 0."""
    blocks = max((start + count for start, count in extents), default=1)
    tables = _l2_tables(extents)
    l1_entries = (blocks + _L2_ENTRIES - 1) // _L2_ENTRIES
    l1_clusters = _up(l1_entries * 8)
    fixed = 1 + l1_clusters + len(tables)
    counts_blocks, counts_tables = _refcount_sizes(fixed)
    # header | refcount table | refcount blocks | L1 | L2 tables
    counts_at = 1
    blocks_at = counts_at + counts_tables
    l1_at = blocks_at + counts_blocks
    l2_at = l1_at + l1_clusters
    used = l2_at + len(tables)
    parts = [
        _padded(_header(blocks, (l1_entries, l1_at), (counts_tables, counts_at), data_file)),
        _padded(
            struct.pack(f">{counts_blocks}Q", *((blocks_at + n) * CLUSTER for n in range(counts_blocks)))
        ),
        _padded(struct.pack(f">{used}H", *([1] * used)), counts_blocks),
        _padded(_l1_table(l1_entries, tables, l2_at), l1_clusters),
        *(struct.pack(f">{_L2_ENTRIES}Q", *table) for table in tables.values()),
    ]
    return b"".join(parts)


def _header(blocks: int, l1: tuple[int, int], counts: tuple[int, int], data_file: str) -> bytes:
    name = data_file.encode()
    (l1_entries, l1_at), (counts_tables, counts_at) = l1, counts
    header = _HEADER.pack(
        b"QFI\xfb", 3, 0, 0, 12, blocks * CLUSTER, 0, l1_entries, l1_at * CLUSTER, counts_at * CLUSTER,
        counts_tables, 0, 0, _EXTERNAL_DATA, 0, 0, 4, _HEADER.size,
    )  # fmt: skip
    extension = struct.pack(">II", _DATA_FILE_NAME, len(name)) + name + bytes(-len(name) % 8)
    return header + extension + struct.pack(">II", 0, 0)


def _l2_tables(extents: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    tables: dict[int, list[int]] = {}
    for start, count in extents:
        for block in range(start, start + count):
            index, slot = divmod(block, _L2_ENTRIES)
            table = tables.get(index)
            if table is None:
                table = tables[index] = [0] * _L2_ENTRIES
            table[slot] = block * CLUSTER | _COPIED
    return tables


def _l1_table(entries: int, tables: dict[int, list[int]], l2_at: int) -> bytes:
    l1 = [0] * entries
    for position, index in enumerate(tables):
        l1[index] = (l2_at + position) * CLUSTER | _COPIED
    return struct.pack(f">{entries}Q", *l1)


def _refcount_sizes(fixed: int) -> tuple[int, int]:
    """(refcount blocks, clusters of their table) that count `fixed` clusters and themselves."""
    blocks = tables = 1
    while True:
        total = fixed + blocks + tables
        wanted = (total + _REFCOUNTS - 1) // _REFCOUNTS
        wanted_tables = _up(wanted * 8)
        if (wanted, wanted_tables) == (blocks, tables):
            return blocks, tables
        blocks, tables = max(wanted, blocks), max(wanted_tables, tables)
        if blocks * _REFCOUNTS >= fixed + blocks + tables and tables * CLUSTER >= blocks * 8:
            return blocks, tables


def _up(size: int) -> int:
    return (size + CLUSTER - 1) // CLUSTER


def _padded(data: bytes, clusters: int = 0) -> bytes:
    size = max(clusters * CLUSTER, _up(len(data)) * CLUSTER)
    return data + bytes(size - len(data))
