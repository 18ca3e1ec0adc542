"""`cp`: what a path is, and tars out of and into a workload's tree, streamed both ways."""

from __future__ import annotations

import base64
import json
import stat
from typing import TYPE_CHECKING, Any

from aiohttp import web

from knarr.api.native.routes import Call, Param, Route
from knarr.model.errors import Invalid

if TYPE_CHECKING:
    from knarr.engine.driver import PathStat

TAR = "application/x-tar"
_HEADER = "X-Knarr-Path-Stat"


def _encode(found: PathStat) -> dict[str, str]:
    document = {
        "name": found.name,
        "size": found.size,
        "mode": found.mode,
        "mtime": found.mtime,
        "linkTarget": found.link_target,
        "isDir": stat.S_ISDIR(found.mode),
    }
    text = json.dumps(document).encode("utf-8", "surrogateescape")
    return {_HEADER: base64.b64encode(text).decode()}


async def stat_path(call: Call) -> web.StreamResponse:
    found = await call.engine.stat_path(call.name, call.query["path"])
    return web.Response(headers=_encode(found))


async def get_archive(call: Call) -> web.StreamResponse:
    """An error after the first byte breaks the connection off: a whole tar must not be taken for one."""
    found = await call.engine.stat_path(call.name, call.query["path"])
    response = web.StreamResponse(headers={"Content-Type": TAR, **_encode(found)})

    async def write(data: bytes) -> None:
        if not response.prepared:
            await response.prepare(call.request)
        await response.write(data)

    try:
        await call.engine.archive_get(call.name, call.query["path"], write)
    except Exception:
        if not response.prepared:
            raise
        if call.request.transport is not None:
            call.request.transport.abort()
        return response
    await response.write_eof()
    return response


async def put_archive(call: Call) -> dict[str, Any]:
    if call.request.headers.get("Content-Encoding"):
        raise Invalid("the archive is sent with an encoding", hint="send a plain tar")
    await call.engine.archive_put(call.name, call.query["path"], call.request.content.readany)
    return {}


_PATH = "/v1/workloads/{name}/archive"
_QUERY = (Param(name="path", kind="str", text="path inside", required=True),)

ROUTES = (
    Route(
        method="HEAD",
        path=_PATH,
        act=stat_path,
        text=f"What a path is, in the header {_HEADER}",
        query=_QUERY,
        errors=("not_found",),
    ),
    Route(
        method="GET",
        path=_PATH,
        act=get_archive,
        text="A tar of a path",
        query=_QUERY,
        gives=TAR,
        errors=("not_found",),
    ),
    Route(
        method="PUT",
        path=_PATH,
        act=put_archive,
        text="Unpack a tar into a folder",
        query=_QUERY,
        takes=TAR,
        errors=("not_found", "conflict", "failed"),
    ),
)
