"""Hostile manifests, configs, compressions and image archives. Out of scope: what is in the layers (`corpus`)."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import zstandard
from tests.support import images
from tests.support.images import Member

if TYPE_CHECKING:
    from collections.abc import Callable

LAYER = images.tar_bytes([Member("a", b"x")])
CONFIG = json.loads(images.config_bytes([LAYER], cmd=["sh"]))
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
NOWHERE = "sha256:" + "0" * 64


@dataclass(frozen=True, kw_only=True)
class ImageCase:
    name: str
    blobs: dict[str, bytes]
    """by digest; what stands there need not match"""
    entry: dict[str, Any]
    """the descriptor of the manifest or index"""
    refused: str | None
    """part of the error's message; None: it is taken"""


def _raw(config: bytes, layer: bytes = LAYER, kind: str = GZIP, /, **manifest: Any) -> ImageCase:
    """An image of one layer blob as it stands (packed by gzip if it is the usual one)."""
    blob = gzip.compress(layer, mtime=0) if layer is LAYER else layer
    layers = [{"mediaType": kind, "digest": images.sha256(blob), "size": len(blob)}]
    described = {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": images.sha256(config),
        "size": len(config),
    }
    body = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": layers} | manifest
    data = json.dumps({key: value for key, value in body.items() if value is not ...}).encode()
    return _stored({images.sha256(config): config, images.sha256(blob): blob}, data)


def _stored(blobs: dict[str, bytes], manifest: bytes, kind: str = MANIFEST) -> ImageCase:
    digest = images.sha256(manifest)
    entry = {"mediaType": kind, "digest": digest, "size": len(manifest)}
    return ImageCase(name="", blobs={**blobs, digest: manifest}, entry=entry, refused=None)


def _named(name: str, case: ImageCase, refused: str | None) -> ImageCase:
    return ImageCase(name=name, blobs=case.blobs, entry=case.entry, refused=refused)


def _body(change: dict[str, Any]) -> bytes:
    return json.dumps({key: value for key, value in (CONFIG | change).items() if value is not ...}).encode()


def _documents() -> dict[str, tuple[bytes, str | None]]:
    """Configs as JSON texts."""
    whole = _body({})
    return {
        "config-no-json": (b"\x00", "not valid JSON"),
        "config-empty": (b"", "not valid JSON"),
        "config-a-list": (b"[]", "not a JSON object"),
        "config-a-bomb": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        "config-nested": (b'{"a":' * 70 + b"1" + b"}" * 70, "nested too deeply"),
        "config-two-keys": (b'{"rootfs":{},' + whole[1:], "twice"),
        "config-two-keys-escaped": (b'{"root\\u0066s":{},' + whole[1:], "twice"),
        "config-utf16": (whole.decode().encode("utf-16"), "not valid JSON"),
        "config-bom": (b"\xef\xbb\xbf" + whole, "not valid JSON"),
        "config-nan": (whole[:-1] + b',"x":NaN}', "not a JSON number"),
        "config-long-number": (whole[:-1] + b',"x":' + b"9" * 100_000 + b"}", "not valid JSON"),
        "config-and-more": (whole + b"{}", "not valid JSON"),
        "config-9-mb": (whole + b" " * (9 << 20), "larger than"),
    }  # fmt: skip


