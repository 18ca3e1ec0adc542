"""Booting a microVM: its descriptors, its jail, its folder servers, and the deadline with two more tries.

Under TCG a boot hangs once in a while, so one that does not answer is killed and begun again; then it fails
with the console's last lines. Out of scope: the workload and all that comes after its start
(`drivers.microvm`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from knarr.kernel import fds as descriptors
from knarr.machines import accel, folders, jail, launch, plan
from knarr.machines.agent import Agent, AgentGone
from knarr.model.errors import Failed, KnarrError

if TYPE_CHECKING:
    from knarr.engine.driver import Services, Workload
    from knarr.kernel.plan import Plan
    from knarr.machines.accel import Accel
    from knarr.machines.kernels import GuestKernel
    from knarr.machines.wire import Records
    from knarr.model.workload import Mount

TRIES = 3
_DEADLINE = {"kvm": 10.0, "tcg": 10.0}
_DEADLINE_MAX = 120.0
_CONSOLE_TAIL = 600
_UID_BASE = 1 << 30
_END_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Boot:
    """One machine to be started; `key` is the keeper's id of it."""

    key: str
    machine: plan.MachineInput
    records: Records
    uid: int
    binds: tuple[tuple[Mount, int], ...] = ()
    log: str | None = None
    """folder of the streams' files; None = what is written goes nowhere"""
    tap: int | None = None


def deadline(kind: str) -> float:
    """Some eight times the usual time, more on a busy host."""
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    return min(_DEADLINE_MAX, _DEADLINE[kind] * max(1.0, load))


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

    async def accelerator(self, kernel: GuestKernel) -> Accel:
        async with self._lock:
            return await asyncio.to_thread(accel.choose, self._s.run, kernel, plan.QEMU)

    async def boot(self, w: Workload, boot: Boot) -> tuple[int, Agent]:
        """Until the agent has the start request and answers. The machine is the keeper's from then on."""
        problem: KnarrError = AgentGone("the machine did not boot")
        for attempt in range(TRIES):
            try:
                return await self._try(w, boot)
            except AgentGone as error:
                problem = error
                await self.destroy(boot.key, len(boot.binds))
                self._s.emit(w, "boot", {"attempt": str(attempt + 1), "result": "no answer"})
            except BaseException:
                await self.destroy(boot.key, len(boot.binds))
                raise
        raise Failed(f"{problem.message} after {TRIES} boots{_tail(w.dir)}", hint=f"see {w.dir}/console.log")

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
        for prefix in ("agent", "qmp", "stdin"):
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
            opened = self._open(w, boot, held)
            box = await asyncio.to_thread(jail.build, self._s.root, plan.QEMU)
            await self._start_servers(boot, opened, held)
            pid = await self._s.keeper.start(boot.key, self._plan(boot, box), opened, _streams(boot))
        control = self._s.holder.get(f"agent/{boot.key}")
        if control is None:
            raise AgentGone("the machine's channel is gone")
        agent = Agent(control)
        try:
            agent.start(boot.records)
            await agent.hello(deadline(boot.machine.accel))
        except BaseException:
            agent.close()
            raise
        return pid, agent

    def _open(self, w: Workload, boot: Boot, held: ExitStack) -> dict[str, int]:
        """Descriptors by the plan's names; those that must outlive the daemon go to the holder as well."""

        def keep(fd: int) -> int:
            held.callback(os.close, fd)
            return fd

        def create(name: str) -> int:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            return keep(os.open(os.path.join(w.dir, name), flags, 0o600))

        rootfs = w.image.rootfs
        disk_map = self._s.images.disk_map(rootfs)
        read = os.O_RDONLY | os.O_CLOEXEC
        opened = {
            "tree": keep(os.open(rootfs.tree, read)),
            "map": keep(os.open(disk_map, read)),
            "pool": keep(os.open(rootfs.pool, read)),
            "upper": keep(os.open(os.path.join(w.dir, "upper.img"), os.O_RDWR | os.O_CLOEXEC)),
            "messages": create("qemu.log"),
            "console": create("console.log"),
            "status": create("vm-status"),
        }
        opened["errors"] = opened["messages"]
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
        resources = launch.host_resources(plan.memory_class(machine.resources.memory), machine.resources.cpus)
        binds: tuple[tuple[str, str, bool], ...] = ()
        gid = boot.uid
        if name == boot.key:
            binds = ((os.path.dirname(machine.kernel.vmlinux), "/kernel", True),)
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

    def _plan(self, boot: Boot, box: jail.Jail) -> Plan:
        return self.describe(boot, box)

    def describe(self, boot: Boot, box: jail.Jail) -> Plan:
        machine = plan.in_jail(boot.machine, box.program)
        return launch.jailed(plan.argv(machine), plan.fd_numbers(machine), self._confine(boot, box, boot.key))


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
