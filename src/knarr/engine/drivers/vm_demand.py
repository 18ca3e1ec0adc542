"""How many warm slots there should be: as many as recent starts had use for, none without any.

A class of machines that has started wants one slot; each start that found none wants one more, up to a limit;
each idle period wants one less. All of them together are bounded by the host's memory.
Out of scope: what a slot is (`drivers.vm_slots`).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from knarr.machines import plan
from knarr.model.workload import NetworkMode

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from knarr.machines.plan import MachineInput
    from knarr.model.resource import RootFs
    from knarr.model.workload import Process, WorkloadSpec

Class = tuple[str, int, int, bool]
"""(image's tree, bytes of RAM, virtual cpus, with a network)"""
IDLE = 60.0
"""seconds without a start after which one slot less is kept"""
MOST_PER_CLASS = 4
SLOT_BYTES = 160 << 20
"""what one takes beside the template's pages that all share, translated code included"""
_SHARE = 24
"""of the host's memory: one part"""


def class_of(spec: WorkloadSpec, rootfs: RootFs) -> Class:
    memory, cpus = plan.memory_class(spec.resources.memory), plan.vcpus(spec.resources)
    return rootfs.tree, memory, cpus, spec.network is NetworkMode.BRIDGE


def most() -> int:
    """What the host's memory allows, at least one."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(16, memory // _SHARE // SLOT_BYTES))


@dataclass(kw_only=True, slots=True)
class Wish:
    """A class that is asked for, and what its last machine was."""

    machine: MachineInput
    process: Process
    rootfs: RootFs
    target: int
    last: float
    """monotonic seconds: its last start, or the last slot less"""


class Demand:
    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wishes: dict[Class, Wish] = {}
        self.idle = IDLE
        self.most = most()
        """of all classes together"""

    def started(
        self, kind: Class, machine: MachineInput, process: Process, rootfs: RootFs, *, warm: bool
    ) -> None:
        before = self._wishes.get(kind)
        target = 0 if before is None else before.target
        target = max(1, target if warm else min(target + 1, MOST_PER_CLASS, self.most))
        self._wishes[kind] = Wish(
            machine=machine, process=process, rootfs=rootfs, target=target, last=self._clock()
        )

    def __bool__(self) -> bool:
        return bool(self._wishes)

    def wish(self, kind: Class) -> Wish:
        return self._wishes[kind]

    def wants(self, kind: Class) -> bool:
        return kind in self._wishes

    def last(self, kind: Class) -> float:
        wish = self._wishes.get(kind)
        return 0.0 if wish is None else wish.last

    def lacking(self, there: Collection[Class]) -> Class | None:
        """The most recently started class with fewer slots than it should have, within the limit of all."""
        recent = sorted(self._wishes.items(), key=lambda item: -item[1].last)
        room = self.most
        for kind, wish in recent:
            if list(there).count(kind) < min(wish.target, room):
                return kind
            room -= min(wish.target, room)
        return None

    def shrink(self, there: Collection[Class]) -> list[Class]:
        """One less of each class that nobody started for a while; the answer is whose slots are too many."""
        now = self._clock()
        for kind, wish in tuple(self._wishes.items()):
            if now - wish.last >= self.idle:
                wish.target, wish.last = wish.target - 1, now
                if not wish.target:
                    self.forget(kind)
        surplus = list(there)
        for kind, wish in self._wishes.items():
            for _ in range(min(wish.target, surplus.count(kind))):
                surplus.remove(kind)
        return surplus

    def forget_all(self) -> None:
        self._wishes.clear()

    def forget(self, kind: Class) -> None:
        self._wishes.pop(kind, None)
