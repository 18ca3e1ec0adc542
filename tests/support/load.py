"""Load on an instance whose processes are being killed: each worker repeats one verb's whole story and checks it.

A request that a kill cuts short leaves its outcome open; the worker then asks until somebody answers what became of
it, and demands that it is whole: it happened and has the right exit code and output, or it did not happen. Whatever
is not so stands in `failures`. Out of scope: killing (`faults`), and what is left behind (`support.leaks`).
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
import traceback
from collections import Counter
from typing import TYPE_CHECKING, Self

from knarr.client import frames
from knarr.client.client import Client
from knarr.model.errors import Conflict, KnarrError, NotFound, Unavailable
from knarr.model.state import EXIT_UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

IMAGE = "conformance:latest"
_PATIENCE = 90.0


class Load:
    """`with Load(…) as load:` runs the workers; `load.rest()` waits until none has anything under way."""

    def __init__(self, root: str, run: str, seed: int, workers: dict[str, Callable[[Worker], None]]) -> None:
        self.failures: list[str] = []
        self.counts: Counter[str] = Counter()
        self._gate = threading.Event()
        self._ending = False
        self._workers = [
            Worker(self, name, Client(root, run, start=False), random.Random(f"{seed} {name}"), story)
            for name, story in workers.items()
        ]

    def __enter__(self) -> Self:
        self._gate.set()
        for worker in self._workers:
            worker.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        self._gate.set()
        for worker in self._workers:
            worker.thread.join(_PATIENCE)
            if worker.thread.is_alive():
                self.failures.append(f"{worker.name} hangs")

    def rest(self) -> None:
        self._gate.clear()
        for worker in self._workers:
            assert worker.idle.wait(_PATIENCE), f"{worker.name} hangs"

    def go_on(self) -> None:
        for worker in self._workers:
            worker.idle.clear()
        self._gate.set()

    def check(self) -> None:
        assert not self.failures, "\n".join(self.failures)

    def proceed(self, worker: Worker) -> bool:
        """Between two stories: False when it is over."""
        if not self._gate.is_set():
            worker.idle.set()
            self._gate.wait()
            worker.idle.clear()
        return not self._ending


class Worker:
    """One thread with a connection of its own."""

    def __init__(
        self, load: Load, name: str, client: Client, chance: random.Random, story: Callable[[Worker], None]
    ) -> None:
        self.name = name
        self.client = client
        self.chance = chance
        self.number = 0
        self.idle = threading.Event()
        self._load = load
        self._story = story
        self.thread = threading.Thread(target=self._main, name=name, daemon=True)

    def _main(self) -> None:
        while self._load.proceed(self):
            self.number += 1
            try:
                self._story(self)
                self._load.counts[self.name] += 1
            except BaseException:
                self._load.failures.append(f"{self.name} {self.number}: {traceback.format_exc()}")
                time.sleep(0.5)
        self.client.close()
        self.idle.set()

    def attempt(self, act: Callable[[], Any]) -> tuple[bool, Any]:
        """(whether an answer came, the answer)"""
        try:
            return True, act()
        except (Unavailable, OSError):
            self._load.counts["cut short"] += 1
            return False, None

    def settled(self, act: Callable[[], Any]) -> Any:
        """The answer of something that may be repeated, however often the daemon goes away meanwhile."""
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                return act()
            except (Unavailable, OSError):
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def inspect(self, name: str) -> dict[str, Any] | None:
        try:
            return self.settled(lambda: self.client.inspect(name))
        except NotFound:
            return None

    def remove(self, name: str) -> None:
        def act() -> None:
            try:
                self.client.remove(name, force=True)
            except NotFound:
                pass

        self.settled(act)
        assert self.inspect(name) is None

    def ended(self, name: str) -> dict[str, Any] | None:
        """Its record once it does not run."""
        end = time.monotonic() + _PATIENCE
        while (found := self.inspect(name)) is not None and found["status"] in (
            "starting",
            "running",
            "stopping",
        ):
            assert time.monotonic() < end, f"{name} does not end"
            self.attempt(lambda: self.client.wait(name))
        return found

    def output(self, name: str) -> bytes:
        return self.settled(lambda: b"".join(data for _, data in self.client.logs(name)))


def starts(worker: Worker, isolation: str = "container") -> None:
    """Create, start, wait, logs, remove: the exit code and every line, or it never began."""
    name, code, lines = (
        f"{worker.name}-{worker.number}",
        worker.chance.randrange(1, 100),
        worker.chance.randrange(1, 50),
    )
    script = f"i=0; while [ $i -lt {lines} ]; do echo {name} $i; i=$((i+1)); done; exit {code}"
    ports = [{"container_port": 80}] if worker.chance.random() < 0.5 else []
    spec = {
        "image": IMAGE,
        "name": name,
        "isolation": isolation,
        "command": ["sh", "-c", script],
        "ports": ports,
    }
    worker.attempt(lambda: worker.client.create(spec))
    if worker.inspect(name) is None:
        return
    worker.attempt(lambda: worker.client.start(name))
    state = worker.ended(name)
    assert state is not None, f"{name} was created and is gone"
    whole = b"".join(b"%s %d\n" % (name.encode(), index) for index in range(lines))
    said = worker.output(name)
    if state["status"] == "created" or (state["exit_code"] == 125 and state["error"]):
        assert said == b"", f"{name} never began and said {said!r}"
    else:
        assert state["exit_code"] == code, f"{name} ended with {code}, told is {state}"
        assert said == whole, f"{name} said {said!r}"
    worker.remove(name)


def execs(worker: Worker, name: str) -> None:
    """An exec whose connection lives to its end has its exit code and all its output."""
    code = worker.chance.randrange(100)
    args = ["sh", "-c", f"seq 1 200; exit {code}"]
    answered, told = worker.attempt(lambda: _executed(worker, name, args))
    if answered and told is not None:
        assert told == (code, b"".join(b"%d\n" % n for n in range(1, 201))), f"exec: {code}, {told!r}"


def _executed(worker: Worker, name: str, args: list[str]) -> tuple[int, bytes] | None:
    session = worker.client.execute(name, {"args": args})
    session.sock.settimeout(60)
    output, code = b"", None
    try:
        for stream, data in session:
            if stream == frames.CONTROL:
                message = json.loads(data)
                assert "error" not in message or message["error"]["kind"] == "unavailable", message
                code = message.get("exit", code)
            else:
                output += data
    finally:
        session.close()
    # a keeper that is killed with the exec's status in its hands leaves it unknown, never invented
    return None if code is None or code == EXIT_UNKNOWN else (code, output)


def follows(worker: Worker, name: str) -> None:
    """The lines of one that counts, from the first on, without a gap."""
    data = b""
    end = time.monotonic() + worker.chance.uniform(0.1, 0.6)

    def read() -> None:
        nonlocal data
        for _, piece in worker.client.logs(name, follow=True):
            data += piece
            if time.monotonic() > end:
                return

    worker.attempt(read)
    lines = data.replace(b"\r", b"").split(b"\n")[:-1]
    assert lines == [b"line %d" % index for index in range(len(lines))], f"{name}: a gap in {lines[-20:]}"


def commits(worker: Worker, source: str) -> None:
    """A commit of one that runs is an image or nothing."""
    reference = f"commit-{worker.name}-{worker.number}:latest"
    worker.attempt(lambda: list(worker.client.commit(source, reference=reference)))
    _drop_image(worker, reference)


def loads(worker: Worker, archive: str, reference: str) -> None:
    with open(archive, "rb") as file:
        worker.attempt(lambda: list(worker.client.load(iter(lambda: file.read(1 << 18), b""))))
    _drop_image(worker, reference)


def pulls(worker: Worker, reference: str) -> None:
    worker.attempt(lambda: list(worker.client.pull(reference, insecure=True)))
    _drop_image(worker, reference)


def _drop_image(worker: Worker, reference: str) -> None:
    def act() -> None:
        try:
            worker.client.remove_image(reference, force=True)
        except NotFound:
            return

    # what was cut short may still be coming in: it is cancelled at its next step
    worker.settled(act)
    if worker.chance.random() < 0.2:
        try:
            worker.attempt(worker.client.collect_images)
        except Conflict:
            pass


def volumes(worker: Worker, root: str) -> None:
    """What a workload wrote into a volume is there, exactly once."""
    name, count = f"{worker.name}-{worker.number}", worker.chance.randrange(1, 200)
    worker.attempt(lambda: worker.client.create_volume(name))
    mount = {"kind": "volume", "source": name, "target": "/data"}
    spec = {
        "image": IMAGE,
        "name": name,
        "mounts": [mount],
        "command": ["sh", "-c", f"seq 1 {count} >>/data/f"],
    }
    worker.attempt(lambda: worker.client.create(spec))
    worker.attempt(lambda: worker.client.start(name) if worker.inspect(name) else None)
    state = worker.ended(name)
    if state is not None and state["status"] == "exited" and state["exit_code"] == 0:
        with open(os.path.join(root, "volumes", name, "data", "f"), encoding="ascii") as file:
            assert file.read() == "".join(f"{n}\n" for n in range(1, count + 1)), name
    worker.remove(name)
    _drop_volume(worker, name)


def _drop_volume(worker: Worker, name: str) -> None:
    def act() -> None:
        try:
            worker.client.remove_volume(name)
        except NotFound:
            pass

    worker.settled(act)


def still_works(client: Client) -> None:
    """A new workload starts and tells the truth."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            box = client.create({"image": IMAGE, "command": ["sh", "-c", "echo new; exit 3"]})
            client.start(box["id"])
            assert client.wait(box["id"])["exit_code"] == 3
            assert b"".join(data for _, data in client.logs(box["id"])) == b"new\n"
            client.remove(box["id"])
            return
        except (Unavailable, OSError):
            assert time.monotonic() < end, "the engine does not answer"
        except KnarrError as error:
            raise AssertionError(f"a new workload does not start: {error.message}") from error
