"""The engine on a host that systemd runs with cgroup v2: nobody else's end is its own (tests/v2 brings one)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from conformance.harness import IMAGE, KNARR, Instance, eventually
from knarr.keeper import scope
from knarr.kernel import cgroups
from support.images import busybox_archive

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        not os.path.isdir(scope.BOOTED) or not cgroups.unified_root(),
        reason="power missing: systemd with cgroup v2",
    ),
]


def ask(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout.strip()


def group_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::")


@pytest.fixture
def instance():
    made = Instance()
    yield made
    made.close()
    slices = Path(f"{cgroups.unified_root()}/machine.slice")
    eventually(lambda: not list(slices.glob("knarr-*")), what="the scope's end")


def pids(instance) -> dict[str, int]:
    status = json.loads(instance.knarr("daemon", "status", "--format", "json", check=True).out)
    return {"holder": status["holder_pid"], **status["roles"]}


def test_a_starters_end_is_not_the_engines_and_limits_hold_in_the_scope(instance, tmp_path):
    start = f"{KNARR} --root {instance.root} --run {instance.run_folder} daemon start"
    own = ("--quiet", "--unit=starter", "--property=Type=oneshot", "--property=RemainAfterExit=yes")
    # a busy emulated machine takes its time
    ask("systemd-run", *own, "--", "/bin/sh", "-c", f"for n in 1 2 3 4; do {start} && break; done")
    instance.knarr("version", check=True)
    busybox_archive(str(tmp_path / "image.tar"), tag=IMAGE)
    instance.knarr("load", "-i", str(tmp_path / "image.tar"), check=True)
    made = instance.knarr("run", "-d", "--name", "one", "-m", "32m", IMAGE, "sleep", "1000", check=True)
    before = pids(instance)
    ask("systemctl", "stop", "starter")
    ask("systemctl", "daemon-reload")
    assert pids(instance) == before
    name = Path(instance.root, "instance").read_text().strip()
    unit, place = f"knarr-{name}.scope", f"/machine.slice/knarr-{name}.scope"
    assert {group_of(pid) for pid in before.values()} == {f"{place}/engine"}
    assert ask("systemctl", "show", "--property=Delegate", "--value", unit) == "yes"
    group = Path(f"{cgroups.unified_root()}{place}/knarr_{name}/{made.out.strip()}")
    assert group.joinpath("memory.max").read_text() == f"{32 << 20}\n"
    (inner,) = group.joinpath("cgroup.procs").read_text().split()

    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in before.values()))
    assert os.path.exists(f"/proc/{inner}")
    instance.start()
    assert {group_of(pid) for pid in pids(instance).values()} == {f"{place}/engine"}
    assert instance.knarr("exec", "one", "echo", "here").out == "here\n"
    instance.knarr("rm", "-f", "one", check=True)
