"""`knarr bench start`: start-to-exit of `true` beside runc and the kernel floor; memory of the idle."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator

from knarr.bench import floors, image, qemu
from knarr.bench.measure import Figure, Report, Subject, compare, interleave, timed
from knarr.client.client import Client
from knarr.model.errors import Failed
from knarr.model.workload import Isolation, WorkloadSpec

IDLE = {Isolation.CONTAINER: 50, Isolation.MICROVM: 2}


def spec(isolation: Isolation, *command: str) -> WorkloadSpec:
    return WorkloadSpec(image=image.REFERENCE, isolation=isolation, command=command)


def through_api(client: Client, isolation: Isolation) -> float:
    """create, start, wait, remove over one kept connection; milliseconds."""

    def act() -> None:
        name = client.create(spec(isolation, "true"))["id"]
        try:
            client.start(name)
            code = client.wait(name)["exit_code"]
        finally:
            client.remove(name, force=True)
        if code != 0:
            raise Failed(f"true exited with {code} behind the {isolation.value} wall")

    return timed(act)


def through_command(client: Client, isolation: Isolation) -> float:
    """`knarr run --rm … true` as a whole process; milliseconds."""
    words = (floors.LAUNCHER, "--root", client.root, "--run", client.run, "run", "--rm")
    return timed(lambda: floors.run_tool(*words, "--isolation", isolation.value, image.REFERENCE, "true"))


def start_latency(client: Client, isolation: Isolation) -> float:
    """From the start request to the answer that the program runs; milliseconds."""
    name = client.create(spec(isolation, "sleep", "1000"))["id"]
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
        peer = stack.enter_context(floors.runc(tree))
        samples = interleave([*subjects, peer] if peer else subjects, count)
    report.add(compare(samples, "start.container.api", "api", "floor"))
    report.add(compare(samples, "start.container.cli", "cli", "floor"))
    if peer:
        report.add(compare(samples, "start.container.api.runc", "api", "runc"))
        report.add(compare(samples, "start.container.cli.runc", "cli", "runc"))


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


def microvms(client: Client, report: Report, count: int) -> None:
    """A cold start beside a bare QEMU boot of the same kernel to its init; a resumed one beside the cold."""
    wall = Isolation.MICROVM
    through_api(client, wall)

    def cold() -> float:
        for template in client.templates():
            client.remove_template(template["key"])
        return start_latency(client, wall)

    def resumed(sample: Callable[[Client, Isolation], float]) -> float:
        client.make_template()
        return sample(client, wall)

    with qemu.bare_boot(client.root) as floor:
        subjects = [
            Subject(name="cold", sample=cold),
            Subject(name="start", sample=lambda: resumed(start_latency)),
            Subject(name="api", sample=lambda: resumed(through_api)),
            Subject(name="cli", sample=lambda: resumed(through_command)),
            floor,
        ]
        samples = interleave(subjects, count, warm=0)
    report.add(compare(samples, "start.microvm.cold", "cold", "floor"))
    report.add(compare(samples, "start.microvm.running", "start", "cold"))
    report.add(compare(samples, "start.microvm.api", "api", "floor"))
    report.add(compare(samples, "start.microvm.cli", "cli", "floor"))


def idle_memory(client: Client, report: Report, isolation: Isolation) -> None:
    """MiB that one idle workload takes from the host, all in (MemAvailable before and after)."""
    names: list[str] = []
    before = _available()
    try:
        for _ in range(IDLE[isolation]):
            name = client.create(spec(isolation, "sleep", "1000"))["id"]
            names.append(name)
            client.start(name)
        time.sleep(2)  # the kernel's deferred frees settle
        each = (before - _available()) / len(names)
    finally:
        for name in names:
            client.remove(name, force=True)
    # the whole host's figure: other processes' memory is in it, so their load stands beside it
    load = f"load {os.getloadavg()[0]:.1f}"
    report.add(Figure(name=f"memory.{isolation.value}.idle", value=each / 1024, unit="MiB", note=load))


def _available() -> float:
    """KiB"""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return float(line.split()[1])
    raise Failed("/proc/meminfo has no MemAvailable")


def run(client: Client, report: Report, *, samples: int, walls: tuple[Isolation, ...]) -> None:
    """The whole group."""
    report.say(f"bench start: {samples} interleaved samples of each")
    floors.private_mounts()
    tree_image = image.ensure(client)
    if Isolation.CONTAINER in walls:
        with floors.image_tree(tree_image) as tree:
            containers(client, report, samples, tree)
        idle_memory(client, report, Isolation.CONTAINER)
    if Isolation.MICROVM in walls:
        microvms(client, report, max(3, samples // 5))
        idle_memory(client, report, Isolation.MICROVM)
