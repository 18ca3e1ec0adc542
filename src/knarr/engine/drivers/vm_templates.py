"""Making and resuming templates of microVMs.

A class of machines whose first one booted cold gets its template when no machine has been starting for a
moment, by a QEMU that yields to everything else. Out of scope: files and keys (`machines.templates`),
descriptors and jail (`drivers.vm_boot`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from knarr.machines import plan, request, templates
from knarr.machines.qmp import Qmp, QmpGone
from knarr.model.errors import KnarrError, NotFound
from knarr.networks import taps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from knarr.engine.driver import Services
    from knarr.engine.drivers.vm_boot import Booter
    from knarr.keeper.holder import HolderClient
    from knarr.machines.jail import Jail
    from knarr.machines.plan import MachineInput
    from knarr.machines.templates import Template

_log = logging.getLogger("knarr.templates")

PREFIX = "template-"
"""of the keeper's and holder's names of machines that are being made"""
_QUIET = 1.0
"""seconds without a start before a template is made"""
_LOWEST = 19
_SAVE_SECONDS = 60.0
_SHARED = "x-ignore-shared"


async def resume(holder: HolderClient, key: str) -> None:
    """Load the state that the QEMU of `key` was given, and let it go on. Raises `Failed`, `QmpGone`."""
    async with _monitor(holder, key) as qmp:
        await qmp.execute("migrate-set-capabilities", capabilities=_capabilities(shared=True))
        await qmp.execute("migrate-incoming", uri=f"fd:{plan.STATE}")
        await qmp.migrated()
        await qmp.execute("cont")
        # its memory is private from here on: it must travel with the machine
        await qmp.execute("migrate-set-capabilities", capabilities=_capabilities(shared=False))


def _monitor(holder: HolderClient, key: str) -> Qmp:
    fd = holder.get(f"qmp/{key}")
    if fd is None:
        raise QmpGone("the machine's monitor is gone")
    return Qmp(fd)


def _capabilities(*, shared: bool) -> list[dict[str, object]]:
    return [{"capability": _SHARED, "state": shared}, {"capability": "events", "state": True}]


class Templates:
    """The templates of one instance, and when they are made."""

    def __init__(self, services: Services, booter: Booter) -> None:
        self._s = services
        self._booter = booter
        self.store = templates.TemplateStore(services.root)
        self._starting = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._lock = asyncio.Lock()
        self._wanted: dict[templates.About, asyncio.Task[None]] = {}
        self._failed: set[str] = set()
        self.store.sweep()
        for prefix in ("agent", "qmp", "in"):
            services.holder.delete(f"{prefix}/{PREFIX}*")

    @contextmanager
    def busy(self) -> Iterator[None]:
        """A machine is starting: no template is begun meanwhile."""
        self._starting += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._starting -= 1
            if not self._starting:
                self._quiet.set()

    def find(self, machine: MachineInput, box: Jail) -> tuple[Template | None, str]:
        """The template for a start of `machine`, or why there is none."""
        if machine.folders:
            return None, "folders"
        found = self.store.find(templates.key(machine, box))
        if found is None:
            return None, "no template"
        self.store.touch(found)
        return found, ""

    def spoiled(self, template: Template) -> None:
        """It did not answer: the next cold boot of its class has another one made."""
        try:
            self.store.remove(template.key)
        except NotFound:
            return

    def want(self, machine: MachineInput) -> None:
        """Make the template of its class once it is quiet."""
        facts = templates.about(machine)
        if machine.folders or facts in self._wanted:
            return
        task = asyncio.ensure_future(self._when_quiet(machine))
        self._wanted[facts] = task
        task.add_done_callback(lambda _: self._wanted.pop(facts, None))

    async def _when_quiet(self, machine: MachineInput) -> None:
        await self.quiet(_QUIET)
        try:
            if templates.key(machine, await self._booter.box()) not in self._failed:
                await self.make(machine)
        except (KnarrError, OSError) as error:
            self._failed.add(templates.key(machine, await self._booter.box()))
            _log.warning("no template for microVMs of %s: %s", templates.about(machine), error)

    async def quiet(self, seconds: float) -> None:
        """Return when no machine has been starting for that long."""
        while self._starting or not await self._stayed_quiet(seconds):
            await self._quiet.wait()

    async def _stayed_quiet(self, seconds: float) -> bool:
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            if self._starting:
                return False
            await asyncio.sleep(seconds / 10)
        return True

    async def make(self, machine: MachineInput) -> Template:
        """The template of its class, made now unless it is there. Raises `Failed` and what a boot raises."""
        async with self._lock:
            key = templates.key(machine, await self._booter.box())
            if self.store.find(key) is None:
                scratch = self.store.begin()
                try:
                    await self._save(key, templates.blank(machine), scratch)
                    await asyncio.to_thread(self.store.publish, scratch, key, templates.about(machine))
                finally:
                    self.store.sweep()
            found = self.store.find(key)
            if found is None:
                raise NotFound("the template was removed at once", hint="more are in use than are kept")
            return found

    async def close(self) -> None:
        """What is being made is given up."""
        tasks = tuple(self._wanted.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _save(self, key: str, machine: MachineInput, scratch: str) -> None:
        from knarr.engine.drivers.vm_boot import Boot, uid_of

        name = PREFIX + key
        await self._booter.destroy(name)
        tap = None if machine.attachment is None else taps.unconnected(self._s.instance)
        boot = Boot(
            key=name,
            machine=machine,
            records=(),
            uid=uid_of(self._s.instance, key, set()),
            template=scratch,
            tap=tap,
        )
        try:
            _files(scratch, boot.uid, plan.memory_class(machine.resources.memory))
            pid, agent = await self._booter.make(boot)
            os.setpriority(os.PRIO_PROCESS, pid, _LOWEST)
            try:
                await agent.ask(
                    "prepare", records=request.prepare_records(network=machine.attachment is not None)
                )
            finally:
                agent.close()
            await asyncio.wait_for(_freeze(self._s.holder, name, scratch), _SAVE_SECONDS)
        finally:
            if tap is not None:
                os.close(tap)
            await self._booter.destroy(name)


def template_view(template: Template) -> dict[str, Any]:
    return {
        "key": template.key,
        **asdict(template.about),
        "size": template.size,
        "created": template.created,
        "used": template.used,
    }


def _files(scratch: str, uid: int, size: int) -> None:
    path = os.path.join(scratch, templates.MEMORY)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, size)
        os.fchown(fd, uid, uid)
    finally:
        os.close(fd)


async def _freeze(holder: HolderClient, key: str, scratch: str) -> None:
    """Stop the machine for good and have its devices' state written; its memory is in its file already."""
    path = os.path.join(scratch, templates.STATE)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        async with _monitor(holder, key) as qmp:
            await qmp.give("state", fd)
            await qmp.execute("migrate-set-capabilities", capabilities=_capabilities(shared=True))
            await qmp.execute("stop")
            await qmp.execute("migrate", uri="fd:state")
            await qmp.migrated()
    finally:
        os.close(fd)
