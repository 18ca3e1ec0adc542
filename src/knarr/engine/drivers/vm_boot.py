"""Booting a microVM: its descriptors, its jail, its folder servers, and the deadline with two more tries.

Where there is a template (`drivers.vm_templates`), a machine resumes it; one that does not answer boots cold.
Under TCG a boot hangs once in a while, so one that does not answer is killed and begun again; then it fails
with the console's last lines. Out of scope: the workload and all that comes after its start
(`drivers.microvm`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import stat
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from knarr.engine.drivers.vm_templates import Templates, resume
from knarr.kernel import facts
from knarr.kernel import fds as descriptors
from knarr.machines import accel, folders, jail, launch, plan, templates
from knarr.machines.agent import Agent, AgentGone
from knarr.machines.plan import Birth
from knarr.model.errors import Failed, KnarrError

if TYPE_CHECKING:
    from knarr.engine.driver import Services, Workload
    from knarr.kernel.plan import Plan
    from knarr.machines.accel import Accel
    from knarr.machines.kernels import GuestKernel
    from knarr.machines.wire import Records
    from knarr.model.resource import RootFs
    from knarr.model.workload import Mount

TRIES = 3
_DEADLINE = {"kvm": 10.0, "tcg": 10.0}
_DEADLINE_MAX = 120.0
_CONSOLE_TAIL = 600
_UID_BASE = 1 << 30
_END_SECONDS = 10.0
_LOWEST = 19


@dataclass(frozen=True, kw_only=True, slots=True)
class Boot:
    """One machine to be started; `key` is the keeper's id of it."""

    key: str
    machine: plan.MachineInput
    records: Records
    """the start request; empty = none"""
    uid: int
    binds: tuple[tuple[Mount, int], ...] = ()
    log: str | None = None
    """folder of the streams' files; None = what is written goes nowhere"""
    tap: int | None = None
    template: str = ""
    """folder of the template to resume or to make"""
    spare: bool = False
    """ahead of need: it yields to everything else"""


def deadline(kind: str) -> float:
    """Some eight times the usual time, more on a busy host."""
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    return min(_DEADLINE_MAX, _DEADLINE[kind] * max(1.0, load))


