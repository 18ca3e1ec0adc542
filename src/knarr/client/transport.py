"""A blocking connection to the daemon's unix socket, and starting the daemon when nobody listens.

Built on `_socket`, because the public module's enums cost the command line milliseconds at import. Out of
scope: what calls mean (`client`), parsing (`http`).
"""

from __future__ import annotations

import _socket
import os
import sys
import time

from knarr.client import http
from knarr.model.errors import Denied, Failed, KnarrError, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from knarr.client.calls import Call

READ_SIZE = 256 * 1024
MAX_JSON = 64 << 20
"""bytes of one JSON answer"""

_SUN_PATH = 107
"""bytes that fit into sockaddr_un"""

_CONTROL = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from knarr.keeper.control import main; raise SystemExit(main(sys.argv[1:]))"
)


def connect(run: str) -> _socket.socket:
    """A connection to RUN/knarr.sock. Raises OSError."""
    path = os.path.join(run, "knarr.sock")
    folder = -1
    try:
        if len(os.fsencode(path)) > _SUN_PATH:
            folder = os.open(run, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            path = f"/proc/self/fd/{folder}/knarr.sock"
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            sock.connect(path)
        except BaseException:
            sock.close()
            raise
        return sock
    finally:
        if folder >= 0:
            os.close(folder)


def connect_or_start(root: str, run: str, *, start: bool) -> _socket.socket:
    """A connection, after starting the instance when nobody listens and `start`. Raises `KnarrError`."""
    try:
        return connect(run)
    except PermissionError as error:
        raise Denied(f"{run}/knarr.sock: permission denied", hint="run knarr as root, with sudo") from error
    except (FileNotFoundError, ConnectionRefusedError) as error:
        if not start:
            raise Unavailable(
                f"no daemon serves {run}", hint="start it: knarr daemon start, with the same --root and --run"
            ) from error
    except OSError as error:
        raise Unavailable(f"{run}/knarr.sock: {error.strerror}", hint="is --run right?") from error
    control(["start", root, run])
    return _wait_for_socket(root, run)


def _wait_for_socket(root: str, run: str, patience: float = 60.0) -> _socket.socket:
    deadline = time.monotonic() + patience
    pause = 0.005
    while True:
        try:
            return connect(run)
        except OSError as error:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"the daemon was started but {run}/knarr.sock does not answer: {error.strerror}",
                    hint=f"its log is {root}/daemon.log",
                ) from error
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)


def control(argv: list[str]) -> dict[str, Any]:
    """Run the keeper's control program and give its JSON answer. Raises `KnarrError`.

    A program of its own, because the client may not import the keeper and a daemon must not inherit from a
    command line (terminal, descriptors, working directory).
    """
    import subprocess

    source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    command = [sys.executable, "-IS", "-c", _CONTROL, source, *argv]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return _control_answer(argv[0], done.returncode, done.stdout, done.stderr)


def _control_answer(verb: str, code: int, output: bytes, complaint: bytes) -> dict[str, Any]:
    import json

    from knarr.model import errors

    try:
        answer = json.loads(output.strip().splitlines()[-1]) if output.strip() else {}
    except ValueError:
        answer = {}
    if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
        raise errors.from_json(answer["error"])
    if isinstance(answer, dict) and code and "message" in answer:
        raise errors.from_json(answer)
    if code:
        last = complaint.decode(errors="replace").strip().splitlines() or [f"exit code {code}"]
        raise Failed(f"daemon {verb}: {last[-1]}", hint="knarr system check tells what this host lacks")
    return answer if isinstance(answer, dict) else {}


