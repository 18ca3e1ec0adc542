"""Images told from their indexes: differences, history, shares; what nobody needs is given back."""

from __future__ import annotations

import os

import pytest
from tests.support import layers as support
from tests.support.layers import footprint

from knarr.images import compare
from knarr.images.store import ImageStore
from knarr.model.errors import Conflict

SAME = support.member("same", b"s" * 9000)
BASE = support.tar(
    support.folder("d"), SAME, support.member("d/changed", b"1" * 9000), support.member("gone", b"g")
)
TOP = support.tar(
    support.member("d/changed", b"2" * 9000), support.member(".wh.gone"), support.member("new", b"n")
)
FLAT = support.tar(
    support.folder("d"), support.member("same", b"s" * 9000, mtime=5), support.member("d/changed", b"2" * 9000),
    support.member("new", b"n", mode=0o600),
)  # fmt: skip


@pytest.fixture
def store(tmp_path):
    made = ImageStore(str(tmp_path / "store"))
    yield made
    made.close()


def _names(store, *references):
    return [(item.kind, item.path) for item in compare.differences(store, *map(store.get, references))]


def test_differences(store):
    store.ingest(support.source([BASE], references=("docker.io/library/a:1",)))
    store.ingest(support.source([BASE, TOP], references=("docker.io/library/b:1",)))
    store.ingest(support.source([FLAT], references=("docker.io/library/c:1",)))
    assert _names(store, "a:1", "b:1") == [("C", "/d/changed"), ("D", "/gone"), ("A", "/new")]
    assert _names(store, "b:1", "c:1") == [("C", "/new")]
    assert _names(store, "b:1", "b:1") == []


def test_shares(store):
    first = store.ingest(support.source([BASE], references=("docker.io/library/a:1",)))
    alone = compare.usage(store, set())
    assert alone["images"][0]["shared"] == 0
    store.ingest(support.source([BASE, TOP], references=("docker.io/library/b:1",)))
    found = compare.usage(store, {first.id})
    by_name = {row["references"][0]: row for row in found["images"]}
    a, b = by_name["docker.io/library/a:1"], by_name["docker.io/library/b:1"]
    assert a["shared"] == b["shared"] > 2 * 9000
    assert b["unique"] >= 9000
    assert found["reclaimable"] == b["unique"]
    assert found["pool"] == store.usage()["pool"]
    assert found["blobs"] == store.usage()["blobs"]
    assert compare.usage(store, set())["reclaimable"] == found["pool"] + found["blobs"]


def test_history_of_a_config_without_one(store):
    image = store.ingest(support.source([BASE, TOP]))
    steps = compare.history(store, image)
    assert [step["layer"] for step in steps] == [support.digest(TOP), support.digest(BASE)]
    assert steps[0]["size"] == 9001


def test_what_nobody_needs_is_given_back_and_nothing_else(store):
    image = store.ingest(support.source([BASE]))
    clean = footprint(store)
    # what a crash between two steps leaves, without the flag that tells of it
    os.pwrite(store.pool.fd, b"x" * 40960, (store.records.end() + 3) * 4096)
    for name in ("blobs/sha256/" + "0" * 64, "trees/left.erofs", "maps/left.qcow2"):
        with open(os.path.join(store.root, name), "wb") as file:
            file.write(b"y" * 5000)
    assert store.collect() >= 40960 + 10_000
    assert footprint(store) == clean
    assert store.collect() == 0
    with store.held([image]), pytest.raises(Conflict, match="being taken in or given out"):
        store.collect()
    for block, blocks, sha in store.records.all("SELECT block, blocks, sha FROM contents"):
        data = os.pread(store.pool.fd, blocks * 4096, block * 4096)
        assert support.digest(data[:9000]) == "sha256:" + sha.hex()
