"""Manifests, indexes and configs of images as untrusted JSON: checked, then turned into frozen values.

Shared by the registry client and the archive readers. Where the bytes come from and what a config means
to a runtime are not this module's business.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from knarr.model.errors import Invalid, KnarrError, NotFound, Unsupported
from knarr.model.names import Platform, check_digest, host_platform, is_digest

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

INDEXES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFESTS: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
_CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})
_LAYERS = frozenset(
    {OCI_LAYER, f"{OCI_LAYER}+gzip", f"{OCI_LAYER}+zstd", _DOCKER_LAYER}
    | {f"{_DOCKER_LAYER}.{suffix}" for suffix in ("gzip", "zstd")}
)
_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+"

MAX_MANIFEST: Final = 4 << 20
"""the size that the distribution specification asks registries to take"""
MAX_CONFIG: Final = 8 << 20
MAX_LAYERS: Final = 512
_PLATFORM_KEYS = ("os", "architecture", "variant")
_WORD = re.compile(r"[A-Za-z0-9._-]{0,60}", re.ASCII)
_BROKEN = "the image's source is broken"
_MAX_ENTRIES = 1024
_MAX_DEPTH = 64
_MAX_NESTING = 3
_MAX_LAYER = 1 << 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Descriptor:
    """A pointer to a blob."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: tuple[tuple[str, str], ...] = ()

    def annotation(self, key: str) -> str:
        return dict(self.annotations).get(key, "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    entries: tuple[Descriptor, ...]


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def check_blob(what: str, data: bytes, digest: str, size: int | None = None) -> None:
    """Raises `Invalid` if these are not the bytes that were promised."""
    if size is not None and len(data) != size:
        raise Invalid(f"{what} has {len(data)} bytes, {size} were promised", hint=_BROKEN)
    algorithm, _, expected = digest.partition(":")
    if hashlib.new(algorithm, data).hexdigest() != expected:
        raise Invalid(
            f"{what} does not match its digest {digest}", hint="the image's source is broken or tampered with"
        )


def parse_json(what: str, data: bytes, limit: int) -> dict[str, Any]:
    """A JSON object without duplicate keys, not deeper than a manifest may be. Raises `Invalid`."""
    if len(data) > limit:
        raise Invalid(f"{what} is larger than {limit} bytes", hint="it is not an image's metadata")
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Invalid(f"{what} is not valid JSON: {reason[:200]}", hint=_BROKEN) from error
    if not isinstance(value, dict):
        raise Invalid(f"{what} is not a JSON object", hint=_BROKEN)
    _check_depth(what, value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands there twice")
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _check_depth(what: str, value: Any) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise Invalid(f"{what} is nested too deeply", hint="it is not an image's metadata")


def parse(what: str, data: bytes, media_type: str = "") -> Manifest | Index:
    """A manifest or an index. `media_type` is what the source says of it (empty: nothing).

    A body that could be read as both kinds, or whose own media type disagrees, is refused: two readers
    would see two images behind one digest.
    """
    body = parse_json(what, data, MAX_MANIFEST)
    lowered = {key.lower(): key for key in body}
    for key in ("mediaType", "schemaVersion", "config", "layers", "manifests"):
        if lowered.get(key.lower(), key) != key:
            raise Invalid(f"{what} spells {key!r} as {lowered[key.lower()]!r}", hint=_BROKEN)
    if body.get("schemaVersion") == 1 or media_type.startswith(_SCHEMA1):
        raise Unsupported(
            f"{what} is in the old schema 1", hint="push the image again with a tool of this decade"
        )
    if body.get("schemaVersion") != 2:
        raise Invalid(f"{what} has no schema version 2", hint=_BROKEN)
    kind = _kind(what, body, media_type)
    return _index(what, body) if kind in INDEXES else _manifest(what, body)


def _kind(what: str, body: dict[str, Any], media_type: str) -> str:
    inner = body.get("mediaType", "")
    if not isinstance(inner, str):
        raise Invalid(f"{what} has a media type that is no text", hint=_BROKEN)
    is_index = "manifests" in body
    if is_index and ({"config", "layers", "fsLayers"} & set(body)):
        raise Invalid(
            f"{what} is a manifest and an index at once", hint="the image's source is broken or hostile"
        )
    shape = OCI_INDEX if is_index else OCI_MANIFEST
    said = [kind for kind in (inner, media_type) if kind in INDEXES | MANIFESTS]
    if inner and inner not in INDEXES | MANIFESTS:
        raise Unsupported(
            f"{what} is of the kind {str(inner)[:100]!r}", hint="only container images can be used"
        )
    if len(set(said)) > 1 or any((kind in INDEXES) != is_index for kind in said):
        raise Invalid(
            f"{what} is not of the kind that its media type says",
            hint="the image's source is broken or hostile",
        )
    return said[0] if said else shape


def _index(what: str, body: dict[str, Any]) -> Index:
    entries = _list(what, body, "manifests", _MAX_ENTRIES)
    return Index(entries=tuple(parse_descriptor(what, entry) for entry in entries))


def _manifest(what: str, body: dict[str, Any]) -> Manifest:
    config = parse_descriptor(what, body.get("config"))
    if config.media_type not in _CONFIGS:
        raise Unsupported(
            f"{what} holds {config.media_type[:100]!r}, not a container image",
            hint="it may be a chart or a signature",
        )
    if config.size > MAX_CONFIG:
        raise Invalid(f"{what} has a config larger than {MAX_CONFIG} bytes", hint=_BROKEN)
    layers = tuple(parse_descriptor(what, layer) for layer in _list(what, body, "layers", MAX_LAYERS))
    for layer in layers:
        _check_layer(what, layer)
    return Manifest(config=config, layers=layers)


def _check_layer(what: str, layer: Descriptor) -> None:
    if "nondistributable" in layer.media_type or "foreign" in layer.media_type:
        raise Unsupported(
            f"{what} has a layer kept elsewhere (foreign)",
            hint="only layers of the registry itself are pulled",
        )
    if layer.media_type not in _LAYERS:
        raise Unsupported(
            f"{what} has a layer of the kind {layer.media_type[:100]!r}", hint="tar, tar+gzip or tar+zstd"
        )


def _list(what: str, body: dict[str, Any], key: str, limit: int) -> list[Any]:
    value = body.get(key)
    if not isinstance(value, list):
        raise Invalid(f"{what} has no list {key!r}", hint=_BROKEN)
    if len(value) > limit:
        raise Invalid(f"{what} has {len(value)} {key}, more than {limit}", hint=_BROKEN)
    return value


def parse_descriptor(what: str, value: Any) -> Descriptor:
    """Raises `Invalid` on anything but a media type, a lower case sha256 digest and a size."""
    if not isinstance(value, dict):
        raise Invalid(f"{what} has a descriptor that is not an object", hint=_BROKEN)
    media_type, digest, size = value.get("mediaType"), value.get("digest"), value.get("size")
    if not isinstance(media_type, str) or not isinstance(digest, str):
        raise Invalid(f"{what} has a descriptor without media type or digest", hint=_BROKEN)
    check_digest(digest)
    if not digest.startswith("sha256:"):
        raise Unsupported(
            f"{what} uses {digest.partition(':')[0]}", hint="only sha256 contents can be stored"
        )
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MAX_LAYER:
        raise Invalid(f"{what} has a descriptor of the size {str(size)[:30]!r}", hint=_BROKEN)
    notes = value.get("annotations")
    return Descriptor(
        media_type=media_type,
        digest=digest,
        size=size,
        platform=_platform(value.get("platform")),
        annotations=tuple((str(key), str(text)) for key, text in notes.items())
        if isinstance(notes, dict)
        else (),
    )


def _platform(value: Any) -> Platform | None:
    if not isinstance(value, dict):
        return None
    parts = [value.get(key) or "" for key in _PLATFORM_KEYS]
    # these words end up in messages, on terminals
    return Platform(*(str(part) if _WORD.fullmatch(str(part)) else "unknown" for part in parts))


Fetch = Callable[[Descriptor], bytes]


def choose(what: str, entries: tuple[Descriptor, ...], platform: Platform | None) -> Descriptor:
    """The entry of an index for this platform (None: the host's). Raises `NotFound` naming what there is."""
    wanted = platform or host_platform()
    known = [entry for entry in entries if entry.media_type in INDEXES | MANIFESTS]
    fits = [entry for entry in known if entry.platform is not None and wanted.runs(entry.platform)]
    exact = [
        entry for entry in fits if entry.platform is not None and entry.platform.variant == wanted.variant
    ]
    plain = [entry for entry in known if entry.platform is None]
    if exact or fits or plain:
        return (exact or fits or plain)[0]
    there = sorted(
        {str(entry.platform) for entry in known if entry.platform and entry.platform.os != "unknown"}
    )
    raise NotFound(
        f"{what} is not there for {wanted}", hint=f"it is there for: {', '.join(there[:12]) or 'nothing'}"
    )


def descend(
    what: str, data: bytes, media_type: str, platform: Platform | None, fetch: Fetch
) -> tuple[bytes, Manifest]:
    """Follow indexes down to the platform's manifest; `fetch` returns verified bytes."""
    for _ in range(_MAX_NESTING):
        found = parse(what, data, media_type)
        if isinstance(found, Manifest):
            return data, found
        entry = choose(what, found.entries, platform)
        data, media_type = fetch(entry), entry.media_type
    raise Invalid(f"{what} is an index of indexes of indexes", hint="the image's source is broken or hostile")


def check_config(what: str, config: bytes, layers: int, platform: Platform | None) -> None:
    """The config must describe as many layers as there are, for a platform that was meant."""
    body = parse_json(f"the config of {what}", config, MAX_CONFIG)
    rootfs = body.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list) or not all(isinstance(one, str) and is_digest(one) for one in diff_ids):
        raise Invalid(f"the config of {what} has no list of diff ids", hint=_BROKEN)
    if len(diff_ids) != layers:
        raise Invalid(
            f"the config of {what} names {len(diff_ids)} layers, there are {layers}",
            hint=_BROKEN,
        )
    made = (
        _platform({"os": "linux", **{key: body[key] for key in _PLATFORM_KEYS if body.get(key)}})
        or host_platform()
    )
    if made.architecture and not (platform or host_platform()).runs(made):
        raise platform_error(what, made, platform)


def platform_error(what: str, made: Platform, wanted: Platform | None) -> KnarrError:
    if wanted is None:
        return Unsupported(
            f"{what} is for {made}, this host is {host_platform()}", hint=f"--platform {made} takes it anyway"
        )
    return NotFound(f"{what} is not there for {wanted}", hint=f"it is there for: {made}")
