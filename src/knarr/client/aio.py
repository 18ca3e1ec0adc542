"""The asynchronous client: the same calls as `client`, on asyncio streams and the same sans-IO parser.

A connection per call, so that calls may run at the same time. Out of scope: starting the daemon
(`transport`).
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any, Self

from knarr.client import calls, frames, http, transport
from knarr.client.client import decode_path_stat
from knarr.model.errors import Failed, Unavailable, from_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
    from types import TracebackType

    from knarr.client.shapes import Condition, Created, Document, PathStat, PlanSteps, Summary, WaitResult
    from knarr.model.workload import ExecSpec, Update, WorkloadSpec

    Pieces = Iterable[bytes] | AsyncIterable[bytes]


class _Exchange:
    """One call on a connection of its own; `async with` closes it."""

    def __init__(self, run: str, call: calls.Call, body: Pieces | None = None) -> None:
        self._run = run
        self._call = call
        self._body = call.body if body is None else body
        self._parser = http.ResponseParser(call.method)
        self._early: list[bytes] = []
        self.rest = b""

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def open(self) -> None:
        """Connect, send, read the head; raises the error that the answer carries."""
        self.reader, self.writer = await connect(self._run)
        try:
            await self._send()
            self.head = await self._read_head()
            if self.head.status >= 400:
                raise transport.error_of(self.head.status, self.head.reason, await self.read())
        except (http.ProtocolError, OSError) as error:
            self.close()
            raise Unavailable(
                f"the daemon did not answer: {error}", hint="running workloads go on"
            ) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.writer.close()

    async def _send(self) -> None:
        headers = dict(self._call.headers)
        body = self._body
        if isinstance(body, bytes):
            headers["Content-Length"] = str(len(body))
        elif body is not None:
            headers["Transfer-Encoding"] = "chunked"
        self.writer.write(http.encode_request(self._call.method, self._call.target, headers))
        if isinstance(body, bytes):
            self.writer.write(body)
        elif body is not None:
            await self._send_chunked(body)
        await self.writer.drain()

    async def _send_chunked(self, body: Pieces) -> None:
        """A daemon that refuses closes its side; its answer is still to be read."""
        try:
            async for piece in _each(body):
                self.writer.write(http.encode_chunk(piece))
                await self.writer.drain()
            self.writer.write(http.LAST_CHUNK)
        except (BrokenPipeError, ConnectionResetError):
            return

    async def _read_head(self) -> http.Head:
        head: http.Head | None = None
        while head is None:
            for event in self._parser.feed(await self.reader.read(transport.READ_SIZE)):
                if isinstance(event, http.Head):
                    head = event if event.status == 101 or event.status >= 200 else None
                else:
                    self._note(event)
        return head

    def _note(self, event: http.Head | bytes | http.End) -> None:
        if isinstance(event, http.End):
            self.rest = event.rest
        elif isinstance(event, bytes):
            self._early.append(event)

    async def chunks(self) -> AsyncIterator[bytes]:
        while True:
            pieces, self._early = self._early, []
            for piece in pieces:
                yield piece
            if self._parser.complete:
                return
            for event in self._parser.feed(await self.reader.read(transport.READ_SIZE)):
                self._note(event)

    async def read(self) -> bytes:
        body = bytearray()
        async for piece in self.chunks():
            body += piece
            if len(body) > transport.MAX_JSON:
                raise Failed(f"the daemon's answer is longer than {transport.MAX_JSON} bytes")
        return bytes(body)


async def connect(run: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Streams to RUN/knarr.sock. Raises `Unavailable`."""
    path = os.path.join(run, "knarr.sock")
    folder = os.open(run, os.O_PATH | os.O_CLOEXEC) if len(os.fsencode(path)) > 107 else -1
    try:
        if folder >= 0:
            path = f"/proc/self/fd/{folder}/knarr.sock"
        return await asyncio.open_unix_connection(path)
    except OSError as error:
        raise Unavailable(f"no daemon serves {run}: {error.strerror}", hint="knarr daemon start") from error
    finally:
        if folder >= 0:
            os.close(folder)


