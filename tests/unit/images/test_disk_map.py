"""The qcow2 over the pool: QEMU's own tools read this image's bytes and no other's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest
from tests.support import layers as support

from knarr.images.qcow2 import make_map
from knarr.images.store import ImageStore

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


def _qemu_img(*words: str) -> bytes:
    return subprocess.run(["qemu-img", *words], check=True, capture_output=True, timeout=60).stdout


def _through_node(path: str, pool: str) -> str:
    """The map with its data file given by name, as a VM gets it."""
    return "json:" + json.dumps({
        "driver": "qcow2", "file": {"driver": "file", "filename": path, "locking": "off"},
        "data-file": {"driver": "file", "filename": pool, "locking": "off"},
    })  # fmt: skip


def test_shows_one_image_only(tmp_path):
    store = ImageStore(str(tmp_path / "store"))
    secret, mine = b"SECRET-OF-ANOTHER" * 3000, b"mine-and-mine-only" * 3000
    store.ingest(
        support.source([support.tar(support.member("a", secret))], references=("docker.io/library/a:1",))
    )
    image = store.ingest(
        support.source([support.tar(support.member("b", mine))], references=("docker.io/library/b:1",))
    )
    store.ingest(
        support.source(
            [support.tar(support.member("c", secret + b"2"))], references=("docker.io/library/c:1",)
        )
    )
    path = store.disk_map(image.rootfs)
    assert store.disk_map(image.rootfs) == path == image.rootfs.disk_map
    with open(image.rootfs.pool, "rb") as file:
        assert b"SECRET-OF" in file.read()
    node = _through_node(path, image.rootfs.pool)
    _qemu_img("convert", "-O", "raw", node, str(tmp_path / "raw"))
    raw = (tmp_path / "raw").read_bytes()
    block = store.records.all("SELECT block FROM contents ORDER BY block")[1][0]
    assert raw[block * 4096 :].startswith(mine)
    assert not raw.replace(mine, b"").strip(b"\0")
    mapped = [piece for piece in json.loads(_qemu_img("map", "--output=json", node)) if piece["data"]]
    assert [(piece["start"], piece["offset"]) for piece in mapped] == [(block * 4096, block * 4096)]
    assert b"No errors were found" in _qemu_img("check", node)
    store.remove("b:1")
    assert not os.path.exists(path)
    store.close()


@pytest.mark.parametrize(
    "extents",
    [
        [],
        [(1, 1)],
        [(1, 511), (513, 2)],
        [(n * 3 + 1, 2) for n in range(3000)],
        [(700_000, 5)],
        [(1, 40_000)],
        [(512 * n + 1, 1) for n in range(2100)],
    ],
    ids=["none", "one", "border", "scattered", "far", "large", "many tables"],
)
def test_any_extents(tmp_path, extents):
    size = (max((start + count for start, count in extents), default=1)) * 4096
    with open(tmp_path / "pool", "wb") as file:
        file.truncate(size)
        for start, count in extents:
            for block in {start, start + count - 1}:
                file.seek(block * 4096)
                file.write(b"%08d" % block)
    (tmp_path / "map").write_bytes(make_map(extents, "pool"))
    node = _through_node(f"{tmp_path}/map", f"{tmp_path}/pool")
    assert b"No errors were found" in _qemu_img("check", node)
    mapped = [
        (piece["start"] // 4096, piece["length"] // 4096)
        for piece in json.loads(_qemu_img("map", "--output=json", node))
        if piece["present"] and not (piece["zero"] and "offset" not in piece)
    ]
    joined = []
    for start, count in mapped:
        if joined and sum(joined[-1]) == start:
            joined[-1] = (joined[-1][0], joined[-1][1] + count)
        else:
            joined.append((start, count))
    assert joined == extents
