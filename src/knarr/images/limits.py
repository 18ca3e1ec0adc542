"""What an image may cost before it is refused: every cap of the ingest in one place.

The numbers are far above real images and far below what would harm the host.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    layers: int = 512
    config_bytes: int = 8 << 20
    """a config or manifest document"""
    layer_bytes: int = 64 << 30
    """decompressed, per layer, counted after the decoder"""
    ratio: int = 250
    """decompressed : compressed, judged only above `ratio_floor` (deflate reaches 1,000 : 1 on zeros)"""
    ratio_floor: int = 2 << 30
    window: int = 1 << 27
    """zstd's window: memory of the decoder"""
    entries: int = 1_000_000
    """per image, whiteouts and hidden files included"""
    header_bytes: int = 1 << 20
    """one extended header or long name"""
    metadata_bytes: int = 768 << 20
    """names, links, xattrs and inline contents of one image, as they stand in memory"""
    path_bytes: int = 4096
    name_bytes: int = 255
    xattrs: int = 128
    """per entry"""
    xattr_bytes: int = 65535
    """values of one entry's xattrs together: what EROFS can tell of one value, a byte less than Linux's"""
    file_bytes: int = 1 << 44
    """apparent size of one (sparse) file"""
    sparse_segments: int = 100_000
    sparse_addresses: int = 256 << 30
    """places in the pool that one image's sparse files may take, data or not"""
    sparse_chunks: int = 1 << 16


DEFAULT = Limits()
