"""What images are made of, told from the index alone: two compared, history with sizes, shares of the pool.

Nothing is unpacked or read from the pool: equal contents have equal places. Out of scope: how it is shown.
"""

from __future__ import annotations

import stat
import struct
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from knarr.images.config import strict_json
from knarr.images.ingest import unpack_entries
from knarr.images.tree import WHITEOUT, merge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from knarr.images.store import ImageStore
    from knarr.images.tree import Entry, Node
    from knarr.model.resource import Image

BLOCK = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    kind: str
    """A (only in the second), D (only in the first), C (another in the second)"""
    path: str
    size: int
    """in the second, or in the first for D"""


def differences(store: ImageStore, first: Image, second: Image) -> list[Difference]:
    """By path. A time alone is no difference, nor is how layers are cut."""
    old, new = _files(store, first), _files(store, second)
    found = []
    for path in sorted(old.keys() | new.keys()):
        before, after = old.get(path), new.get(path)
        if before is None or after is None:
            entry = after or before
            kind = "D" if after is None else "A"
        elif _essence(before) == _essence(after):
            continue
        else:
            entry, kind = after, "C"
        size = entry.size if entry is not None else 0
        found.append(Difference(kind=kind, path="/" + path.decode("utf-8", "surrogateescape"), size=size))
    return found


def _files(store: ImageStore, image: Image) -> dict[bytes, Entry]:
    root = merge(unpack_entries(store.layer_entries(diff_id)) for diff_id in image.layers)
    return dict(_walk(root))


def _walk(root: Node) -> Iterator[tuple[bytes, Entry]]:
    stack = [(b"", root)]
    while stack:
        path, node = stack.pop()
        if path:
            yield path, node.entry
        for name, child in (node.children or {}).items():
            stack.append((path + b"/" + name if path else name, child))


def _essence(entry: Entry) -> tuple[object, ...]:
    content = (entry.block, entry.inline, entry.sparse) if stat.S_ISREG(entry.mode) else ()
    link = entry.link if stat.S_ISLNK(entry.mode) else b""
    size = entry.size if stat.S_ISREG(entry.mode) else 0
    return (entry.mode, entry.uid, entry.gid, size, link, entry.rdev, sorted(entry.xattrs), content)


def history(store: ImageStore, image: Image) -> list[dict[str, Any]]:
    """Newest first; what a step's layer brought, in bytes of its files."""
    with open(store.blob(image.id), "rb") as file:
        document = strict_json(file.read(), "image config", store.limits)
    layers = iter(image.layers)
    steps = []
    for step in _steps(document):
        empty = step.get("empty_layer") is True
        diff_id = "" if empty else next(layers, "")
        steps.append({**_words(step), "layer": diff_id, "size": _layer_size(store, diff_id)})
    # a config need not tell of its layers
    steps += [{**_words({}), "layer": diff_id, "size": _layer_size(store, diff_id)} for diff_id in layers]
    return steps[::-1]


def _steps(document: dict[str, Any]) -> list[dict[str, Any]]:
    value = document.get("history")
    return [step for step in value if isinstance(step, dict)] if isinstance(value, list) else []


def _words(step: dict[str, Any]) -> dict[str, str]:
    return {key: str(step.get(key) or "") for key in ("created", "created_by", "author", "comment")}


def _layer_size(store: ImageStore, diff_id: str) -> int:
    if not diff_id:
        return 0
    entries = unpack_entries(store.layer_entries(diff_id))
    return sum(entry.size for entry in entries if WHITEOUT not in entry.path)


def usage(store: ImageStore, used: set[str]) -> dict[str, Any]:
    """What every image takes in the pool and as blobs; `shared`: what another image needs as well.

    `used`: ids of images with workloads. Reclaimable is what would go if only those stayed.
    """
    images = store.list()
    with store.lock:
        sizes: dict[Any, int] = {
            block: blocks * BLOCK for block, blocks in store.records.all("SELECT block, blocks FROM contents")
        }
        parts: dict[str, set[Any]] = {image.id: _contents(store, image) for image in images}
        for image in images:
            for digest in _blobs(store, image):
                sizes[digest] = store.blob_size(digest)
                parts[image.id].add(digest)
    users = Counter(part for own in parts.values() for part in own)
    kept = {part for image_id in used for part in parts.get(image_id, ())}
    rows = [_row(image, parts[image.id], sizes, users, used=image.id in used) for image in images]
    loose = [part for part in users if part not in kept]
    return {
        "images": rows,
        "pool": sum(size for part, size in sizes.items() if isinstance(part, int)),
        "blobs": sum(size for part, size in sizes.items() if isinstance(part, str)),
        "reclaimable": sum(sizes.get(part, 0) for part in loose),
    }


def _row(
    image: Image, own: set[Any], sizes: dict[Any, int], users: Counter[Any], *, used: bool
) -> dict[str, Any]:
    shared = sum(sizes.get(part, 0) for part in own if users[part] > 1)
    size = sum(sizes.get(part, 0) for part in own)
    return {
        "id": image.id,
        "references": list(image.references),
        "created": image.created,
        "size": size,
        "shared": shared,
        "unique": size - shared,
        "used": used,
    }


def _contents(store: ImageStore, image: Image) -> set[Any]:
    found: set[Any] = set()
    for diff_id in image.layers:
        row = store.records.one("SELECT contents FROM layers WHERE diff_id = ?", diff_id)
        if row is not None:
            found.update(block for (block,) in struct.iter_unpack("<I", row[0]))
    return found


def _blobs(store: ImageStore, image: Image) -> list[str]:
    row = store.records.one("SELECT blobs FROM images WHERE id = ?", image.id)
    return [digest for digest in row[0].split("\n") if digest] if row is not None else []
