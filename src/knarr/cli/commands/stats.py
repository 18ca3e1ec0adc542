"""`stats`: CPU, memory, processes and traffic of running workloads."""

from __future__ import annotations

import os
import sys
import time

from knarr.cli import tables
from knarr.cli.context import Context, complain
from knarr.cli.options import Arguments, Command, Option
from knarr.model.errors import KnarrError
from knarr.model.units import format_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Sample = tuple[float, dict[str, Any]]

COLUMNS = ("ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs")


def stats(context: Context, a: Arguments) -> int:
    before = _collect(context, a)
    while True:
        time.sleep(1.0)
        now = _collect(context, a)
        rows = [_row(name, before.get(name), sample) for name, sample in now.items()]
        _draw(rows, a)
        if a.no_stream:
            return 0 if now or not a.operands else 1
        before = now


def _collect(context: Context, a: Arguments) -> dict[tuple[str, str], Sample]:
    known = context.client.workloads(stopped=a.all, filters=())
    if a.operands:
        known = [context.client.inspect(name) for name in a.operands]
    found = {}
    for item in known:
        try:
            sample = context.client.stats(item["id"])
        except KnarrError as error:
            if a.operands:
                complain(error)
            continue
        found[item["id"], item["name"]] = (time.monotonic(), sample)
    return found


def _row(who: tuple[str, str], before: Sample | None, now: Sample) -> dict[str, str]:
    sample = now[1]
    limit = sample.get("memory_limit") or 0
    used = sample.get("memory", 0)
    return {
        "ID": who[0][:12],
        "Container": who[0][:12],
        "Name": who[1],
        "CPUPerc": f"{cpu_percent(before, now):.2f}%",
        "MemUsage": format_bytes(used) + (f" / {format_bytes(limit)}" if limit else ""),
        "MemPerc": f"{100 * used / limit:.2f}%" if limit else "--",
        "NetIO": _pair(sample, "rx_bytes", "tx_bytes"),
        "NetPackets": f"{sample.get('rx_packets', 0)} / {sample.get('tx_packets', 0)}",
        "BlockIO": _pair(sample, "read_bytes", "write_bytes"),
        "PIDs": str(sample.get("pids", 0)),
    }


def _pair(sample: dict[str, Any], first: str, second: str) -> str:
    return f"{format_bytes(sample.get(first, 0))} / {format_bytes(sample.get(second, 0))}"


def cpu_percent(before: Sample | None, now: Sample) -> float:
    """Percent of one CPU between two samples."""
    if before is None or now[0] <= before[0]:
        return 0.0
    spent = now[1].get("cpu_ns", 0) - before[1].get("cpu_ns", 0)
    return max(float(spent) / 1e7 / (now[0] - before[0]), 0.0)


def _draw(rows: list[dict[str, str]], a: Arguments) -> None:
    if not a.no_stream and a.format is None and os.isatty(1):
        sys.stdout.write("\x1b[H\x1b[2J")
    tables.show(rows, COLUMNS, a.format)
    sys.stdout.flush()


STATS = Command(
    stats,
    "what running workloads use, every second",
    "[WORKLOAD...]",
    (
        Option("-a --all", "also those that do not run"),
        Option("--no-stream", "print once"),
        tables.FORMAT,
        tables.NO_TRUNC,
    ),
    complete="workload",
)
