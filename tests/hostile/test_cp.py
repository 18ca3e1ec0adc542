"""The same archives unpacked into workloads: the same verdict and result behind each wall, nothing outside.

What they made there then goes on through commit, save, load and a volume's copy-up.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tarfile

import pytest

from knarr.model.errors import KnarrError
from support import images, layers
from support.corpus import Case, cases
from support.shapes import shape

pytestmark = pytest.mark.root
FULL = os.environ.get("KNARR_FULL") == "1"
_SPARSER = 1 if FULL else 6
"""which part of the corpus goes into a machine: emulated, each archive takes a tenth of a second and more"""
_KINDS = ("invalid", "not_found", "conflict", "failed", "unavailable")


def chosen(host, every: int = 1) -> list[tuple[int, Case]]:
    numbered = [(at, case) for at, case in enumerate(cases(host.canary)) if len(case.layers) == 1]
    return numbered[::every]


def wanted(case: Case) -> str:
    return ("taken" if case.tree is not None else "refused") if case.cp == "same" else case.cp


def unpack(host, name: str, numbered: list[tuple[int, Case]]) -> tuple[list[object], dict[str, object]]:
    """(what went otherwise than the cases want, what lies below /t afterwards)"""
    places = [images.folder("t"), *(images.folder(f"t/{at}") for at, _ in numbered)]
    host.client.put_archive(name, "/", [images.tar_bytes(places)])
    wrong: list[object] = []
    for at, case in numbered:
        try:
            host.client.put_archive(name, f"/t/{at}", [case.layers[0]])
            got = "taken"
        except KnarrError as error:
            clean = error.kind in _KINDS and error.message.isprintable() and "internal" not in error.message
            got = "refused" if clean else repr(error.message)
        if got != wanted(case):
            wrong.append((case.name, wanted(case), got))
    return wrong, listing(host, name)


def listing(host, name: str) -> dict[str, object]:
    """Every entry below /t by its name; hard links as one group whichever of their names came first."""
    _, pieces = host.client.get_archive(name, "/t")
    found: dict[str, object] = {}
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
        members = archive.getmembers()
    first = {member.linkname for member in members if member.islnk()}
    for member in members:
        linked = member.islnk() or member.name in first
        kind = () if linked else (member.type, member.size, member.linkname, member.devmajor, member.devminor)
        xattrs = sorted(item for item in member.pax_headers.items() if "xattr" in item[0])
        found[member.name] = (member.mode, member.uid, member.gid, kind, xattrs)
    return found


@contextlib.contextmanager
def box(host, wall: str, *verb: str):
    words = (*verb, "--isolation", wall, "--network", "none", "hostile:latest", "sleep", "10000")
    name = host.instance.knarr(*words, check=True).out.strip()
    try:
        yield name
    finally:
        host.instance.knarr("rm", "-f", name)


@pytest.fixture(scope="module")
def container(host):
    """A running container into which all was unpacked: (name, what went wrong, what is there)."""
    with box(host, "container", "run", "-d") as name:
        yield name, *unpack(host, name, chosen(host))


@pytest.fixture(scope="module")
def stopped(host):
    with box(host, "container", "create") as name:
        yield name


@pytest.fixture(scope="module")
def machine(host):
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("power missing: qemu-system-x86_64")
    with box(host, "microvm", "run", "-d") as name:
        yield name


def test_cp_into_a_running_container(host, container, unharmed):
    name, wrong, found = container
    assert wrong == []
    assert len(found) > 200
    assert unpack(host, name, chosen(host))[0] == []  # over what is there already


def test_cp_into_a_stopped_container(host, container, stopped, unharmed):
    wrong, found = unpack(host, stopped, chosen(host))
    assert wrong == []
    assert found == container[2]


@pytest.mark.vm
def test_cp_into_a_machine(host, container, machine, unharmed):
    numbered = chosen(host, _SPARSER)
    wrong, found = unpack(host, machine, numbered)
    host.instance.knarr("exec", machine, "sync", check=True)  # so that the watch has its disk's file to see
    assert wrong == []
    places = tuple(f"t/{at}/" for at, _ in numbered)
    assert {name: it for name, it in found.items() if name.startswith(places)} == {
        name: it for name, it in container[2].items() if name.startswith(places)
    }


def image_shape(host, image: str, folder: str, below: str) -> tuple[str, ...]:
    rootfs = host.client.image(image)["rootfs"]
    with layers.mounted_rootfs(rootfs, folder):
        return shape(os.path.join(folder, below))


def test_what_was_unpacked_goes_through_commit_save_load_and_copy_up(host, container, tmp_path):
    box = container[0]
    with pytest.raises(KnarrError, match="hides another file"):
        list(host.client.commit(box, reference="hostile/kept:1"))
    host.instance.knarr("exec", box, "sh", "-c", "find /t -name '.wh.*' -exec rm -r {} +", check=True)
    with pytest.raises(KnarrError, match="too many or too large extended attributes"):
        list(host.client.commit(box, reference="hostile/kept:1"))
    many = next(at for at, case in chosen(host) if case.name == "xattr-many")
    host.instance.knarr("exec", box, "rm", f"/t/{many}/a", check=True)
    *_, last = host.client.commit(box, reference="hostile/kept:1")
    image = last["image"]["id"]
    kept = image_shape(host, image, str(tmp_path), "t")
    saved = b"".join(host.client.save(["hostile/kept:1"]))
    host.client.remove_image(image, force=True)
    *_, last = host.client.load([saved])
    assert last["image"]["id"] == image
    assert image_shape(host, image, str(tmp_path), "t") == kept
    words = ("--rm", "--network", "none", "-v", "hostile:/t", "hostile/kept:1", "true")
    try:
        host.instance.knarr("run", *words, check=True)
        assert shape(os.path.join(host.instance.root, "volumes/hostile/data")) == kept
    finally:
        host.client.remove_volume("hostile")
        host.client.remove_image(image, force=True)
    assert layers.snapshot(host.canary) == host.before
    assert host.problems() == []
