"""Hostile root file systems through the doors that make images of them: load, import, pull."""

from __future__ import annotations

import contextlib
import gzip
import os
import time
from typing import TYPE_CHECKING

import pytest
import zstandard

from knarr.model.errors import KnarrError
from support import images, layers, registry
from support.corpus import Case, cases
from support.shapes import shape

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Host

pytestmark = pytest.mark.root
_LONGEST = 15
_PULLED = 1 if os.environ.get("KNARR_FULL") == "1" else 6
"""which part of the corpus goes through the real registry, whose pushes are slow"""
_PACKED: tuple[Callable[[bytes], bytes], ...] = (
    bytes,
    lambda data: gzip.compress(data, 1),
    lambda data: zstandard.compress(data, 1),
)
_COMPRESSED = ("gzip", "zstd", "tar")


def _blobs(case: Case, number: int):
    config = images.config_bytes(case.layers, cmd=["sh"])
    return images.oci_blobs(case.layers, config, _COMPRESSED[number // 2 % 3])


def load(host: Host, case: Case, number: int):
    """docker's form or an OCI archive, the archive itself and its layers compressed in turns."""
    if number % 2:
        blobs, entry = _blobs(case, number)
        data = images.tar_bytes(images.oci_members(blobs, [entry]))
    else:
        data = images.docker_bytes(case.layers, images.config_bytes(case.layers, cmd=["sh"]), ())
    return host.client.load([_PACKED[number // 2 % 3](data)])


def import_(host: Host, case: Case, number: int):
    return host.client.import_image([_PACKED[number % 3](case.layers[0])], "hostile/import:1")


class Pull:
    """From a real registry; what it would not take is not pushed."""

    def __init__(self, server: registry.RegistryServer) -> None:
        self._server = server

    def __call__(self, host: Host, case: Case, number: int):
        blobs, entry = _blobs(case, number)
        registry.push_blobs(self._server, "hostile", str(number), blobs, entry)
        return host.client.pull(f"{self._server.host}/hostile:{number}", insecure=True)


def outcome(host: Host, lines, folder: str) -> tuple[str, ...] | str:
    """The image's tree as it is mounted, or the error. The image is gone afterwards."""
    try:
        *_, last = lines
    except KnarrError as error:
        return f"{error.kind}: {error.message}"
    found = last["image"]["id"]
    rootfs = host.client.image(found)["rootfs"]
    layers.mount_tree(rootfs["tree"], rootfs["pool"], folder)
    try:
        return shape(folder)
    finally:
        layers.unmount(folder)
        host.client.remove_image(found, force=True)


def fault(case: Case, got: tuple[str, ...] | str, *, importing: bool) -> str:
    """Why that is not what the case wants, or empty."""
    if isinstance(got, str):
        kind, _, message = got.partition(": ")
        clean = kind in ("invalid", "unsupported") and message.isprintable() and len(message) < 1000
        early = importing and message == "the file is not a tar archive"
        return "" if clean and case.tree is None and (early or case.refused in message) else got[:300]
    return "" if case.tree is not None and got == tuple(sorted(case.tree)) else str(got)[:300]


@pytest.mark.parametrize("door", ["load", "import", "pull"])
def test_what_becomes_of_hostile_layers(host, unharmed, tmp_path, door):
    wrong = []
    with contextlib.ExitStack() as stack:
        enter = {"load": load, "import": import_}.get(door)
        if enter is None:
            if why := registry.available():
                pytest.skip(f"power missing: {why}")
            enter = Pull(stack.enter_context(registry.docker_registry()))
        for number, case in enumerate(cases(host.canary)):
            if (door == "import" and len(case.layers) > 1) or (door == "pull" and number % _PULLED):
                continue
            began = time.monotonic()
            got = outcome(host, enter(host, case, number), str(tmp_path))
            if found := fault(case, got, importing=door == "import"):
                wrong.append((case.name, case.tree or case.refused, found))
            if time.monotonic() - began > _LONGEST:
                wrong.append((case.name, "took longer than", _LONGEST))
    assert wrong == []
