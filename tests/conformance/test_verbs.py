"""pause, unpause, restart: what is done with a workload that runs, the same behind every wall."""

from __future__ import annotations

import json
import time

import pytest

from conformance.harness import Wall, eventually

TICKING = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done"


def state(wall: Wall, name: str) -> dict[str, object]:
    return json.loads(wall.knarr("inspect", name, check=True).out)[0]


def lines(wall: Wall, name: str) -> int:
    return len(wall.knarr("logs", name, check=True).lines)


def actions(wall: Wall, name: str, since: str) -> list[str]:
    rows = wall.knarr("events", "--since", since, "--until", str(time.time()), "--format", "json").lines
    return [json.loads(row)["action"] for row in rows if name in row]


@pytest.mark.smoke
def test_paused_processes_stand_still_and_go_on(wall: Wall) -> None:
    since = str(time.time())
    with wall.box("sh", "-c", TICKING) as name:
        eventually(lambda: lines(wall, name) > 3, what="the first lines")
        wall.knarr("pause", name, check=True)
        assert state(wall, name)["status"] == "paused"
        assert "(paused)" in wall.knarr("ps", "--format", "{{.Names}} {{.Status}}").out
        time.sleep(0.3)
        before = lines(wall, name)
        time.sleep(0.5)
        assert lines(wall, name) == before
        assert wall.exec(name, "true").code != 0
        assert wall.knarr("pause", name).code != 0
        wall.knarr("unpause", name, check=True)
        eventually(lambda: lines(wall, name) > before + 3, what="more lines")
        assert [item for item in actions(wall, name, since) if "pause" in item] == ["pause", "unpause"]


def test_only_what_runs_can_be_paused(wall: Wall) -> None:
    name = wall.create("true")
    try:
        for verb in ("pause", "unpause"):
            result = wall.knarr(verb, name)
            assert result.code == 1
            assert name in result.err
    finally:
        wall.knarr("rm", name)


@pytest.mark.smoke
def test_what_is_paused_can_be_stopped(wall: Wall) -> None:
    script = "trap 'exit 4' TERM; echo up; while :; do sleep 0.1; done"
    with wall.box("sh", "-c", script) as name:
        eventually(lambda: "up" in wall.knarr("logs", name).out, what="the trap")
        wall.knarr("pause", name, check=True)
        wall.knarr("stop", name, check=True)
        assert wall.knarr("wait", name).out.strip() == "4"


def test_what_is_paused_can_be_killed_and_removed(wall: Wall) -> None:
    with wall.box() as name:
        wall.knarr("pause", name, check=True)
        wall.knarr("kill", name, check=True)
        assert wall.knarr("wait", name).out.strip() == "137"
        wall.knarr("start", name, check=True)
        wall.knarr("pause", name, check=True)
        assert wall.knarr("rm", name).code == 1
        wall.knarr("rm", "-f", name, check=True)


def test_files_of_a_paused_one_can_be_copied(wall: Wall) -> None:
    with wall.box() as name:
        wall.knarr("pause", name, check=True)
        assert b"root" in wall.knarr("cp", f"{name}:/etc/passwd", "-", check=True).out.encode()


@pytest.mark.smoke
def test_restart_begins_anew_and_keeps_the_files(wall: Wall) -> None:
    with wall.box("sh", "-c", "echo x >> /tmp/count; sleep 1000", opts=("--stop-signal", "KILL")) as name:
        eventually(lambda: wall.exec(name, "cat", "/tmp/count").lines == ["x"], what="the first line")
        started = state(wall, name)["started"]
        wall.knarr("restart", "-t", "1", name, check=True)
        found = state(wall, name)
        assert found["status"] == "running"
        assert found["started"] != started
        eventually(lambda: wall.exec(name, "cat", "/tmp/count").lines == ["x", "x"], what="the second line")


def test_restart_starts_what_has_ended(wall: Wall) -> None:
    name = wall.create("sh", "-c", "echo again")
    try:
        wall.knarr("restart", name, check=True)
        assert wall.knarr("wait", name).out.strip() == "0"
    finally:
        wall.knarr("rm", "-f", name)


def test_restart_keeps_what_rm_would_remove(wall: Wall) -> None:
    with wall.box(opts=("--rm", "--stop-signal", "KILL")) as name:
        first = state(wall, name)
        wall.knarr("restart", name, check=True)
        assert state(wall, name)["id"] == first["id"]
        wall.knarr("kill", name, check=True)
        eventually(lambda: wall.knarr("inspect", name).code != 0, what="the removal")


@pytest.mark.smoke
def test_a_kill_for_memory_is_told(wall: Wall) -> None:
    since = str(time.time())
    script = "head -c 200m /dev/zero | tail > /dev/null; exit 5"
    with wall.box("sh", "-c", script, opts=("-m", "32m")) as name:
        wall.knarr("wait", name, check=True)
        assert state(wall, name)["oom_killed"] is True
        eventually(lambda: "die" in actions(wall, name, since), what="the end")
        assert actions(wall, name, since)[-2:] == ["oom", "die"]
