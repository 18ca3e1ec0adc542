"""What the engine asks of a wall: the `Driver` protocol, the values that cross it, and the live `Workload`.

A driver starts one workload, speaks to it and cleans up behind it. Out of scope: states, names, persistence,
events, auto-remove and log reading, which are the same for every wall and live in `engine.engine`.

The calls on one workload, in order (the engine holds the workload's lock for those marked *):

    check ─ plan ─ *prepare ─ *start ─ signal | exec | stdin | resize | stats | archive… ─ exited
                                └─ after a daemon restart: *adopt takes the place of *start
    then *cleanup, and at last *remove
"""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from knarr.model.state import Status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from knarr.images.store import ImageStore
    from knarr.keeper.holder import HolderClient
    from knarr.keeper.link import KeeperLink
    from knarr.kernel.changes import Change
    from knarr.kernel.facts import HostFacts
    from knarr.kernel.proctable import Proc
    from knarr.model.namespaces import IdMap
    from knarr.model.resource import Attachment, Image
    from knarr.model.workload import ExecSpec, Mount, PortMapping, Process, Resources, WorkloadSpec

STDOUT = 1
STDERR = 2


@dataclass(eq=False, kw_only=True, slots=True)
class Workload:
    """One workload as the daemon knows it. The engine alone changes it; drivers read it and keep
    `private`.
    """

    id: str
    name: str
    spec: WorkloadSpec
    image: Image
    process: Process
    """spec, image config and security profile merged"""
    hostname: str
    dir: str
    """ROOT/workloads/<id>; exists from create to remove"""
    mounts: tuple[Mount, ...] = ()
    """the spec's with the volumes' folders as sources"""
    ids: IdMap | None = None
    """of its user namespace; None = the host's"""
    created: int
    """nanoseconds since the epoch, as all times here"""
    status: Status = Status.CREATED
    pid: int = 0
    started: int = 0
    finished: int = 0
    exit_code: int = 0
    oom_killed: bool = False
    error: str = ""
    stopped: bool = False
    """somebody asked for its last end, so that no policy starts it again"""
    restarts: int = 0
    """by its policy, since somebody started it"""
    failures: int = 0
    """ends in a row with another code than 0"""
    health: dict[str, Any] = field(default_factory=dict)
    """{status, failing_streak, log} of its health check; empty without one"""
    attachment: Attachment | None = None
    """kept after the end, so that a second start gets the same address when it is still free"""
    ports: tuple[PortMapping, ...] = ()
    """with the host ports chosen; empty while not running"""
    warnings: tuple[str, ...] = ()
    private: dict[str, Any] = field(default_factory=dict)
    """plain JSON that the driver wants back after a daemon restart; saved with every change of state.
    `start`, if there, is text for the event of that name
    """
    exit_hook: Callable[[int], bool] | None = None
    """set by a driver inside `start`: gets the wait status of an exit; True = the driver deals with it
    (boots again)
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class ExitResult:
    """How a workload ended. `code` is docker's: 0-255, 128 + signal, or `state.EXIT_UNKNOWN`."""

    code: int
    oom_killed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats:
    """Counters of the workload itself (behind a VM: of the guest's cgroup), not of what runs it."""

    cpu_ns: int = 0
    memory: int = 0
    """bytes in use, without the page cache that can go at once"""
    memory_limit: int = 0
    """0 = none"""
    pids: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    tx_packets: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class PathStat:
    """docker cp's header. `mode` is st_mode; the front ends turn it into their own bits."""

    name: str
    size: int
    mode: int
    mtime: int
    """nanoseconds"""
    link_target: str = ""


class Stdin(Protocol):
    """The writing side of a workload's stdin. Raises `Conflict` when the workload has none."""

    async def write(self, data: bytes) -> None:
        """Waits while the workload does not read; a closed reader swallows the data."""

    async def close(self) -> None:
        """End of file for the workload, once and for all; repeating it is harmless."""

    async def release(self) -> None:
        """This client is done; the workload's stdin stays open."""


