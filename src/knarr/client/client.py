"""The synchronous client: one method for every call of the native API.

Standard library only and quick to import, because the command line is built on it. Out of scope: terminals
and presentation (`cli`), asyncio (`aio`).
"""

from __future__ import annotations

import binascii
import json

from knarr.client import calls, frames, http, transport
from knarr.client.imagecalls import ImageCalls
from knarr.model.errors import Failed, Unavailable, from_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType
    from typing import Any, Self

    from knarr.client.shapes import Condition, Created, Document, PathStat, PlanSteps, Summary, WaitResult
    from knarr.model.workload import ExecSpec, Update, WorkloadSpec


class Session:
    """An attached workload or exec: frames both ways over the raw socket."""

    def __init__(self, connection: transport.Connection, early: bytes) -> None:
        self._connection = connection
        self._reader = frames.FrameReader()
        self._early = early
        self.sock = connection.sock

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Whole frames out of received bytes (those that came with the upgrade first)."""
        early, self._early = self._early, b""
        return self._reader.feed(early + data)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Frames until the daemon ends the connection."""
        yield from self.feed(b"")
        while data := self.sock.recv(transport.READ_SIZE):
            yield from self._reader.feed(data)

    def write(self, data: bytes) -> None:
        """Bytes for the program's stdin."""
        self.sock.sendall(frames.encode(frames.STDIN, data))

    def close_stdin(self) -> None:
        """The program reads an end of file."""
        self.sock.sendall(frames.encode(frames.STDIN, b""))

    def control(self, message: dict[str, Any]) -> None:
        """`{"resize": [c, r]}`, `{"signal": "TERM"}`, `{"detach": true}`."""
        self.sock.sendall(frames.encode_control(message))

    def close(self) -> None:
        self._connection.close()


