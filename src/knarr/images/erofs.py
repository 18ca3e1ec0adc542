"""A merged tree → one metadata-only EROFS image whose file chunks lie in the pool (device slot 1).

On-disk format: Linux Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h; read by Linux ≥ 5.16. The
same tree gives the same bytes. Layout: superblock and device table (block 0), shared xattrs, inodes with
what is inlined behind them, then blocks of large directories. Small files and link targets are packed
behind their inode. Two passes: the first gives every inode its place, the second writes front to back. Out
of scope: compression, contents.
"""

from __future__ import annotations

import stat
import struct
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from knarr.images.tree import Node, walk
from knarr.model.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

BLOCK = 4096
INLINE_MAX = 1024
"""Files up to this size live in the tree: a padded block of the pool and one read would cost more."""

_MAGIC = 0xE0F5E1E2
_SB_OFFSET = 1024
_SUPER = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23x")
_DEVICE = struct.Struct("<64sII56x")
_DEVICE_SLOT = (_SB_OFFSET + 128) // 128
_COMPAT = 0x1 | 0x2  # checksum; build time is the files' time
_INCOMPAT = 0x4 | 0x8  # chunk-based files; device table
_COMPACT = struct.Struct("<HHHHIIIIHHI")
_EXTENDED = struct.Struct("<HHHHQIIIIqII16x")
_DIRENT = struct.Struct("<QHBx")
_CHUNK = struct.Struct("<HHI")
_NULL = 0xFFFFFFFF

