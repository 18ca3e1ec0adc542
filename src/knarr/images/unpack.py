"""One layer's bytes → entries with their contents in the pool, as a pipeline of threads.

    blob bytes ─┬─ hash of the blob, the kept copy        (thread 1)
                └─ decompressed (the calling thread) ─┬─ hash of the archive = diff id     (thread 2)
                                                      └─ tar, file hashes, pool            (thread 3)

Decoding, hashing and writing release the interpreter's lock, so two cores are used. Queues are short:
memory is bounded. Out of scope: which layers, merging, publishing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import stat
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from isal import isal_zlib

from knarr.images import tarstream
from knarr.images.config import GZIP_LAYER_TYPE
from knarr.images.decompress import decompressed, peek, sniff
from knarr.images.erofs import INLINE_MAX
from knarr.images.limits import DEFAULT, Limits
from knarr.images.tree import Entry, clean_path, clean_xattrs
from knarr.model.errors import Failed, Invalid, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from knarr.images.pool import Writer
    from knarr.images.source import Layer, Progress

T = TypeVar("T")

_QUEUE = 6
_WHOLE = 2 << 20
"""contents up to this size are hashed before they are written"""
_BLOCK = 4096
_NULL = 0xFFFFFFFF
_MEDIA_TYPES = {
    "gzip": GZIP_LAYER_TYPE,
    "zstd": GZIP_LAYER_TYPE.replace("gzip", "zstd"),
    "tar": GZIP_LAYER_TYPE.removesuffix("+gzip"),
}
_MODES = {
    tarstream.REGULAR: stat.S_IFREG,
    tarstream.SYMLINK: stat.S_IFLNK,
    tarstream.CHAR: stat.S_IFCHR,
    tarstream.BLOCK_DEVICE: stat.S_IFBLK,
    tarstream.DIRECTORY: stat.S_IFDIR,
    tarstream.FIFO: stat.S_IFIFO,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Unpacked:
    digest: str
    """of the blob as it is kept"""
    size: int
    diff_id: str
    media_type: str
    entries: list[Entry]
    kept: str | None
    """path of the kept blob, not yet published"""


class Stage(threading.Thread, Generic[T]):
    """A thread that works on what is put to it. After a failure it empties its queue; `result` raises."""

    def __init__(self, work: Callable[[Iterator[bytes]], T]) -> None:
        super().__init__(name="knarr-layer", daemon=True)
        self._work = work
        self._queue: queue.Queue[bytes | None] = queue.Queue(_QUEUE)
        self._result: list[T] = []
        self.error: BaseException | None = None
        self.start()

    def put(self, data: bytes) -> None:
        if self.error is not None:
            raise self.error
        self._queue.put(data)

    def end(self) -> None:
        self._queue.put(None)

    def result(self) -> T:
        self.join()
        if self.error is not None:
            raise self.error
        return self._result[0]

    def run(self) -> None:
        pieces = iter(self._queue.get, None)
        try:
            self._result.append(self._work(pieces))
        except BaseException as error:  # handed over to the thread that asks for the result
            self.error = error
        for _ in pieces:
            pass


class Meter:
    """Counts what all layers of an image cost in memory, and cancels."""

    def __init__(self, limits: Limits = DEFAULT, cancel: Callable[[], bool] = lambda: False) -> None:
        self.limits = limits
        self._cancel = cancel
        self._entries = 0
        self._bytes = 0
        self._addresses = 0

    def entry(self, cost: int) -> None:
        # unlocked: a count lost between threads does not matter to a cap
        self._entries += 1
        self._bytes += cost + 150
        if self._entries > self.limits.entries:
            raise Invalid(f"image has more than {self.limits.entries} entries")
        if self._bytes > self.limits.metadata_bytes:
            raise Invalid(f"image's names and attributes take more than {self.limits.metadata_bytes} bytes")

    def addresses(self, count: int) -> None:
        """Sparse files may take up much more of the pool's addresses than of the disk."""
        self._addresses += count
        if self._addresses > self.limits.sparse_addresses:
            raise Invalid(f"image's sparse files spread over more than {self.limits.sparse_addresses} bytes")

    def check(self) -> None:
        if self._cancel():
            raise Failed("the image was cancelled", hint="nothing of it was kept")


