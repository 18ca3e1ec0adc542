"""What is written for kernels to read: trees are mounted and compared, maps checked by QEMU's own tool; and records
that a disk damaged.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile

import pytest
from hypothesis import strategies as st

from knarr.images import qcow2
from knarr.images.store import ImageStore
from knarr.model.errors import KnarrError
from support import layers
from support.fuzzing import fuzzed
from support.shapes import printable, shape
from support.tarforge import END, extension, file, folder, pax, symlink

SIZES = st.sampled_from([0, 1, 1023, 1024, 1025, 4095, 4096, 4097, 8192, 70_000])
NAME = st.binary(min_size=1, max_size=255).filter(
    lambda name: not {0, 47} & set(name) and name not in (b".", b"..") and not name.startswith(b".wh.")
)
ENTRIES = st.dictionaries(
    NAME,
    st.tuples(st.just("f"), SIZES, st.integers(0, 3000))
    | st.tuples(st.just("l"), st.integers(1, 4095), st.just(0))
    | st.tuples(st.just("d"), st.dictionaries(NAME, SIZES, max_size=40), st.just(0)),
    max_size=30,
)


def long(name: bytes) -> bytes:
    return extension(name + b"\0", b"L")


def layer_of(entries) -> tuple[bytes, list[str]]:
    """A tar of these, and what a mount of it must show."""
    data, lines = b"", []
    for name, (kind, what, size) in entries.items():
        shown = printable(name)
        if kind == "f":
            xattr = pax({b"SCHILY.xattr.user.x": b"v" * size}) if size else b""
            data += long(name) + xattr + file(b"x", name[:1] * what)
            lines.append(
                f"f {shown} {what}" + (f" user.x={size if size > 16 else 'v' * size}" if size else "")
            )
        elif kind == "l":
            data += long(name) + symlink(b"x", b"t" * what)
            lines.append(f"l {shown} -> {'t' * what}")
        else:
            data += long(name + b"/") + folder(b"x")
            lines.append(f"d {shown}")
            for inner, length in what.items():
                data += long(name + b"/" + inner) + file(b"x", b"y" * length)
                lines.append(f"f {printable(name + b'/' + inner)} {length}")
    return data + END, lines


@pytest.mark.root
def test_a_mounted_tree_is_what_went_in(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("power missing: root")
    store, place = ImageStore(str(tmp_path / "store")), tmp_path / "mount"
    place.mkdir()

    @fuzzed(ENTRIES, examples=40)
    def same(entries):
        data, lines = layer_of(entries)
        image = store.ingest(layers.source([data]))
        with layers.mounted(image, str(place)):
            found = shape(str(place))
            if len(lines) < 400:
                assert found == tuple(sorted(lines))
            for name, (kind, size, _) in entries.items():
                if kind == "f":
                    with open(os.path.join(os.fsencode(place), name), "rb") as read:
                        assert read.read() == name[:1] * size
        checked = subprocess.run(
            ["fsck.erofs", image.rootfs.tree], capture_output=True, text=True, timeout=60, check=False
        )
        assert "corrupt" not in checked.stderr.lower()
        store.remove("test", True)

    try:
        same()
    finally:
        store.close()


@fuzzed(st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 700)), max_size=12), examples=20)
def test_a_map_shows_its_extents_and_no_more(gaps):
    if shutil.which("qemu-img") is None:
        pytest.skip("power missing: qemu-img")
    extents, at = [], 1
    for gap, count in gaps:
        extents.append((at + gap, count))
        at += gap + count
    with tempfile.TemporaryDirectory() as where:
        with open(f"{where}/pool", "wb") as pool:
            pool.truncate((at + 1) * 4096)
        with open(f"{where}/map", "wb") as file_:
            file_.write(qcow2.make_map(extents, f"{where}/pool"))
        subprocess.run(["qemu-img", "check", "-q", f"{where}/map"], check=True, timeout=60)
        told = subprocess.run(
            ["qemu-img", "map", "--output=json", f"{where}/map"], check=True, capture_output=True, timeout=60
        )
        shown = [
            (part["start"] // 4096, part["length"] // 4096)
            for part in json.loads(told.stdout)
            if part["data"]
        ]
        assert sum(count for _, count in shown) == sum(count for _, count in extents)
        assert all(any(start <= begin and begin + count <= start + length for begin, count in extents) or
                   any(begin <= start and start + length <= begin + count for begin, count in extents)
                   for start, length in shown)  # fmt: skip


def test_a_damaged_index_is_told_not_followed(tmp_path):
    """Bytes of pool.db that a disk changed: the store opens, or says why not, and never hangs or ends in a trace."""
    store = ImageStore(str(tmp_path / "whole"))
    store.ingest(layers.source([file(b"a", b"x" * 9000) + END]))
    store.close()
    with open(tmp_path / "whole/pool.db", "rb") as read:
        whole = read.read()

    changes = st.lists(
        st.tuples(st.integers(0, len(whole) - 1), st.binary(min_size=1, max_size=40)), max_size=8
    )

    @fuzzed(changes, st.integers(0, len(whole)) | st.just(len(whole)), examples=60)
    def told(changed, end):
        data = bytearray(whole)
        for at, piece in changed:
            data[at : at + len(piece)] = piece
        with tempfile.TemporaryDirectory(dir=tmp_path) as where:
            shutil.copytree(tmp_path / "whole", f"{where}/s")
            with open(f"{where}/s/pool.db", "wb") as written:
                written.write(data[:end])
            with contextlib.suppress(KnarrError):
                found = ImageStore(f"{where}/s")
                try:
                    found.list()
                finally:
                    found.close()

    told()
