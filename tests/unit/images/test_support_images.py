"""The test images themselves: what other tests build on must be loadable and whole."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile

import pytest
from tests.support import images

from knarr.images import archives

pytestmark = pytest.mark.skipif(
    not os.access(images.BUSYBOX, os.X_OK), reason="busybox-static is not installed"
)


def test_a_busybox_archive_is_an_image_for_us_and_for_skopeo(tmp_path):
    path = images.busybox_archive(
        str(tmp_path / "a.tar"),
        cmd=["sh", "-c", "echo hi"],
        env=["A=b"],
        user="alice",
        workdir="/tmp",
        extra_files={"/hello.sh": "#!/bin/sh\necho hello\n", "/data": b"x"},
        layers=[[images.Member(".wh.data")]],
        StopSignal="SIGINT",
    )
    shown = subprocess.run(
        ["skopeo", "inspect", "--config", f"docker-archive:{path}"],
        capture_output=True,
        text=True,
        check=True,
    )
    inner = json.loads(shown.stdout)["config"]
    assert inner == {
        "User": "alice",
        "Env": ["A=b"],
        "Cmd": ["sh", "-c", "echo hi"],
        "WorkingDir": "/tmp",
        "StopSignal": "SIGINT",
    }
    with archives.open_archive(path, str(tmp_path)) as (source,):
        assert source.references == ("docker.io/library/knarr-test:latest",)
        assert len(source.layers) == 3
        with source.layers[0].open() as pieces:
            data = io.BytesIO(b"".join(pieces))
    with tarfile.open(fileobj=data) as layer:
        names = layer.getnames()
    assert {"bin/sh", "bin/busybox", "etc/passwd", "tmp", "home/alice"} <= set(names)