def configs() -> list[ImageCase]:
    def inner(**change: Any) -> bytes:
        return _body({"config": CONFIG["config"] | change})

    def ids(value: Any) -> bytes:
        return _body({"rootfs": {"type": "layers", "diff_ids": value}})

    good = CONFIG["rootfs"]["diff_ids"][0]
    cases: dict[str, tuple[bytes, str | None]] = {
        "diff-id-of-another": (ids([NOWHERE]), "not to its diff id"),
        "diff-ids-too-few": (ids([]), "names 0 layers"),
        "diff-ids-too-many": (ids([good, good]), "names 2 layers"),
        "diff-ids-a-flood": (ids([good] * 100_000), "names 100000 layers"),
        "diff-ids-upper-case": (ids([good.upper()]), "no list of diff ids"),
        "diff-ids-a-path": (ids(["sha256:../../../../etc/passwd"]), "no list of diff ids"),
        "diff-ids-a-text": (ids(good), "no list of diff ids"),
        "diff-ids-numbers": (ids([1]), "no list of diff ids"),
        "rootfs-missing": (_body({"rootfs": ...}), "no list of diff ids"),
        "rootfs-a-list": (_body({"rootfs": []}), "no list of diff ids"),
        "rootfs-of-another-kind": (_body({"rootfs": {"type": "tars", "diff_ids": [good]}}), "not made of layers"),
        "config-inner-a-list": (_body({"config": []}), "not an object"),
        "env-a-text": (inner(Env="A=1"), "not a list of plain texts"),
        "env-nul": (inner(Env=["A=\0"]), "not a list of plain texts"),
        "env-newline": (inner(Env=["A=1\nLD_PRELOAD=/x"]), None),
        "env-without-name": (inner(Env=["=x", "y", ""]), None),
        "env-a-flood": (inner(Env=["A=1"] * 50_000), None),
        "labels-a-list": (inner(Labels=["a"]), "not an object"),
        "labels-numbers": (inner(Labels={"a": 1}), "not a plain text"),
        "labels-huge": (inner(Labels={"a": "x" * (4 << 20)}), None),
        "labels-many": (inner(Labels={f"k{at}": "" for at in range(100_000)}), None),
        "user-number": (inner(User=0), "not a plain text"),
        "user-odd": (inner(User="0x0:+1"), None),
        "entrypoint-a-text": (inner(Entrypoint="sh"), "not a list of plain texts"),
        "entrypoint-an-object": (inner(Entrypoint={"a": 1}), "not a list of plain texts"),
        "cmd-numbers": (inner(Cmd=[1]), "not a list of plain texts"),
        "cmd-half-a-pair": (inner(Cmd=["\ud800"]), "not a list of plain texts"),
        "volumes-a-list": (inner(Volumes=["/a"]), "not an object"),
        "volumes-dotdot": (inner(Volumes={"/../../etc": {}, "../x": {}}), None),
        "volumes-nul": (inner(Volumes={"/a\0b": {}}), "not a plain text"),
        "ports-odd": (inner(ExposedPorts={"99999/xyz": {}, "-1": {}}), None),
        "folder-odd": (inner(WorkingDir="../../proc/self/fd/3"), None),
        "health-negative": (inner(Healthcheck={"Test": ["CMD", "x"], "Interval": -1}), "not a number"),
        "health-a-text": (inner(Healthcheck="x"), "not an object"),
        "health-huge": (inner(Healthcheck={"Interval": 1 << 80}), "not a number"),
        "stop-signal-odd": (inner(StopSignal="SIGKILL; rm"), None),
        "platform-other": (_body({"architecture": "s390x"}), "this host is|not there for"),
        "platform-windows": (_body({"os": "windows"}), "this host is|not there for"),
        "platform-escapes": (_body({"architecture": "\x1b[2J"}), "this host is|not there for"),
        "history-odd": (_body({"history": {"a": [1]}}), None),
        "created-odd": (_body({"created": "yesterday\n"}), None),
    }  # fmt: skip
    found = cases | _documents()
    return [_named(name, _raw(config), text) for name, (config, text) in found.items()]


def manifests() -> list[ImageCase]:
    config = json.dumps(CONFIG).encode()
    honest = _raw(config)
    body = json.loads(honest.blobs[honest.entry["digest"]])
    layer, described = body["layers"][0], body["config"]

    def with_layer(**change: Any) -> ImageCase:
        return _raw(config, layers=[layer | change])

    def with_config(**change: Any) -> ImageCase:
        return _raw(config, config=described | change)

    def text(data: bytes) -> ImageCase:
        return _stored(honest.blobs, data)

    raw = honest.blobs[honest.entry["digest"]]
    cases: dict[str, tuple[ImageCase, str | None]] = {
        "layer-size-less": (with_layer(size=layer["size"] - 1), ""),
        "layer-size-more": (with_layer(size=layer["size"] + 1), ""),
        "layer-size-huge": (with_layer(size=1 << 62), "of the size"),
        "layer-size-negative": (with_layer(size=-1), "of the size"),
        "layer-size-float": (with_layer(size=1.5), "of the size"),
        "layer-size-text": (with_layer(size="1"), "of the size"),
        "layer-size-true": (with_layer(size=True), "of the size"),
        "layer-digest-missing": (with_layer(digest=NOWHERE), ""),
        "layer-digest-path": (with_layer(digest="sha256:../../../../etc/passwd"), "digest"),
        "layer-digest-upper": (with_layer(digest=layer["digest"].upper()), "digest"),
        "layer-digest-sha512": (with_layer(digest="sha512:" + "0" * 128), "only sha256|sha512"),
        "layer-digest-md5": (with_layer(digest="md5:" + "0" * 32), "digest"),
        "layer-foreign": (with_layer(mediaType="application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
                                     urls=["http://127.0.0.1:1/x"]), "foreign"),
        "layer-urls": (with_layer(urls=["file:///etc/passwd", "http://127.0.0.1:1/"]), None),
        "layer-of-another-kind": (with_layer(mediaType="application/x-sh"), "of the kind"),
        "layer-kind-lies": (with_layer(mediaType=GZIP.replace("gzip", "zstd")), None),
        "layers-a-flood": (_raw(config, layers=[layer] * 600), "more than 512"),
        "layers-an-object": (_raw(config, layers={}), "no list 'layers'"),
        "layers-missing": (_raw(config, layers=...), "no list 'layers'"),
        "layers-of-texts": (_raw(config, layers=["x"]), "not an object"),
        "config-size-lies": (with_config(size=described["size"] + 1), ""),
        "config-is-the-layer": (with_config(digest=layer["digest"], size=layer["size"]), ""),
        "config-huge": (with_config(size=1 << 30), "larger than"),
        "config-of-a-chart": (with_config(mediaType="application/vnd.cncf.helm.config.v1+json"), "not a container image"),
        "config-a-text": (_raw(config, config="x"), "not an object"),
        "config-missing": (_raw(config, config=...), ""),
        "schema-1": (_raw(config, schemaVersion=1), "schema 1"),
        "schema-text": (_raw(config, schemaVersion="2"), "schema version"),
        "both-kinds": (_raw(config, manifests=[]), "manifest and an index at once"),
        "kind-says-index": (_raw(config, mediaType=INDEX), "media type"),
        "kind-says-else": (_raw(config, mediaType="text/html"), "of the kind"),
        "kind-a-list": (_raw(config, mediaType=[]), "media type"),
        "spelled-otherwise": (_raw(config, Layers=[]), "spells"),
        "two-keys": (text(b'{"layers":[],' + raw[1:]), "twice"),
        "a-bomb": (text(b'{"a":' + b"[" * 200_000), ""),
        "5-mb": (text(raw + b" " * (5 << 20)), ""),
        "not-json": (text(b"<html>"), "not valid JSON"),
        "subject": (_raw(config, subject=honest.entry), None),
        "annotations-odd": (_raw(config, annotations={"a": [1]}), None),
        "honest": (honest, None),
    }  # fmt: skip
    return [_named(f"manifest-{name}", case, text) for name, (case, text) in cases.items()]


