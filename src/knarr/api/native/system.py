"""Version, information about host and instance, events, and the API's own description."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from knarr.api import http
from knarr.api.native import openapi
from knarr.api.native.routes import Call, Param, Route
from knarr.model import codec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import web


async def version(call: Call) -> dict[str, Any]:
    return call.engine.system.version()


async def info(call: Call) -> dict[str, Any]:
    return await call.engine.system.info(call.engine.table)


async def description(call: Call) -> dict[str, Any]:
    from knarr.api.native.server import ROUTES

    return openapi.document(ROUTES, call.engine.system.version()["version"])


async def events(call: Call) -> web.StreamResponse:
    since, until, follow = (call.query[key] for key in ("since", "until", "follow"))

    async def lines() -> AsyncIterator[Any]:
        async for event in call.engine.events.read(since, until, follow=follow):
            yield codec.to_json(event)

    return await http.send_lines(call.request, lines())


ROUTES = (
    Route(method="GET", path="/v1/version", act=version, text="Versions of engine, API and kernel"),
    Route(
        method="GET", path="/v1/system/info", act=info, text="This host and instance, and what they can do"
    ),
    Route(method="GET", path="/v1/openapi.json", act=description, text="This document"),
    Route(
        method="GET",
        path="/v1/events",
        act=events,
        cancels=True,
        text="What happened, one JSON object a line",
        query=(
            Param(name="since", kind="time", text="past events from this moment on"),
            Param(name="until", kind="time", text="nothing after this moment"),
            Param(name="follow", kind="bool", text="go on with what happens next", default=False),
        ),
        gives="application/x-ndjson",
    ),
)
