"""logs: order, EOF, tail, since, timestamps, follow; lossless, the same behind every wall."""

from __future__ import annotations

import json
import os
import pathlib
import re
import time

import pytest

from conformance.conftest import FULL
from conformance.harness import Wall, eventually


@pytest.mark.smoke
def test_logs_of_a_finished_workload(wall: Wall) -> None:
    with wall.box("sh", "-c", "echo one; echo two >&2; echo three") as name:
        wall.knarr("wait", name)
        result = wall.knarr("logs", name)
        assert result.out == "one\nthree\n"
        assert result.err == "two\n"


def test_tail(wall: Wall) -> None:
    with wall.box("sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do echo $i; done") as name:
        wall.knarr("wait", name)
        assert wall.knarr("logs", "--tail", "3", name).lines == ["7", "8", "9"]
        assert wall.knarr("logs", "--tail", "0", name).lines == []


def test_timestamps_are_rfc3339_and_rise(wall: Wall) -> None:
    with wall.box("sh", "-c", "echo a; sleep 0.3; echo b") as name:
        wall.knarr("wait", name)
        lines = wall.knarr("logs", "-t", name).lines
        stamps = [line.split(" ", 1)[0] for line in lines]
        assert [line.split(" ", 1)[1] for line in lines] == ["a", "b"]
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", stamp) for stamp in stamps)
        assert stamps == sorted(stamps)


def test_since(wall: Wall) -> None:
    with wall.box("sh", "-c", "echo early; sleep 1.5; echo late") as name:
        wall.knarr("wait", name)
        stamps = [line.split(" ", 1)[0] for line in wall.knarr("logs", "-t", name).lines]
        assert wall.knarr("logs", "--since", stamps[1], name).lines == ["late"]


@pytest.mark.smoke
def test_follow_ends_with_the_workload(wall: Wall) -> None:
    with wall.box("sh", "-c", "for i in 1 2 3; do echo tick $i; sleep 0.3; done") as name:
        assert wall.knarr("logs", "-f", name).lines == ["tick 1", "tick 2", "tick 3"]


def test_follow_shows_lines_as_they_come(wall: Wall) -> None:
    with wall.box("sh", "-c", "echo first; sleep 1000") as name:
        process = wall.instance.popen("logs", "-f", name, stdin=-3, stdout=-1, stderr=-1)
        assert process.stdout is not None
        begun = time.monotonic()
        assert process.stdout.readline() == b"first\n"
        assert time.monotonic() - begun < 15
        process.terminate()
        process.communicate(timeout=20)


def test_a_last_line_without_newline_is_kept(wall: Wall) -> None:
    with wall.box("sh", "-c", "printf unfinished") as name:
        wall.knarr("wait", name)
        assert wall.knarr("logs", name).out == "unfinished"


def test_binary_output_is_untouched(wall: Wall) -> None:
    with wall.box("sh", "-c", "printf '\\001\\377\\000x'") as name:
        wall.knarr("wait", name)
        process = wall.instance.popen("logs", name, stdin=-3, stdout=-1, stderr=-1)
        assert process.communicate(timeout=30)[0] == b"\x01\xff\x00x"


def test_logs_stay_over_a_second_start(wall: Wall) -> None:
    name = wall.create("echo", "again")
    try:
        for _ in range(2):
            wall.knarr("start", "-a", name, check=True)
        assert wall.knarr("logs", name).lines == ["again", "again"]
    finally:
        wall.knarr("rm", "-f", name)


def test_terminal_output_is_logged(wall: Wall) -> None:
    with wall.box("sh", "-c", "echo on a tty; exit 2", opts=("-t",)) as name:
        assert wall.knarr("wait", name).out.strip() == "2"
        eventually(lambda: wall.knarr("logs", name).out == "on a tty\r\n", what="the line")


def kept(wall: Wall, name: str) -> int:
    """Bytes of its log on the disk."""
    folder = json.loads(wall.knarr("inspect", name, check=True).out)[0]["folder"]
    return sum(os.path.getsize(entry) for entry in pathlib.Path(folder, "log").glob("[oe][ur]*"))


COUNT = "i=0; while [ $i -lt {} ]; do echo line $i; i=$((i+1)); done"


