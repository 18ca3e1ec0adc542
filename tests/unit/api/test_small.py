from __future__ import annotations

import asyncio
import os
import tempfile
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from knarr.api import small

CALL = b"POST /v1/x/name/start?a=1&b=x&a=2 HTTP/1.1\r\nHost: knarr\r\nContent-Length: 2\r\n\r\n{}"


def test_a_call_is_read_whole_or_not_at_all():
    for cut in range(len(CALL)):
        assert small.parse(CALL[:cut]) is None
    got = small.parse(CALL + b"GET /next")
    assert got == small.Request("POST", "/v1/x/name/start", {"a": ["1", "2"], "b": ["x"]}, b"{}", len(CALL))


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/x HTTP/1.0",
        b"GET /v1/%2e HTTP/1.1",
        b"GET /v1/x?a HTTP/1.1",
        b"GET /v1/x?a=%20 HTTP/1.1",
        b"GET /v1/x?a=b+c HTTP/1.1",
        b"get /v1/x HTTP/1.1",
        b"GET  /v1/x HTTP/1.1",
        b"GET http://knarr/v1/x HTTP/1.1",
        b"GET /v1/x HTTP/1.1\r\nTransfer-Encoding: chunked",
        b"GET /v1/x HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: knarr-frames",
        b"GET /v1/x HTTP/1.1\r\nConnection: close",
        b"GET /v1/x HTTP/1.1\r\nExpect: 100-continue",
        b"GET /v1/x HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2",
        b"GET /v1/x HTTP/1.1\r\nContent-Length: 1\r\ncontent-length : 2",
        b"GET /v1/x HTTP/1.1\r\nContent-Length: -1",
        b"GET /v1/x HTTP/1.1\r\nContent-Length: +1",
        b"GET /v1/x HTTP/1.1\r\nContent-Length: 65537",
        b"GET /v1/x HTTP/1.1\r\nAccept knarr",
        b"GET /v1/x HTTP/1.1\r\nAccept: knarr\nContent-Length: 5",
        b"GET /v1/x HTTP/1.1\r\nHost: knarr",
        b"\x16\x03\x01\x02",
    ],
)
def test_what_is_not_plain_is_not_for_us(head):
    assert small.parse(head + b"\r\nHost: knarr\r\n\r\n") is small.FOREIGN


def test_a_host_is_asked_for():
    assert small.parse(b"GET /v1/x HTTP/1.1\r\n\r\n") is small.FOREIGN
    assert isinstance(small.parse(b"GET /v1/x HTTP/1.1\r\nHost: a\r\n\r\n"), small.Request)


def test_a_head_without_end_is_not_waited_for():
    assert small.parse(b"GET /" + b"x" * small.MAX_HEAD) is small.FOREIGN


class Calls:
    """An API of three calls: `echo`, `wait` (which a gone client cancels), `slow` (which it does not)."""

    def __init__(self):
        self.cancelled = asyncio.Event()
        self.go = asyncio.Event()
        self.done = 0

    def find(self, request):
        acts = {"/echo": self.echo, "/wait": self.wait, "/slow": self.slow}
        act = acts.get(request.path)
        return None if act is None else small.Act(act(request), request.path == "/wait")

    async def echo(self, request):
        return 200, request.body

    async def wait(self, request):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def slow(self, request):
        await self.go.wait()
        self.done += 1
        return 503, b'"slow"'


@asynccontextmanager
async def served(keep_alive=75.0):
    async def other(request):
        return web.Response(text=f"framework {request.path} {await request.text()}")

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", other)
    runner = web.AppRunner(app)
    await runner.setup()
    calls = Calls()
    connections = small.Connections(calls.find, runner.server, keep_alive=keep_alive)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "s")
        listener = await asyncio.get_running_loop().create_unix_server(connections, path)
        try:
            yield path, calls, connections
        finally:
            listener.close()
            await connections.close(1.0)
            await runner.cleanup()


def post(path, body=b"", *headers):
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: knarr", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def answer(reader):
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    return int(head.split(b" ")[1]), await asyncio.wait_for(reader.readexactly(int(length[15:])), 5)


def test_calls_one_after_the_other_then_the_framework():
    async def check():
        async with served() as (path, _, connections):
            reader, writer = await asyncio.open_unix_connection(path)
            # three at once, in pieces that end anywhere
            data = post(b"/echo", b"1") + post(b"/echo", b"22") + post(b"/echo", b"333")
            for start in range(0, len(data), 7):
                writer.write(data[start : start + 7])
                await writer.drain()
                await asyncio.sleep(0)
            assert [await answer(reader) for _ in range(3)] == [(200, b"1"), (200, b"22"), (200, b"333")]
            assert len(connections.open) == 1
            # the odd one and what stands behind it are the framework's
            writer.write(post(b"/echo", b"4", b"X-Else: 1") + post(b"/echo", b"5"))
            assert await answer(reader) == (200, b"framework /echo 4")
            assert await answer(reader) == (200, b"framework /echo 5")
            assert not connections.open
            writer.close()

    asyncio.run(check())


def test_a_path_that_is_not_here_is_the_frameworks():
    async def check():
        async with served() as (path, _, _):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(post(b"/none", b"x" * 1000))
            assert await answer(reader) == (200, b"framework /none " + b"x" * 1000)
            writer.close()

    asyncio.run(check())


def test_a_client_that_goes_ends_its_wait_and_no_act():
    async def check():
        async with served() as (path, calls, connections):
            for name in (b"/wait", b"/slow"):
                _, writer = await asyncio.open_unix_connection(path)
                writer.write(post(name))
                await asyncio.sleep(0.05)
                writer.close()
            await asyncio.wait_for(calls.cancelled.wait(), 5)
            assert calls.done == 0
            calls.go.set()
            while not calls.done:
                await asyncio.sleep(0.01)
            assert not connections.open

    asyncio.run(check())


def test_the_end_waits_for_acts_only():
    async def check():
        async with served() as (path, calls, connections):
            ends = {}
            for name in (b"/wait", b"/slow", b"/echo"):
                ends[name] = await asyncio.open_unix_connection(path)
                ends[name][1].write(post(name))
            await answer(ends[b"/echo"][0])
            asyncio.get_running_loop().call_later(0.1, calls.go.set)
            await connections.close(5.0)
            assert await answer(ends[b"/slow"][0]) == (503, b'"slow"')
            assert [await reader.read() for reader, _ in ends.values()] == [b"", b"", b""]
            for _, writer in ends.values():
                writer.close()

    asyncio.run(check())


def test_a_silent_connection_is_closed():
    async def check():
        async with served(keep_alive=0.1) as (path, _, _):
            reader, writer = await asyncio.open_unix_connection(path)
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()

    asyncio.run(check())
