"""`knarr bench exec`: `true` inside a running workload, beside `runc exec` and a bare nsenter."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

from knarr.bench import docker, floors, image
from knarr.bench.measure import Report, Subject, compare, interleave, timed
from knarr.bench.start import spec
from knarr.client import frames
from knarr.client.client import Client
from knarr.model.errors import Failed
from knarr.model.workload import ExecSpec, Isolation

QUIET: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)


def through_api(client: Client, name: str) -> float:
    """From the request to the exit code; milliseconds."""

    def act() -> None:
        session = client.execute(name, ExecSpec(args=("true",)))
        try:
            told = [frames.decode_control(data) for kind, data in session if kind == frames.CONTROL]
        finally:
            session.close()
        codes = [message["exit"] for message in told if "exit" in message]
        if codes != [0]:
            raise Failed(f"true exited with {codes} in {name[:12]}")

    return timed(act)


def through_command(client: Client, name: str) -> float:
    """`knarr exec … true` as a whole process; milliseconds."""
    words = (floors.LAUNCHER, "--root", client.root, "--run", client.run, "exec", name, "true")
    return timed(lambda: floors.run_tool(*words))


@contextlib.contextmanager
def idle(client: Client, wall: Isolation) -> Iterator[str]:
    """A running workload."""
    name = client.create(spec(wall, "sleep", "1000000"))["id"]
    try:
        client.start(name)
        yield name
    finally:
        client.remove(name, force=True)


def nsenter(pid: int) -> Subject | None:
    """A process of the same namespaces: what the kernel and two execs cost. None without util-linux."""
    binary = shutil.which("nsenter")
    if binary is None:
        return None
    words = (binary, "-t", str(pid), "-m", "-u", "-i", "-n", "-p", "-C", "/bin/true")
    return Subject(name="nsenter", sample=lambda: timed(lambda: floors.run_tool(*words)))


@contextlib.contextmanager
def runc(tree: str) -> Iterator[Subject | None]:
    """`runc exec` of `true` in a container of its own; None where runc isn't installed."""
    with floors.runc_bundle(tree, "/bin/sleep", "1000000") as bundle:
        if bundle is None:
            yield None
            return
        binary, folder = bundle
        name = f"knarr-bench-exec-{os.getpid()}"
        command = (binary, "--root", f"{folder}/state")
        # What stays must not hold a pipe of ours open: its reader would wait for ever.
        started = subprocess.run((*command, "run", "-d", "-b", folder, name), **QUIET, check=False)
        if started.returncode:
            raise Failed(f"runc run exited with {started.returncode}")
        try:
            words = (*command, "exec", name, "/bin/true")
            yield Subject(name="runc", sample=lambda: timed(lambda: floors.run_tool(*words)))
        finally:
            floors.run_tool(*command, "delete", "-f", name)


def measure(client: Client, report: Report, wall: Isolation, tree: str, count: int) -> None:
    """One wall: the container beside both peers, the microVM beside the container."""
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(idle(client, wall))
        peers: list[Subject | None]
        if wall is Isolation.CONTAINER:
            floor = nsenter(client.inspect(name)["pid"])
            peers = [floor, stack.enter_context(runc(tree))]
            dockerd = stack.enter_context(docker.private(report))
            peers += [stack.enter_context(docker.execs(dockerd))] if dockerd else []
        else:
            other = stack.enter_context(idle(client, Isolation.CONTAINER))
            peers = [Subject(name="container", sample=lambda: through_api(client, other))]
        subjects = [
            Subject(name="api", sample=lambda: through_api(client, name)),
            Subject(name="cli", sample=lambda: through_command(client, name)),
            *(subject for subject in peers if subject),
        ]
        samples = interleave(subjects, count)
    for kind in ("api", "cli"):
        for subject in subjects[2:]:
            figure = f"exec.{wall.value}.{kind}.{subject.name}"
            report.add(compare(samples, figure, kind, subject.name))
        if not subjects[2:]:
            report.add(compare(samples, f"exec.{wall.value}.{kind}", kind, None))


def run(client: Client, report: Report, *, samples: int, walls: tuple[Isolation, ...]) -> None:
    """The whole group."""
    report.say(f"bench exec: {samples} interleaved samples of each")
    floors.private_mounts()
    with floors.image_tree(image.ensure(client)) as tree:
        for wall in walls:
            measure(client, report, wall, tree, samples)
