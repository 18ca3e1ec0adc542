"""The groups of `knarr bench`, and one door for the command line."""

from __future__ import annotations

import signal
import sys

from knarr.bench import images, start
from knarr.bench.measure import Report
from knarr.client.client import Client
from knarr.model.errors import Invalid
from knarr.model.workload import Isolation

GROUPS = ("start", "images")
WALLS = (Isolation.CONTAINER, Isolation.MICROVM)


def run(
    group: str,
    *,
    root: str,
    run_folder: str,
    as_json: bool,
    samples: int | None = None,
    raw_path: str | None = None,
    walls: tuple[Isolation, ...] = WALLS,
) -> None:
    """Run one group; figures go to standard output. Raises `KnarrError`."""
    if samples is not None and samples < 1:
        raise Invalid(f"--samples {samples}: nothing to measure", hint="1 or more")
    # asked to end, it takes back what it made
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    report = Report(as_json=as_json, raw_path=raw_path)
    with Client(root, run_folder) as client:
        if group == "start":
            start.run(client, report, samples=samples or 25, walls=walls)
        elif group == "images":
            images.run(client, report, samples=samples or 3)
        else:
            raise Invalid(f"unknown bench group {group!r}", hint=f"one of: {', '.join(GROUPS)}")
    report.finish()
