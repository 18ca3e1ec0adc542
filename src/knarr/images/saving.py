"""Images as one archive of the blobs exactly as they are kept: an OCI layout, and docker's form over it.

The same images give the same bytes. Out of scope: which images, who reads the archive.
"""

from __future__ import annotations

import json
import os
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from knarr.images.config import CONFIG_TYPE, GZIP_LAYER_TYPE, MANIFEST_TYPE, strict_json
from knarr.model import names
from knarr.model.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from knarr.images.store import ImageStore
    from knarr.model.resource import Image

_PIECE = 1 << 20
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, kw_only=True, slots=True)
class Blob:
    digest: str
    size: int
    media_type: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """An image as its blobs, checked to be here."""

    manifest: Blob
    config: Blob
    layers: tuple[Blob, ...]
    """bottom first"""

    @property
    def blobs(self) -> tuple[Blob, ...]:
        return (*self.layers, self.config, self.manifest)


def stored(store: ImageStore, image: Image) -> Stored:
    """Raises `NotFound` when a blob is not kept."""
    try:
        with open(store.blob(image.digest), "rb") as file:
            data = file.read()
        body = strict_json(data, "image manifest", store.limits)
        found = Stored(
            manifest=Blob(
                digest=image.digest, size=len(data), media_type=body.get("mediaType") or MANIFEST_TYPE
            ),
            config=_blob(body["config"], CONFIG_TYPE),
            layers=tuple(_blob(entry, GZIP_LAYER_TYPE) for entry in body.get("layers", ())),
        )
        for blob in found.blobs:
            store.blob(blob.digest)
    except NotFound as error:
        name = image.references[0] if image.references else image.id
        raise NotFound(
            f"image {name!r} can't leave: {error.message}", hint=f"pull it again: knarr image pull {name}"
        ) from error
    return found


def _blob(entry: dict[str, Any], default: str) -> Blob:
    return Blob(digest=entry["digest"], size=entry["size"], media_type=entry.get("mediaType") or default)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """One image of an archive, and the names it has there."""

    stored: Stored
    references: tuple[str, ...]
    """canonical"""


def archive(store: ImageStore, images: Sequence[Wanted], *, docker: bool) -> Iterator[bytes]:
    """A tar with an OCI layout; with `docker` also with docker's manifest.json over the same blobs."""
    done: set[str] = set()
    yield _header("blobs", 0, tarfile.DIRTYPE) + _header("blobs/sha256", 0, tarfile.DIRTYPE)
    for image in images:
        for blob in image.stored.blobs:
            if blob.digest not in done:
                done.add(blob.digest)
                yield from _file(store.blob(blob.digest), blob)
    yield from _document("index.json", _index(images))
    if docker:
        yield from _document("manifest.json", [_docker_entry(image) for image in images])
    yield from _document("oci-layout", {"imageLayoutVersion": "1.0.0"})
    yield bytes(2 * _BLOCK)


def _index(images: Sequence[Wanted]) -> dict[str, Any]:
    entries: list[dict[str, Any]] = []
    for image in images:
        manifest = image.stored.manifest
        plain = {"mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.size}
        entries += [{**plain, "annotations": _annotations(reference)} for reference in image.references]
        if not image.references:
            entries.append(plain)
    return {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": entries,
    }


def _annotations(reference: str) -> dict[str, str]:
    tag = names.parse_reference(reference).tag
    notes = {"io.containerd.image.name": reference}
    return {**notes, "org.opencontainers.image.ref.name": tag} if tag else notes


def _docker_entry(image: Wanted) -> dict[str, Any]:
    tags = [names.parse_reference(reference).familiar for reference in image.references]
    return {
        "Config": _path(image.stored.config.digest),
        "RepoTags": tags or None,
        "Layers": [_path(layer.digest) for layer in image.stored.layers],
    }


def _path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def _document(name: str, value: Any) -> Iterator[bytes]:
    data = json.dumps(value, separators=(",", ":")).encode()
    yield _header(name, len(data)) + data + bytes(-len(data) % _BLOCK)


def _file(path: str, blob: Blob) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size != blob.size:
            raise NotFound(
                f"blob {blob.digest!r} is damaged: not {blob.size} bytes", hint="knarr image check --repair"
            )
        yield _header(_path(blob.digest), blob.size)
        while piece := file.read(_PIECE):
            yield piece
    yield bytes(-blob.size % _BLOCK)