class Client(ImageCalls):
    """A connection to one instance. Not for use by several threads at once."""

    def __init__(self, root: str, run: str, *, start: bool = True) -> None:
        """`start`: start the daemon when nobody listens at RUN/knarr.sock."""
        self.root = root
        self.run = run
        self._start = start
        self._idle: transport.Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._idle is not None:
            self._idle.close()
            self._idle = None

    # how calls travel

    def _connect(self) -> transport.Connection:
        connection, self._idle = self._idle, None
        if connection is not None and connection.idle:
            return connection
        if connection is not None:
            connection.close()
        return transport.Connection(transport.connect_or_start(self.root, self.run, start=self._start))

    def _exchange(self, call: calls.Call) -> tuple[transport.Connection, transport.Response]:
        attempts = 4 if call.safe else 1
        while True:
            connection = self._connect()
            attempts -= 1
            try:
                return connection, connection.exchange(call)
            except (http.ProtocolError, OSError) as error:
                connection.close()
                if not attempts:
                    raise self._broken(error) from error
            except BaseException:
                connection.close()
                raise

    def _broken(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"the daemon did not answer: {error}",
            hint=f"running workloads go on; its log is {self.root}/daemon.log",
        )

    def _checked(self, call: calls.Call) -> tuple[transport.Connection, transport.Response]:
        connection, response = self._exchange(call)
        if response.head.status >= 400:
            body = response.read()
            self._keep(connection)
            raise transport.error_of(response.head.status, response.head.reason, body)
        return connection, response

    def _keep(self, connection: transport.Connection) -> None:
        if connection.idle and self._idle is None:
            self._idle = connection
        else:
            connection.close()

    def _body(self, call: calls.Call) -> bytes:
        attempts = 3 if call.safe else 1
        while True:
            connection, response = self._checked(call)
            attempts -= 1
            try:
                body = response.read()
            except (http.ProtocolError, OSError) as error:
                connection.close()
                if not attempts:
                    raise self._broken(error) from error
                continue
            self._keep(connection)
            return body

    def _json(self, call: calls.Call) -> Any:
        body = self._body(call)
        if not body.strip():
            return None
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Failed("the daemon's answer is not JSON") from error

    def _lines(self, call: calls.Call) -> Iterator[Any]:
        connection, response = self._checked(call)
        try:
            for line in response.lines():
                yield json.loads(line)
        except (http.ProtocolError, OSError) as error:
            raise self._broken(error) from error
        finally:
            connection.close()

    def _raw(self, call: calls.Call) -> Iterator[bytes]:
        connection, response = self._checked(call)
        return self._pieces(connection, response)

    def _pieces(self, connection: transport.Connection, response: transport.Response) -> Iterator[bytes]:
        try:
            yield from response.chunks()
        except (http.ProtocolError, OSError) as error:
            raise self._broken(error) from error
        finally:
            connection.close()

    def _session(self, call: calls.Call) -> Session:
        connection, response = self._checked(call)
        if response.head.status != 101:
            connection.close()
            raise Failed(f"the daemon answered {response.head.status} where a stream was asked for")
        return Session(connection, response.rest)

    def _progress(self, call: calls.Call) -> Iterator[Document]:
        """Progress lines; raises the error that the last line may carry."""
        last: Document = {}
        for last in self._lines(call):
            if isinstance(last.get("error"), dict):
                raise from_json(last["error"])
            yield last
        if "image" not in last and "ready" not in last:
            raise Unavailable("the daemon ended in the middle of the work", hint="try again")

    # the system

    def version(self) -> Document:
        return self._json(calls.version())  # type: ignore[no-any-return]

    def system_info(self) -> Document:
        return self._json(calls.system_info())  # type: ignore[no-any-return]

    def templates(self) -> list[Document]:
        """Saved microVMs that starts resume."""
        return self._json(calls.templates())  # type: ignore[no-any-return]

    def make_template(
        self,
        *,
        memory: int | None = None,
        cpus: float | None = None,
        kernel: str | None = None,
        network: str | None = None,
    ) -> Document:
        """For microVMs with these limits, unless it is there."""
        call = calls.make_template(memory=memory, cpus=cpus, kernel=kernel, network=network)
        return self._json(call)  # type: ignore[no-any-return]

    def remove_template(self, key: str) -> Document:
        return self._json(calls.remove_template(key))  # type: ignore[no-any-return]

    def openapi(self) -> Document:
        return self._json(calls.openapi())  # type: ignore[no-any-return]

    def events(
        self, *, since: str | None = None, until: str | None = None, follow: bool = True
    ) -> Iterator[Document]:
        return self._lines(calls.events(since=since, until=until, follow=follow))

    # images: progress lines, the last is {"image": …}; an error raises

    def pull(
        self,
        reference: str,
        *,
        platform: str | None = None,
        insecure: bool = False,
        username: str | None = None,
        password: str | None = None,
    ) -> Iterator[Document]:
        call = calls.pull(
            reference, platform=platform, insecure=insecure, username=username, password=password
        )
        return self._progress(call)

    def load(self, body: Iterable[bytes]) -> Iterator[Document]:
        return self._progress(calls.load(body))

    def import_image(self, body: Iterable[bytes], reference: str | None = None) -> Iterator[Document]:
        return self._progress(calls.import_image(body, reference))

    def bootstrap(
        self, distribution: str, *, include: Iterable[str] = (), reference: str | None = None
    ) -> Iterator[Document]:
        return self._progress(calls.bootstrap(distribution, include, reference))

    def images(self) -> list[Summary]:
        return self._json(calls.images())  # type: ignore[no-any-return]

    def image(self, name: str) -> Document:
        return self._json(calls.image(name))  # type: ignore[no-any-return]

    def remove_image(self, name: str, *, force: bool = False) -> Any:
        return self._json(calls.remove_image(name, force=force))

    def tag(self, name: str, reference: str) -> None:
        self._json(calls.tag(name, reference))

    def prune_images(self, *, unused: bool = False, filters: Iterable[str] = ()) -> Document:
        """Without `unused` only images without a name go."""
        return self._json(calls.prune_images(unused=unused, filters=filters))  # type: ignore[no-any-return]

    # workloads

    def create_volume(
        self, name: str = "", *, labels: Mapping[str, str] | None = None, driver: str = "local"
    ) -> Document:
        """An empty name makes one without."""
        return self._json(calls.create_volume(name, labels or {}, driver))  # type: ignore[no-any-return]

    def volumes(self) -> list[Summary]:
        return self._json(calls.volumes())  # type: ignore[no-any-return]

    def volume(self, name: str) -> Document:
        return self._json(calls.volume(name))  # type: ignore[no-any-return]

    def remove_volume(self, name: str) -> None:
        self._json(calls.remove_volume(name))

    def prune_volumes(self, *, unused: bool = False, filters: Iterable[str] = ()) -> Document:
        """`unused`: also those with a name."""
        return self._json(calls.prune_volumes(unused=unused, filters=filters))  # type: ignore[no-any-return]

    def create(self, spec: WorkloadSpec | Mapping[str, Any]) -> Created:
        return self._json(calls.create(spec))  # type: ignore[no-any-return]

    def provision(self, name: str) -> Iterator[Document]:
        """Fetch what `create` said is `wanting`; progress lines."""
        return self._progress(calls.provision(name))

    def plan(self, spec: WorkloadSpec | Mapping[str, Any]) -> PlanSteps:
        return self._json(calls.plan(spec))  # type: ignore[no-any-return]

    def workloads(
        self, *, stopped: bool = False, filters: Iterable[str] = (), sizes: bool = False
    ) -> list[Summary]:
        """`filters`: `key=value` as docker's; `stopped`: also those that do not run."""
        return self._json(calls.workloads(stopped=stopped, filters=filters, sizes=sizes))  # type: ignore[no-any-return]

    def inspect(self, name: str) -> Document:
        return self._json(calls.inspect(name))  # type: ignore[no-any-return]

    def remove(self, name: str, *, force: bool = False, volumes: bool = False) -> None:
        """`volumes`: also its ones without a name."""
        self._json(calls.remove(name, force=force, volumes=volumes))

    def start(self, name: str) -> None:
        self._json(calls.start(name))

    def stop(self, name: str, *, timeout: float | None = None) -> None:
        self._json(calls.stop(name, timeout=timeout))

    def kill(self, name: str, signal: str = "KILL") -> None:
        self._json(calls.kill(name, signal))

    def restart(self, name: str, *, timeout: float | None = None) -> None:
        self._json(calls.restart(name, timeout=timeout))

    def rename(self, name: str, to: str) -> None:
        self._json(calls.rename(name, to))

    def update(self, name: str, wanted: Update | Mapping[str, Any]) -> None:
        """Limits: `memory`, `cpus`, `cpuset`, `pids`."""
        self._json(calls.update(name, wanted))

    def top(self, name: str, options: str = "") -> Document:
        """`{titles, processes}`; `options` as for ps."""
        return self._json(calls.top(name, options))  # type: ignore[no-any-return]

    def changes(self, name: str) -> list[dict[str, str]]:
        """`{kind, path}` each; kind is A, C or D."""
        return self._json(calls.changes(name))  # type: ignore[no-any-return]

    def pause(self, name: str) -> None:
        self._json(calls.pause(name))

    def unpause(self, name: str) -> None:
        self._json(calls.unpause(name))

    def resize(self, name: str, columns: int, rows: int, *, exec_id: str | None = None) -> None:
        self._json(calls.resize(name, columns, rows, exec_id=exec_id))

    def prune(self, filters: Iterable[str] = ()) -> Document:
        return self._json(calls.prune(filters))  # type: ignore[no-any-return]

    def wait(self, name: str, condition: Condition = "not-running") -> WaitResult:
        return self._json(calls.wait(name, condition))  # type: ignore[no-any-return]

    def attach(
        self,
        name: str,
        *,
        stdin: bool = False,
        stdout: bool = True,
        stderr: bool = True,
        logs: bool = False,
        start: bool = False,
    ) -> Session:
        """`start`: start it once attached, so that not a byte is missed."""
        return self._session(
            calls.attach(name, stdin=stdin, stdout=stdout, stderr=stderr, logs=logs, start=start)
        )

    def execute(self, name: str, spec: ExecSpec | Mapping[str, Any]) -> Session:
        return self._session(calls.execute(name, spec, detach=False))

    def execute_detached(self, name: str, spec: ExecSpec | Mapping[str, Any]) -> str:
        return str(self._json(calls.execute(name, spec, detach=True))["exec_id"])

    def logs(
        self,
        name: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: str | None = None,
        until: str | None = None,
        timestamps: bool = False,
        stdout: bool = True,
        stderr: bool = True,
    ) -> Iterator[tuple[int, bytes]]:
        """`(stream, bytes)`; streams are `frames.STDOUT` and `frames.STDERR`."""
        call = calls.logs(
            name,
            follow=follow,
            tail=tail,
            since=since,
            until=until,
            timestamps=timestamps,
            stdout=stdout,
            stderr=stderr,
        )
        reader = frames.FrameReader()
        for piece in self._raw(call):
            yield from map(frames.output, reader.feed(piece))

    def stats(self, name: str) -> Document:
        return self._json(calls.stats(name, stream=False))  # type: ignore[no-any-return]

    def stats_stream(self, name: str) -> Iterator[Document]:
        return self._lines(calls.stats(name, stream=True))

    # files of a workload

    def stat_path(self, name: str, path: str) -> PathStat:
        connection, response = self._exchange(calls.stat_path(name, path))
        self._keep(connection)
        if response.head.status >= 400:
            # an answer to HEAD has no body to tell why; the same question by GET has
            return self._stat_by_archive(name, path)
        return decode_path_stat(response.head, name, path)

    def _stat_by_archive(self, name: str, path: str) -> PathStat:
        connection, response = self._checked(calls.get_archive(name, path))
        connection.close()
        return decode_path_stat(response.head, name, path)

    def get_archive(self, name: str, path: str) -> tuple[PathStat | None, Iterator[bytes]]:
        """What `path` is (as far as the daemon says), and a tar of it."""
        connection, response = self._checked(calls.get_archive(name, path))
        known = "x-knarr-path-stat" in response.head.headers
        stat = decode_path_stat(response.head, name, path) if known else None
        return stat, self._pieces(connection, response)

    def put_archive(self, name: str, path: str, body: Iterable[bytes]) -> None:
        """Extract a tar into the folder `path`."""
        self._json(calls.put_archive(name, path, body))


def decode_path_stat(head: http.Head, name: str, path: str) -> PathStat:
    """The stat header of an archive answer."""
    try:
        return json.loads(binascii.a2b_base64(head.headers["x-knarr-path-stat"]))  # type: ignore[no-any-return]
    except (KeyError, ValueError) as error:
        raise Failed(f"{name}:{path}: the daemon's answer has no stat") from error
