"""Damage of every kind is found, mended where the right bytes are here, and told where they are not."""

from __future__ import annotations

import gzip
import os
import random
import signal
import struct
import subprocess
import sys
import time

import pytest
from tests.support import layers as support
from tests.support.layers import footprint

from knarr.images.check import Checker
from knarr.images.config import GZIP_LAYER_TYPE
from knarr.images.source import NoProgress, never
from knarr.images.store import ImageStore

CHANCE = random.Random(5)
BASE = support.tar(
    support.folder("etc"),
    *(support.member(f"etc/{n}", CHANCE.randbytes(9000 + n)) for n in range(20)),
    support.member("big", CHANCE.randbytes(3_000_000)),
)
TOP = support.tar(support.member("own", CHANCE.randbytes(9000)))


def _source(**changes):
    return support.source(
        [BASE, TOP],
        layers=[
            support.layer(tar, compress=lambda data: gzip.compress(data, mtime=0), media_type=GZIP_LAYER_TYPE)
            for tar in (BASE, TOP)
        ],
        **changes,
    )


def _check(store, *, repair):
    with store.held(store.list()):
        return Checker(store=store, progress=NoProgress(), cancel=never, repair=repair).run()


@pytest.fixture
def store(tmp_path):
    made = ImageStore(str(tmp_path / "store"))
    yield made
    made.close()


def _some_blocks(store, count) -> list[int]:
    rows = store.records.all("SELECT block, blocks FROM contents")
    every = [block + index for block, blocks in rows for index in range(blocks)]
    return CHANCE.sample(every, count)


def _blocks_of(store, tar) -> list[int]:
    row = store.records.one("SELECT contents FROM layers WHERE diff_id = ?", support.digest(tar))
    return [block for (block,) in struct.iter_unpack("<I", row[0])]


def _bytes(store) -> bytes:
    return os.pread(store.pool.fd, os.fstat(store.pool.fd).st_size, 0)


def test_a_sound_store(store):
    store.ingest(_source())
    assert _check(store, repair=True) == []


def test_pool_tree_map_config_and_counts_are_mended(store):
    image = store.ingest(_source())
    store.disk_map(image.rootfs)
    before, clean = _bytes(store), footprint(store)
    # one of every kind; in the middle of a small and of a large content
    for block in _some_blocks(store, 3):
        os.pwrite(store.pool.fd, b"damage", block * 4096 + 100)
    for path in (image.rootfs.tree, image.rootfs.disk_map, store.blob(image.id)):
        with open(path, "r+b") as file:
            file.seek(50)
            file.write(b"damage")
    store.records.run("UPDATE contents SET refs = refs + 5 WHERE block = (SELECT min(block) FROM contents)")
    found = _check(store, repair=False)
    assert len(found) == 5
    assert not any(problem.repaired for problem in found)
    assert "files' contents are damaged" in str(found)
    assert all("--repair" in problem.hint for problem in found)
    mended = _check(store, repair=True)
    assert [problem.item for problem in mended] == [problem.item for problem in found]
    assert all(problem.repaired for problem in mended)
    assert _bytes(store) == before
    assert _check(store, repair=True) == []
    assert footprint(store) == clean


def test_a_bad_blob_is_pulled_again_and_then_mends(store):
    image = store.ingest(_source())
    before = _bytes(store)
    blob = store.records.one("SELECT digest FROM layer_blobs WHERE diff_id = ?", support.digest(BASE))[0]
    with open(store.blob(blob), "r+b") as file:
        file.write(b"damage")
    os.pwrite(store.pool.fd, b"damage", _blocks_of(store, BASE)[0] * 4096)
    found = _check(store, repair=True)
    assert [problem.repaired for problem in found] == [False, False]
    assert "does not match its digest" in found[0].fact
    assert found[0].hint == "knarr image pull docker.io/library/test:latest"
    assert store.ingest(_source()) == image
    assert [problem.repaired for problem in _check(store, repair=True)] == [True]
    assert _bytes(store) == before


def test_sparse_files_are_judged_by_their_blob(store, tmp_path):
    with open(tmp_path / "sparse", "wb") as file:
        file.seek(1 << 20)
        file.write(b"data" * 3000)
        file.truncate(4 << 20)
    subprocess.run(["tar", "-S", "-cf", "s.tar", "sparse"], cwd=tmp_path, check=True)
    tar = (tmp_path / "s.tar").read_bytes()
    store.ingest(
        support.source(
            [tar],
            layers=[
                support.layer(
                    tar, compress=lambda data: gzip.compress(data, mtime=0), media_type=GZIP_LAYER_TYPE
                )
            ],
        )
    )
    assert _check(store, repair=True) == []
    before = _bytes(store)
    start = os.lseek(store.pool.fd, 4096, os.SEEK_DATA)
    os.pwrite(store.pool.fd, b"damage", start + 5)
    assert [problem.repaired for problem in _check(store, repair=True)] == [True]
    assert _bytes(store) == before


CHILD = """
import sys
from tests.unit.images.test_check import _check
from knarr.images.store import ImageStore
store = ImageStore(sys.argv[1])
print("open", flush=True)
while True:
    _check(store, repair=True)
    store.collect()
"""


def test_kills(tmp_path):
    """SIGKILL while it mends or collects: what is left is mended by the next, and nothing else changed."""
    root = str(tmp_path / "store")
    store = ImageStore(root)
    image = store.ingest(_source())
    before, clean = _bytes(store), footprint(store)
    blocks = _some_blocks(store, 200)
    store.close()
    (tmp_path / "child.py").write_text(CHILD)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for _ in range(8):
        with open(os.path.join(root, "pool"), "r+b") as file:
            for block in blocks:
                file.seek(block * 4096 + CHANCE.randrange(1000))
                file.write(b"damage")
        with open(image.rootfs.tree, "r+b") as file:
            file.write(b"damage")
        child = subprocess.Popen(
            [sys.executable, str(tmp_path / "child.py"), root], stdout=subprocess.PIPE, env=environment
        )
        assert child.stdout.readline() == b"open\n"
        time.sleep(random.Random(time.time_ns()).random() * 0.3)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        store = ImageStore(root)
        assert all(problem.repaired for problem in _check(store, repair=True))
        assert _check(store, repair=True) == []
        assert _bytes(store) == before
        assert footprint(store) == clean
        store.close()
