"""One start in flight: pipes, the outside steps, the clone, and the conversation with the child, `stage`.

    keeper → child    the plan + its descriptors     after the journal's record; end of file = no keeper: exit
    child  → keeper   fd NAME + descriptor           the pty's master
    keeper → child    kept                           what was sent up is safe in the holder (if anything was)
    child  → keeper   error STEP ERRNO PATH REASON   a step or the exec failed; the child exits 127 or 126
    (end of file)                                    the program runs

Words are separated by NUL. Out of scope: who asked and who is told (`keeper.supervisor`), what the steps do
(csrc/stage).
"""

from __future__ import annotations

import os
import signal
import socket
from typing import Any

from knarr.keeper import protocol
from knarr.kernel import fds as descriptors
from knarr.kernel import plan as plans
from knarr.kernel import spawn
from knarr.kernel.plan import Context, Outside, Plan

NEVER_BEGAN = 253
"""the exit code of a child whose keeper died before `go`: the program never ran"""

_PACKET = 16384
_PIECE = 60000
"""of a plan: what a socket takes in one packet without asking for memory in one piece"""


class StepFailed(Exception):
    """A step failed: `step` is its class's name, or `clone` or `exec`; the errno, and a text for the user."""

    def __init__(self, step: str, error: OSError) -> None:
        super().__init__(step)
        self.step = step
        self.errno = error.errno or 0
        self.message = _text(error)

    def to_json(self) -> dict[str, Any]:
        return {"step": self.step, "errno": self.errno, "message": self.message}


class Streams:
    """The pipes of one start: `child` by plan name, `kept` by the holder's (or, for an exec,
    the daemon's) name.
    """

    def __init__(self) -> None:
        self.child: dict[str, int] = {}
        self.kept: dict[str, int] = {}

    def pipe_in(self, name: str, kept: str) -> None:
        self.child[name], self.kept[kept] = os.pipe2(os.O_CLOEXEC)

    def pipe_out(self, name: str, kept: str) -> None:
        self.kept[kept], self.child[name] = os.pipe2(os.O_CLOEXEC)

    def close(self) -> None:
        """Our ends; the child's are closed by the launch."""
        descriptors.close_all(list(self.kept.values()))
        self.kept.clear()

    def abandon(self) -> None:
        self.close()
        descriptors.close_all(list(self.child.values()))
        self.child.clear()


class Launch:
    """From the clone to the exec.

    After `begin`, the keeper journals, calls `go`, and `read`s until it is done.
    """

    def __init__(self, plan: Plan, context: Context, streams: Streams) -> None:
        self.plan = plan
        self.context = context
        self.streams = streams
        self.pid = 0
        self.failure: StepFailed | None = None
        self._done: list[Outside] = []
        self._channel: socket.socket | None = None
        self._message = b""
        self._sent: list[int] = []
        self._null = -1

    def fileno(self) -> int:
        return self.channel.fileno()

    @property
    def channel(self) -> socket.socket:
        if self._channel is None:
            raise AssertionError("a launch has a channel from `begin` on")
        return self._channel

    def begin(self, null: int, *, pid_namespace: int | None = None) -> None:
        """Outside steps, then the clone. Raises `StepFailed` with everything taken back."""
        self._null = null
        try:
            self._outside()
            self._say()
            self._clone(pid_namespace)
        except BaseException:
            self.abandon()
            raise

    def go(self) -> None:
        """Let the child proceed. A child that is gone already shows as an end of file."""
        size = len(self._message)
        if size > _PIECE:
            protocol.widen(self.channel)
        fds = self._sent
        try:
            for start in range(0, size, _PIECE):
                descriptors.send_fds(self.channel, self._message[start : start + _PIECE], fds)
                fds = []
        except ConnectionError:
            pass
        self._message = b""
        self._close_childs()

    def kept(self) -> None:
        try:
            self.channel.send(b"kept", socket.MSG_NOSIGNAL)
        except ConnectionError:
            pass

    def read(self) -> list[tuple[str, int]] | None:
        """What the child sent up: descriptors by name, or None when it is done: look at `failure`.

        Raises BlockingIOError when there is nothing yet.
        """
        try:
            data, fds = descriptors.recv_fds(self.channel, _PACKET, 1)
        except ConnectionError:
            data, fds = b"", []
        if not data:
            return None
        kind, *words = map(os.fsdecode, data.split(b"\0"))
        if kind == "fd" and fds:
            return [(words[0], fds[0])]
        descriptors.close_all(fds)
        self.failure = _failure(words)
        return None

    def finish(self) -> None:
        """The conversation is over."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def abandon(self) -> None:
        """Take everything back: the child, the pipes, the outside steps in reverse."""
        self.finish()
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
        self._close_childs()
        self.streams.close()
        undo(self._done, self.context)
        self._done = []

    def _outside(self) -> None:
        for step in self.plan.outside:
            self._done.append(step)
            try:
                step.execute(self.context)
            except OSError as error:
                self._done.pop()
                raise StepFailed(type(step).__name__, error) from error

    def _say(self) -> None:
        """Put the plan into bytes, before there is a process: what can't be said fails now."""
        found = {name: fd for name, fd in self.context.fds.items() if fd >= 0 and name != "cgroup"}
        found["null"] = self._null
        self._sent = list(found.values())
        try:
            self._message = plans.for_stage(self.plan, tuple(found))
        except plans.StepUnsaid as error:
            raise StepFailed(error.step, error.error) from error

    def _clone(self, pid_namespace: int | None) -> None:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise StepFailed("clone", error) from error
        self._channel = ours
        flags, cgroup = self.plan.clone_flags, self.context.fds.get("cgroup")
        helper = 0
        try:
            if pid_namespace is None:
                self.pid = spawn.spawn(theirs.fileno(), flags, cgroup=cgroup)
            else:
                helper = spawn.spawn_into(theirs.fileno(), pid_namespace, flags, cgroup=cgroup)
        except OSError as error:
            raise StepFailed("clone", error) from error
        finally:
            theirs.close()
        if helper:
            self._meet(helper)
        ours.setblocking(False)

    def _meet(self, helper: int) -> None:
        # its child has a copy of the channel: one that ends without a word makes no end of file
        os.waitpid(helper, 0)
        try:
            data = self.channel.recv(_PACKET, socket.MSG_DONTWAIT)
        except BlockingIOError:
            data = b""
        kind, *words = map(os.fsdecode, data.split(b"\0"))
        if kind != "pid":
            raise _failure(words)
        self.pid = int(words[0])

    def _close_childs(self) -> None:
        mine = {self._null, *self.streams.kept.values()}
        descriptors.close_all([fd for fd in set(self.context.fds.values()) if fd not in mine])
        self.context.fds = {}
        self._sent = []
        self.streams.child = {}


def undo(steps: list[Outside] | tuple[Outside, ...], context: Context) -> OSError | None:
    """Undo in reverse, all of them whatever fails; the first failure is returned."""
    failure: OSError | None = None
    for step in reversed(steps):
        try:
            step.undo(context)
        except OSError as error:
            failure = failure or error
    return failure


def _failure(words: list[str]) -> StepFailed:
    """What `stage` said of it; one that is gone without a word was killed."""
    if len(words) != 4:
        return StepFailed("clone", OSError(0, "the process ended before its program began"))
    step, code, path, reason = words
    number = int(code)
    return StepFailed(step, OSError(number, reason or os.strerror(number), path or None))


def _text(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.filename is None:
        return reason
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename)
    return f"{name}: {reason}"
