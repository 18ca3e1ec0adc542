"""`knarr bench images`: pull-to-ready beside skopeo + umoci and the floor; what two alike images take."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from typing import Any

from knarr.bench import floors, registry
from knarr.bench.measure import Figure, Report, Subject, compare, interleave, timed
from knarr.client.client import Client
from knarr.model.errors import Failed

DISTRIBUTION, INCLUDE = "debian:bookworm", ("python3",)
BLOCK = 4096


@contextlib.contextmanager
def scratch_instance(folder: str) -> Iterator[Client]:
    """An empty instance beside the user's, so that every pull is cold; ended and removed afterwards."""
    root, run = os.path.join(folder, "root"), os.path.join(folder, "run")
    with Client(root, run) as client:
        try:
            yield client
        finally:
            launcher = floors.LAUNCHER
            floors.run_tool(launcher, "--root", root, "--run", run, "daemon", "stop", "--workloads")


def debian(client: Client, report: Report) -> dict[str, Any]:
    """The Debian image with Python, bootstrapped when the instance doesn't have it."""
    report.say(f"bootstrapping {DISTRIBUTION} with {', '.join(INCLUDE)} (cached after the first time)")
    for _ in client.bootstrap(DISTRIBUTION, include=INCLUDE):
        pass
    return client.image(DISTRIBUTION)


def pull_ours(client: Client, reference: str) -> float:
    def act() -> None:
        for _ in client.pull(reference, insecure=True):
            pass

    taken = timed(act)
    client.remove_image(reference, force=True)
    client.prune_images(unused=True)
    return taken


def pull_peer(reference: str, folder: str) -> float:
    """skopeo copy to an OCI layout, umoci unpack of it."""
    skopeo, umoci = registry.tool("skopeo", "skopeo"), registry.tool("umoci", "umoci")
    target = os.path.join(folder, "peer")

    def act() -> None:
        source = f"docker://{reference}"
        floors.run_tool(
            skopeo, "copy", "--insecure-policy", "--src-tls-verify=false", source, f"oci:{target}/oci:x"
        )
        floors.run_tool(umoci, "unpack", "--image", f"{target}/oci:x", f"{target}/bundle")

    os.mkdir(target)
    try:
        return timed(act)
    finally:
        shutil.rmtree(target)


def pipeline_floor(blob: str) -> float:
    """`gzip -dc LAYER | sha256sum`: what any unpacker must at least do."""

    def act() -> None:
        with open(blob, "rb") as file:
            unpack = subprocess.Popen(["gzip", "-dc"], stdin=file, stdout=subprocess.PIPE)
            done = subprocess.run(["sha256sum"], stdin=unpack.stdout, stdout=subprocess.DEVNULL, check=False)
            if unpack.stdout:
                unpack.stdout.close()
            if unpack.wait() or done.returncode:
                raise Failed("gzip or sha256sum failed", hint="the first layer is not gzip")

    return timed(act)


def pulls(client: Client, report: Report, count: int, folder: str) -> None:
    image = debian(client, report)
    blob = registry.layout(client.root, image, os.path.join(folder, "layout"))
    os.mkdir(os.path.join(folder, "registry"))
    with registry.serve(os.path.join(folder, "registry")) as host:
        reference = f"{host}/bench/debian:1"
        registry.push(os.path.join(folder, "layout"), reference)
        with scratch_instance(os.path.join(folder, "scratch")) as ours:
            report.say(f"pulling {image['size'] / 1e6:.0f} MB, {count} times each")
            subjects = [
                Subject(name="knarr", sample=lambda: pull_ours(ours, reference)),
                Subject(name="skopeo+umoci", sample=lambda: pull_peer(reference, folder)),
                Subject(name="floor", sample=lambda: pipeline_floor(blob)),
            ]
            samples = interleave(subjects, count, warm=1)
    report.add(compare(samples, "images.pull", "knarr", "floor"))
    report.add(compare(samples, "images.pull.skopeo_umoci", "knarr", "skopeo+umoci"))


def alike(seed: int, changed: int) -> Iterator[tuple[str, bytes]]:
    """1,000 files of a few sizes; the first `changed` of them are this seed's own."""
    for index in range(1000):
        source = random.Random(index if index >= changed else seed * 1_000_003 + index)
        yield f"data/{index:04}", source.randbytes(source.choice((900, 9_000, 40_000, 150_000)))


def make_tar(files: Iterator[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def disk_use(root: str) -> int:
    """Bytes on disk of pool, index and trees; blobs apart."""
    total = 0
    for folder, names, files in os.walk(os.path.join(root, "images", "default")):
        if "blobs" in names:
            names.remove("blobs")
        total += sum(os.lstat(os.path.join(folder, name)).st_blocks * 512 for name in files)
    return total


def sharing(report: Report, folder: str) -> None:
    """Two images that share 90 % of their files, against their distinct contents rounded up to 4 KiB."""
    distinct = {data for seed in (1, 2) for _, data in alike(seed, 100)}
    wanted = sum(-(-len(data) // BLOCK) * BLOCK for data in distinct)
    with scratch_instance(os.path.join(folder, "sharing")) as client:
        client.version()
        before = disk_use(client.root)
        for seed in (1, 2):
            for _ in client.import_image([make_tar(alike(seed, 100))], f"localhost/alike:{seed}"):
                pass
        used = disk_use(client.root) - before
    report.add(
        Figure(
            name="images.shared90.bytes",
            value=used / 1e6,
            unit="MB",
            peer="distinct bytes",
            peer_value=wanted / 1e6,
        )
    )


def run(client: Client, report: Report, *, samples: int) -> None:
    """The whole group."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=client.root) as folder:
        sharing(report, folder)
        pulls(client, report, samples, folder)
