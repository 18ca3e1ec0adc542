"""The keeper: executes launch plans, reaps, and writes what must not be lost into its journal before it
reaps.

    daemon → keeper   hello start exec userns signal mount unmount root forget list upgrade stop
    keeper → daemon   ok | error (same `seq`), and unasked: exit

The messages are drawn in docs/architecture.md section 5; each has one method `on_…`. One thread, one
selector, the standard library only. Out of scope: deciding anything (the daemon does), the logs' bytes
(`keeper.mover`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

from knarr.keeper import processes, protocol, roles, userns
from knarr.keeper.holder import HolderClient, listening
from knarr.keeper.images import ImageMounts
from knarr.keeper.journal import Journal
from knarr.keeper.launch import NEVER_BEGAN, StepFailed
from knarr.keeper.mover_link import MoverLink
from knarr.keeper.server import Peer, Request, Server
from knarr.keeper.starts import Starts, checked_id
from knarr.kernel import fds as descriptors
from knarr.kernel import process
from knarr.kernel.plan import vocabulary
from knarr.model.errors import KnarrError

if TYPE_CHECKING:
    from knarr.keeper.journal import Entry

_SOON = 0.2
_PAGE = 500
"""entries in one packet of a list"""


class Keeper:
    def __init__(self, root: str, run: str, holder: HolderClient) -> None:
        self._root = root
        self._run = run
        self._holder = holder
        self._journal = Journal(os.path.join(run, "keeper.journal"), processes.boot_id())
        self._images = ImageMounts(run)
        self._mover = MoverLink(run, self._dropped)
        self._selector = selectors.EpollSelector()
        self._server = Server(self._selector, self._obey, self._peer_gone)
        self._starts = Starts(
            root=root,
            run=run,
            holder=holder,
            journal=self._journal,
            images=self._images,
            mover=self._mover,
            server=self._server,
            selector=self._selector,
            ended=self._ended,
        )
        self._daemon: Peer | None = None
        self._adopted: dict[int, list[Entry]] = {}
        self._deferred: dict[str, list[Request]] = {}
        """starts of ids whose previous logs are still being emptied"""
        self._stopping = False

    def serve(self) -> None:
        self._catch_signals()
        self._adopt()
        self._clear_leftovers()
        self._server.listen(listening(self._holder, self._run, protocol.KEEPER, socket.SOCK_SEQPACKET))
        self._selector.register(self._holder, selectors.EVENT_READ, self._holder_speaks)
        self._selector.register(self._mover.sock, selectors.EVENT_READ, self._mover_speaks)
        while not self._stopping:
            # a status may have come along with any answer of the holder's
            self._take_orphans()
            for key, events in self._selector.select(_SOON if self._starts.owed else None):
                key.data(events)
            for workload_id in tuple(self._starts.owed):
                self._starts.release(workload_id)

    # what happens by itself

    def _catch_signals(self) -> None:
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.signal(signal.SIGTERM, self._terminate)
        # a handler, not SIG_IGN, which workloads would inherit
        signal.signal(signal.SIGINT, lambda _number, _frame: None)

        def woken(_events: int) -> None:
            with contextlib.suppress(BlockingIOError):
                os.read(read, 4096)
            self._reap()

        self._selector.register(read, selectors.EVENT_READ, woken)

    def _terminate(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def _peer_gone(self, peer: Peer) -> None:
        if peer is self._daemon:
            self._daemon = None
        for workload_id, requests in tuple(self._deferred.items()):
            # nobody is there to be told that it runs
            for request in [item for item in requests if item.peer is peer]:
                requests.remove(request)
                descriptors.close_all(list(request.take().values()))
            if not requests:
                del self._deferred[workload_id]

    def _holder_speaks(self, _events: int) -> None:
        self._holder.poll()
        self._take_orphans()

    def _mover_speaks(self, _events: int) -> None:
        if not self._mover.receive():
            self._selector.unregister(self._mover.sock)
            self._mover.reconnect()
            self._selector.register(self._mover.sock, selectors.EVENT_READ, self._mover_speaks)

    def _dropped(self, workload_id: str) -> None:
        for request in self._deferred.pop(workload_id, []):
            self._obey(request)

    # adoption: what ran before this keeper did

    def _adopt(self) -> None:
        running = [entry for entry in self._journal.entries.values() if entry.status is None]
        for entry in running:
            if processes.parent(entry) == os.getpid():
                self._starts.children[entry.pid] = entry
            else:
                self._adopted.setdefault(entry.pid, []).append(entry)
        self._holder.watch()
        processes.wait_for_programs([entry for entry in running if not entry.running])
        gone = [entry for entry in running if not processes.alive(entry)]
        # whatever was reaped before this answer has been told before it
        self._holder.roles()
        self._holder.poll()
        self._take_orphans()
        for entry in gone:
            if entry.status is None and entry.key in self._journal.entries:
                self._adopted[entry.pid].remove(entry)
                self._ended(entry, -1)
        for entry in running:
            if entry.status is None and entry.key in self._journal.entries:
                if not entry.running:
                    self._journal.running(entry)
                self._watch_stranger(entry)
        self._reap()

    def _watch_stranger(self, entry: Entry) -> None:
        """Who outlived the holder as well is the init's child by now, whose end nobody will tell us."""
        if processes.parent(entry) in (os.getpid(), os.getppid()):
            return
        try:
            pidfd = processes.open_process(entry)
        except ProcessLookupError:
            self._stranger_ended(entry, -1)
            return

        def gone(_events: int) -> None:
            self._selector.unregister(pidfd)
            status = process.pidfd_exit_status(pidfd)
            os.close(pidfd)
            self._stranger_ended(entry, -1 if status is None else status)

        self._selector.register(pidfd, selectors.EVENT_READ, gone)

    def _stranger_ended(self, entry: Entry, status: int) -> None:
        self._adopted[entry.pid].remove(entry)
        self._ended(entry, status)

    def _clear_leftovers(self) -> None:
        """Outside steps and streams of starts that a keeper did not live to write down."""
        for key in tuple(self._journal.intents):
            with contextlib.suppress(OSError):
                self._starts.withdraw(key)
        known = {entry.id for entry in self._journal.entries.values()}
        found = {name.split("/")[1] for prefix in ("log/", "in/") for name in self._holder.list(prefix)}
        for workload_id in found - known:
            self._starts.release(workload_id)

    def _take_orphans(self) -> None:
        while self._holder.exits:
            pid, status = self._holder.exits.popleft()
            entries = self._adopted.get(pid)
            if entries:
                self._ended(entries.pop(0), status)
                if not entries:
                    del self._adopted[pid]
            self._holder.ack(pid)

    def _reap(self) -> None:
        while True:
            try:
                result = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if result is None:
                return
            entry = self._starts.settle(result.si_pid)
            if entry is not None:
                self._ended(entry, processes.wait_status(result.si_code, result.si_status))
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, result.si_pid, os.WEXITED)

    def _ended(self, entry: Entry, status: int) -> None:
        if not entry.running and status == NEVER_BEGAN << 8:
            # its keeper died before `go`: whoever asked for it asks again
            self._starts.forget(entry)
            return
        if entry.exec_id is not None:
            # told once, to whoever listens: nobody asks for it again
            entry.status, entry.time = status, time.time_ns()
            self._tell(entry)
            self._journal.forgotten(entry)
            return
        self._journal.ended(entry, status, time.time_ns())
        self._tell(entry)

    def _tell(self, entry: Entry) -> None:
        if self._daemon is not None:
            self._server.send(self._daemon, {"type": "exit", **processes.exit_of(entry)})

    # messages

    def _obey(self, request: Request) -> None:
        kind = str(request.message.get("type"))
        handler = getattr(self, f"on_{kind}", None)
        try:
            if handler is None:
                raise OSError(errno.EPROTO, f"unknown message {kind!r}")
            handler(request)
        except StepFailed as error:
            self._server.fail(request, error.to_json())
        except OSError as error:
            self._server.fail(request, StepFailed(kind, error).to_json())
        except (KnarrError, LookupError, TypeError, ValueError) as error:
            self._server.fail(request, {"step": kind, "errno": errno.EINVAL, "message": str(error)})

    def on_hello(self, request: Request) -> None:
        # what the daemon before this one asked for must not begin behind the answer's back
        self._server.catch_up(request.peer)
        self._daemon = request.peer
        about = {"version": protocol.VERSION, "pid": os.getpid(), "instance": self._instance()}
        self._list(request, about)

    def on_list(self, request: Request) -> None:
        self._list(request, {"vocabulary": vocabulary()})

    def on_start(self, request: Request) -> None:
        workload_id = checked_id(request.message["id"])
        if workload_id in self._mover.dropping:
            self._deferred.setdefault(workload_id, []).append(request)
        elif workload_id in self._journal.entries:
            raise OSError(errno.EEXIST, f"{workload_id} is known already")
        else:
            self._starts.start(request, workload_id, self._joined(request.message.get("joins", {})))

    def _joined(self, wanted: dict[str, str]) -> dict[str, int]:
        """Pidfds by name. Raises ESRCH when one of the workloads does not run."""
        found: dict[str, int] = {}
        try:
            for name, workload_id in wanted.items():
                found[name] = processes.open_process(self._running(workload_id))
        except OSError:
            descriptors.close_all(list(found.values()))
            raise
        return found

    def on_userns(self, request: Request) -> None:
        message = request.message
        ends = userns.make(message["uids"], message["gids"], network=message["network"])
        try:
            self._server.answer(request, ends)
        finally:
            descriptors.close_all(list(ends.values()))

    def on_exec(self, request: Request) -> None:
        entry = self._running(request.message["id"])
        key = f"{entry.id}/{checked_id(request.message['exec_id'])}"
        if key in self._journal.entries:
            raise OSError(errno.EEXIST, f"{key} is known already")
        self._starts.exec(request, key, processes.open_process(entry))

    def on_signal(self, request: Request) -> None:
        exec_id = request.message.get("exec_id")
        key = request.message["id"] + (f"/{exec_id}" if exec_id else "")
        pidfd = processes.open_process(self._running(key))
        try:
            process.pidfd_send_signal(pidfd, request.message["signal"])
        finally:
            os.close(pidfd)
        self._server.answer(request)

    def on_mount(self, request: Request) -> None:
        message = request.message
        self._images.mount(message["tree_id"], message["tree"], message["pool"])
        self._server.answer(request)

    def on_unmount(self, request: Request) -> None:
        tree_id = request.message["tree_id"]
        users = [entry.id for entry in self._journal.entries.values() if tree_id in entry.trees]
        if users:
            raise OSError(errno.EBUSY, f"{tree_id} is used by {users[0]}")
        self._images.unmount(tree_id)
        self._server.answer(request)

    def on_root(self, request: Request) -> None:
        message = request.message
        if "tree_id" in message:
            fd = self._images.overlay(message["tree_id"], message["upper"], message["work"])
        else:
            fd = processes.open_root(self._running(message["id"]))
        try:
            self._server.answer(request, {"root": fd})
        finally:
            os.close(fd)

    def on_forget(self, request: Request) -> None:
        entry = self._journal.entries.get(request.message["id"])
        if entry is None:
            self._server.answer(request)
            return
        if entry.status is None:
            raise OSError(errno.EBUSY, f"{entry.key} still runs")
        self._starts.forget(entry)
        self._server.answer(request)

    def on_upgrade(self, request: Request) -> None:
        """The same process, the program of today: children stay children, the journal knows them."""
        if self._starts.busy:
            raise OSError(errno.EBUSY, "a start is under way")
        self._server.answer(request)
        arguments = roles.argv("knarr.keeper.main", self._root, self._run)
        os.execv(arguments[0], arguments)

    def on_stop(self, request: Request) -> None:
        self._server.answer(request)
        self._stopping = True

    # parts of the above

    def _list(self, request: Request, about: dict[str, Any]) -> None:
        """In pages: a packet has a limit, and thousands of workloads are normal."""
        entries = [entry for entry in self._journal.entries.values() if entry.exec_id is None]
        running = [{"id": entry.id, "pid": entry.pid} for entry in entries if entry.status is None]
        exits = [processes.exit_of(entry) for entry in entries if entry.status is not None]
        while len(running) + len(exits) > _PAGE:
            page = {"running": running[:_PAGE], "exits": exits[: max(0, _PAGE - len(running))]}
            self._server.send(request.peer, {"type": "part", "seq": request.seq, **page})
            running, exits = running[_PAGE:], exits[len(page["exits"]) :]
        self._server.answer(request, **about, running=running, exits=exits)

    def _running(self, key: str) -> Entry:
        entry = self._journal.entries.get(key)
        if entry is None or entry.status is not None:
            raise OSError(errno.ESRCH, f"{key} does not run")
        return entry

    def _instance(self) -> str:
        try:
            with open(os.path.join(self._root, "instance"), encoding="ascii") as file:
                return file.read(64).strip()
        except OSError:
            return ""