class ExecSession(Protocol):
    """One more process inside a running workload. `close` must be called whatever happens."""

    id: str
    """unique within the instance"""

    async def read(self) -> tuple[int, bytes] | None:
        """(STDOUT | STDERR, bytes), None at the end of both; not reading holds the process up."""

    async def write(self, data: bytes) -> None: ...

    async def close_stdin(self) -> None: ...

    async def resize(self, columns: int, rows: int) -> None: ...

    async def signal(self, signum: int) -> None: ...

    async def wait(self) -> int:
        """The exit code in docker's convention; 126 and 127 when the program could not be executed."""

    async def close(self) -> None:
        """Let go of the streams; the process itself goes on."""


class Network(Protocol):
    """The workload's place on the network, as drivers need it (`engine.network`)."""

    async def connect(self, w: Workload, *, vm: bool, netns: int | None = None) -> int | None:
        """Attach, publish ports, register names; sets `w.attachment` and `w.ports` and saves the record.

        The descriptor (network namespace, or tap of a VM) belongs to the caller; None for all but a bridge.
        `netns`: an empty namespace to set up (it stays the caller's) in place of one of the network's own.
        Must be called in every `start` before the keeper's, and `disconnect` in `cleanup`.
        """

    def reserve(self, workload: str) -> tuple[Attachment, int]:
        """A VM's place and tap ahead of its `connect`, which then makes no other."""

    def release(self, workload: str) -> None:
        """Give a reserved place back, unless it has been connected; harmless when repeated."""

    def disconnect(self, w: Workload) -> None:
        """Take all of it back; harmless when repeated."""

    def etc_files(self, w: Workload) -> dict[str, str]:
        """Write resolv.conf, hosts and hostname into `w.dir`; target inside → absolute source path."""


class ExecExits:
    """Wait statuses of execs that the keeper reaps, for the drivers whose execs are the keeper's children."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[int]] = {}

    def expect(self, exec_id: str) -> asyncio.Future[int]:
        """To be called before the exec is asked for; cancel the future to forget it."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[exec_id] = future
        future.add_done_callback(lambda _: self._waiting.pop(exec_id, None))
        return future

    def tell(self, exec_id: str, wait_status: int) -> None:
        future = self._waiting.get(exec_id)
        if future is not None and not future.done():
            future.set_result(wait_status)


@dataclass(frozen=True, kw_only=True, slots=True)
class Services:
    """What the composition root hands every driver."""

    root: str
    run: str
    instance: str
    keeper: KeeperLink
    holder: HolderClient
    """short blocking calls: descriptors by name"""
    images: ImageStore
    network: Network
    facts: HostFacts
    execs: ExecExits
    save: Callable[[Workload], None]
    """write the record now (the engine does it at every change of state anyway)"""
    emit: Callable[[Workload, str, dict[str, str]], None]
    """(workload, action, attributes): an event, such as a cold start or a second boot"""


