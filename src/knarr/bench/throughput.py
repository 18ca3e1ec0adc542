"""`knarr bench throughput`: whole lives a second by parallel clients, and a burst of starts all at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from knarr.bench import floors, image
from knarr.bench.measure import Figure, Report
from knarr.bench.start import spec, through_api
from knarr.client.aio import AsyncClient
from knarr.client.client import Client
from knarr.model.errors import NotFound
from knarr.model.workload import Isolation

CLIENTS = (2, 4, 8)
LIVES = 400
"""of each number of clients"""
BURST = 500
WALL = Isolation.CONTAINER


def sustained(client: Client, count: int, lives: int) -> float:
    """Lives (create, start, wait, remove) a second of `count` clients, each with a connection of its own."""

    def one(share: int) -> None:
        with Client(client.root, client.run) as own:
            for _ in range(share):
                through_api(own, WALL)

    started = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(one, [lives // count] * count))
    return lives // count * count / (time.perf_counter() - started)


async def _life(client: AsyncClient, name: str, latencies: list[float]) -> None:
    begun = time.perf_counter()
    try:
        await client.create(replace(spec(WALL, "true"), name=name))
        await client.start(name)
        latencies.append((time.perf_counter() - begun) * 1e3)
        await client.wait(name)
    finally:
        # By the name given to it: ended in the middle of the creation, nobody would know its id.
        with contextlib.suppress(NotFound):
            await client.remove(name, force=True)


async def _burst(run: str, count: int) -> list[float]:
    latencies: list[float] = []
    client = AsyncClient(run)
    await asyncio.gather(*(_life(client, f"bench-{os.getpid()}-{n}", latencies) for n in range(count)))
    return latencies


def burst(client: Client, report: Report, count: int) -> None:
    """`count` at the same moment: how long each waits until its program runs."""
    started = time.perf_counter()
    latencies = sorted(asyncio.run(_burst(client.run, count)))
    took = time.perf_counter() - started
    half = statistics.median(latencies)
    last = latencies[int(len(latencies) * 0.99)]
    name = f"throughput.burst{count}"
    samples = tuple(latencies)
    report.add(Figure(name=f"{name}.p50", value=half, unit="ms", samples=samples))
    report.add(
        Figure(name=f"{name}.p99", value=last, unit="ms", peer="p50", peer_value=half, samples=samples)
    )
    report.add(Figure(name=f"{name}.rate", value=count / took, unit="1/s"))


def run(client: Client, report: Report, *, count: int | None) -> None:
    """The whole group; `count` is the burst's size."""
    floors.private_mounts()
    found = image.ensure(client)
    report.say(f"bench throughput: {LIVES} lives by {', '.join(map(str, CLIENTS))} clients, then a burst")
    through_api(client, WALL)
    with (
        floors.image_tree(found) as tree,
        floors.bridge(f"knfl{os.getpid()}") as link,
        tempfile.TemporaryDirectory(prefix="bench-", dir=client.root) as work,
    ):
        for number in CLIENTS:
            rate = sustained(client, number, LIVES)
            floor = floors.floor_rate(tree, work, link, number, LIVES)
            name = f"throughput.clients{number}"
            report.add(Figure(name=name, value=rate, unit="1/s", peer="floor", peer_value=floor))
    burst(client, report, count or BURST)
