"""One instance for all doors, canaries that no archive may touch, and what must be as before at the end."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from conformance.harness import Instance
from knarr.client.client import Client
from support import layers
from support.hostwatch import HostWatch
from support.images import busybox_archive

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE = "hostile:latest"
_MOST_MEMORY = 400 << 20


class Host:
    """An instance, its client, and the folders of the host that archives aim at."""

    def __init__(self, instance: Instance, canary: str) -> None:
        self.instance = instance
        self.canary = canary
        self.client = Client(instance.root, instance.run_folder, start=False)
        os.makedirs(f"{canary}/kept")
        with open(f"{canary}/kept/file", "w", encoding="ascii") as file:
            file.write("as it was")
        self.before = layers.snapshot(canary)

    def pids(self) -> set[int]:
        """Every process of the instance: they all have its RUN in their command line."""
        found = set()
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    if self.instance.run_folder.encode() in file.read():
                        found.add(int(name))
            except OSError:
                continue
        return found

    def daemon(self) -> int:
        return int(self.roles()["pid"])

    def roles(self) -> dict[str, object]:
        status = self.instance.knarr("daemon", "status", "--format", "json", check=True)
        return json.loads(status.out)

    def store(self) -> tuple[object, ...]:
        """What the image store takes, by name and size."""
        folder = os.path.join(self.instance.root, "images", "default")
        found = []
        for above, _, names in os.walk(folder):
            for name in names:
                if not name.startswith("pool.db"):
                    path = os.path.join(above, name)
                    found.append((os.path.relpath(path, folder), os.stat(path).st_blocks))
        return (*sorted(found), *sorted(os.listdir(os.path.join(folder, "tmp"))))

    def problems(self) -> object:
        *_, last = self.client.check_images()
        return last["problems"]


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    if os.geteuid() != 0:
        pytest.skip("power missing: root")
    archive = busybox_archive(str(tmp_path_factory.mktemp("image") / "a.tar"), tag=IMAGE)
    instance = Instance()
    try:
        instance.knarr("daemon", "start", check=True)
        instance.knarr("load", "-i", archive, check=True)
        yield Host(instance, str(tmp_path_factory.mktemp("canary") / "deep"))
    finally:
        instance.close()


@pytest.fixture
def unharmed(host: Host) -> Iterator[None]:
    """Around a case: no path of the host changes, nothing is kept, memory stays in its bounds."""
    store = host.store()
    daemon = host.daemon()
    with open(f"/proc/{daemon}/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # begin the high-water mark anew
    watch = HostWatch(os.path.dirname(host.canary))
    try:
        yield
    finally:
        watch.stop()
    mine = (host.instance.root, host.instance.run_folder)
    changed = watch.changes(host.pids())
    assert any(path.startswith(mine) for path in changed), "nothing was watched"
    assert sorted(path for path in changed if not path.startswith(mine)) == []
    assert layers.snapshot(host.canary) == host.before
    assert host.daemon() == daemon, "the daemon ended on the way"
    assert _peak(daemon) < _MOST_MEMORY
    assert host.store() == store
    assert host.problems() == []


def _peak(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["VmHWM"].split()[0]) * 1024
