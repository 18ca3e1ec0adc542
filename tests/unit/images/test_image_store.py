"""The store as its callers see it: ingest, names, sharing, removal, refusals; nothing left behind."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import threading

import pytest
import zstandard
from tests.support import layers as support
from tests.support.layers import footprint

from knarr.images.limits import Limits
from knarr.images.store import ImageStore
from knarr.model.errors import Conflict, Failed, Invalid, NotFound, Unavailable, Unsupported

BIG = os.urandom(3_000_000)
BASE = support.tar(
    support.folder("etc"),
    support.member("etc/small", b"small"),
    support.member("etc/medium", os.urandom(60_000)),
    support.member("big", BIG),
)
TOP = support.tar(support.member("copy-of-big", BIG), support.member("own", os.urandom(9_000)))


@pytest.fixture
def store(tmp_path):
    made = ImageStore(str(tmp_path / "store"))
    yield made
    made.close()


def _json(path: str):
    with open(path, "rb") as file:
        return json.load(file)


class Watch:
    def __init__(self):
        self.seen = []

    def update(self, item, phase, done, total):
        self.seen.append((phase, done, total))


def test_ingest_get_and_facts(store):
    watch = Watch()
    image = store.ingest(support.source([BASE, TOP]), watch)
    assert image.references == ("docker.io/library/test:latest",)
    assert image.size == 5 + 60_000 + 2 * 3_000_000 + 9_000
    assert image.layers == (support.digest(BASE), support.digest(TOP))
    assert image.config.cmd == ("sh",)
    hexadecimal = image.id.removeprefix("sha256:")
    for name in (image.id, hexadecimal, hexadecimal[:12], image.digest, "test", "test:latest", f"test@{image.digest}",
                 "docker.io/library/test:latest"):  # fmt: skip
        assert store.get(name) == image
    for name in ("other", "test:other", "0" * 12, "sha256:" + "0" * 64):
        with pytest.raises(NotFound):
            store.get(name)
    assert {"downloading", "complete", "assembling"} <= {phase for phase, _, _ in watch.seen}
    # one copy of what two layers hold
    assert store.usage()["pool"] == (15 + 733 + 3) * 4096
    for digest in (image.id, image.digest):
        with open(store.blob(digest), "rb") as file:
            assert support.digest(file.read()) == digest


def test_survives_reopening_and_manifest_is_right(store, tmp_path):
    image = store.ingest(support.source([BASE, TOP]))
    manifest = _json(store.blob(image.digest))
    for entry, data in zip(manifest["layers"], (BASE, TOP), strict=True):
        with gzip.open(store.blob(entry["digest"])) as file:
            assert file.read() == data
    before = footprint(store)
    store.close()
    again = ImageStore(str(tmp_path / "store"))
    assert again.list() == (image,)
    assert footprint(again) == before
    assert again.remove("test") == ("untagged: docker.io/library/test:latest", f"deleted: {image.id}")
    assert again.usage()["pool_allocated"] <= 8192
    again.close()
    ImageStore(str(tmp_path / "store")).close()


@pytest.mark.parametrize("how", ["gzip", "zstd", "plain", "nameless"])
def test_layer_forms(store, how):
    coder = {"gzip": gzip.compress, "zstd": zstandard.ZstdCompressor().compress}.get(how, lambda data: data)
    layer = support.layer(BASE, compress=coder, named=how != "nameless")
    image = store.ingest(support.source([BASE], layers=[layer]))
    manifest = _json(store.blob(image.digest))
    entry = manifest["layers"][0]
    with open(store.blob(entry["digest"]), "rb") as file:
        kept = file.read()
    assert len(kept) == entry["size"]
    if how == "nameless":
        assert gzip.decompress(kept) == BASE
        assert entry["mediaType"].endswith("+gzip")
    else:
        assert support.digest(kept) == layer.digest


def test_without_blobs(store):
    image = store.ingest(support.source([BASE], keep_blobs=False))
    assert sorted(os.listdir(os.path.join(store.root, "blobs/sha256"))) == sorted(
        name.removeprefix("sha256:") for name in (image.id, image.digest)
    )


def test_known_layers_are_not_read_again(store):
    store.ingest(support.source([BASE]))

    def unread():
        raise AssertionError("read again")

    layers = [support.layer(BASE, open=unread), support.layer(TOP)]
    image = store.ingest(support.source([BASE, TOP], layers=layers, references=("docker.io/library/two:1",)))
    store.remove("test")
    assert store.get("two:1") == image
    assert store.usage()["pool"] == (15 + 733 + 3) * 4096
    # a digest that belongs to another diff id proves nothing
    lying = [support.layer(BASE, digest=support.layer(TOP).digest, open=unread)]
    with pytest.raises(AssertionError, match="read again"):
        store.ingest(support.source([BASE], layers=lying))


def test_tags_and_removal(store):
    image = store.ingest(support.source([BASE]))
    other = store.ingest(support.source([BASE, TOP], references=("docker.io/library/other:1",)))
    store.tag("test", "mine/app:2")
    assert store.get("mine/app:2").id == image.id
    with pytest.raises(Conflict, match="2 tags"):
        store.remove(image.id)
    assert store.remove("mine/app:2") == ("untagged: docker.io/mine/app:2",)
    store.tag(other.id, "test")
    assert store.get("test").id == other.id
    assert store.get(image.id).references == ()
    assert store.prune(False, {image.id}) == ()
    assert store.prune(False, set()) == (f"deleted: {image.id}",)
    assert store.remove(other.id, force=True)[-1] == f"deleted: {other.id}"
    assert store.prune(True, set()) == ()
    assert store.usage()["contents"] == 0
    with pytest.raises(Invalid):
        store.tag("test", "a@sha256:" + "0" * 64)


def test_shared_contents_are_never_punched(store):
    store.ingest(support.source([BASE]))
    store.ingest(support.source([TOP], references=("docker.io/library/top:1",)))
    block = store.records.one("SELECT block FROM contents WHERE blocks = 733")[0]
    store.remove("test")
    assert os.pread(store.pool.fd, len(BIG), block * 4096) == BIG
    store.remove("top:1")
    assert os.path.getsize(store.pool.path) == 4096


def _bad_sources():
    good = support.layer(BASE)
    wrong = support.layer(TOP)
    yield (
        "does not match its digest",
        support.source([BASE], layers=[support.layer(BASE, digest=wrong.digest)]),
    )
    yield "decompresses to", support.source([BASE], layers=[wrong])
    yield "longer than", support.source([BASE], layers=[support.layer(BASE, size=good.size - 1)])
    yield "instead of", support.source([BASE], layers=[support.layer(BASE, size=good.size + 1)])
    yield "layers, its config", support.source([BASE], layers=[good, wrong])
    yield (
        "does not match its digest",
        support.source([BASE], manifest=b"{}", manifest_digest="sha256:" + "0" * 64),
    )
    yield "is not JSON", support.source([BASE], config=b"[" * 100_000)
    yield "key twice", support.source([BASE], config=b'{"os":"linux","os":"linux"}')
    climbing = support.tar(support.member("big", BIG), support.member("../etc/passwd", b"x" * 5000))
    yield "climbs", support.source([BASE, climbing])
    half = gzip.compress(BASE)[:-1000]
    yield "cut short", support.source([BASE], layers=[support.layer(BASE, compress=lambda _: half)])


@pytest.mark.parametrize(
    ("text", "source"), list(_bad_sources()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_bad_images_leave_nothing(store, text, source):
    store.ingest(support.source([TOP]))
    before = footprint(store)
    with pytest.raises(Invalid, match=text):
        store.ingest(source)
    assert footprint(store) == before


def test_manifest_must_name_these_very_parts(store):
    layer = support.layer(BASE)
    config = support.source([BASE]).config

    def manifest(config_digest, layer_digest):
        return json.dumps({
            "config": {"digest": config_digest, "size": 1}, "layers": [{"digest": layer_digest, "size": layer.size}],
        }).encode()  # fmt: skip

    right = manifest(support.digest(config), layer.digest)
    for data, text in (
        (manifest(support.digest(b""), layer.digest), "config does not match"),
        (manifest(support.digest(config), support.digest(b"")), "not those of its manifest"),
        (b'{"manifests": [], "config": {}}', "an index"),
    ):
        with pytest.raises(Invalid, match=text):
            store.ingest(
                support.source([BASE], manifest=data, manifest_digest=support.digest(data), layers=[layer])
            )
    image = store.ingest(
        support.source([BASE], manifest=right, manifest_digest=support.digest(right), layers=[layer])
    )
    assert image.digest == support.digest(right)


def test_another_systems_image(store):
    with pytest.raises(Unsupported, match="windows"):
        store.ingest(support.source([], config=b'{"os": "windows", "rootfs": {"diff_ids": []}}'))


def test_cancel_leaves_nothing(store):
    before = footprint(store)
    calls = []
    with pytest.raises(Failed, match="cancelled"):
        store.ingest(support.source([BASE, TOP]), cancel=lambda: calls.append(1) or len(calls) > 10)
    assert footprint(store) == before


def test_a_source_that_breaks_leaves_nothing(store):
    before = footprint(store)

    def breaking():
        class Opened:
            def __enter__(self):
                yield_from = iter([gzip.compress(BASE)[:500_000]])

                def chunks():
                    yield from yield_from
                    raise Unavailable("registry went away")

                return chunks()

            def __exit__(self, *_):
                return False

        return Opened()

    with pytest.raises(Unavailable, match="went away"):
        store.ingest(
            support.source([BASE, TOP], layers=[support.layer(BASE, open=breaking), support.layer(TOP)])
        )
    assert footprint(store) == before


def test_caps(tmp_path):
    store = ImageStore(str(tmp_path / "s"), Limits(entries=100, metadata_bytes=1 << 20))
    with pytest.raises(Invalid, match="more than 100 entries"):
        store.ingest(support.source([support.tar(*(support.member(f"f{n}") for n in range(101)))]))
    names = [
        support.member(f"{n}/" + "x" * 200, pax_headers={"SCHILY.xattr.user.x": "v" * 30_000})
        for n in range(50)
    ]
    with pytest.raises(Invalid, match="names and attributes"):
        store.ingest(support.source([support.tar(*names)]))
    store.close()


def test_threads_share_what_they_bring(store):
    common = [support.member(f"c/{n}", hashlib.sha256(b"%d" % n).digest() * 200) for n in range(300)]
    tars = [
        support.tar(support.folder("c"), *common, support.member(f"own{n}", os.urandom(5000)))
        for n in range(6)
    ]
    errors = []

    def run(number: int) -> None:
        try:
            data = tars[number]
            layers = [support.layer(data)]
            if number == 5:
                layers = [support.layer(data, digest=support.digest(b"wrong"))]
            store.ingest(
                support.source([data], references=(f"docker.io/library/t{number}:1",), layers=layers)
            )
        except BaseException as error:
            errors.append((number, error))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [number for number, _ in errors] == [5]
    assert store.usage()["contents"] == 300 + 5
    for block, blocks, sha in store.records.all(
        "SELECT block, blocks, sha FROM contents WHERE blocks = 2 AND refs = 5"
    ):
        data = os.pread(store.pool.fd, blocks * 4096, block * 4096)
        assert hashlib.sha256(data[:6400]).digest() == sha
    assert footprint(store)["dirty"] == footprint(store)["in use"] == 0
    store.prune(True, set())
    assert os.path.getsize(store.pool.path) == 4096


def test_empty_and_repeated_layers(store):
    empty = bytes(1024)
    image = store.ingest(support.source([empty, BASE, empty, BASE]))
    assert store.ingest(support.source([])).size == 0
    assert len(image.layers) == 4
    store.prune(True, set())
    assert store.usage()["contents"] == 0


def test_the_same_image_in_other_blobs(store):
    first = store.ingest(support.source([BASE]))
    blobs = set(os.listdir(os.path.join(store.root, "blobs/sha256")))
    second = store.ingest(support.source([BASE], layers=[support.layer(BASE, compress=gzip.compress)]))
    assert (first.id, first.rootfs) == (second.id, second.rootfs)
    assert first.digest != second.digest
    left = set(os.listdir(os.path.join(store.root, "blobs/sha256")))
    assert len(left) == len(blobs) == 3
    assert left & blobs == {first.id.removeprefix("sha256:")}


def test_trees_are_the_same_bytes_each_time(tmp_path):
    found = []
    for number in range(2):
        store = ImageStore(str(tmp_path / str(number)))
        with open(store.ingest(support.source([BASE])).rootfs.tree, "rb") as file:
            found.append(file.read())
        store.close()
    assert found[0] == found[1]


def test_a_source_that_can_not_be_read(store):
    def opened():
        raise ConnectionResetError(104, "Connection reset by peer")

    before = footprint(store)
    with pytest.raises(Unavailable, match="can't be read: Connection reset"):
        store.ingest(support.source([BASE], layers=[support.layer(BASE, open=opened)]))
    assert footprint(store) == before


def test_a_stored_config_that_is_refused_today_keeps_no_daemon_down(store, tmp_path):
    image = store.ingest(support.source([BASE]))
    store.records.run("UPDATE images SET config = ?", b'{"config": {"User": "\\ud800"}}')
    store.close()
    again = ImageStore(str(tmp_path / "store"))
    try:
        assert again.get(image.id).config.user  # never root for want of a user
        again.remove(image.id, True)
        assert again.list() == ()
    finally:
        again.close()