def unpack_layer(
    layer: Layer, writer: Writer, meter: Meter, progress: Progress, *, label: str, keep: str | None
) -> Unpacked:
    """Read a layer once. `keep` = where to put its blob. The caller compares the digests."""
    stages: list[Stage[object]] = []

    def stage(work: Callable[[Iterator[bytes]], T]) -> Stage[T]:
        made = Stage(work)
        stages.append(made)  # type: ignore[arg-type]
        return made

    try:
        with _reading(layer, label) as opened:
            head, chunks = peek(opened)
            # plain tars without a digest of their own come from archives: they are kept compressed
            kind = sniff(head)
            squeeze = keep is not None and not layer.digest and kind == "tar"
            media_type = layer.media_type or _MEDIA_TYPES[kind]
            blob = stage(lambda pieces: _keep_blob(pieces, keep, squeeze=squeeze))
            archive = stage(_sha256)
            entries = stage(lambda pieces: Unpacker(writer, meter).run(pieces))
            for piece in decompressed(
                _tee(chunks, layer=layer, blob=blob, meter=meter, progress=progress, label=label),
                meter.limits,
            ):
                archive.put(piece)
                entries.put(piece)
    finally:
        for each in stages:
            each.end()
        for each in stages:
            each.join()
    digest, size = blob.result()
    return Unpacked(
        digest=digest,
        size=size,
        diff_id=archive.result(),
        media_type=GZIP_LAYER_TYPE if squeeze else media_type,
        entries=entries.result(),
        kept=keep,
    )


