"""What is done with images that are here: archives out, comparisons, what they take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

from knarr.api import http
from knarr.api.native.routes import Call, Param, Route
from knarr.engine import commits, disk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TAR = "application/x-tar"
LINES = "application/x-ndjson"


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveRequest:
    names: tuple[str, ...]
    form: str = "docker-archive"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckRequest:
    repair: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class PushRequest:
    reference: str
    insecure: bool = False
    username: str | None = None
    password: str | None = None


async def send_bytes(request: web.Request, pieces: AsyncIterator[bytes]) -> web.StreamResponse:
    """An error after the first byte breaks the connection off: half an archive must not be taken for one."""
    response = web.StreamResponse(headers={"Content-Type": TAR})
    first = await anext(pieces)
    await response.prepare(request)
    try:
        await response.write(first)
        async for piece in pieces:
            await response.write(piece)
    except ConnectionError:
        return response
    except Exception:
        if request.transport is not None:
            request.transport.abort()
        raise
    finally:
        await pieces.aclose()  # type: ignore[attr-defined]
    await response.write_eof()
    return response


async def save_images(call: Call) -> web.StreamResponse:
    wanted: SaveRequest = call.body
    return await send_bytes(call.request, call.engine.images.tools.save(wanted.names, wanted.form))


async def export(call: Call) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": TAR})

    async def write(data: bytes) -> None:
        if not response.prepared:
            await response.prepare(call.request)
        await response.write(data)

    try:
        await call.engine.export(call.name, write)
    except Exception:
        if response.prepared and call.request.transport is not None:
            call.request.transport.abort()
        raise
    await response.write_eof()
    return response


async def commit(call: Call) -> web.StreamResponse:
    return await http.send_lines(call.request, commits.run(call.engine, call.name, call.body))


async def history(call: Call) -> list[dict[str, Any]]:
    return await call.engine.images.tools.history(call.name)


async def diff(call: Call) -> web.StreamResponse:
    return await http.send_lines(call.request, call.engine.images.tools.diff(call.name, call.query["other"]))


async def check(call: Call) -> web.StreamResponse:
    return await http.send_lines(call.request, call.engine.images.tools.check(repair=call.body.repair))


async def push(call: Call) -> web.StreamResponse:
    wanted: PushRequest = call.body
    credentials = (wanted.username, wanted.password or "") if wanted.username else None
    lines = call.engine.images.tools.push(wanted.reference, insecure=wanted.insecure, credentials=credentials)
    return await http.send_lines(call.request, lines)


async def collect(call: Call) -> dict[str, Any]:
    return {"freed": await call.engine.images.tools.collect()}


async def disk_usage(call: Call) -> dict[str, Any]:
    return await disk.usage(call.engine)


ROUTES = (
    Route(
        method="GET", path="/v1/system/df", act=disk_usage, text="What images and workloads take on the disk"
    ),
    Route(
        method="POST",
        path="/v1/images/check",
        act=check,
        cancels=True,
        text="Everything stored against its digests; the last line tells what was wrong, and repaired",
        body=CheckRequest,
        gives=LINES,
    ),
    Route(
        method="POST",
        path="/v1/images/push",
        act=push,
        cancels=True,
        text="Send an image to the registry that its name says",
        body=PushRequest,
        gives=LINES,
        errors=("not_found", "denied"),
    ),
    Route(
        method="POST",
        path="/v1/images/gc",
        act=collect,
        text="Give back what no image needs",
        errors=("conflict",),
    ),
    Route(
        method="GET",
        path="/v1/images/{name:.+}/history",
        act=history,
        text="How an image was made, newest step first",
        errors=("not_found",),
    ),
    Route(
        method="GET",
        path="/v1/images/{name:.+}/diff",
        act=diff,
        cancels=True,
        text="Files that differ between two images, one JSON object a line",
        query=(Param(name="other", kind="str", text="the second image", required=True),),
        gives=LINES,
        errors=("not_found",),
    ),
    Route(
        method="POST",
        path="/v1/workloads/{name}/commit",
        act=commit,
        cancels=True,
        text="A new image of a workload's files, held still while they are copied",
        body=commits.CommitRequest,
        gives=LINES,
        errors=("not_found", "conflict"),
    ),
    Route(
        method="GET",
        path="/v1/workloads/{name}/export",
        act=export,
        cancels=True,
        text="A tar of the whole root, without what is mounted in it",
        gives=TAR,
        errors=("not_found", "conflict"),
    ),
    Route(
        method="POST",
        path="/v1/images/save",
        act=save_images,
        cancels=True,
        text="One archive of several images: an OCI layout, with or without docker's form",
        body=SaveRequest,
        gives=TAR,
        errors=("not_found",),
    ),
)
