"""What is done with images that are here: archives of them, comparisons, what they take.

Out of scope: how images come (`engine.images`), workloads.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from knarr.engine.jobs import Job
from knarr.images import auth, check, compare, registry, saving
from knarr.images import push as pushing
from knarr.model import codec, names
from knarr.model.errors import Invalid, KnarrError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from knarr.images.store import ImageStore
    from knarr.model.resource import Image

T = TypeVar("T")
_MAX_SOURCES = 8
ARCHIVE_FORMS = ("docker-archive", "oci-archive")


class ImageTools:
    def __init__(self, store: ImageStore) -> None:
        self._store = store

    async def save(self, wanted: Sequence[str], form: str) -> AsyncIterator[bytes]:
        """One archive of several images. Raises `NotFound` before the first byte."""
        if not wanted:
            raise Invalid("no image is named", hint="knarr image save -o FILE IMAGE")
        if form not in ARCHIVE_FORMS:
            raise Invalid(f"archive form {form!r} is unknown", hint=" or ".join(ARCHIVE_FORMS))
        chosen = [self._store.get(name) for name in wanted]
        with self._store.held(chosen):
            parts = await asyncio.to_thread(self._parts, wanted, chosen)
            pieces = saving.archive(self._store, parts, docker=form == "docker-archive")
            async for piece in in_thread(pieces):
                yield piece

    async def history(self, name: str) -> list[dict[str, Any]]:
        image = self._store.get(name)
        return await asyncio.to_thread(compare.history, self._store, image)

    async def diff(self, name: str, other: str) -> AsyncIterator[dict[str, Any]]:
        images = self._store.get(name), self._store.get(other)
        with self._store.held(images):
            found = await asyncio.to_thread(compare.differences, self._store, *images)
        for item in found:
            yield {"kind": item.kind, "path": item.path, "size": item.size}

    async def check(self, *, repair: bool) -> AsyncIterator[dict[str, Any]]:
        """Progress, then the problems."""

        def work(job: Job) -> dict[str, Any]:
            with self._store.held(self._store.list()):
                checker = check.Checker(store=self._store, progress=job, cancel=job.cancel, repair=repair)
                return {"problems": [codec.to_json(item) for item in checker.run()]}

        async for line in _lines(work):
            yield line

    async def push(
        self, name: str, *, insecure: bool, credentials: tuple[str, str] | None
    ) -> AsyncIterator[dict[str, Any]]:
        """Progress, then the digest. Raises `Invalid` for a name that says no registry and tag."""
        image = self._store.get(name)
        wanted = [reference for reference in _as_references(name) if reference in image.references]
        if not wanted:
            raise Invalid(f"{name!r} is no name of the image", hint="knarr tag IMAGE REGISTRY/NAME:TAG")
        reference = names.parse_reference(wanted[0])
        login = auth.Credentials(username=credentials[0], password=credentials[1]) if credentials else None

        def work(job: Job) -> dict[str, Any]:
            with self._store.held([image]):
                sources = pushing.sources(self._store, reference, names.parse_reference)
                client = registry.Registry(
                    reference.registry,
                    credentials=login,
                    insecure=insecure,
                    actions="pull,push",
                    sources=tuple(sorted(set(sources.values()))[:_MAX_SOURCES]),
                )
                push = pushing.Push(
                    store=self._store,
                    registry=client,
                    reference=reference,
                    sources=sources,
                    progress=job,
                    cancel=job.cancel,
                )
                return {"digest": push.run(saving.stored(self._store, image)), "reference": wanted[0]}

        async for line in _lines(work):
            yield line

    async def collect(self) -> int:
        """The bytes given back."""
        return await asyncio.to_thread(self._store.collect)

    def _parts(self, wanted: Sequence[str], chosen: Sequence[Image]) -> list[saving.Wanted]:
        """Every image once, with the names by which it was asked for."""
        tags: dict[str, list[str]] = {}
        for name, image in zip(wanted, chosen, strict=True):
            tags.setdefault(image.id, []).extend(
                reference for reference in _as_references(name) if reference in image.references
            )
        images = {image.id: image for image in chosen}
        return [
            saving.Wanted(
                stored=saving.stored(self._store, image), references=tuple(dict.fromkeys(tags[image.id]))
            )
            for image in images.values()
        ]


def _as_references(name: str) -> list[str]:
    """The reference that a name may be; an id is none."""
    try:
        return [names.parse_reference(name).canonical]
    except KnarrError:
        return []


async def _lines(work: Callable[[Job], dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    """Progress, then `ready` with what the work gave, or `error`."""
    job = Job()
    future = asyncio.ensure_future(asyncio.to_thread(work, job))
    try:
        async for line in job.lines(future):
            yield line
        yield {"ready": True, **await future}
    except KnarrError as error:
        yield {"error": error.to_json()}
    finally:
        job.cancelled.set()


async def in_thread(pieces: Iterator[T]) -> AsyncIterator[T]:
    """A blocking iterator's items, one thread's turn each."""
    end = object()
    while (item := await asyncio.to_thread(next, pieces, end)) is not end:
        yield item  # type: ignore[misc]
