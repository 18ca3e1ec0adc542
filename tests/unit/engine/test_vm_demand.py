"""How many warm slots there should be."""

from __future__ import annotations

import pytest

from knarr.engine.drivers import vm_demand
from knarr.engine.drivers.vm_demand import Demand, class_of
from knarr.machines.kernels import GuestKernel
from knarr.machines.plan import MachineInput
from knarr.model.resource import RootFs
from knarr.model.workload import Isolation, NetworkMode, Process, Resources, WorkloadSpec

MACHINE = MachineInput(kernel=GuestKernel(version="6", vmlinux="v", initramfs="i"), accel="tcg", tsc_khz=1)
PROCESS = Process(args=("true",), env=())


def rootfs(name="one"):
    return RootFs(tree_id=name, tree=f"/trees/{name}", pool="/pool", disk_map=f"/maps/{name}")


def spec(**more):
    return WorkloadSpec(image="i", isolation=Isolation.MICROVM, command=("true",), **more)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def demand(clock):
    found = Demand(clock=clock)
    found.most = 6
    return found


def start(demand, kind, *, warm=False):
    demand.started(kind, MACHINE, PROCESS, rootfs(), warm=warm)


def fill(demand):
    there = []
    while (kind := demand.lacking(there)) is not None:
        there.append(kind)
        assert len(there) < 100
    return there


ONE, TWO, THREE = (class_of(spec(), rootfs(name)) for name in ("one", "two", "three"))


def test_a_class_is_an_image_a_size_and_a_network():
    kinds = {
        class_of(spec(**more), rootfs(name))
        for name in ("one", "two")
        for more in (
            {},
            {"network": NetworkMode.NONE},
            {"resources": Resources(memory=2 << 30)},
            {"resources": Resources(cpus=2)},
        )
    }
    assert len(kinds) == 8
    assert class_of(spec(resources=Resources(pids=5)), rootfs()) == ONE


def test_nobody_asks_so_there_is_none(demand):
    assert fill(demand) == []
    assert not demand


def test_misses_want_more_and_hits_do_not(demand):
    start(demand, ONE)
    assert fill(demand) == [ONE]
    for _ in range(5):
        start(demand, ONE, warm=True)
    assert fill(demand) == [ONE]
    start(demand, ONE)
    assert fill(demand) == [ONE] * 2
    for _ in range(20):
        start(demand, ONE)
    assert fill(demand) == [ONE] * vm_demand.MOST_PER_CLASS


def test_all_together_are_bounded_and_the_latest_comes_first(demand, clock):
    for kind in (ONE, TWO, THREE):
        clock.now += 1
        for _ in range(9):
            start(demand, kind)
    assert fill(demand) == [THREE] * 4 + [TWO] * 2


def test_idle_time_takes_them_one_after_the_other(demand, clock):
    for _ in range(3):
        start(demand, ONE)
    there = fill(demand)
    assert len(there) == 3
    clock.now += demand.idle - 1
    assert demand.shrink(there) == []
    left = []
    for _ in range(4):
        clock.now += demand.idle
        for kind in demand.shrink(there):
            there.remove(kind)
        left.append(len(there))
    assert left == [2, 1, 0, 0]
    assert not demand


def test_the_host_s_memory_is_the_bound():
    assert 1 <= vm_demand.most() <= 16
