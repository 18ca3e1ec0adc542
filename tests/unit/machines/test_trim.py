"""Files that a guest may flood are cut while QEMU has them open."""

from __future__ import annotations

import os

from knarr.machines import status, trim


def appended(path, data: bytes) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, data)
    return fd


def test_what_is_small_stays(tmp_path):
    for name in ("console.log", "qemu.log", "vm-status"):
        os.close(appended(tmp_path / name, b"started\n"))
    assert trim.trim(str(tmp_path)) == []
    assert trim.trim(str(tmp_path / "nowhere")) == []


def test_a_flooded_console_keeps_its_end_and_goes_on(tmp_path):
    console = tmp_path / "console.log"
    fd = appended(console, b"old\n" * (1 << 20) + b"the last words\n")
    assert trim.trim(str(tmp_path)) == ["console.log"]
    assert console.stat().st_size == trim.KEPT
    os.write(fd, b"and more\n")
    os.close(fd)
    assert console.read_bytes().endswith(b"the last words\nand more\n")


def test_a_flooded_status_keeps_its_beginning(tmp_path):
    os.close(appended(tmp_path / "vm-status", b"started\nexit 7\n" + b"exit 0\n" * 100_000))
    before = status.read(str(tmp_path))
    assert trim.trim(str(tmp_path)) == ["vm-status"]
    assert (tmp_path / "vm-status").stat().st_size == status.LIMIT
    assert status.read(str(tmp_path)) == before
    assert before.exit_code == 7


def test_a_link_in_its_place_is_left_alone(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"x" * (2 << 20))
    os.symlink(target, tmp_path / "console.log")
    assert trim.trim(str(tmp_path)) == []
    assert target.stat().st_size == 2 << 20
