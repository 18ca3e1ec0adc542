"""Archives of images: the blobs exactly as kept, readable by the tools people have, and by ourselves."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import tarfile

import pytest
from tests.support import layers as support
from tests.support.layers import footprint

from knarr.images import archives, saving
from knarr.images.config import GZIP_LAYER_TYPE
from knarr.images.store import ImageStore
from knarr.model.errors import NotFound

BASE = support.tar(support.folder("etc"), support.member("etc/f", b"f" * 9000))
TOP = support.tar(support.member("etc/g", b"g" * 9000))


def _source(*tars, name="docker.io/library/test:latest"):
    layers = [support.layer(tar, compress=gzip.compress, media_type=GZIP_LAYER_TYPE) for tar in tars]
    return support.source(list(tars), layers=layers, references=(name,))


@pytest.fixture
def store(tmp_path):
    made = ImageStore(str(tmp_path / "store"))
    yield made
    made.close()


def _archive(store, *images, docker=True) -> bytes:
    wanted = [
        saving.Wanted(stored=saving.stored(store, image), references=image.references) for image in images
    ]
    return b"".join(saving.archive(store, wanted, docker=docker))


@pytest.mark.parametrize("docker", [True, False])
def test_blobs_are_byte_exact_and_once(store, docker):
    first = store.ingest(_source(BASE))
    second = store.ingest(_source(BASE, TOP, name="docker.io/mine/app:2"))
    data = _archive(store, first, second, docker=docker)
    assert data == _archive(store, first, second, docker=docker)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = archive.getnames()
        assert len(names) == len(set(names))
        assert ("manifest.json" in names) is docker
        for name in names:
            if name.startswith("blobs/sha256/"):
                assert support.digest(archive.extractfile(name).read()) == "sha256:" + name[13:]
        index = json.load(archive.extractfile("index.json"))
        assert [entry["digest"] for entry in index["manifests"]] == [first.digest, second.digest]


@pytest.mark.parametrize("docker", [True, False])
def test_comes_back_the_same(store, tmp_path, docker):
    images = [
        store.ingest(_source(BASE)),
        store.ingest(_source(BASE, TOP, name="docker.io/mine/app:2")),
    ]
    store.tag("test", "docker.io/library/more:1")
    (tmp_path / "a.tar").write_bytes(
        _archive(store, *(store.get(image.id) for image in images), docker=docker)
    )
    other = ImageStore(str(tmp_path / "other"))
    with archives.open_archive(str(tmp_path / "a.tar"), str(tmp_path)) as sources:
        for source in sources:
            other.ingest(source)
    for image in (store.get(image.id) for image in images):
        found = other.get(image.id)
        assert (found.digest, sorted(found.references)) == (image.digest, sorted(image.references))
    other.close()


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="power missing: skopeo")
@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_another_tool_reads_it(store, tmp_path, form):
    image = store.ingest(_source(BASE, TOP))
    (tmp_path / "a.tar").write_bytes(_archive(store, image, docker=form == "docker-archive"))
    command = ["skopeo", "--insecure-policy", "inspect", "--config", f"{form}:{tmp_path}/a.tar"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert json.loads(done.stdout)["rootfs"]["diff_ids"] == [support.digest(BASE), support.digest(TOP)]


def test_a_blob_that_is_not_kept_is_told(store):
    image = store.ingest(support.source([BASE], keep_blobs=False))
    with pytest.raises(NotFound, match=r"can't leave: blob .* is not here"):
        saving.stored(store, image)


def test_removed_while_it_is_written(store):
    before = footprint(store)
    image = store.ingest(_source(BASE, TOP))
    with store.held([image]):
        wanted = [saving.Wanted(stored=saving.stored(store, image), references=())]
        pieces = saving.archive(store, wanted, docker=True)
        next(pieces)
        store.remove("test")
        rest = b"".join(pieces)
        assert len(rest) > 1000
    assert footprint(store) == before
