"""Layers → one tree, in memory: whiteouts, opaque directories, links across layers, replaced entries.

The rules are those of unpacking layer over layer with overlay's whiteouts (image-spec layer.md): whiteouts
of a layer hide what the layers below hold, never what the same layer brings. A parent that is a symlink in
a lower layer is followed, inside this tree only. Nothing here touches a file system. Out of scope: contents
(`pool`), bytes (`erofs`).
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import msgspec

from knarr.images.limits import DEFAULT, Limits
from knarr.model.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."
_HOPS = 40
_STEPS = 20_000_000
"""of all paths of an image: some seconds; a million files ten folders deep take half"""

# Attributes of an image that would speak to the host: overlayfs reads the first two in a lower directory,
# and of `security.` only file capabilities mean the same on every host (labels are the host's policy).
_HOST_XATTRS = (b"trusted.overlay.", b"user.overlay.")
_KEPT_XATTRS = (
    b"user.",
    b"trusted.",
    b"security.capability",
    b"system.posix_acl_access",
    b"system.posix_acl_default",
)


class Entry(msgspec.Struct, array_like=True, gc=False, omit_defaults=True):
    """One entry of a layer, its content already in the pool. `mode` 0 = a hard link to the path in `link`."""

    path: bytes
    """clean: no leading slash, no `.`, no `..`; empty = the root"""
    mode: int
    uid: int
    gid: int
    mtime: int
    """nanoseconds"""
    size: int = 0
    link: bytes = b""
    """target of a symlink; path (clean) of a hard link"""
    block: int = 0
    """first pool block of the content; 0 = no content in the pool"""
    blocks: int = 0
    inline: bytes = b""
    """a small file's content itself"""
    rdev: int = 0
    """as Linux encodes it (new_encode_dev)"""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    sparse_bits: int = 0
    sparse: bytes = b""
    """chunk table (u32, relative to `block`, all ones = hole) with chunks of `1 << sparse_bits` blocks"""


class Node:
    """One inode of the merged tree; hard links share it."""

    __slots__ = ("blocks", "children", "entry", "nid", "nlink", "payload", "shape")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.children: dict[bytes, Node] | None = {} if stat.S_ISDIR(entry.mode) else None
        # the writer's: see `erofs`
        self.nlink = 0
        self.nid = -1
        self.shape = 0
        self.payload = 0
        self.blocks: list[tuple[int, int]] = []


def clean_path(name: bytes, limits: Limits = DEFAULT) -> bytes:
    """A name of an archive as a path below the root. Raises `Invalid` for one that climbs or can't exist."""
    if len(name) > limits.path_bytes:
        raise Invalid(f"layer's archive has a name of {len(name)} bytes")
    parts = [part for part in name.split(b"/") if part and part != b"."]
    for part in parts:
        if part == b"..":
            raise Invalid(f"layer's archive has a name that climbs: {name[:200]!r}")
        if len(part) > limits.name_bytes:
            raise Invalid(f"layer's archive has a name of {len(part)} bytes in one folder")
    return b"/".join(parts)


def clean_xattrs(xattrs: tuple[tuple[bytes, bytes], ...]) -> tuple[tuple[bytes, bytes], ...]:
    """Those that mean the same on any host."""
    return tuple(
        (name, value)
        for name, value in xattrs
        if name.startswith(_KEPT_XATTRS) and not name.startswith(_HOST_XATTRS)
    )


def merge(layers: Iterable[Sequence[Entry]]) -> Node:
    """The root of all layers, bottom first."""
    tree = _Tree()
    for entries in layers:
        tree.apply(entries)
    return tree.root


def walk(root: Node) -> Iterator[Node]:
    """Every inode once, directories before what they hold, in an order that depends on the tree only."""
    seen: set[int] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        yield node
        folders = []
        for _, child in sorted((node.children or {}).items()):
            if child.children is not None:
                folders.append(child)
            elif id(child) not in seen:
                seen.add(id(child))
                yield child
        stack.extend(reversed(folders))


