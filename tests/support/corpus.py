"""Hostile root file systems: names, links, whiteouts and kinds. Each case says exactly what becomes of it.

`cases(canary)` gives all of them (with those of `corpus_fields`), the same each time. `canary` is a folder of
the host that the archives aim at. Out of scope: manifests and configs (`corpus_images`), the doors.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.tarforge import END, base256, extension, file, folder, hardlink, header, pax, symlink


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    layers: tuple[bytes, ...]
    """tars, bottom first"""
    tree: tuple[str, ...] | None = None
    """what `shapes.shape` tells of the image, None = it is refused"""
    refused: str = ""
    """part of the error's message"""
    cp: str = "same"
    """unpacked into a workload: `same` verdict as the image, `taken`, or `refused`"""


def taken(name: str, tar: bytes, *tree: str, cp: str = "same", end: bytes = END) -> Case:
    return Case(name=name, layers=(tar + end,), tree=tree, cp=cp)


def stacked(name: str, tars: tuple[bytes, ...], *tree: str) -> Case:
    return Case(name=name, layers=tuple(tar + END for tar in tars), tree=tree)


def refused(name: str, tar: bytes, text: str, *, cp: str = "same", end: bytes = END) -> Case:
    return Case(name=name, layers=(tar + end,), refused=text, cp=cp)


def names(canary: bytes) -> list[Case]:
    up, inside = b"../" * 30, canary.lstrip(b"/")
    climbs = {
        "dotdot": b"../x", "dotdot-later": b"a/../../x", "dotdot-inside": b"a/../b", "dot-dotdot": b"./../x",
        "root-dotdot": b"/../x", "dotdot-alone": b"..", "dotdot-last": b"a/..", "dotdot-deep": up + b"x",
        "dotdot-slashes": b"..//x", "dotdot-dot": b".././x",
    }  # fmt: skip
    found = [refused(f"climb-{name}", file(path), "climbs") for name, path in climbs.items()]
    parents = [b"/".join(inside.split(b"/")[:count]) for count in range(1, inside.count(b"/") + 2)]
    there = tuple(f"d {path.decode()}" for path in parents)
    return [
        *found,
        refused("climb-folder", folder(b"../x/"), "climbs"),
        refused("climb-link", symlink(b"../x", b"y"), "climbs"),
        refused("climb-canary", extension(up + inside + b"/x\0", b"L") + file(b"x"), "climbs"),
        refused("climb-pax", pax({b"path": b"../x"}) + file(b"x"), "climbs"),
        refused("climb-prefix", file(b"x", prefix=b"../.."), "climbs"),
        refused("climb-hardlink", hardlink(b"x", b"../../etc/passwd"), "climbs"),
        refused("climb-sparse", pax({b"GNU.sparse.name": b"../x", b"GNU.sparse.map": b"", b"GNU.sparse.size": b"0"})
                + file(b"x", b""), "climbs"),
        taken("absolute", file(b"/h/a"), "d h", "f h/a 1"),
        taken("absolute-slashes", file(b"//h//a"), "d h", "f h/a 1"),
        taken("dots", file(b"./h/./a"), "d h", "f h/a 1"),
        taken("absolute-canary", extension(canary + b"/x\0", b"L") + file(b"x"), *there, f"f {inside.decode()}/x 1"),
        taken("three-dots", file(b"h/..."), "d h", "f h/... 1"),
        taken("dotdot-space", file(b"h/.. "), "d h", "f h/..\\x20 1"),
        taken("backslash", file(b"..\\x"), "f ..\\x5cx 1"),
        taken("fullwidth-dots", file("\uff0e\uff0e/x".encode()), "d \uff0e\uff0e", "f \uff0e\uff0e/x 1"),
        taken("overlong-utf8", file(b"\xc0\xae\xc0\xae/x"), "d \\xc0\\xae\\xc0\\xae", "f \\xc0\\xae\\xc0\\xae/x 1"),
        taken("not-utf8", file(b"\xff\xfe"), "f \\xff\\xfe 1"),
        taken("control-characters", file(b"a\n\x1b[2J"), "f a\\x0a\\x1b[2J 1"),
        taken("percent", file(b"%2e%2e%2fx"), "f %2e%2e%2fx 1"),
        taken("case-twins", file(b"A") + file(b"a"), "f A 1", "f a 1"),
        taken("unicode-twins", file("e\u0301".encode()) + file("\xe9".encode()), "f e\u0301 1", "f \xe9 1"),
        taken("slash-makes-a-folder", header(b"h/a/", size=0), "d h", "d h/a"),
        taken("root-itself", folder(b"./", mode=0o711) + file(b"a"), "f a 1"),
        taken("root-by-slash", folder(b"/") + file(b"a"), "f a 1"),
        refused("root-as-file", file(b"."), "root is not a folder"),
        refused("root-as-link", symlink(b"/", b"x"), "root is not a folder"),
        refused("empty-name", file(b""), "root is not a folder"),
        taken("empty-pax-name", pax({b"path": b""}) + file(b"a"), "f a 1"),
        taken("name-255", extension(b"n" * 255 + b"\0", b"L") + file(b"x"), f"f {'n' * 255} 1"),
        refused("name-256", extension(b"n" * 256 + b"\0", b"L") + file(b"x"), "name of 256 bytes"),
        refused("name-huge", extension(b"n/" * 4000 + b"\0", b"L") + file(b"x"), "name of 8000 bytes"),
        refused("long-name-nul", extension(b"a\0/../../b\0", b"L") + file(b"x"), "zero byte"),
        refused("long-link-nul", extension(b"a\0b\0", b"K") + header(b"x", b"2"), "zero byte"),
        refused("pax-name-nul", pax({b"path": b"a\0b"}) + file(b"x"), "zero byte"),
        refused("pax-link-nul", pax({b"linkpath": b"a\0b"}) + header(b"x", b"2"), "zero byte"),
        taken("long-name-twice", extension(b"a\0", b"L") + extension(b"b\0", b"L") + file(b"x"), "f b 1"),
        taken("depth-2000", extension(b"d/" * 2000 + b"f\0", b"L") + file(b"x"), "2001 entries", cp="refused"),
    ]  # fmt: skip


