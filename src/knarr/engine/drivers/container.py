"""The container wall: folders, network and plan put together, the keeper asked to do it.

Out of scope: the steps themselves (`containers.plan`, `kernel.steps`) and everything that is the same for all
walls (`engine.lifecycle`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import stat
import tempfile
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING, Any

from knarr.containers import plan as planner
from knarr.containers.security import DeviceNode
from knarr.engine.driver import ExitResult, PathStat, Services, Stats, Workload
from knarr.engine.drivers import archives, exitwatch, limitchecks
from knarr.engine.drivers.execs import ContainerExec
from knarr.engine.drivers.failures import start_failure, userns_failure
from knarr.engine.drivers.pipes import set_size
from knarr.engine.drivers.stdin import StdinTable
from knarr.keeper.link import KeeperError
from knarr.kernel import cgroups, changes, proctable, relimit, userids
from knarr.model import names, state
from knarr.model.errors import Conflict, Failed, Invalid, Unsupported
from knarr.model.workload import NetworkMode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from knarr.engine.driver import ExecSession, Stdin
    from knarr.kernel.changes import Change
    from knarr.kernel.plan import Plan
    from knarr.kernel.proctable import Proc
    from knarr.model.namespaces import IdMap
    from knarr.model.resource import Image
    from knarr.model.workload import Device, ExecSpec, Process, Resources, WorkloadSpec


class ContainerDriver:
    """`driver.Driver` for `isolation = container`."""

    def __init__(self, services: Services) -> None:
        self._s = services
        self._stdin = StdinTable(services.holder)

    # before the start

    def check(self, spec: WorkloadSpec, image: Image) -> tuple[str, ...]:
        del image
        layout = self._s.facts.cgroups
        warnings = limitchecks.check_container(layout, spec.resources) if layout.version else ()
        if spec.kernel:
            return ("a kernel of one's own is ignored: a container runs on the host's", *warnings)
        return warnings

    def plan(self, w: Workload) -> tuple[str, ...]:
        return planner.plan(self._input(w, _etc_names(w))).describe()

    async def prepare(self, w: Workload) -> None:
        upper = os.path.join(w.dir, "upper")
        os.mkdir(upper, 0o755)
        os.chmod(upper, 0o755)  # it becomes the workload's "/": our umask is not for its users
        os.mkdir(os.path.join(w.dir, "work"), 0o700)

    async def remove(self, w: Workload) -> None:
        """All of it lies in `w.dir`."""

    def _input(self, w: Workload, etc_files: dict[str, str]) -> planner.ContainerInput:
        return planner.ContainerInput(
            id=w.id,
            instance=self._s.instance,
            run=self._s.run,
            dir=w.dir,
            rootfs=w.image.rootfs,
            process=w.process,
            hostname=w.hostname,
            mounts=w.mounts,
            read_only=w.spec.read_only,
            network=w.spec.network,
            resources=w.spec.resources,
            disks=limitchecks.numbers(w.spec.resources),
            security=w.spec.security,
            etc_files=etc_files,
            devices=tuple(map(_node, w.spec.devices)),
            shm_size=w.spec.shm_size,
            sysctls=w.spec.sysctls,
            sharing=w.spec.sharing,
            ids=w.ids,
            facts=self._s.facts,
        )

    # start and end

    async def start(self, w: Workload) -> int:
        with ExitStack() as undo:
            with ExitStack() as held:
                fds = await self._namespaces(w, held)
                undo.callback(self._s.network.disconnect, w)
                netns = await self._s.network.connect(w, vm=False, netns=fds.get("netns"))
                if netns is not None:
                    held.callback(os.close, netns)
                    fds["netns"] = netns
                plan = planner.plan(self._input(w, self._s.network.etc_files(w)))
                pid = await self._launch(w, plan, fds)
            undo.pop_all()
        return pid

    async def _namespaces(self, w: Workload, held: ExitStack) -> dict[str, int]:
        if w.ids is None:
            return {}
        network = w.spec.network in (NetworkMode.BRIDGE, NetworkMode.NONE)
        try:
            fds = await self._s.keeper.user_namespace(w.ids, network=network)
        except KeeperError as error:
            raise userns_failure(w.name, error) from error
        for fd in fds.values():
            held.callback(os.close, fd)
        return fds

    async def _launch(self, w: Workload, plan: Plan, fds: dict[str, int]) -> int:
        streams = {
            "stdin": w.spec.stdin_open and not w.spec.tty,
            "stdout": not w.spec.tty,
            "stderr": not w.spec.tty,
            "tty": w.spec.tty,
            "log": os.path.join(w.dir, "log"),
        }
        joins = {f"join-{kind}": donor for kind, donor in w.spec.sharing.joins().items()}
        try:
            return await self._s.keeper.start(w.id, plan, fds, streams, joins)
        except KeeperError as error:
            raise start_failure(w.name, w.process.args[0], error) from error

    async def adopt(self, w: Workload) -> None:
        """Everything that lives is with keeper and holder already."""

    async def exited(self, w: Workload, wait_status: int) -> ExitResult:
        oom = cgroups.oom_killed(self._groups(w))
        code = state.EXIT_UNKNOWN if wait_status < 0 else state.exit_code(wait_status)
        return ExitResult(code=code, oom_killed=oom)

    async def cleanup(self, w: Workload) -> None:
        self._stdin.drop(w.id)
        self._s.network.disconnect(w)

    def _groups(self, w: Workload) -> dict[str, str]:
        return planner.groups(self._s.facts, self._s.instance, w.id)

    # while it runs

    async def signal(self, w: Workload, signum: int) -> None:
        await self._send(w, signum, None)

    async def _send(self, w: Workload, signum: int, exec_id: str | None) -> None:
        """To one that has just ended: its exit is on the way."""
        try:
            await self._s.keeper.signal(w.id, signum, exec_id)
        except KeeperError as error:
            if error.errno != errno.ESRCH:
                raise

    async def freeze(self, w: Workload, *, frozen: bool) -> None:
        try:
            await asyncio.to_thread(cgroups.freeze, self._groups(w), frozen=frozen)
        except FileNotFoundError:
            raise Conflict(f"workload {w.name!r} has just ended") from None
        except (OSError, KeyError) as error:
            raise Failed(
                f"workload {w.name!r} can't be frozen: {error}", hint="is a freezer cgroup mounted?"
            ) from error

    async def top(self, w: Workload) -> tuple[float, tuple[Proc, ...]]:
        found = []
        for pid in cgroups.pids(self._groups(w)):
            text = proctable.read(pid)
            if text is not None and (process := proctable.parse(pid, text)) is not None:
                uid, _ = userids.to_inside(w.ids, process.uid, 0)
                found.append(dataclasses.replace(process, uid=uid))
        return proctable.host_uptime(), tuple(found)

    async def update(self, w: Workload, resources: Resources) -> None:
        layout = self._s.facts.cgroups
        if not layout.version:
            raise Unsupported("container: this host has no control groups to hold limits")
        try:
            relimit.change(layout, self._groups(w), w.spec.resources, resources)
        except OSError as error:
            raise Failed(
                f"workload {w.name!r}: {os.path.basename(error.filename or '')}: {error.strerror}",
                hint="it may use more than that already",
            ) from error

    async def changes(self, w: Workload) -> list[Change]:
        async with AsyncExitStack() as stack:
            lower = await self._image_root(w, stack)
            upper = os.open(os.path.join(w.dir, "upper"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, upper)
            return await asyncio.to_thread(lambda: list(changes.read(upper, lower)))

    async def _image_root(self, w: Workload, stack: AsyncExitStack) -> int:
        """The image alone: under a writable layer that is empty."""
        empty = stack.enter_context(tempfile.TemporaryDirectory(dir=w.dir, prefix="empty-"))
        await self._s.keeper.mount(w.image.rootfs)
        root = await self._s.keeper.root(tree_id=w.image.rootfs.tree_id, upper=empty)
        stack.callback(os.close, root)
        opened = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
        stack.callback(os.close, opened)
        return opened

    async def exec(
        self, w: Workload, spec: ExecSpec, process: Process, *, detach: bool = False
    ) -> ExecSession:
        exec_id = names.new_id()
        streams: dict[str, Any] = {
            "stdin": spec.stdin_open and not spec.tty and not detach,
            "stdout": not spec.tty and not detach,
            "stderr": not spec.tty and not detach,
            "tty": spec.tty,
        }
        plan = planner.plan_exec(self._input(w, {}), process, w.pid)
        ended = self._s.execs.expect(exec_id)
        try:
            pid, fds = await self._s.keeper.exec(w.id, exec_id, plan, {}, streams)
        except KeeperError as error:
            ended.cancel()
            raise start_failure(w.name, process.args[0], error) from error
        except BaseException:
            ended.cancel()
            raise

        if not ended.done():
            exitwatch.watch(pid, ended)

        async def send_signal(signum: int) -> None:
            await self._send(w, signum, exec_id)

        return ContainerExec(exec_id, fds, ended, send_signal)

    async def stdin(self, w: Workload) -> Stdin:
        return self._stdin.take(w.id, w.name, tty=w.spec.tty)

    async def resize(self, w: Workload, columns: int, rows: int) -> None:
        master = self._s.holder.get(f"log/{w.id}/tty")
        if master is None:
            raise Conflict(f"workload {w.name!r} has no terminal any more")
        try:
            set_size(master, columns, rows)
        finally:
            os.close(master)

    async def stats(self, w: Workload) -> Stats:
        usage = cgroups.stats(self._groups(w))
        return Stats(
            cpu_ns=usage.cpu_ns,
            memory=usage.memory,
            memory_limit=w.spec.resources.memory or 0,
            pids=usage.pids,
            read_bytes=usage.read_bytes,
            write_bytes=usage.write_bytes,
            **_traffic(w),
        )

    # files

    async def stat_path(self, w: Workload, path: str) -> PathStat:
        async with AsyncExitStack() as stack:
            return await archives.stat_path(await self._root(w, stack), w.name, path)

    async def archive_get(self, w: Workload, path: str, write: Callable[[bytes], Awaitable[None]]) -> None:
        async with AsyncExitStack() as stack:
            await archives.get(await self._root(w, stack), w.name, path, write, ids=_live_ids(w))

    async def archive_put(self, w: Workload, path: str, read: Callable[[], Awaitable[bytes]]) -> None:
        async with AsyncExitStack() as stack:
            await archives.put(await self._root(w, stack), w.name, path, read, ids=_live_ids(w))

    async def export(self, w: Workload, write: Callable[[bytes], Awaitable[None]], *, layer: bool) -> None:
        upper = os.path.join(w.dir, "upper")
        if layer:
            fd = os.open(upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        else:
            await self._s.keeper.mount(w.image.rootfs)
            fd = await self._s.keeper.root(tree_id=w.image.rootfs.tree_id, upper=upper)
        try:
            await archives.export(fd, w.name, write, layer=layer)
        finally:
            os.close(fd)

    async def _root(self, w: Workload, stack: AsyncExitStack) -> int:
        """The tree as the workload sees it, or, when it does not run, image and writable layer."""
        keeper = self._s.keeper
        if w.status.running:
            fd = await keeper.root(w.id)
        else:
            upper, work = (os.path.join(w.dir, name) for name in ("upper", "work"))
            await keeper.mount(w.image.rootfs)
            fd = await keeper.root(tree_id=w.image.rootfs.tree_id, upper=upper, work=work)
        stack.callback(os.close, fd)
        return fd


def _live_ids(w: Workload) -> IdMap | None:
    """A running one's root has the ids that the host has; a stopped one's those inside."""
    return w.ids if w.status.running else None


def _node(device: Device) -> DeviceNode:
    """Looked at with every start: numbers of devices change."""
    try:
        status = os.stat(device.source)
    except OSError as error:
        raise Invalid(f"device {device.source!r}: {(error.strerror or '').lower()}") from error
    if not (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        raise Invalid(f"{device.source!r} is not a device", hint="mount files and folders with -v")
    name = (device.target or device.source).removeprefix("/dev/")
    return DeviceNode(name=name, mode=status.st_mode, number=status.st_rdev, access=device.access)


def _etc_names(w: Workload) -> dict[str, str]:
    """What a plan that is only printed shows."""
    return {f"/etc/{name}": os.path.join(w.dir, name) for name in ("resolv.conf", "hosts", "hostname")}


_OTHER_END = {"rx_bytes": "tx_bytes", "tx_bytes": "rx_bytes", "rx_packets": "tx_packets"}
_OTHER_END |= {"tx_packets": "rx_packets"}


def _traffic(w: Workload) -> dict[str, int]:
    """Counters of the host's end, so received and sent change places."""
    if w.spec.network is not NetworkMode.BRIDGE or w.attachment is None:
        return {}
    folder = f"/sys/class/net/{w.attachment.link}/statistics"
    return {name: _number(f"{folder}/{other}") for name, other in _OTHER_END.items()}


def _number(path: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0
