"""The daemon's asyncio line to keeper and mover (docs/architecture.md section 5).

It connects anew by itself when the keeper is replaced. A start whose answer was lost is settled by what
the next `hello` says: it runs, it has ended, or it never began and is sent again. Out of scope: deciding
what to do with an exit (`on_exit`), the processes themselves (`keeper.supervisor`).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from knarr.keeper import asking, protocol
from knarr.keeper.holder import HolderClient
from knarr.kernel import fds as descriptors
from knarr.kernel import plan as plans
from knarr.model.errors import Unavailable

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from knarr.kernel.plan import Plan
    from knarr.model.namespaces import IdMap
    from knarr.model.resource import RootFs

_log = logging.getLogger("knarr.keeper")

_PATIENCE = 20.0
"""seconds that a keeper may be away before requests fail"""

Fds = list[int]
Reply = tuple[dict[str, Any], dict[str, int]]


class KeeperError(OSError):
    """The keeper could not do it: `step` names the plan's step (or `clone`, `exec`), the rest
    is the OSError's.
    """

    def __init__(self, step: str, number: int, message: str) -> None:
        super().__init__(number, message)
        self.step = step
        self.message = message


class Hello(NamedTuple):
    """What the keeper knows when the daemon comes."""

    version: int
    pid: int
    instance: str
    running: dict[str, int]
    """id → pid"""
    exits: dict[str, tuple[int, int]]
    """id → (wait status, time)"""


class _Call:
    """One request in flight."""

    __slots__ = ("fds", "future", "message", "parts", "plan", "posted")

    def __init__(self, message: dict[str, Any], fds: dict[str, int], plan: str = "") -> None:
        self.message = message
        self.plan = plan
        self.fds = fds
        self.parts: list[dict[str, Any]] = []
        self.posted = False
        """a keeper may have read it"""
        self.future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()


class PacketLine:
    """A seqpacket connection on the event loop: packets out in order, packets in to a callback."""

    def __init__(
        self,
        sock: socket.socket,
        received: Callable[[bytes, list[int]], None],
        lost: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._received = received
        self._lost = lost
        self._queue: deque[tuple[bytes, tuple[int, ...]]] = deque()
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._readable)

    def send(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        """Raises OSError when the line is dead."""
        if self._queue:
            self._queue.append((data, fds))
            return
        try:
            descriptors.send_fds(self._sock, data, fds)
        except BlockingIOError:
            self._queue.append((data, fds))
            self._loop.add_writer(self._sock.fileno(), self._writable)

    @property
    def closed(self) -> bool:
        return self._sock.fileno() < 0

    def close(self) -> None:
        if not self.closed:
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
            self._sock.close()

    def _writable(self) -> None:
        try:
            while self._queue:
                descriptors.send_fds(self._sock, *self._queue[0])
                self._queue.popleft()
            self._loop.remove_writer(self._sock.fileno())
        except BlockingIOError:
            return
        except OSError:
            self._end()

    def _readable(self) -> None:
        # a few at a time: others on the loop want to run too
        for _ in range(16):
            if self.closed:
                return
            try:
                data, fds = protocol.receive(self._sock)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            if not data:
                self._end()
                return
            self._received(data, fds)

    def _end(self) -> None:
        self.close()
        self._lost()


class KeeperLink:
    """One per daemon. Every call raises `KeeperError` (an OSError with `step`) or `Unavailable`."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._line: PacketLine | None = None
        self._seq = 0
        self._calls: dict[int, _Call] = {}
        self._told: set[str] = set()
        self._drains = DrainLink(run)
        self._reconnecting: asyncio.Task[None] | None = None
        self.on_exit: Callable[[str, int, int, str | None], None] = lambda *_: None
        """called with (id, wait status, time, exec_id or None)"""
        self.holder: HolderClient | None = None

    async def connect(self) -> Hello:
        """Introduce this daemon. The exits in the answer are not repeated through `on_exit`."""
        self.holder = HolderClient(self._run)
        hello = await self._introduce()
        self._told.update(hello.exits)
        return hello

    async def close(self) -> None:
        if self._reconnecting is not None:
            self._reconnecting.cancel()
        for line in (self._line, self._drains):
            if line is not None:
                line.close()
        self._line = None
        for call in self._calls.values():
            call.future.cancel()
        self._calls.clear()
        if self.holder is not None:
            self.holder.close()

    async def start(
        self,
        workload_id: str,
        plan: Plan,
        fds: Mapping[str, int],
        streams: Mapping[str, Any],
        joins: Mapping[str, str] | None = None,
    ) -> int:
        """Returns the pid once the program runs. The caller keeps `fds` open meanwhile and closes them.
        `joins`: descriptor's name → running workload whose process it is to be.
        """
        message = {"type": "start", "id": workload_id, "streams": dict(streams)}
        if joins:
            message["joins"] = dict(joins)
        self._told.discard(workload_id)
        answer, _ = await self._ask(message, dict(fds), plans.to_text(plan))
        return int(answer["pid"])

    async def exec(
        self,
        workload_id: str,
        exec_id: str,
        plan: Plan,
        fds: Mapping[str, int] | None = None,
        streams: Mapping[str, Any] | None = None,
    ) -> tuple[int, dict[str, int]]:
        """Returns the pid and the daemon's ends of the streams: stdin, stdout, stderr, or tty."""
        message = {
            "type": "exec",
            "id": workload_id,
            "exec_id": exec_id,
            "streams": dict(streams or {}),
        }
        answer, ends = await self._ask(message, dict(fds or {}), plans.to_text(plan))
        return int(answer["pid"]), ends

    async def user_namespace(self, ids: IdMap, *, network: bool) -> dict[str, int]:
        """`userns` and, if wanted, an empty `netns` that belongs to it; the caller closes them."""
        maps = {"uids": ids.uids, "gids": ids.gids}
        _, ends = await self._ask({"type": "userns", **maps, "network": network})
        return ends

    async def signal(self, workload_id: str, signum: int, exec_id: str | None = None) -> None:
        message: dict[str, Any] = {"type": "signal", "id": workload_id, "signal": signum}
        await self._ask(message if exec_id is None else {**message, "exec_id": exec_id})

    async def mount(self, rootfs: RootFs) -> None:
        message = {"tree_id": rootfs.tree_id, "tree": rootfs.tree, "pool": rootfs.pool}
        await self._ask({"type": "mount", **message})

    async def unmount(self, tree_id: str) -> None:
        await self._ask({"type": "unmount", "tree_id": tree_id})

    async def root(
        self,
        workload_id: str | None = None,
        *,
        tree_id: str | None = None,
        upper: str | None = None,
        work: str | None = None,
    ) -> int:
        """A descriptor of a running workload's root, or of an overlay of `tree_id`, `upper` and `work`
        (without `work` to be read only, whoever uses the `upper`).
        """
        place = {"id": workload_id} if tree_id is None else {"tree_id": tree_id, "upper": upper, "work": work}
        _, ends = await self._ask({"type": "root", **place})
        return ends["root"]

    async def forget(self, workload_id: str) -> None:
        await self._ask({"type": "forget", "id": workload_id})
        self._told.discard(workload_id)

    async def list(self) -> tuple[dict[str, int], dict[str, tuple[int, int]]]:
        """(id → pid, id → (wait status, time))"""
        answer, _ = await self._ask({"type": "list"})
        return _running(answer), _exits(answer)

    async def drain(self, workload_id: str, timeout: float = 30.0) -> None:
        """Returns when everything that the ended workload wrote is in its log files."""
        await self._drains.drain(workload_id, timeout)

    # requests and answers

    async def _ask(self, message: dict[str, Any], fds: dict[str, int] | None = None, plan: str = "") -> Reply:
        self._seq += 1
        call = _Call({**message, "seq": self._seq, "fds": list(fds or {})}, fds or {}, plan)
        self._calls[self._seq] = call
        try:
            if self._line is not None:
                self._post(call)
            return await call.future
        except asyncio.CancelledError:
            call.future.cancel()
            raise
        finally:
            self._calls.pop(call.message["seq"], None)

    def _post(self, call: _Call) -> None:
        if self._line is None:
            return
        try:
            self._line.send(protocol.encode(call.message, call.plan), tuple(call.fds.values()))
            call.posted = True
        except OSError as error:
            if error.errno is not None and isinstance(error, ConnectionError):
                return  # the reader notices too, and everything in flight is settled there
            call.future.set_exception(error)

    def _received(self, data: bytes, fds: Fds) -> None:
        message = protocol.decode(data)
        ends = protocol.take_named(message.get("fds", []), fds)
        if message["type"] == "exit":
            self._exit(message)
            return
        call = self._calls.get(message.get("seq", 0))
        if call is None or call.future.done():
            descriptors.close_all(list(ends.values()))
        elif message["type"] == "part":
            call.parts.append(message)
        elif message["type"] == "ok":
            call.future.set_result((_joined(call.parts, message), ends))
        else:
            call.future.set_exception(KeeperError(message["step"], message["errno"], message["message"]))

    def _exit(self, message: dict[str, Any]) -> None:
        exec_id = message.get("exec_id")
        if exec_id is None:
            if message["id"] in self._told:
                return
            self._told.add(message["id"])
        self.on_exit(message["id"], message["status"], message["time"], exec_id)

    # the keeper is replaced

    async def _introduce(self) -> Hello:
        end = asyncio.get_running_loop().time() + _PATIENCE
        pause = 0.01
        while True:
            try:
                await asyncio.to_thread(asking.make_equal, self._run)
                return await self._hello()
            except OSError as error:
                if asyncio.get_running_loop().time() > end:
                    raise Unavailable(
                        f"the keeper of {self._run} does not answer: {error.strerror}",
                        hint="its log is daemon.log in the --root folder",
                    ) from error
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.5)

    async def _hello(self) -> Hello:
        """Raises OSError when the keeper is not there or ends before it answers."""
        sock = protocol.widen(descriptors.connect_unix(os.path.join(self._run, protocol.KEEPER)))
        call = _Call({"type": "hello", "version": protocol.VERSION, "seq": 0, "fds": []}, {})
        line = PacketLine(sock, self._received, lambda: self._line_lost(line))
        self._calls[0] = call
        try:
            line.send(protocol.encode(call.message))
            answer, _ = await call.future
            if line.closed:
                raise ConnectionResetError(errno.ECONNRESET, "the keeper ended")
        except BaseException:
            line.close()
            raise
        finally:
            self._calls.pop(0, None)
        # not before: a request sent behind the hello would be settled by an answer that can't know it
        self._line = line
        return Hello(answer["version"], answer["pid"], answer["instance"], _running(answer), _exits(answer))

    def _line_lost(self, line: PacketLine) -> None:
        introducing = self._calls.get(0)
        if line is self._line:
            self._line = None
            self._reconnecting = asyncio.ensure_future(self._reconnect())
        elif introducing is not None and not introducing.future.done():
            introducing.future.set_exception(ConnectionResetError(errno.ECONNRESET, "the keeper ended"))

    async def _reconnect(self) -> None:
        try:
            hello = await self._introduce()
        except Unavailable as error:
            for call in self._calls.values():
                if not call.future.done():
                    call.future.set_exception(error)
            _log.error("%s", error.message)
            self._reconnecting = asyncio.ensure_future(self._reconnect_later())
            return
        _log.info("the keeper was replaced: pid %d", hello.pid)
        for call in tuple(self._calls.values()):
            if not call.future.done():
                self._settle(call, hello)
        for workload_id, (status, when) in hello.exits.items():
            self._exit({"id": workload_id, "status": status, "time": when})

    async def _reconnect_later(self) -> None:
        await asyncio.sleep(1.0)
        await self._reconnect()

    def _settle(self, call: _Call, hello: Hello) -> None:
        """A request in flight when the keeper died: find out whether it happened, or do it (again)."""
        workload_id = str(call.message.get("id"))
        kind = call.message["type"]
        if kind == "start" and (workload_id in hello.running or workload_id in hello.exits):
            call.future.set_result(({"pid": hello.running.get(workload_id, 0)}, {}))
        elif kind == "exec" and call.posted:
            # its streams are lost with the answer that carried them
            error = Unavailable(
                f"the keeper was replaced while {workload_id} was executing", hint="try again"
            )
            call.future.set_exception(error)
        else:
            call.parts.clear()
            self._post(call)


