"""`knarr bench start`: start-to-exit of `true` beside runc and the kernel floor; memory of the idle."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from knarr.bench import docker, floors, image, memory, qemu
from knarr.bench.measure import Figure, Report, Subject, compare, interleave, timed
from knarr.client import frames
from knarr.client.client import Client
from knarr.model.errors import Failed
from knarr.model.logs import LOCAL, Logging
from knarr.model.workload import Isolation, WorkloadSpec

IDLE_CONTAINERS = 50
IDLE_MICROVMS = 2
ROUNDS = 3
SLOT_SECONDS = 60.0
SETTLING = 2.0
"""seconds for the kernel's deferred frees"""


def spec(isolation: Isolation, *command: str) -> WorkloadSpec:
    return WorkloadSpec(image=image.REFERENCE, isolation=isolation, command=command)


def through_api(client: Client, isolation: Isolation, wanted: WorkloadSpec | None = None) -> float:
    """create, start, wait, remove over one kept connection; milliseconds."""

    def act() -> None:
        name = client.create(wanted or spec(isolation, "true"))["id"]
        try:
            client.start(name)
            code = client.wait(name)["exit_code"]
        finally:
            client.remove(name, force=True)
        if code != 0:
            raise Failed(f"true exited with {code} behind the {isolation.value} wall")

    return timed(act)


def through_command(client: Client, isolation: Isolation, *options: str) -> float:
    """`knarr run --rm … true` as a whole process; milliseconds."""
    words = (floors.LAUNCHER, "--root", client.root, "--run", client.run, "run", "--rm", *options)
    return timed(lambda: floors.run_tool(*words, "--isolation", isolation.value, image.REFERENCE, "true"))


def start_latency(client: Client, wanted: WorkloadSpec) -> float:
    """From the start request to the answer that the program runs; milliseconds."""
    name = client.create(wanted)["id"]
    try:
        return timed(lambda: client.start(name))
    finally:
        client.remove(name, force=True)


def containers(client: Client, report: Report, count: int, tree: str) -> None:
    """The container figures: one interleaved run of ours, runc's and the floor's."""
    wall = Isolation.CONTAINER
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(_scratch(client))
        link = stack.enter_context(floors.bridge(f"knfl{os.getpid()}"))
        group = f"knarr_floor{os.getpid()}"
        words = ("container", tree, work, link, group, "/bin/true")
        subjects = [
            Subject(name="api", sample=lambda: through_api(client, wall)),
            Subject(name="cli", sample=lambda: through_command(client, wall)),
            stack.enter_context(floors.kernel_floor(*words)),
        ]
        dockerd = stack.enter_context(docker.private(report))
        peers = [stack.enter_context(floors.runc(tree)), docker.starts(dockerd) if dockerd else None]
        subjects += [peer for peer in peers if peer]
        samples = interleave(subjects, count)
    report.add(compare(samples, "start.container.api", "api", "floor"))
    report.add(compare(samples, "start.container.cli", "cli", "floor"))
    for name in (subject.name for subject in subjects[3:]):
        report.add(compare(samples, f"start.container.api.{name}", "api", name))
        report.add(compare(samples, f"start.container.cli.{name}", "cli", name))


@contextlib.contextmanager
def _scratch(client: Client) -> Iterator[str]:
    """A folder on the instance's own file system: an upper on tmpfs would halve the floor's cost."""
    path = os.path.join(client.root, f"bench-{os.getpid()}")
    os.mkdir(path, 0o700)
    try:
        yield path
    finally:
        for name in ("m", "u", "w"):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(os.path.join(path, name))
        os.rmdir(path)


def first_byte(client: Client, wanted: WorkloadSpec) -> float:
    """From the start request to the first byte that the program wrote; milliseconds."""
    name = client.create(wanted)["id"]
    session = None
    try:
        began = time.perf_counter()
        session = client.attach(name, start=True)
        if not any(stream == frames.STDOUT for stream, _ in session):
            raise Failed("`echo` wrote nothing")
        return (time.perf_counter() - began) * 1000
    finally:
        if session is not None:
            session.close()
        client.remove(name, force=True)


def unready(*command: str) -> WorkloadSpec:
    """For a microVM that no slot is made for, because its output goes another way."""
    return replace(spec(Isolation.MICROVM, *command), log=Logging(driver=LOCAL))


