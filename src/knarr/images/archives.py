"""Images out of files: `docker save` archives (old and new), OCI layouts and archives, a root file system.

Nothing is extracted: an index says where each member lies in the (decompressed, unlinked) file, and layers
are read from there. All names, documents and bytes inside are untrusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from knarr.images import decompress, manifest
from knarr.images.manifest import INDEXES, Descriptor
from knarr.images.source import ImageSource, Layer, never
from knarr.images.tarindex import HEADER, Extent, TarIndex, check_header
from knarr.model.errors import Failed, Invalid, KnarrError, NotFound
from knarr.model.names import Platform, host_platform, parse_reference

PIECE: Final = 1 << 20
_MAX_IMAGES = 256
_MAX_TAGS = 256
_NAME_KEYS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_BROKEN = "the archive is broken, or made by something else"
Cancel = Callable[[], bool]


@contextlib.contextmanager
def open_archive(
    source: str | int, workdir: str, platform: Platform | None = None, *, cancel: Cancel = never
) -> Iterator[tuple[ImageSource, ...]]:
    """The images of an archive (path or descriptor) or of an OCI layout folder (path).

    Layers can be read until the `with` ends. `workdir` is a folder of ours for the decompressed copy that
    a compressed archive needs.
    """
    with contextlib.ExitStack() as stack:
        fd = source if isinstance(source, int) else stack.enter_context(_opened(source))
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            yield read_images(_Folder(fd), platform)
            return
        plain = stack.enter_context(_plain(fd, workdir, cancel))
        yield read_images(_Archive(plain), platform)


def read_images(store: _Store, platform: Platform | None = None) -> tuple[ImageSource, ...]:
    """Whichever form it is in. The OCI form wins where both are there: it has the exact manifests."""
    if store.has("oci-layout") and store.has("index.json"):
        images = _oci_images(store, platform)
    elif store.has("manifest.json"):
        images = tuple(_docker_image(store, entry, platform) for entry in _docker_entries(store))
    else:
        raise Invalid(
            "the archive holds no image: neither manifest.json nor index.json",
            hint="a plain root file system is taken by: knarr image import FILE NAME",
        )
    if not images:
        raise NotFound("the archive holds no image", hint="look into it: tar -tf FILE")
    return images


class _Store(Protocol):
    """Members by name, in a tar or in a folder."""

    def has(self, name: str) -> bool: ...
    def read(self, name: str, limit: int) -> bytes: ...
    def size(self, name: str) -> int: ...
    def stream(self, name: str) -> AbstractContextManager[Iterator[bytes]]: ...


class _Archive:
    def __init__(self, fd: int) -> None:
        self._index = TarIndex(fd)

    def has(self, name: str) -> bool:
        return name in self._index

    def read(self, name: str, limit: int) -> bytes:
        return self._index.read(name, limit)

    def size(self, name: str) -> int:
        return self._index.extent(name).size

    @contextlib.contextmanager
    def stream(self, name: str) -> Iterator[Iterator[bytes]]:
        yield read_extent(self._index.fd, self._index.extent(name))


class _Folder:
    """An OCI layout: only names of its own grammar are opened, and no symlink is followed."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def has(self, name: str) -> bool:
        try:
            with self._open(name):
                return True
        except NotFound:
            return False

    def read(self, name: str, limit: int) -> bytes:
        with self._open(name) as fd:
            size = os.fstat(fd).st_size
            if size > limit:
                raise Invalid(f"{name!r} of the layout is larger than {limit} bytes", hint=_BROKEN)
            return b"".join(read_extent(fd, Extent(0, size)))

    def size(self, name: str) -> int:
        with self._open(name) as fd:
            return os.fstat(fd).st_size

    @contextlib.contextmanager
    def stream(self, name: str) -> Iterator[Iterator[bytes]]:
        with self._open(name) as fd:
            yield read_extent(fd, Extent(0, os.fstat(fd).st_size))

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[int]:
        *folders, last = name.split("/")
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with contextlib.ExitStack() as stack:
            at = self._fd
            try:
                for part in folders:
                    at = os.open(part, flags | os.O_DIRECTORY, dir_fd=at)
                    stack.callback(os.close, at)
                fd = os.open(last, flags, dir_fd=at)
                stack.callback(os.close, fd)
            except FileNotFoundError as error:
                raise NotFound(f"the layout has no {name!r}", hint=_BROKEN) from error
            except OSError as error:
                raise Invalid(
                    f"{name!r} of the layout can't be read: {error.strerror}", hint=_BROKEN
                ) from error
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Invalid(f"{name!r} of the layout is not a regular file", hint=_BROKEN)
            yield fd


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path!r}", hint="check the path") from error
    except OSError as error:
        raise Failed(
            f"{path!r} can't be opened: {error.strerror}", hint="check the path and its permissions"
        ) from error
    try:
        yield fd
    finally:
        os.close(fd)


def read_extent(fd: int, extent: Extent) -> Iterator[bytes]:
    position, end = extent.offset, extent.offset + extent.size
    while position < end:
        piece = os.pread(fd, min(PIECE, end - position), position)
        if not piece:
            raise Invalid("the archive became shorter while it was read", hint="load it again")
        position += len(piece)
        yield piece


