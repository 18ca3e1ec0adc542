"""Groups that hold what they promise, in the dialect of whatever host this is (tests/v2 brings one with v2)."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from knarr.kernel import cgroups, limits, relimit
from knarr.kernel.plan import Context
from knarr.kernel.steps import CgroupCreate
from knarr.model.workload import Resources

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        os.geteuid() != 0 or not cgroups.detect().version, reason="power missing: root with control groups"
    ),
]

INSTANCE = f"t{os.getpid():x}"
LAYOUT = cgroups.detect()
PATHS = cgroups.group_paths(LAYOUT, INSTANCE, "w")
MIB = 1 << 20


@pytest.fixture
def make():
    steps = []

    def made(**wanted) -> Resources:
        resources = Resources(**wanted)
        step = CgroupCreate(
            groups=tuple(dict.fromkeys(PATHS.values())),
            parent_files=cgroups.parent_files(LAYOUT, INSTANCE),
            files=limits.files(LAYOUT, PATHS, resources),
        )
        step.execute(Context())
        steps.append(step)
        return resources

    yield made
    cgroups.kill_all(PATHS)
    for step in steps:
        step.undo(Context())
    cgroups.remove_instance(LAYOUT, INSTANCE)
    assert not any(Path(path).parent.exists() for path in PATHS.values())


@contextlib.contextmanager
def inside(code: str):
    """A Python program in the group; nothing of it is left."""

    def enter() -> None:
        for path in cgroups.entry_files(LAYOUT, PATHS):
            cgroups.write(path, "0")

    argv = [sys.executable, "-IS", "-c", code]
    with subprocess.Popen(argv, preexec_fn=enter, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            cgroups.kill_all(PATHS)


def value(v1: tuple[str, str], v2: str) -> str:
    path = f"{PATHS[cgroups.V2]}/{v2}" if LAYOUT.version == 2 else f"{PATHS[v1[0]]}/{v1[1]}"
    return Path(path).read_text().strip()


def test_a_workloads_users_may_read_its_groups_whatever_the_keepers_umask(make):
    before = os.umask(0o077)
    try:
        make()
    finally:
        os.umask(before)
    for path in PATHS.values():
        assert {stat.S_IMODE(os.stat(place).st_mode) for place in (path, os.path.dirname(path))} == {0o755}


def test_limits_stand_in_the_files_and_change_while_it_runs(make):
    old = make(memory=32 * MIB, cpus=0.5, cpu_shares=512, pids=20, cpuset="0")
    shares = ("512", "20")[LAYOUT.version - 1]
    assert value(("memory", "memory.limit_in_bytes"), "memory.max") == str(32 * MIB)
    assert value(("cpu", "cpu.cfs_quota_us"), "cpu.max").split()[0] == "50000"
    assert value(("cpu", "cpu.shares"), "cpu.weight") == shares
    assert value(("pids", "pids.max"), "pids.max") == "20"
    assert value(("cpuset", "cpuset.cpus"), "cpuset.cpus") == "0"
    with inside("import time; print(1, flush=True); time.sleep(100)") as process:
        assert process.stdout.read(1)
        usage = cgroups.stats(PATHS)
        assert (usage.pids, usage.memory_limit) == (1, 32 * MIB)
        assert 0 < usage.memory < 32 * MIB
        assert usage.cpu_ns > 0
        relimit.change(LAYOUT, PATHS, old, Resources(memory=64 * MIB, pids=30))
        assert cgroups.stats(PATHS).memory_limit == 64 * MIB
        assert value(("cpu", "cpu.cfs_quota_us"), "cpu.max").split()[0] in ("-1", "max")
        assert value(("pids", "pids.max"), "pids.max") == "30"
        cgroups.kill_all(PATHS)
        assert process.wait(20) == -signal.SIGKILL


def test_who_takes_too_much_memory_is_killed_and_that_is_known(make):
    make(memory=24 * MIB)
    assert not cgroups.oom_killed(PATHS)
    with inside(f"x = bytearray({96 * MIB}); x[::4096] = b'1' * len(x[::4096])") as process:
        assert process.wait(60) == -signal.SIGKILL
    assert cgroups.oom_killed(PATHS)


def test_no_more_processes_than_allowed(make):
    make(pids=3)
    code = "import os\ntry:\n  for n in range(9): os.fork() or os._exit(os.execl('/bin/sleep', 'sleep', '9'))\nexcept OSError as e: print(n, e.errno)"
    with inside(code) as process:
        assert process.stdout.readline() == b"2 11\n"
    end = time.monotonic() + 20
    while cgroups.pids(PATHS):
        assert time.monotonic() < end, "a killed process stays"
        time.sleep(0.01)


def test_a_frozen_group_stands_still_at_once(make):
    make()
    code = "import os\nos.fork(); os.fork(); os.fork()\nprint(1, flush=True)\nwhile True: pass"
    with inside(code) as process:
        assert process.stdout.read(16) == b"1\n" * 8
        cgroups.freeze(PATHS, frozen=True)
        before = cgroups.stats(PATHS).cpu_ns
        time.sleep(0.3)
        assert cgroups.stats(PATHS).cpu_ns == before
        cgroups.freeze(PATHS, frozen=False)
        end = time.monotonic() + 20
        while cgroups.stats(PATHS).cpu_ns == before:
            assert time.monotonic() < end, "it does not go on"
