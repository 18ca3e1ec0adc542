"""Images for the front ends: long jobs in worker threads with progress as a stream, and what lists show.

A job whose client goes away is cancelled at its next step. Out of scope: sources and the store
(`knarr.images`).
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING, Any

from knarr.engine.imagetools import ImageTools
from knarr.engine.jobs import Job
from knarr.images import archives, auth, bootstrap, registry
from knarr.model import codec, names
from knarr.model.errors import Failed, KnarrError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from knarr.engine.events import EventLog
    from knarr.engine.prunes import Filters
    from knarr.images.store import ImageStore
    from knarr.model.resource import Image

_JOBS = 4
_INCOMING = "incoming-"
"""archives on their way in; those that a dead daemon left go at the next start"""


class Images:
    """The store of one trust domain, seen from the event loop."""

    def __init__(self, store: ImageStore, events: EventLog, folder: str) -> None:
        self.store = store
        self.tools = ImageTools(store)
        self.unmount: Callable[[str], Awaitable[None]] | None = None
        """the keeper's: takes a tree id"""
        for name in os.listdir(folder):
            if name.startswith(_INCOMING):
                os.unlink(os.path.join(folder, name))
        self._events = events
        self._folder = folder
        """private; for archives on their way in and the bootstrap's cache"""
        self._pool = ThreadPoolExecutor(_JOBS, thread_name_prefix="images")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    # jobs

    async def _run(self, action: str, work: Callable[[Job], list[Image]]) -> AsyncIterator[dict[str, Any]]:
        job = Job()
        future = asyncio.get_running_loop().run_in_executor(self._pool, work, job)
        try:
            async for line in job.lines(future):
                yield line
            for image in await future:
                name = image.references[0] if image.references else image.id
                self._events.emit("image", action, image.id, {"name": name})
                yield {"image": view(image)}
        except KnarrError as error:
            yield {"error": error.to_json()}
        except OSError as error:
            failed = Failed(f"{error.filename or 'image store'}: {error.strerror}")
            yield {"error": failed.to_json()}
        finally:
            job.cancelled.set()

    def pull(
        self,
        reference: str,
        *,
        platform: str | None,
        insecure: bool,
        credentials: tuple[str, str] | None,
    ) -> AsyncIterator[dict[str, Any]]:
        parsed = names.parse_reference(reference)
        wanted = names.parse_platform(platform) if platform else names.host_platform()

        def work(job: Job) -> list[Image]:
            known = (
                auth.Credentials(username=credentials[0], password=credentials[1]) if credentials else None
            )
            source = registry.resolve(parsed, wanted, known, insecure)
            return [self.store.ingest(source, job, job.cancel)]

        return self._run("pull", work)

    async def load(self, body: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
        path = await self._spool(body)
        try:
            async for line in self._run("load", lambda job: self._load(path, job)):
                yield line
        finally:
            os.unlink(path)

    def _load(self, path: str, job: Job) -> list[Image]:
        with archives.open_archive(path, self._folder, cancel=job.cancel) as sources:
            return [self.store.ingest(source, job, job.cancel) for source in sources]

    async def import_tar(
        self, body: AsyncIterator[bytes], reference: str | None
    ) -> AsyncIterator[dict[str, Any]]:
        named = (names.parse_reference(reference).canonical,) if reference else ()
        path = await self._spool(body)

        def work(job: Job) -> list[Image]:
            with archives.open_rootfs(path, named, cancel=job.cancel) as source:
                return [self.store.ingest(source, job, job.cancel)]

        try:
            async for line in self._run("import", work):
                yield line
        finally:
            os.unlink(path)

    def bootstrap(
        self, distribution: str, include: tuple[str, ...], reference: str | None
    ) -> AsyncIterator[dict[str, Any]]:
        def work(job: Job) -> list[Image]:
            with bootstrap.bootstrap(
                distribution,
                include,
                os.path.join(self._folder, "bootstrap"),
                reference=reference or "",
                progress=job,
                cancel=job.cancel,
            ) as source:
                return [self.store.ingest(source, job, job.cancel)]

        return self._run("bootstrap", work)

    def derive(self, action: str, work: Callable[[Job], list[Image]]) -> AsyncIterator[dict[str, Any]]:
        """Images made of what is here: progress, then the images."""
        return self._run(action, work)

    async def _spool(self, body: AsyncIterator[bytes]) -> str:
        """An archive is read more than once, so it goes to disk first, in our own folder."""
        fd, path = tempfile.mkstemp(prefix=_INCOMING, dir=self._folder)
        loop = asyncio.get_running_loop()
        try:
            with os.fdopen(fd, "wb") as file:
                async for piece in body:
                    await loop.run_in_executor(self._pool, file.write, piece)
        except BaseException:
            os.unlink(path)
            raise
        return path

    # what is there

    def get(self, name: str) -> Image:
        return self.store.get(name)

    def ls(self, used: set[str]) -> list[dict[str, Any]]:
        return [{**view(image), "used": image.id in used} for image in self.store.list()]

    def inspect(self, name: str) -> dict[str, Any]:
        image = self.store.get(name)
        return {**view(image), "config": codec.to_json(image.config), "rootfs": codec.to_json(image.rootfs)}

    def tag(self, name: str, reference: str) -> None:
        canonical = names.parse_reference(reference).canonical
        self.store.tag(name, reference)
        self._events.emit("image", "tag", self.store.get(name).id, {"name": canonical})

    async def remove(self, name: str, *, force: bool) -> list[str]:
        image = self.store.get(name)
        before = self._trees()
        removed = await asyncio.to_thread(self.store.remove, name, force)
        await self._let_go(before)
        self._events.emit("image", "delete", image.id, {"name": name})
        return list(removed)

    def _trees(self) -> set[str]:
        return {image.rootfs.tree_id for image in self.store.list()}

    async def _let_go(self, before: set[str]) -> None:
        """A mount would keep the removed tree's file on the disk."""
        for tree_id in before - self._trees():
            try:
                if self.unmount is not None:
                    await self.unmount(tree_id)
            except (KnarrError, OSError):
                continue  # in use by a copy that is ending, or the keeper is away: its next mount looks again

    async def prune(self, *, everything: bool, used: set[str], filters: Filters) -> Any:
        before = self._trees()
        kept = {
            image.id
            for image in self.store.list()
            if not filters.match(_nanoseconds(image.created), image.config.labels)
        }
        removed = await asyncio.to_thread(self.store.prune, everything, used | kept)
        await self._let_go(before)
        return codec.to_json(removed)


def _nanoseconds(text: str) -> int:
    """Of an image's creation; one that doesn't say is as old as can be."""
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1e9)
    except ValueError:
        return 0


def view(image: Image) -> dict[str, Any]:
    """What lists and the last line of a job show."""
    return {
        "id": image.id,
        "digest": image.digest,
        "references": list(image.references),
        "created": image.created,
        "size": image.size,
        "architecture": image.config.architecture,
        "os": image.config.os,
        "layers": list(image.layers),
    }
