"""Every case runs once per wall: all cases behind `container`, the smoke set behind the others unless KNARR_FULL=1."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from conformance.harness import IMAGE, Instance, Wall
from support.images import busybox_archive

if TYPE_CHECKING:
    from collections.abc import Iterator

WALLS = tuple(os.environ.get("KNARR_WALLS", "container,microvm").split(","))
FULL = os.environ.get("KNARR_FULL") == "1"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "wall" not in metafunc.fixturenames:
        return
    smoke = metafunc.definition.get_closest_marker("smoke") is not None
    walls = [name for name in WALLS if FULL or smoke or name == "container"]
    metafunc.parametrize("wall", walls, indirect=True, scope="session")


def missing_power(isolation: str) -> str | None:
    if os.geteuid() != 0:
        return "not root"
    if isolation == "microvm" and shutil.which("qemu-system-x86_64") is None:
        return "no qemu-system-x86_64"
    return None


@pytest.fixture(scope="session")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    if os.geteuid() != 0:
        pytest.skip("power missing: root")
    archive = tmp_path_factory.mktemp("images") / "conformance.tar"
    busybox_archive(str(archive), tag=IMAGE)
    made = Instance()
    try:
        made.start()
        made.knarr("load", "-i", str(archive), check=True)
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def wall(instance: Instance, request: pytest.FixtureRequest) -> Wall:
    missing = missing_power(request.param)
    if missing:
        pytest.skip(f"power missing: {missing}")
    return Wall(instance, request.param)


@pytest.fixture(scope="session")
def box(wall: Wall) -> Iterator[str]:
    """One running workload shared by the cases that only look and exec."""
    with wall.box(opts=("--hostname", "shared", "-e", "COLOUR=red")) as name:
        yield name
