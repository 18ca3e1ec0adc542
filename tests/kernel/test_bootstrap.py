"""mmdebstrap for real, from this host's own mirror: what is in the image, and that nothing of the host is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import tarfile
import tempfile
import time

import pytest
import zstandard

from knarr.images import aptsources
from knarr.images import bootstrap as module
from knarr.images.bootstrap import bootstrap
from knarr.model.errors import Failed, Unavailable

pytestmark = pytest.mark.root


def power():
    if os.geteuid() != 0:
        return "not root"
    if not os.access(module.MMDEBSTRAP, os.X_OK):
        return "mmdebstrap is not installed"
    sources = aptsources.for_suite(aptsources.DISTRIBUTIONS["debian"], "bookworm", aptsources.read_sources())
    try:
        module._mirror_state(sources, "bookworm")
    except Unavailable as error:
        return error.message
    return ""


class Watch:
    def __init__(self):
        self.phases = []

    def update(self, _item, phase, _done, _total):
        self.phases.append(phase)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    reason = power()
    if reason:
        pytest.skip(f"needs a Debian mirror and mmdebstrap: {reason}")
    cache = str(tmp_path_factory.mktemp("cache"))
    before = set(os.listdir(tempfile.gettempdir()))
    watch = Watch()
    with bootstrap("debian:bookworm", (), cache, progress=watch) as source:
        with source.layers[0].open() as pieces:
            path = f"{cache}/layer"
            with open(path, "wb") as file:
                file.writelines(pieces)
        yield cache, source, path, watch, before
    os.unlink(path)


def test_progress_and_nothing_left_behind(built):
    cache, source, path, watch, before = built
    assert "installing essential packages" in watch.phases
    left = {name for name in set(os.listdir(tempfile.gettempdir())) - before if "knarr-bootstrap" in name}
    assert not left
    assert source.references == ("docker.io/library/debian:bookworm",)
    assert source.layers[0].size == os.stat(path).st_size
    assert not [name for name in os.listdir(cache) if name.startswith("new-")]


def test_again_takes_a_moment_and_gives_the_same(built):
    cache, source, *_ = built
    start = time.monotonic()
    with bootstrap("debian:12", (), cache, reference="my/base:1") as again:
        assert again.config == source.config
        assert again.layers[0].digest == source.layers[0].digest
        assert again.references == ("docker.io/my/base:1",)
    assert time.monotonic() - start < 5


def contents(path):
    """Every name of the layer, with the bytes of the small files below etc."""
    found = {}
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "rb"))
        plain = stack.enter_context(zstandard.ZstdDecompressor().stream_reader(file))
        for member in (archive := stack.enter_context(tarfile.open(fileobj=plain, mode="r|"))):
            name = member.name.removeprefix("./")
            small = member.isfile() and name.startswith("etc/") and member.size < 100_000
            found[name] = archive.extractfile(member).read() if small else b""
    return found


def test_the_tree_is_clean(built):
    found = contents(built[2])
    assert found["etc/machine-id"] == found["etc/hostname"] == found["etc/resolv.conf"] == b""
    inside = aptsources.parse_deb822(found["etc/apt/sources.list.d/debian.sources"].decode())
    assert {source.uri for source in inside} <= set(_uris())
    assert "etc/apt/sources.list" not in found
    assert not [
        name
        for name in found
        if name.startswith(("var/log/", "var/lib/apt/lists/")) and name.endswith(".log")
    ]
    assert "bin/bash" in found or "usr/bin/bash" in found


def _uris():
    return [source.uri for source in aptsources.read_sources() if "://" in source.uri]


def test_cancelling_stops_everything(built, tmp_path):
    order = bootstrap("debian:bookworm", ("hello",), str(tmp_path), cancel=lambda: True)
    with pytest.raises(Failed, match="cancelled"), order:
        pass
    assert os.listdir(tmp_path) == ["lock"]
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "knarr-bootstrap" not in shown or "include=hello" not in shown


def test_leftovers_of_a_killed_daemon_go_and_builds_wait_for_each_other(built, tmp_path):
    (tmp_path / "new-1").write_bytes(b"half")
    with open(tmp_path / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (
            pytest.raises(Failed, match="cancelled"),
            bootstrap("debian:12", (), str(tmp_path), cancel=lambda: True),
        ):
            pass
    assert (tmp_path / "new-1").exists()
    with (
        pytest.raises(Failed, match="cancelled"),
        bootstrap("debian:12", (), str(tmp_path), cancel=lambda: True),
    ):
        pass
    assert os.listdir(tmp_path) == ["lock"]


def test_an_unknown_suite(built, tmp_path):
    with pytest.raises(Unavailable, match="no suite 'nosuch'"), bootstrap("debian:nosuch", (), str(tmp_path)):
        pass


@pytest.mark.slow
def test_the_same_mirror_state_gives_the_same_bytes(built, tmp_path):
    _, source, *_ = built
    with bootstrap("debian:bookworm", (), str(tmp_path)) as again:
        assert again.layers[0].digest == source.layers[0].digest
