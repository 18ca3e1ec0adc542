"""Limits of memory, CPUs, processes and disks: in force inside, seen in inspect, changed while it runs."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import time

import pytest

from conformance.harness import Wall

MIB = 1 << 20
V2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
LOOK = "cd /sys/fs/cgroup; for f in {}; do cat $f; done"


def inside(wall: Wall, name: str, v1: tuple[str, ...], v2: tuple[str, ...]) -> list[str]:
    """Files of its own group: a machine's kernel has v2, a container sees what the host has."""
    names = v2 if V2 or wall.isolation == "microvm" else v1
    return wall.exec(name, "sh", "-c", LOOK.format(" ".join(names))).lines


def resources(wall: Wall, name: str) -> dict[str, object]:
    return json.loads(wall.knarr("inspect", name, check=True).out)[0]["spec"]["resources"]


def is_v2(wall: Wall) -> bool:
    return V2 or wall.isolation == "microvm"


@pytest.mark.smoke
def test_memory_reservation_and_cpu_quota_hold(wall: Wall) -> None:
    opts = ("-m", "64m", "--memory-swap", "64m", "--memory-reservation", "32m", "--cpu-quota", "20000")
    with wall.box(opts=(*opts, "--cpu-period", "50000", "--oom-score-adj", "321")) as name:
        found = inside(
            wall,
            name,
            ("memory/memory.limit_in_bytes", "memory/memory.soft_limit_in_bytes", "cpu/cpu.cfs_quota_us"),
            ("memory.max", "memory.low", "cpu.max"),
        )
        assert found[:2] == [str(64 * MIB), str(32 * MIB)]
        assert found[2] == ("20000 50000" if is_v2(wall) else "20000")
        for process in ("1", "self"):
            assert wall.exec(name, "cat", f"/proc/{process}/oom_score_adj").out == "321\n"
        told = resources(wall, name)
        assert (told["memory_swap"], told["cpu_quota"], told["cpu_period"]) == (64 * MIB, 20000, 50000)


def test_swap_shares_and_nodes_of_a_container(wall: Wall) -> None:
    opts = ("-m", "64m", "--memory-swap", "96m", "--cpu-shares", "512", "--cpuset-mems", "0")
    name = f"shared-{wall.isolation}"
    words = ("--name", name, "--isolation", wall.isolation, *opts, "conformance:latest", "sleep", "100")
    result = wall.knarr("run", "-d", *words)
    if wall.isolation == "microvm":
        assert result.code == 125
        assert "isolation microvm can't do cpuset-mems: its memory has one node" in result.err
        return
    try:
        v1 = ("memory/memory.memsw.limit_in_bytes", "cpu/cpu.shares", "cpuset/cpuset.mems")
        found = inside(wall, name, v1, ("memory.swap.max", "cpu.weight", "cpuset.mems"))
        assert found == ([str(32 * MIB), "20", "0"] if V2 else [str(96 * MIB), "512", "0"])
    finally:
        wall.knarr("rm", "-f", name)


REFUSED_BY_MACHINES = (
    (("-m", "64m", "--memory-swap", "-1"), "memory-swap: a machine has no swap"),
    (("--memory-swappiness", "10"), "memory-swappiness: a machine has no swap"),
    (("--oom-kill-disable",), "oom-kill-disable: its kernel's groups are v2"),
    (("--blkio-weight", "300"), "blkio-weight: its disks are virtual ones"),
    (("--device-read-bps", "/dev/null:1m"), "device-read-bps: its disks are virtual ones"),
)


@pytest.mark.parametrize(("opts", "reason"), REFUSED_BY_MACHINES, ids=lambda item: str(item)[:40])
@pytest.mark.smoke
def test_what_a_wall_has_no_controller_for_is_refused_by_name(
    wall: Wall, opts: tuple[str, ...], reason: str
) -> None:
    name = f"refused-{wall.isolation}"
    result = wall.knarr("create", "--name", name, "--isolation", wall.isolation, *opts, "conformance:latest")
    option = reason.partition(":")[0]
    if wall.isolation == "microvm":
        assert result.code == 125
        assert f"isolation microvm can't do {reason}" in result.err
    elif result.code:
        assert f"can't do {option} on this host" in result.err or "'/dev/null' is not a disk" in result.err
    else:
        assert resources(wall, name)["memory" if "memory-swap" in option else "pids"] is not False
        wall.knarr("rm", name, check=True)