class Driver(Protocol):
    """One wall. Methods that a wall can't do raise `Unsupported` naming wall and verb."""

    def check(self, spec: WorkloadSpec, image: Image) -> tuple[str, ...]:
        """Refuse what this wall can't do; the answer is warnings for the creator."""

    def plan(self, w: Workload) -> tuple[str, ...]:
        """The steps of a start as text, without doing any of them."""

    async def prepare(self, w: Workload) -> None:
        """Make what lasts from create to remove inside `w.dir` (the writable layer); undone by `remove`."""

    async def start(self, w: Workload) -> int:
        """Start the program and return the host's pid of what the keeper runs. `w.dir/log` exists.

        Raises a KnarrError after taking everything back; exit_code 126 and 127 for a program that can't
        be executed.
        """

    async def adopt(self, w: Workload) -> None:
        """The daemon is new, the workload runs: take up channels again."""

    async def signal(self, w: Workload, signum: int) -> None:
        """Send a signal to the workload's PID 1. SIGKILL must end it even when nothing answers inside."""

    async def freeze(self, w: Workload, *, frozen: bool) -> None:
        """Stop every process of the workload where it is, or let them go on; repeating it is harmless."""

    async def top(self, w: Workload) -> tuple[float, tuple[Proc, ...]]:
        """Seconds since the kernel's start, and the processes inside."""

    async def update(self, w: Workload, resources: Resources) -> None:
        """New limits for one that runs, in force at return or, with an error, not at all."""

    async def changes(self, w: Workload) -> list[Change]:
        """What the writable layer says, running or not."""

    async def exec(
        self, w: Workload, spec: ExecSpec, process: Process, *, detach: bool = False
    ) -> ExecSession:
        """A detached one has no streams (/dev/null), so that it outlives the daemon; `wait` works all
        the same.
        """

    async def stdin(self, w: Workload) -> Stdin: ...

    async def resize(self, w: Workload, columns: int, rows: int) -> None: ...

    async def stats(self, w: Workload) -> Stats: ...

    async def stat_path(self, w: Workload, path: str) -> PathStat:
        """Also of a workload that is not running, as the archive calls."""

    async def archive_get(self, w: Workload, path: str, write: Callable[[bytes], Awaitable[None]]) -> None:
        """A tar of `path` handed to `write` piece by piece."""

    async def archive_put(self, w: Workload, path: str, read: Callable[[], Awaitable[bytes]]) -> None:
        """Unpack the tar that `read` yields (b"" = end) into the folder `path`."""

    async def export(self, w: Workload, write: Callable[[bytes], Awaitable[None]], *, layer: bool) -> None:
        """A tar of the whole root without what is mounted in it; `layer`: of the writable layer alone, with
        overlayfs' own marks (devices 0:0, `trusted.overlay.opaque`).
        """

    async def exited(self, w: Workload, wait_status: int) -> ExitResult:
        """Translate the status of what the keeper ran (-1 = unknown). Reads, changes nothing; may be
        called again after a daemon restart.
        """

    async def cleanup(self, w: Workload) -> None:
        """After the end: release what `start` took, apart from the keeper's own undo; harmless when
        repeated.
        """

    async def remove(self, w: Workload) -> None:
        """Before `w.dir` is deleted: what `prepare` made outside of it; harmless when repeated."""


@functools.cache
def able(kind: type, protocol: type) -> bool:
    """Whether drivers of that kind have the protocol's methods: looking them up takes longer than the answer
    is worth in a creation.
    """
    return issubclass(kind, protocol)


@runtime_checkable
class Describer(Protocol):
    """A wall that has more to say in `system info`, such as its accelerator and why."""

    async def describe(self) -> dict[str, str]: ...


@runtime_checkable
class Templating(Protocol):
    """A wall whose starts may resume a template that was made before."""

    def templates(self) -> list[dict[str, Any]]:
        """Plain values for people and programs, the most recently used first."""

    async def make_template(self, spec: WorkloadSpec) -> dict[str, Any]:
        """For workloads like `spec`; one that is there already is the answer too."""

    async def remove_template(self, key: str) -> dict[str, Any]:
        """`key` may be shortened. Raises `NotFound`."""


@runtime_checkable
class Closing(Protocol):
    """A wall with something under way that must not outlive the daemon."""

    async def close(self) -> None: ...


@runtime_checkable
class Sweeping(Protocol):
    """A wall of which a killed daemon leaves more than its workloads."""

    async def sweep(self, running: Collection[str]) -> set[str]:
        """Once, when a daemon takes over; `running` are the keeper's keys. The answer: those it has ended."""


@runtime_checkable
class Reserving(Protocol):
    """A wall that has things ready for workloads to come."""

    def reserve(self, spec: WorkloadSpec, image: Image) -> str | None:
        """The id of a workload like `spec` that is ready but for its start; its folder is there."""


@runtime_checkable
class Provisioner(Protocol):
    """A wall that fetches something before the first start in an instance. `start` does it too, silently."""

    def wanting(self, w: Workload) -> str:
        """What a start of it would fetch first; empty = nothing."""

    async def provision(self, w: Workload, tell: Callable[[str], None]) -> None:
        """Fetch it; `tell` hears of each phase, from any thread."""
