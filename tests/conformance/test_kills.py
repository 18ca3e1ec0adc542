"""SIGKILL to daemon, keeper, mover, resolver, at random moments under load: nothing is lost, nothing is left over.

Beside two rows of kills of one role each there is the long one: any role or two at once while others start, exec,
pull, load, commit, read logs and write volumes behind both walls. KNARR_KILLS is its length (scripts/soak: 300),
KNARR_SEED repeats one.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import random
import signal
import socket
import struct
import tempfile
import time
from typing import TYPE_CHECKING

import pytest

from conformance.harness import IMAGE, Instance, eventually
from knarr.client.client import Client
from knarr.keeper import protocol, roles
from knarr.keeper.holder import HolderClient
from knarr.kernel import cgroups
from knarr.kernel import fds as descriptors
from support import leaks, load, registry
from support.images import busybox_archive

if TYPE_CHECKING:
    from collections.abc import Iterator

KILLS = int(os.environ.get("KNARR_KILLS", "12"))
SEED = int(os.environ.get("KNARR_SEED", str(random.randrange(1 << 30))))
FULL = os.environ.get("KNARR_FULL") == "1" or KILLS > 50
EVERY = 6 if KILLS <= 50 else 15
"""kills between two inspections of what is left over"""
TARGETS = (("daemon",), ("daemon",), ("keeper",), ("keeper",), ("mover-0",), ("dns",), ("daemon", "keeper"),
           ("keeper", "mover-0"), ("daemon", "keeper", "mover-0", "dns"), ("upgrade",), ("upgrade", "daemon"))  # fmt: skip
COUNTING = """
i=0
while [ ! -e /tmp/stop ]; do echo "line $i"; i=$((i+1)); sleep 0.02; done
echo "end $i"; exit 7
"""
PRINTERS = {
    "kill-container": ("--isolation", "container"),
    "kill-microvm": ("--isolation", "microvm"),
    "kill-tty": ("--isolation", "container", "-t"),
}


class Killer:
    """The instance's roles, killed by pid; asking for one starts it at once, so that many kills take little time."""

    def __init__(self, instance: Instance) -> None:
        self._run = instance.run_folder
        self._holder = HolderClient(instance.run_folder)
        self._argv = {
            **roles.core(instance.root, instance.run_folder),
            "dns": roles.argv("knarr.networks.dns", instance.root, instance.run_folder),
        }

    def close(self) -> None:
        self._holder.close()

    def upgrade(self) -> None:
        """The keeper in place, by exec; one that is dead or has a start under way is left as it is."""
        path = os.path.join(self._run, protocol.KEEPER)
        with contextlib.suppress(OSError), descriptors.connect_unix(path) as sock:
            sock.settimeout(10)
            sock.send(protocol.encode({"type": "upgrade", "seq": 1}))
            sock.recv(1 << 16)

    def kill(self, *names: str, wait: bool = True) -> None:
        """Or, as the name `upgrade`, have the keeper replace itself."""
        if "upgrade" in names:
            self.upgrade()
        names = tuple(name for name in names if name != "upgrade")
        old = self._holder.roles()
        for name in names:
            with contextlib.suppress(ProcessLookupError):
                if old.get(name):
                    os.kill(old[name], signal.SIGKILL)
        for name in names if wait else ():
            eventually(
                lambda name=name: self._holder.roles().get(name) != old.get(name), what=f"{name}'s end"
            )
            self._holder.role(name, self._argv[name])


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


@pytest.fixture(scope="module")
def shaken() -> Iterator[Instance]:
    """An instance of these tests' own: what is left of it at the end is theirs."""
    if os.geteuid() != 0:
        pytest.skip("power missing: root")
    made = Instance()
    try:
        with tempfile.TemporaryDirectory() as folder:
            made.knarr("daemon", "start", check=True)
            made.knarr("load", "-i", busybox_archive(f"{folder}/image.tar", tag=IMAGE), check=True)
        yield made
    finally:
        made.close()


@pytest.fixture
def killer(shaken: Instance) -> Iterator[Killer]:
    made = Killer(shaken)
    yield made
    made.close()


@pytest.fixture
def printers(shaken: Instance) -> Iterator[tuple[str, ...]]:
    """One printing workload behind each wall and one on a terminal."""
    try:
        for name, options in PRINTERS.items():
            shaken.knarr("run", "-d", "--name", name, *options, IMAGE, "sh", "-c", COUNTING, check=True)
        yield tuple(PRINTERS)
    finally:
        shaken.knarr("rm", "-f", *PRINTERS)


def finish(instance: Instance, names: tuple[str, ...]) -> None:
    for name in names:
        instance.knarr("exec", name, "touch", "/tmp/stop", check=True)
    for name in names:
        assert instance.knarr("wait", name).out.strip() == "7", name
        whole(instance.knarr("logs", name).out)


def network_of(instance: Instance, name: str) -> tuple[str, str]:
    network = json.loads(instance.knarr("inspect", name).out)[0]["network"]
    return network["address"], network["gateway"]


