"""Both clients against a real server on a real socket: answers, errors, streams, uploads, dropped connections."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from knarr.client import frames
from knarr.client.aio import AsyncClient
from knarr.client.client import Client
from knarr.model.errors import Conflict, Failed, NotFound, Unavailable
from knarr.model.workload import Isolation, WorkloadSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

ERROR = {"kind": "not_found", "message": "no such workload: 'x'", "hint": "knarr ps", "exit_code": 125}


class Server:
    """The calls of the native API that the tests make, on aiohttp in a thread."""

    def __init__(self, run: str) -> None:
        self.path = os.path.join(run, "knarr.sock")
        self.seen: list[object] = []
        self.drops = 0
        self.ready = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.serve)

    def serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/v1/version", self.version)
        app.router.add_post("/v1/workloads", self.create)
        app.router.add_get("/v1/workloads/{name}", self.missing)
        app.router.add_post("/v1/images/load", self.load)
        app.router.add_post("/v1/images/import", self.refuse)
        app.router.add_post("/v1/images/pull", self.pull)
        app.router.add_post("/v1/workloads/{name}/attach", self.attach)
        app.router.add_get("/v1/workloads/{name}/logs", self.logs)
        app.router.add_get("/v1/workloads/{name}/archive", self.archive)
        app.router.add_put("/v1/workloads/{name}/archive", self.refuse_and_stay)
        runner = web.AppRunner(app)
        self.loop.run_until_complete(runner.setup())
        # a folder deeper than sun_path allows is bound from inside
        here = os.open(".", os.O_RDONLY)
        os.chdir(os.path.dirname(self.path))
        self.loop.run_until_complete(web.UnixSite(runner, "knarr.sock").start())
        os.fchdir(here)
        os.close(here)
        self.ready.set()
        self.loop.run_forever()
        self.loop.run_until_complete(runner.cleanup())
        self.loop.close()

    async def version(self, request: web.Request) -> web.Response:
        if self.drops:
            self.drops -= 1
            request.transport.abort()
        return web.json_response({"version": "1"})

    async def create(self, request: web.Request) -> web.Response:
        self.seen.append(await request.json())
        return web.json_response({"id": "ab", "name": "n", "warnings": []}, status=201)

    async def missing(self, request: web.Request) -> web.Response:
        return web.json_response(ERROR, status=404)

    async def load(self, request: web.Request) -> web.StreamResponse:
        size = 0
        async for piece in request.content.iter_any():
            size += len(piece)
        response = web.StreamResponse()
        await response.prepare(request)
        for line in ({"item": "a", "phase": "b", "done": size, "total": None}, {"image": {"id": "sha256:1"}}):
            await response.write(json.dumps(line).encode() + b"\n")
        await response.write_eof()
        return response

    async def refuse(self, request: web.Request) -> web.Response:
        answer = {**ERROR, "kind": "conflict", "message": "not now"}
        return web.json_response(answer, status=409, headers={"Connection": "close"})

    async def refuse_and_stay(self, request: web.Request) -> web.Response:
        await request.content.readany()
        return web.json_response({**ERROR, "kind": "conflict", "message": "not now"}, status=409)

    async def pull(self, request: web.Request) -> web.Response:
        return web.Response(
            body=b'{"item":"x","phase":"y","done":0,"total":1}\n' + json.dumps({"error": ERROR}).encode()
        )

    async def attach(self, request: web.Request) -> web.Response:
        transport = request.transport
        transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: knarr-frames\r\n\r\n"
        )
        transport.write(
            frames.encode_control({"started": True}) + frames.encode(1, b"out") + frames.encode(2, b"err")
        )
        transport.write(frames.encode_control({"exit": 3}))
        transport.close()
        return web.Response()

    async def logs(self, request: web.Request) -> web.Response:
        self.seen.append(dict(request.query))
        return web.Response(body=frames.encode(1, b"one\n") + frames.encode(2, b"two\n"))

    async def archive(self, request: web.Request) -> web.Response:
        if request.query["path"] == "/no":
            return web.json_response(ERROR, status=404)
        stat = {"name": "f", "size": 1, "mode": 0o100644, "mtime": 0, "linkTarget": ""}
        header = base64.b64encode(json.dumps(stat).encode()).decode()
        return web.Response(body=b"tar", headers={"X-Knarr-Path-Stat": header})


@pytest.fixture(params=["run", "long/" + "x" * 120])
def server(request, tmp_path) -> Iterator[Server]:
    run = tmp_path / request.param
    run.mkdir(parents=True)
    found = Server(str(run))
    found.thread.start()
    assert found.ready.wait(10)
    yield found
    found.loop.call_soon_threadsafe(found.loop.stop)
    found.thread.join(10)


@pytest.fixture
def client(server: Server, tmp_path) -> Iterator[Client]:
    with Client(str(tmp_path), os.path.dirname(server.path), start=False) as found:
        yield found


def test_calls_and_errors(server: Server, client: Client) -> None:
    assert client.version() == {"version": "1"}
    spec = WorkloadSpec(image="i", isolation=Isolation.MICROVM)
    assert client.create(spec)["id"] == "ab"
    assert client.create({"image": "j"})["name"] == "n"
    assert server.seen[0]["isolation"] == "microvm"
    assert server.seen[1] == {"image": "j"}
    with pytest.raises(NotFound, match="no such workload") as caught:
        client.inspect("x")
    assert caught.value.hint == "knarr ps"
    with pytest.raises(Failed, match="404"):
        client.stats("x")


def test_a_dropped_connection_is_tried_again_where_that_is_safe(server: Server, client: Client) -> None:
    server.drops = 2
    assert client.version() == {"version": "1"}
    server.drops = 100
    with pytest.raises(Unavailable, match="did not answer"):
        client.version()


def test_uploads_and_progress(client: Client) -> None:
    body = (bytes(100_000) for _ in range(30))
    lines = list(client.load(body))
    assert lines[0]["done"] == 3_000_000
    assert lines[-1] == {"image": {"id": "sha256:1"}}


def test_a_refused_upload_gives_the_reason(client: Client) -> None:
    with pytest.raises(Conflict, match="not now"):
        list(client.import_image((bytes(100_000) for _ in range(300)), "x"))


def test_a_connection_with_half_a_body_on_it_is_not_used_again(client: Client) -> None:
    """The server takes what comes next on it for the rest of the body."""
    with pytest.raises(Conflict, match="not now"):
        client.put_archive("x", "/", (bytes(100_000) for _ in range(300)))
    began = time.monotonic()
    assert client.version()["version"] == "1"
    assert time.monotonic() - began < 5


def test_an_error_in_the_last_line_is_raised(client: Client) -> None:
    lines = client.pull("x")
    assert next(lines)["item"] == "x"
    with pytest.raises(NotFound):
        next(lines)


def test_streams(server: Server, client: Client) -> None:
    session = client.attach("x", start=True)
    kinds = list(session)
    session.close()
    assert kinds[1:3] == [(1, b"out"), (2, b"err")]
    assert frames.decode_control(kinds[3][1]) == {"exit": 3}
    assert list(client.logs("x", tail=5)) == [(1, b"one\n"), (2, b"two\n")]
    assert server.seen[-1]["tail"] == "5"


def test_files(client: Client) -> None:
    assert client.stat_path("x", "/f")["mode"] == 0o100644
    stat, tar = client.get_archive("x", "/f")
    assert stat["name"] == "f"
    assert b"".join(tar) == b"tar"
    with pytest.raises(NotFound):
        client.stat_path("x", "/no")


def test_nobody_listens(tmp_path) -> None:
    with pytest.raises(Unavailable, match="no daemon") as caught:
        Client(str(tmp_path), str(tmp_path), start=False).version()
    assert "daemon start" in caught.value.hint


def test_the_asynchronous_twin(server: Server) -> None:
    async def story() -> None:
        client = AsyncClient(os.path.dirname(server.path))
        versions = await asyncio.gather(*(client.version() for _ in range(20)))
        assert versions == [{"version": "1"}] * 20
        with pytest.raises(NotFound):
            await client.inspect("x")
        lines = [line async for line in client.load(bytes(100_000) for _ in range(30))]
        assert lines[0]["done"] == 3_000_000
        async with await client.attach("x", start=True) as session:
            found = [frame async for frame in session]
        assert found[1] == (1, b"out")
        assert [data async for _, data in client.logs("x")] == [b"one\n", b"two\n"]
        assert (await client.stat_path("x", "/f"))["name"] == "f"

    asyncio.run(story())
