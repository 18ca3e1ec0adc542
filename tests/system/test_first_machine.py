"""The first microVM of an instance fetches its kernel where somebody sees it; `system info` tells the accelerator."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from knarr.client.client import Client
from support.images import busybox_archive

pytestmark = [pytest.mark.root, pytest.mark.vm]
KNARR = os.path.join(sys.prefix, "bin", "knarr")


@pytest.fixture
def instance(tmp_path):
    for tool in ("apt-cache", "dpkg-deb", "qemu-system-x86_64"):
        if shutil.which(tool) is None:
            pytest.skip(f"power missing: {tool}")
    if os.geteuid() != 0 or not os.path.exists(KNARR):
        pytest.skip("power missing: root and an installed knarr")
    words = [KNARR, "--root", str(tmp_path / "root"), "--run", str(tmp_path / "run")]
    archive = tmp_path / "busybox.tar"
    busybox_archive(str(archive), tag="busybox:test")
    subprocess.run([*words, "load", "-q", "-i", str(archive)], check=True, timeout=60, capture_output=True)
    yield words
    subprocess.run([*words, "daemon", "stop", "--workloads"], check=True, timeout=60, capture_output=True)


def test_the_first_run_says_that_it_fetches_a_kernel_and_the_second_does_not(instance):
    run = [*instance, "run", "--rm", "--isolation", "microvm", "busybox:test", "uname", "-r"]
    first, second = (subprocess.run(run, capture_output=True, text=True, timeout=240) for _ in range(2))
    if "apt-get update" in first.stderr:
        pytest.skip(f"power missing: a package mirror ({first.stderr.strip()})")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    phases = [line.removeprefix("guest kernel: ") for line in first.stderr.splitlines()]
    assert phases[0].startswith("downloading linux-image-")
    assert phases[1:] == ["unpacking", first.stdout.strip()]
    assert second.stderr == ""
    assert first.stdout == second.stdout
    with Client(instance[2], instance[4]) as client:
        wall = client.system_info()["walls"]["microvm"]
        assert wall["kernel"] == first.stdout.strip()
        assert wall["accelerator"] in ("kvm", "tcg")
        assert wall["reason"]


def test_a_creation_tells_what_its_start_would_fetch(instance):
    with Client(instance[2], instance[4]) as client:
        for wall, wanting in (("container", ""), ("microvm", "guest kernel")):
            made = client.create({"image": "busybox:test", "isolation": wall, "command": ["true"]})
            assert made["wanting"] == wanting
            if not wanting:
                assert list(client.provision(made["id"])) == [{"ready": True}]
