"""Warm slots: microVMs that have resumed, mounted an image and rehearsed a start, and wait for a workload.

A slot is born with the id that a workload will have, so its folder, cgroup, user, tap and pipes are right
from the beginning and nothing of it is ever renamed: `create` takes the id over, `start` sends the request.
It is made for one image, whose pages its guest has seen, and for one class of machines. The marker
RUN/slots/<id> lasts until it is assigned; a daemon that takes over ends those that have one.
Out of scope: how many there should be (`drivers.vm_demand`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from knarr.engine.drivers import vm_boot, vm_guest
from knarr.engine.drivers.vm_demand import Class, Demand, Wish, class_of, most
from knarr.kernel import cgroups, relimit
from knarr.machines import disks, folders, launch, plan, status
from knarr.machines.agent import AgentGone
from knarr.machines.plan import Birth
from knarr.model import names
from knarr.model.errors import Failed, KnarrError
from knarr.model.logs import JSON_FILE, Logging
from knarr.model.workload import Resources
from knarr.store.settings import SettingsFile

if TYPE_CHECKING:
    from collections.abc import Collection

    from knarr.engine.driver import Services, Workload
    from knarr.machines.agent import Agent
    from knarr.machines.plan import MachineInput
    from knarr.machines.templates import About
    from knarr.model.resource import RootFs
    from knarr.model.workload import WorkloadSpec

_log = logging.getLogger("knarr.slots")
_RESERVED_SECONDS = 10.0
"""between `create` and `start`"""
_PAUSE = 0.2
"""seconds without a start before a slot is begun"""
_READY_SECONDS = 60.0
_TEMPLATE_TRIES = 40
_LOG = Logging(driver=JSON_FILE)
"""the one that a slot's pipes lead to"""


@dataclass(eq=False, kw_only=True, slots=True)
class Slot:
    id: str
    kind: Class
    stamp: tuple[int, ...]
    pid: int
    agent: Agent
    kernel: str
    resources: Resources
    folder: str
    rootfs: RootFs
    reserved: bool = False
    owned: bool = False
    """a workload's record has its folder"""
    timer: asyncio.TimerHandle | None = None