_PLAIN, _INLINE, _CHUNKS = 0, 2, 4
_FILE_TYPES = {0o100000: 1, 0o040000: 2, 0o020000: 3, 0o060000: 4, 0o010000: 5, 0o140000: 6, 0o120000: 7}
_XATTR_PREFIXES = (
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What the writer learned on its way."""

    size: int
    """bytes of file contents, each file once"""
    extents: tuple[tuple[int, int], ...]
    """(first block, count) of the pool that this tree shows, sorted, joined"""
    inodes: int


def write_tree(root: Node, write: Callable[[bytes], object]) -> Written:
    """Write the image front to back through `write`."""
    return _Writer(root).run(write)


class _Writer:
    def __init__(self, root: Node) -> None:
        self.root = root
        self.nodes: list[Node] = []
        self.parents: dict[int, Node] = {id(root): root}
        self.shared: dict[tuple[bytes, bytes], int] = {}
        self.shared_area = b""
        self.xattrs: dict[tuple[tuple[bytes, bytes], ...], bytes] = {(): b""}
        self.epoch = 0
        self.data_blocks = 0
        self.data_base = 0
        self.inode_number = 0

    def run(self, write: Callable[[bytes], object]) -> Written:
        self._count_links()
        self._share_xattrs()
        self.epoch = _commonest(node.entry.mtime for node in self.nodes)
        meta_block = 1 + len(self.shared_area) // BLOCK
        end = 0
        for node in self.nodes:
            end = self._place(node, end)
        self.data_base = meta_block + _blocks(end)
        extents = _joined(self.nodes)
        write(self._super_block(meta_block, extents) + self.shared_area)
        self._write_inodes(write, _blocks(end) * BLOCK)
        self._write_data(write)
        size = sum(node.entry.size for node in self.nodes if stat.S_ISREG(node.entry.mode))
        return Written(size=size, extents=extents, inodes=len(self.nodes))

    # --- first pass -------------------------------------------------------------------------------

    def _count_links(self) -> None:
        for node in walk(self.root):
            self.nodes.append(node)
            node.nlink += 0 if node.children is None else 2
            for child in (node.children or {}).values():
                if child.children is None:
                    child.nlink += 1
                else:
                    node.nlink += 1
                    self.parents[id(child)] = node

    def _share_xattrs(self) -> None:
        counts: Counter[tuple[bytes, bytes]] = Counter()
        for node in self.nodes:
            counts.update(node.entry.xattrs)
        area = bytearray()
        for pair, count in counts.items():
            if count > 1:
                self.shared[pair] = len(area) // 4
                area += _xattr_entry(*pair)
        self.shared_area = bytes(area) + bytes(-len(area) % BLOCK)

    def _xattr_body(self, xattrs: tuple[tuple[bytes, bytes], ...]) -> bytes:
        body = self.xattrs.get(xattrs)
        if body is None:
            ids = [self.shared[pair] for pair in xattrs if pair in self.shared]
            rest = [pair for pair in xattrs if pair not in self.shared]
            body = struct.pack(f"<IB7x{len(ids)}I", 0, len(ids), *ids) + b"".join(
                _xattr_entry(*it) for it in rest
            )
            self.xattrs[xattrs] = body
        return body

    def _place(self, node: Node, end: int) -> int:
        """Choose layout and position; `end` is where the inode before it ended."""
        entry = node.entry
        compact = (
            entry.mtime == self.epoch
            and entry.uid <= 0xFFFF
            and entry.gid <= 0xFFFF
            and node.nlink <= 0xFFFF
            and entry.size <= 0xFFFFFFFF
        )
        head = (32 if compact else 64) + len(self._xattr_body(entry.xattrs))
        start = end + -end % 32
        layout, tail = self._payload(node)
        if layout == _INLINE and start % BLOCK + head + tail > BLOCK:
            # inode and inlined bytes share a block: the next one, or a block of their own for the bytes
            left = BLOCK - start % BLOCK
            if head + tail <= BLOCK and (node.children is None or left <= BLOCK - tail):
                start += left
            else:
                layout, tail = _PLAIN, 0
        if layout == _CHUNKS:
            head += -head % 8
        elif layout == _PLAIN and node.payload:
            size = node.payload
            node.payload = self.data_blocks
            self.data_blocks += _blocks(size)
        elif layout == _INLINE and node.children is not None:
            node.payload = self.data_blocks
            self.data_blocks += len(node.blocks) - 1
        node.nid = start // 32
        node.shape = layout << 1 | (0 if compact else 1)
        return start + head + tail

    def _payload(self, node: Node) -> tuple[int, int]:
        """(layout, bytes behind the inode); for bytes that could lie in blocks, `node.payload` = how many."""
        entry = node.entry
        if node.children is not None:
            node.blocks = _split_directory(node.children)
            node.payload = (len(node.blocks) - 1) * BLOCK + node.blocks[-1][1]
            return _INLINE, node.blocks[-1][1]
        if stat.S_ISLNK(entry.mode):
            node.payload = len(entry.link)
            return _INLINE, len(entry.link)
        if entry.inline:
            node.payload = len(entry.inline)
            return _INLINE, len(entry.inline)
        if entry.sparse:
            return _CHUNKS, len(entry.sparse) * 2
        if entry.block:
            return _CHUNKS, 8
        return _PLAIN, 0

    # --- second pass ------------------------------------------------------------------------------

    def _super_block(self, meta_block: int, extents: tuple[tuple[int, int], ...]) -> bytes:
        seconds, nanoseconds = divmod(self.epoch, 1_000_000_000)
        pool_blocks = extents[-1][0] + extents[-1][1] if extents else 1
        block = bytearray(BLOCK)
        _SUPER.pack_into(
            block, _SB_OFFSET, _MAGIC, 0, _COMPAT, 12, 0, self.root.nid, len(self.nodes),
            seconds & 0xFFFFFFFFFFFFFFFF, nanoseconds, self.data_base + self.data_blocks, meta_block, 1,
            bytes(16), bytes(16), _INCOMPAT, 0, 1, _DEVICE_SLOT, 0, 0, 0, 0, 0,
        )  # fmt: skip
        _DEVICE.pack_into(block, _DEVICE_SLOT * 128, bytes(64), pool_blocks, 0)
        struct.pack_into("<I", block, _SB_OFFSET + 4, _crc32c(block[_SB_OFFSET:]))
        return bytes(block)

    def _write_inodes(self, write: Callable[[bytes], object], size: int) -> None:
        at = 0
        parts: list[bytes] = []
        held = 0
        for node in self.nodes:
            gap = node.nid * 32 - at
            data = self._inode(node)
            parts.append(bytes(gap))
            parts.append(data)
            at += gap + len(data)
            held += gap + len(data)
            if held > 1 << 20:
                write(b"".join(parts))
                parts, held = [], 0
        parts.append(bytes(size - at))
        write(b"".join(parts))

    def _inode(self, node: Node) -> bytes:
        entry = node.entry
        layout = node.shape >> 1
        size, value, tail = self._content(node, layout)
        body = self._xattr_body(entry.xattrs)
        count = (len(body) - 12) // 4 + 1 if body else 0
        self.inode_number += 1
        if node.shape & 1:
            seconds, nanoseconds = divmod(entry.mtime, 1_000_000_000)
            head = _EXTENDED.pack(
                node.shape, count, entry.mode, 0, size, value, self.inode_number, entry.uid, entry.gid,
                seconds, nanoseconds, node.nlink,
            )  # fmt: skip
        else:
            head = _COMPACT.pack(
                node.shape,
                count,
                entry.mode,
                node.nlink,
                size,
                0,
                value,
                self.inode_number,
                entry.uid,
                entry.gid,
                0,
            )
        if layout == _CHUNKS:
            return head + body + bytes(-(len(head) + len(body)) % 8) + tail
        return head + body + tail

    def _content(self, node: Node, layout: int) -> tuple[int, int, bytes]:
        """(size, the inode's union, what stands behind the inode)."""
        entry = node.entry
        if layout == _CHUNKS:
            bits, tail = _chunk_table(node)
            return entry.size, bits | 0x20, tail
        if node.children is not None:
            size = (len(node.blocks) - 1) * BLOCK + node.blocks[-1][1]
            tail = self._directory_data(node)[-1] if layout == _INLINE else b""
            return size, self.data_base + node.payload, tail
        data = entry.link if stat.S_ISLNK(entry.mode) else entry.inline
        if data:
            return (
                len(data),
                (0 if layout == _INLINE else self.data_base + node.payload),
                (data if layout == _INLINE else b""),
            )
        return entry.size, entry.rdev, b""

    def _directory_data(self, node: Node) -> list[bytes]:
        names = self._names(node)
        blocks = []
        start = 0
        for count, _ in node.blocks:
            chosen = names[start : start + count]
            start += count
            offset = 12 * count
            parts = []
            for name, child in chosen:
                parts.append(_DIRENT.pack(child.nid, offset, _FILE_TYPES[child.entry.mode & 0o170000]))
                offset += len(name)
            parts.extend([name for name, _ in chosen])
            blocks.append(b"".join(parts))
        return blocks

    def _names(self, node: Node) -> list[tuple[bytes, Node]]:
        assert node.children is not None
        names = [(b".", node), (b"..", self.parents[id(node)]), *node.children.items()]
        names.sort(key=_by_name)
        return names

    def _write_data(self, write: Callable[[bytes], object]) -> None:
        for node in self.nodes:
            inline = node.shape >> 1 == _INLINE
            if node.children is not None:
                if len(node.blocks) > inline:
                    for block in self._directory_data(node)[: len(node.blocks) - inline]:
                        write(_padded(block))
            elif not inline and (data := node.entry.inline or self._link(node)):
                write(_padded(data))

    def _link(self, node: Node) -> bytes:
        return node.entry.link if stat.S_ISLNK(node.entry.mode) else b""


def _by_name(item: tuple[bytes, Node]) -> bytes:
    return item[0]


def _split_directory(children: dict[bytes, Node]) -> list[tuple[int, int]]:
    """Blocks of a directory: (entries, bytes used) each."""
    total = 2 * 12 + 3 + sum(map(len, children)) + 12 * len(children)
    if total <= BLOCK:
        return [(len(children) + 2, total)]
    blocks = []
    count = used = 0
    for name in sorted((b".", b"..", *children)):
        size = 12 + len(name)
        if used + size > BLOCK:
            blocks.append((count, used))
            count = used = 0
        count += 1
        used += size
    blocks.append((count, used))
    return blocks


def _chunk_table(node: Node) -> tuple[int, bytes]:
    entry = node.entry
    if not entry.sparse:
        return (entry.blocks - 1).bit_length(), _CHUNK.pack(0, 1, entry.block)
    table = struct.unpack(f"<{len(entry.sparse) // 4}I", entry.sparse)
    parts = [
        _CHUNK.pack(0, 0, _NULL) if block == _NULL else _CHUNK.pack(0, 1, entry.block + block)
        for block in table
    ]
    return entry.sparse_bits, b"".join(parts)


def _xattr_entry(name: bytes, value: bytes) -> bytes:
    for prefix, index in _XATTR_PREFIXES:
        if name.startswith(prefix):
            suffix = name[len(prefix) :]
            data = struct.pack("<BBH", len(suffix), index, len(value)) + suffix + value
            return data + bytes(-len(data) % 4)
    raise Invalid(f"attribute {name[:40]!r} has no place in a tree")


def _joined(nodes: list[Node]) -> tuple[tuple[int, int], ...]:
    extents: list[tuple[int, int]] = []
    for start, count in sorted(
        {(node.entry.block, node.entry.blocks) for node in nodes if node.entry.blocks}
    ):
        if extents and start <= extents[-1][0] + extents[-1][1]:
            first, length = extents[-1]
            extents[-1] = (first, max(length, start + count - first))
        else:
            extents.append((start, count))
    return tuple(extents)


def _commonest(times: Iterable[int]) -> int:
    counts = Counter(times)
    return max(counts, key=lambda time: (counts[time], time))


def _blocks(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        crc = value
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_CRC = _crc_table()


def _crc32c(data: bytes | bytearray) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc
