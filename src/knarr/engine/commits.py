"""`commit`: a workload's writable layer becomes the top layer of a new image.

The workload stands still only while its layer is copied out. Out of scope: the layer and the config
(`images.layer`, `images.commit`).
"""

from __future__ import annotations

import asyncio
import datetime as dt
import tempfile
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from knarr.images import changes, commit, layer
from knarr.model import names
from knarr.model.errors import Invalid, KnarrError
from knarr.model.state import Status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from knarr.engine.driver import Workload
    from knarr.engine.engine import Engine
    from knarr.engine.jobs import Job
    from knarr.engine.table import Entry
    from knarr.model.resource import Image

STILL = "still"
"""in a workload's private record while it is frozen for a copy: the next daemon lets it go on"""
_PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class CommitRequest:
    reference: str | None = None
    author: str = ""
    message: str = ""
    changes: tuple[str, ...] = ()
    pause: bool = True


async def run(engine: Engine, text: str, request: CommitRequest) -> AsyncIterator[dict[str, Any]]:
    """Progress, then the image. Raises before the first line for what was asked wrongly."""
    entry = engine.find(text)
    wanted = _wanted(entry.w, request)
    changes.change({}, request.changes)
    with closing(tempfile.TemporaryFile(dir=engine.state.images)) as raw:
        async with _still(engine, entry, pause=request.pause):
            await _copy_out(engine, entry.w, raw)
        async for line in engine.images.derive("commit", _work(engine, entry.w, raw, wanted)):
            yield line


def _work(engine: Engine, w: Workload, raw: IO[bytes], wanted: commit.Wanted) -> Callable[[Job], list[Image]]:
    store = engine.images.store

    def work(job: Job) -> list[Image]:
        parent = store.get(w.image.id)
        with store.held([parent]), tempfile.TemporaryFile(dir=engine.state.images) as tar:
            job.update("layer", "writing", 0, None)
            raw.seek(0)
            layer.write_layer(lambda: raw.read(_PIECE), tar.write)
            source = commit.source(store, parent, tar, wanted, job.cancel)
            return [store.ingest(source, job, job.cancel)]

    return work


def _wanted(w: Workload, request: CommitRequest) -> commit.Wanted:
    reference = names.parse_reference(request.reference).canonical if request.reference else ""
    if "@" in reference:
        raise Invalid(f"reference {request.reference!r} has a digest, a tag is wanted")
    return commit.Wanted(
        settings=_settings(w),
        changes=request.changes,
        author=request.author,
        message=request.message,
        command=" ".join(w.process.args),
        created=dt.datetime.now(dt.UTC).isoformat().replace("+00:00", "Z"),
        references=(reference,) if reference else (),
    )


def _settings(w: Workload) -> dict[str, Any]:
    """What the workload was given over its image, in the words of an image's config."""
    spec, image = w.spec, w.image.config
    found: dict[str, Any] = {}
    if spec.entrypoint is not None:
        found["Entrypoint"] = [word for word in spec.entrypoint if word]
        found["Cmd"] = list(spec.command or ())
    elif spec.command:
        found["Cmd"] = list(spec.command)
    if spec.env:
        env = dict(item.partition("=")[::2] for item in image.env)
        for item in spec.env:
            key, equals, value = item.partition("=")
            if equals:
                env[key] = value
            else:
                env.pop(key, None)
        found["Env"] = [f"{key}={value}" for key, value in env.items()]
    if spec.labels:
        found["Labels"] = {**image.labels, **spec.labels}
    single = {"User": spec.user, "WorkingDir": spec.workdir, "StopSignal": spec.stop_signal}
    return {**found, **{key: value for key, value in single.items() if value}}


@asynccontextmanager
async def _still(engine: Engine, entry: Entry, *, pause: bool) -> AsyncIterator[None]:
    """Nothing of it moves, starts or is removed meanwhile."""
    async with entry.lock:
        w = entry.w
        if not pause or w.status is not Status.RUNNING:
            yield
            return
        driver = engine.life.driver(w)
        w.private[STILL] = True
        engine.life.save(w)
        try:
            await driver.freeze(w, frozen=True)
            yield
        finally:
            try:
                await driver.freeze(w, frozen=False)
            except (KnarrError, OSError):
                if w.status is Status.RUNNING and w.pid:
                    raise
            w.private.pop(STILL, None)
            engine.life.save(w)


async def _copy_out(engine: Engine, w: Workload, raw: IO[bytes]) -> None:
    async def write(data: bytes) -> None:
        await asyncio.to_thread(raw.write, data)

    await engine.life.driver(w).export(w, write, layer=True)
    await asyncio.to_thread(raw.flush)
