"""The groups of `knarr bench`, and one door for the command line."""

from __future__ import annotations

import signal
import sys

from knarr.bench import density, images, inside, logs, start, throughput
from knarr.bench.measure import Report
from knarr.client.client import Client
from knarr.model.errors import Invalid, Unsupported
from knarr.model.workload import Isolation

GROUPS = ("start", "images", "throughput", "density", "exec", "logs")
_CONTAINERS_ONLY = ("throughput", "density")
WALLS = (Isolation.CONTAINER, Isolation.MICROVM)


def run(
    group: str,
    *,
    root: str,
    run_folder: str,
    as_json: bool,
    samples: int | None = None,
    count: int | None = None,
    raw_path: str | None = None,
    walls: tuple[Isolation, ...] = WALLS,
) -> None:
    """Run one group; figures go to standard output. Raises `KnarrError`."""
    for option, number in (("--samples", samples), ("--count", count)):
        if number is not None and number < 1:
            raise Invalid(f"{option} {number}: nothing to measure", hint="1 or more")
    if group in _CONTAINERS_ONLY and Isolation.CONTAINER not in walls:
        raise Unsupported(f"bench {group} measures containers only", hint="leave --isolation away")
    # asked to end, it takes back what it made
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    report = Report(as_json=as_json, raw_path=raw_path)
    with Client(root, run_folder) as client:
        if group == "start":
            start.run(client, report, samples=samples or 25, walls=walls)
        elif group == "images":
            images.run(client, report, samples=samples or 3)
        elif group == "throughput":
            throughput.run(client, report, count=count)
        elif group == "exec":
            inside.run(client, report, samples=samples or 25, walls=walls)
        elif group == "logs":
            logs.run(client, report, samples=samples or 3, walls=walls)
        elif group == "density":
            density.run(client, report, count=count)
        else:
            raise Invalid(f"unknown bench group {group!r}", hint=f"one of: {', '.join(GROUPS)}")
    report.finish()