def indexes() -> list[ImageCase]:
    honest = _raw(json.dumps(CONFIG).encode())

    def wrapped(case: ImageCase, times: int = 1, **change: Any) -> ImageCase:
        for _ in range(times):
            entry = case.entry | {"platform": {"os": "linux", "architecture": "amd64"}} | change
            body = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).encode()
            case = _stored(case.blobs, body, INDEX)
        return case

    arm = _raw(json.dumps(CONFIG | {"architecture": "arm64"}).encode())
    flood = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [honest.entry] * 5000}).encode()
    cases: dict[str, tuple[ImageCase, str | None]] = {
        "one": (wrapped(honest), None),
        "nested": (wrapped(honest, 9), "index of indexes"),
        "platform-lies": (wrapped(arm), "not there for|this host is"),
        "platform-other": (
            wrapped(honest, platform={"os": "linux", "architecture": "s390x"}),
            "not there for",
        ),
        "platform-escapes": (
            wrapped(honest, platform={"os": "\x1b[2J", "architecture": "\x07"}),
            "not there for",
        ),
        "entry-size-lies": (wrapped(honest, size=5), ""),
        "entry-digest-missing": (wrapped(honest, digest=NOWHERE), ""),
        "entry-kind-lies": (wrapped(honest, mediaType=INDEX), "media type"),
        "flood": (_stored(honest.blobs, flood, INDEX), "more than 1024"),
        "empty": (_stored({}, b'{"schemaVersion":2,"manifests":[]}', INDEX), "not there for"),
    }
    return [_named(f"index-{name}", case, text) for name, (case, text) in cases.items()]


def compressions() -> list[ImageCase]:
    config = json.dumps(CONFIG).encode()
    packed, half = gzip.compress(LAYER, mtime=0), len(LAYER) // 2
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(LAYER)
    window = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    wide = zstandard.ZstdCompressor(compression_params=window, dict_data=None).compressobj()
    wide_frame = wide.compress(LAYER) + wide.flush()
    cases: dict[str, tuple[bytes, str | None]] = {
        "gzip-members": (gzip.compress(LAYER[:half], mtime=0) + gzip.compress(LAYER[half:], mtime=0), None),
        "gzip-empty-members": (gzip.compress(b"", mtime=0) * 2000 + packed, None),
        "gzip-zeros-behind": (packed + bytes(5000), None),
        "gzip-garbage-behind": (packed + b"garbage", "trailing garbage"),
        "gzip-cut": (packed[:-9], "gzip"),
        "gzip-wrong-sum": (packed[:-8] + bytes(4) + packed[-4:], "gzip"),
        "gzip-wrong-length": (packed[:-4] + bytes(4), "gzip"),
        "gzip-head-only": (packed[:10], "gzip"),
        "gzip-long-name": (packed[:3] + b"\x08" + packed[4:10] + b"n" * 100_000 + b"\0" + packed[10:], None),
        "gzip-in-gzip": (gzip.compress(packed, mtime=0), ""),
        "gzip-of-nothing": (gzip.compress(b"", mtime=0), "diff id"),
        "zstd": (frame, None),
        "zstd-frames": (zstandard.compress(LAYER[:half]) + zstandard.compress(LAYER[half:]), None),
        "zstd-skippable": (b"\x50\x2a\x4d\x18\x04\0\0\0abcd" * 500 + frame, None),
        "zstd-cut": (frame[:-3], ""),
        "zstd-window": (wide_frame, "zstd layer is broken"),
        "zstd-garbage-behind": (frame + b"garbage", "zstd"),
        "bzip2": (b"BZh91AY&SY" + bytes(90), "bzip2"),
        "xz": (b"\xfd7zXZ\0" + bytes(90), "xz"),
        "zip": (b"PK\x03\x04" + bytes(90), "zip"),
        "nothing": (b"", ""),
    }  # fmt: skip
    return [_named(f"bytes-{name}", _raw(config, blob), text) for name, (blob, text) in cases.items()]


