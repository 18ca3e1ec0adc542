"""Image calls: long ones answer JSON lines of progress, the last of which is the image or the error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from knarr.api import http
from knarr.api.native.routes import PRUNE_FILTER, Call, Param, Route, moment
from knarr.engine import prunes

if TYPE_CHECKING:
    from aiohttp import web

_LINES = "application/x-ndjson"
_TAR = "application/x-tar"


@dataclass(frozen=True, kw_only=True, slots=True)
class PullRequest:
    reference: str
    platform: str | None = None
    insecure: bool = False
    username: str | None = None
    password: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BootstrapRequest:
    distribution: str
    include: tuple[str, ...] = ()
    reference: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TagRequest:
    reference: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneRequest:
    all: bool = False


async def pull_image(call: Call) -> web.StreamResponse:
    wanted: PullRequest = call.body
    credentials = (wanted.username, wanted.password or "") if wanted.username else None
    lines = call.engine.images.pull(
        wanted.reference, platform=wanted.platform, insecure=wanted.insecure, credentials=credentials
    )
    return await http.send_lines(call.request, lines)


async def load_images(call: Call) -> web.StreamResponse:
    return await http.send_lines(call.request, call.engine.images.load(call.request.content.iter_any()))


async def import_image(call: Call) -> web.StreamResponse:
    lines = call.engine.images.import_tar(call.request.content.iter_any(), call.query["reference"])
    return await http.send_lines(call.request, lines)


async def bootstrap_image(call: Call) -> web.StreamResponse:
    wanted: BootstrapRequest = call.body
    lines = call.engine.images.bootstrap(wanted.distribution, wanted.include, wanted.reference)
    return await http.send_lines(call.request, lines)


async def list_images(call: Call) -> list[dict[str, Any]]:
    return call.engine.images.ls(call.engine.images_in_use())


async def inspect_image(call: Call) -> dict[str, Any]:
    return call.engine.images.inspect(call.name)


async def remove_image(call: Call) -> dict[str, Any]:
    return {"removed": await call.engine.remove_image(call.name, force=call.query["force"])}


async def tag_image(call: Call) -> dict[str, Any]:
    call.engine.images.tag(call.name, call.body.reference)
    return {}


async def prune_images(call: Call) -> dict[str, Any]:
    used, filters = call.engine.images_in_use(), prunes.parse(call.query["filter"], moment)
    return {"removed": await call.engine.images.prune(everything=call.body.all, used=used, filters=filters)}


_BASE = "/v1/images"
# a reference holds slashes; clients may send them plain
_ONE = _BASE + "/{name:.+}"

ROUTES = (
    Route(
        method="POST",
        path=_BASE + "/pull",
        cancels=True,
        act=pull_image,
        text="Pull",
        body=PullRequest,
        gives=_LINES,
    ),
    Route(
        method="POST",
        path=_BASE + "/load",
        act=load_images,
        cancels=True,
        text="Load a docker-save or OCI archive, plain, gzip or zstd",
        takes=_TAR,
        gives=_LINES,
    ),
    Route(
        method="POST",
        path=_BASE + "/import",
        act=import_image,
        cancels=True,
        text="Import the tar of a root file system",
        query=(Param(name="reference", kind="str", text="name for the image"),),
        takes=_TAR,
        gives=_LINES,
    ),
    Route(
        method="POST",
        path=_BASE + "/bootstrap",
        act=bootstrap_image,
        cancels=True,
        text="Make an image from a distribution's packages",
        body=BootstrapRequest,
        gives=_LINES,
    ),
    Route(
        method="POST",
        path=_BASE + "/prune",
        act=prune_images,
        text="Remove images that have no name, or (all) no workload",
        body=PruneRequest,
        query=(PRUNE_FILTER,),
    ),
    Route(method="GET", path=_BASE, act=list_images, text="List images"),
    Route(
        method="POST",
        path=_ONE + "/tag",
        act=tag_image,
        text="One more name for an image",
        body=TagRequest,
        errors=("not_found",),
    ),
    Route(
        method="GET", path=_ONE, act=inspect_image, text="Everything about one image", errors=("not_found",)
    ),
    Route(
        method="DELETE",
        path=_ONE,
        act=remove_image,
        text="Remove a name, and the image with its last one",
        query=(Param(name="force", kind="bool", text="although stopped workloads use it", default=False),),
        errors=("not_found", "conflict"),
    ),
)
