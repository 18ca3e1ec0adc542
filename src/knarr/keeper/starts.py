"""Starts and execs as the keeper runs them: streams, the order of what is made safe before what, the answers.

    clone → holder has the pipes → mover has the pipes → journal S → go → … → journal R → answer

Whatever moment the keeper dies at, the next one finds either nothing, or a program that runs and all of its
streams. Out of scope: the conversation with the child (`keeper.launch`), reaping (`keeper.supervisor`).
"""

from __future__ import annotations

import errno
import os
import re
import selectors
from typing import TYPE_CHECKING, Any, NamedTuple

from knarr.keeper.journal import Entry
from knarr.keeper.launch import Launch, StepFailed, Streams, undo
from knarr.kernel import fds as descriptors
from knarr.kernel import plan as plans
from knarr.kernel import process
from knarr.kernel import steps as _  # noqa: F401 - registers the plans' vocabulary
from knarr.model.errors import KnarrError

if TYPE_CHECKING:
    from collections.abc import Callable

    from knarr.keeper.holder import HolderClient
    from knarr.keeper.images import ImageMounts
    from knarr.keeper.journal import Journal
    from knarr.keeper.mover_link import MoverLink
    from knarr.keeper.server import Request, Server

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")


class Pending(NamedTuple):
    """A launch whose program does not run yet."""

    launch: Launch
    entry: Entry
    request: Request


