"""What images say of themselves: typed and bounded, or refused."""

from __future__ import annotations

import json

import pytest

from knarr.images.catalog import Catalog
from knarr.images.config import make_manifest, parse_config, parse_manifest
from knarr.model.errors import Invalid, NotFound

D = "sha256:" + "a" * 64


def config(inner=None, **outer) -> bytes:
    return json.dumps(
        {"os": "linux", "architecture": "amd64", "config": inner, "rootfs": {"diff_ids": []}, **outer}
    ).encode()


def test_reads_what_a_runtime_needs():
    parsed, ids = parse_config(
        config(
            {
                "Entrypoint": ["/init"], "Cmd": ["a", "b"], "Env": ["A=1", "=x", "B", "C=two\nlines"], "User": "1000:7",
                "WorkingDir": "/w", "Volumes": {"/v": {}}, "ExposedPorts": {"80/tcp": {}}, "Labels": {"k": "v"},
                "StopSignal": "SIGINT", "Healthcheck": {"Test": ["x"]}, "OnBuild": None,
            },
            rootfs={"type": "layers", "diff_ids": [D, D]}, created="2026-01-01T00:00:00Z", history=[{}],
        )
    )  # fmt: skip
    assert (parsed.entrypoint, parsed.cmd, parsed.user, parsed.workdir) == (
        ("/init",),
        ("a", "b"),
        "1000:7",
        "/w",
    )
    assert parsed.env == ("A=1", "B", "C=two\nlines")
    assert (parsed.volumes, parsed.exposed_ports, parsed.labels) == (("/v",), ("80/tcp",), {"k": "v"})
    assert (parsed.stop_signal, parsed.created, ids) == ("SIGINT", "2026-01-01T00:00:00Z", (D, D))


@pytest.mark.parametrize(
    "inner", [None, {}, {"Cmd": None, "Env": None, "Labels": None, "Volumes": None, "User": None}]
)
def test_nothing_said(inner):
    assert parse_config(config(inner))[0].cmd == ()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"null", b"{", b'"x"', b"\xff", b'{"a":1,"a":2}', b'{"config":{"User":"a","User":"b"}}',
        b"[" * 5000 + b"]" * 5000, b'{"x":' * 200_000, b'{"x":"' + b"a" * (9 << 20) + b'"}',
        config({"Cmd": "sh"}), config({"Cmd": [1]}), config({"Env": ["A=\0"]}), config({"User": 0}), config({"User": "a\0"}),
        config({"User": "\ud800"}), config({"Env": ["A=\udc80"]}), config({"Cmd": ["\udfff"]}), config({"Labels": {"\ud800": ""}}),
        config({"Labels": {"a": "\ud800"}}), config({"Volumes": {"/\ud800": {}}}), config(architecture="\ud800"),
        config({"Labels": {"a": 1}}), config({"Volumes": ["/v"]}), config([]), config(rootfs=[]),
        config(rootfs={"type": "other"}), config(rootfs={"diff_ids": ["sha256:x"]}),
        config(rootfs={"diff_ids": ["sha256:" + "A" * 64]}), config(rootfs={"diff_ids": [D] * 513}),
        config(rootfs={"diff_ids": ["sha512:" + "a" * 128]}), config(rootfs={"diff_ids": [D + "\n"]}),
    ],
)  # fmt: skip
def test_refused_configs(data):
    with pytest.raises(Invalid):
        parse_config(data)


@pytest.mark.parametrize(
    "change",
    [
        {"config": None}, {"config": {"digest": D}}, {"config": {"digest": D, "size": -1}}, {"config": {"digest": "x", "size": 1}},
        {"layers": {}}, {"layers": [1]}, {"layers": [{"digest": D, "size": True}]}, {"manifests": []},
    ],
)  # fmt: skip
def test_refused_manifests(change):
    document = {**json.loads(make_manifest(D, 5, [(D, 7, "t")])), **change}
    with pytest.raises(Invalid):
        parse_manifest(json.dumps(document).encode())


def test_our_own_manifest_is_a_manifest():
    view = parse_manifest(make_manifest(D, 5, [(D, 7, "t")]))
    assert (view.config_digest, view.layers) == (D, ((D, 7),))


def test_names_of_images():
    class Image:
        digest = D

        def __init__(self, image_id):
            self.id = image_id

    ids = ["sha256:abc" + "0" * 61, "sha256:abd" + "0" * 61]
    catalog = Catalog({name: Image(name) for name in ids}, {"docker.io/library/abc:latest": ids[1]})
    assert catalog.find("abc")[0].id == ids[1]
    assert catalog.find("abc0")[0].id == catalog.find("sha256:abc")[0].id == ids[0]
    with pytest.raises(Invalid, match="not unique"):
        catalog.find("ab")
    for name in ("Upper", "", "a b", "f" * 64, "ff", "host/x"):
        with pytest.raises((Invalid, NotFound)):
            catalog.find(name)