class Slots:
    """All of one instance."""

    def __init__(self, services: Services, booter: vm_boot.Booter, uids: dict[str, int]) -> None:
        """`uids` are in use by machines; slots add theirs."""
        self._s = services
        self._booter = booter
        self._uids = uids
        self._slots: dict[str, Slot] = {}
        self._going: dict[str, asyncio.Event] = {}
        self._demand = Demand()
        self._settings = SettingsFile(services.root)
        self._filling: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Those that are ready and nobody's."""
        return len(self._kinds())

    def count(self, about: About) -> int:
        """Those of one class of machines, whatever their image."""
        wanted = (about.memory, about.cpus, about.network)
        return sum(kind[1:] == wanted for kind in self._kinds())

    def reserve(self, spec: WorkloadSpec, rootfs: RootFs) -> str | None:
        """The id of a slot that fits, for a workload that is being created; it has to start soon."""
        if not _fits(spec):
            return None
        kind = class_of(spec, rootfs)
        for slot in self._slots.values():
            if slot.kind == kind and not slot.reserved and self._good(slot):
                slot.reserved = True
                loop = asyncio.get_running_loop()
                slot.timer = loop.call_later(_RESERVED_SECONDS, self._spawn_drop, slot.id)
                return slot.id
        return None

    def own(self, workload: str) -> bool:
        """Whether its folder and writable disk are there already; they belong to the workload from now on."""
        slot = self._slots.get(workload)
        if slot is None:
            return False
        slot.owned = True
        return True

    async def take(self, w: Workload, kernel: str) -> Slot | None:
        """The slot of `w`, which is then the caller's to `assign` or to `abandon`, or None: there is no such
        machine any more.
        """
        slot = self._slots.get(w.id)
        kind = class_of(w.spec, w.image.rootfs)
        if slot is None or slot.kind != kind or slot.kernel != kernel or not self._good(slot):
            await self.drop(w.id)
            return None
        if slot.timer is not None:
            slot.timer.cancel()
        return self._slots.pop(w.id)

    async def assign(self, slot: Slot, boot: vm_boot.Boot) -> tuple[int, Agent]:
        """From here on the machine is its workload's: its limits, everybody's priority, the start request.

        Raises `AgentGone` when it does nothing; then it is gone.
        """
        try:
            self._hand_over(slot, boot.machine.resources)
            slot.agent.start(boot.records)
            await slot.agent.heard(vm_boot.deadline(boot.machine.accel) / 3)
        except BaseException as error:
            if isinstance(error, AgentGone) and status.read(slot.folder).told:
                return slot.pid, slot.agent  # it ended by itself before its words arrived
            await self.abandon(slot)
            if status.read(slot.folder).began:
                raise Failed("the machine stopped answering as its program began") from error
            raise
        return slot.pid, slot.agent

    def _hand_over(self, slot: Slot, resources: Resources) -> None:
        size = plan.memory_class(resources.memory)
        paths = cgroups.group_paths(self._s.facts.cgroups, self._s.instance, slot.id)
        around = [launch.host_resources(size, item) for item in (slot.resources, resources)]
        relimit.change(self._s.facts.cgroups, paths, around[0], around[1])
        vm_boot.renice(slot.pid, 0)
        self._unmark(slot.id)

    async def abandon(self, slot: Slot) -> None:
        """The machine of one that was taken goes."""
        slot.agent.close()
        await self._clear(slot.id)

    async def drop(self, workload: str) -> None:
        """No slot of that id any more, nor one that is going; a workload's folder stays."""
        slot = self._slots.pop(workload, None)
        if slot is None:
            if workload in self._going:
                await self._going[workload].wait()
            return
        if slot.timer is not None:
            slot.timer.cancel()
        gone = self._going[workload] = asyncio.Event()
        try:
            await self.abandon(slot)
            if not slot.owned:
                await asyncio.to_thread(shutil.rmtree, slot.folder, ignore_errors=True)
        finally:
            del self._going[workload]
            gone.set()

    def started(self, w: Workload, machine: MachineInput, *, warm: bool) -> None:
        """A machine has started: others like it may follow."""
        self._demand.most = self._most()
        if not self._demand.most:
            self._demand.forget_all()
            for slot in [slot for slot in self._slots.values() if not slot.reserved]:
                self._spawn_drop(slot.id)
        if not self._demand.most or not _fits(w.spec) or self._closed:
            return
        self._demand.started(class_of(w.spec, w.image.rootfs), machine, w.process, w.image.rootfs, warm=warm)
        self._fill_soon()
        if self._timer is None:
            self._shrink_later()

    async def close(self) -> None:
        """End all that are nobody's."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        tasks = [*self._tasks, *([self._filling] if self._filling else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for workload in tuple(self._slots):
            await self.drop(workload)

    def _most(self) -> int:
        try:
            wanted = self._settings.read().microvm_slots
        except KnarrError:
            wanted = 0  # whoever creates a workload is told
        return most() if wanted is None else wanted

    def _good(self, slot: Slot) -> bool:
        """Its machine is there, and so are the files that it has open."""
        try:
            return not slot.agent.closed and slot.stamp == _stamp(slot.rootfs)
        except OSError:
            return False  # the image is gone

    def _spawn_drop(self, workload: str) -> None:
        task = asyncio.ensure_future(self._drop_quietly(workload))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drop_quietly(self, workload: str) -> None:
        try:
            await self.drop(workload)
        except (KnarrError, OSError) as error:
            _log.warning("slot %s: %s", workload[:12], error)

    # making them

    def _fill_soon(self) -> None:
        if self._filling is None or self._filling.done():
            self._filling = asyncio.ensure_future(self._fill())

    async def _fill(self) -> None:
        while (kind := self._demand.lacking(self._kinds())) is not None:
            try:
                await self._make_room(kind)
                await self._make(kind)
            except (KnarrError, OSError) as error:
                _log.warning("no warm slot: %s", error)
                self._demand.forget(kind)

    def _kinds(self) -> list[Class]:
        return [slot.kind for slot in self._slots.values() if not slot.reserved and self._good(slot)]

    async def _make_room(self, kind: Class) -> None:
        """Those that are no good go first, then those of the class that was asked for longest ago."""
        for slot in tuple(self._slots.values()):
            if not slot.reserved and not self._good(slot):
                await self.drop(slot.id)
        others = [slot for slot in self._slots.values() if slot.kind != kind and not slot.reserved]
        while others and len(self._slots) >= self._demand.most:
            oldest = min(others, key=lambda slot: self._demand.last(slot.kind))
            others.remove(oldest)
            await self.drop(oldest.id)

    async def _make(self, kind: Class) -> None:
        wish = self._demand.wish(kind)
        template = None
        for _ in range(_TEMPLATE_TRIES):
            await self._booter.templates.quiet(_PAUSE)
            template, _ = self._booter.templates.find(wish.machine, await self._booter.box())
            if template is not None:
                break
            await asyncio.sleep(_PAUSE)
        if template is None or not self._demand.wants(kind):
            self._demand.forget(kind)
            return
        identity = names.new_id()
        try:
            self._slots[identity] = await self._begin(identity, kind, wish, template.folder)
        except BaseException:
            await self._clear(identity)
            folder = os.path.join(self._s.root, "workloads", identity)
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise
        if not self._demand.wants(kind):
            await self.drop(identity)

    async def _begin(self, identity: str, kind: Class, wish: Wish, template: str) -> Slot:
        folder = self._mark(identity)
        await asyncio.to_thread(disks.make_upper, self._s.root, os.path.join(folder, "upper.img"))
        machine, tap = self._machine(identity, wish)
        boot = vm_boot.Boot(
            key=identity,
            machine=machine,
            records=(),
            uid=self._uids[identity],
            log=os.path.join(folder, "log"),
            tap=tap,
            template=template,
            spare=True,
        )
        self._s.images.disk_map(wish.rootfs)
        stamp = _stamp(wish.rootfs)
        try:
            pid, agent = await self._booter.ahead(boot, folder, wish.rootfs)
        finally:
            if tap is not None:
                os.close(tap)
        try:
            records = vm_guest.rehearsal(wish.process, machine.attachment)
            await asyncio.wait_for(agent.ask("ready", records=records), _READY_SECONDS)
        except BaseException as error:
            agent.close()
            if isinstance(error, TimeoutError):
                raise AgentGone("it did not become ready") from None
            raise
        return Slot(
            id=identity,
            kind=kind,
            stamp=stamp,
            pid=pid,
            agent=agent,
            kernel=machine.kernel.version,
            resources=machine.resources,
            folder=folder,
            rootfs=wish.rootfs,
        )

    def _machine(self, identity: str, wish: Wish) -> tuple[MachineInput, int | None]:
        """With a place on the network and a user of its own; the tap is the caller's to close."""
        attachment, tap = None, None
        if wish.machine.attachment is not None:
            attachment, tap = self._s.network.reserve(identity)
        self._uids[identity] = vm_boot.uid_of(self._s.instance, identity, set(self._uids.values()))
        machine = dataclasses.replace(
            wish.machine,
            resources=Resources(memory=wish.machine.resources.memory, cpus=wish.machine.resources.cpus),
            attachment=attachment,
            stdin=True,
            tty=False,
            birth=Birth.RESUME,
        )
        return machine, tap

    def _shrink_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._demand.idle / 2, self._shrink)

    def _shrink(self) -> None:
        self._timer = None
        surplus = self._demand.shrink(self._kinds())
        for slot in tuple(self._slots.values()):
            if slot.kind in surplus and not slot.reserved:
                surplus.remove(slot.kind)
                self._spawn_drop(slot.id)
        if self._demand:
            self._shrink_later()

    # what there is of one

    def _mark(self, identity: str) -> str:
        """The marker, then the folder."""
        os.makedirs(_markers(self._s.run), mode=0o700, exist_ok=True)
        with open(os.path.join(_markers(self._s.run), identity), "wb"):
            pass
        folder = os.path.join(self._s.root, "workloads", identity)
        os.mkdir(folder, 0o700)
        os.mkdir(os.path.join(folder, "log"), 0o700)
        return folder

    def _unmark(self, identity: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(_markers(self._s.run), identity))

    async def _clear(self, identity: str) -> None:
        await self._booter.destroy(identity)
        self._s.network.release(identity)
        self._uids.pop(identity, None)
        self._unmark(identity)


async def sweep(services: Services, booter: vm_boot.Booter, running: Collection[str]) -> set[str]:
    """End the slots of a daemon that was killed; those that had been created stay workloads. Their ids."""
    try:
        found = os.listdir(_markers(services.run))
    except FileNotFoundError:
        return set()
    for identity in found:
        if identity in running:
            await booter.destroy(identity)
        os.unlink(os.path.join(_markers(services.run), identity))
    return set(found)


def no_run(_status: int) -> bool:
    """A workload's exit hook: what ends now is a slot of its id."""
    return True


def _fits(spec: WorkloadSpec) -> bool:
    """No kernel of its own, no folders of the host, and its output in files without bounds, as a slot's."""
    return not spec.kernel and not folders.wanted(spec.mounts) and spec.log == _LOG


def _markers(run: str) -> str:
    return os.path.join(run, "slots")


def _stamp(rootfs: RootFs) -> tuple[int, ...]:
    """Of the files that a slot's QEMU has open: an image that was removed and pulled again has others."""
    found = [os.stat(path) for path in (rootfs.tree, rootfs.disk_map)]
    return tuple(value for item in found for value in (item.st_dev, item.st_ino, item.st_mtime_ns))
