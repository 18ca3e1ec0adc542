"""`cp` for workloads whose tree the kernel can show us: tar work in a thread, bytes handed over with
back-pressure.

Out of scope: the tar itself and staying inside the root (`kernel.archive`).
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, TypeVar

from knarr.engine.driver import PathStat
from knarr.model.errors import Invalid
from knarr.model.failures import of_path

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from knarr.model.namespaces import IdMap

T = TypeVar("T")


async def stat_path(root: int, name: str, path: str) -> PathStat:
    from knarr.kernel import archive

    found = await _in_thread(root, name, path, lambda own: archive.stat_path(own, path))
    return PathStat(
        name=found.name, size=found.size, mode=found.mode, mtime=found.mtime, link_target=found.link_target
    )


async def get(
    root: int,
    name: str,
    path: str,
    write: Callable[[bytes], Awaitable[None]],
    *,
    ids: IdMap | None = None,
    base: str | None = None,
) -> None:
    """`base`: what the first entry is called instead of the path's last component."""
    loop = asyncio.get_running_loop()

    def push(data: bytes) -> None:
        asyncio.run_coroutine_threadsafe(_awaited(write(data)), loop).result()

    from knarr.kernel import archive

    await _in_thread(root, name, path, lambda own: archive.pack(own, path, push, ids=ids, base=base))


async def export(root: int, name: str, write: Callable[[bytes], Awaitable[None]], *, layer: bool) -> None:
    loop = asyncio.get_running_loop()

    def push(data: bytes) -> None:
        asyncio.run_coroutine_threadsafe(_awaited(write(data)), loop).result()

    from knarr.kernel import archive

    await _in_thread(root, name, "/", lambda own: archive.pack(own, "/.", push, layer=layer))


async def put(
    root: int, name: str, path: str, read: Callable[[], Awaitable[bytes]], *, ids: IdMap | None = None
) -> None:
    loop = asyncio.get_running_loop()

    def pull() -> bytes:
        return asyncio.run_coroutine_threadsafe(_awaited(read()), loop).result()

    from knarr.kernel import archive

    await _in_thread(root, name, path, lambda own: archive.unpack(own, path, pull, ids=ids))


async def _awaited(work: Awaitable[T]) -> T:
    return await work


async def _in_thread(root: int, name: str, path: str, work: Callable[[int], T]) -> T:
    """`work` has a descriptor of its own: it goes on for a moment when its client has gone, and the number
    that the caller closes then may be another workload's root by the next call.
    """

    def run(own: int) -> T:
        try:
            return work(own)
        finally:
            os.close(own)

    try:
        return await asyncio.shield(asyncio.to_thread(run, os.dup(root)))
    except OSError as error:
        raise _translate(name, path, error) from error
    except ValueError as error:
        raise Invalid(f"{name}:{path}: {error}", hint="a tar archive is expected") from error


def _translate(name: str, path: str, error: OSError) -> Exception:
    """ConnectionError is the client's end, not the workload's."""
    if isinstance(error, ConnectionError):
        return error
    return of_path(error.errno or 0, f"{name}:{path}: {error.strerror or error}")
