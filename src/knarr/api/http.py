"""What every HTTP dialect shares: errors to statuses, bodies with caps, JSON answers.

Out of scope: routes and shapes of one dialect (`api.native`), and listening (`daemon`).
"""

from __future__ import annotations

import json
import logging
import sqlite3
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from knarr.model.errors import Failed, Invalid, KnarrError, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterable

_log = logging.getLogger(__name__)

STATUS: dict[str, int] = {
    "not_found": 404,
    "conflict": 409,
    "invalid": 400,
    "denied": 403,
    "unsupported": 501,
    "unavailable": 503,
    "failed": 500,
}
MAX_JSON = 4 << 20
MAX_DEPTH = 32
_JSON = "application/json"


def answer(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=encode(value), status=status, content_type=_JSON)


def encode(value: Any) -> bytes:
    return msgspec.json.encode(value)


def status(error: KnarrError) -> int:
    return STATUS.get(error.kind, 500)


def error_answer(error: KnarrError) -> web.Response:
    return web.Response(body=encode(error.to_json()), status=status(error), content_type=_JSON)


def translate(error: Exception) -> KnarrError:
    """The one place where what isn't ours yet becomes an error that a user may see; details go to the log."""
    if isinstance(error, KnarrError):
        return error
    if isinstance(error, OSError):
        _log.warning("system call failed", exc_info=error)
        return _from_os(error)
    if isinstance(error, MemoryError) or str(error) == "can't start new thread":
        _log.warning("the host is short of memory or threads", exc_info=error)
        return Unavailable("the host is short of memory or threads", hint="try again when it is less busy")
    if isinstance(error, sqlite3.Error):
        _log.warning("a record can't be read or written", exc_info=error)
        told = f"the records can't be read or written: {error}"
        return Unavailable(told, hint="is the disk full, or broken?")
    _log.error("internal error", exc_info=error)
    return Failed(
        f"internal error: {type(error).__name__}", hint="please report it with the end of ROOT/daemon.log"
    )


def _from_os(error: OSError) -> KnarrError:
    text = error.strerror or type(error).__name__
    if error.filename:
        text = f"{error.filename!s}: {text}"
    if error.errno in (23, 24, 28, 12):
        return Unavailable(text, hint="the host is short of files, memory or disk space")
    return Failed(text)


async def read_json(request: web.Request) -> Any:
    """The body as JSON values; `{}` when there is none. Raises `Invalid` over the caps."""
    if request.content_length is not None and request.content_length > MAX_JSON:
        raise Invalid(f"the request's body is over {MAX_JSON} bytes")
    body = bytearray()
    async for piece in request.content.iter_any():
        body += piece
        if len(body) > MAX_JSON:
            raise Invalid(f"the request's body is over {MAX_JSON} bytes")
    return parse_json(bytes(body))


def parse_json(body: bytes) -> Any:
    """JSON values, `{}` for nothing. Raises `Invalid`."""
    if not body:
        return {}
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Invalid(f"the request's body is not JSON: {error}") from error
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Raises `Invalid` for values nested deeper than `MAX_DEPTH`."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for item in level
            if isinstance(item, (dict, list))
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise Invalid(f"the request's body is nested deeper than {MAX_DEPTH}")


async def send_lines(request: web.Request, lines: AsyncIterable[Any]) -> web.StreamResponse:
    """JSON lines as they come; an error after the first becomes the last line: the status is gone by then."""
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    iterator = aiter(lines)
    try:
        first = await anext(iterator, None)
    except Exception as error:
        return error_answer(translate(error))
    await response.prepare(request)
    try:
        if first is not None:
            await response.write(_line(first))
        async for item in iterator:
            await response.write(_line(item))
    except ConnectionError:
        return response
    except Exception as error:
        await response.write(_line({"error": translate(error).to_json()}))
    finally:
        await iterator.aclose()  # type: ignore[attr-defined]
    await response.write_eof()
    return response


def _line(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
