"""The microVM wall: the same image, the same verbs, behind a kernel of its own.

What a container's verbs do with system calls, these do with messages to the guest's agent. Exit codes come
from the file that QEMU appends to before the machine is gone. Out of scope: booting (`drivers.vm_boot`), the
guest's side (`csrc/agent`), what is the same for all walls (`engine.lifecycle`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import AsyncExitStack, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from knarr.engine.driver import ExitResult, PathStat, Services, Stats, Workload
from knarr.engine.drivers import limitchecks, vm_boot, vm_guest, vm_leftovers, vm_slots
from knarr.engine.drivers.failures import hint_of, hinted
from knarr.engine.drivers.vm_idle import IdleMachines
from knarr.engine.drivers.vm_streams import VmExec, VmStdinTable
from knarr.engine.drivers.vm_templates import template_view
from knarr.keeper import logfiles
from knarr.kernel import caps, cgroups, changes, facts, proctable, relimit
from knarr.machines import accel, disks, folders, jail, launch, plan, request, status, wire
from knarr.machines.agent import Agent, AgentGone
from knarr.machines.kernels import GuestKernel, KernelStore
from knarr.machines.plan import MachineInput
from knarr.model import names, state
from knarr.model.errors import Conflict, Failed, KnarrError, Unsupported
from knarr.model.workload import NetworkMode, Process

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
    from contextlib import AbstractAsyncContextManager

    from knarr.engine.driver import ExecSession, Stdin
    from knarr.engine.drivers.vm_slots import Slot
    from knarr.kernel.changes import Change
    from knarr.kernel.proctable import Proc
    from knarr.machines.templates import Template
    from knarr.model.resource import Image
    from knarr.model.workload import ExecSpec, Resources, WorkloadSpec

T = TypeVar("T")
_SILENCE = 5.0
"""seconds between SIGKILL to the workload inside and SIGKILL to a QEMU whose agent does nothing"""
_CHANGES_MAX = 256 << 20
_LAST_WORDS = 15.0
"""seconds that one gets whose workload has ended, for its last output"""
_CONFIRM_PAUSES = (0.002, 0.005, 0.01, 0.02, 0.05)
_CONFIRM_SECONDS = 60.0


class MicrovmDriver:
    """`driver.Driver` for `isolation = microvm`."""

    def __init__(self, services: Services) -> None:
        self._s = services
        self._kernels = KernelStore(services.root, facts.native_program("agent"))
        self._kernel_lock = asyncio.Lock()
        self._boot = vm_boot.Booter(services)
        self._stdin = VmStdinTable(services.holder)
        self._agents: dict[str, Agent] = {}
        self._uids: dict[str, int] = {}
        self._slots = vm_slots.Slots(services, self._boot, self._uids)
        self._idle = IdleMachines(self._boot, self._idle_machine)
        self._tasks: set[asyncio.Task[None]] = set()

    # before the start

    def check(self, spec: WorkloadSpec, image: Image) -> tuple[str, ...]:
        del image
        if spec.network is NetworkMode.HOST:
            raise Unsupported(
                "isolation microvm can't do network host: a machine has a network stack of its own",
                hint="use the default bridge, or none",
            )
        if spec.devices:
            raise Unsupported(
                f"isolation microvm can't do device {spec.devices[0].source!r}: a machine has its own",
                hint="use --isolation container",
            )
        limitchecks.check_machine(spec.resources)
        folders.check(spec.mounts)
        return ()

    def plan(self, w: Workload) -> tuple[str, ...]:
        kernel = self._kernels.current() or GuestKernel(version="?", vmlinux="/kernel/vmlinux", initramfs="?")
        machine = plan.MachineInput(
            kernel=kernel,
            accel="tcg",
            tsc_khz=0,
            resources=w.spec.resources,
            stdin=w.spec.stdin_open,
            tty=w.process.tty,
            attachment=w.attachment,
        )
        box = jail.Jail(root=f"{self._s.root}/jails/qemu", program=plan.QEMU)
        steps = self._boot.describe(
            vm_boot.Boot(key=w.id, machine=machine, records=(), uid=0), box
        ).describe()
        return (*steps, *(f"guest: {line}" for line in request.describe(self._guest(w, ()))))

    def reserve(self, spec: WorkloadSpec, image: Image) -> str | None:
        return self._slots.reserve(spec, image.rootfs)

    async def prepare(self, w: Workload) -> None:
        if self._slots.own(w.id):
            return
        await asyncio.to_thread(disks.make_upper, self._s.root, os.path.join(w.dir, "upper.img"))

    async def remove(self, w: Workload) -> None:
        """All of it lies in `w.dir`, which no machine may use any more."""
        await self._slots.drop(w.id)
        async with self._idle.closed(w):
            return

    def wanting(self, w: Workload) -> str:
        return "" if w.spec.kernel or self._kernels.current() else "guest kernel"

    async def provision(self, w: Workload, tell: Callable[[str], None]) -> None:
        await self._kernel(w, tell)

    async def describe(self) -> dict[str, str]:
        """The kernel and the accelerator, as far as they are known, and why."""
        kernel = self._kernels.current()
        found = None if kernel is None else accel.remembered(self._s.run, kernel)
        return {
            "kernel": kernel.version if kernel else "fetched at the first start",
            "accelerator": found.kind if found else "found out at the first start",
            "reason": found.reason if found else "",
            "templates": str(len(self._boot.templates.store.list())),
            "slots": str(len(self._slots)),
        }

    def templates(self) -> list[dict[str, Any]]:
        return [self._view(item) for item in self._boot.templates.store.list()]

    def _view(self, template: Template) -> dict[str, Any]:
        return {**template_view(template), "slots": self._slots.count(template.about)}

    async def make_template(self, spec: WorkloadSpec) -> dict[str, Any]:
        kernel = await self._guest_kernel(spec.kernel)
        chosen = await self._boot.accelerator(kernel)
        machine = plan.MachineInput(
            kernel=kernel,
            accel=chosen.kind,
            tsc_khz=chosen.tsc_khz,
            resources=spec.resources,
            attachment=None if spec.network is NetworkMode.NONE else plan.NOWHERE,
        )
        return self._view(await self._boot.templates.make(machine))

    async def remove_template(self, key: str) -> dict[str, Any]:
        return self._view(await asyncio.to_thread(self._boot.templates.store.remove, key))

    async def close(self) -> None:
        await self._slots.close()
        await self._boot.templates.close()

    async def sweep(self, running: Collection[str]) -> set[str]:
        ended = await vm_slots.sweep(self._s, self._boot, running)
        await vm_leftovers.sweep(self._s, [key for key in running if key not in ended])
        return ended

    async def _kernel(self, w: Workload, tell: Callable[[str], None] = lambda _: None) -> GuestKernel:
        return await self._guest_kernel(w.spec.kernel, tell)

    async def _guest_kernel(
        self, own: str | None, tell: Callable[[str], None] = lambda _: None
    ) -> GuestKernel:
        async with self._kernel_lock:
            if own is not None:
                return await asyncio.to_thread(self._kernels.bring, own)
            return await asyncio.to_thread(self._kernels.fetch, tell)

    def _guest(self, w: Workload, binds: tuple[request.Folder, ...]) -> request.GuestInput:
        etc = self._s.network.etc_files(w) if w.status.alive else {}
        return vm_guest.guest_input(w, binds, etc)

    # start and end

    async def start(self, w: Workload) -> int:
        kernel = await self._kernel(w)
        w.exit_hook = vm_slots.no_run
        slot = await self._slots.take(w, kernel.version)
        if slot is not None:
            try:
                return await self._start(w, kernel, slot)
            except AgentGone as error:
                self._s.emit(w, "slot_fallback", {"reason": error.message})
            except BaseException:
                # a port that is taken, a full disk: it may have failed before the machine was assigned
                w.exit_hook = vm_slots.no_run
                await self._slots.abandon(slot)
                raise
        return await self._start(w, kernel)

    async def _start(self, w: Workload, kernel: GuestKernel, slot: Slot | None = None) -> int:
        chosen = await self._boot.accelerator(kernel)
        async with self._idle.closed(w), AsyncExitStack() as undo:
            tap = await self._s.network.connect(w, vm=True)
            undo.callback(self._s.network.disconnect, w)
            undo.callback(self._let_go, w)
            if tap is not None:
                undo.callback(os.close, tap)
            binds = await vm_boot.stat_binds(w.mounts)
            guest = self._guest(w, folders.guest_folders(binds))
            machine = plan.MachineInput(
                kernel=kernel,
                accel=chosen.kind,
                tsc_khz=chosen.tsc_khz,
                resources=w.spec.resources,
                attachment=w.attachment,
                stdin=w.spec.stdin_open,
                tty=w.process.tty,
                folders=tuple(item.tag for item in guest.folders),
            )
            log = os.path.join(w.dir, "log")
            boot = vm_boot.Boot(
                key=w.id,
                machine=machine,
                records=request.start_records(guest, time_ns=time.time_ns(), seed=os.urandom(64)),
                uid=self._uid(w),
                binds=binds,
                log=log,
                tap=tap,
            )
            w.private.update(kernel=kernel.version, accel=chosen.kind, servers=len(binds), base=_sizes(log))
            w.private["memory"] = plan.memory_class(w.spec.resources.memory)
            w.private["vcpus"] = plan.vcpus(w.spec.resources)
            self._s.save(w)
            w.exit_hook = lambda _status: not status.read(w.dir).began
            pid = await self._run(w, boot, slot)
            undo.pop_all()
        if tap is not None:
            os.close(tap)
        return pid

    async def _run(self, w: Workload, boot: vm_boot.Boot, slot: Slot | None) -> int:
        """Boot, then wait until the program runs; a program that could not be executed is an error here."""
        with self._boot.templates.busy():
            if slot is None:
                pid, agent = await self._boot.boot(w, boot)
            else:
                pid, agent = await self._slots.assign(slot, boot)
                w.private["start"] = {"boot": "slot"}
            self._take_up(w, agent)
            await self._until_runs(w, boot, agent)
        w.exit_hook = None
        self._slots.started(w, boot.machine, warm=slot is not None)
        return pid

    async def _until_runs(self, w: Workload, boot: vm_boot.Boot, agent: Agent) -> None:
        try:
            await agent.started()
        except AgentGone as error:
            # the machine may have ended by itself before its first words arrived: the file knows
            told = status.read(w.dir)
            if not told.began:
                await self._boot.destroy(w.id, len(boot.binds))
                raise _start_error(told) or error from error
        except BaseException as error:
            await self._boot.destroy(w.id, len(boot.binds))
            if isinstance(error, Failed):
                raise hinted(error) from error
            raise

    def _uid(self, w: Workload) -> int:
        found = vm_boot.uid_of(self._s.instance, w.id, set(self._uids.values()))
        self._uids[w.id] = w.private["uid"] = found
        return found

    def _take_up(self, w: Workload, agent: Agent) -> None:
        self._agents[w.id] = agent
        self._spawn(self._confirm(w, agent))

    async def adopt(self, w: Workload) -> None:
        if "uid" in w.private:
            self._uids[w.id] = int(w.private["uid"])
        fd = self._s.holder.get(f"agent/{w.id}")
        if fd is None:
            raise Failed(f"the channel to machine {w.name!r} is gone", hint="kill it and start it again")
        agent = Agent(fd)
        self._take_up(w, agent)
        self._spawn(self._settle(w, agent))

    async def _settle(self, w: Workload, agent: Agent) -> None:
        """A daemon that died between boot and request leaves a machine without workload: it can't go on."""
        found = await agent.hello(vm_boot.deadline(w.private.get("accel", "tcg")))
        if found is wire.State.BOOTED and not status.read(w.dir).told:
            await asyncio.sleep(_SILENCE)
            if not status.read(w.dir).told:
                w.error = "the daemon ended before the start did"
                await self._s.keeper.signal(w.id, signal.SIGKILL)

    async def _confirm(self, w: Workload, agent: Agent) -> None:
        """Let an ended machine go once all it says it wrote has come through QEMU's pipes into the log."""
        ended = await agent.ended
        base = w.private.get("base", [0, 0])
        wanted = [start + wire.number(ended, name) for start, name in zip(base, ("out", "err"), strict=True)]
        for pause in (*_CONFIRM_PAUSES, *([0.1] * int(_CONFIRM_SECONDS / 0.1))):
            if all(
                have >= want for have, want in zip(_sizes(os.path.join(w.dir, "log")), wanted, strict=True)
            ):
                break
            await asyncio.sleep(pause)
        agent.power_off()

    async def exited(self, w: Workload, wait_status: int) -> ExitResult:
        told = status.read(w.dir)
        if told.exit_code is not None:
            return ExitResult(code=told.exit_code, oom_killed=told.oom)
        if wait_status > 0 and wait_status & 0x7F:
            # with an error it never began, and the signal was ours
            return ExitResult(code=125 if w.error else state.exit_code(wait_status), oom_killed=told.oom)
        return ExitResult(code=state.EXIT_UNKNOWN, oom_killed=told.oom)

    async def cleanup(self, w: Workload) -> None:
        self._let_go(w)
        for index in range(int(w.private.get("servers", 0))):
            try:
                await self._s.keeper.signal(folders.server_id(w.id, index), signal.SIGKILL)
            except OSError:
                continue  # it ended with its machine
        self._s.network.disconnect(w)

    def _let_go(self, w: Workload) -> None:
        agent = self._agents.pop(w.id, None)
        if agent is not None:
            agent.close()
        self._stdin.drop(w.id)
        self._uids.pop(w.id, None)
        self._boot.forget_sockets(w.id)
        w.exit_hook = None

    def _agent(self, w: Workload) -> Agent:
        agent = self._agents.get(w.id)
        if agent is None or agent.closed:
            raise Conflict(f"machine {w.name!r} does not answer", hint="it is ending, or has to be killed")
        return agent

    # while it runs

    async def signal(self, w: Workload, signum: int) -> None:
        agent = self._agents.get(w.id)
        if agent is not None:
            agent.signal(signum)
        if signum == signal.SIGKILL:
            self._spawn(self._kill_if_silent(w, 0.0 if agent is None or agent.closed else _SILENCE))

    async def _kill_if_silent(self, w: Workload, patience: float) -> None:
        """A workload that died by its SIGKILL has told so; then only its machine's end is slow."""
        pid = w.pid
        await asyncio.sleep(patience)
        if status.read(w.dir).exit_code is not None:
            # so it says; a guest that broke its agent could say so and run on for ever
            await asyncio.sleep(_LAST_WORDS)
        if w.pid == pid and w.status.running:
            await self._s.keeper.signal(w.id, signal.SIGKILL)

    async def freeze(self, w: Workload, *, frozen: bool) -> None:
        """The guest's cgroup; the agent goes on, so that files can be copied and the machine be ended."""
        await self._agent(w).ask("freeze" if frozen else "thaw")

    async def top(self, w: Workload) -> tuple[float, tuple[Proc, ...]]:
        told = await self._agent(w).ask("top")
        parsed = (proctable.parse(int(pid), text) for pid, text in told.items() if pid.isdecimal())
        return proctable.uptime(told.get("uptime", b"")), tuple(item for item in parsed if item is not None)

    async def update(self, w: Workload, resources: Resources) -> None:
        """The guest's own cgroup, and the one around QEMU; what the machine was built with stays."""
        size = int(w.private.get("memory", plan.memory_class(w.spec.resources.memory)))
        if plan.memory_class(resources.memory) > size and resources.memory is not None:
            raise Unsupported(
                f"isolation microvm can't give a running machine of {size >> 20} MiB more memory",
                hint="stop it, update it, start it",
            )
        if plan.vcpus(resources) > int(w.private.get("vcpus", plan.vcpus(w.spec.resources))):
            raise Unsupported(
                "isolation microvm can't give a running machine more virtual cpus",
                hint="stop it, update it, start it",
            )
        await self._agent(w).ask("update", records=request.all_limit_records(resources))
        layout = self._s.facts.cgroups
        around = [launch.host_resources(size, item) for item in (w.spec.resources, resources)]
        relimit.change(layout, cgroups.group_paths(layout, self._s.instance, w.id), around[0], around[1])

    async def changes(self, w: Workload) -> list[Change]:
        found = bytearray()

        async def collect(data: bytes) -> None:
            if len(found) > _CHANGES_MAX:
                raise Failed(f"workload {w.name!r} has changed too many files to list")
            found.extend(data)

        async with self._files(w) as agent:
            await _named(w, agent.archive("diff", "/", collect))
        return changes.parse(bytes(found))

    async def exec(
        self, w: Workload, spec: ExecSpec, process: Process, *, detach: bool = False
    ) -> ExecSession:
        records = (
            *request.process_records(process, caps.mask(process.capabilities), vm_guest.call_filter(process)),
            ("stdin", b"%d" % (spec.stdin_open and not detach)),
            ("detach", b"%d" % detach),
        )
        agent = self._agent(w)
        try:
            session = await agent.exec(records)
        except Failed as error:
            raise hinted(error) from error
        return VmExec(names.new_id(), session, tty=process.tty)

    async def stdin(self, w: Workload) -> Stdin:
        return self._stdin.take(w.id, w.name, tty=w.process.tty)

    async def resize(self, w: Workload, columns: int, rows: int) -> None:
        self._agent(w).resize(columns, rows)

    async def stats(self, w: Workload) -> Stats:
        told = await self._agent(w).ask("stats")
        read, written = status.disk_traffic(told.get("io", b""))
        return Stats(
            cpu_ns=max(0, wire.number(told, "cpu_ns")),
            memory=max(0, wire.number(told, "memory")),
            memory_limit=w.spec.resources.memory or 0,
            pids=max(0, wire.number(told, "pids")),
            read_bytes=read,
            write_bytes=written,
            **status.net_traffic(told.get("net", b"")),
        )

    # files

    async def stat_path(self, w: Workload, path: str) -> PathStat:
        async with self._files(w) as agent:
            size, mode, mtime, name, target = await _named(w, agent.stat_path(path))
        return PathStat(name=name, size=size, mode=mode, mtime=mtime, link_target=target)

    async def archive_get(self, w: Workload, path: str, write: Callable[[bytes], Awaitable[None]]) -> None:
        async with self._files(w) as agent:
            await _named(w, agent.archive("get", path, write))

    async def archive_put(self, w: Workload, path: str, read: Callable[[], Awaitable[bytes]]) -> None:
        async with self._files(w) as agent:
            await _named(w, agent.unpack(path, read))

    async def export(self, w: Workload, write: Callable[[bytes], Awaitable[None]], *, layer: bool) -> None:
        async with self._files(w) as agent:
            await _named(w, agent.archive("upper" if layer else "tree", "/.", write))

    def _files(self, w: Workload) -> AbstractAsyncContextManager[Agent]:
        """The running machine, or one booted without the workload."""
        return nullcontext(self._agent(w)) if w.status.running else self._idle.open(w)

    async def _idle_machine(self, w: Workload) -> tuple[MachineInput, int]:
        await self._slots.drop(w.id)  # it has the disk
        kernel = await self._kernel(w)
        chosen = await self._boot.accelerator(kernel)
        machine = plan.MachineInput(kernel=kernel, accel=chosen.kind, tsc_khz=chosen.tsc_khz)
        return machine, vm_boot.uid_of(self._s.instance, w.id, set(self._uids.values()))

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(_quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _quietly(work: Awaitable[None]) -> None:
    """Work beside whose failure means that the machine is gone, which its exit tells anyway."""
    try:
        await work
    except (KnarrError, OSError):
        return


async def _named(w: Workload, work: Awaitable[T]) -> T:
    try:
        return await work
    except KnarrError as error:
        raise type(error)(f"{w.name}:{error.message}", hint=error.hint) from error


def _start_error(told: status.Told) -> KnarrError | None:
    if told.failure is None:
        return None
    code, text = told.failure
    return Failed(text, hint=hint_of(text), exit_code=code)


def _sizes(log: str) -> list[int]:
    return list(logfiles.totals(log).values())
