"""The calls that do something with images that are here; mixed into the synchronous client.

Standard library only and quick to import. Out of scope: how calls travel (`client`).
"""

from __future__ import annotations

from knarr.client import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from knarr.client.shapes import Document


class ImageCalls:
    def _raw(self, call: calls.Call) -> Iterator[bytes]:
        raise NotImplementedError

    def _progress(self, call: calls.Call) -> Iterator[Document]:
        raise NotImplementedError

    def commit(
        self,
        name: str,
        *,
        reference: str | None = None,
        author: str = "",
        message: str = "",
        changes: Iterable[str] = (),
        pause: bool = True,
    ) -> Iterator[Document]:
        """A new image of a workload's files; `changes` are instructions such as `CMD ["sh"]`."""
        wanted = {"reference": reference, "author": author, "message": message, "pause": pause}
        return self._progress(calls.commit(name, {**wanted, "changes": list(changes)}))

    def _json(self, call: calls.Call) -> Any:
        raise NotImplementedError

    def _lines(self, call: calls.Call) -> Iterator[Any]:
        raise NotImplementedError

    def history(self, name: str) -> list[Document]:
        """Steps, newest first."""
        return self._json(calls.image_history(name))  # type: ignore[no-any-return]

    def image_diff(self, name: str, other: str) -> Iterator[Document]:
        """`kind` (A, C, D), `path`, `size` of every file that differs."""
        return self._lines(calls.image_diff(name, other))

    def collect_images(self) -> Document:
        """Give back what no image needs: `freed` bytes."""
        return self._json(calls.post("/images/gc"))  # type: ignore[no-any-return]

    def check_images(self, *, repair: bool = False) -> Iterator[Document]:
        """Progress; the last line has `problems`: `item`, `fact`, `repaired`, `hint`."""
        return self._progress(calls.post("/images/check", {"repair": repair}))

    def push(
        self,
        reference: str,
        *,
        insecure: bool = False,
        username: str | None = None,
        password: str | None = None,
    ) -> Iterator[Document]:
        """Progress; the last line has the `digest` under which the registry has it."""
        wanted = {"reference": reference, "insecure": insecure, "username": username, "password": password}
        return self._progress(calls.post("/images/push", wanted))

    def disk_usage(self) -> Document:
        return self._json(calls.disk_usage())  # type: ignore[no-any-return]

    def export(self, name: str) -> Iterator[bytes]:
        """A tar of a workload's whole root, without what is mounted in it."""
        return self._raw(calls.export(name))

    def save(self, names: Iterable[str], *, form: str = "docker-archive") -> Iterator[bytes]:
        """One archive of several images; form `docker-archive` (an OCI layout as well) or `oci-archive`."""
        return self._raw(calls.post("/images/save", {"names": list(names), "form": form}))