class DrainLink:
    """The daemon's line to the mover. A drain that is lost with its mover is asked again."""

    def __init__(self, run: str) -> None:
        self._path = os.path.join(run, protocol.MOVER)
        self._line: PacketLine | None = None
        self._waiting: dict[str, asyncio.Future[None]] = {}

    async def drain(self, workload_id: str, timeout: float) -> None:
        future = self._waiting.get(workload_id)
        if future is None:
            future = self._waiting[workload_id] = asyncio.get_running_loop().create_future()
            self._ask(workload_id)
        try:
            await asyncio.wait_for(asyncio.shield(future), timeout)
        except TimeoutError as error:
            raise Unavailable(
                f"the output of {workload_id[:12]} is not written yet", hint="is the disk full?"
            ) from error
        finally:
            if self._waiting.get(workload_id) is future and (future.done() or timeout <= 0):
                del self._waiting[workload_id]

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None
        for future in self._waiting.values():
            future.cancel()

    def _ask(self, workload_id: str) -> None:
        try:
            if self._line is None:
                sock = descriptors.connect_unix(self._path)
                self._line = PacketLine(sock, self._received, self._lost)
            self._line.send(protocol.encode_words(("drain", workload_id)))
        except OSError:
            asyncio.get_running_loop().call_later(0.1, self._ask_again, workload_id)

    def _ask_again(self, workload_id: str) -> None:
        if workload_id in self._waiting:
            self._ask(workload_id)

    def _received(self, data: bytes, fds: list[int]) -> None:
        descriptors.close_all(fds)
        _, workload_id = protocol.decode_words(data)
        future = self._waiting.get(workload_id)
        if future is not None and not future.done():
            future.set_result(None)

    def _lost(self) -> None:
        self._line = None
        for workload_id, future in self._waiting.items():
            if not future.done():
                self._ask(workload_id)


def _running(answer: dict[str, Any]) -> dict[str, int]:
    return {item["id"]: item["pid"] for item in answer["running"]}


def _exits(answer: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {item["id"]: (item["status"], item["time"]) for item in answer["exits"]}


def _joined(parts: list[dict[str, Any]], last: dict[str, Any]) -> dict[str, Any]:
    """The pages of a list as one answer."""
    for part in parts:
        for key in ("running", "exits"):
            last[key] = part[key] + last[key]
    return last
