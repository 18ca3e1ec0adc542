"""The engine's end, with workloads and without: nothing of it stays on the host."""

from __future__ import annotations

import json

import pytest

from conformance.harness import IMAGE, Instance, Wall
from support import leaks
from support.images import busybox_archive


@pytest.fixture
def other(wall: Wall, tmp_path):
    """One more instance, which the case ends by itself."""
    busybox_archive(str(tmp_path / "image.tar"), tag=IMAGE)
    made = Instance()
    try:
        made.start()
        made.knarr("load", "-i", str(tmp_path / "image.tar"), check=True)
        yield Wall(made, wall.isolation)
    finally:
        made.knarr("daemon", "stop", "--workloads")
        made._folder.cleanup()


def test_a_stop_of_all_after_a_stop_of_the_daemon_leaves_nothing(other: Wall) -> None:
    instance = other.instance
    identity = leaks.instance_of(instance.root)
    opts = ("-p", "127.0.0.1::80", "--log-driver", "none")
    other.knarr(
        "run",
        "-d",
        "--name",
        "stays",
        "--isolation",
        other.isolation,
        *opts,
        IMAGE,
        "sleep",
        "1000",
        check=True,
    )
    told = instance.knarr("daemon", "stop", check=True).out
    assert "workloads go on: 1" in told
    assert json.loads(instance.knarr("daemon", "status", "--format", "json").out)["pid"] is None
    assert leaks.left(instance.root, instance.run_folder, identity) != []
    instance.knarr("daemon", "stop", "--workloads", check=True)
    leaks.gone(instance.root, instance.run_folder, identity)