@contextlib.contextmanager
def _reading(layer: Layer, label: str) -> Iterator[Iterator[bytes]]:
    """The source's bytes; an OSError of the source is not to be taken for one of the store."""

    def chunks(opened: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield from opened
        except OSError as error:
            raise Unavailable(f"layer {label} can't be read: {error.strerror or error}") from error

    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(layer.open())
        except OSError as error:
            raise Unavailable(f"layer {label} can't be read: {error.strerror or error}") from error
        yield chunks(opened)


def _tee(
    chunks: Iterator[bytes],
    *,
    layer: Layer,
    blob: Stage[tuple[str, int]],
    meter: Meter,
    progress: Progress,
    label: str,
) -> Iterator[bytes]:
    done = 0
    for chunk in chunks:
        meter.check()
        done += len(chunk)
        if layer.size is not None and done > layer.size:
            raise Invalid(f"layer {label} is longer than its {layer.size} bytes")
        blob.put(chunk)
        yield chunk
        progress.update(label, "downloading", done, layer.size)
    if layer.size is not None and done != layer.size:
        raise Invalid(f"layer {label} has {done} bytes instead of {layer.size}")


def _sha256(pieces: Iterator[bytes]) -> str:
    sha = hashlib.sha256()
    for piece in pieces:
        sha.update(piece)
    return "sha256:" + sha.hexdigest()


def _keep_blob(pieces: Iterator[bytes], path: str | None, *, squeeze: bool) -> tuple[str, int]:
    """(digest, size) of what is kept, or would be."""
    sha = hashlib.sha256()
    size = 0
    fd = -1 if path is None else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for piece in _squeezed(pieces) if squeeze else pieces:
            sha.update(piece)
            size += len(piece)
            if fd >= 0:
                _write_all(fd, piece)
        if fd >= 0:
            os.fdatasync(fd)
    finally:
        if fd >= 0:
            os.close(fd)
    return "sha256:" + sha.hexdigest(), size


def _squeezed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    coder = isal_zlib.compressobj(1, isal_zlib.DEFLATED, 31)
    for piece in pieces:
        if data := coder.compress(piece):
            yield data
    yield coder.flush()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class Contents(Protocol):
    """Where files' contents go: the pool's `Writer`, or what compares them with the pool."""

    def add(self, sha: bytes, views: list[memoryview], size: int) -> int: ...
    def add_stream(self, views: Iterable[memoryview], size: int) -> tuple[int, int]: ...
    def add_pieces(
        self, pieces: Iterable[tuple[int, Iterable[memoryview]]], blocks: int, sha: hashlib._Hash
    ) -> int: ...


class Unpacker:
    """Tar members → entries."""

    def __init__(self, writer: Contents, meter: Meter) -> None:
        self._writer = writer
        self._meter = meter
        self._limits = meter.limits

    def run(self, pieces: Iterator[bytes]) -> list[Entry]:
        reader = tarstream.TarReader(pieces, self._limits)
        entries = []
        while (member := reader.next()) is not None:
            entry = self._entry(member, reader)
            self._meter.entry(len(entry.path) + len(entry.link) + len(entry.inline) + len(entry.sparse))
            entries.append(entry)
        return entries

    def _entry(self, member: tarstream.Member, reader: tarstream.TarReader) -> Entry:
        path = clean_path(member.name, self._limits)
        kind = member.kind
        if kind == tarstream.LINK:
            return Entry(path, 0, 0, 0, 0, 0, clean_path(member.link, self._limits))
        entry = Entry(path, _MODES[kind] | member.mode, member.uid, member.gid, member.mtime)
        if member.xattrs:
            entry.xattrs = clean_xattrs(member.xattrs)
            self._meter.entry(sum(len(name) + len(value) for name, value in entry.xattrs))
        if kind == tarstream.REGULAR:
            entry.size = member.size
            if member.size:
                self._content(entry, member, reader)
        elif kind == tarstream.SYMLINK:
            # Linux has no other mode for them, whatever the archive says
            entry.mode = stat.S_IFLNK | 0o777
            entry.link = _target(member)
            entry.size = len(entry.link)
        elif kind in (tarstream.CHAR, tarstream.BLOCK_DEVICE):
            entry.rdev = (member.minor & 0xFF) | member.major << 8 | (member.minor & ~0xFF) << 12
        return entry

    def _content(self, entry: Entry, member: tarstream.Member, reader: tarstream.TarReader) -> None:
        if member.sparse is not None:
            self._sparse(entry, member, reader)
            return
        size = member.size
        if size <= INLINE_MAX:
            entry.inline = b"".join(reader.whole())
            return
        if size > _WHOLE:
            entry.block, entry.blocks = self._writer.add_stream(reader.data(), size)
            return
        views = reader.whole()
        sha = hashlib.sha256()
        for view in views:
            sha.update(view)
        entry.block = self._writer.add(sha.digest(), views, size)
        entry.blocks = (size + _BLOCK - 1) // _BLOCK

    def _sparse(self, entry: Entry, member: tarstream.Member, reader: tarstream.TarReader) -> None:
        """Store the chunks that hold data, packed; the table says which they are."""
        segments = [(offset, length) for offset, length in member.sparse or () if length]
        total = (member.size + _BLOCK - 1) // _BLOCK
        bits = max(0, ((total - 1) // self._limits.sparse_chunks).bit_length())
        chunk = _BLOCK << bits
        table = [_NULL] * ((member.size + chunk - 1) // chunk)
        used = 0
        for offset, length in segments:
            for index in range(offset // chunk, (offset + length - 1) // chunk + 1):
                if table[index] == _NULL:
                    table[index] = used << bits
                    used += 1
        entry.sparse_bits = bits
        entry.sparse = struct.pack(f"<{len(table)}I", *table)
        if not segments:
            return
        entry.blocks = used << bits
        self._meter.addresses(entry.blocks * _BLOCK)
        sha = hashlib.sha256(
            b"knarr sparse\0" + struct.pack("<QB", member.size, bits) + repr(segments).encode()
        )
        entry.block = self._writer.add_pieces(
            _Pieces(segments, table, chunk, reader.data()), entry.blocks, sha
        )


class _Pieces:
    """Segments of a sparse file, cut at chunk borders, with their places in the packed content."""

    def __init__(
        self, segments: list[tuple[int, int]], table: list[int], chunk: int, data: Iterator[memoryview]
    ) -> None:
        self._segments = segments
        self._table = table
        self._chunk = chunk
        self._data = data
        self._view = memoryview(b"")

    def __iter__(self) -> Iterator[tuple[int, Iterator[memoryview]]]:
        for offset, length in self._segments:
            at, end = offset, offset + length
            while at < end:
                count = min(end - at, self._chunk - at % self._chunk)
                yield self._table[at // self._chunk] * _BLOCK + at % self._chunk, self._take(count)
                at += count

    def _take(self, count: int) -> Iterator[memoryview]:
        while count:
            if not self._view:
                self._view = next(self._data)
            view = self._view[:count]
            self._view = self._view[len(view) :]
            count -= len(view)
            yield view


def _target(member: tarstream.Member) -> bytes:
    if not 0 < len(member.link) < 4096:
        raise Invalid(f"layer's archive has a symlink with a target of {len(member.link)} bytes")
    return member.link