def test_daemon_killed_in_a_row(shaken: Instance, killer: Killer, printers: tuple[str, ...]) -> None:
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    address, gateway = network_of(shaken, "kill-microvm")
    for _ in range(5):
        time.sleep(chance.uniform(0.05, 0.4))
        killer.kill("daemon")
        assert resolves(gateway, "kill-microvm") == address
    finish(shaken, printers)


def test_exit_while_daemon_and_keeper_are_dead(shaken: Instance, killer: Killer) -> None:
    name = "kill-exit"
    try:
        shaken.knarr("run", "-d", "--name", name, IMAGE, "sh", "-c", "sleep 1; echo bye; exit 11", check=True)
        killer.kill("keeper", "daemon", wait=False)
        assert shaken.knarr("wait", name).out.strip() == "11"
        assert shaken.knarr("logs", name).out == "bye\n"
    finally:
        shaken.knarr("rm", "-f", name)


@pytest.mark.timeout(300 + 20 * KILLS)
def test_any_killed_under_load(shaken: Instance, killer: Killer, printers: tuple[str, ...]) -> None:
    print(f"seed {SEED}, {KILLS} kills")
    chance = random.Random(SEED)
    before = {name: json.loads(shaken.knarr("inspect", name).out)[0]["pid"] for name in printers}
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(load.Load(shaken.root, shaken.run_folder, SEED, _workers(shaken, stack)))
        for number in range(1, KILLS + 1):
            time.sleep(chance.uniform(0.0, 0.6))
            killer.kill(*chance.choice(TARGETS))
            if number % EVERY == 0 or number == KILLS:
                work.rest()
                work.check()
                inspect(shaken, before)
                work.go_on()
    work.check()
    print(dict(work.counts))
    assert work.counts["starts"]
    finish(shaken, printers)
    shaken.knarr("rm", "-f", *printers, check=True)
    leaks.quiet(shaken.root, shaken.run_folder)


def _workers(instance: Instance, stack: contextlib.ExitStack) -> dict[str, object]:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    files = {f"some/{n}": random.Random(n).randbytes(1 << 20) for n in range(6)}
    archive = busybox_archive(f"{folder}/big.tar", tag="load:latest", extra_files=files)
    workers = {
        "starts": load.starts,
        "execs": functools.partial(load.execs, name="kill-container"),
        "follows": functools.partial(load.follows, name="kill-container"),
        "commits": functools.partial(load.commits, source="kill-tty"),
        "loads": functools.partial(load.loads, archive=archive, reference="load:latest"),
        "volumes": functools.partial(load.volumes, root=instance.root),
    }
    if not registry.available():
        server = stack.enter_context(registry.docker_registry())
        registry.push(f"docker-archive:{archive}", server, "pulled:latest")
        workers["pulls"] = functools.partial(load.pulls, reference=f"{server.host}/pulled:latest")
    if FULL:
        workers["machines"] = functools.partial(load.starts, isolation="microvm")
        workers["guest-execs"] = functools.partial(load.execs, name="kill-microvm")
        workers["terminal"] = functools.partial(load.follows, name="kill-tty")
    return workers


def inspect(instance: Instance, before: dict[str, int]) -> None:
    """Everybody lives as the same process, nothing is left over, the engine works."""
    with Client(instance.root, instance.run_folder, start=False) as client:
        load.still_works(client)
        for name, pid in before.items():
            state = client.inspect(name)
            assert (state["status"], state["pid"]) == ("running", pid), f"{name}: {state}"
        problems = list(client.check_images())[-1]["problems"]
        assert problems == [], problems
    # a template may be under way, which takes long on a busy host
    leaks.quiet(instance.root, instance.run_folder, timeout=90.0)


def test_the_inspector_sees_what_is_planted(shaken: Instance) -> None:
    """Or its silence in all other tests would mean nothing."""
    root, run = shaken.root, shaken.run_folder
    leaks.quiet(root, run)
    blob = f"{root}/images/default/blobs/sha256/{'0' * 64}"
    folders = [f"{root}/workloads/stray", f"{root}/volumes/.new-stray", f"{root}/images/default/tmp/99"]
    group = next(iter(cgroups.group_paths(cgroups.detect(), leaks.instance_of(root), "stray").values()))
    with HolderClient(run) as holder, contextlib.ExitStack() as undo:
        for folder in (*folders, group):
            os.makedirs(folder)
            undo.callback(os.rmdir, folder)
        pathlib.Path(blob).touch()
        undo.callback(os.unlink, blob)
        with open("/dev/null", "rb") as file:
            holder.put("agent/stray", file.fileno())
            undo.callback(holder.delete, "agent/stray")
        pool = os.open(f"{root}/images/default/pool", os.O_RDWR)
        undo.callback(os.close, pool)
        size = os.fstat(pool).st_size
        os.pwrite(pool, b"stray", size + 4096)
        undo.callback(os.ftruncate, pool, size)
        seen = "\n".join(leaks.found(root, run))
    for wanted in (
        "folder without a record: stray",
        ".new-stray",
        "temporary 99",
        "0" * 64,
        "agent/stray",
        "pool: data",
        group,
    ):
        assert wanted in seen, f"{wanted} is not in:\n{seen}"
    leaks.quiet(root, run)
