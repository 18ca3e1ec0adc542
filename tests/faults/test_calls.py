"""Any system call that can fail fails once, under the verbs that change something: all is undone, a second try succeeds.

The call is the real program's in the real place (`support.inject`): of the keeper and the children it starts, of the
daemon and its threads. The errno is drawn, KNARR_SEED repeats a run; KNARR_FULL=1 (scripts/soak) takes every call of
each verb, otherwise a few. With `kill` the process dies as the call begins, whatever call it is.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import time
from typing import TYPE_CHECKING

import pytest

from conformance.harness import IMAGE, Instance
from knarr.client.client import Client
from knarr.keeper.holder import HolderClient
from knarr.model.errors import KnarrError, NotFound, Unavailable
from support import inject, leaks
from support.images import busybox_archive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SEED = int(os.environ.get("KNARR_SEED", str(random.randrange(1 << 30))))
FULL = os.environ.get("KNARR_FULL") == "1"
SAMPLE = 3
NEVER = 1 << 30
BOX = "faulty"
_PATIENCE = 60.0


class Bench:
    """An instance with an image, a running box and the verbs under test."""

    def __init__(self, instance: Instance, archive: str) -> None:
        self.instance = instance
        self.client = Client(instance.root, instance.run_folder, start=False)
        self._archive = archive

    def pids(self) -> dict[str, int]:
        with HolderClient(self.instance.run_folder) as holder:
            return holder.roles()

    def run(self) -> None:
        """create, start, wait, logs, remove"""
        spec = {
            "image": IMAGE,
            "name": BOX,
            "command": ["sh", "-c", "echo hi; exit 3"],
            "ports": [{"container_port": 80}],
        }
        self.client.create(spec)
        self.client.start(BOX)
        assert self.client.wait(BOX)["exit_code"] == 3
        assert b"".join(data for _, data in self.client.logs(BOX)) == b"hi\n"
        self.client.remove(BOX)

    def tty(self) -> None:
        self.client.create({"image": IMAGE, "name": BOX, "command": ["sh", "-c", "tty; exit 4"], "tty": True})
        self.client.start(BOX)
        assert self.client.wait(BOX)["exit_code"] == 4
        self.client.remove(BOX)

    def exec(self) -> None:
        session = self.client.execute("standing", {"args": ["sh", "-c", "echo in; exit 5"]})
        try:
            said = list(session)
        finally:
            session.close()
        if b'"error"' in said[-1][1]:
            raise Unavailable(said[-1][1].decode())
        assert said[-1] == (3, b'{"exit":5}'), said
        assert (1, b"in\n") in said

    def load(self) -> None:
        with open(self._archive, "rb") as file:
            list(self.client.load(iter(lambda: file.read(1 << 18), b"")))
        self.client.remove_image("faulty:latest")

    def commit(self) -> None:
        list(self.client.commit("standing", reference="made:latest"))
        self.client.remove_image("made:latest")

    def volume(self) -> None:
        self.client.create_volume("faulty-data")
        mounts = [{"kind": "volume", "source": "faulty-data", "target": "/etc"}]
        self.client.create(
            {"image": IMAGE, "name": BOX, "mounts": mounts, "command": ["grep", "root", "/etc/passwd"]}
        )
        self.client.start(BOX)
        assert self.client.wait(BOX)["exit_code"] == 0
        self.client.remove(BOX)
        self.client.remove_volume("faulty-data")

    def tidy(self) -> None:
        """What a verb that failed in the middle left on purpose."""
        for act in (
            lambda: self.client.remove(BOX, force=True),
            lambda: self.client.remove_image("faulty:latest", force=True),
            lambda: self.client.remove_image("made:latest", force=True),
            lambda: self.client.remove_volume("faulty-data"),
        ):
            self.settled(act)

    def settled(self, act: Callable[[], object]) -> None:
        """Until it is answered, whoever has to come back for that."""
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                act()
                return
            except NotFound:
                return
            except (Unavailable, OSError):
                assert time.monotonic() < end, "nobody answers"
                time.sleep(0.05)

    def whole(self) -> None:
        """The one that runs still does, and nobody's is left."""
        assert self.client.inspect("standing")["status"] == "running"
        leaks.quiet(self.instance.root, self.instance.run_folder)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    if missing := inject.missing():
        pytest.skip(f"power missing: {missing}")
    instance = Instance()
    try:
        with tempfile.TemporaryDirectory() as folder:
            files = {f"some/{n}": random.Random(n).randbytes(30_000) for n in range(5)}
            archive = busybox_archive(f"{folder}/faulty.tar", tag="faulty:latest", extra_files=files)
            instance.knarr("daemon", "start", check=True)
            instance.knarr("load", "-i", busybox_archive(f"{folder}/image.tar", tag=IMAGE), check=True)
            instance.knarr("run", "-d", "--name", "standing", IMAGE, "sleep", "100000", check=True)
            made = Bench(instance, archive)
            yield made
            made.client.close()
        instance.knarr("rm", "-f", "standing", check=True)
    finally:
        instance.close()


