"""Volumes: made, filled from the image, shared, kept while used, removed; the same behind every wall."""

from __future__ import annotations

import json
import os
import pathlib
import uuid
from typing import TYPE_CHECKING

import pytest

from conformance.harness import IMAGE, Wall
from support.images import Member, busybox_archive, folder, hardlink, symlink

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conformance.harness import Instance

FILLED = "volumes:latest"


@pytest.fixture(scope="session")
def filled(instance: Instance, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image whose /data is a VOLUME with content of every kind."""
    archive = tmp_path_factory.mktemp("images") / "volumes.tar"
    members = [
        folder("data", 0o2750, 1000, 1000),
        Member("data/plain", b"from the image\n", 0o640, uid=1000, gid=33),
        Member("data/program", b"#!/bin/sh\necho ran\n", 0o4755),
        hardlink("data/second", "data/plain"),
        symlink("data/link", "/etc/passwd"),
        folder("data/deep", 0o700),
        folder("data/deep/er", 0o755),
        Member("data/deep/er/file", b"deep\n"),
    ]
    busybox_archive(str(archive), tag=FILLED, extra_members=members, Volumes={"/data": {}})
    instance.knarr("load", "-i", str(archive), check=True)
    return FILLED


@pytest.fixture
def volume(wall: Wall) -> Iterator[str]:
    name = f"vol-{uuid.uuid4().hex[:8]}"
    yield name
    wall.knarr("volume", "rm", "-f", name, check=True)


def volumes(wall: Wall) -> set[str]:
    return set(wall.knarr("volume", "ls", "-q", check=True).lines)


def inspect(wall: Wall, name: str) -> dict:
    return json.loads(wall.knarr("volume", "inspect", name, check=True).out)[0]


def run(wall: Wall, image: str, script: str, *opts: str):
    words = ("run", "--rm", "--isolation", wall.isolation, *opts, image, "sh", "-c", script)
    return wall.knarr(*words)


@pytest.mark.smoke
def test_a_named_volume_outlives_its_workloads(wall: Wall, volume: str) -> None:
    assert wall.shell("echo kept > /v/f", opts=("-v", f"{volume}:/v")).code == 0
    assert wall.shell("cat /v/f", opts=("--mount", f"type=volume,source={volume},target=/v")).out == "kept\n"
    assert inspect(wall, volume)["anonymous"] is False


def test_a_read_only_volume(wall: Wall, volume: str) -> None:
    wall.shell("echo kept > /v/f", opts=("-v", f"{volume}:/v"))
    result = wall.shell("cat /v/f; touch /v/new", opts=("-v", f"{volume}:/v:ro"))
    assert result.out == "kept\n"
    assert result.code != 0


@pytest.mark.smoke
def test_first_use_copies_the_images_content(wall: Wall, filled: str, volume: str) -> None:
    script = (
        "stat -c '%u %g %a' /data /data/plain /data/program /data/deep; stat -c %h /data/plain;"
        " readlink /data/link; cat /data/deep/er/file; /data/program; echo more >> /data/second; cat /data/plain"
    )
    result = run(wall, filled, script, "-v", f"{volume}:/data")
    assert result.lines == [
        *("1000 1000 2750", "1000 33 640", "0 0 4755", "0 0 700", "2"),
        *("/etc/passwd", "deep", "ran", "from the image", "more"),
    ], result
    assert run(wall, filled, "cat /data/plain", "-v", f"{volume}:/data").lines == ["from the image", "more"]


def test_a_volume_with_content_is_left_alone(wall: Wall, filled: str, volume: str) -> None:
    wall.shell("touch /v/mine", opts=("-v", f"{volume}:/v"))
    assert run(wall, filled, "ls /data", "-v", f"{volume}:/data").lines == ["mine"]


def test_nocopy_leaves_it_empty(wall: Wall, filled: str, volume: str) -> None:
    assert run(wall, filled, "ls /data", "-v", f"{volume}:/data:nocopy").out == ""


def test_the_images_volume_goes_with_rm(wall: Wall, filled: str) -> None:
    before = volumes(wall)
    result = run(wall, filled, "cat /data/plain; df /data | tail -1; mount | grep -c ' /data '")
    assert result.lines[0] == "from the image"
    assert result.lines[-1] == "1"
    assert volumes(wall) == before


def test_a_volume_without_a_name_stays_unless_asked(wall: Wall) -> None:
    before = volumes(wall)
    kept, gone = (wall.create("true", opts=("-v", "/anonymous")) for _ in range(2))
    assert len(volumes(wall) - before) == 2
    wall.knarr("rm", "-v", gone, check=True)
    (left,) = volumes(wall) - before
    assert inspect(wall, left)["used_by"] == [kept]
    wall.knarr("rm", kept, check=True)
    assert left in volumes(wall)
    assert left in wall.knarr("volume", "prune", "-f", check=True).lines
    assert volumes(wall) == before


def test_a_used_volume_is_kept_with_who_uses_it(wall: Wall, volume: str) -> None:
    name = wall.create("true", opts=("-v", f"{volume}:/v"))
    try:
        result = wall.knarr("volume", "rm", volume)
        assert result.code == 1
        assert name in result.err
        assert volume not in wall.knarr("volume", "prune", "-a", "-f").lines
    finally:
        wall.knarr("rm", "-f", "-v", name)
    assert volume in volumes(wall)


def test_volumes_from_another(wall: Wall, volume: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "f").write_text("bind\n")
    name = wall.create("true", opts=("-v", f"{volume}:/v", "-v", f"{tmp_path}:/b"))
    try:
        script = "cat /b/f; touch /v/one; touch /b/two"
        result = wall.shell(script, opts=("--volumes-from", f"{name}:ro"))
        assert result.out == "bind\n"
        assert result.err.count("Read-only file system") == 2
        wall.shell("touch /v/one", opts=("--volumes-from", name))
        assert os.listdir(inspect(wall, volume)["mountpoint"]) == ["one"]
    finally:
        wall.knarr("rm", "-f", name)


def test_inspect_names_the_volume(wall: Wall, volume: str) -> None:
    name = wall.create("true", opts=("-v", f"{volume}:/v:ro"))
    try:
        (mount,) = json.loads(wall.knarr("inspect", name).out)[0]["mounts"]
        source = inspect(wall, volume)["mountpoint"]
        assert mount == {
            "kind": "volume",
            "name": volume,
            "source": source,
            "target": "/v",
            "read_only": True,
        }
    finally:
        wall.knarr("rm", name)


def test_volume_verbs(instance: Instance) -> None:
    made = instance.knarr("volume", "create", "--label", "a=b", "verbs", check=True)
    assert made.out == "verbs\n"
    assert instance.knarr("volume", "create", "verbs").out == "verbs\n"
    assert json.loads(instance.knarr("volume", "inspect", "verbs").out)[0]["labels"] == {"a": "b"}
    unnamed = instance.knarr("volume", "create").out.strip()
    assert len(unnamed) == 64
    assert instance.knarr("volume", "rm", "verbs", unnamed).lines == ["verbs", unnamed]
    missing = instance.knarr("volume", "inspect", "verbs")
    assert missing.code == 1
    assert "verbs" in missing.err


@pytest.mark.parametrize("name", ["../up", "a", ".hidden", "x" * 200])
def test_a_name_that_could_lead_elsewhere_is_refused(instance: Instance, name: str) -> None:
    made = instance.knarr("volume", "create", name)
    assert made.code == 1
    assert "is not a volume's name" in made.err
    mount = f"type=volume,source={name},target=/v"
    result = instance.knarr("run", "--rm", "--mount", mount, IMAGE, "true")
    assert result.code == 125
    assert "is not a volume's name" in result.err


def test_a_failed_creation_leaves_no_volume(wall: Wall, box: str) -> None:
    before = volumes(wall)
    result = wall.knarr("create", "--name", box, "--isolation", wall.isolation, "-v", "/x", IMAGE, "true")
    assert result.code == 125
    assert volumes(wall) == before


@pytest.mark.smoke
def test_files_of_a_stopped_ones_mounts_are_copied(wall: Wall, volume: str, tmp_path: pathlib.Path) -> None:
    bound, single = tmp_path / "bound", tmp_path / "single"
    bound.mkdir()
    (bound / "here").write_text("bound")
    single.write_text("one file")
    opts = ("-v", f"{volume}:/v/deep", "-v", f"{bound}:/b:ro", "-v", f"{single}:/etc/single")
    name = wall.create("true", opts=opts)
    try:
        (tmp_path / "new").write_text("new")
        wall.knarr("cp", str(tmp_path / "new"), f"{name}:/v/deep/file", check=True)
        assert pathlib.Path(inspect(wall, volume)["mountpoint"], "file").read_text() == "new"
        wall.knarr("cp", f"{name}:/v/deep", str(tmp_path / "copy"), check=True)
        assert (tmp_path / "copy" / "file").read_text() == "new"
        wall.knarr("cp", f"{name}:/b/here", str(tmp_path / "there"), check=True)
        assert (tmp_path / "there").read_text() == "bound"
        wall.knarr("cp", f"{name}:/etc/single", str(tmp_path / "again"), check=True)
        assert (tmp_path / "again").read_text() == "one file"
        (tmp_path / "into").mkdir()
        wall.knarr("cp", f"{name}:/b", str(tmp_path / "into"), check=True)
        assert (tmp_path / "into" / "b" / "here").read_text() == "bound"
        refused = wall.knarr("cp", str(tmp_path / "new"), f"{name}:/b/here")
        assert refused.code == 1
        assert "/b is mounted read-only" in refused.err
        outside = wall.knarr("cp", f"{name}:/v/deep/../../../etc/shadow-of-the-host", "-")
        assert outside.code == 1
    finally:
        wall.knarr("rm", "-f", name)


def test_links_in_a_stopped_ones_volume_lead_nowhere(wall: Wall, volume: str, tmp_path: pathlib.Path) -> None:
    script = "ln -s /etc /v/out; ln -s ../../../../../../../../etc /v/up; ln -s /etc/hostname /v/file"
    assert wall.shell(script, opts=("-v", f"{volume}:/v")).code == 0
    name = wall.create("true", opts=("-v", f"{volume}:/v"))
    (tmp_path / "planted").write_text("planted")
    planted = pathlib.Path("/etc/planted-by-knarr-test")
    try:
        for path in ("/v/out/hostname", "/v/up/hostname", "/v/up/shadow"):
            assert wall.knarr("cp", f"{name}:{path}", "-").code == 1
        wall.knarr("cp", "-L", f"{name}:/v/file", str(tmp_path / "got"))
        host = pathlib.Path("/etc/hostname").read_text()
        assert not (tmp_path / "got").exists() or (tmp_path / "got").read_text() != host
        for path in ("/v/out", "/v/up"):
            wall.knarr("cp", str(tmp_path / "planted"), f"{name}:{path}/{planted.name}")
            assert not planted.exists()
    finally:
        wall.knarr("rm", "-f", name)
        planted.unlink(missing_ok=True)
