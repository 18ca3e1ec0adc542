"""A writable layer into an image's: overlay's marks become the image format's; config instructions."""

from __future__ import annotations

import io
import json
import os
import tarfile

import pytest
from tests.support import layers as support

from knarr.images import commit
from knarr.images.changes import change
from knarr.images.layer import write_layer
from knarr.images.store import ImageStore
from knarr.kernel import archive
from knarr.model.errors import Failed, Invalid

BASE = support.tar(support.folder("etc"), support.member("etc/f", b"f" * 9000), support.folder("gone"))


def _layer(raw: bytes) -> bytes:
    source, out = io.BytesIO(raw), io.BytesIO()
    write_layer(lambda: source.read(700), out.write)
    return out.getvalue()


def _members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as found:
        return {info.name: info for info in found.getmembers()}


@pytest.mark.skipif(os.geteuid() != 0, reason="power missing: root")
def test_a_real_upper_folder(tmp_path):
    upper = tmp_path / "upper"
    for name in ("dir", "opaque", "etc"):
        (upper / name).mkdir(parents=True)
    (upper / "dir" / "file").write_bytes(b"x" * 1000)
    (upper / "dir" / "file").chmod(0o4711)
    os.chown(upper / "dir" / "file", 70_000, 5)
    os.chmod(upper / "dir" / "file", 0o4711)
    os.utime(upper / "dir" / "file", ns=(0, 1_600_000_000_123_456_789))
    os.setxattr(upper / "dir" / "file", "user.note", b"\0\xff binary")
    os.link(upper / "dir" / "file", upper / "dir" / "twin")
    os.symlink("../else/where", upper / "dir" / "soft")
    os.mknod(upper / "hidden", 0o600 | 0o020000, os.makedev(0, 0))
    os.setxattr(upper / "opaque", "trusted.overlay.opaque", b"y")
    (upper / "etc" / "hosts").touch()
    open(os.fsencode(str(upper)) + b"/\xfe\xff", "wb").close()
    raw = bytearray()
    fd = os.open(upper, os.O_PATH | os.O_DIRECTORY)
    archive.pack(fd, "/.", raw.extend, layer=True)
    os.close(fd)
    found = _members(_layer(bytes(raw)))
    assert sorted(found) == sorted(
        [
            "dir",
            "dir/file",
            "dir/twin",
            "dir/soft",
            ".wh.hidden",
            "opaque",
            "opaque/.wh..wh..opq",
            "etc",
            "\udcfe\udcff",
        ]
    )
    file = found["dir/file"]
    assert (file.mode, file.uid, file.size, file.mtime) == (0o4711, 70_000, 1000, 1_600_000_000.123456789)
    assert file.pax_headers["SCHILY.xattr.user.note"].encode("utf-8", "surrogateescape") == b"\0\xff binary"
    assert (found["dir/twin"].islnk(), found["dir/twin"].linkname) == (True, "dir/file")
    assert found["dir/soft"].linkname == "../else/where"
    assert not any("overlay" in key for info in found.values() for key in info.pax_headers)


def test_what_no_layer_can_hold():
    with pytest.raises(Invalid, match=r"file 'a/\.wh\.b' can't be kept"):
        _layer(support.tar(support.folder("a"), support.member("a/.wh.b")))
    with pytest.raises(Failed, match="leads out"):
        _layer(support.tar(support.member("../up")))
    with pytest.raises(Failed, match="not a tar"):
        _layer(b"x" * 2048)


def _wanted(**values):
    given = {"settings": {}, "changes": (), "author": "", "message": "", "command": "sh", "created": "2026-01-01T00:00:00Z",
             "references": ("docker.io/library/made:1",)}  # fmt: skip
    return commit.Wanted(**{**given, **values})


def test_the_image_of_it(tmp_path):
    store = ImageStore(str(tmp_path / "store"))
    parent = store.ingest(support.source([BASE]))
    top = support.tar(support.member("etc/f", b"other"), support.member(".wh.gone"))
    wanted = _wanted(changes=("CMD ls",), author="me", message="why", settings={"User": "alice"})
    with store.held([parent]):
        image = store.ingest(commit.source(store, parent, io.BytesIO(top), wanted, lambda: False))
    assert image.layers == (*parent.layers, support.digest(top))
    assert (image.config.cmd, image.config.user) == (("/bin/sh", "-c", "ls"), "alice")
    with open(store.blob(image.id), "rb") as file:
        document = json.load(file)
    step = document["history"][-1]
    assert (document["author"], step["comment"], step["created_by"]) == ("me", "why", "sh")
    store.remove("test")
    store.remove("made:1")
    assert store.usage()["contents"] == 0
    store.close()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('CMD ["a", "b"]', {"Cmd": ["a", "b"]}),
        ("entrypoint ls -l", {"Entrypoint": ["/bin/sh", "-c", "ls -l"], "Cmd": None}),
        ("ENV A=2 B='x y'", {"Env": ["A=2", "B=x y"]}),
        ("ENV A 3 4", {"Env": ["A=3 4"]}),
        ("EXPOSE 80 90-91/udp", {"ExposedPorts": {"80/tcp": {}, "90/udp": {}, "91/udp": {}}}),
        ('LABEL k="v w"', {"Labels": {"k": "v w"}}),
        ("VOLUME /a /b", {"Volumes": {"/a": {}, "/b": {}}}),
        ("WORKDIR sub", {"WorkingDir": "/srv/sub"}),
        ("USER 5:6", {"User": "5:6"}),
        ("STOPSIGNAL INT", {"StopSignal": "INT"}),
        ("HEALTHCHECK NONE", {"Healthcheck": {"Test": ["NONE"]}}),
        (
            "HEALTHCHECK --interval=5s --retries=2 CMD true x",
            {"Healthcheck": {"Test": ["CMD-SHELL", "true x"], "Interval": 5_000_000_000, "Retries": 2}},
        ),
    ],
)
def test_instructions(text, wanted):
    config = {"Cmd": ["old"], "Env": ["A=1"], "WorkingDir": "/srv"}
    change(config, [text])
    assert {key: config.get(key) for key in wanted} == wanted


@pytest.mark.parametrize(
    "text", ["RUN x", "CMD", "CMD [1]", "EXPOSE 0", "LABEL =x", "HEALTHCHECK x", "ENV A='", ""]
)
def test_instructions_that_are_none(text):
    with pytest.raises(Invalid, match="change"):
        change({}, [text])
