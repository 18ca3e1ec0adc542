"""Calls that stream: attach and exec over an upgraded connection, logs as frames, stats as JSON lines."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

from knarr.api import http, upgrade
from knarr.api.native.routes import Call, Param, Route
from knarr.engine.stamps import Stamper
from knarr.model import codec
from knarr.model.errors import Conflict, Invalid, KnarrError
from knarr.model.workload import ExecSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from knarr.engine.streams import Terminal

FRAMES = "application/vnd.knarr.frames"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecRequest(ExecSpec):
    detach: bool = False


async def attach(call: Call) -> Any:
    query = call.query
    opened = call.engine.attach(call.name, stdin=query["stdin"], logs=query["logs"], start=query["start"])
    terminal = await _opened(opened)
    wanted = {upgrade.STDOUT: query["stdout"], upgrade.STDERR: query["stderr"]}
    return await _serve(call.request, terminal, {stream for stream, on in wanted.items() if on})


async def exec_process(call: Call) -> Any:
    body: ExecRequest = call.body
    fields = {name: getattr(body, name) for name in ExecSpec.__slots__}
    spec = ExecSpec(**fields)
    if body.detach:
        session = await asyncio.shield(call.engine.exec(call.name, spec, detach=True))
        return http.answer({"exec_id": session.id})
    terminal = await _opened(call.engine.exec_terminal(call.name, spec))
    return await _serve(call.request, terminal, {upgrade.STDOUT, upgrade.STDERR})


async def _opened(opening: Coroutine[Any, Any, Terminal]) -> Terminal:
    """A start or exec under way is finished although its client has gone; then nobody holds its streams."""
    task = asyncio.ensure_future(opening)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_abandon)
        raise


def _abandon(task: asyncio.Task[Terminal]) -> None:
    if not task.cancelled() and task.exception() is None:
        closing = asyncio.ensure_future(task.result().close())
        _closing.add(closing)
        closing.add_done_callback(_closing.discard)


_closing: set[asyncio.Task[None]] = set()


async def _serve(request: web.Request, terminal: Terminal, streams: set[int]) -> web.StreamResponse:
    """Until the process ends and all is sent, or the client goes; then it goes on without us."""
    try:
        channel = upgrade.Channel(request)
    except BaseException:
        await terminal.close()
        raise
    tasks = [
        asyncio.ensure_future(_send_output(channel, terminal, streams)),
        asyncio.ensure_future(_take_frames(channel, terminal)),
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await _report(channel, done)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await terminal.close()
        channel.close()
    # the server writes it into the closed connection, which ends its side of the exchange
    return web.Response()


async def _report(channel: upgrade.Channel, done: set[asyncio.Task[None]]) -> None:
    """A failure half-way becomes the last control frame."""
    for task in done:
        error = task.exception()
        if isinstance(error, Exception) and not isinstance(error, ConnectionError):
            try:
                await channel.send(upgrade.encode_control({"error": http.translate(error).to_json()}))
            except ConnectionError:
                return


async def _send_output(channel: upgrade.Channel, terminal: Terminal, streams: set[int]) -> None:
    await channel.send(upgrade.encode_control({"started": True}))
    async for stream, data in terminal.output():
        if stream in streams:
            await channel.send(upgrade.encode(stream, data))
    await channel.send(upgrade.encode_control({"exit": await terminal.result()}))


async def _take_frames(channel: upgrade.Channel, terminal: Terminal) -> None:
    """Returns when the client detaches or has gone."""
    stdin: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)
    writer = asyncio.ensure_future(_feed_stdin(stdin, terminal))
    try:
        while (frame := await channel.receive()) is not None:
            kind, payload = frame
            if kind == upgrade.STDIN:
                await stdin.put(payload)
            elif not await _control(terminal, payload):
                return
    finally:
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)


async def _feed_stdin(stdin: asyncio.Queue[bytes], terminal: Terminal) -> None:
    """An empty frame is the end of the input; a process that no longer reads is no error, as with a pipe."""
    while True:
        data = await stdin.get()
        try:
            if data:
                await terminal.write(data)
            else:
                await terminal.close_stdin()
        except (KnarrError, OSError):
            continue


async def _control(terminal: Terminal, payload: bytes) -> bool:
    """Whether to go on. Raises `Invalid` for what is no control message."""
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise Invalid("a control frame that is not JSON") from error
    if not isinstance(message, dict) or len(message) != 1:
        raise Invalid("a control frame has one field", hint="resize, signal or detach")
    ((key, value),) = message.items()
    if key == "detach":
        return False
    try:
        if key == "resize":
            await terminal.resize(*_size(value))
        elif key == "signal":
            await terminal.signal(str(value)[:32])
        else:
            raise Invalid(f"control {key[:40]!r} is unknown", hint="resize, signal or detach")
    except Conflict:
        pass  # it has just ended; the exit frame says so
    return True


def _size(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise Invalid("resize takes [columns, rows]")
    if not all(isinstance(item, int) and 1 <= item <= 0xFFFF for item in value):
        raise Invalid(f"tty size {value!r} is out of range"[:200])
    return value[0], value[1]


async def logs(call: Call) -> web.StreamResponse:
    query = call.query
    wanted = {upgrade.STDOUT: query["stdout"], upgrade.STDERR: query["stderr"]}
    records = call.engine.logs(
        call.name,
        since=query["since"],
        until=query["until"],
        tail=query["tail"],
        follow=query["follow"],
        streams={stream for stream, on in wanted.items() if on},
        whole=query["timestamps"],
    )
    stamper = Stamper() if query["timestamps"] else None
    response = web.StreamResponse(headers={"Content-Type": FRAMES})
    await response.prepare(call.request)
    try:
        async for moment, stream, data in records:
            text = stamper.stamp(moment, stream, data) if stamper else data
            await response.write(upgrade.encode(stream, text))
    except ConnectionError:
        return response
    except Exception as error:
        await response.write(upgrade.encode_control({"error": http.translate(error).to_json()}))
    finally:
        await records.aclose()
    await response.write_eof()
    return response


async def stats(call: Call) -> Any:
    if not call.query["stream"]:
        return await _sample(call)

    async def lines() -> AsyncIterator[Any]:
        while True:
            try:
                yield await _sample(call)
            except Conflict:
                return
            await asyncio.sleep(1)

    return await http.send_lines(call.request, lines())


async def _sample(call: Call) -> dict[str, Any]:
    return {"time": time.time_ns(), **codec.to_json(await call.engine.stats(call.name))}


_ONE = "/v1/workloads/{name}"
_ON = "stdout", "stderr"
_SWITCHES = tuple(Param(name=name, kind="bool", text=f"send {name}", default=True) for name in _ON)

ROUTES = (
    Route(
        method="POST",
        path=_ONE + "/attach",
        act=attach,
        cancels=True,
        text="Streams of the workload itself; the exit frame comes after the last byte",
        query=(
            Param(name="stdin", kind="bool", text="take stdin frames", default=False),
            *_SWITCHES,
            Param(name="logs", kind="bool", text="begin with what was written before", default=False),
            Param(name="start", kind="bool", text="start it, missing nothing", default=False),
        ),
        gives=FRAMES,
        status=101,
        errors=("not_found", "conflict", "failed"),
    ),
    Route(
        method="POST",
        path=_ONE + "/exec",
        act=exec_process,
        cancels=True,
        text="One more process inside; with detach the answer is 200 and its id",
        body=ExecRequest,
        gives=FRAMES,
        status=101,
        errors=("not_found", "conflict", "failed"),
    ),
    Route(
        method="GET",
        path=_ONE + "/logs",
        act=logs,
        cancels=True,
        text="What the workload wrote, as frames",
        query=(
            Param(name="follow", kind="bool", text="until it ends", default=False),
            Param(name="tail", kind="int", text="only the last lines"),
            Param(name="since", kind="time", text="from this moment on"),
            Param(name="until", kind="time", text="before this moment"),
            Param(name="timestamps", kind="bool", text="begin each line with its time", default=False),
            *_SWITCHES,
        ),
        gives=FRAMES,
        errors=("not_found", "unsupported"),
    ),
    Route(
        method="GET",
        path=_ONE + "/stats",
        act=stats,
        cancels=True,
        text="Counters, once or every second",
        query=(Param(name="stream", kind="bool", text="every second until it ends", default=False),),
        errors=("not_found", "conflict"),
    ),
)
