"""Between the user's terminal or pipes and an attached workload: one poll loop, no threads.

Output is written in a blocking way: a slow reader of ours holds the daemon's stream up, and nothing is lost.
Out of scope: the frames' bytes (`client.frames`) and raw mode (`terminal`).
"""

from __future__ import annotations

import _socket
import os
import select
import signal

from knarr.cli import terminal
from knarr.client import frames
from knarr.client.transport import READ_SIZE
from knarr.model.errors import Unavailable, from_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Self

    from knarr.client.client import Session

DETACHED = -2
"""`Pump.run` gives it when the user pressed the detach keys"""
INSISTED = -3
"""`Pump.run` gives it when the user wanted out: the third Ctrl-C, as docker's"""

_PROXIED = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGALRM")
_INSISTENT = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 3
_MAX_UNSENT = 256 * 1024


class Signals:
    """Signals as bytes of a pipe while the loop runs; the old handlers come back."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._before: dict[int, Any] = {}
        self.fd, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for name in self._names:
            number = getattr(signal, name)
            self._before[number] = signal.signal(number, lambda *_: None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.fd)
        os.close(self._write)

    def take(self) -> set[int]:
        try:
            return set(os.read(self.fd, 4096))
        except BlockingIOError:
            return set()


class Pump:
    """Moves bytes until the program has ended (its exit code) or the user detached (`DETACHED`)."""

    def __init__(
        self,
        session: Session,
        *,
        tty: bool,
        stdin: bool,
        stdout: bool = True,
        stderr: bool = True,
        proxy: bool = True,
        detach_keys: str = terminal.DEFAULT_DETACH_KEYS,
    ) -> None:
        self._session = session
        self._tty = tty
        self._stdin = stdin
        self._outputs = {frames.STDOUT: 1 if stdout else -1, frames.STDERR: 2 if stderr else -1}
        self._proxy = proxy
        self._keys = terminal.DetachKeys(terminal.parse_keys(detach_keys) if tty and stdin else b"")
        self._unsent = bytearray()
        self._code: int | None = None
        self._asked = 0

    def run(self) -> int:
        names = (_PROXIED if self._proxy else ()) + (("SIGWINCH",) if self._tty else ())
        with Signals(names) as signals, terminal.Raw(0 if self._tty and self._stdin else -1):
            if self._tty:
                self._resize()
            self._loop(signals)
        if self._keys.detached:
            return DETACHED
        if self._insisted:
            return INSISTED
        if self._code is None:
            raise Unavailable(
                "the stream from the daemon ended early",
                hint="the workload goes on: knarr attach, knarr logs",
            )
        return self._code

    def _loop(self, signals: Signals) -> None:
        self._receive(b"")
        socket = self._session.sock.fileno()
        poll = select.poll()
        poll.register(signals.fd, select.POLLIN)
        while self._code is None and not self._keys.detached and not self._insisted:
            poll.register(socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
            self._listen_to_stdin(poll)
            for fd, ready in poll.poll():
                if fd == signals.fd:
                    self._signals(signals.take())
                elif fd == 0:
                    self._read_stdin()
                elif ready & select.POLLOUT:
                    self._send()
                elif not self._read_socket():
                    return
        self._send()

    def _listen_to_stdin(self, poll: select.poll) -> None:
        """Not while the daemon is slow to take what was read: memory stays bounded."""
        if self._stdin and len(self._unsent) < _MAX_UNSENT:
            poll.register(0, select.POLLIN)
        else:
            try:
                poll.unregister(0)
            except KeyError:
                pass

    @property
    def _insisted(self) -> bool:
        """A process 1 without a handler never hears of Ctrl-C: nobody may be caught in it."""
        return self._asked >= _PATIENCE and self._code is None

    def _signals(self, numbers: set[int]) -> None:
        for number in numbers:
            self._asked += number in _INSISTENT
            if number == signal.SIGWINCH:
                self._resize()
            elif self._proxy:
                self._queue(
                    frames.encode_control({"signal": signal.Signals(number).name.removeprefix("SIG")})
                )

    def _resize(self) -> None:
        found = terminal.size(0) or terminal.size(1)
        if found:
            self._queue(frames.encode_control({"resize": list(found)}))

    def _read_stdin(self) -> None:
        try:
            data = os.read(0, 64 * 1024)
        except OSError:
            data = b""
        if not data:
            self._stdin = False
            self._queue(frames.encode(frames.STDIN, b""))
            return
        data = self._keys.feed(data)
        if data:
            self._queue(frames.encode(frames.STDIN, data))
        if self._keys.detached:
            self._queue(frames.encode_control({"detach": True}))

    def _queue(self, data: bytes) -> None:
        self._unsent += data
        self._send()

    def _send(self) -> None:
        try:
            while self._unsent:
                sent = self._session.sock.send(self._unsent, _socket.MSG_DONTWAIT)
                del self._unsent[:sent]
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            # the daemon closed its side; what it sent before is still to be read
            self._unsent.clear()
            self._stdin = False

    def _read_socket(self) -> bool:
        try:
            data = self._session.sock.recv(READ_SIZE)
        except ConnectionResetError:
            data = b""
        if data:
            self._receive(data)
        return bool(data)

    def _receive(self, data: bytes) -> None:
        for kind, payload in self._session.feed(data):
            if kind == frames.CONTROL:
                self._control(frames.decode_control(payload))
            elif self._outputs.get(kind, -1) >= 0:
                write_all(self._outputs[kind], payload)

    def _control(self, message: dict[str, Any]) -> None:
        if isinstance(message.get("error"), dict):
            raise from_json(message["error"])
        if "exit" in message:
            self._code = int(message["exit"])


def write_all(fd: int, data: bytes) -> None:
    """All of it, also where the descriptor is a terminal or pipe that somebody made non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])


def finish(code: int) -> int:
    """The exit code for the shell."""
    from knarr.cli.context import warn

    if code == DETACHED:
        import sys

        sys.stderr.write("read escape sequence\n")
        return 0
    if code == INSISTED:
        warn(f"asked {_PATIENCE} times, leaving; the workload goes on: knarr ps, knarr stop")
        return 1
    if code < 0:
        warn("the exit code could not be learnt")
        return 125
    return code