def links(canary: bytes) -> list[Case]:
    text = canary.decode()
    chain = b"".join(symlink(b"l%d" % at, b"l%d" % (at + 1)) for at in range(60))
    short = folder(b"end") + symlink(b"l38", b"end") + b"".join(
        symlink(b"l%d" % at, b"l%d" % (at + 1)) for at in range(38)
    )  # fmt: skip
    ways = tuple(sorted(f"l l{at} -> l{at + 1}" for at in range(38)))
    two = file(b"a") + hardlink(b"b", b"a")
    return [
        taken("link-to-canary", symlink(b"l", canary), f"l l -> {text}"),
        taken("link-to-proc", symlink(b"l", b"/proc/self/exe"), "l l -> /proc/self/exe"),
        taken("link-up", symlink(b"l", b"../" * 20), f"l l -> {'../' * 20}"),
        taken("write-through-link-up", symlink(b"l", b"../../../x") + file(b"l/f"), "d x", "f x/f 1", "l l -> ../../../x", cp="refused"),
        taken("write-through-absolute", symlink(b"l", b"/x/y") + file(b"l/f"), "d x", "d x/y", "f x/y/f 1", "l l -> /x/y", cp="refused"),
        taken("replace-link-by-file", symlink(b"l", canary + b"/kept") + file(b"l"), "f l 1"),
        taken("replace-link-by-hardlink", file(b"a") + symlink(b"l", canary + b"/kept") + hardlink(b"l", b"a"),
              "f a 1 links=2", "f l 1 links=2"),
        taken("replace-link-by-fifo", symlink(b"l", canary + b"/kept") + header(b"l", b"6"), "p l"),
        taken("dangling", symlink(b"l", b"nowhere"), "l l -> nowhere"),
        taken("target-newline", symlink(b"l", b"a\nb"), "l l -> a\\x0ab"),
        taken("target-4095", symlink(b"l", b"t" * 4095), f"l l -> {'t' * 4095}"),
        refused("target-4096", symlink(b"l", b"t" * 4096), "target of 4096 bytes"),
        refused("target-empty", symlink(b"l", b""), "target of 0 bytes"),
        taken("loop", symlink(b"a", b"b") + symlink(b"b", b"a"), "l a -> b", "l b -> a"),
        refused("write-through-loop", symlink(b"a", b"b") + symlink(b"b", b"a") + file(b"a/x"), "too many symlinks"),
        refused("write-through-itself", symlink(b"a", b"a") + file(b"a/x"), "too many symlinks"),
        refused("chain-60", chain + file(b"l0/x"), "too many symlinks"),
        taken("chain-39", short + file(b"l0/x"), "d end", "f end/x 1", *sorted((*ways, "l l38 -> end"))),
        taken("hardlink", two, "f a 1 links=2", "f b 1 links=2"),
        taken("hardlink-absolute", file(b"a") + hardlink(b"b", b"/a"), "f a 1 links=2", "f b 1 links=2"),
        taken("hardlink-with-size", file(b"a") + hardlink(b"b", b"a", size=5), "f a 1 links=2", "f b 1 links=2"),
        taken("hardlink-chain", two + hardlink(b"c", b"b"), "f a 1 links=3", "f b 1 links=3", "f c 1 links=3"),
        taken("hardlink-to-symlink", symlink(b"a", canary) + hardlink(b"b", b"a"), f"l a -> {text} links=2", f"l b -> {text} links=2"),
        taken("hardlink-to-device", header(b"a", b"3", major=1, minor=3) + hardlink(b"b", b"a"), "c a 1:3 links=2", "c b 1:3 links=2"),
        taken("hardlink-then-replaced", two + file(b"a", b"new"), "f a 3", "f b 1"),
        taken("hardlink-through-link", folder(b"d") + file(b"d/a") + symlink(b"l", b"d") + hardlink(b"b", b"l/a"),
              "d d", "f b 1 links=2", "f d/a 1 links=2", "l l -> d"),
        refused("hardlink-to-canary", hardlink(b"b", canary[:90]), "not there"),
        refused("hardlink-forward", hardlink(b"b", b"a") + file(b"a"), "not there"),
        refused("hardlink-to-itself", hardlink(b"b", b"b"), "not there"),
        refused("hardlink-to-folder", folder(b"a") + hardlink(b"b", b"a"), "hard link to a folder"),
        refused("hardlink-to-nothing", hardlink(b"b", b""), "not there"),
        refused("hardlink-through-loop", symlink(b"l", b"l") + hardlink(b"b", b"l/a"), "too many symlinks"),
        refused("below-a-file", file(b"a") + file(b"a/b"), "no folder"),
        refused("below-a-device", header(b"a", b"3", major=1, minor=5) + file(b"a/b"), "no folder"),
        refused("below-a-link-to-a-file", file(b"f") + symlink(b"a", b"f") + file(b"a/b"), "no folder"),
    ]  # fmt: skip


