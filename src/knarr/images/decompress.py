"""Layer bytes → tar bytes: gzip, zstd and plain, judged by the first bytes, counted and capped.

Memory is bounded whatever the input says: each step yields at most one piece of `PIECE` bytes.
Out of scope: digests and the tar inside.
"""

from __future__ import annotations

import itertools
from typing import IO, TYPE_CHECKING, cast

import zstandard
from isal import igzip_lib

from knarr.images.limits import DEFAULT, Limits
from knarr.model.errors import Invalid, Unsupported

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    Bite = Generator[bytes, None, tuple[igzip_lib.IgzipDecompressor | None, bytes]]

PIECE = 1 << 19
# igzip copies all that follows a member's end, so small bites keep files of many members linear.
BITE = 1 << 17

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
# its type stub says instance where the class is
_GZIP_ERROR: type[Exception] = igzip_lib.error  # type: ignore[assignment]
_REFUSED = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x04\x22\x4d\x18": "lz4", b"PK\x03\x04": "zip"}


def sniff(head: bytes) -> str:
    """`gzip`, `zstd` or `tar` from a layer's first bytes. Raises `Unsupported` for other compressions."""
    if head.startswith(_GZIP):
        return "gzip"
    if head.startswith(_ZSTD) or (head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):
        return "zstd"
    for magic, name in _REFUSED.items():
        if head.startswith(magic):
            raise Unsupported(
                f"layer is compressed with {name}", hint="gzip, zstd and plain tar are supported"
            )
    return "tar"


def decompressed(chunks: Iterator[bytes], limits: Limits = DEFAULT) -> Iterator[bytes]:
    """The tar stream inside `chunks`. Raises `Invalid` for broken or oversized input."""
    head, chunks = peek(chunks)
    counted = _Counted(chunks)
    kind = sniff(head)
    if kind == "gzip":
        pieces = _gunzip(counted)
    elif kind == "zstd":
        pieces = _unzstd(counted, limits)
    else:
        pieces = iter(counted)
    return _capped(pieces, counted, limits)


def peek(chunks: Iterator[bytes], need: int = 8) -> tuple[bytes, Iterator[bytes]]:
    """The first `need` bytes (fewer if the stream is shorter), and the stream with them still in it."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= need:
            break
    return head[:need], itertools.chain((head,) if head else (), chunks)


class _Counted:
    """Passes chunks on and counts what the decoder was fed."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self.count = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk = next(self._chunks)
        self.count += len(chunk)
        return chunk


def _capped(pieces: Iterator[bytes], source: _Counted, limits: Limits) -> Iterator[bytes]:
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > limits.layer_bytes:
            raise Invalid(f"layer decompresses to more than {limits.layer_bytes} bytes")
        if total > limits.ratio_floor and total > limits.ratio * source.count:
            raise Invalid(f"layer decompresses to more than {limits.ratio} times its size")
        yield piece


def _gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    decoder = None
    rest = b""
    for chunk in chunks:
        view = memoryview(chunk)
        for start in range(0, len(view), BITE):
            data = rest + bytes(view[start : start + BITE])
            decoder, rest = yield from _gunzip_bite(decoder, data)
    if decoder is not None:
        raise Invalid("gzip layer is cut short")
    if rest.strip(b"\0"):
        raise Invalid("gzip layer has trailing garbage")


def _gunzip_bite(decoder: igzip_lib.IgzipDecompressor | None, data: bytes) -> Bite:
    """Feed one bite, over any number of members; returns the decoder in use and what is yet undecided."""
    while data:
        if decoder is None:
            if not data.strip(b"\0"):
                return None, b"\0"
            if len(data) < len(_GZIP):
                return None, data
            if not data.startswith(_GZIP):
                raise Invalid("gzip layer has trailing garbage")
            decoder = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        data = yield from _gunzip_member(decoder, data)
        if decoder.eof:
            decoder = None
    return decoder, b""


def _gunzip_member(decoder: igzip_lib.IgzipDecompressor, data: bytes) -> Generator[bytes, None, bytes]:
    while True:
        try:
            out = decoder.decompress(data, PIECE)
        except _GZIP_ERROR as error:
            raise Invalid(f"gzip layer is broken: {error}") from error
        if out:
            yield out
        if decoder.eof:
            return decoder.unused_data
        if decoder.needs_input:
            return b""
        data = b""


class _Readable:
    """The `read(n)` that zstandard wants, over chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._view = memoryview(b"")

    def read(self, count: int) -> bytes:
        if not self._view:
            self._view = memoryview(next(self._chunks, b""))
        data = bytes(self._view[:count])
        self._view = self._view[count:]
        return data


def _unzstd(chunks: Iterator[bytes], limits: Limits) -> Iterator[bytes]:
    decoder = zstandard.ZstdDecompressor(max_window_size=limits.window)
    # a stream cut short reads as its end here: the diff id tells
    reader = decoder.stream_reader(
        cast("IO[bytes]", _Readable(chunks)), read_size=BITE, read_across_frames=True
    )
    try:
        while piece := reader.read(PIECE):
            yield piece
    except zstandard.ZstdError as error:
        raise Invalid(f"zstd layer is broken: {error}") from error
