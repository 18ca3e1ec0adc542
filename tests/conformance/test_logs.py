"""logs: order, EOF, tail, since, timestamps, follow; lossless, the same behind every wall."""

from __future__ import annotations

import re
import time

import pytest

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
