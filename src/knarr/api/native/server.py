"""The native API as an aiohttp application: one handler per route, errors translated once.

Out of scope: sockets and the process (`daemon`).
"""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

from aiohttp import web

from knarr.api import http, small
from knarr.api.native import archives, images, imagetools, streams, system, volumes, workloads
from knarr.api.native.routes import Call, Route, decode_body, parse_query
from knarr.model.errors import Invalid, NotFound

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from knarr.engine.engine import Engine
    from knarr.model.errors import KnarrError

ROUTES: tuple[Route, ...] = (
    *system.ROUTES,
    *imagetools.ROUTES,
    *images.ROUTES,
    *workloads.ROUTES,
    *volumes.ROUTES,
    *streams.ROUTES,
    *archives.ROUTES,
)


def application(engine: Engine) -> web.Application:
    app = web.Application(client_max_size=http.MAX_JSON, middlewares=[_unknown])
    for route in ROUTES:
        app.router.add_route(route.method, route.path, _handler(engine, route))
    return app


def connections(engine: Engine, framework: small.Framework, *, keep_alive: float) -> small.Connections:
    """The same calls for a listening socket: the small ones at once, all others by `application`."""
    routes = {(route.method, route.path): route for route in ROUTES if route.small}

    def find(request: small.Request) -> small.Act | None:
        parts = request.path.split("/")
        name = parts[3] if len(parts) > 3 else ""
        route = routes.get((request.method, request.path))
        if route is None and name:
            route = routes.get((request.method, "/".join((*parts[:3], "{name}", *parts[4:]))))
        return None if route is None else small.Act(_perform(engine, route, name, request), route.cancels)

    return small.Connections(find, framework, keep_alive=keep_alive)


async def _perform(engine: Engine, route: Route, name: str, request: small.Request) -> tuple[int, bytes]:
    try:
        call = Call(engine=engine, query=parse_query(route, request.query), name=name)
        if route.body is not None:
            call.body = decode_body(route, http.parse_json(request.body))
        return route.status, http.encode(await route.act(call))
    except Exception as error:
        refused = http.translate(error)
        return http.status(refused), http.encode(refused.to_json())


def _handler(engine: Engine, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            query = {key: request.query.getall(key) for key in request.query}
            name = request.match_info.get("name", "")
            call = Call(engine=engine, query=parse_query(route, query), name=name, exchange=request)
            if route.body is not None:
                call.body = decode_body(route, await http.read_json(request))
            if route.cancels:
                result = await route.act(call)
            else:
                result = await asyncio.shield(_act(route, call))
            return result if isinstance(result, web.StreamResponse) else http.answer(result, route.status)
        except ConnectionError:
            raise
        except Exception as error:
            return _refuse(request, http.translate(error))

    return handle


async def _act(route: Route, call: Call) -> Any:
    return await route.act(call)


def _refuse(request: web.Request, error: KnarrError) -> web.Response:
    """HEAD has no body: its error travels in a header."""
    answer = http.error_answer(error)
    if request.method == "HEAD" and isinstance(answer.body, bytes):
        answer.headers["X-Knarr-Error"] = base64.b64encode(answer.body).decode()
    return answer


@web.middleware
async def _unknown(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """aiohttp's own answers (no such path, wrong method) in our form; nothing else raises here."""
    try:
        return await handler(request)
    except web.HTTPNotFound:
        error = NotFound(f"no such call: {request.path[:200]!r}", hint="see /v1/openapi.json")
        return http.error_answer(error)
    except web.HTTPMethodNotAllowed as refused:
        methods = ", ".join(sorted(refused.allowed_methods))
        answer = http.error_answer(
            Invalid(f"{request.method[:20]} is not possible on {request.path[:200]!r}", hint=methods)
        )
        answer.set_status(405)
        answer.headers["Allow"] = methods
        return answer
