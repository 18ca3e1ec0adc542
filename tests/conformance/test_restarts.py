"""Restart policies: behind every wall, over kills of the daemon and a new start of the engine."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import pytest

from conformance.harness import IMAGE, Instance, Wall, eventually

FAILING = "echo run; exit 3"


def state(instance: Instance, name: str) -> dict[str, Any]:
    return json.loads(instance.knarr("inspect", name, check=True).out)[0]


def runs(wall: Wall, name: str) -> int:
    return wall.knarr("logs", name, check=True).lines.count("run")


@pytest.mark.smoke
def test_on_failure_tries_so_often_and_no_more(wall: Wall) -> None:
    with wall.box("sh", "-c", FAILING, opts=("--restart", "on-failure:2")) as name:
        found = eventually(
            lambda: (s := state(wall.instance, name))["status"] == "exited" and s["restart_count"] == 2 and s,
            what="the last try",
            timeout=60,
        )
        assert found["exit_code"] == 3
        assert runs(wall, name) == 3


def test_on_failure_leaves_a_success_alone(wall: Wall) -> None:
    with wall.box("sh", "-c", "echo run", opts=("--restart", "on-failure")) as name:
        wall.knarr("wait", name, check=True)
        time.sleep(0.5)
        assert state(wall.instance, name)["status"] == "exited"
        assert runs(wall, name) == 1


@pytest.mark.smoke
def test_always_goes_on_until_it_is_stopped(wall: Wall) -> None:
    with wall.box("sh", "-c", "echo run", opts=("--restart", "always")) as name:
        eventually(lambda: runs(wall, name) >= 3, what="the third run", timeout=60)
        assert wall.knarr("rm", name).code == 1
        wall.knarr("stop", name, check=True)
        stopped = runs(wall, name)
        time.sleep(1.5)
        assert state(wall.instance, name)["status"] == "exited"
        assert runs(wall, name) == stopped


def test_a_kill_is_the_end(wall: Wall) -> None:
    with wall.box(opts=("--restart", "unless-stopped")) as name:
        wall.knarr("kill", name, check=True)
        assert wall.knarr("wait", name).out.strip() == "137"
        time.sleep(0.5)
        assert state(wall.instance, name)["status"] == "exited"


def test_a_death_of_its_own_is_not(wall: Wall) -> None:
    with wall.box(
        "sh", "-c", "echo run; sleep 0.2; kill -9 $$; sleep 1", opts=("--restart", "always", "--init")
    ) as name:
        eventually(lambda: runs(wall, name) >= 2, what="the second run")
        wall.knarr("rm", "-f", name, check=True)
        assert wall.knarr("inspect", name).code == 1


def test_the_policy_can_be_changed(wall: Wall) -> None:
    with wall.box("sh", "-c", "echo run; sleep 0.3; exit 1", opts=("--restart", "always")) as name:
        eventually(lambda: runs(wall, name) >= 2, what="the second run")
        wall.knarr("update", "--restart", "no", name, check=True)
        eventually(lambda: state(wall.instance, name)["status"] == "exited", what="the end")


def test_policies_that_make_no_sense_are_refused(wall: Wall) -> None:
    for options in (("--restart", "sometimes"), ("--restart", "always:3"), ("--rm", "--restart", "always")):
        result = wall.knarr("create", "--isolation", wall.isolation, *options, IMAGE)
        assert result.code == 125, options
        assert "restart" in result.err


def test_it_begins_again_under_a_new_daemon(wall: Wall) -> None:
    if wall.isolation != "container":
        pytest.skip("the daemon's part is the same for every wall")
    with wall.box("sh", "-c", "echo run; sleep 0.3; exit 1", opts=("--restart", "always")) as name:
        for _ in range(3):
            before = runs(wall, name)
            status = json.loads(wall.knarr("daemon", "status", "--format", "json", check=True).out)
            os.kill(status["pid"], signal.SIGKILL)
            eventually(lambda before=before: runs(wall, name) > before + 1, what="more runs", timeout=30)


def test_policies_hold_over_a_new_start_of_the_engine(instance: Instance) -> None:
    del instance
    made = Instance()
    try:
        made.knarr("daemon", "start", check=True)
        _fill(made)
        wanted = {"goes-on": "always", "stays": "unless-stopped", "ends": "no"}
        for name, policy in wanted.items():
            made.knarr("run", "-d", "--name", name, "--restart", policy, IMAGE, "sleep", "1000", check=True)
        made.knarr(
            "run", "-d", "--name", "asked", "--restart", "unless-stopped", IMAGE, "sleep", "1000", check=True
        )
        made.knarr("kill", "asked", check=True)
        made.knarr("daemon", "stop", "--workloads", check=True)
        made.knarr("daemon", "start", check=True)
        for name in ("goes-on", "stays"):
            eventually(lambda name=name: state(made, name)["status"] == "running", what=name)
        assert [state(made, name)["status"] for name in ("ends", "asked")] == ["exited", "exited"]
    finally:
        made.close()


def _fill(made: Instance) -> None:
    import tempfile

    from support.images import busybox_archive

    with tempfile.TemporaryDirectory() as folder:
        archive = os.path.join(folder, "image.tar")
        busybox_archive(archive, tag=IMAGE)
        made.knarr("load", "-i", archive, check=True)