def twins(_canary: bytes) -> list[Case]:
    """The same name more than once, in one layer and over layers."""
    whole = folder(b"d") + file(b"d/a")
    return [
        taken("twice", file(b"a", b"1") + file(b"a", b"22"), "f a 2"),
        taken("thousand-times", b"".join(file(b"a", b"%d" % at) for at in range(1000)), "f a 3"),
        taken("folder-twice", folder(b"d", mode=0o700) + file(b"d/a") + folder(b"d", mode=0o755), "d d", "f d/a 1"),
        taken("file-then-folder", file(b"d") + whole, "d d", "f d/a 1", cp="refused"),
        taken("folder-then-file", whole + file(b"d"), "f d 1", cp="refused"),
        taken("folder-then-link", whole + symlink(b"d", b"/"), "l d -> /", cp="refused"),
        stacked("file-over-folder", (whole, file(b"d")), "f d 1"),
        stacked("folder-over-file", (file(b"d"), whole), "d d", "f d/a 1"),
        stacked("folder-over-link", (symlink(b"d", b"/"), whole), "d d", "f d/a 1"),
        stacked("link-over-folder", (whole, symlink(b"d", b"/x")), "l d -> /x"),
        stacked("through-link-below", (symlink(b"d", b"x"), file(b"d/a")), "d x", "f x/a 1", "l d -> x"),
        stacked("device-over-file", (file(b"a"), header(b"a", b"4", major=8)), "b a 8:0"),
        stacked("hardlink-over-layers", (file(b"a"), hardlink(b"b", b"a")), "f a 1 links=2", "f b 1 links=2"),
        stacked("mode-of-a-folder-over-layers", (whole, folder(b"d", mode=0o1777)), "d d 1777", "f d/a 1"),
    ]  # fmt: skip


