"""The image store's process dies, or one of its calls fails, at each call in turn: afterwards it is whole, and goes on.

A child process takes an image in and removes it again. At every n-th system call that can fail (all of them: the
child is small) it is killed or the call fails; then the store is opened anew, checked against every digest, compared
with what it was, and given the image once more.
"""

from __future__ import annotations

import errno
import os
import pickle
import random
import subprocess
import sys

import pytest

from knarr.images.check import Checker
from knarr.images.source import NoProgress, never
from knarr.images.store import ImageStore
from support import inject, storeleaks
from support import layers as support
from support.layers import footprint

SEED = int(os.environ.get("KNARR_SEED", str(random.randrange(1 << 30))))
FULL = os.environ.get("KNARR_FULL") == "1"
SAMPLE = 8
NEVER = 1 << 30
CHILD = """
import pickle, sys
from support import layers as support
from knarr.images.store import ImageStore
tars = pickle.load(open(sys.argv[2], "rb"))
store = ImageStore(sys.argv[1])
print("open", flush=True)
sys.stdin.readline()
store.ingest(support.source(tars, references=("docker.io/library/new:1",)))
store.remove("new:1")
store.close()
"""


class Place:
    """A store with one image that stays, and children that bring another and take it away."""

    def __init__(self, folder) -> None:
        chance = random.Random(3)
        sizes = (10, 3_000, 30_000, 300_000)
        members = [support.member(f"f{n}", chance.randbytes(chance.choice(sizes))) for n in range(20)]
        self.tars = [support.tar(*members), support.tar(*members[:5], support.member("x", b"x" * 5000))]
        self.root = str(folder / "store")
        self._tars = folder / "tars"
        self._tars.write_bytes(pickle.dumps(self.tars))
        self._child = folder / "child.py"
        self._child.write_text(CHILD)
        store = ImageStore(self.root)
        store.ingest(support.source([support.tar(support.member("kept", b"k" * 9000))]))
        self.clean = footprint(store)
        store.close()

    def run(self, nth: int, number: int) -> inject.Injected:
        """The child with its `nth` call failing with `number`, or with its death there."""
        path = os.pathsep.join(path for path in sys.path if path)
        child = subprocess.Popen(
            [sys.executable, str(self._child), self.root, str(self._tars)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        assert child.stdout.readline() == b"open\n"
        with inject.Injected(child.pid, nth, number) as fault:
            child.communicate(b"go\n", timeout=120)
        return fault

    def judge(self, told: str) -> None:
        store = ImageStore(self.root)
        try:
            if len(store.list()) > 1:
                assert self._problems(store) == [], told
                store.remove("new:1")
            store.collect()
            assert footprint(store) == self.clean, told
            store.ingest(support.source(self.tars, references=("docker.io/library/new:1",)))
            assert self._problems(store) == [], told
            store.remove("new:1")
            assert footprint(store) == self.clean, told
        finally:
            store.close()
        assert storeleaks.found(self.root) == [], told

    def _problems(self, store):
        return Checker(store=store, progress=NoProgress(), cancel=never, repair=False).run()


@pytest.mark.timeout(3600 if FULL else 300)
@pytest.mark.parametrize("what", ["killed", "failing"])
def test_at_every_call(tmp_path, what):
    if missing := inject.missing():
        pytest.skip(f"power missing: {missing}")
    place = Place(tmp_path)
    chance = random.Random(f"{SEED} {what}")
    total = place.run(NEVER, 0 if what == "killed" else errno.EIO).seen
    calls = range(1, total + 1)
    step = max(1, total // 300)
    chosen = (
        calls[chance.randrange(step) :: step] if FULL else sorted(chance.sample(calls, min(SAMPLE, total)))
    )
    print(f"seed {SEED}: {len(chosen)} of {total} calls")
    for nth in chosen:
        number = 0 if what == "killed" else chance.choice(inject.ERRORS)
        fault = place.run(nth, number)
        place.judge(f"seed {SEED}: call {nth} of {total} ({fault.hit}), errno {number}")
