"""Each group of `knarr bench` gives its figures: small runs against a real instance, container wall."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.root
KNARR = os.path.join(sys.prefix, "bin", "knarr")


@pytest.fixture(scope="module")
def instance(tmp_path_factory):
    if os.geteuid() != 0:
        pytest.skip("power missing: root")
    base = tmp_path_factory.mktemp("bench")
    words = (KNARR, "--root", str(base / "root"), "--run", str(base / "run"))
    try:
        yield words
    finally:
        subprocess.run((*words, "daemon", "stop", "--workloads"), check=True, timeout=60)


@pytest.mark.parametrize(
    ("words", "figures"),
    [
        (("start", "--samples", "2"), ("start.container.api", "memory.container.idle")),
        (("exec", "--samples", "2"), ("exec.container.api", "exec.container.cli")),
        (("logs", "--samples", "1"), ("logs.container.write", "logs.container.read")),
        (("throughput", "--count", "20"), ("throughput.clients8", "throughput.burst20.p99")),
        (
            ("density", "--count", "15"),
            ("density.memory", "density.life.at15", "density.remove", "memory.knarrd.idle"),
        ),
    ],
)
def test_a_group(instance, words, figures):
    done = subprocess.run(
        (*instance, "bench", *words, "--isolation", "container", "--json"),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
    for name in figures:
        matching = [line for key, line in found.items() if key == name or key.startswith(f"{name}.")]
        assert matching, sorted(found)
        assert {"value", "unit", "peer", "ratio", "n"} <= matching[0].keys()
    left = subprocess.run(
        (*instance, "ps", "-a", "-q"), capture_output=True, text=True, check=True, timeout=20
    )
    assert left.stdout == ""


def test_what_measures_containers_says_so(instance):
    done = subprocess.run(
        (*instance, "bench", "density", "--isolation", "microvm"),
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert done.returncode == 1
    assert "bench density measures containers only" in done.stderr
