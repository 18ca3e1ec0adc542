"""OCI image config (image-spec config.md; Docker's is the same where it matters) → `ImageConfig` and diff
ids.

Everything here is an image's word: typed, bounded, and never policy. Out of scope: manifests' media types
and platforms (the registry client chose already).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from knarr.images.limits import DEFAULT, Limits
from knarr.model.errors import Invalid, Unsupported
from knarr.model.health import Health
from knarr.model.resource import ImageConfig

DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
GZIP_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestView:
    """What the store checks of a manifest."""

    config_digest: str
    layers: tuple[tuple[str, int], ...]
    """(digest, size)"""


def strict_json(data: bytes, what: str, limits: Limits = DEFAULT) -> dict[str, Any]:
    """A JSON object: bounded, and without duplicate keys (two readers could see two documents)."""
    if len(data) > limits.config_bytes:
        raise Invalid(f"{what} is larger than {limits.config_bytes} bytes")
    try:
        value = json.loads(data, object_pairs_hook=lambda pairs: _unique(pairs, what))
    except (ValueError, RecursionError) as error:
        raise Invalid(f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Invalid(f"{what} is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]], what: str) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise Invalid(f"{what} has a key twice")
    return value


def parse_config(data: bytes, limits: Limits = DEFAULT) -> tuple[ImageConfig, tuple[str, ...]]:
    """The runtime's part of the config, and the diff ids, bottom first."""
    document = strict_json(data, "image config", limits)
    os_name = _text(document, "os") or "linux"
    if os_name != "linux":
        raise Unsupported(
            f"image is for {os_name!r}, not linux", hint="choose another platform with --platform"
        )
    inner = _object(document, "config")
    config = ImageConfig(
        entrypoint=_texts(inner, "Entrypoint"),
        cmd=_texts(inner, "Cmd"),
        env=_env(inner),
        user=_text(inner, "User"),
        workdir=_text(inner, "WorkingDir"),
        volumes=tuple(_object(inner, "Volumes")),
        exposed_ports=tuple(_object(inner, "ExposedPorts")),
        labels=_labels(inner),
        stop_signal=_text(inner, "StopSignal"),
        health=_health(_object(inner, "Healthcheck")),
        architecture=_text(document, "architecture"),
        os=os_name,
        created=_text(document, "created"),
    )
    return config, _diff_ids(document, limits)


def _health(found: dict[str, Any]) -> Health | None:
    """Docker's extension of the format: nanoseconds."""
    if not found:
        return None
    keys = ("Interval", "Timeout", "StartPeriod", "StartInterval", "Retries")
    values = {key: found.get(key) or 0 for key in keys}
    for key, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
            raise Invalid(f"image config: health check: {key!r} is not a number")
    return Health(
        test=_texts(found, "Test"),
        interval=values["Interval"] / 1e9,
        timeout=values["Timeout"] / 1e9,
        start_period=values["StartPeriod"] / 1e9,
        start_interval=values["StartInterval"] / 1e9,
        retries=min(values["Retries"], 1 << 31),
    )


def _diff_ids(document: dict[str, Any], limits: Limits) -> tuple[str, ...]:
    rootfs = _object(document, "rootfs")
    if rootfs.get("type", "layers") != "layers":
        raise Invalid("image config has a rootfs that is not made of layers")
    ids = _texts(rootfs, "diff_ids")
    if len(ids) > limits.layers:
        raise Invalid(f"image has {len(ids)} layers, more than {limits.layers}")
    for diff_id in ids:
        if not DIGEST.fullmatch(diff_id):
            raise Invalid(f"image config has a bad diff id {diff_id!r}")
    return ids


def parse_manifest(data: bytes, limits: Limits = DEFAULT) -> ManifestView:
    """The digests of an image manifest. Raises `Invalid` for an index or anything else."""
    document = strict_json(data, "image manifest", limits)
    if "manifests" in document or "config" not in document:
        raise Invalid("image manifest is an index or has no config")
    layers = document.get("layers", [])
    if not isinstance(layers, list):
        raise Invalid("image manifest: 'layers' is not a list")
    return ManifestView(
        config_digest=_descriptor(document["config"])[0], layers=tuple(_descriptor(item) for item in layers)
    )


def _descriptor(value: Any) -> tuple[str, int]:
    digest = value.get("digest") if isinstance(value, dict) else None
    size = value.get("size") if isinstance(value, dict) else None
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise Invalid(f"image manifest has a bad digest {digest!r}")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise Invalid(f"image manifest has a bad size {size!r}")
    return digest, size


def make_manifest(config_digest: str, config_size: int, layers: list[tuple[str, int, str]]) -> bytes:
    """A manifest for an image that came without one. `layers`: (digest, size, media type), bottom first."""
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": config_digest, "size": config_size},
        "layers": [{"mediaType": kind, "digest": digest, "size": size} for digest, size, kind in layers],
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _object(document: dict[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Invalid(f"image config: {key!r} is not an object")
    if not all(_is_plain(name) for name in value):
        raise Invalid(f"image config: {key!r} has a name that is not a plain text")
    return value


def _is_plain(value: Any) -> bool:
    """JSON can spell half a surrogate pair, which no encoding of ours takes: lists of images would break."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(document: dict[str, Any], key: str) -> str:
    value = document.get(key)
    if value is None:
        return ""
    if not _is_plain(value):
        raise Invalid(f"image config: {key!r} is not a plain text")
    return str(value)


def _texts(document: dict[str, Any], key: str) -> tuple[str, ...]:
    value = document.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(_is_plain(item) for item in value):
        raise Invalid(f"image config: {key!r} is not a list of plain texts")
    return tuple(value)


def _env(document: dict[str, Any]) -> tuple[str, ...]:
    # an entry without a name can't be set by execve's convention; docker drops it as well
    return tuple(item for item in _texts(document, "Env") if item.partition("=")[0])


def _labels(document: dict[str, Any]) -> dict[str, str]:
    labels = _object(document, "Labels")
    for key, value in labels.items():
        if not _is_plain(value):
            raise Invalid(f"image config: label {key!r} is not a plain text")
    return labels
