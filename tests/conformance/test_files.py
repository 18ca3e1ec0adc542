"""cp, bind mounts, the image's files: paths and bytes, the same behind every wall."""

from __future__ import annotations

import io
import os
import pathlib
import tarfile
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conformance.harness import Wall


@pytest.mark.smoke
def test_cp_file_in_and_out(wall: Wall, box: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "in.bin").write_bytes(os.urandom(300_000))
    wall.knarr("cp", str(tmp_path / "in.bin"), f"{box}:/tmp/there", check=True)
    wall.knarr("cp", f"{box}:/tmp/there", str(tmp_path / "back.bin"), check=True)
    assert (tmp_path / "back.bin").read_bytes() == (tmp_path / "in.bin").read_bytes()


@pytest.mark.smoke
def test_cp_folder_with_links_and_modes(wall: Wall, box: str, tmp_path: pathlib.Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "tool").write_text("#!/bin/sh\necho tool\n")
    (tree / "sub" / "tool").chmod(0o4755)
    (tree / "link").symlink_to("sub/tool")
    os.link(tree / "sub" / "tool", tree / "hard")
    wall.knarr("cp", str(tree), f"{box}:/tmp/tree", check=True)
    script = (
        "readlink /tmp/tree/link; stat -c %a /tmp/tree/sub/tool; stat -c %h /tmp/tree/hard; /tmp/tree/link"
    )
    assert wall.exec(box, "sh", "-c", script).lines == ["sub/tool", "4755", "2", "tool"]
    wall.knarr("cp", f"{box}:/tmp/tree", str(tmp_path / "out"), check=True)
    assert (tmp_path / "out" / "link").readlink() == pathlib.Path("sub/tool")
    # setuid stays inside: a program of the workload's must not become root's on the host
    assert (tmp_path / "out" / "sub" / "tool").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "out" / "hard").stat().st_nlink == 2


def test_cp_into_an_existing_folder_nests(wall: Wall, box: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_text("x")
    wall.exec(box, "mkdir", "-p", "/tmp/nest")
    wall.knarr("cp", str(tmp_path / "d"), f"{box}:/tmp/nest", check=True)
    assert wall.exec(box, "cat", "/tmp/nest/d/f").out == "x"
    wall.knarr("cp", f"{tmp_path / 'd'}/.", f"{box}:/tmp/nest", check=True)
    assert wall.exec(box, "cat", "/tmp/nest/f").out == "x"


def test_cp_as_a_tar_stream(wall: Wall, box: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("streamed")
        member.size, member.mode, member.uid, member.gid = 5, 0o640, 12, 34
        archive.addfile(member, io.BytesIO(b"bytes"))
    wall.knarr("cp", "-", f"{box}:/tmp", stdin=buffer.getvalue(), check=True)
    assert wall.exec(box, "cat", "/tmp/streamed").out == "bytes"
    assert wall.exec(box, "stat", "-c", "%a", "/tmp/streamed").out == "640\n"


def test_cp_never_leaves_the_workload(wall: Wall, box: str, tmp_path: pathlib.Path) -> None:
    canary = pathlib.Path("/tmp") / f"knarr-canary-{os.getpid()}-{wall.isolation}"
    (tmp_path / "evil").write_text("evil")
    wall.exec(box, "sh", "-c", f"rm -rf {canary}; ln -s /tmp /tmp/escape; ln -s / /tmp/up")
    wall.knarr("cp", str(tmp_path / "evil"), f"{box}:/tmp/escape/{canary.name}")
    wall.knarr("cp", str(tmp_path / "evil"), f"{box}:/tmp/up/../../../../../../tmp/{canary.name}")
    assert not canary.exists()


def test_cp_from_a_symlink_stays_inside(wall: Wall, box: str, tmp_path: pathlib.Path) -> None:
    wall.exec(box, "sh", "-c", "rm -rf /tmp/etc; ln -s ../../../../../../etc /tmp/etc")
    wall.knarr("cp", f"{box}:/tmp/etc/passwd", str(tmp_path / "passwd"), check=True)
    assert "alice" in (tmp_path / "passwd").read_text()


def test_cp_of_a_missing_path(wall: Wall, box: str, tmp_path: pathlib.Path) -> None:
    result = wall.knarr("cp", f"{box}:/no/such", str(tmp_path))
    assert result.code != 0
    assert "/no/such" in result.err


@pytest.mark.smoke
def test_cp_with_a_stopped_workload(wall: Wall, tmp_path: pathlib.Path) -> None:
    name = wall.create("cat", "/tmp/before")
    try:
        (tmp_path / "f").write_text("waiting\n")
        wall.knarr("cp", str(tmp_path / "f"), f"{name}:/tmp/before", check=True)
        assert wall.knarr("start", "-a", name).out == "waiting\n"
        wall.knarr("cp", f"{name}:/tmp/before", str(tmp_path / "again"), check=True)
        assert (tmp_path / "again").read_text() == "waiting\n"
    finally:
        wall.knarr("rm", "-f", name)


@pytest.mark.smoke
def test_bind_mount_both_ways(wall: Wall, tmp_path: pathlib.Path) -> None:
    (tmp_path / "host").write_text("from host\n")
    result = wall.shell("cat /data/host; echo from inside > /data/inside", opts=("-v", f"{tmp_path}:/data"))
    assert result.out == "from host\n"
    assert (tmp_path / "inside").read_text() == "from inside\n"


def test_bind_mount_read_only(wall: Wall, tmp_path: pathlib.Path) -> None:
    (tmp_path / "f").write_text("x")
    result = wall.shell("cat /data/f; touch /data/new", opts=("-v", f"{tmp_path}:/data:ro"))
    assert result.out == "x"
    assert result.code != 0
    assert not (tmp_path / "new").exists()


def test_bind_mount_of_a_file(wall: Wall, tmp_path: pathlib.Path) -> None:
    (tmp_path / "only").write_text("only this\n")
    (tmp_path / "secret").write_text("not this\n")
    result = wall.shell("cat /etc/only", opts=("-v", f"{tmp_path / 'only'}:/etc/only"))
    assert result.out == "only this\n"


def test_bind_mount_of_a_missing_source(wall: Wall) -> None:
    result = wall.run("true", opts=("--mount", "type=bind,source=/no/such/place,target=/x"))
    assert result.code == 125
    assert "/no/such/place" in result.err


def test_image_files_are_equal_to_the_archives(wall: Wall) -> None:
    out = wall.shell("stat -c '%u %g %a' /etc/passwd /tmp /bin; readlink /bin/sh || true").lines
    assert out[0] == "0 0 644"
    assert out[1] == "0 0 1777"


def test_resolv_conf_and_hosts_are_ours(wall: Wall) -> None:
    result = wall.shell("cat /etc/hosts; grep -c nameserver /etc/resolv.conf", opts=("--hostname", "mars"))
    assert "127.0.0.1" in result.out
    assert "mars" in result.out
    assert int(result.lines[-1]) >= 1
