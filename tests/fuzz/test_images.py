"""What reads images: tars, documents, archives, references, and what is written of them."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile

from hypothesis import strategies as st

from knarr.images import archives, config, erofs, manifest
from knarr.images.decompress import decompressed
from knarr.images.limits import Limits
from knarr.images.tree import merge
from knarr.images.unpack import Meter, Unpacker
from knarr.kernel.archive_reader import Reader
from knarr.model import names
from knarr.model.errors import KnarrError
from support import corpus, corpus_images
from support.fuzzing import JSON, damaged, damaged_tars, fuzzed

TARS = [
    layer for case in corpus.cases("/somewhere/of/the/host") for layer in case.layers if len(layer) < 100_000
]
IMAGES = corpus_images.cases()
DOCUMENTS = [data for case in IMAGES for data in case.blobs.values() if data[:1] == b"{" and len(data) < 5000]
BLOBS = [data for case in corpus_images.compressions() for data in case.blobs.values() if data[:1] != b"{"]
SMALL = Limits(layer_bytes=1 << 22, entries=5000, metadata_bytes=1 << 24)


class Nowhere:
    """Takes contents as the pool does and keeps none of them."""

    block = 1

    def add(self, _sha, views, size):
        assert sum(map(len, views)) == size
        return self.block

    def add_stream(self, views, size):
        assert sum(map(len, views)) == size
        return self.block, -(-size // 4096)

    def add_pieces(self, pieces, blocks, _sha):
        for offset, views in pieces:
            assert offset + sum(map(len, views)) <= blocks * 4096
        return self.block


@fuzzed(damaged_tars(TARS), st.integers(1, 5000), examples=400)
def test_a_layer_becomes_a_tree_or_an_error(data, piece):
    pieces = (data[at : at + piece] for at in range(0, len(data), piece))
    with contextlib.suppress(KnarrError):
        written = erofs.write_tree(merge([Unpacker(Nowhere(), Meter(SMALL)).run(pieces)]), bytearray().extend)
        assert written.inodes <= len(data) // 512 * 600 + 1


@fuzzed(damaged_tars(TARS), st.integers(1, 5000), examples=400)
def test_an_upload_is_read_or_an_error(data, piece):
    pieces = iter([data[at : at + piece] for at in range(0, len(data), piece)])
    reader = Reader(lambda: next(pieces, b""))
    with contextlib.suppress(ValueError):
        for entry in reader:
            assert ".." not in entry.names
            assert entry.size == sum(map(len, reader.content()))


@fuzzed(st.sampled_from(BLOBS).flatmap(damaged), st.integers(1, 5000))
def test_compressed_bytes_are_capped(data, piece):
    pieces = (data[at : at + piece] for at in range(0, len(data), piece))
    with contextlib.suppress(KnarrError):
        assert sum(map(len, decompressed(pieces, SMALL))) <= SMALL.layer_bytes


@fuzzed(st.sampled_from(DOCUMENTS).flatmap(damaged) | JSON.map(lambda value: json.dumps(value).encode()))
def test_documents(data):
    for read in (
        lambda: manifest.parse("it", data),
        lambda: manifest.check_config("it", data, 1, None),
        lambda: config.parse_config(data),
        lambda: config.parse_manifest(data),
    ):
        with contextlib.suppress(KnarrError):
            read()


CONFIG = st.fixed_dictionaries(
    {"os": st.just("linux"), "rootfs": st.just({"type": "layers", "diff_ids": []})},
    optional={
        "config": st.dictionaries(
            st.sampled_from(
                [
                    "Env",
                    "Cmd",
                    "Entrypoint",
                    "User",
                    "WorkingDir",
                    "Volumes",
                    "ExposedPorts",
                    "Labels",
                    "StopSignal",
                    "Healthcheck",
                ]
            ),
            JSON,
        ),
        "architecture": JSON,
        "created": JSON,
        "history": JSON,
    },
)


@fuzzed(CONFIG)
def test_a_config_that_is_taken_can_be_told(value):
    data = json.dumps(value).encode()
    with contextlib.suppress(KnarrError):
        found, _ = config.parse_config(data)
        for text in (*found.cmd, *found.entrypoint, *found.env, found.user, found.workdir, *found.volumes):
            assert "\0" not in text
            text.encode()


class Members:
    """An image archive's members in memory."""

    def __init__(self, members):
        self._members = members

    def has(self, name):
        return name in self._members

    def read(self, name, limit):
        if name not in self._members or len(self._members[name]) > limit:
            raise names.Invalid("no")
        return self._members[name]

    def size(self, name):
        return len(self.read(name, 1 << 30))

    def stream(self, name):
        return contextlib.nullcontext(iter((self.read(name, 1 << 30),)))


ENTRIES = st.lists(
    st.dictionaries(
        st.sampled_from(["Config", "RepoTags", "Layers"]),
        JSON | st.sampled_from(["c.json", ["l.tar"], ["a:1"], ["l.tar", "l.tar"]]),
    ),
    max_size=3,
)


@fuzzed((ENTRIES | JSON).map(lambda value: json.dumps(value).encode()), st.sampled_from(DOCUMENTS))
def test_docker_s_list_of_images(listed, document):
    members = {"manifest.json": listed, "c.json": document, "l.tar": b""}
    with contextlib.suppress(KnarrError):
        for image in archives.read_images(Members(members)):
            assert all("\0" not in reference for reference in image.references)


@fuzzed(JSON.map(lambda value: json.dumps(value).encode()) | st.sampled_from(DOCUMENTS).flatmap(damaged))
def test_an_oci_archive_s_index(index):
    blobs = {
        f"blobs/{digest.replace(':', '/')}": data
        for case in IMAGES[:3]
        for digest, data in case.blobs.items()
    }
    with contextlib.suppress(KnarrError):
        archives.read_images(Members({"oci-layout": b"{}", "index.json": index} | blobs))


@fuzzed(damaged_tars(TARS), examples=100)
def test_an_archive_s_members(data):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a")
        with open(path, "wb") as file:
            file.write(data)
        with contextlib.suppress(KnarrError), archives.open_archive(path, folder):
            pass
        assert os.listdir(folder) == ["a"]


REFERENCE = st.from_regex(
    r"([A-Za-z0-9.:\[\]-]{0,12}/)?[a-z0-9._/-]{0,20}(:[\w.-]{0,8})?(@sha256:[0-9a-f]{60,64})?"
)


@fuzzed(st.text(max_size=60) | REFERENCE)
def test_references(text):
    with contextlib.suppress(KnarrError):
        found = names.parse_reference(text)
        assert names.parse_reference(found.canonical).canonical == found.canonical
        assert found.canonical.isprintable()
    with contextlib.suppress(KnarrError):
        names.parse_platform(text)
