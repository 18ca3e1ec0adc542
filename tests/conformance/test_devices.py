"""--device: a node and the right to open it behind a container; refused by name where a wall can't."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conformance.harness import Wall

# of tun: nothing that a default workload may open
TUN = os.makedev(10, 200)


@pytest.fixture
def device() -> Iterator[str]:
    path = f"/dev/knarr-test-{os.getpid()}"
    os.mknod(path, stat.S_IFCHR | 0o600, TUN)
    yield path
    os.unlink(path)


@pytest.mark.smoke
def test_a_device_is_given_or_refused_by_name(wall: Wall, device: str) -> None:
    script = "stat -c '%t:%T' /dev/tun0; head -c 0 /dev/tun0 && echo opened; ls -l /dev | grep -c knarr-test"
    result = wall.shell(script, ("--device", f"{device}:/dev/tun0:rw"))
    if wall.isolation != "container":
        assert result.code == 125
        assert f"isolation {wall.isolation} can't do device {device!r}" in result.err
        return
    assert result.lines == ["a:c8", "opened", "0"], result


def test_only_what_was_given_can_be_opened(wall: Wall, device: str) -> None:
    if wall.isolation != "container":
        pytest.skip("refused by name")
    script = "mknod /tmp/tun c 10 200; head -c 0 /tmp/tun 2>&1; mknod /tmp/mem c 1 1; head -c 0 /tmp/mem 2>&1"
    without = wall.shell(script)
    assert without.out.count("Operation not permitted") == 2, without
    given = wall.shell(script, ("--device", device))
    assert given.out.count("Operation not permitted") == 1, given
    assert "/tmp/mem" in given.out


@pytest.mark.parametrize(
    "text", ["/etc/passwd", "/dev/../etc/passwd", "/dev/null:/etc/x", "/dev/null::x", "/dev/null:rx"]
)
def test_what_is_no_device_is_refused(wall: Wall, text: str) -> None:
    result = wall.run("true", opts=("--device", text))
    assert result.code == 125, result
    assert "Traceback" not in result.err


def test_a_device_that_is_missing_is_named(wall: Wall) -> None:
    if wall.isolation != "container":
        pytest.skip("refused by name")
    result = wall.run("true", opts=("--device", "/dev/nosuchdevice"))
    assert result.code == 125
    assert "/dev/nosuchdevice" in result.err