async def _each(body: Pieces) -> AsyncIterator[bytes]:
    if hasattr(body, "__aiter__"):
        async for piece in body:
            yield piece
    else:
        for piece in body:
            yield piece


class AsyncSession:
    """An attached workload or exec."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange
        self._reader = frames.FrameReader()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exchange.close()

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        """`(type, payload)` until the daemon ends the connection."""
        data = self._exchange.rest
        while True:
            for frame in self._reader.feed(data):
                yield frame
            data = await self._exchange.reader.read(transport.READ_SIZE)
            if not data:
                return

    async def write(self, data: bytes) -> None:
        await self._write(frames.encode(frames.STDIN, data))

    async def close_stdin(self) -> None:
        await self._write(frames.encode(frames.STDIN, b""))

    async def control(self, message: dict[str, Any]) -> None:
        await self._write(frames.encode_control(message))

    async def _write(self, data: bytes) -> None:
        self._exchange.writer.write(data)
        await self._exchange.writer.drain()


class AsyncClient:
    """Calls to one instance whose daemon runs."""

    def __init__(self, run: str) -> None:
        self.run = run

    async def _json(self, call: calls.Call) -> Any:
        async with _Exchange(self.run, call) as exchange:
            body = await exchange.read()
        return json.loads(body) if body.strip() else None

    async def _lines(self, call: calls.Call, body: Pieces | None = None) -> AsyncIterator[Any]:
        async with _Exchange(self.run, call, body) as exchange:
            pending = b""
            async for piece in exchange.chunks():
                *whole, pending = (pending + piece).split(b"\n")
                for line in whole:
                    if line.strip():
                        yield json.loads(line)
            if pending.strip():
                yield json.loads(pending)

    async def _progress(self, call: calls.Call, body: Pieces | None = None) -> AsyncIterator[Document]:
        last: Document = {}
        async for last in self._lines(call, body):
            if isinstance(last.get("error"), dict):
                raise from_json(last["error"])
            yield last
        if "image" not in last and "ready" not in last:
            raise Unavailable("the daemon ended in the middle of the work", hint="try again")

    async def _session(self, call: calls.Call) -> AsyncSession:
        exchange = _Exchange(self.run, call)
        await exchange.open()
        if exchange.head.status != 101:
            exchange.close()
            raise Failed(f"the daemon answered {exchange.head.status} where a stream was asked for")
        return AsyncSession(exchange)

    async def version(self) -> Document:
        return await self._json(calls.version())  # type: ignore[no-any-return]

    async def system_info(self) -> Document:
        return await self._json(calls.system_info())  # type: ignore[no-any-return]

    async def templates(self) -> list[Document]:
        return await self._json(calls.templates())  # type: ignore[no-any-return]

    async def make_template(
        self,
        *,
        memory: int | None = None,
        cpus: float | None = None,
        kernel: str | None = None,
        network: str | None = None,
    ) -> Document:
        call = calls.make_template(memory=memory, cpus=cpus, kernel=kernel, network=network)
        return await self._json(call)  # type: ignore[no-any-return]

    async def remove_template(self, key: str) -> Document:
        return await self._json(calls.remove_template(key))  # type: ignore[no-any-return]

    async def openapi(self) -> Document:
        return await self._json(calls.openapi())  # type: ignore[no-any-return]

    def events(
        self, *, since: str | None = None, until: str | None = None, follow: bool = True
    ) -> AsyncIterator[Document]:
        return self._lines(calls.events(since=since, until=until, follow=follow))

    def pull(
        self, reference: str, *, platform: str | None = None, insecure: bool = False
    ) -> AsyncIterator[Document]:
        return self._progress(calls.pull(reference, platform=platform, insecure=insecure))

    def load(self, body: Pieces) -> AsyncIterator[Document]:
        return self._progress(calls.load(()), body)

    def import_image(self, body: Pieces, reference: str | None = None) -> AsyncIterator[Document]:
        return self._progress(calls.import_image((), reference), body)

    def bootstrap(
        self, distribution: str, *, include: Iterable[str] = (), reference: str | None = None
    ) -> AsyncIterator[Document]:
        return self._progress(calls.bootstrap(distribution, include, reference))

    def commit(self, name: str, *, reference: str | None = None, **wanted: Any) -> AsyncIterator[Document]:
        """A new image of a workload's files; `author`, `message`, `changes`, `pause` as `Client.commit`."""
        return self._progress(calls.commit(name, {"reference": reference, **wanted}))

    async def history(self, name: str) -> list[Document]:
        return await self._json(calls.image_history(name))  # type: ignore[no-any-return]

    def image_diff(self, name: str, other: str) -> AsyncIterator[Document]:
        return self._lines(calls.image_diff(name, other))

    async def collect_images(self) -> Document:
        return await self._json(calls.post("/images/gc"))  # type: ignore[no-any-return]

    def check_images(self, *, repair: bool = False) -> AsyncIterator[Document]:
        """Progress; the last line has `problems`."""
        return self._progress(calls.post("/images/check", {"repair": repair}))

    def push(self, reference: str, *, insecure: bool = False) -> AsyncIterator[Document]:
        """Progress; the last line has the `digest` under which the registry has it."""
        return self._progress(calls.post("/images/push", {"reference": reference, "insecure": insecure}))

    async def disk_usage(self) -> Document:
        return await self._json(calls.disk_usage())  # type: ignore[no-any-return]

    async def export(self, name: str) -> AsyncIterator[bytes]:
        """A tar of a workload's whole root, without what is mounted in it."""
        async with _Exchange(self.run, calls.export(name)) as exchange:
            async for piece in exchange.chunks():
                yield piece

    async def save(self, names: Iterable[str], *, form: str = "docker-archive") -> AsyncIterator[bytes]:
        call = calls.post("/images/save", {"names": list(names), "form": form})
        async with _Exchange(self.run, call) as exchange:
            async for piece in exchange.chunks():
                yield piece

    async def images(self) -> list[Summary]:
        return await self._json(calls.images())  # type: ignore[no-any-return]

    async def image(self, name: str) -> Document:
        return await self._json(calls.image(name))  # type: ignore[no-any-return]

    async def remove_image(self, name: str, *, force: bool = False) -> Any:
        return await self._json(calls.remove_image(name, force=force))

    async def tag(self, name: str, reference: str) -> None:
        await self._json(calls.tag(name, reference))

    async def prune_images(self, *, unused: bool = False, filters: Iterable[str] = ()) -> Document:
        return await self._json(calls.prune_images(unused=unused, filters=filters))  # type: ignore[no-any-return]

    async def create_volume(
        self, name: str = "", *, labels: Mapping[str, str] | None = None, driver: str = "local"
    ) -> Document:
        """An empty name makes one without."""
        return await self._json(calls.create_volume(name, labels or {}, driver))  # type: ignore[no-any-return]

    async def volumes(self) -> list[Summary]:
        return await self._json(calls.volumes())  # type: ignore[no-any-return]

    async def volume(self, name: str) -> Document:
        return await self._json(calls.volume(name))  # type: ignore[no-any-return]

    async def remove_volume(self, name: str) -> None:
        await self._json(calls.remove_volume(name))

    async def prune_volumes(self, *, unused: bool = False, filters: Iterable[str] = ()) -> Document:
        """`unused`: also those with a name."""
        return await self._json(calls.prune_volumes(unused=unused, filters=filters))  # type: ignore[no-any-return]

    async def create(self, spec: WorkloadSpec | Mapping[str, Any]) -> Created:
        return await self._json(calls.create(spec))  # type: ignore[no-any-return]

    def provision(self, name: str) -> AsyncIterator[Document]:
        """Fetch what `create` said is `wanting`; progress lines."""
        return self._progress(calls.provision(name))

    async def plan(self, spec: WorkloadSpec | Mapping[str, Any]) -> PlanSteps:
        return await self._json(calls.plan(spec))  # type: ignore[no-any-return]

    async def workloads(
        self, *, stopped: bool = False, filters: Iterable[str] = (), sizes: bool = False
    ) -> list[Summary]:
        return await self._json(calls.workloads(stopped=stopped, filters=filters, sizes=sizes))  # type: ignore[no-any-return]

    async def inspect(self, name: str) -> Document:
        return await self._json(calls.inspect(name))  # type: ignore[no-any-return]

    async def remove(self, name: str, *, force: bool = False, volumes: bool = False) -> None:
        """`volumes`: also its ones without a name."""
        await self._json(calls.remove(name, force=force, volumes=volumes))

    async def start(self, name: str) -> None:
        await self._json(calls.start(name))

    async def stop(self, name: str, *, timeout: float | None = None) -> None:
        """`timeout`: the workload's, between its stop signal and SIGKILL."""
        await self._json(calls.stop(name, timeout=timeout))

    async def kill(self, name: str, signal: str = "KILL") -> None:
        await self._json(calls.kill(name, signal))

    async def restart(self, name: str, *, timeout: float | None = None) -> None:
        await self._json(calls.restart(name, timeout=timeout))

    async def rename(self, name: str, to: str) -> None:
        await self._json(calls.rename(name, to))

    async def update(self, name: str, wanted: Update | Mapping[str, Any]) -> None:
        """Limits: `memory`, `cpus`, `cpuset`, `pids`."""
        await self._json(calls.update(name, wanted))

    async def top(self, name: str, options: str = "") -> Document:
        """`{titles, processes}`; `options` as for ps."""
        return await self._json(calls.top(name, options))  # type: ignore[no-any-return]

    async def changes(self, name: str) -> list[dict[str, str]]:
        """`{kind, path}` each; kind is A, C or D."""
        return await self._json(calls.changes(name))  # type: ignore[no-any-return]

    async def pause(self, name: str) -> None:
        await self._json(calls.pause(name))

    async def unpause(self, name: str) -> None:
        await self._json(calls.unpause(name))

    async def resize(self, name: str, columns: int, rows: int, *, exec_id: str | None = None) -> None:
        await self._json(calls.resize(name, columns, rows, exec_id=exec_id))

    async def prune(self, filters: Iterable[str] = ()) -> Document:
        return await self._json(calls.prune(filters))  # type: ignore[no-any-return]

    async def wait(self, name: str, condition: Condition = "not-running") -> WaitResult:
        return await self._json(calls.wait(name, condition))  # type: ignore[no-any-return]

    async def attach(
        self, name: str, *, stdin: bool = False, logs: bool = False, start: bool = False
    ) -> AsyncSession:
        call = calls.attach(name, stdin=stdin, stdout=True, stderr=True, logs=logs, start=start)
        return await self._session(call)

    async def execute(self, name: str, spec: ExecSpec | Mapping[str, Any]) -> AsyncSession:
        return await self._session(calls.execute(name, spec, detach=False))

    async def execute_detached(self, name: str, spec: ExecSpec | Mapping[str, Any]) -> str:
        return str((await self._json(calls.execute(name, spec, detach=True)))["exec_id"])

    async def logs(
        self, name: str, *, follow: bool = False, tail: int | None = None, timestamps: bool = False
    ) -> AsyncIterator[tuple[int, bytes]]:
        call = calls.logs(
            name,
            follow=follow,
            tail=tail,
            since=None,
            until=None,
            timestamps=timestamps,
            stdout=True,
            stderr=True,
        )
        reader = frames.FrameReader()
        async with _Exchange(self.run, call) as exchange:
            async for piece in exchange.chunks():
                for frame in reader.feed(piece):
                    yield frames.output(frame)

    async def stats(self, name: str) -> Document:
        return await self._json(calls.stats(name, stream=False))  # type: ignore[no-any-return]

    def stats_stream(self, name: str) -> AsyncIterator[Document]:
        return self._lines(calls.stats(name, stream=True))

    async def stat_path(self, name: str, path: str) -> PathStat:
        async with _Exchange(self.run, calls.stat_path(name, path)) as exchange:
            return decode_path_stat(exchange.head, name, path)

    async def get_archive(self, name: str, path: str) -> AsyncIterator[bytes]:
        async with _Exchange(self.run, calls.get_archive(name, path)) as exchange:
            async for piece in exchange.chunks():
                yield piece

    async def put_archive(self, name: str, path: str, body: Pieces) -> None:
        async with _Exchange(self.run, calls.put_archive(name, path, ()), body) as exchange:
            await exchange.read()
