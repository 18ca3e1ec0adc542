"""Merging layers in memory, against a plain model of it."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knarr.images.tree import Entry, clean_path, merge, walk
from knarr.model.errors import Invalid


def file(path: str, text: str = "x") -> Entry:
    return Entry(path.encode(), stat.S_IFREG | 0o644, 0, 0, 5, len(text), inline=text.encode())


def folder(path: str, mode: int = 0o755) -> Entry:
    return Entry(path.encode(), stat.S_IFDIR | mode, 0, 0, 7)


def link(path: str, target: str) -> Entry:
    return Entry(path.encode(), 0, 0, 0, 0, 0, target.encode())


def symlink(path: str, target: str) -> Entry:
    return Entry(path.encode(), stat.S_IFLNK | 0o777, 0, 0, 0, len(target), target.encode())


def show(*layers: list[Entry]) -> dict[str, object]:
    found: dict[str, object] = {}
    stack = [("", merge(layers))]
    while stack:
        path, node = stack.pop()
        for name, child in (node.children or {}).items():
            full = f"{path}/{name.decode()}".lstrip("/")
            if child.children is not None:
                found[full] = "folder"
                stack.append((full, child))
            else:
                found[full] = child.entry.inline.decode() or "->" + child.entry.link.decode()
    return found


def test_whiteouts_hide_what_lies_below_only():
    lower = [folder("a"), file("a/old"), file("a/other"), file("top")]
    assert show(lower, [file("a/new"), file("a/.wh.new"), file("a/.wh.old"), file(".wh.top")]) == {
        "a": "folder", "a/new": "x", "a/other": "x",
    }  # fmt: skip
    # the order inside the layer does not matter
    assert show(lower, [file("a/kept"), file("a/.wh..wh..opq")]) == {"a": "folder", "a/kept": "x", "top": "x"}
    assert show(lower, [file("a/.wh..wh.plnk"), file("missing/.wh.b"), file(".wh.nothing")])["a/old"] == "x"


def test_whiteout_of_a_folder_and_its_return():
    lower = [folder("a"), file("a/old")]
    assert show(lower, [file(".wh.a"), folder("a"), file("a/new")]) == {"a": "folder", "a/new": "x"}


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "a/.wh.."])
def test_whiteouts_of_nothing(name):
    with pytest.raises(Invalid, match="names nothing"):
        merge([[file(name)]])


def test_replacing():
    lower = [folder("a"), file("a/b"), file("f")]
    assert show(lower, [file("a", "now a file"), folder("f")]) == {"a": "now a file", "f": "folder"}
    assert show(lower, [folder("a", 0o700)]) == {"a": "folder", "a/b": "x", "f": "x"}
    assert merge([lower, [folder("a", 0o700)]]).children[b"a"].entry.mode & 0o777 == 0o700
    assert merge([[folder("", 0o711)]]).entry.mode & 0o777 == 0o711
    with pytest.raises(Invalid, match="root is not a folder"):
        merge([[file("")]])


def test_links_across_layers():
    root = merge([[file("a", "1"), link("b", "a")], [file("a", "2"), link("c", "b"), link("d", "a")]])
    names = root.children
    assert names[b"b"] is names[b"c"]
    assert names[b"a"] is names[b"d"]
    assert names[b"b"].entry.inline == b"1"
    assert show([symlink("s", "/nowhere"), link("t", "s")])["t"] == "->/nowhere"
    assert show([file("a"), link("a", "a")]) == {"a": "x"}
    for bad, text in (
        (link("l", "missing"), "not there"),
        (link("l", "d"), "to a folder"),
        (link("l", "f/x"), "not there"),
    ):
        with pytest.raises(Invalid, match=text):
            merge([[folder("d"), file("f"), bad]])


def test_symlinked_parents_stay_inside():
    lower = [folder("usr"), folder("usr/lib"), symlink("lib", "usr/lib"), symlink("abs", "/usr/../../../usr")]
    merged = show(lower, [file("lib/x"), file("abs/lib/y"), file("lib/.wh.z")])
    assert merged["usr/lib/x"] == merged["usr/lib/y"] == "x"
    assert show([symlink("up", "../../.."), file("up/x")])["x"] == "x"
    # whiteouts go the same way
    assert "usr/lib/x" not in show([*lower, file("usr/lib/x")], [file("lib/.wh.x")])
    # a folder in place of the symlink, then the real thing
    assert show(lower, [folder("lib"), file("lib/x")])["lib/x"] == "x"
    with pytest.raises(Invalid, match="too many symlinks"):
        merge([[symlink("a", "b"), symlink("b", "a"), file("a/x")]])
    with pytest.raises(Invalid, match="no folder"):
        merge([[file("f"), file("f/x")]])


def test_missing_parents_are_made():
    node = merge([[file("a/b/c")]]).children[b"a"]
    assert (node.entry.mode, node.entry.mtime) == (stat.S_IFDIR | 0o755, 5)


@pytest.mark.parametrize(
    ("name", "clean"), [(b"./a//b/./", b"a/b"), (b"/abs", b"abs"), (b".", b""), (b"...", b"...")]
)
def test_clean_names(name, clean):
    assert clean_path(name) == clean


@pytest.mark.parametrize("name", [b"..", b"a/../b", b"/../x", b"n" * 256, b"d/" * 2100])
def test_refused_names(name):
    with pytest.raises(Invalid):
        clean_path(name)


NAME = st.sampled_from(["a", "b", "c"])
PATH = st.lists(NAME, min_size=1, max_size=3).map("/".join)
ACTION = st.tuples(st.sampled_from(["file", "folder", "whiteout", "opaque"]), PATH)


def _model(layers) -> dict[str, object]:
    """Paths in a dict; no symlinks, so prefixes say everything."""
    tree: dict[str, object] = {}

    def drop(path: str, *, below: bool = False) -> None:
        for name in [name for name in tree if name.startswith(path + "/") or (name == path and not below)]:
            del tree[name]

    for layer in layers:
        for kind, path in layer:
            if kind == "whiteout":
                drop(path)
            elif kind == "opaque":
                drop(path, below=True)
        for index, (kind, path) in enumerate(layer):
            if kind not in ("file", "folder"):
                continue
            parts = path.split("/")
            for depth in range(1, len(parts)):
                parent = "/".join(parts[:depth])
                if tree.setdefault(parent, "folder") != "folder":
                    raise Invalid("below a file")
            if kind == "folder" and tree.get(path) == "folder":
                continue
            drop(path)
            tree[path] = "folder" if kind == "folder" else f"f{index}"
    return tree


def _entries(layer) -> list[Entry]:
    made = []
    for index, (kind, path) in enumerate(layer):
        parent, _, name = path.rpartition("/")
        if kind == "whiteout":
            made.append(file(f"{parent}/.wh.{name}".lstrip("/")))
        elif kind == "opaque":
            made.append(file(f"{path}/.wh..wh..opq"))
        else:
            made.append(folder(path) if kind == "folder" else file(path, f"f{index}"))
    return made


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(ACTION, max_size=8), max_size=4))
def test_against_a_model(layers):
    try:
        wanted = _model(layers)
    except Invalid:
        with pytest.raises(Invalid):
            merge([_entries(layer) for layer in layers])
        return
    assert show(*[_entries(layer) for layer in layers]) == wanted


def test_walk_meets_every_inode_once():
    root = merge([[folder("d"), file("d/a"), link("d/b", "d/a"), link("z", "d/a"), folder("d/e")]])
    nodes = list(walk(root))
    assert len(nodes) == len({id(node) for node in nodes}) == 4


def test_endless_paths_are_given_up(monkeypatch):
    monkeypatch.setattr("knarr.images.tree._STEPS", 10_000)
    deep = "/".join("d" * 1000)
    # each replaced symlink makes the next path be followed from the root again
    with pytest.raises(Invalid, match="too deep and too many"):
        merge([[entry for n in range(50) for entry in (symlink("s", "x"), file(f"{deep}/f{n}"))]])
