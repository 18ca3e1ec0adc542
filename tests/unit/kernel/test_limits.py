"""Limits as files: both dialects from the same words, and what a host's controllers lack."""

from __future__ import annotations

import pytest

from knarr.kernel import cgroups, limits
from knarr.model.workload import DiskLimit, Resources

V1 = cgroups.Layout(
    version=1,
    roots={name: f"/cg/{name}" for name in cgroups.V1_CONTROLLERS},
    controllers=cgroups.V1_CONTROLLERS,
    swap=True,
    weight="blkio.bfq.weight",
)
V2 = cgroups.Layout(
    version=2,
    roots={"unified": "/cg"},
    controllers=("cpu", "memory", "pids", "cpuset", "io"),
    swap=True,
    weight="io.weight",
)
DISKS = {"/dev/sda": "8:0"}


def names(layout: cgroups.Layout, wanted: Resources) -> dict[str, str]:
    paths = cgroups.group_paths(layout, "1", "w")
    found = limits.files(layout, paths, wanted, DISKS)
    return {path.rpartition("/")[2]: value for path, value in found if "pids" not in path}


@pytest.mark.parametrize(
    ("wanted", "v1", "v2"),
    [
        (
            Resources(memory=100),
            {"memory.limit_in_bytes": "100", "memory.memsw.limit_in_bytes": "200"},
            {"memory.max": "100", "memory.swap.max": "100"},
        ),
        (
            Resources(memory=100, memory_swap=-1),
            {"memory.limit_in_bytes": "100", "memory.memsw.limit_in_bytes": "-1"},
            {"memory.max": "100", "memory.swap.max": "max"},
        ),
        (
            Resources(memory=100, memory_swap=100),
            {"memory.limit_in_bytes": "100", "memory.memsw.limit_in_bytes": "100"},
            {"memory.max": "100", "memory.swap.max": "0"},
        ),
        (Resources(memory_reservation=7), {"memory.soft_limit_in_bytes": "7"}, {"memory.low": "7"}),
        (Resources(cpu_shares=2), {"cpu.shares": "2"}, {"cpu.weight": "1"}),
        (Resources(cpu_shares=1024), {"cpu.shares": "1024"}, {"cpu.weight": "39"}),
        (Resources(cpu_shares=262144), {"cpu.shares": "262144"}, {"cpu.weight": "10000"}),
        (
            Resources(cpu_period=50000),
            {"cpu.cfs_period_us": "50000", "cpu.cfs_quota_us": "-1"},
            {"cpu.max": "max 50000"},
        ),
        (
            Resources(cpus=0.5),
            {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"},
            {"cpu.max": "50000 100000"},
        ),
        (Resources(mems="0"), {"cpuset.mems": "0"}, {"cpuset.mems": "0"}),
        (Resources(blkio_weight=1000), {"blkio.bfq.weight": "1000"}, {"io.weight": "10000"}),
        (
            Resources(device_write_iops=(DiskLimit(path="/dev/sda", value=9),)),
            {"blkio.throttle.write_iops_device": "8:0 9"},
            {"io.max": "8:0 wiops=9"},
        ),
        (
            Resources(blkio_weight_device=(DiskLimit(path="/dev/sda", value=10),)),
            {"blkio.bfq.weight_device": "8:0 10"},
            {"io.weight": "8:0 1"},
        ),
    ],
)
def test_both_dialects_say_the_same(wanted: Resources, v1: dict[str, str], v2: dict[str, str]) -> None:
    assert names(V1, wanted) == v1
    assert names(V2, wanted) == v2


def test_what_a_host_lacks_is_named() -> None:
    bare = cgroups.Layout(version=2, roots={"unified": "/cg"}, controllers=("memory", "pids"))
    rate = (DiskLimit(path="/dev/sda", value=9),)
    for wanted, option in (
        (Resources(memory_swap=-1, memory=5), "memory-swap"),
        (Resources(swappiness=0), "memory-swappiness"),
        (Resources(oom_kill_disable=True), "oom-kill-disable"),
        (Resources(blkio_weight=10), "blkio-weight"),
        (Resources(cpu_shares=10), "cpu-shares"),
        (Resources(device_read_bps=rate), "device-read-bps"),
    ):
        missing = limits.lacking(bare, wanted)
        assert missing is not None
        assert missing[0] == option
        assert limits.lacking(V1, wanted) is None
    assert limits.lacking(bare, Resources(memory=5, pids=3)) is None


def test_the_cpus_of_a_quota_are_counted() -> None:
    assert Resources(cpu_quota=150_000).cpu_time == 1.5
    assert Resources(cpu_quota=150_000, cpu_period=50_000).cpu_time == 3
    assert Resources(cpu_quota=-1).cpu_time is None