VERBS = (
    ("keeper", "run"),
    ("keeper", "tty"),
    ("keeper", "exec"),
    ("keeper", "volume"),
    ("keeper", "commit"),
    ("daemon", "run"),
    ("daemon", "exec"),
    ("daemon", "load"),
    ("daemon", "commit"),
    ("daemon", "volume"),
)


@pytest.mark.timeout(3600 if FULL else 300)
@pytest.mark.parametrize(("role", "verb"), VERBS)
def test_a_call_fails(bench: Bench, role: str, verb: str) -> None:
    chance = random.Random(f"{SEED} {role} {verb}")
    act = getattr(bench, verb)
    act()
    for nth in _chosen(bench, role, act, chance, errno=5):
        number = chance.choice(inject.ERRORS)
        before = bench.pids()
        with inject.Injected(before[role], nth, number) as fault:
            trouble = _attempt(act)
        told = f"seed {SEED}: {role} {verb}, call {nth} ({fault.hit}), errno {number}: {trouble}"
        print(told)
        assert "internal error" not in trouble, told
        _again(bench, act, told)
        if role == "keeper":
            assert bench.pids()["keeper"] == before["keeper"], f"{told}: the keeper died of it"


@pytest.mark.timeout(3600 if FULL else 300)
@pytest.mark.parametrize(("role", "verb"), VERBS)
def test_killed_at_a_call(bench: Bench, role: str, verb: str) -> None:
    chance = random.Random(f"{SEED} kill {role} {verb}")
    act = getattr(bench, verb)
    act()
    chosen = _chosen(bench, role, act, chance, errno=0)
    for nth in chance.sample(chosen, min(len(chosen), 100 if FULL else 1)):
        with inject.Injected(bench.pids()[role], nth, 0) as fault:
            trouble = _attempt(act)
        _again(bench, act, f"seed {SEED}: {role} {verb} killed at call {nth} ({fault.hit}): {trouble}")


def _chosen(
    bench: Bench, role: str, act: Callable[[], None], chance: random.Random, *, errno: int
) -> list[int]:
    """The calls to hit: all of the verb's or a few of them."""
    # 0 counts calls of any kind, and none is reached
    with inject.Injected(bench.pids()[role], NEVER, errno) as counter:
        act()
    total = counter.seen
    assert total, "nothing to hit"
    return (
        list(range(1, total + 1)) if FULL else sorted(chance.sample(range(1, total + 1), min(SAMPLE, total)))
    )


def _attempt(act: Callable[[], None]) -> str:
    """What the user is told; empty when the fault did not matter."""
    try:
        act()
    except (KnarrError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _again(bench: Bench, act: Callable[[], None], told: str) -> None:
    try:
        bench.tidy()
        _patiently(act, bench)
        bench.whole()
    except (AssertionError, KnarrError) as error:
        raise AssertionError(f"{told}\nthen: {type(error).__name__}: {error}") from error


def _patiently(act: Callable[[], None], bench: Bench) -> None:
    """The second try, once whoever died is back."""
    with contextlib.suppress(Unavailable):
        act()
        return
    time.sleep(1)
    bench.tidy()
    act()