def whiteouts(_canary: bytes) -> list[Case]:
    whole = folder(b"d") + file(b"d/a") + file(b"d/b") + symlink(b"l", b"d")
    there = ("d d", "f d/a 1", "f d/b 1", "l l -> d")
    return [
        refused("whiteout-of-nothing", file(b".wh.", b""), "whiteout that names nothing", cp="taken"),
        refused("whiteout-of-itself", file(b"d/.wh..", b""), "whiteout that names nothing", cp="taken"),
        refused("whiteout-of-parent", file(b"d/.wh...", b""), "whiteout that names nothing", cp="taken"),
        refused("whiteout-climbs", file(b"../.wh.x", b""), "climbs"),
        stacked("whiteout", (whole, file(b"d/.wh.a", b"")), "d d", "f d/b 1", "l l -> d"),
        stacked("whiteout-with-content", (whole, file(b"d/.wh.a", b"x" * 2000)), "d d", "f d/b 1", "l l -> d"),
        stacked("whiteout-of-a-folder", (whole, file(b".wh.d", b"")), "l l -> d"),
        stacked("whiteout-missing", (whole, file(b"q/.wh.z", b"")), *there),
        stacked("whiteout-through-link", (whole, file(b"l/.wh.a", b"")), "d d", "f d/b 1", "l l -> d"),
        stacked("whiteout-below-a-file", (whole, file(b"d/a/.wh.x", b"")), *there),
        stacked("whiteout-through-loop-is-refused-later", (whole, folder(b"d")), *there),
        stacked("whiteout-as-folder", (whole, folder(b"d/.wh.a")), "d d", "f d/b 1", "l l -> d"),
        stacked("whiteout-as-link", (whole, symlink(b"d/.wh.a", b"/")), "d d", "f d/b 1", "l l -> d"),
        stacked("whiteout-as-device", (whole, header(b"d/.wh.a", b"3")), "d d", "f d/b 1", "l l -> d"),
        stacked("whiteout-and-new", (whole, file(b"d/a", b"22") + file(b"d/.wh.a", b"")), "d d", "f d/a 2", "f d/b 1", "l l -> d"),
        stacked("opaque", (whole, file(b"d/.wh..wh..opq", b"")), "d d", "l l -> d"),
        stacked("opaque-root", (whole, file(b".wh..wh..opq", b"") + file(b"n")), "f n 1"),
        stacked("opaque-missing", (whole, file(b"q/.wh..wh..opq", b"")), *there),
        stacked("opaque-through-link", (whole, file(b"l/.wh..wh..opq", b"")), "d d", "l l -> d"),
        stacked("opaque-in-a-file", (whole, file(b"d/a/.wh..wh..opq", b"")), *there),
        stacked("aufs-marks", (whole, file(b".wh..wh.plnk", b"") + file(b".wh..wh.aufs", b"")), *there),
        stacked("whiteout-in-the-lowest", (file(b".wh.a", b"") + file(b"a"),), "f a 1"),
        stacked("whiteout-as-parent", (whole, file(b".wh.d/x")), *sorted(("d .wh.d", "f .wh.d/x 1", *there))),
        taken("overlay-whiteout", header(b"a", b"3"), "c a 0:0", cp="refused"),
        taken("overlay-marks", pax({b"SCHILY.xattr.trusted.overlay.opaque": b"y",
                                    b"SCHILY.xattr.trusted.overlay.redirect": b"/etc",
                                    b"SCHILY.xattr.user.overlay.opaque": b"y"}) + folder(b"d"), "d d"),
    ]  # fmt: skip


