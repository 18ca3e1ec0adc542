"""Version, information about host and instance, events, and the API's own description."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from knarr.api import http
from knarr.api.native import openapi
from knarr.api.native.routes import Call, Param, Route
from knarr.model import codec
from knarr.model.workload import Isolation, NetworkMode, Resources, WorkloadSpec

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


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateRequest:
    """A class of microVMs: limits as a workload's, and a kernel of one's own."""

    memory: int | None = None
    cpus: float | None = None
    kernel: str | None = None
    network: NetworkMode = NetworkMode.BRIDGE


async def templates(call: Call) -> list[dict[str, Any]]:
    return call.engine.system.templates()


async def make_template(call: Call) -> dict[str, Any]:
    wanted: TemplateRequest = call.body
    spec = WorkloadSpec(
        image="",
        isolation=Isolation.MICROVM,
        resources=Resources(memory=wanted.memory, cpus=wanted.cpus),
        kernel=wanted.kernel,
        network=wanted.network,
    )
    return await call.engine.system.make_template(spec)


async def remove_template(call: Call) -> dict[str, Any]:
    return await call.engine.system.remove_template(call.name)


ROUTES = (
    Route(method="GET", path="/v1/system/templates", act=templates, text="Saved microVMs that starts resume"),
    Route(
        method="POST",
        path="/v1/system/templates",
        act=make_template,
        text="Boot and save the microVM for workloads with these limits, unless it is there",
        body=TemplateRequest,
    ),
    Route(
        method="DELETE",
        path="/v1/system/templates/{name}",
        act=remove_template,
        text="Remove one; what resumed from it goes on",
        errors=("not_found",),
    ),
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
