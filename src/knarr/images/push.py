"""An image to a registry: its blobs exactly as they are kept, then its manifest.

A blob that is there is not sent; one that another repository of the registry has is mounted from there.
Small ones go in one request, large ones in pieces that are gone on with when the connection drops. Out of
scope: who we are (`registry`, `auth`).
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin

from knarr.images import transport
from knarr.model.errors import Failed, KnarrError, NotFound, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from knarr.images.registry import Registry
    from knarr.images.saving import Blob, Stored
    from knarr.images.source import Progress
    from knarr.images.store import ImageStore
    from knarr.model.names import Reference

PIECE = 16 << 20
"""bytes of one request"""
_PARALLEL = 3
_TRIES = 5
_PAUSE = 0.2
_BUSY = frozenset({429, 500, 502, 503, 504})
_HINT = "its operator must look into it"
_BYTES = {"Content-Type": "application/octet-stream"}


@dataclass(kw_only=True)
class Push:
    store: ImageStore
    registry: Registry
    reference: Reference
    sources: Mapping[str, str]
    """digest → a repository of the same registry that should have it"""
    progress: Progress
    cancel: Callable[[], bool]
    piece: int = PIECE
    _failed: bool = False

    def run(self, image: Stored) -> str:
        """The digest under which the registry has it."""
        blobs = list({blob.digest: blob for blob in (*image.layers, image.config)}.values())
        with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="knarr-push") as workers:
            jobs = [workers.submit(self._one, blob) for blob in blobs]
            errors = [error for job in jobs if (error := job.exception()) is not None]
        if errors:
            # a later one may only say that the first one stopped it
            raise next((error for error in errors if not isinstance(error, _Stopped)), errors[0])
        self._manifest(image.manifest)
        return image.manifest.digest

    def _one(self, blob: Blob) -> None:
        try:
            self._blob(blob)
        except BaseException:
            self._failed = True
            raise

    def _blob(self, blob: Blob) -> None:
        if self._there(blob):
            self._tell(blob, "exists", blob.size)
            return
        location = self._begin(blob)
        if not location:
            self._tell(blob, "mounted", blob.size)
            return
        failures, done = 0, 0
        while True:
            try:
                location, done = self._send(blob, location, done)
                break
            except transport.Dropped as error:
                failures += 1
                if failures >= _TRIES:
                    raise Unavailable(
                        f"registry {self.registry.name!r} stopped at {done} of {blob.size} bytes: {error}",
                        hint="try again: what is there is not sent again",
                    ) from error
                time.sleep(_PAUSE * 2**failures)
                location, done = self._resumed(blob, location)
        self._tell(blob, "pushed", blob.size)

    def _tell(self, blob: Blob, phase: str, done: int) -> None:
        self.progress.update(blob.digest, phase, done, blob.size)

    def _path(self, tail: str) -> str:
        return f"/v2/{self.reference.repository}/{tail}"

    def _ask(
        self, method: str, target: str, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> transport.Answer:
        if self._failed or self.cancel():
            raise _Stopped("the push was cancelled", hint="what was sent whole stays there")
        answer = self.registry.send(self.reference, method, target, headers, body)
        if answer.status in _BUSY:
            answer.close()
            raise transport.Dropped(f"status {answer.status}")
        return answer

    def _again(
        self, method: str, target: str, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> transport.Answer:
        """For what may be asked twice."""
        fact = ""
        for failures in range(_TRIES):
            try:
                return self._ask(method, target, headers, body)
            except transport.Dropped as error:
                fact = str(error)
                time.sleep(_PAUSE * 2**failures)
        raise Unavailable(
            f"registry {self.registry.name!r} does not answer properly: {fact}", hint="try again later"
        )

    def _there(self, blob: Blob) -> bool:
        with self._again("HEAD", self._path(f"blobs/{blob.digest}")) as answer:
            return answer.status == 200

    def _begin(self, blob: Blob) -> str:
        """Where to send it; empty when it could be mounted."""
        source = self.sources.get(blob.digest, "")
        query = f"?mount={quote(blob.digest)}&from={quote(source, safe='')}" if source else ""
        with self._again("POST", self._path("blobs/uploads/") + query, {"Content-Length": "0"}) as answer:
            if answer.status == 201:
                return ""
            self._expect(answer, 202, "take a blob")
            return self._location(answer)

    def _location(self, answer: transport.Answer, before: str = "") -> str:
        found = answer.header("Location") or before
        if not found:
            raise Failed(f"registry {self.registry.name!r} does not say where to send a blob", hint=_HINT)
        origin = answer.origin
        return urljoin(f"{origin.scheme}://{origin.text}", found)

    def _send(self, blob: Blob, location: str, done: int) -> tuple[str, int]:
        with open(self.store.blob(blob.digest), "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != blob.size:
                raise NotFound(f"blob {blob.digest!r} is damaged", hint="knarr image check --repair")
            file.seek(done)
            last = b""
            if blob.size <= self.piece:
                last = _exactly(file.read, blob.size - done)
            else:
                while done < blob.size:
                    data = _exactly(file.read, min(self.piece, blob.size - done))
                    location = self._patch(location, data, done)
                    done += len(data)
                    self._tell(blob, "pushing", done)
        target = f"{location}{'&' if '?' in location else '?'}digest={quote(blob.digest)}"
        headers = {**_BYTES, "Content-Length": str(len(last))}
        with self._ask("PUT", target, headers, last) as answer:
            self._expect(answer, 201, "take a blob")
        return location, blob.size

    def _patch(self, location: str, data: bytes, done: int) -> str:
        headers = {
            **_BYTES,
            "Content-Length": str(len(data)),
            "Content-Range": f"{done}-{done + len(data) - 1}",
        }
        with self._ask("PATCH", location, headers, data) as answer:
            self._expect(answer, 202, "take a piece of a blob")
            return self._location(answer, location)

    def _resumed(self, blob: Blob, location: str) -> tuple[str, int]:
        """How far an interrupted upload came; from the start at a new place if the registry forgot it."""
        with self._again("GET", location) as answer:
            first, dash, last = answer.header("Range").removeprefix("bytes=").partition("-")
            if answer.status == 204 and dash and first == "0" and last.isdigit() and int(last) < blob.size:
                done = int(last) + 1 if blob.size > self.piece else 0
                if done or int(last) == 0:
                    return self._location(answer, location), done
        return self._begin(blob) or location, 0

    def _manifest(self, manifest: Blob) -> None:
        with open(self.store.blob(manifest.digest), "rb") as file:
            data = file.read()
        path = self._path(f"manifests/{self.reference.target}")
        with self._again("PUT", path, {"Content-Type": manifest.media_type}, data) as answer:
            self._expect(answer, 201, "take the manifest")
            said = answer.header("Docker-Content-Digest")
        if said and said != manifest.digest:
            raise Failed(f"registry {self.registry.name!r} made another manifest of it: {said}", hint=_HINT)

    def _expect(self, answer: transport.Answer, status: int, act: str) -> None:
        if answer.status == status:
            return
        if answer.status in (401, 403):
            raise self.registry.denied(self.reference)
        raise Failed(f"registry {self.registry.name!r} does not {act}: status {answer.status}", hint=_HINT)


class _Stopped(Failed):
    """Another blob failed, or the client went."""


def _exactly(read: Callable[[int], Any], size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (piece := read(size - len(data))):
        data += piece
    return bytes(data)


def sources(store: ImageStore, reference: Reference, parse: Callable[[str], Reference]) -> dict[str, str]:
    """Repositories on the same registry that images here with the same blobs are named after."""
    found: dict[str, str] = {}
    for image in store.list():
        row = store.records.one("SELECT blobs FROM images WHERE id = ?", image.id)
        for name in image.references:
            try:
                other = parse(name)
            except KnarrError:
                continue
            if other.registry == reference.registry and other.repository != reference.repository:
                for digest in row[0].split("\n") if row is not None else ():
                    found.setdefault(digest, other.repository)
    return found
