"""SIGKILL at any moment of an ingest or a removal: the store opens clean, the next try succeeds, nothing leaks."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import signal
import subprocess
import sys
import time

from tests.support import layers as support
from tests.support.layers import footprint

from knarr.images.store import ImageStore

CHILD = """
import pickle, sys
from tests.support import layers as support
from knarr.images.store import ImageStore
tars = pickle.load(open(sys.argv[2], "rb"))
store = ImageStore(sys.argv[1])
print("open", flush=True)
while True:
    store.ingest(support.source(tars, references=("docker.io/library/new:1",)))
    print("in", flush=True)
    store.remove("new:1")
    print("out", flush=True)
"""


def _tars() -> list[bytes]:
    chance = random.Random(3)
    members = [
        support.member(f"f{n}", chance.randbytes(chance.choice([10, 3_000, 30_000]))) for n in range(150)
    ]
    big = [support.member("big", chance.randbytes(4_000_000)), support.member("f0", kind=b"1", linkname="f1")]
    return [support.tar(*members), support.tar(*members[:50], *big)]


def test_kills(tmp_path):
    tars = _tars()
    root = str(tmp_path / "store")
    (tmp_path / "tars").write_bytes(pickle.dumps(tars))
    (tmp_path / "child.py").write_text(CHILD)
    store = ImageStore(root)
    kept = store.ingest(support.source([support.tar(support.member("kept", b"k" * 9000))]))
    clean = footprint(store)
    store.close()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    chance = random.Random(time.time_ns())
    seen = set()
    for _ in range(12):
        child = subprocess.Popen(
            [sys.executable, str(tmp_path / "child.py"), root, str(tmp_path / "tars")],
            stdout=subprocess.PIPE, env=environment,
        )  # fmt: skip
        assert child.stdout.readline() == b"open\n"
        time.sleep(chance.random() * 0.4)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        store = ImageStore(root)
        images = {image.id for image in store.list()}
        seen.add(len(images))
        if len(images) > 1:
            _whole(store, tars)
            store.remove("new:1")
        assert store.get("test") == kept
        assert footprint(store) == clean
        _whole(store, tars, store.ingest(support.source(tars, references=("docker.io/library/new:1",))))
        store.remove("new:1")
        assert footprint(store) == clean
        store.close()
    assert seen <= {1, 2}


def _whole(store, tars, image=None) -> None:
    """Every recorded content has its bytes."""
    image = image or store.get("new:1")
    assert image.layers == tuple(support.digest(tar) for tar in tars)
    assert os.path.exists(image.rootfs.tree)
    for block, blocks, sha in store.records.all("SELECT block, blocks, sha FROM contents"):
        data = os.pread(store.pool.fd, blocks * 4096, block * 4096)
        end = len(data.rstrip(b"\0"))
        assert any(
            hashlib.sha256(data[:size]).digest() == sha for size in range(end, min(end + 9, len(data)) + 1)
        )
