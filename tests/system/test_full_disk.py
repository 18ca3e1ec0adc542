"""A disk that is full of output: the workload waits, everybody is told, nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import time

import pytest

from conformance.harness import IMAGE, Instance, eventually
from support.images import busybox_archive

pytestmark = pytest.mark.root


@pytest.fixture
def instance(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("power missing: root")
    busybox_archive(str(tmp_path / "image.tar"), tag=IMAGE)
    made = Instance()
    try:
        made.knarr("load", "-i", str(tmp_path / "image.tar"), check=True)
        yield made
    finally:
        made.close()


def test_the_workload_waits_and_everybody_is_told(instance):
    def look(key):
        return json.loads(instance.knarr("inspect", "full", check=True).out)[0][key]

    instance.knarr("create", "--name", "full", IMAGE, "sh", "-c", "seq 1 500000; exit 3", check=True)
    log = os.path.join(look("folder"), "log")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", log], check=True)
    try:
        began = str(time.time())
        instance.knarr("start", "full", check=True)
        eventually(lambda: look("log_waiting") == "No space left on device", what="the news")
        assert look("status") == "running"
        subprocess.run(["mount", "-o", "remount,size=16m", log], check=True)
        assert instance.knarr("wait", "full").out == "3\n"
        assert instance.knarr("logs", "full").lines == [str(number) for number in range(1, 500001)]
        assert look("log_waiting") == ""
        rows = instance.knarr("events", "--since", began, "--no-follow", "--format", "{{.Action}}").lines
        assert [row for row in rows if row.startswith("log_")] == ["log_waiting", "log_resumed"]
    finally:
        subprocess.run(["umount", "-l", log], check=False)
        instance.knarr("rm", "-f", "full")