class _Tree:
    def __init__(self) -> None:
        self.root = Node(Entry(b"", stat.S_IFDIR | 0o755, 0, 0, 0))
        self._folders: dict[bytes, Node] = {}
        self._steps = 0

    def apply(self, entries: Sequence[Entry]) -> None:
        self._folders = {b"": self.root}
        hidden = [entry.path for entry in entries if WHITEOUT in entry.path]
        for path in hidden:
            self._hide(path)
        self._folders = {b"": self.root}
        for entry in entries:
            parent, _, name = entry.path.rpartition(b"/")
            if name.startswith(WHITEOUT):
                continue
            if not name:
                self.root.entry = _as_root(entry)
            else:
                self._add(parent, name, entry)

    def _hide(self, path: bytes) -> None:
        parent, _, name = path.rpartition(b"/")
        if not name.startswith(WHITEOUT):
            return
        victim = name[len(WHITEOUT) :]
        if victim in (b"", b".", b".."):
            raise Invalid(f"layer has a whiteout that names nothing: {path[:200]!r}")
        folder = self._folder(parent)
        if folder is None or folder.children is None:
            return
        if name == OPAQUE:
            folder.children.clear()
        elif not name.startswith(_AUFS):
            folder.children.pop(victim, None)
        self._folders = {b"": self.root}

    def _add(self, parent: bytes, name: bytes, entry: Entry) -> None:
        folder = self._folder(parent, entry)
        if folder is None or folder.children is None:
            raise Invalid(f"layer has an entry below something that is no folder: {entry.path[:200]!r}")
        old = folder.children.get(name)
        node = self._link_target(entry) if entry.mode == 0 else Node(entry)
        if old is not None:
            if node.children is not None and old.children is not None:
                old.entry = entry
                return
            if old.children is not None or stat.S_ISLNK(old.entry.mode):
                self._folders = {b"": self.root}
        folder.children[name] = node

    def _link_target(self, entry: Entry) -> Node:
        parent, _, name = entry.link.rpartition(b"/")
        folder = self._folder(parent)
        node = folder.children.get(name) if folder is not None and folder.children is not None else None
        if node is None:
            raise Invalid(f"layer has a hard link to a file that is not there: {entry.link[:200]!r}")
        if node.children is not None:
            raise Invalid(f"layer has a hard link to a folder: {entry.link[:200]!r}")
        return node

    def _folder(self, path: bytes, implied_by: Entry | None = None) -> Node | None:
        """The directory at `path`, made if it is missing and `implied_by` is given. None = there is none."""
        node = self._folders.get(path)
        if node is None:
            node = self._resolve(path, implied_by)
            if node is not None:
                self._folders[path] = node
        return node

    def _resolve(self, path: bytes, implied_by: Entry | None) -> Node | None:
        stack = [self.root]
        todo = path.split(b"/")[::-1]
        hops = 0
        while todo:
            part = todo.pop()
            self._steps += 1
            if self._steps > _STEPS:
                raise Invalid("layer's paths are too deep and too many to follow")
            if part == b"..":
                del stack[max(1, len(stack) - 1) :]
                continue
            children = stack[-1].children
            if children is None:
                return None
            child = children.get(part)
            if child is None:
                if implied_by is None:
                    return None
                child = children[part] = Node(Entry(b"", stat.S_IFDIR | 0o755, 0, 0, implied_by.mtime))
            if stat.S_ISLNK(child.entry.mode):
                hops += 1
                if hops > _HOPS:
                    raise Invalid(f"layer has a path through too many symlinks: {path[:200]!r}")
                target = child.entry.link
                if target.startswith(b"/"):
                    del stack[1:]
                todo.extend(piece for piece in target.split(b"/")[::-1] if piece and piece != b".")
                continue
            if child.children is None:
                return None
            stack.append(child)
        return stack[-1]


def _as_root(entry: Entry) -> Entry:
    if not stat.S_ISDIR(entry.mode):
        raise Invalid("layer's root is not a folder")
    return entry