def renice(pid: int, value: int) -> None:
    """Every thread of it, for each has a priority of its own; those to come take it over."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.setpriority(os.PRIO_PROCESS, int(thread), value)


def uid_of(instance: str, workload: str, taken: set[int]) -> int:
    """Its own user id: 2^30, 14 bits of the instance, 16 of the workload, the next while taken."""
    base = _UID_BASE | (int(instance, 16) & 0x3FFF) << 16
    slot = int(workload[:4], 16)
    while base | slot in taken:
        slot = (slot + 1) & 0xFFFF
    return base | slot


async def stat_binds(mounts: tuple[Mount, ...]) -> tuple[tuple[Mount, int], ...]:
    """Sources of bind mounts with their modes. A missing one raises `Failed`."""
    found = []
    for mount in folders.wanted(mounts):
        try:
            found.append((mount, stat.S_IFMT(os.stat(mount.source or "").st_mode)))
        except OSError as error:
            raise Failed(f"mount source {mount.source!r}: {error.strerror}") from error
    return tuple(found)


class Booter:
    """Starts machines for one driver."""

    def __init__(self, services: Services) -> None:
        self._s = services
        self._lock = asyncio.Lock()
        self.templates = Templates(services, self)

    async def accelerator(self, kernel: GuestKernel) -> Accel:
        async with self._lock:
            return await asyncio.to_thread(accel.choose, self._s.run, kernel, plan.QEMU)

    async def boot(self, w: Workload, boot: Boot) -> tuple[int, Agent]:
        """Until the agent has the start request and answers. The machine is the keeper's from then on."""
        with self.templates.busy():
            resumed = await self._resume(w, boot)
            if resumed is not None:
                return resumed
            problem: KnarrError = AgentGone("the machine did not boot")
            for attempt in range(TRIES):
                try:
                    started = await self._try(w, boot)
                except AgentGone as error:
                    problem = error
                    await self.destroy(boot.key, len(boot.binds))
                    self._s.emit(w, "boot", {"attempt": str(attempt + 1), "result": "no answer"})
                except BaseException:
                    await self.destroy(boot.key, len(boot.binds))
                    raise
                else:
                    self.templates.want(boot.machine)
                    return started
        raise Failed(f"{problem.message} after {TRIES} boots{_tail(w.dir)}", hint=f"see {w.dir}/console.log")

    async def _resume(self, w: Workload, boot: Boot) -> tuple[int, Agent] | None:
        """The machine out of its template, or None: it is to boot cold, and the reason is noted."""
        template, reason = self.templates.find(boot.machine, await self.box())
        if template is None:
            _note(w, boot, {"boot": "cold", "reason": reason})
            return None
        machine = dataclasses.replace(boot.machine, birth=Birth.RESUME)
        try:
            started = await self._try(w, dataclasses.replace(boot, machine=machine, template=template.folder))
        except (KnarrError, OSError) as error:
            await self.destroy(boot.key)
            reason = error.message if isinstance(error, KnarrError) else str(error)
            self._s.emit(w, "template_fallback", {"template": template.key, "reason": reason})
            self.templates.spoiled(template)
            _note(w, boot, {"boot": "cold", "reason": "template failed"})
            return None
        except BaseException:
            await self.destroy(boot.key)
            raise
        _note(w, boot, {"boot": "template"})
        return started

    async def box(self) -> jail.Jail:
        """QEMU's, built once per version."""
        library = facts.native_program("template.so")
        return await asyncio.to_thread(jail.build, self._s.root, plan.QEMU, library)

    async def destroy(self, key: str, servers: int = 0) -> None:
        """Kill machine and folder servers, wait until the keeper has reaped them, forget them."""
        for name in (key, *(folders.server_id(key, index) for index in range(servers))):
            try:
                await self._s.keeper.signal(name, signal.SIGKILL)
            except OSError:
                continue
        self.forget_sockets(key)
        await self._forget(key)

    def forget_sockets(self, key: str) -> None:
        for prefix in ("agent", "qmp", "stdin", "in"):
            self._s.holder.delete(f"{prefix}/{key}")

    async def _forget(self, key: str) -> None:
        end = asyncio.get_running_loop().time() + _END_SECONDS
        while True:
            running, exits = await self._s.keeper.list()
            if key not in running:
                break
            if asyncio.get_running_loop().time() > end:
                raise Failed(f"machine {key[:12]} does not end", hint="its QEMU hangs in the kernel")
            await asyncio.sleep(0.01)
        if key in exits:
            await self._s.keeper.forget(key)

    async def _try(self, w: Workload, boot: Boot) -> tuple[int, Agent]:
        with ExitStack() as held:
            opened = self._open(w.dir, boot, held) | self._open_disks(w.image.rootfs, w.dir, held)
            await self._start_servers(boot, opened, held)
            return await self.ignite(boot, opened)

    async def make(self, boot: Boot) -> tuple[int, Agent]:
        """A machine to be saved: nothing is behind its disks and its card."""
        with ExitStack() as held:
            return await self.ignite(boot, self._open(boot.template, boot, held))

    async def ahead(self, boot: Boot, folder: str, rootfs: RootFs) -> tuple[int, Agent]:
        """A machine that resumes before there is a workload for it; `folder` is its workload's."""
        with ExitStack() as held:
            opened = self._open(folder, boot, held) | self._open_disks(rootfs, folder, held)
            return await self.ignite(boot, opened)

    async def ignite(self, boot: Boot, opened: dict[str, int]) -> tuple[int, Agent]:
        """From the keeper's start until the agent answers."""
        made = self.describe(boot, await self.box())
        pid = await self._s.keeper.start(boot.key, made, opened, _streams(boot))
        if boot.spare:
            renice(pid, _LOWEST)
        control = self._s.holder.get(f"agent/{boot.key}")
        if control is None:
            raise AgentGone("the machine's channel is gone")
        agent = Agent(control)
        patience = deadline(boot.machine.accel)
        try:
            if boot.records:
                agent.start(boot.records)
            if boot.machine.birth is Birth.RESUME:
                patience /= 3
                await asyncio.wait_for(resume(self._s.holder, boot.key), patience)
            await agent.hello(patience)
        except TimeoutError:
            agent.close()
            raise AgentGone("the machine did not resume in time") from None
        except BaseException:
            agent.close()
            raise
        return pid, agent

    def _open(self, folder: str, boot: Boot, held: ExitStack) -> dict[str, int]:
        """Descriptors by the plan's names; those that must outlive the daemon go to the holder as well."""

        def keep(fd: int) -> int:
            held.callback(os.close, fd)
            return fd

        def create(name: str) -> int:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            return keep(os.open(os.path.join(folder, name), flags, 0o600))

        opened = {
            "messages": create("qemu.log"),
            "console": create("console.log"),
            "status": create("vm-status"),
        }
        opened["errors"] = opened["messages"]
        if boot.machine.birth is Birth.RESUME:
            path = os.path.join(boot.template, templates.STATE)
            opened["state"] = keep(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        pairs = [("control", "agent"), ("qmp", "qmp")] + ([("input", "in")] if boot.machine.stdin else [])
        for name, prefix in pairs:
            ours, theirs = socket.socketpair()
            with ours:
                opened[name] = keep(theirs.detach())
                self._s.holder.put(f"{prefix}/{boot.key}", ours.fileno())
        if boot.tap is not None:
            opened["tap"] = boot.tap
        if boot.log is None:
            opened["stdout"] = opened["stderr"] = keep(os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC))
        return opened

    def _open_disks(self, rootfs: RootFs, folder: str, held: ExitStack) -> dict[str, int]:
        read = os.O_RDONLY | os.O_CLOEXEC
        opened = {}
        for name, path, how in (
            ("tree", rootfs.tree, read),
            ("map", self._s.images.disk_map(rootfs), read),
            ("pool", rootfs.pool, read),
            ("upper", os.path.join(folder, "upper.img"), os.O_RDWR | os.O_CLOEXEC),
        ):
            opened[name] = os.open(path, how)
            held.callback(os.close, opened[name])
        return opened

    async def _start_servers(self, boot: Boot, opened: dict[str, int], held: ExitStack) -> None:
        if not boot.binds:
            return
        box = await asyncio.to_thread(jail.build, self._s.root, jail.virtiofsd())
        for index, (mount, mode) in enumerate(boot.binds):
            name = folders.server_id(boot.key, index)
            path = os.path.join(self._s.run, f"{name}.sock")
            listening = descriptors.bind_unix(path, socket.SOCK_STREAM)
            held.callback(os.unlink, path)
            with listening:
                listening.listen(1)
                client = descriptors.connect_unix(path, socket.SOCK_STREAM)
                opened[f"folder{index}"] = client.detach()
                held.callback(os.close, opened[f"folder{index}"])
                server = folders.plan(mount, mode, self._confine(boot, box, name))
                fds = {
                    "listen": listening.fileno(),
                    "messages": opened["messages"],
                    "errors": opened["messages"],
                }
                await self._s.keeper.start(name, server, fds, {})

    def _confine(self, boot: Boot, box: jail.Jail, name: str) -> launch.Confinement:
        machine = boot.machine
        resources = launch.host_resources(plan.memory_class(machine.resources.memory), machine.resources)
        binds: tuple[tuple[str, str, bool], ...] = ()
        gid = boot.uid
        if name == boot.key:
            binds = ((os.path.dirname(machine.kernel.vmlinux), "/kernel", True),)
            if boot.template:
                memory = os.path.join(boot.template, templates.MEMORY)
                binds = (*binds, (memory, plan.MEMORY_FILE, machine.birth is Birth.RESUME))
            if machine.accel == "kvm":
                binds = (*binds, ("/dev/kvm", "/dev/kvm", False))
                gid = os.stat("/dev/kvm").st_gid
        return launch.confinement(
            box,
            uid=boot.uid,
            gid=gid,
            layout=self._s.facts.cgroups,
            instance=self._s.instance,
            name=name,
            resources=resources,
            binds=binds,
        )

    def describe(self, boot: Boot, box: jail.Jail) -> Plan:
        machine = plan.in_jail(boot.machine, box.program)
        confined = self._confine(boot, box, boot.key)
        preload = box.preload if machine.birth is Birth.RESUME else ""
        return launch.jailed(plan.argv(machine), plan.fd_numbers(machine), confined, preload=preload)


def _note(w: Workload, boot: Boot, facts: dict[str, str]) -> None:
    """For the event `start`."""
    if boot.key == w.id:
        w.private["start"] = facts


def _streams(boot: Boot) -> dict[str, Any]:
    """The terminal is in the guest, so the keeper makes plain pipes only."""
    if boot.log is None:
        return {}
    return {"stdin": False, "stdout": True, "stderr": not boot.machine.tty, "tty": False, "log": boot.log}


def _tail(folder: str) -> str:
    """The console's last lines: said by the guest, so made printable."""
    try:
        with open(os.path.join(folder, "console.log"), "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _CONSOLE_TAIL))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [
        "".join(char if char.isprintable() else "?" for char in line)
        for line in text.splitlines()
        if line.strip()
    ]
    return "; its console ends: " + " | ".join(lines[-4:]) if lines else "; its console is empty"