@contextlib.contextmanager
def _plain(fd: int, workdir: str, cancel: Cancel) -> Iterator[int]:
    """The tar inside: the file itself, or a decompressed copy of it that has no name."""
    size = os.fstat(fd).st_size
    if decompress.sniff(os.pread(fd, 8, 0)) == "tar":
        yield fd
        return
    with tempfile.TemporaryFile(dir=workdir, prefix="load-") as copy:
        for piece in decompress.decompressed(read_extent(fd, Extent(0, size))):
            if cancel():
                raise Failed("loading was cancelled")
            copy.write(piece)
        copy.flush()
        yield copy.fileno()


def _blob(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _oci_images(store: _Store, platform: Platform | None) -> tuple[ImageSource, ...]:
    index = manifest.parse("the archive's index.json", store.read("index.json", manifest.MAX_MANIFEST))
    if not isinstance(index, manifest.Index):
        raise Invalid("the archive's index.json is not an index", hint=_BROKEN)
    tags = _tags_by_config(store)
    groups: dict[str, list[Descriptor]] = {}
    for number, entry in enumerate(index.entries):
        groups.setdefault(_name_of(entry) or f"#{number}", []).append(entry)
    if len(groups) > _MAX_IMAGES:
        raise Invalid(f"the archive holds more than {_MAX_IMAGES} images", hint="split it")
    images: dict[str, ImageSource] = {}
    missing: KnarrError | None = None
    for name, entries in groups.items():
        try:
            image = _oci_image(store, name, entries, platform, tags)
        except NotFound as error:
            missing = missing or error
            continue
        known = images.get(image.manifest_digest)
        images[image.manifest_digest] = image if known is None else _merged(known, image)
    if missing is not None and not images:
        raise missing
    return tuple(images.values())


def _merged(first: ImageSource, second: ImageSource) -> ImageSource:
    references = tuple(dict.fromkeys(first.references + second.references))
    return ImageSource(
        manifest=first.manifest,
        manifest_digest=first.manifest_digest,
        config=first.config,
        layers=first.layers,
        references=references,
    )


def _name_of(entry: Descriptor) -> str:
    """The reference among an entry's annotations. A bare tag (`latest`) names nothing."""
    for key in _NAME_KEYS:
        text = entry.annotation(key)
        if "/" in text or ":" in text:
            with contextlib.suppress(KnarrError):
                return parse_reference(text).canonical
    return ""


def _oci_image(
    store: _Store,
    name: str,
    entries: list[Descriptor],
    platform: Platform | None,
    tags: dict[str, tuple[str, ...]],
) -> ImageSource:
    what = f"image {name!r} of the archive"

    def fetch(entry: Descriptor) -> bytes:
        data = store.read(_blob(entry.digest), manifest.MAX_MANIFEST)
        manifest.check_blob(f"a manifest of {what}", data, entry.digest, entry.size)
        return data

    top = manifest.choose(what, tuple(entries), platform) if len(entries) > 1 else entries[0]
    if top.media_type not in INDEXES | manifest.MANIFESTS:
        raise NotFound(
            f"{what} is of the kind {top.media_type[:100]!r}", hint="only container images can be used"
        )
    data, parsed = manifest.descend(what, fetch(top), top.media_type, platform, fetch)
    config = store.read(_blob(parsed.config.digest), manifest.MAX_CONFIG)
    manifest.check_blob(f"the config of {what}", config, parsed.config.digest, parsed.config.size)
    manifest.check_config(what, config, len(parsed.layers), platform)
    own = () if name.startswith("#") else (name,)
    return ImageSource(
        manifest=data,
        manifest_digest=manifest.sha256(data),
        config=config,
        layers=tuple(_oci_layer(store, what, layer) for layer in parsed.layers),
        references=tuple(dict.fromkeys(own + tags.get(parsed.config.digest, ()))),
    )


def _oci_layer(store: _Store, what: str, layer: Descriptor) -> Layer:
    name = _blob(layer.digest)
    if store.size(name) != layer.size:
        raise Invalid(f"layer {layer.digest[:19]} of {what} has another size than promised", hint=_BROKEN)

    @contextlib.contextmanager
    def opened() -> Iterator[Iterator[bytes]]:
        with store.stream(name) as pieces:
            yield _verified(what, pieces, layer.digest)

    return Layer(digest=layer.digest, media_type=layer.media_type, size=layer.size, open=opened)


def _verified(what: str, pieces: Iterator[bytes], digest: str) -> Iterator[bytes]:
    seen = hashlib.sha256()
    for piece in pieces:
        seen.update(piece)
        yield piece
    if f"sha256:{seen.hexdigest()}" != digest:
        raise Invalid(f"layer {digest[:19]} of {what} does not match its digest", hint=_BROKEN)


def _tags_by_config(store: _Store) -> dict[str, tuple[str, ...]]:
    """Docker ≥ 25 and podman write both forms: the docker one has all the tags."""
    if not store.has("manifest.json"):
        return {}
    tags: dict[str, tuple[str, ...]] = {}
    for entry in _docker_entries(store):
        config = entry.config.removeprefix("blobs/").replace("/", ":").removesuffix(".json")
        digest = config if config.startswith("sha256:") else f"sha256:{config}"
        tags[digest] = tags.get(digest, ()) + entry.references
    return tags


@dataclass(frozen=True, slots=True)
class _DockerEntry:
    config: str
    layers: tuple[str, ...]
    references: tuple[str, ...]


def _docker_entries(store: _Store) -> tuple[_DockerEntry, ...]:
    data = store.read("manifest.json", manifest.MAX_MANIFEST)
    # a list at the top: wrapped, so that one strict parser reads all documents
    body = manifest.parse_json(
        "the archive's manifest.json", b'{"images":' + data + b"}", manifest.MAX_MANIFEST + 16
    )
    images = body.get("images")
    if len(body) != 1 or not isinstance(images, list) or len(images) > _MAX_IMAGES:
        raise Invalid(
            f"the archive's manifest.json is not a list of at most {_MAX_IMAGES} images", hint=_BROKEN
        )
    return tuple(_docker_entry(entry) for entry in images)


def _docker_entry(entry: Any) -> _DockerEntry:
    config = entry.get("Config") if isinstance(entry, dict) else None
    if not isinstance(config, str):
        raise Invalid("the archive's manifest.json has an image without config", hint=_BROKEN)
    layers = _texts(entry.get("Layers"), manifest.MAX_LAYERS)
    tags = _texts(entry.get("RepoTags"), _MAX_TAGS)
    return _DockerEntry(config, layers, tuple(parse_reference(tag).canonical for tag in tags))


def _texts(value: Any, limit: int) -> tuple[str, ...]:
    value = value or []
    if not isinstance(value, list) or len(value) > limit or not all(isinstance(one, str) for one in value):
        raise Invalid("the archive's manifest.json has a list that is none, or is too long", hint=_BROKEN)
    return tuple(value)


def _docker_image(store: _Store, entry: _DockerEntry, platform: Platform | None) -> ImageSource:
    what = f"image {entry.references[0] if entry.references else entry.config[:19]!r} of the archive"
    config = store.read(entry.config, manifest.MAX_CONFIG)
    manifest.check_config(what, config, len(entry.layers), platform)
    return ImageSource(
        manifest=b"",
        manifest_digest="",
        config=config,
        layers=tuple(_plain_layer(store, name) for name in entry.layers),
        references=entry.references,
    )


def _plain_layer(store: _Store, name: str) -> Layer:
    return Layer(digest="", media_type="", size=store.size(name), open=lambda: store.stream(name))


@contextlib.contextmanager
def open_rootfs(
    source: str | int,
    references: tuple[str, ...],
    *,
    settings: dict[str, Any] | None = None,
    platform: Platform | None = None,
    created: str = "",
    cancel: Cancel = never,
) -> Iterator[ImageSource]:
    """A root file system's tar (plain, gzip, zstd; path or descriptor) as an image of one layer.

    `settings` go into the config's `config` object (Cmd, Env, …). Read once here, for the diff id.
    """
    with contextlib.ExitStack() as stack:
        fd = source if isinstance(source, int) else stack.enter_context(_opened(source))
        whole = Extent(0, os.fstat(fd).st_size)
        diff_id = _tar_digest(fd, whole, cancel)
        layer = Layer(
            digest="",
            media_type="",
            size=whole.size,
            open=lambda: contextlib.nullcontext(read_extent(fd, whole)),
        )
        yield ImageSource(
            manifest=b"",
            manifest_digest="",
            config=rootfs_config(diff_id, settings=settings, platform=platform, created=created),
            layers=(layer,),
            references=tuple(parse_reference(reference).canonical for reference in references),
        )


def _tar_digest(fd: int, whole: Extent, cancel: Cancel) -> str:
    seen = hashlib.sha256()
    head = b""
    for piece in decompress.decompressed(read_extent(fd, whole)):
        if len(head) < HEADER:
            head += piece[: HEADER - len(head)]
            if len(head) == HEADER and head.strip(b"\0"):
                check_header(head)
        if cancel():
            raise Failed("importing was cancelled")
        seen.update(piece)
    if len(head) < HEADER:
        raise Invalid("the archive is empty", hint="tar -C FOLDER -c . makes one")
    return f"sha256:{seen.hexdigest()}"


DEFAULT_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def rootfs_config(
    diff_id: str,
    *,
    settings: dict[str, Any] | None = None,
    platform: Platform | None = None,
    created: str = "",
    comment: str = "imported by knarr",
) -> bytes:
    """An OCI config made up for one layer; the same input gives the same bytes."""
    made = platform or host_platform()
    body: dict[str, Any] = {
        "architecture": made.architecture,
        "os": made.os,
        "config": {"Env": [DEFAULT_PATH], **(settings or {})},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"comment": comment}],
    }
    if made.variant:
        body["variant"] = made.variant
    if created:
        body["created"] = created
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
