"""Health checks: behind every wall, and over a kill of the daemon."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import pytest

from conformance.harness import IMAGE, Wall, eventually

FAST = ("--health-interval", "300ms", "--health-timeout", "5s", "--health-retries", "2")


def health(wall: Wall, name: str) -> dict[str, Any]:
    return json.loads(wall.knarr("inspect", name, check=True).out)[0]["health_check"]


def becomes(wall: Wall, name: str, status: str) -> dict[str, Any]:
    return eventually(lambda: (h := health(wall, name))["status"] == status and h, what=status, timeout=60)


@pytest.mark.smoke
def test_it_becomes_healthy_and_unhealthy_and_says_so(wall: Wall) -> None:
    since = str(time.time())
    with wall.box(opts=("--health-cmd", "echo asked; test ! -e /tmp/ill", *FAST)) as name:
        found = becomes(wall, name, "healthy")
        assert found["log"][-1]["output"] == "asked\n"
        assert "(healthy)" in wall.knarr("ps", "--format", "{{.Names}} {{.Status}}").out
        wall.exec(name, "touch", "/tmp/ill")
        found = becomes(wall, name, "unhealthy")
        assert found["failing_streak"] >= 2
        assert found["log"][-1]["exit_code"] == 1
        wall.exec(name, "rm", "/tmp/ill")
        becomes(wall, name, "healthy")
        eventually(lambda: len(health(wall, name)["log"]) == 5, what="five results")
        rows = wall.knarr("events", "--since", since, "--until", str(time.time()), "--format", "json").lines
        told = [json.loads(row) for row in rows if name in row and "health_status" in row]
        assert [item["attributes"]["health_status"] for item in told] == ["healthy", "unhealthy", "healthy"]


def test_a_check_that_hangs_has_failed(wall: Wall) -> None:
    options = ("--health-cmd", "sleep 500", "--health-interval", "200ms", "--health-retries", "1")
    with wall.box(opts=(*options, "--health-timeout", "500ms")) as name:
        found = becomes(wall, name, "unhealthy")
        assert found["log"][-1]["exit_code"] == -1
        assert "longer than 0.5 s" in found["log"][-1]["output"]


def test_failures_of_the_start_period_do_not_count(wall: Wall) -> None:
    options = ("--health-start-period", "1m", "--health-start-interval", "100ms", "--health-retries", "1")
    with wall.box(opts=("--health-cmd", "test -e /tmp/ready", *options)) as name:
        eventually(lambda: len(health(wall, name)["log"]) >= 3, what="three checks")
        assert health(wall, name)["status"] == "starting"
        assert "(health: starting)" in wall.knarr("ps", "--format", "{{.Names}} {{.Status}}").out
        wall.exec(name, "touch", "/tmp/ready")
        becomes(wall, name, "healthy")


def test_one_without_a_check_has_no_health(wall: Wall, box: str) -> None:
    assert health(wall, box) is None
    assert "health" not in wall.knarr("ps", "--format", "{{.Status}}").out


def test_the_images_check_is_asked_unless_it_is_refused(wall: Wall) -> None:
    with wall.box() as name:
        check = 'HEALTHCHECK --interval=200ms --retries=1 CMD ["true"]'
        wall.knarr("commit", "-c", check, name, f"checked-{wall.isolation}:1", check=True)
    image = f"checked-{wall.isolation}:1"
    made = []
    try:
        for options in ((), ("--no-healthcheck",), ("--health-cmd", "false")):
            words = ("run", "-d", "--isolation", wall.isolation, *options, image, "sleep", "1000")
            made.append(wall.knarr(*words, check=True).out.strip())
        becomes(wall, made[0], "healthy")
        assert health(wall, made[1]) is None
        becomes(wall, made[2], "unhealthy")
    finally:
        wall.knarr("rm", "-f", *made)
        wall.knarr("rmi", image)


def test_checks_go_on_under_a_new_daemon(wall: Wall) -> None:
    if wall.isolation != "container":
        pytest.skip("the daemon's part is the same for every wall")
    with wall.box(opts=("--health-cmd", "test ! -e /tmp/ill", *FAST)) as name:
        becomes(wall, name, "healthy")
        status = json.loads(wall.knarr("daemon", "status", "--format", "json", check=True).out)
        os.kill(status["pid"], signal.SIGKILL)
        assert health(wall, name)["status"] == "healthy"
        wall.exec(name, "touch", "/tmp/ill")
        becomes(wall, name, "unhealthy")


def test_what_makes_no_sense_is_refused(wall: Wall) -> None:
    for options in (
        ("--health-cmd", "x", "--no-healthcheck"),
        ("--health-interval", "soon"),
        ("--health-retries", "-1"),
    ):
        result = wall.knarr("create", "--isolation", wall.isolation, *options, IMAGE)
        assert result.code == 125, options
        assert "Traceback" not in result.err