class Connection:
    """One HTTP connection; one exchange at a time."""

    def __init__(self, sock: _socket.socket) -> None:
        self.sock = sock
        self._idle = True
        self._whole = True

    @property
    def idle(self) -> bool:
        """Fit for the next call: nothing under way, the last one sent whole, the daemon still there."""
        if not self._idle or not self._whole or self.sock.fileno() < 0:
            return False
        import select

        poll = select.poll()
        poll.register(self.sock.fileno(), select.POLLIN)
        return not poll.poll(0)

    @idle.setter
    def idle(self, value: bool) -> None:
        self._idle = value

    def close(self) -> None:
        self.sock.close()

    def exchange(self, call: Call) -> Response:
        """Send the call, read the answer's head. Raises OSError or `http.ProtocolError`."""
        self.idle = False
        body = call.body
        headers = dict(call.headers)
        if isinstance(body, bytes):
            headers["Content-Length"] = str(len(body))
        elif body is not None:
            headers["Transfer-Encoding"] = "chunked"
        head = http.encode_request(call.method, call.target, headers)
        if body is None or isinstance(body, bytes):
            self._send(head + (body or b""))
        else:
            self._send_chunked(head, body)
        return Response(self, call.method)

    def _send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def _send_chunked(self, head: bytes, pieces: Iterable[bytes]) -> None:
        """Stops early when the daemon answers before it has read everything: a refusal.

        The daemon would take what came next on such a connection for the rest of the body.
        """
        self._send(head)
        for piece in pieces:
            if not self._send_unless_answered(http.encode_chunk(piece)):
                self._whole = False
                return
        self._whole = self._send_unless_answered(http.LAST_CHUNK)

    def _send_unless_answered(self, data: bytes) -> bool:
        import select

        poll = select.poll()
        poll.register(self.sock.fileno(), select.POLLIN | select.POLLOUT)
        view = memoryview(data)
        while view:
            for _, ready in poll.poll():
                if ready & select.POLLIN:
                    return False
            try:
                view = view[self.sock.send(view, _socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                return False
        return True


class Response:
    """The answer to one call: its head at once, its body as it comes."""

    def __init__(self, connection: Connection, method: str) -> None:
        self._connection = connection
        self._parser = http.ResponseParser(method)
        self._early: list[bytes] = []
        self.rest = b""
        self.head = self._read_head()

    def _read_head(self) -> http.Head:
        head: http.Head | None = None
        while head is None:
            for event in self._parser.feed(self._receive()):
                if isinstance(event, http.Head):
                    head = event if event.status == 101 or event.status >= 200 else None
                else:
                    self._note(event)
        return head

    def _receive(self) -> bytes:
        return self._connection.sock.recv(READ_SIZE)

    def _note(self, event: http.Head | bytes | http.End) -> None:
        if isinstance(event, http.End):
            self.rest = event.rest
            self._connection.idle = self._parser.keep_alive and not event.rest
        elif isinstance(event, bytes):
            self._early.append(event)

    def chunks(self) -> Iterator[bytes]:
        """The body's bytes as they arrive."""
        while True:
            pieces, self._early = self._early, []
            yield from pieces
            if self._parser.complete:
                return
            for event in self._parser.feed(self._receive()):
                self._note(event)

    def read(self) -> bytes:
        """The whole body. Raises `Failed` over `MAX_JSON`."""
        body = bytearray()
        for piece in self.chunks():
            body += piece
            if len(body) > MAX_JSON:
                self._connection.close()
                raise Failed(f"the daemon's answer is longer than {MAX_JSON} bytes")
        return bytes(body)

    def lines(self) -> Iterator[bytes]:
        """The body split at newlines, as they arrive."""
        pending = bytearray()
        for piece in self.chunks():
            pending += piece
            *whole, tail = bytes(pending).split(b"\n")
            pending = bytearray(tail)
            yield from (line for line in whole if line.strip())
        if pending.strip():
            yield bytes(pending)


def error_of(status: int, reason: str, body: bytes) -> KnarrError:
    """The error that an answer with a status from 400 on carries."""
    import json

    from knarr.model import errors

    try:
        data = json.loads(body)
    except ValueError:
        data = None
    if isinstance(data, dict) and "message" in data:
        return errors.from_json(data)
    text = body.decode(errors="replace").strip() or reason
    return Failed(f"the daemon answered {status}: {text[:500]}")
