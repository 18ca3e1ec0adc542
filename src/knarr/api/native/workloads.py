"""Workload calls that answer JSON. Streams (attach, exec, logs, stats, archives) are in `streams` and
`archives`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from knarr.api import http
from knarr.api.native.routes import PRUNE_FILTER, Call, Param, Route, moment
from knarr.engine import prunes
from knarr.model.errors import Invalid
from knarr.model.workload import Update, WorkloadSpec

if TYPE_CHECKING:
    from aiohttp import web

    from knarr.engine.driver import ExitResult


def _result(result: ExitResult) -> dict[str, Any]:
    return {"exit_code": result.code, "oom_killed": result.oom_killed}


async def create(call: Call) -> dict[str, Any]:
    w = await call.engine.create(call.body)
    wanting = call.engine.wanting(w)
    return {"id": w.id, "name": w.name, "warnings": list(w.warnings), "wanting": wanting}


async def provision(call: Call) -> web.StreamResponse:
    return await http.send_lines(call.request, call.engine.provision(call.name))


async def plan(call: Call) -> dict[str, Any]:
    return {"steps": list(call.engine.plan(call.body))}


async def ls(call: Call) -> list[dict[str, Any]]:
    query = call.query
    return await call.engine.ls(stopped=query["all"], filters=query["filter"], sizes=query["size"])


async def inspect(call: Call) -> dict[str, Any]:
    return call.engine.inspect(call.name)


async def remove(call: Call) -> dict[str, Any]:
    await call.engine.remove(call.name, force=call.query["force"], volumes=call.query["volumes"])
    return {}


async def start(call: Call) -> dict[str, Any]:
    await call.engine.start(call.name)
    return {}


async def stop(call: Call) -> dict[str, Any]:
    await call.engine.stop(call.name, call.query["timeout"])
    return {}


async def kill(call: Call) -> dict[str, Any]:
    await call.engine.kill(call.name, call.query["signal"])
    return {}


async def pause(call: Call) -> dict[str, Any]:
    await call.engine.pause(call.name)
    return {}


async def unpause(call: Call) -> dict[str, Any]:
    await call.engine.unpause(call.name)
    return {}


async def restart(call: Call) -> dict[str, Any]:
    await call.engine.restart(call.name, call.query["timeout"])
    return {}


async def rename(call: Call) -> dict[str, Any]:
    await call.engine.rename(call.name, call.query["to"])
    return {}


async def update(call: Call) -> dict[str, Any]:
    await call.engine.update(call.name, call.body)
    return {}


async def top(call: Call) -> dict[str, Any]:
    return await call.engine.top(call.name, call.query["options"])


async def changes(call: Call) -> list[dict[str, str]]:
    return await call.engine.changes(call.name)


async def wait(call: Call) -> dict[str, Any]:
    return _result(await call.engine.wait(call.name, call.query["condition"]))


async def resize(call: Call) -> dict[str, Any]:
    size = call.query["columns"], call.query["rows"]
    if not all(1 <= value <= 0xFFFF for value in size):
        raise Invalid(f"tty size {list(size)} is out of range", hint="1 to 65535")
    await call.engine.resize(call.name, *size, call.query["exec"])
    return {}


async def prune(call: Call) -> dict[str, Any]:
    return {"removed": await call.engine.prune(prunes.parse(call.query["filter"], moment))}


_BASE = "/v1/workloads"
_ONE = _BASE + "/{name}"

ROUTES = (
    Route(
        method="POST",
        path=_BASE,
        act=create,
        small=True,
        text="Create a workload",
        body=WorkloadSpec,
        status=201,
        errors=("not_found", "conflict", "unsupported"),
    ),
    Route(
        method="POST",
        path=_BASE + "/plan",
        act=plan,
        small=True,
        text="The steps a start would take, without doing any",
        body=WorkloadSpec,
        errors=("not_found", "unsupported"),
    ),
    Route(
        method="POST",
        path=_BASE + "/prune",
        act=prune,
        small=True,
        text="Remove every workload that does not run",
        query=(PRUNE_FILTER,),
    ),
    Route(
        method="GET",
        path=_BASE,
        act=ls,
        small=True,
        text="List workloads, newest first",
        query=(
            Param(name="all", kind="bool", text="also those that do not run", default=False),
            Param(name="filter", kind="list", text="KEY=VALUE"),
            Param(name="size", kind="bool", text="with the size of each writable layer", default=False),
        ),
    ),
    Route(
        method="GET",
        path=_ONE,
        act=inspect,
        small=True,
        text="Everything about one workload",
        errors=("not_found",),
    ),
    Route(
        method="DELETE",
        path=_ONE,
        act=remove,
        small=True,
        text="Remove a workload",
        query=(
            Param(name="force", kind="bool", text="kill it first", default=False),
            Param(name="volumes", kind="bool", text="its volumes without a name too", default=False),
        ),
        errors=("not_found", "conflict"),
    ),
    Route(
        method="POST",
        path=_ONE + "/provision",
        act=provision,
        cancels=True,
        text="Fetch what a first start needs (`wanting` of the creation's answer), with progress",
        gives="application/x-ndjson",
        errors=("not_found",),
    ),
    Route(
        method="POST",
        path=_ONE + "/start",
        act=start,
        small=True,
        text="Start a workload",
        errors=("not_found", "conflict", "unavailable", "failed"),
    ),
    Route(
        method="POST",
        path=_ONE + "/stop",
        act=stop,
        small=True,
        text="Stop signal, patience, SIGKILL",
        query=(Param(name="timeout", kind="float", text="seconds of patience; negative = for ever"),),
        errors=("not_found", "failed"),
    ),
    Route(
        method="POST",
        path=_ONE + "/kill",
        act=kill,
        small=True,
        text="Send a signal",
        query=(Param(name="signal", kind="str", text="name or number", default="KILL"),),
        errors=("not_found", "conflict"),
    ),
    Route(
        method="POST",
        path=_ONE + "/restart",
        act=restart,
        small=True,
        text="Stop it if it runs, then start it",
        query=(Param(name="timeout", kind="float", text="seconds of patience; negative = for ever"),),
        errors=("not_found", "conflict", "unavailable", "failed"),
    ),
    Route(
        method="POST",
        path=_ONE + "/pause",
        act=pause,
        small=True,
        text="Freeze all its processes",
        errors=("not_found", "conflict", "failed"),
    ),
    Route(
        method="POST",
        path=_ONE + "/unpause",
        act=unpause,
        small=True,
        text="Let frozen processes go on",
        errors=("not_found", "conflict", "failed"),
    ),
    Route(
        method="POST",
        path=_ONE + "/rename",
        act=rename,
        small=True,
        text="Give it another name",
        query=(Param(name="to", kind="str", text="the new name", required=True),),
        errors=("not_found", "conflict"),
    ),
    Route(
        method="POST",
        path=_ONE + "/update",
        act=update,
        small=True,
        text="Change limits, at once if it runs",
        body=Update,
        errors=("not_found", "unsupported", "failed"),
    ),
    Route(
        method="GET",
        path=_ONE + "/top",
        act=top,
        small=True,
        text="Its processes, pids as they are inside",
        query=(Param(name="options", kind="str", text="of ps: -ef, or -o with columns", default=""),),
        errors=("not_found", "conflict", "unsupported"),
    ),
    Route(
        method="GET",
        path=_ONE + "/changes",
        act=changes,
        small=True,
        text="What differs from the image: A added, C changed, D deleted",
        errors=("not_found", "failed"),
    ),
    Route(
        method="POST",
        path=_ONE + "/wait",
        act=wait,
        small=True,
        cancels=True,
        text="Answer when the condition holds",
        query=(
            Param(
                name="condition",
                kind="str",
                text="not-running, next-exit or removed",
                default="not-running",
            ),
        ),
        errors=("not_found",),
    ),
    Route(
        method="POST",
        path=_ONE + "/resize",
        act=resize,
        small=True,
        text="Size of the terminal",
        query=(
            Param(name="columns", kind="int", text="width", required=True),
            Param(name="rows", kind="int", text="height", required=True),
            Param(name="exec", kind="str", text="an exec's id instead of the workload itself"),
        ),
        errors=("not_found", "conflict"),
    ),
)
