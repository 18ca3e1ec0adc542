"""Volume calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from knarr.api.native.routes import PRUNE_FILTER, Call, Param, Route, moment
from knarr.engine import prunes
from knarr.model.errors import Invalid, Unsupported


@dataclass(frozen=True, kw_only=True, slots=True)
class VolumeSpec:
    name: str = ""
    """empty = one without a name"""
    driver: str = "local"
    labels: dict[str, str] = field(default_factory=dict)


async def create_volume(call: Call) -> dict[str, Any]:
    if call.body.driver != "local":
        raise Unsupported(
            f"volume driver {call.body.driver[:100]!r} is not there", hint="the driver is local"
        )
    return call.engine.volumes.create(call.body.name, call.body.labels)


async def list_volumes(call: Call) -> list[dict[str, Any]]:
    return call.engine.volumes.ls()


async def inspect_volume(call: Call) -> dict[str, Any]:
    return call.engine.volumes.inspect(call.name)


async def remove_volume(call: Call) -> dict[str, Any]:
    await call.engine.volumes.remove(call.name)
    return {}


async def prune_volumes(call: Call) -> dict[str, Any]:
    filters = prunes.parse(call.query["filter"], moment)
    if filters.until is not None:
        raise Invalid("filter 'until' is not there for volumes", hint="label=NAME[=VALUE]")
    return {"removed": await call.engine.volumes.prune(named=call.query["all"], filters=filters)}


_BASE = "/v1/volumes"
_ONE = _BASE + "/{name}"

ROUTES = (
    Route(
        method="POST",
        path=_BASE,
        act=create_volume,
        text="Make a volume; one that is there already is given as it is",
        body=VolumeSpec,
        status=201,
        errors=("unsupported",),
    ),
    Route(
        method="POST",
        path=_BASE + "/prune",
        act=prune_volumes,
        text="Remove volumes that no workload uses",
        query=(Param(name="all", kind="bool", text="those with a name too", default=False), PRUNE_FILTER),
    ),
    Route(method="GET", path=_BASE, act=list_volumes, text="List volumes"),
    Route(method="GET", path=_ONE, act=inspect_volume, text="One volume", errors=("not_found",)),
    Route(
        method="DELETE",
        path=_ONE,
        act=remove_volume,
        text="Remove a volume that no workload uses",
        errors=("not_found", "conflict"),
    ),
)
