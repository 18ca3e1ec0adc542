"""The daemon's end of a guest's agent: one connection, many sessions, asyncio.

A frame is handed to the kernel by one send(2), so a killed daemon leaves only whole frames behind; what a new
daemon's `hello` brings back starts at a marker that only it knows. Out of scope: the protocol's bytes
(`machines.wire`), what is started (`machines.request`).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

from knarr.machines import wire
from knarr.machines.wire import Event, FromGuest, State, ToGuest
from knarr.model.errors import Conflict, Failed, KnarrError, Unavailable
from knarr.model.failures import of_path

T = TypeVar("T")
_READ_SIZE = 65536
_QUEUE_HIGH = 256 << 10
_STATUS_MAX = 16 << 10
"""a file's status: three numbers, a name, a link's target"""


class AgentGone(Unavailable):
    """The machine ended, or nobody answers inside."""


class Session:
    """One process inside, or one archive: what comes out of it, what may be sent to it."""

    def __init__(self, agent: Agent, number: int) -> None:
        self._agent = agent
        self._number = number
        self._output: deque[tuple[int, bytes]] = deque()
        self._unread = 0
        self._taken = 0
        self._credit = wire.WINDOW
        self._changed = asyncio.Event()
        self.started = False
        self.exit_code: int | None = None
        self.reply: bytes | None = None
        self.error: KnarrError | None = None

    @property
    def ended(self) -> bool:
        return self.exit_code is not None

    def on_event(self, event: Event) -> None:
        if event.kind is FromGuest.DATA:
            self._on_data(event)
        elif event.kind is FromGuest.CREDIT and len(event.payload) == 4:
            self._credit = min(self._credit + int.from_bytes(event.payload, "little"), wire.WINDOW)
        elif event.kind is FromGuest.STARTED:
            self.started = True
        elif event.kind is FromGuest.EXIT and len(event.payload) == 4:
            self.exit_code = int.from_bytes(event.payload, "little") & 0xFF
        elif event.kind is FromGuest.RESULT:
            self.reply = event.payload
        elif event.kind is FromGuest.ERROR:
            self.error = _guest_error(event.payload)
        self._changed.set()

    def fail(self, error: KnarrError) -> None:
        if self.exit_code is None and self.error is None:
            self.error = error
        self._changed.set()

    async def wait_started(self) -> None:
        """Raises what kept the process from starting; exit_code is then docker's 125-127."""
        await self._until(lambda: self.started or self.exit_code is not None)

    async def read(self) -> tuple[int, bytes] | None:
        """(1 | 2, bytes); None at the end of both streams."""
        while not self._output:
            if self.ended:
                return None
            await self._step()
        stream, data = self._output.popleft()
        self._unread -= len(data)
        self._taken += len(data)
        if self._taken >= wire.WINDOW // 4:
            self._agent.post(ToGuest.CREDIT, self._number, self._taken.to_bytes(4, "little"))
            self._taken = 0
        return stream, data

    async def write(self, data: bytes) -> None:
        """Waits for the reader inside; what a process that is gone would have read is dropped."""
        view = memoryview(data)
        while view and not self.ended:
            if self._credit <= 0:
                await self._step()
                continue
            piece = view[: min(self._credit, wire.PAYLOAD_MAX)]
            self._credit -= len(piece)
            view = view[len(piece) :]
            self._agent.post(ToGuest.DATA, self._number, bytes(piece))
            await self._agent.drain()

    async def close_stdin(self) -> None:
        self._agent.post(ToGuest.EOF, self._number)

    async def resize(self, columns: int, rows: int) -> None:
        self._agent.post(ToGuest.RESIZE, self._number, _size(columns, rows))

    async def signal(self, signum: int) -> None:
        self._agent.post(ToGuest.SIGNAL, self._number, bytes((signum,)))

    async def wait(self) -> int:
        """The exit code, once everything it wrote has been read or dropped."""
        while self.exit_code is None:
            await self._step()
        return self.exit_code

    async def result(self) -> dict[str, bytes]:
        await self._until(lambda: self.reply is not None)
        return wire.unpack_records(self.reply or b"")

    async def close(self) -> None:
        if not self.ended and self.error is None and self.reply is None:
            self._agent.post(ToGuest.CLOSE, self._number)
        self._agent.forget(self._number)

    def _on_data(self, event: Event) -> None:
        if not event.payload:
            # counts for nothing in the window, so any number of them could pile up
            return
        self._unread += len(event.payload)
        if event.stream not in (1, 2) or self._unread > 2 * wire.WINDOW:
            raise Failed("the guest's agent broke the protocol: more output than was asked for")
        self._output.append((event.stream, event.payload))

    async def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            await self._step()

    async def _step(self) -> None:
        self._raise_failure()
        self._changed.clear()
        await self._changed.wait()
        if not self._output:
            self._raise_failure()

    def _raise_failure(self) -> None:
        if self.error is not None:
            raise self.error


