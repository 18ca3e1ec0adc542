"""Push to Debian's docker-registry: byte by byte, nothing twice, mounted, in pieces, with a login, refused."""

from __future__ import annotations

import gzip
import os
import random
import urllib.request

import pytest
from tests.support import layers as support

from knarr.images import saving
from knarr.images.auth import Credentials
from knarr.images.config import GZIP_LAYER_TYPE
from knarr.images.push import PIECE, Push, sources
from knarr.images.registry import Registry, resolve
from knarr.images.store import ImageStore
from knarr.model.errors import Denied, NotFound, Unavailable
from knarr.model.names import parse_reference
from support.registry import PASSWORD, USER, available, docker_registry

pytestmark = pytest.mark.skipif(bool(available()), reason=f"power missing: {available()}")
TARS = [
    support.tar(support.folder("etc"), support.member("etc/f", random.Random(1).randbytes(400_000))),
    support.tar(support.member("top", b"top" * 4000)),
]


class Watch:
    def __init__(self):
        self.phases = {}

    def update(self, item, phase, done, total):
        self.phases.setdefault(item, []).append(phase)

    @property
    def last(self):
        return sorted(phases[-1] for phases in self.phases.values())


@pytest.fixture
def store(tmp_path):
    made = ImageStore(str(tmp_path / "store"))
    layers = [support.layer(tar, compress=gzip.compress, media_type=GZIP_LAYER_TYPE) for tar in TARS]
    made.ingest(support.source(TARS, layers=layers))
    yield made
    made.close()


def _push(store, name, *, credentials=None, piece=PIECE):
    store.tag("test", name)
    reference = parse_reference(name)
    from_here = sources(store, reference, parse_reference)
    watch = Watch()
    client = Registry(
        reference.registry, credentials=credentials, actions="pull,push", sources=tuple(from_here.values())
    )
    push = Push(
        store=store, registry=client, reference=reference, sources=from_here, progress=watch,
        cancel=lambda: False, piece=piece,
    )  # fmt: skip
    assert push.run(saving.stored(store, store.get("test"))) == store.get("test").digest
    return watch


@pytest.mark.parametrize("piece", [PIECE, 100_000], ids=["whole", "in pieces"])
def test_comes_back_the_same(store, tmp_path, piece):
    with docker_registry() as registry:
        assert _push(store, f"{registry.host}/my/app:1", piece=piece).last == ["pushed"] * 3
        assert _push(store, f"{registry.host}/my/app:2").last == ["exists"] * 3
        assert "mounted" in _push(store, f"{registry.host}/other/app:1").last
        other = ImageStore(str(tmp_path / "other"))
        for name in ("my/app:1", "my/app:2", "other/app:1"):
            found = other.ingest(resolve(f"{registry.host}/{name}"))
            image = store.get("test")
            assert (found.id, found.digest, found.layers) == (image.id, image.digest, image.layers)
        for blob in saving.stored(store, image).blobs:
            with open(store.blob(blob.digest), "rb") as ours, open(other.blob(blob.digest), "rb") as theirs:
                assert ours.read() == theirs.read()
        other.close()


def test_login(store):
    with docker_registry(auth=True) as registry:
        login = Credentials(username=USER, password=PASSWORD)
        assert _push(store, f"{registry.host}/my/app:1", credentials=login).last == ["pushed"] * 3
        wrong = Credentials(username=USER, password="wrong")
        with pytest.raises(Denied, match="refuses"):
            _push(store, f"{registry.host}/my/app:2", credentials=wrong)
        request = urllib.request.Request(f"http://{registry.host}/v2/my/app/tags/list")
        request.add_header("Authorization", login.basic())
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.read() == b'{"name":"my/app","tags":["1"]}\n'


def test_refusals(store):
    with pytest.raises(Unavailable, match=r"can't be reached|answers neither"):
        _push(store, "127.0.0.1:1/my/app:1")
    image = store.get("test")
    store.drop_blob(saving.stored(store, image).layers[0].digest)
    with pytest.raises(NotFound, match="can't leave"), docker_registry() as registry:
        _push(store, f"{registry.host}/my/app:1")


def test_an_interrupted_pull_goes_on_by_range(store, tmp_path):
    with docker_registry() as registry:
        _push(store, f"{registry.host}/my/app:1")
        blob = max(saving.stored(store, store.get("test")).layers, key=lambda layer: layer.size)
        other = ImageStore(str(tmp_path / "other"))
        os.mkdir(other.partials)
        with open(store.blob(blob.digest), "rb") as file:
            (tmp_path / "other/partial" / blob.digest[7:]).write_bytes(file.read(200_000))
        assert other.ingest(resolve(f"{registry.host}/my/app:1")).digest == store.get("test").digest
        assert not os.listdir(other.partials)
        other.close()
