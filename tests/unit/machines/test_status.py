"""The status file and the counters, as a guest may have written them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from knarr.machines import status


def test_a_normal_end():
    told = status.parse(b"started\nexit 3\n")
    assert (told.began, told.exit_code, told.oom, told.failure) == (True, 3, False, None)


def test_out_of_memory():
    told = status.parse(b"started\noom\nexit 137\n")
    assert (told.exit_code, told.oom) == (137, True)


def test_a_program_that_can_not_be_executed():
    told = status.parse(b"failed 2 127 exec: nosuch: not found\n")
    assert told.failure == (127, "exec: nosuch: not found")
    assert told.told
    assert not told.began


def test_an_unfinished_line_was_not_said():
    assert status.parse(b"started\nexit 1").exit_code is None


def test_lies_are_ignored():
    assert status.parse(b"exit 0\n").exit_code is None
    assert status.parse(b"started\nexit 999\n").exit_code is None
    assert status.parse(b"started\nexit 1\nexit 0\n").exit_code == 1
    assert status.parse(b"failed 1 7 x\x1b[0m\n").failure == (125, "x?[0m")


def test_no_file_says_nothing(tmp_path):
    assert not status.read(str(tmp_path)).told


@given(st.binary(max_size=200))
def test_anything_is_read(data):
    code = status.parse(data).exit_code
    assert code is None or 0 <= code <= 255
    status.disk_traffic(data)
    status.net_traffic(data)


def test_counters():
    assert status.disk_traffic(b"254:0 rbytes=10 wbytes=20 rios=1\n254:16 rbytes=5 wbytes=0\n") == (15, 20)
    table = b"Inter-|\n face |bytes\n    lo: 1 2 3 4 5 6 7 8 9 10\n  eth0: 100 1 0 0 0 0 0 0 200 2\n"
    found = {"rx_bytes": 100, "rx_packets": 1, "tx_bytes": 200, "tx_packets": 2}
    assert status.net_traffic(table) == found
    assert status.net_traffic(b"") == {}
