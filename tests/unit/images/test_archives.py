"""docker save archives, OCI layouts and archives, root file systems; the same, broken and hostile."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import images
from tests.support.images import Member

from knarr.images import archives
from knarr.images.tarindex import TarIndex
from knarr.model.errors import Failed, Invalid, KnarrError, NotFound, Unsupported
from knarr.model.names import parse_platform

LAYERS = [
    images.tar_bytes([images.folder("etc"), Member("etc/motd", b"ahoy\n" * 2000)]),
    images.tar_bytes([Member("hello", b"x" * 70_000)]),
]
CONFIG = images.config_bytes(LAYERS, cmd=["sh"])
NAME = "docker.io/library/test:latest"


def load(path, tmp_path, platform=None):
    with archives.open_archive(str(path), str(tmp_path), platform) as found:
        return [(source, [content(layer) for layer in source.layers]) for source in found]


def content(layer):
    with layer.open() as pieces:
        data = b"".join(pieces)
    assert layer.size == len(data)
    assert layer.digest in ("", images.sha256(data))
    return data


def write(path, data):
    path.write_bytes(data)
    return path


def oci_tar(path, how="gzip", name="test:latest", change=lambda _blobs: None, more=()):
    blobs, entry = images.oci_blobs(LAYERS, CONFIG, how)
    change(blobs)
    entry = {**entry, "annotations": {"org.opencontainers.image.ref.name": name}}
    return write(path, images.tar_bytes([*images.oci_members(blobs, [entry]), *more]))


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"])
def test_docker_save(tmp_path, pack):
    path = images.docker_archive(str(tmp_path / "a.tar"), LAYERS, CONFIG, ["test", "other.example/x:1"])
    write(tmp_path / "b", pack(Path(path).read_bytes()))
    [(source, layers)] = load(tmp_path / "b", tmp_path)
    assert source.references == (NAME, "other.example/x:1")
    assert (source.manifest, source.config, layers) == (b"", CONFIG, LAYERS)
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "b"]


def test_a_descriptor_will_do(tmp_path):
    path = images.docker_archive(str(tmp_path / "a.tar"), LAYERS, CONFIG)
    fd = os.open(path, os.O_RDONLY)
    try:
        with archives.open_archive(fd, str(tmp_path)) as (source,):
            assert content(source.layers[1]) == LAYERS[1]
            assert content(source.layers[1]) == LAYERS[1]
    finally:
        os.close(fd)


def test_old_docker_archives_link_equal_layers(tmp_path):
    config = images.config_bytes([LAYERS[1], LAYERS[1]])
    manifest = [{"Config": "c.json", "RepoTags": None, "Layers": ["one/layer.tar", "two/layer.tar"]}]
    members = [
        Member("./one/layer.tar", LAYERS[1]),
        images.symlink("two/layer.tar", "../one/layer.tar"),
        Member("c.json", config),
        Member("manifest.json", json.dumps(manifest).encode()),
    ]
    [(source, layers)] = load(write(tmp_path / "a", images.tar_bytes(members)), tmp_path)
    assert layers == [LAYERS[1], LAYERS[1]]
    assert source.references == ()


@pytest.mark.parametrize("how", ["gzip", "zstd", "tar"])
def test_oci_layout_and_archive(tmp_path, how):
    (tmp_path / "layout").mkdir()
    images.oci_layout(str(tmp_path / "layout"), LAYERS, CONFIG, name="test:latest", how=how)
    for path in (tmp_path / "layout", oci_tar(tmp_path / "a.tar", how)):
        [(source, layers)] = load(path, tmp_path)
        assert source.references == (NAME,)
        assert images.sha256(source.manifest) == source.manifest_digest
        assert layers == [images.compress(layer, how)[0] for layer in LAYERS]
    [(source, _)] = load(oci_tar(tmp_path / "b.tar", how, name="latest"), tmp_path)
    assert source.references == ()


def test_skopeo_s_archives(tmp_path):
    (tmp_path / "layout").mkdir()
    images.oci_layout(str(tmp_path / "layout"), LAYERS, CONFIG)
    for kind in ("docker-archive", "oci-archive"):
        target = f"{kind}:{tmp_path}/{kind}:debian:bookworm"
        command = ["skopeo", "--insecure-policy", "copy", "-q", f"oci:{tmp_path}/layout:latest", target]
        subprocess.run(command, check=True, capture_output=True)
        [(source, layers)] = load(tmp_path / kind, tmp_path)
        assert source.references == ("docker.io/library/debian:bookworm",)
        assert json.loads(source.config)["rootfs"] == json.loads(CONFIG)["rootfs"]
        assert len(layers) == 2


def test_docker_s_newer_form_has_tags_in_one_document_and_manifests_in_the_other(tmp_path):
    _, entry = images.oci_blobs(LAYERS, CONFIG)
    config = "blobs/" + images.sha256(CONFIG).replace(":", "/")
    listed = [{"Config": config, "RepoTags": ["test:latest", "test:two"], "Layers": []}]
    path = oci_tar(tmp_path / "a", more=[Member("manifest.json", json.dumps(listed).encode())])
    [(source, _)] = load(path, tmp_path)
    assert source.manifest_digest == entry["digest"]
    assert source.references == (NAME, "docker.io/library/test:two")


def test_the_platform_is_chosen_below_a_nested_index(tmp_path):
    blobs, entries = {}, []
    for architecture in ("arm64", "amd64"):
        more, entry = images.oci_blobs(LAYERS, images.config_bytes(LAYERS, architecture=architecture))
        blobs |= more
        entries.append({**entry, "platform": {"os": "linux", "architecture": architecture}})
    kind = "application/vnd.oci.image.index.v1+json"
    inner = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": entries}).encode()
    blobs[images.sha256(inner)] = inner
    top = {"mediaType": kind, "digest": images.sha256(inner), "size": len(inner)}
    top["annotations"] = {"io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": "latest"}
    path = write(tmp_path / "a", images.tar_bytes(images.oci_members(blobs, [top])))
    assert json.loads(load(path, tmp_path)[0][0].config)["architecture"] == "amd64"
    [(source, _)] = load(path, tmp_path, parse_platform("arm64"))
    assert json.loads(source.config)["architecture"] == "arm64"
    with pytest.raises(NotFound, match="riscv64"):
        load(path, tmp_path, parse_platform("riscv64"))


def test_a_root_file_system_becomes_an_image(tmp_path):
    path = write(tmp_path / "a", gzip.compress(LAYERS[0]))
    with archives.open_rootfs(str(path), ("my/base:1",), settings={"Cmd": ["sh"]}) as source:
        assert source.references == ("docker.io/my/base:1",)
        config = json.loads(source.config)
        assert config["rootfs"]["diff_ids"] == [images.sha256(LAYERS[0])]
        assert config["config"]["Cmd"] == ["sh"]
        assert gzip.decompress(content(source.layers[0])) == LAYERS[0]


@pytest.mark.parametrize("data", [b"", b"hello", b"x" * 2000, gzip.compress(b"y" * 2000), b"\x1f\x8bbroken"])
def test_what_is_no_root_file_system_is_refused(tmp_path, data):
    path = write(tmp_path / "a", data)
    with pytest.raises(Invalid), archives.open_rootfs(str(path), ()):
        pass


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", Invalid),
        (b"no tar at all" * 100, Invalid),
        (images.tar_bytes([Member("etc/passwd", b"x")]), Invalid),
        (b"BZh91AY" + b"x" * 600, Unsupported),
        (images.tar_bytes([Member("manifest.json", b"[]")]), NotFound),
        (images.tar_bytes([Member("manifest.json", b"{}")]), Invalid),
        (images.tar_bytes([Member("manifest.json", b'[], "x": []')]), Invalid),
        (images.tar_bytes([Member("manifest.json", b"[" * 100_000)]), Invalid),
        (
            images.tar_bytes([Member("manifest.json", b'[{"Config":"../../etc/passwd","Layers":[]}]')]),
            Invalid,
        ),
        (images.tar_bytes([Member("manifest.json", b"[]"), Member("./manifest.json", b"[]")]), Invalid),
        (images.tar_bytes([images.symlink("manifest.json", "manifest.json")]), Invalid),
        (
            images.tar_bytes(
                [Member("manifest.json", b'[{"Config":"c","Layers":["l"],"RepoTags":["A B"]}]')]
            ),
            Invalid,
        ),
        (images.tar_bytes([Member("manifest.json", b"[]" + b" " * (5 << 20))]), Invalid),
    ],
)
def test_broken_archives_are_refused_in_a_sentence(tmp_path, data, kind):
    with pytest.raises(kind) as caught:
        load(write(tmp_path / "a", data), tmp_path)
    assert "\n" not in caught.value.message
    assert os.listdir(tmp_path) == ["a"]


def test_an_archive_cut_short_is_refused(tmp_path):
    whole = Path(images.docker_archive(str(tmp_path / "a"), LAYERS, CONFIG)).read_bytes()
    for end in range(512, len(whole) - 10_240, 9973):
        with pytest.raises(KnarrError):
            load(write(tmp_path / "b", whole[:end]), tmp_path)


def flipped(blobs, which):
    for digest, data in blobs.items():
        if which(data):
            blobs[digest] = data[:-1] + bytes((data[-1] ^ 1,))
            return


@pytest.mark.parametrize(
    "which",
    [lambda data: data == CONFIG, lambda data: b'"layers"' in data, lambda data: data[:2] == b"\x1f\x8b"],
)
def test_blobs_must_match_their_digests(tmp_path, which):
    path = oci_tar(tmp_path / "a", change=lambda blobs: flipped(blobs, which))
    with pytest.raises(Invalid, match="does not match its digest"):
        load(path, tmp_path)


def test_a_missing_blob_and_a_wrong_size(tmp_path):
    def without(blobs):
        del blobs[images.sha256(CONFIG)]

    with pytest.raises(Invalid, match="no member"):
        load(oci_tar(tmp_path / "a", change=without), tmp_path)

    def longer(blobs):
        for digest, data in blobs.items():
            if data[:2] == b"\x1f\x8b":
                blobs[digest] = data + b"more"

    with pytest.raises(Invalid, match="another size"):
        load(oci_tar(tmp_path / "b", change=longer), tmp_path)


def test_a_layout_s_symlinks_and_fifos_are_not_opened(tmp_path):
    layout = tmp_path / "layout"
    layout.mkdir()
    images.oci_layout(str(layout), LAYERS, CONFIG)
    os.rename(layout / "index.json", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", layout / "index.json")
    with pytest.raises(Invalid, match="symbolic"):
        load(layout, tmp_path)
    os.unlink(layout / "index.json")
    os.mkfifo(layout / "index.json")
    with pytest.raises(Invalid, match="not a regular file"):
        load(layout, tmp_path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(NotFound):
        load(tmp_path / "nothing", tmp_path)


def test_cancelling_leaves_nothing(tmp_path):
    path = write(tmp_path / "a", gzip.compress(b"".join(LAYERS)))
    with pytest.raises(Failed), archives.open_archive(str(path), str(tmp_path), cancel=lambda: True):
        pass
    assert os.listdir(tmp_path) == ["a"]


MEMBERS = st.lists(
    st.tuples(
        st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=300), st.binary(max_size=1500)
    ),
    max_size=6,
    unique_by=lambda pair: os.path.normpath(pair[0].lstrip("/")),
)


@settings(max_examples=60, deadline=None)
@given(MEMBERS, st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
def test_the_index_finds_every_member(pairs, layout):
    data = images.tar_bytes([Member(name, body) for name, body in pairs], layout)
    with file_of(data) as fd:
        index = TarIndex(fd)
        for name, body in pairs:
            assert index.read(os.path.normpath(name.lstrip("/")), 2000) == body


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_tars_are_read_or_refused_never_more(data):
    whole = bytearray(
        images.tar_bytes([Member("a" * 120, b"x" * 700), Member("b", b"y"), images.symlink("c", "b")])
    )
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with file_of(bytes(whole)) as fd:
        try:
            index = TarIndex(fd)
        except Invalid:
            return
        for name in index.names():
            assert len(index.read(name, 1 << 20)) <= len(whole)


class file_of:
    def __init__(self, data):
        self.fd = os.memfd_create("tar")
        with io.FileIO(self.fd, "wb", closefd=False) as file:
            file.write(data)

    def __enter__(self):
        return self.fd

    def __exit__(self, *_):
        os.close(self.fd)
