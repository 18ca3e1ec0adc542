"""`knarr bench logs`: a workload writes 100-byte lines, beside a pipe into a file; reading them back."""

from __future__ import annotations

import os
import statistics
import subprocess
import time

from knarr.bench import image
from knarr.bench.measure import Figure, Report
from knarr.bench.start import spec
from knarr.client.client import Client
from knarr.model.errors import Failed
from knarr.model.workload import Isolation

BYTES = {Isolation.CONTAINER: 100_000_000, Isolation.MICROVM: 5_000_000}
LINE = "x" * 99


def _script(size: int) -> str:
    return f"{image.BUSYBOX} yes {LINE} | {image.BUSYBOX} head -c {size}"


def write(client: Client, wall: Isolation, size: int) -> tuple[str, float]:
    """The workload's id, and seconds from its start to its end with every byte in the files."""
    name = client.create(spec(wall, "sh", "-c", _script(size)))["id"]
    started = time.perf_counter()
    client.start(name)
    code = client.wait(name)["exit_code"]
    took = time.perf_counter() - started
    if code != 0:
        raise Failed(f"the writer behind the {wall.value} wall exited with {code}")
    return name, took


def read(client: Client, name: str, size: int) -> float:
    """Seconds to read the log through the API. Raises `Failed` when a byte is missing."""
    started = time.perf_counter()
    found = sum(len(data) for _, data in client.logs(name))
    took = time.perf_counter() - started
    if found != size:
        raise Failed(f"{found} of {size} bytes are in the log")
    return took


def pipe(path: str, size: int) -> float:
    """Seconds of the same writer with `cat` between it and a file."""
    started = time.perf_counter()
    subprocess.run(f"{_script(size)} | cat > {path}", shell=True, check=True)
    return time.perf_counter() - started


def cat(path: str) -> float:
    """Seconds to read that file through a pipe."""
    started = time.perf_counter()
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while process.stdout.read(1 << 16):
            pass
    return time.perf_counter() - started


def _figure(name: str, rates: list[float], peer: str, peers: list[float]) -> Figure:
    value, other = statistics.median(rates), statistics.median(peers)
    return Figure(name=name, value=value, unit="MB/s", peer=peer, peer_value=other, samples=tuple(rates))


def measure(client: Client, report: Report, wall: Isolation, count: int) -> None:
    size = BYTES[wall]
    path = os.path.join(client.root, f"bench-{os.getpid()}.log")
    rates: dict[str, list[float]] = {key: [] for key in ("write", "pipe", "read", "cat")}

    def note(key: str, seconds: float) -> None:
        rates[key].append(size / 1e6 / seconds)

    try:
        for _ in range(count):
            note("pipe", pipe(path, size))
            name, took = write(client, wall, size)
            try:
                note("write", took)
                note("read", read(client, name, size))
            finally:
                client.remove(name, force=True)
            note("cat", cat(path))
    finally:
        if os.path.exists(path):
            os.unlink(path)
    report.add(_figure(f"logs.{wall.value}.write", rates["write"], "pipe to a file", rates["pipe"]))
    report.add(_figure(f"logs.{wall.value}.read", rates["read"], "cat", rates["cat"]))


def run(client: Client, report: Report, *, samples: int, walls: tuple[Isolation, ...]) -> None:
    """The whole group."""
    image.ensure(client)
    for wall in walls:
        report.say(f"bench logs: {BYTES[wall] // 10**6} MB in 100-byte lines, {samples} times, {wall.value}")
        measure(client, report, wall, samples)
