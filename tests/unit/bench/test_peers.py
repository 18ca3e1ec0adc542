from __future__ import annotations

import mmap
import os

import pytest

from knarr.bench import docker, memory
from knarr.bench.measure import Report
from knarr.model.errors import Failed

MIB = 1 << 20


def test_the_largest_mapping_is_left_out():
    before = memory.pss(os.getpid()), memory.pss_without_largest(os.getpid())
    with mmap.mmap(-1, 2048 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as ram:
        for place in range(0, 64 * MIB, mmap.PAGESIZE):
            ram[place] = 1
        with_it, without = memory.pss(os.getpid()), memory.pss_without_largest(os.getpid())
    assert 60 < with_it - before[0] < 80
    # what was the largest until now counts from here on
    assert 60 < with_it - without < 80


def test_memory_of_nobody():
    with pytest.raises(Failed, match="can't be read"):
        memory.pss(1 << 22)


def test_a_peer_that_is_not_there_is_said(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with docker.private(Report(as_json=True)) as dockerd:
        assert dockerd is None
    assert capsys.readouterr().err == "peer docker: dockerd is not installed\n"


@pytest.mark.root
def test_a_dockerd_that_does_not_start_is_said_and_gone(monkeypatch, capsys, tmp_path):
    for name in ("dockerd", "containerd", "runc", "iptables"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\necho no storage driver here\nexit 1\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with docker.private(Report(as_json=True)) as dockerd:
        assert dockerd is None
    assert "can't be started here: no storage driver here" in capsys.readouterr().err
