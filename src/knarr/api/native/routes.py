"""Routes as data: what a call is named, what it takes, what it answers; parsing of the query by that data.

The OpenAPI document (`api.native.openapi`) and the server (`api.native.server`) are both made from these.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from knarr.model import codec, units
from knarr.model.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from aiohttp import web

    from knarr.engine.engine import Engine

_TRUE = frozenset({"1", "true", "True"})
_FALSE = frozenset({"0", "false", "False", ""})
_EPOCH = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,9}))?", re.ASCII)
_MAX_TEXT = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Param:
    """One query parameter. `kind`: str, bool, int, float, time (a moment), list (repeatable text)."""

    name: str
    kind: str
    text: str
    default: Any = None
    required: bool = False


PRUNE_FILTER = Param(name="filter", kind="list", text="until=TIME, label=NAME[=VALUE], label!=NAME[=VALUE]")


@dataclass(kw_only=True, slots=True)
class Call:
    """One request, parsed."""

    engine: Engine
    query: dict[str, Any]
    name: str = ""
    """The workload, image … of the path."""
    body: Any = None
    exchange: web.Request | None = None

    @property
    def request(self) -> web.Request:
        """The framework's, for acts that stream; a route that is `small` has none."""
        assert self.exchange is not None
        return self.exchange


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    method: str
    path: str
    act: Callable[[Call], Awaitable[Any]]
    """returns JSON values, or a response of its own"""
    text: str
    query: tuple[Param, ...] = ()
    body: type | None = None
    """decoded strictly into this dataclass; None = not read (the act may stream it)"""
    takes: str = ""
    """media type of a body that is streamed"""
    gives: str = "application/json"
    status: int = 200
    small: bool = False
    """needs nothing of the request but name, query and body, and answers JSON (`api.small`)"""
    cancels: bool = False
    """ended when its client goes; all others are acts, which are finished whatever the client does"""
    errors: tuple[str, ...] = field(default=())
    """kinds beyond `invalid`, which all may give"""


def parse_query(route: Route, given: Mapping[str, list[str]]) -> dict[str, Any]:
    """Typed values by name, unknown ones refused. Raises `Invalid`."""
    known = {param.name: param for param in route.query}
    for key in given:
        if key not in known:
            hint = "known: " + ", ".join(sorted(known)) if known else "this call has none"
            raise Invalid(f"query parameter {key[:100]!r} is unknown", hint=hint)
    return {param.name: _value(param, given.get(param.name, [])) for param in route.query}


def _value(param: Param, texts: list[str]) -> Any:
    if param.kind == "list":
        return texts
    if len(texts) > 1:
        raise Invalid(f"query parameter {param.name!r} is given {len(texts)} times")
    if not texts or (not texts[0] and param.kind != "str"):
        if param.required:
            raise Invalid(f"query parameter {param.name!r} is missing")
        return param.default
    text = texts[0]
    if len(text) > _MAX_TEXT:
        raise Invalid(f"query parameter {param.name!r} is over {_MAX_TEXT} characters")
    return _PARSERS[param.kind](param.name, text)


def _bool(name: str, text: str) -> bool:
    if text not in _TRUE | _FALSE:
        raise Invalid(f"query parameter {name!r}: {text!r} is not a truth value", hint="1 or 0")
    return text in _TRUE


def _int(name: str, text: str) -> int:
    digits = text.removeprefix("-")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 18:
        raise Invalid(f"query parameter {name!r}: {text!r} is not a number")
    return int(text)


def _float(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not -1e9 < value < 1e9:
        raise Invalid(f"query parameter {name!r}: {text!r} is not a number")
    return value


def moment(name: str, text: str) -> int:
    """Nanoseconds since the epoch of `1700000000.5`, `10m` (ago) or an ISO time. Raises `Invalid`."""
    match = _EPOCH.fullmatch(text)
    if match is not None:
        return int(match[1]) * 10**9 + int((match[2] or "0").ljust(9, "0"))
    try:
        return time.time_ns() - int(units.parse_duration(text) * 1e9)
    except Invalid:
        return _iso(name, text)


def _iso(name: str, text: str) -> int:
    from datetime import UTC, datetime

    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise Invalid(
            f"query parameter {name!r}: {text!r} is not a time",
            hint="seconds since 1970, 10m for ten minutes ago, or 2026-01-31T12:00:00Z",
        ) from None
    return int(value.replace(tzinfo=value.tzinfo or UTC).timestamp() * 1e6) * 1000


_PARSERS: dict[str, Callable[[str, str], Any]] = {
    "str": lambda _, text: text,
    "bool": _bool,
    "int": _int,
    "float": _float,
    "time": moment,
}


def decode_body(route: Route, value: Any) -> Any:
    if route.body is None:
        return None
    return codec.from_json(route.body, value)