class Starts:
    def __init__(
        self,
        *,
        root: str,
        run: str,
        holder: HolderClient,
        journal: Journal,
        images: ImageMounts,
        mover: MoverLink,
        server: Server,
        selector: selectors.BaseSelector,
        ended: Callable[[Entry, int], None],
    ) -> None:
        self._ended = ended
        self._root = root
        self._run = run
        self._holder = holder
        self._journal = journal
        self._images = images
        self._mover = mover
        self._server = server
        self._selector = selector
        self._null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self._pending: dict[int, Pending] = {}
        self.children: dict[int, Entry] = {}
        """the keeper's own children by pid"""
        self.owed: set[str] = set()
        """whose streams are still to be let go of"""

    @property
    def busy(self) -> bool:
        return bool(self._pending)

    def start(self, request: Request, workload_id: str, joined: dict[str, int]) -> None:
        """Raises `StepFailed` or OSError with everything taken back. `joined`: pidfds by name, which this
        closes, of those whose namespaces it shares.
        """
        request.fds.update(joined)
        streams = Streams()
        try:
            self._make_pipes(workload_id, request.message.get("streams", {}), streams)
        except OSError:
            streams.abandon()
            raise
        self._launch(request, workload_id, streams, None)

    def exec(self, request: Request, key: str, pidfd: int) -> None:
        """The same inside the workload that `pidfd` is, which this closes."""
        wanted = request.message.get("streams", {})
        streams = Streams()
        if not wanted.get("tty"):
            if wanted.get("stdin"):
                streams.pipe_in("stdin", "stdin")
            for name in ("stdout", "stderr"):
                if wanted.get(name, True):
                    streams.pipe_out(name, name)
        self._launch(request, key, streams, pidfd)

    def settle(self, pid: int) -> Entry | None:
        """The child `pid` has ended: end its conversation, if any, and give its entry, if it counts."""
        pending = self._pending.get(pid)
        if pending is not None:
            self._converse(pending)
        return self.children.pop(pid, None)

    def forget(self, entry: Entry) -> None:
        """Undo the outside steps, let go of the streams.

        Raises OSError when a step can't be undone: ask again.
        """
        self._undo(entry.outside)
        self._journal.forgotten(entry)
        if entry.exec_id is None:
            self.release(entry.id)

    def withdraw(self, key: str) -> None:
        """Undo what a start had done outside when its keeper died. Raises OSError."""
        self._undo(self._journal.intents[key])
        self._journal.withdrawn(key)

    def _undo(self, outside: list[Any]) -> None:
        failure = undo(plans.known_outside(outside), plans.Context(run=self._run))
        if failure is not None:
            raise failure

    def release(self, workload_id: str) -> None:
        """Its pipes are emptied into the logs and closed (by the mover), its stdin is closed. What the holder
        can't be told now is told with the next turn: nobody asks for this again.
        """
        self.owed.discard(workload_id)
        try:
            if self._holder.let_go(f"in/{workload_id}", f"log/{workload_id}/"):
                self._mover.drop(workload_id)
        except (OSError, KnarrError):
            self.owed.add(workload_id)

    def _make_pipes(self, workload_id: str, wanted: dict[str, Any], streams: Streams) -> None:
        log = wanted.get("log")
        if log:
            self._make_log_folder(workload_id, log)
        if wanted.get("tty"):
            if not log:
                raise OSError(errno.EINVAL, "a tty needs a log folder")
            return
        if wanted.get("stdin"):
            streams.pipe_in("stdin", f"in/{workload_id}")
        for name, short in (("stdout", "out"), ("stderr", "err")):
            if log and wanted.get(name):
                streams.pipe_out(name, f"log/{workload_id}/{short}")

    def _make_log_folder(self, workload_id: str, log: str) -> None:
        os.makedirs(log, mode=0o700, exist_ok=True)
        if log == os.path.join(self._root, "workloads", workload_id, "log"):
            return
        link = os.path.join(self._run, "logs", workload_id)
        try:
            if os.readlink(link) == log:
                return
            os.unlink(link)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(link), mode=0o700, exist_ok=True)
        os.symlink(log, link)

    def _launch(self, request: Request, key: str, streams: Streams, pidfd: int | None) -> None:
        context = plans.Context(
            run=self._run, fds={**request.take(), "null": self._null}, mount_image=self._images.mount
        )
        if pidfd is not None:
            context.fds["pidfd"] = pidfd
        context.fds = {**streams.child, **context.fds}
        outside = request.message["plan"]["outside"]
        try:
            plan = plans.from_json(request.message["plan"])
            if outside:
                self._journal.intended(key, outside)
        except BaseException:
            descriptors.close_all([fd for fd in context.fds.values() if fd != self._null])
            streams.abandon()
            raise
        launch = Launch(plan, context, streams)
        try:
            launch.begin(self._null, pid_namespace=context.fds[plan.join] if plan.join else None)
        except BaseException:
            self._journal.withdrawn(key)
            raise
        self._record(launch, request, key)

    def _record(self, launch: Launch, request: Request, key: str) -> None:
        try:
            started = process.start_time(launch.pid)
            if "/" not in key:
                self._keep(key, launch.streams)
            message = request.message
            trees = self._images.used_by(request.raw)
            entry = Entry(key, launch.pid, started, message["plan"]["outside"], trees)
            self._journal.started(entry)
        except BaseException:
            launch.abandon()
            self._journal.withdrawn(key)
            if "/" not in key:
                self.release(key)
            raise
        self.children[launch.pid] = entry
        pending = Pending(launch, entry, request)
        self._pending[launch.pid] = pending
        self._selector.register(launch, selectors.EVENT_READ, lambda _events: self._converse(pending))
        try:
            launch.go()
        except OSError as error:
            launch.failure = StepFailed("clone", error)
            self._conclude(pending)

    def _keep(self, workload_id: str, streams: Streams) -> None:
        if not streams.kept:
            return
        prefix = f"log/{workload_id}/"
        try:
            self._holder.put_all(streams.kept)
        except (OSError, KnarrError):
            # the mover, which lets go of the others, never hears of these
            self._holder.delete(f"{prefix}*")
            raise
        logged = {
            name.removeprefix(prefix): fd for name, fd in streams.kept.items() if name.startswith(prefix)
        }
        if logged:
            self._mover.add(workload_id, logged)
        streams.close()

    def _converse(self, pending: Pending) -> None:
        launch = pending.launch
        if self._pending.get(launch.pid) is not pending:
            # ended by its reaping earlier in this very turn of the selector
            return
        try:
            while (sent := launch.read()) is not None:
                for name, fd in sent:
                    self._take_up(pending, name, fd)
                launch.kept()
        except BlockingIOError:
            return
        except (OSError, KnarrError) as error:
            launch.failure = StepFailed("Pty", _as_os_error(error))
        self._conclude(pending)

    def _conclude(self, pending: Pending) -> None:
        launch, entry = pending.launch, pending.entry
        self._selector.unregister(launch)
        launch.finish()
        del self._pending[launch.pid]
        if launch.failure is None:
            self._began(pending)
        else:
            del self.children[launch.pid]
            self._failed(launch, entry, pending.request, launch.failure)

    def _began(self, pending: Pending) -> None:
        launch, entry, request = pending
        self._journal.running(entry)
        self._server.answer(request, launch.streams.kept, pid=entry.pid)
        launch.streams.close()

    def _failed(self, launch: Launch, entry: Entry, request: Request, failure: StepFailed) -> None:
        launch.abandon()
        if entry.exec_id is None and request.peer.sock.fileno() < 0:
            # who asked is dead; the daemon after it was told that this runs
            self._ended(entry, _code(failure) << 8)
            return
        self._journal.forgotten(entry)
        if entry.exec_id is None:
            self.release(entry.id)
        self._server.fail(request, failure.to_json())

    def _take_up(self, pending: Pending, name: str, fd: int) -> None:
        """A pty's master: a workload's goes to the holder and the mover, an exec's to the daemon."""
        entry, streams = pending.entry, pending.launch.streams
        if entry.exec_id is not None:
            streams.kept[name] = fd
            return
        three = {name: fd}
        try:
            three[f"{name}pipe-r"], three[f"{name}pipe-w"] = os.pipe2(os.O_CLOEXEC)
            self._holder.put_all({f"log/{entry.id}/{key}": value for key, value in three.items()})
            self._mover.add(entry.id, three)
        except (OSError, KnarrError):
            # the mover, which lets go of the others, never heard of these
            self._holder.delete(f"log/{entry.id}/{name}*")
            raise
        finally:
            descriptors.close_all(list(three.values()))


def _as_os_error(error: OSError | KnarrError) -> OSError:
    return error if isinstance(error, OSError) else OSError(errno.EIO, error.message)


def _code(failure: StepFailed) -> int:
    return 127 if failure.errno in (errno.ENOENT, errno.ENOTDIR) else 126


def checked_id(text: str) -> str:
    """An id is a path component and a word of the holder's. Raises OSError."""
    if not isinstance(text, str) or _ID.fullmatch(text) is None:
        raise OSError(errno.EINVAL, f"{text!r} is not an id")
    return text
