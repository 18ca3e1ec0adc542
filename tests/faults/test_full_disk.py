"""A disk that is full, and limits of descriptors and processes that are reached: clear errors, nothing lost, it goes on.

ROOT is a small ext4 of its own. The fault is the kernel's; nothing is injected.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING

import pytest

from conformance.harness import IMAGE, Instance, eventually
from knarr.client.client import Client
from knarr.keeper.holder import HolderClient
from knarr.model.errors import KnarrError
from support import leaks
from support.images import busybox_archive

if TYPE_CHECKING:
    from collections.abc import Iterator

LOUD = "i=0; while [ ! -e /dev/shm/stop ]; do echo line $i; i=$((i+1)); sleep 0.01; done; echo end $i; exit 9"
SIZE = 64 << 20


@pytest.fixture
def archive() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        files = {"big": random.Random(1).randbytes(4 << 20)}
        yield busybox_archive(f"{folder}/big.tar", tag="big:latest", extra_files=files)


@pytest.fixture
def small(archive: str) -> Iterator[Instance]:
    if os.geteuid() != 0:
        pytest.skip("power missing: root")
    made = Instance()
    disk = f"{archive}.ext4"
    with open(disk, "wb") as file:
        file.truncate(SIZE)
    os.makedirs(made.root, mode=0o700, exist_ok=True)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, made.root], check=True)
    os.chmod(made.root, 0o700)
    made.allow_slots(0)
    try:
        made.knarr("daemon", "start", check=True)
        image = busybox_archive(f"{archive}.small", tag=IMAGE)
        made.knarr("load", "-i", image, check=True)
        yield made
        leaks.quiet(made.root, made.run_folder)
    finally:
        identity = leaks.instance_of(made.root)
        made.knarr("daemon", "stop", "--workloads", check=True)
        subprocess.run(["umount", made.root], check=True)
        made.close()
        leaks.gone(made.root, made.run_folder, identity)


def fill(folder: str) -> str:
    """To the last block."""
    path = os.path.join(folder, "filler")
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    return path


def refused(instance: Instance, *words: str) -> None:
    """One sentence and a hint; never an internal error."""
    done = instance.knarr(*words)
    assert done.code != 0, (words, done)
    assert "internal error" not in done.err, (words, done)
    assert done.err.startswith("knarr: "), (words, done)


def test_a_full_disk_loses_nothing(small: Instance, archive: str) -> None:
    small.knarr("run", "-d", "--name", "loud", IMAGE, "sh", "-c", LOUD, check=True)
    small.knarr("run", "-d", "--name", "short", IMAGE, "sh", "-c", "sleep 3; exit 6", check=True)
    filler = fill(small.root)
    refused(small, "load", "-i", archive)
    refused(small, "run", "--rm", IMAGE, "true")
    refused(small, "volume", "create", "some")
    assert small.knarr("exec", "loud", "sh", "-c", "echo in; exit 5").code == 5
    assert small.knarr("wait", "short").out.strip() == "6"
    assert {line.split()[0] for line in small.knarr("ps", "-a", "--format", "{{.Names}}", check=True).lines} == {
        "loud", "short",
    }  # fmt: skip
    with HolderClient(small.run_folder) as holder:
        old = holder.roles()["daemon"]
        os.kill(old, 9)
        eventually(lambda: holder.roles().get("daemon") not in (None, 0, old), what="a new daemon")
    os.unlink(filler)
    assert eventually(lambda: small.knarr("wait", "short").out.strip(), timeout=60, what="an answer") == "6"
    small.knarr("exec", "loud", "touch", "/dev/shm/stop", check=True)
    assert small.knarr("wait", "loud").out.strip() == "9"
    lines = small.knarr("logs", "loud").lines
    assert lines == [*(f"line {index}" for index in range(len(lines) - 1)), f"end {len(lines) - 1}"]
    small.knarr("load", "-i", archive, check=True)
    assert small.knarr("run", "--rm", "big:latest", "sh", "-c", "wc -c </big").out.strip() == str(4 << 20)
    small.knarr("rm", "loud", "short", check=True)


@pytest.mark.parametrize("role", ["daemon", "keeper"])
def test_no_further_descriptor(small: Instance, role: str) -> None:
    """The role may open no further file for a while."""
    with (
        Client(small.root, small.run_folder, start=False) as client,
        HolderClient(small.run_folder) as holder,
    ):
        client.version()
        pid = holder.roles()[role]
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        there = set(map(int, os.listdir(f"/proc/{pid}/fd")))
        lowest = next(number for number in range(hard) if number not in there)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            told = [trouble(client, f"limited-{number}") for number in range(3)]
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert any(told)
        assert not any("internal error" in text for text in told), told
        for number in range(3):
            with contextlib.suppress(KnarrError):
                client.remove(f"limited-{number}", force=True)
        eventually(lambda: not trouble(client, f"free-{time.monotonic_ns()}"), what="a start")
        for item in client.workloads(stopped=True):
            client.remove(item["id"], force=True)
        assert holder.roles()[role] == pid, "it died of it"


def trouble(client: Client, name: str) -> str:
    """What the user is told of a run; empty when all went well."""
    try:
        client.create({"image": IMAGE, "name": name, "command": ["true"]})
        client.start(name)
        return "" if client.wait(name)["exit_code"] == 0 else "a wrong exit code"
    except KnarrError as error:
        return error.message