def warmed(client: Client, wanted: WorkloadSpec) -> float:
    """`first_byte` of one that has a slot."""
    end = time.monotonic() + SLOT_SECONDS
    through_api(client, Isolation.MICROVM)
    while not any(template["slots"] for template in client.templates()):
        if time.monotonic() > end:
            raise Failed("no warm slot was made")
        time.sleep(0.1)
    return first_byte(client, wanted)


def microvms(client: Client, report: Report, count: int) -> None:
    """A cold start beside a bare QEMU boot of the kernel; resumed and warm ones beside the cold."""
    wall = Isolation.MICROVM
    through_api(client, wall)
    words = ("--log-driver", LOCAL)

    def cold() -> float:
        for template in client.templates():
            client.remove_template(template["key"])
        return first_byte(client, unready("echo", "x"))

    def resumed(sample: Callable[[], float]) -> float:
        client.make_template()
        return sample()

    with qemu.bare_boot(client.root) as floor:
        subjects = [
            Subject(name="cold", sample=cold),
            Subject(name="resumed", sample=lambda: resumed(lambda: first_byte(client, unready("echo", "x")))),
            Subject(
                name="running",
                sample=lambda: resumed(lambda: start_latency(client, unready("sleep", "1000"))),
            ),
            Subject(name="api", sample=lambda: resumed(lambda: through_api(client, wall, unready("true")))),
            Subject(name="cli", sample=lambda: resumed(lambda: through_command(client, wall, *words))),
            Subject(name="warm", sample=lambda: resumed(lambda: warmed(client, spec(wall, "echo", "x")))),
            floor,
        ]
        samples = interleave(subjects, count, warm=0)
    report.add(compare(samples, "start.microvm.cold", "cold", "floor"))
    for name in ("running", "resumed", "warm"):
        report.add(compare(samples, f"start.microvm.{name}", name, "cold"))
    report.add(compare(samples, "start.microvm.api", "api", "floor"))
    report.add(compare(samples, "start.microvm.cli", "cli", "floor"))


def idle_containers(client: Client, report: Report) -> None:
    """MiB that one idle container takes from the host, all in (MemAvailable before and after)."""
    samples = tuple(_taken(client) for _ in range(ROUNDS))
    # the whole host's figure: other processes' memory is in it, so their load stands beside it
    load = f"load {os.getloadavg()[0]:.1f}"
    value = statistics.median(samples)
    report.add(Figure(name="memory.container.idle", value=value, unit="MiB", samples=samples, note=load))


def _taken(client: Client) -> float:
    before = memory.available()
    with _idle(client, Isolation.CONTAINER, IDLE_CONTAINERS):
        return (before - memory.available()) / IDLE_CONTAINERS


def idle_microvms(client: Client, report: Report) -> None:
    """MiB of one idle microVM's QEMU outside the guest's RAM."""
    with _idle(client, Isolation.MICROVM, IDLE_MICROVMS) as names:
        pids = [client.inspect(name)["pid"] for name in names]
        samples = tuple(memory.pss_without_largest(pid) for pid in pids)
        whole = statistics.median(memory.pss(pid) for pid in pids)
    note = f"PSS of its QEMU without the guest's RAM; {whole:.0f} MiB with it"
    value = statistics.median(samples)
    report.add(Figure(name="memory.microvm.idle", value=value, unit="MiB", samples=samples, note=note))


@contextlib.contextmanager
def _idle(client: Client, isolation: Isolation, count: int) -> Iterator[list[str]]:
    """Workloads that sleep."""
    names: list[str] = []
    try:
        for _ in range(count):
            names.append(client.create(spec(isolation, "sleep", "1000"))["id"])
            client.start(names[-1])
        time.sleep(SETTLING)
        yield names
    finally:
        for name in names:
            client.remove(name, force=True)
        time.sleep(SETTLING)


def run(client: Client, report: Report, *, samples: int, walls: tuple[Isolation, ...]) -> None:
    """The whole group."""
    report.say(f"bench start: {samples} interleaved samples of each")
    floors.private_mounts()
    tree_image = image.ensure(client)
    if Isolation.CONTAINER in walls:
        with floors.image_tree(tree_image) as tree:
            containers(client, report, samples, tree)
        idle_containers(client, report)
    if Isolation.MICROVM in walls:
        microvms(client, report, max(3, samples // 5))
        idle_microvms(client, report)
