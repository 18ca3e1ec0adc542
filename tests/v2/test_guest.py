"""The engine on a host with cgroup v2 and an older kernel: a guest with both runs the conformance tests.

CI has the smoke part behind the wall `container`, KNARR_FULL=1 every case. What the guest's tests skip, fail or
say is told here as it would be there.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET

import pytest

from v2 import guest, parts

FULL = os.environ.get("KNARR_FULL") == "1"
SECONDS = 3000 if FULL else 450
"""a guest that hangs is given up; a quiet machine with 2 cores needs a quarter of it"""
CASES = (
    *("tests/kernel/test_cgroups.py", "tests/kernel/test_devices.py", "tests/kernel/test_image_mounts.py"),
    "tests/conformance",
)
SMOKE = "-m 'smoke or root'"
WORK = """
cat /sys/fs/cgroup/cgroup.controllers; uname -r; nproc
# read from the disk while pytest looks for its cases
.venv/bin/python -c 'import knarr.daemon, knarr.keeper.main, knarr.networks.dns, knarr.cli.main' &
export PYTHONUNBUFFERED=1 KNARR_WALLS=container KNARR_FULL={full}
timeout {seconds} .venv/bin/python -m pytest -p no:hypothesispytest -v -rs --tb=short --durations=10 --timeout={seconds} \\
  {chosen} --junitxml=/tmp/result {cases}
"""

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.timeout(SECONDS + 120)]


def boot(*cases: str, chosen: str = "", systemd: bool = False) -> guest.Answer:
    missing = parts.missing_power()
    if missing:
        pytest.skip(f"power missing: a cgroup v2 guest ({missing})")
    work = WORK.format(full=int(FULL), seconds=SECONDS - 30, chosen=chosen, cases=" ".join(cases))
    try:
        return guest.run(work, SECONDS, systemd=systemd)
    except parts.NoMirror as error:
        pytest.skip(f"power missing: a package mirror ({error})")


def passed(answer: guest.Answer, fewest: int) -> None:
    """All of them, and as many as there should be."""
    assert answer.result, f"the tests were cut off:\n{answer.console[-6000:]}"
    suite = next(ET.fromstring(answer.result).iter("testsuite"))
    figures = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    assert figures["failures"] == figures["errors"] == 0, answer.console[-12000:]
    assert figures["tests"] - figures["skipped"] >= fewest, answer.console[-12000:]


def test_the_engine_on_v2_and_a_kernel_that_mounts_erofs_from_devices_only() -> None:
    answer = boot(*CASES, chosen="" if FULL else SMOKE)
    controllers, release, cpus, *_ = answer.console.splitlines()
    assert {"memory", "pids", "cpu", "cpuset", "io"} <= set(controllers.split())
    assert tuple(int(word) for word in release.split(".")[:2]) < (6, 12)
    assert cpus == "2"
    passed(answer, 150 if FULL else 60)


@pytest.mark.slow
def test_the_engine_where_systemd_manages_the_groups() -> None:
    passed(boot("tests/kernel/test_scope.py", *CASES, chosen=SMOKE, systemd=True), 60)