NONSENSE = (
    (("--memory-swap", "64m"), "memory-swap limits both together"),
    (("-m", "64m", "--memory-swap", "32m"), "is below the memory limit"),
    (("-m", "64m", "--memory-reservation", "128m"), "is above the memory limit"),
    (("--cpus", "1", "--cpu-quota", "5000"), "exclude each other"),
    (("--cpu-shares", "1"), "cpu shares 1 is out of range"),
    (("--cpu-period", "5"), "cpu period 5 is out of range"),
    (("--blkio-weight", "5"), "block weight 5 is out of range"),
    (("--oom-score-adj", "2000"), "oom score 2000 is out of range"),
    (("--device-read-bps", "sda:1m"), "--device-read-bps: 'sda:1m'"),
)


def test_nonsense_is_refused(wall: Wall) -> None:
    for opts, text in NONSENSE:
        result = wall.run("true", opts=opts)
        assert result.code == 125, opts
        assert text in result.err


def test_all_of_it_is_updated_while_it_runs(wall: Wall) -> None:
    with wall.box(opts=("-m", "64m")) as name:
        words = ("-m", "48m", "--memory-reservation", "16m", "--cpu-shares", "256", "--cpu-quota", "30000")
        wall.knarr("update", *words, name, check=True)
        v1 = ("memory/memory.limit_in_bytes", "memory/memory.soft_limit_in_bytes", "cpu/cpu.cfs_quota_us")
        found = inside(wall, name, v1, ("memory.max", "memory.low", "cpu.max"))
        assert found[:2] == [str(48 * MIB), str(16 * MIB)]
        assert found[2].startswith("30000")
        assert resources(wall, name)["cpu_shares"] == 256
        wall.knarr("update", "--memory-reservation", "0", "--cpu-quota", "-1", name, check=True)
        found = inside(wall, name, v1, ("memory.max", "memory.low", "cpu.max"))
        assert found[0] == str(48 * MIB)
        assert found[2] in ("-1", "max 100000")
        assert wall.knarr("update", "-m", "48m", "--memory-swap", "20m", name).code == 1


def test_without_a_word_the_oom_score_is_none(wall: Wall) -> None:
    assert wall.run("cat", "/proc/self/oom_score_adj").out == "0\n"


def test_v1_settings_of_a_container(wall: Wall) -> None:
    if is_v2(wall):
        result = wall.run("true", opts=("--memory-swappiness", "10"))
        assert result.code == 125
        where = (
            " on this host: cgroup v2" if V2 and wall.isolation == "container" else ": a machine has no swap"
        )
        assert f"can't do memory-swappiness{where}" in result.err
        return
    with wall.box(opts=("-m", "64m", "--memory-swappiness", "10", "--oom-kill-disable")) as name:
        look = LOOK.format("memory/memory.swappiness memory/memory.oom_control")
        found = wall.exec(name, "sh", "-c", look).lines
        assert found[:2] == ["10", "oom_kill_disable 1"]


def test_the_rate_of_a_disk_holds(wall: Wall, tmp_path: pathlib.Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(b"x" * (4 * MIB))
    made = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip("power missing: loop devices")
    disk = made.stdout.strip()
    try:
        script = f"dd if={disk} of=/dev/null bs=64k count=32 iflag=direct"
        opts = ("--device", f"{disk}:{disk}:r", "--device-read-bps", f"{disk}:1m")
        began = time.monotonic()
        result = wall.shell(script, opts=opts)
        if wall.isolation == "microvm":
            assert result.code == 125
            assert "isolation microvm can't do device" in result.err
            return
        assert result.code == 0, result
        assert time.monotonic() - began > 1.5
        refused = wall.run("true", opts=("--blkio-weight-device", f"{disk}:300"))
        assert "its scheduler is not bfq" in refused.err or "have no bfq" in refused.err
    finally:
        subprocess.run(["losetup", "--detach", disk], check=True)
