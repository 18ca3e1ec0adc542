"""The engine after everything died: a reboot (new boot id, RUN and network gone) and a crash of all its processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from conformance.harness import IMAGE, KNARR, Instance, eventually
from support.images import busybox_archive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COUNT = "n=$(cat /data/n 2>/dev/null || echo 0); echo $((n+1)) >/data/n; echo life $((n+1)); exec sleep 1000"
WALLS = {"container": ("--isolation", "container"), "microvm": ("--isolation", "microvm")}


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    if os.geteuid() != 0:
        pytest.skip("power missing: root")
    archive = tmp_path / "image.tar"
    busybox_archive(str(archive), tag=IMAGE)
    made = Instance()
    try:
        made.knarr("load", "-i", str(archive), check=True)
        yield made
    finally:
        made.close()


def children_of(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            found = [int(word) for word in file.read().split()]
    except OSError:
        return []
    return found + [below for child in found for below in children_of(child)]


def kill_everything(instance: Instance) -> None:
    """The holder first, which would start the others again; it is the ancestor of all of them."""
    holder = json.loads(instance.knarr("daemon", "status", "--format", "json", check=True).out)["holder_pid"]
    pids = [holder, *children_of(holder)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    pids = [holder, *children_of(holder)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(alive(pid) for pid in pids), what="the end of every process")


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def clear_host(instance: Instance) -> None:
    """What a reboot takes away: RUN, links, tables, control groups."""
    with open(os.path.join(instance.root, "instance"), encoding="ascii") as file:
        name = file.read().strip()
    shutil.rmtree(instance.run_folder)
    for link in os.listdir("/sys/class/net"):
        if link.startswith(f"kn{name}"):
            subprocess.run(["ip", "link", "del", link], check=False, capture_output=True, timeout=20)
    for family in ("ip", "bridge"):
        subprocess.run(["nft", "delete", "table", family, f"knarr_{name}"], check=False, timeout=20)
    for top in [f"/sys/fs/cgroup/{one}/knarr_{name}" for one in ("", *os.listdir("/sys/fs/cgroup"))]:
        for folder, _, _ in os.walk(top, topdown=False):
            eventually(lambda at=folder: removed(at), what=f"{folder} to be empty")


def removed(folder: str) -> bool:
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def start_in_new_boot(instance: Instance, tmp_path: Path) -> None:
    """The boot id is the kernel's; only this instance's processes see another one."""
    fake = tmp_path / "boot_id"
    fake.write_text("01234567-89ab-4def-8123-456789abcdef\n")
    words = f'mount --bind "{fake}" /proc/sys/kernel/random/boot_id && exec "$@"'
    command = [str(KNARR), "--root", instance.root, "--run", instance.run_folder, "daemon", "start"]
    subprocess.run(["unshare", "-m", "sh", "-c", words, "sh", *command], check=True, timeout=120)


def populate(instance: Instance) -> None:
    for wall, options in WALLS.items():
        for name, more in (
            ("always", ("--restart", "always")),
            ("plain", ()),
            ("stopped", ("--restart", "unless-stopped")),
        ):
            if wall == "microvm" and name == "stopped":
                continue
            instance.knarr(
                *("run", "-d", "--name", f"{wall}-{name}", *options, *more),
                *("-v", f"data-{wall}-{name}:/data", IMAGE, "sh", "-c", COUNT),
                check=True,
            )
    instance.knarr("run", "-d", "--rm", "--name", "passing", IMAGE, "sleep", "1000", check=True)
    instance.knarr("stop", "-t", "1", "container-stopped", check=True)
    for wall in WALLS:
        eventually(lambda name=f"{wall}-always": "life 1" in instance.knarr("logs", name).out, what=wall)


def about(instance: Instance, name: str) -> dict[str, object]:
    return json.loads(instance.knarr("inspect", name, check=True).out)[0]


def check_after(instance: Instance) -> None:
    for wall in WALLS:
        name = f"{wall}-always"
        eventually(
            lambda name=name: "life 2" in instance.knarr("logs", name).out, timeout=90, what=f"{name} again"
        )
        assert instance.knarr("exec", name, "cat", "/data/n", check=True).out == "2\n"
        plain = about(instance, f"{wall}-plain")
        assert plain["status"] == "exited"
        assert "life 1" in instance.knarr("logs", f"{wall}-plain").out
        # nobody saw its end: no code is invented
        assert plain["exit_code"] == -1, plain
        instance.knarr("start", f"{wall}-plain", check=True)
        eventually(
            lambda name=f"{wall}-plain": "life 2" in instance.knarr("logs", name).out, timeout=60, what=name
        )
    assert about(instance, "container-stopped")["status"] == "exited"
    eventually(lambda: instance.knarr("inspect", "passing").code == 1, what="the removal of a --rm workload")
    seen = instance.knarr("exec", "container-plain", "nslookup", "container-always")
    assert seen.code == 0, seen
    instance.knarr("image", "check", check=True)


@pytest.mark.parametrize("kind", ["reboot", "crash"])
def test_everything_died(instance: Instance, tmp_path: Path, kind: str) -> None:
    populate(instance)
    kill_everything(instance)
    if kind == "reboot":
        clear_host(instance)
        start_in_new_boot(instance, tmp_path)
    else:
        instance.knarr("daemon", "start", check=True)
    check_after(instance)
