"""The volume store on a real file system: what is copied, and what a crash at any point leaves."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from knarr.model.errors import Invalid, NotFound
from knarr.volumes import copyup
from knarr.volumes.store import VolumeStore

if TYPE_CHECKING:
    import pathlib

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="power missing: root")


@pytest.fixture
def image(tmp_path: pathlib.Path) -> pathlib.Path:
    """A root with a folder of every kind of entry at /data."""
    data = tmp_path / "image" / "data"
    (data / "sub" / "deep").mkdir(parents=True)
    (data / "plain").write_bytes(b"x" * 100_000)
    os.chown(data / "plain", 7, 8)
    os.chmod(data / "plain", 0o4751)
    os.setxattr(data / "plain", "trusted.of", b"image")
    os.link(data / "plain", data / "sub" / "again")
    os.symlink("/etc/shadow", data / "absolute")
    os.symlink("nowhere", data / "sub" / "dangling")
    os.mkfifo(data / "fifo", 0o600)
    os.mknod(data / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.utime(data / "plain", ns=(1, 123_456_789))
    os.chmod(data / "sub", 0o1700)
    os.chown(data, 3, 4)
    os.chmod(data, 0o2755)
    os.symlink("data", tmp_path / "image" / "alias")
    os.symlink("/../../../etc", tmp_path / "image" / "outside")
    return tmp_path / "image"


@pytest.fixture
def store(tmp_path: pathlib.Path) -> VolumeStore:
    (tmp_path / "volumes").mkdir()
    return VolumeStore(str(tmp_path / "volumes"))


def root(image: pathlib.Path) -> int:
    return os.open(image, os.O_PATH | os.O_DIRECTORY)


def shape(folder: str | pathlib.Path) -> dict[str, tuple[object, ...]]:
    found = {}
    for place, _, _ in os.walk(folder):
        for name in (".", *os.listdir(place)):
            path = os.path.join(place, name)
            status = os.lstat(path)
            link = os.readlink(path) if stat.S_ISLNK(status.st_mode) else ""
            key = os.path.relpath(path, folder)
            found[key] = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                link,
                status.st_rdev,
            )
    return found


def test_everything_is_copied(store: VolumeStore, image: pathlib.Path) -> None:
    store.create("vol", {})
    fd = root(image)
    store.fill("vol", fd, "/alias")
    os.close(fd)
    data = store.data("vol")
    assert shape(data) == shape(image / "data")
    assert os.getxattr(f"{data}/plain", "trusted.of") == b"image"
    assert os.path.samefile(f"{data}/plain", f"{data}/sub/again")
    assert sorted(os.listdir(os.path.dirname(data))) == ["data", "volume.json"]


@pytest.mark.parametrize("path", ["/outside", "/data/plain", "/missing", "/../../../../etc/passwd"])
def test_nothing_outside_the_image_is_copied(store: VolumeStore, image: pathlib.Path, path: str) -> None:
    store.create("vol", {})
    fd = root(image)
    store.fill("vol", fd, path)
    os.close(fd)
    assert store.is_empty("vol")
    assert sorted(os.listdir(os.path.dirname(store.data("vol")))) == ["data", "volume.json"]


def test_a_depth_that_no_path_can_name(tmp_path: pathlib.Path, store: VolumeStore) -> None:
    (tmp_path / "image").mkdir()
    here = os.open(tmp_path / "image", os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    store.create("vol", {})
    fd = root(tmp_path / "image")
    store.fill("vol", fd, "/d")
    os.close(fd)
    assert os.listdir(store.data("vol")) == ["d"]


def test_a_copy_cut_short_is_begun_again(
    tmp_path: pathlib.Path, store: VolumeStore, image: pathlib.Path
) -> None:
    store.create("vol", {})
    base = tmp_path / "volumes" / "vol"
    (base / "copying" / "half").mkdir(parents=True)
    (tmp_path / "volumes" / ".new-1234").mkdir()
    (tmp_path / "volumes" / ".removing-1234" / "x").mkdir(parents=True)
    again = VolumeStore(str(tmp_path / "volumes"))
    assert [item.name for item in again] == ["vol"]
    assert sorted(os.listdir(base)) == ["data", "volume.json"]
    assert os.listdir(tmp_path / "volumes") == ["vol"]


def test_a_whole_copy_is_finished_after_a_crash(
    tmp_path: pathlib.Path, store: VolumeStore, image: pathlib.Path
) -> None:
    store.create("vol", {"a": "b"}, anonymous=True)
    fresh = tmp_path / "volumes" / "vol" / "fresh"
    fresh.mkdir()
    fd = root(image)
    assert copyup.copy(fd, "/data", str(fresh))
    os.close(fd)
    # some entries were moved before the crash
    os.rename(fresh / "plain", tmp_path / "volumes" / "vol" / "data" / "plain")
    again = VolumeStore(str(tmp_path / "volumes"))
    found, wanted = shape(again.data("vol")), shape(image / "data")
    # the folder's own times are those of the moves
    assert {key: value for key, value in found.items() if key not in (".", "sub/..")}.keys() == {
        key for key in wanted if key != "."
    }
    assert found["."][:3] == wanted["."][:3]
    assert again.get("vol").labels == {"a": "b"}
    assert again.get("vol").anonymous


def test_a_removed_volume_is_gone_at_once(tmp_path: pathlib.Path, store: VolumeStore) -> None:
    store.create("vol", {})
    left = store.forget("vol")
    assert os.path.isdir(left)
    with pytest.raises(NotFound):
        store.get("vol")
    assert not list(VolumeStore(str(tmp_path / "volumes")))
    assert not os.path.exists(left)


@pytest.mark.parametrize("name", ["", "a", "..", "a/b", "-x", ".new-1", "a\n", "é" * 3])
def test_names_are_checked(store: VolumeStore, name: str) -> None:
    with pytest.raises(Invalid):
        store.create(name, {})


def test_a_broken_record_costs_no_data(tmp_path: pathlib.Path, store: VolumeStore) -> None:
    store.create("vol", {"a": "b"})
    (tmp_path / "volumes" / "vol" / "data" / "kept").touch()
    (tmp_path / "volumes" / "vol" / "volume.json").write_text("{broken")
    again = VolumeStore(str(tmp_path / "volumes"))
    assert again.get("vol").labels == {}
    assert os.listdir(again.data("vol")) == ["kept"]
