"""One start in flight: pipes, the outside steps, the clone, and the conversation with the child.

    child  → keeper   fd NAME + descriptor         the pty's master
    keeper → child    go                           after the journal's record; end of file = no keeper: exit
    keeper → child    kept                         what was sent up is safe in the holder (if anything was)
    child  → keeper   error {step, errno, text}    a step or the exec failed; the child exits 127 or 126
    (end of file)                                  the program runs

Out of scope: who asked and who is told (`keeper.main`), what the steps do (`kernel.steps`).
"""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import socket
from typing import Any, NoReturn

from knarr.kernel import fds as descriptors
from knarr.kernel import process
from knarr.kernel.plan import Context, Plan, Step

NEVER_BEGAN = 253
"""the exit code of a child whose keeper died before `go`: the program never ran"""

_PACKET = 16384


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
        self._done: list[Step] = []
        self._channel: socket.socket | None = None

    def fileno(self) -> int:
        return self.channel.fileno()

    @property
    def channel(self) -> socket.socket:
        if self._channel is None:
            raise AssertionError("a launch has a channel from `begin` on")
        return self._channel

    def begin(self, null: int, *, pid_namespace: int | None = None) -> None:
        """Outside steps, then the clone. Raises `StepFailed` with everything taken back."""
        try:
            self._outside()
            self._clone(null, pid_namespace)
        except StepFailed:
            self.abandon()
            raise
        finally:
            self._close_childs(null)

    def go(self) -> None:
        """Let the child proceed. A child that is gone already shows as an end of file."""
        self._tell(b"go")

    def kept(self) -> None:
        self._tell(b"kept")

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
        message = json.loads(data)
        if "fd" in message and fds:
            return [(message["fd"], fds[0])]
        descriptors.close_all(fds)
        self.failure = StepFailed(message["step"], OSError(message["errno"], message["message"]))
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

    def _clone(self, null: int, pid_namespace: int | None) -> None:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise StepFailed("clone", error) from error
        self._channel = ours
        try:
            cgroup = self.context.fds.get("cgroup")
            self.pid = process.spawn(self.plan.clone_flags, pid_namespace=pid_namespace, cgroup=cgroup)
        except OSError as error:
            raise StepFailed("clone", error) from error
        finally:
            if self.pid:
                theirs.close()
        if self.pid == 0:
            ours.close()
            _child(self.plan, self.context, theirs, null)
        ours.setblocking(False)

    def _close_childs(self, null: int) -> None:
        mine = {null, *self.streams.kept.values()}
        descriptors.close_all([fd for fd in set(self.context.fds.values()) if fd not in mine])
        self.context.fds = {}
        self.streams.child = {}

    def _tell(self, text: bytes) -> None:
        try:
            self.channel.send(text, socket.MSG_NOSIGNAL)
        except ConnectionError:
            pass


def undo(steps: list[Step] | tuple[Step, ...], context: Context) -> OSError | None:
    """Undo in reverse, all of them whatever fails; the first failure is returned."""
    failure: OSError | None = None
    for step in reversed(steps):
        try:
            step.undo(context)
        except OSError as error:
            failure = failure or error
    return failure


# the child: no way out of here but _exit and exec


def _child(plan: Plan, context: Context, channel: socket.socket, null: int) -> NoReturn:
    current: Step | None = None
    code = 127
    try:
        gc.disable()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _expect(channel, b"go")
        for item in plan.inside:
            current = item
            item.execute(context)
        current = None
        _send_up(context, channel)
        _execute(plan, context, channel, null)
    except OSError as error:
        code = 127 if error.errno in (errno.ENOENT, errno.ENOTDIR) else 126
        _complain(channel, current, error)
    except BaseException as error:
        code = 126
        _complain(channel, current, OSError(0, f"{type(error).__name__}: {error}"))
    finally:
        os._exit(code)
    raise AssertionError("unreachable")


def _expect(channel: socket.socket, word: bytes) -> None:
    if channel.recv(16) != word:
        os._exit(NEVER_BEGAN)


def _send_up(context: Context, channel: socket.socket) -> None:
    for name, fd in context.send:
        descriptors.send_fds(channel, json.dumps({"fd": name}).encode(), (fd,))
        # it must not get lost with a keeper that dies now: a pty without a master hangs its programs up
        _expect(channel, b"kept")


def _execute(plan: Plan, context: Context, channel: socket.socket, null: int) -> NoReturn:
    numbers = {number: context.fds.get(name, null) for name, number in plan.fds.items()}
    for number in (0, 1, 2):
        numbers.setdefault(number, null)
    env = plan.env
    if context.home and not any(item.startswith("HOME=") for item in env):
        env = (*env, f"HOME={context.home}")
    process.execute(plan.argv, env, numbers, channel, reaper=context.fds.get("init"))


def _complain(channel: socket.socket, step: Step | None, error: OSError) -> None:
    name = type(step).__name__ if step is not None else "exec"
    message = {"step": name, "errno": error.errno or 0, "message": _text(error)[:4000]}
    try:
        channel.send(json.dumps(message).encode(), socket.MSG_NOSIGNAL)
    except OSError:
        pass


def _text(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.filename is None:
        return reason
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename)
    return f"{name}: {reason}"