class Agent:
    """The control port's host end. `closed` is set when the machine is gone or has broken the protocol."""

    def __init__(self, fd: int) -> None:
        """Takes over `fd`, a connected stream socket."""
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        nonce = os.urandom(wire.NONCE_SIZE)
        self._decoder = wire.Decoder(nonce)
        self._sessions: dict[int, Session] = {}
        self._last = int.from_bytes(os.urandom(2), "little")
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._writing = False
        self._room = asyncio.Event()
        self._room.set()
        self._hello: asyncio.Future[State] = self._loop.create_future()
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._hello.add_done_callback(_retrieve)
        self._started.add_done_callback(_retrieve)
        self.ended: asyncio.Future[dict[str, bytes]] = self._loop.create_future()
        """{code, oom, out, err} as the guest tells it; the durable truth is the status file"""
        self.ended.add_done_callback(_retrieve)
        self.closed = False
        self._loop.add_reader(self._socket.fileno(), self._on_readable)
        self.post(ToGuest.HELLO, 0, nonce)

    async def hello(self, timeout: float) -> State:
        """Wait for the answer to our first message. Raises `AgentGone`."""
        try:
            return await asyncio.wait_for(asyncio.shield(self._hello), timeout)
        except TimeoutError:
            raise AgentGone("the machine's agent does not answer") from None

    def start(self, records: wire.Records) -> None:
        self.post(ToGuest.START, 0, wire.pack_records(records))

    async def heard(self, timeout: float) -> None:
        """Return when the program runs or can't. Raises `AgentGone`: no machine, or not a word from it."""
        try:
            await asyncio.wait_for(asyncio.shield(self._started), timeout)
        except TimeoutError:
            raise AgentGone("the machine's agent does not answer") from None
        except KnarrError as error:
            if isinstance(error, AgentGone):
                raise

    async def started(self) -> None:
        """Returns when the program runs. Raises what kept it from running, or `AgentGone`."""
        await asyncio.shield(self._started)

    async def exec(self, records: wire.Records) -> Session:
        return await self._program(ToGuest.EXEC, records)

    async def ask(self, op: str, *, path: str = "", records: wire.Records = ()) -> dict[str, bytes]:
        """`stats`, `top`, `update`, `freeze` or `thaw`."""
        session = self._open(ToGuest.ASK, (("op", op.encode()), ("path", os.fsencode(path)), *records))
        try:
            return await session.result()
        finally:
            await session.close()

    async def stat_path(self, path: str) -> tuple[int, int, int, str, str]:
        """(size, st_mode, mtime in ns, name, link target); links are not followed. Raises `NotFound`."""
        output = bytearray()

        async def collect(data: bytes) -> None:
            output.extend(data)
            if len(output) > _STATUS_MAX:
                raise Failed("the guest's agent broke the protocol: a file's status without end")

        await self.archive("lstat", path, collect)
        numbers, name, target = [*bytes(output).split(b"\0"), b"", b""][:3]
        fields = numbers.split()
        if len(fields) != 3 or not all(_is_number(field) for field in fields):
            raise Failed("the guest's agent broke the protocol: a file's status")
        size, mode, mtime = map(int, fields)
        return size, mode & 0xFFFF, mtime, os.fsdecode(name), os.fsdecode(target)

    async def archive(self, op: str, path: str, write: Callable[[bytes], Awaitable[None]]) -> None:
        """`get`, `tree` (without mounts), `upper` (the writable layer): tars; `lstat`. All to `write`."""
        session = await self._program(ToGuest.ASK, (("op", op.encode()), ("path", os.fsencode(path))))
        try:
            await session.close_stdin()
            await self._finish_archive(session, path, write)
        finally:
            await session.close()

    async def unpack(self, path: str, read: Callable[[], Awaitable[bytes]]) -> None:
        """Unpack the tar that `read` yields into the folder `path`."""
        session = await self._program(ToGuest.ASK, (("op", b"put"), ("path", os.fsencode(path))))
        try:
            while data := await read():
                await session.write(data)
            await session.close_stdin()
            await self._finish_archive(session, path, _nowhere)
        finally:
            await session.close()

    async def _finish_archive(
        self, session: Session, path: str, write: Callable[[bytes], Awaitable[None]]
    ) -> None:
        problem = bytearray()
        while (item := await session.read()) is not None:
            stream, data = item
            if stream == 1:
                await write(data)
            elif len(problem) < 1000:
                problem += data
        code = await session.wait()
        if code:
            text = wire.text({"text": bytes(problem)}, "text")
            raise of_path(code, text or f"{path}: {os.strerror(code)}")

    async def _program(self, kind: ToGuest, records: wire.Records) -> Session:
        session = self._open(kind, records)
        try:
            if kind is ToGuest.EXEC:
                await session.wait_started()
        except BaseException:
            await session.close()
            raise
        return session

    def _open(self, kind: ToGuest, records: wire.Records) -> Session:
        if self.closed:
            raise AgentGone("the machine has ended")
        self._last = self._last % 0x7FFFFFFF + 1
        session = self._sessions[self._last] = Session(self, self._last)
        self.post(kind, self._last, wire.pack_records(records))
        return session

    def forget(self, number: int) -> None:
        self._sessions.pop(number, None)

    def signal(self, signum: int) -> None:
        """To the workload's PID 1."""
        self.post(ToGuest.SIGNAL, 0, bytes((signum,)))

    def resize(self, columns: int, rows: int) -> None:
        self.post(ToGuest.RESIZE, 0, _size(columns, rows))

    def power_off(self) -> None:
        """The ended workload's output is all in the host's files."""
        self.post(ToGuest.OFF)

    def post(self, kind: ToGuest, session: int = 0, payload: bytes = b"") -> None:
        """Queue one message; whole frames only ever reach the socket."""
        if self.closed:
            return
        for frame in wire.frames(kind, session, payload):
            self._queue.append(frame)
            self._queued += len(frame)
        if self._queued > _QUEUE_HIGH:
            self._room.clear()
        if not self._writing:
            self._flush()

    async def drain(self) -> None:
        await self._room.wait()

    def close(self, error: KnarrError | None = None) -> None:
        """Let go of the connection; the machine goes on. Whoever waits gets `error`."""
        if self.closed:
            return
        self.closed = True
        fd = self._socket.fileno()
        self._loop.remove_reader(fd)
        self._loop.remove_writer(fd)
        self._socket.close()
        self._room.set()
        reason = error or AgentGone("the machine has ended")
        for future in (self._hello, self._started, self.ended):
            if not future.done():
                future.set_exception(reason)
        for session in tuple(self._sessions.values()):
            session.fail(reason)

    def _flush(self) -> None:
        while self._queue:
            try:
                sent = self._socket.send(self._queue[0])
            except BlockingIOError:
                break
            except OSError:
                self.close()
                return
            self._queued -= sent
            frame = self._queue.popleft()
            if sent < len(frame):  # a stream socket takes ≤ 4 KiB whole or not; kept right anyway
                self._queue.appendleft(frame[sent:])
        if self._queued <= _QUEUE_HIGH // 2:
            self._room.set()
        if bool(self._queue) != self._writing:
            self._writing = bool(self._queue)
            if self._writing:
                self._loop.add_writer(self._socket.fileno(), self._flush)
            else:
                self._loop.remove_writer(self._socket.fileno())

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(_READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        try:
            for event in self._decoder.feed(data):
                self._dispatch(event)
        except KnarrError as error:
            self.close(error)

    def _dispatch(self, event: Event) -> None:
        if event.session:
            session = self._sessions.get(event.session)
            if session is not None:
                session.on_event(event)
        elif event.kind is FromGuest.HELLO:
            self._on_hello(event.payload)
        elif event.kind is FromGuest.STARTED:
            _resolve(self._started, None)
        elif event.kind is FromGuest.ENDED:
            _resolve(self._started, None)
            _resolve(self.ended, wire.unpack_records(event.payload))
        elif event.kind is FromGuest.ERROR and not self._started.done():
            self._started.set_exception(_guest_error(event.payload))

    def _on_hello(self, payload: bytes) -> None:
        if len(payload) != 2 or payload[0] != wire.VERSION or payload[1] > State.ENDED:
            raise Failed("the machine's agent speaks another version", hint="start the workload again")
        _resolve(self._hello, State(payload[1]))


def _resolve(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)


def _is_number(field: bytes) -> bool:
    return len(field) < 20 and field.removeprefix(b"-").isdigit()


def _retrieve(future: asyncio.Future[T]) -> None:
    """A failure that nobody waits for is not worth a warning."""
    if not future.cancelled():
        future.exception()


async def _nowhere(_data: bytes) -> None:
    return


def _size(columns: int, rows: int) -> bytes:
    return min(max(columns, 0), 0xFFFF).to_bytes(2, "little") + min(max(rows, 0), 0xFFFF).to_bytes(
        2, "little"
    )


def _guest_error(payload: bytes) -> KnarrError:
    records = wire.unpack_records(payload)
    code = wire.number(records, "code", 125)
    message = wire.text(records, "text") or "the guest refused"
    if wire.number(records, "errno") == 3:
        return Conflict(message)
    return Failed(message, exit_code=code if code in (126, 127) else 125)
