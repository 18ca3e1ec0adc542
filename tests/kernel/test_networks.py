"""The network manager on real bridges, in a network namespace of each test's own: the host is not touched."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.join(os.path.dirname(os.path.dirname(HERE)), "src")
_PROBE = "ip link add knprobe type bridge && nft add table bridge knprobe && test -w /dev/net/tun"


def _missing() -> str:
    done = subprocess.run(
        ["unshare", "-n", "-m", "sh", "-c", _PROBE], capture_output=True, text=True, check=False, timeout=20
    )
    return done.stderr.strip() if done.returncode else ""


MISSING = _missing()
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(MISSING), reason=f"network namespaces, bridges, nftables: {MISSING}"),
]


@pytest.mark.parametrize(
    ("module", "scenario"),
    [
        ("scenarios", "slots"),
        ("scenarios", "full_bridge"),
        ("scenarios", "hundred"),
        ("scenarios", "publish"),
        ("scenarios", "vm"),
        ("scenarios", "adoption"),
        ("scenarios", "instances"),
        ("scenarios", "given_namespace"),
        ("scenarios", "nft_program"),
        ("scenarios", "forward_drop"),
        ("spoofing", "spoofing"),
        ("names", "names"),
        ("elements", "ours_is_libnftables"),
        ("elements", "all_or_none"),
        ("elements", "cost_is_not_the_hosts"),
    ],
)
def test_scenario(module: str, scenario: str, tmp_path: pathlib.Path) -> None:
    script = os.path.join(HERE, f"network_{module}.py")
    done = subprocess.run(
        ["unshare", "-n", "-m", sys.executable, script, scenario],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": SOURCE, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
