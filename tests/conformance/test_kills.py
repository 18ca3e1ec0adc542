"""SIGKILL to the daemon and the keeper while workloads print: nothing running notices, no line is lost or doubled."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from conformance.harness import IMAGE, Instance, eventually

KILLS = int(os.environ.get("KNARR_KILLS", "20"))
COUNTING = """
i=0
while [ ! -e /tmp/stop ]; do echo "line $i"; i=$((i+1)); sleep 0.02; done
echo "end $i"; exit 7
"""


def daemon_pids(instance: Instance) -> dict[str, int]:
    return json.loads(instance.knarr("daemon", "status", "--format", "json", check=True).out)


def kill_role(instance: Instance, key: str) -> None:
    """SIGKILL, then wait until another process has taken its place."""
    old = daemon_pids(instance)[key]
    os.kill(old, signal.SIGKILL)

    def replaced() -> bool:
        done = instance.knarr("daemon", "status", "--format", "json")
        return done.code == 0 and json.loads(done.out).get(key) not in (None, old)

    eventually(replaced, what=f"a new {key}")


def resolves(gateway: str, name: str) -> str:
    """Ask the embedded resolver as a workload would; the address, or an error's text."""
    question = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0\0\1\0\1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.sendto(struct.pack(">6H", 0x4B4E, 0x0100, 1, 0, 0, 0) + question, (gateway, 53))
        answer = sock.recv(4096)
    assert struct.unpack(">H", answer[6:8])[0] >= 1, f"no answer for {name}: {answer!r}"
    return socket.inet_ntoa(answer[-4:])


def whole(log: str) -> None:
    lines = [line.rstrip("\r") for line in log.split("\n") if line]
    count = len(lines) - 1
    assert lines[-1] == f"end {count}"
    assert lines[:-1] == [f"line {index}" for index in range(count)]


@pytest.fixture
def printers(instance: Instance) -> Iterator[dict[str, tuple[str, ...]]]:
    """One printing workload behind each wall and one on a terminal."""
    wanted = {
        "kill-container": ("--isolation", "container"),
        "kill-microvm": ("--isolation", "microvm"),
        "kill-tty": ("--isolation", "container", "-t"),
    }
    try:
        for name, options in wanted.items():
            instance.knarr("run", "-d", "--name", name, *options, IMAGE, "sh", "-c", COUNTING, check=True)
        yield wanted
    finally:
        instance.knarr("rm", "-f", *wanted)


def finish(instance: Instance, names: dict[str, tuple[str, ...]]) -> None:
    for name in names:
        instance.knarr("exec", name, "touch", "/tmp/stop", check=True)
    for name in names:
        assert instance.knarr("wait", name).out.strip() == "7", name
        whole(instance.knarr("logs", name).out)


def network_of(instance: Instance, name: str) -> tuple[str, str]:
    network = json.loads(instance.knarr("inspect", name).out)[0]["network"]
    return network["address"], network["gateway"]


def test_daemon_killed_in_a_row(instance: Instance, printers: dict[str, tuple[str, ...]]) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}, {KILLS} kills of the daemon")
    chance = random.Random(seed)
    address, gateway = network_of(instance, "kill-microvm")
    for _ in range(KILLS):
        time.sleep(chance.uniform(0.05, 0.4))
        kill_role(instance, "pid")
        assert resolves(gateway, "kill-microvm") == address
    finish(instance, printers)


def test_keeper_killed_in_a_row(instance: Instance, printers: dict[str, tuple[str, ...]]) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}, {KILLS // 2} kills of the keeper")
    chance = random.Random(seed)
    for _ in range(KILLS // 2):
        time.sleep(chance.uniform(0.05, 0.4))
        kill_role(instance, "keeper_pid")
    finish(instance, printers)


def test_exit_while_daemon_and_keeper_are_dead(instance: Instance) -> None:
    name = "kill-exit"
    try:
        instance.knarr(
            "run", "-d", "--name", name, IMAGE, "sh", "-c", "sleep 1; echo bye; exit 11", check=True
        )
        pids = daemon_pids(instance)
        os.kill(pids["keeper_pid"], signal.SIGKILL)
        os.kill(pids["pid"], signal.SIGKILL)
        assert instance.knarr("wait", name).out.strip() == "11"
        assert instance.knarr("logs", name).out == "bye\n"
    finally:
        instance.knarr("rm", "-f", name)