def archives() -> list[tuple[str, bytes, str]]:
    """Whole archives in docker's form, all refused: (name, bytes, part of the message)."""
    config = json.dumps(CONFIG).encode()

    def saved(entry: Any, *more: Member, raw: bytes | None = None) -> bytes:
        document = json.dumps([entry]).encode() if raw is None else raw
        return images.tar_bytes(
            [Member("manifest.json", document), Member("c.json", config), Member("l.tar", LAYER), *more]
        )

    good = {"Config": "c.json", "RepoTags": ["x:1"], "Layers": ["l.tar"]}
    outside = [
        images.symlink("out.tar", "../../../../../../etc/passwd"),
        images.hardlink("hard.tar", "/etc/passwd"),
    ]
    loop = [images.symlink("loop.tar", "loop2.tar"), images.symlink("loop2.tar", "loop.tar")]
    return [
        ("config-climbs", saved(good | {"Config": "../../../etc/passwd"}), "no member"),
        ("config-absolute", saved(good | {"Config": "/etc/passwd"}), "no member"),
        ("layer-climbs", saved(good | {"Layers": ["../../etc/shadow"]}), "no member"),
        ("layer-symlink-outside", saved(good | {"Layers": ["out.tar"]}, *outside), "no member"),
        ("layer-hardlink-outside", saved(good | {"Layers": ["hard.tar"]}, *outside), "no member"),
        ("layer-symlink-loop", saved(good | {"Layers": ["loop.tar"]}, *loop), "no member"),
        ("layer-a-folder", saved(good | {"Layers": ["d"]}, images.folder("d")), "no member"),
        ("layer-a-device", saved(good | {"Layers": ["n"]}, Member("n", kind=b"3", device=(1, 5))), "no member"),
        ("layers-a-text", saved(good | {"Layers": "l.tar"}), "list that is none"),
        ("layers-a-flood", saved(good | {"Layers": ["l.tar"] * 600}), "too long"),
        ("tags-numbers", saved(good | {"RepoTags": [1]}), "list that is none"),
        ("tag-odd", saved(good | {"RepoTags": ["../../x:\x1b[2J"]}), ""),
        ("tags-a-flood", saved(good | {"RepoTags": ["x:1"] * 300}), "too long"),
        ("images-a-flood", saved(None, raw=json.dumps([good] * 300).encode()), "at most 256"),
        ("entry-a-text", saved("x"), "without config"),
        ("manifest-twice", saved(good, Member("manifest.json", b"[]")), "two members"),
        ("manifest-twice-dotted", saved(good, Member("./x/../manifest.json", b"[]")), "two members"),
        ("manifest-a-bomb", saved(None, raw=b"[" * 200_000), "not valid JSON"),
        ("manifest-closes-early", saved(None, raw=b'[],"x":[]'), "not a list"),
        ("manifest-two-keys", saved(None, raw=b'[{"Config":"c.json","Config":"l.tar"}]'), "twice"),
        ("config-is-a-layer", saved(good | {"Config": "l.tar"}), "not valid JSON"),
        ("zip", b"PK\x03\x04" + bytes(2000), "zip"),
        ("gzip-bomb-of-nothing", gzip.compress(bytes(64 << 20), 9), "no image"),
        ("gzip-cut", gzip.compress(saved(good))[:-20], "cut short"),
    ]  # fmt: skip


def cases() -> list[ImageCase]:
    makers: tuple[Callable[[], list[ImageCase]], ...] = (configs, manifests, indexes, compressions)
    found = [case for make in makers for case in make()]
    assert len({case.name for case in found}) == len(found)
    return found
