"""`knarr bench density`: many idle containers with a network; memory of each, what one more then costs."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from knarr.bench import image, memory
from knarr.bench.measure import Figure, Report
from knarr.bench.start import spec, through_api
from knarr.client import transport
from knarr.client.client import Client
from knarr.model.errors import Failed
from knarr.model.workload import Isolation

COUNT = 1000
FEW = 10
SAMPLES = 30
WALL = Isolation.CONTAINER
_WORKERS = 4
_SETTLING = 3.0
"""seconds for the kernel's deferred work: link and namespace clean-up, grace periods"""


def fill(client: Client, names: list[str], count: int) -> float:
    """Start idle containers until there are `count`; seconds."""
    started = time.perf_counter()
    while len(names) < count:
        names.append(client.create(spec(WALL, "sleep", "1000000"))["id"])
        client.start(names[-1])
    return time.perf_counter() - started


def empty(client: Client, names: list[str]) -> float:
    """Remove them by force with some clients at a time; seconds."""

    def some(share: list[str]) -> None:
        with Client(client.root, client.run) as own:
            for name in share:
                own.remove(name, force=True)

    started = time.perf_counter()
    with ThreadPoolExecutor(_WORKERS) as pool:
        list(pool.map(some, [names[place::_WORKERS] for place in range(_WORKERS)]))
    names.clear()
    return time.perf_counter() - started


def lives(client: Client) -> tuple[float, ...]:
    return tuple(through_api(client, WALL) for _ in range(SAMPLES))


def alive(client: Client, count: int) -> None:
    """Raises `Failed` when some ended meanwhile: the figures would be of fewer."""
    found = sum(item["status"] == "running" for item in client.workloads())
    if found < count:
        raise Failed(f"{found} of {count} idle containers still run")


def processes(client: Client, report: Report, count: int) -> None:
    """What the engine's own processes take with so many idle workloads."""
    status = transport.control(["status", client.root, client.run])
    note = f"PSS with {count} idle containers"
    for name, key in (("knarrd", "pid"), ("keeper", "keeper_pid")):
        value = memory.pss(status[key])
        report.add(Figure(name=f"memory.{name}.idle", value=value, unit="MiB", note=note))


def measure(client: Client, report: Report, names: list[str], count: int) -> None:
    fill(client, names, FEW)
    few = lives(client)
    time.sleep(_SETTLING)
    before = memory.meminfo()
    seconds = fill(client, names, count)
    time.sleep(_SETTLING)
    after = memory.meminfo()
    added = count - FEW
    alive(client, count)
    each = (before["MemAvailable"] - after["MemAvailable"]) / added
    kernel = sum(after[key] - before[key] for key in ("Slab", "KernelStack", "PageTables", "Percpu")) / added
    processes(client, report, count)
    report.add(Figure(name="density.memory", value=each, unit="MiB", note=f"each of {added}, MemAvailable"))
    report.add(
        Figure(name="density.memory.kernel", value=kernel, unit="MiB", note="slab, stacks, tables, percpu")
    )
    report.add(Figure(name="density.start", value=added / seconds, unit="1/s"))
    many = lives(client)
    report.add(
        Figure(
            name=f"density.life.at{count}",
            value=statistics.median(many),
            unit="ms",
            peer=f"at {FEW}",
            peer_value=statistics.median(few),
            samples=many,
        )
    )


def run(client: Client, report: Report, *, count: int | None) -> None:
    """The whole group."""
    wanted = max(count or COUNT, FEW + 1)
    report.say(f"bench density: {wanted} idle containers with a network")
    image.ensure(client)
    through_api(client, WALL)
    names: list[str] = []
    try:
        measure(client, report, names, wanted)
    finally:
        number = len(names)
        rate = number / empty(client, names) if number else 0.0
    report.add(Figure(name="density.remove", value=rate, unit="1/s", note=f"{_WORKERS} clients, by force"))