@pytest.mark.smoke
def test_rotation_keeps_the_newest_lines_whole(wall: Wall) -> None:
    opts = ("--log-opt", "max-size=1k", "--log-opt", "max-file=3")
    with wall.box("sh", "-c", COUNT.format(800), opts=opts) as name:
        wall.knarr("wait", name)
        found = wall.knarr("logs", name).lines
        first = int(found[0].removeprefix("line "))
        assert found == [f"line {number}" for number in range(first, 800)]
        assert 100 < len(found) < 400
        assert kept(wall, name) <= 3 << 10
        assert wall.knarr("logs", "--tail", "150", name).lines == found[-150:]
        stamped = wall.knarr("logs", "-t", name).lines
        assert [row.partition(" ")[2] for row in stamped] == found
        assert wall.knarr("logs", "--since", stamped[0].partition(" ")[0], name).lines == found


def test_rotation_loses_nothing_within_its_bound(wall: Wall) -> None:
    opts = ("--log-opt", "max-size=2k", "--log-opt", "max-file=1000")
    with wall.box("sh", "-c", f"sleep 0.5; {COUNT.format(3000)}", opts=opts) as name:
        followed = wall.knarr("logs", "-f", name).lines
        assert followed == [f"line {number}" for number in range(3000)]
        assert wall.knarr("logs", name).lines == followed


@pytest.mark.smoke
def test_who_is_attached_misses_nothing_of_a_tiny_or_unkept_log(wall: Wall) -> None:
    wanted = [f"line {number}" for number in range(600)]
    ways = (("--log-driver", "none"), ("--log-opt", "max-size=1k"))
    for opts in ways if FULL or wall.isolation == "container" else ways[:1]:
        assert wall.shell(COUNT.format(600), opts=opts).lines == wanted


@pytest.mark.smoke
def test_without_a_log_there_is_nothing_to_read(wall: Wall) -> None:
    with wall.box("sh", "-c", "echo secret; sleep 1000", opts=("--log-driver", "none")) as name:
        result = wall.knarr("logs", name)
        assert result.code == 1
        assert "log driver 'none' does not support reading" in result.err
        found = json.loads(wall.knarr("inspect", name).out)[0]
        assert found["spec"]["log"]["driver"] == "none"
        assert os.path.realpath(found["folder"] + "/log").startswith(wall.instance.run_folder)


def test_log_options_that_would_do_nothing_are_refused(wall: Wall) -> None:
    for opts, text in (
        (("--log-driver", "syslog"), "'syslog' is none of its values"),
        (("--log-opt", "max-size=lots"), "is not a size"),
        (("--log-opt", "max-file=3"), "says nothing without max-size"),
        (("--log-opt", "labels=a"), "log option 'labels' is not there"),
        (("--log-opt", "colour=red"), "log option 'colour' is unknown to the driver 'json-file'"),
        (("--log-driver", "none", "--log-opt", "max-size=1m"), "is unknown to the driver 'none'"),
    ):
        result = wall.run("true", opts=opts)
        assert result.code == 125
        assert text in result.err


def test_follow_goes_on_over_a_restart(wall: Wall) -> None:
    with wall.box("sh", "-c", "echo begun; exec sleep 1000", opts=("--stop-signal", "KILL")) as name:
        process = wall.instance.popen("logs", "-f", name, stdin=-3, stdout=-1, stderr=-1)
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        wall.knarr("restart", name, check=True)
        assert process.stdout.readline() == b"begun\n"
        wall.knarr("kill", name, check=True)
        assert process.communicate(timeout=30)[0] == b""


def test_settings_choose_the_driver_of_those_who_name_none(wall: Wall) -> None:
    settings = pathlib.Path(wall.instance.root, "settings.json")
    before = settings.read_text()
    settings.write_text('{"log-driver": "local", "log-opts": {"max-size": "3m"}}')
    try:
        name = wall.create("true")
        log = json.loads(wall.knarr("inspect", name).out)[0]["spec"]["log"]
        wall.knarr("rm", name)
        assert log == {"driver": "local", "options": {"max-size": "3m"}}
    finally:
        settings.write_text(before)


def test_follow_goes_on_over_restarts_by_policy(wall: Wall) -> None:
    script = "echo run; sleep 0.3; exit 1"
    with wall.box("sh", "-c", script, opts=("--restart", "on-failure:2")) as name:
        assert wall.knarr("logs", "-f", name).lines == ["run", "run", "run"]
        assert json.loads(wall.knarr("inspect", name).out)[0]["restart_count"] == 2