def kinds(_canary: bytes) -> list[Case]:
    found = [
        refused(f"kind-{kind.decode('latin-1')}", header(b"x", kind), "unknown type") for kind in (b"M", b"N", b"A", b"Z", b"s", b"8", b"\xff")
    ]  # fmt: skip
    return [
        *found,
        taken("kind-nul", file(b"a", kind=b"\0"), "f a 1"),
        taken("kind-7", file(b"a", kind=b"7"), "f a 1"),
        taken("kind-dump-folder", file(b"d/", b"Ya\0Yb\0\0", kind=b"D") + file(b"d/a"), "d d", "f d/a 1", cp="refused"),
        taken("volume-header", file(b"label", b"", kind=b"V") + file(b"a"), "f a 1", cp="refused"),
        taken("char-device", header(b"a", b"3", major=1, minor=1), "c a 1:1"),
        taken("block-device", header(b"a", b"4", major=8, minor=0), "b a 8:0"),
        taken("device-large", header(b"a", b"3", major=0o7777, minor=0o3777777), "c a 4095:1048575"),
        refused("device-major-too-large", header(b"a", b"3", major=base256(1 << 40, 8)), "out of range"),
        refused("device-minor-too-large", header(b"a", b"4", minor=base256(1 << 20, 8)), "out of range"),
        refused("device-negative", header(b"a", b"3", major=base256(-1, 8)), "negative device"),
        taken("device-with-size", header(b"a", b"3", major=1, minor=3, size=100), "c a 1:3"),
        taken("fifo", header(b"a", b"6"), "p a"),
        taken("setuid", file(b"a", mode=0o4755), "f a 1 4755"),
        taken("setgid-folder", folder(b"d", mode=0o2755), "d d 2755"),
        taken("all-mode-bits", file(b"a", mode=0o7777), "f a 1 7777"),
        taken("mode-overflow", file(b"a", mode=0o7777644), "f a 1 7644"),
        taken("mode-with-kind-bits", file(b"a", mode=0o140644), "f a 1"),
        taken("mode-base256", file(b"a", mode=base256(0o644, 8)), "f a 1"),
        refused("mode-letters", file(b"a", mode=b"rwxr-x"), "bad mode"),
        refused("mode-negative", file(b"a", mode=base256(-1, 8)), "negative mode"),
        taken("folder-with-size", header(b"d", b"5", size=0) + file(b"d/a"), "d d", "f d/a 1"),
        taken("link-with-data-field", symlink(b"l", b"x", size=512), "l l -> x"),
    ]  # fmt: skip


def cases(canary: str) -> list[Case]:
    """All of them, names unique."""
    from tests.support.corpus_fields import fields

    groups = (names, links, twins, whiteouts, kinds, fields)
    found = [case for group in groups for case in group(canary.encode())]
    assert len({case.name for case in found}) == len(found)
    return found
