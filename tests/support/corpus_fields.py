"""More of `corpus`: numbers, extended headers, attributes, sparse files, and archives that end where they should not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.tarforge import END, base256, extension, file, folder, header, pax, sparse, summed, symlink

if TYPE_CHECKING:
    from tests.support.corpus import Case

PB = 1 << 50
TB = 1 << 40


def fields(_canary: bytes) -> list[Case]:
    return [
        *_owners(),
        *_times(),
        *_sizes(),
        *_sparse(),
        *_old_sparse(),
        *_pax(),
        *_attributes(),
        *_ends(),
        *_deep(),
    ]


def _owners() -> list[Case]:
    from tests.support.corpus import refused, taken

    bad = {
        "-1": "bad uid",
        "0x0": "bad uid",
        "+1": "bad uid",
        "1e3": "bad uid",
        "\u0663": "bad uid",
        "4294967295": "beyond 32",
    }
    found = [
        refused(f"uid-pax-{at}", pax({b"uid": text.encode()}) + file(b"a"), why)
        for at, (text, why) in enumerate(bad.items())
    ]
    return [
        *found,
        taken("uid-octal", file(b"a", uid=0o7777777, gid=1), "f a 1 2097151:1"),
        taken("uid-largest", file(b"a", uid=base256(0xFFFFFFFE, 8)), "f a 1 4294967294:0"),
        refused("uid-minus-one", file(b"a", uid=base256(0xFFFFFFFF, 8)), "beyond 32 bits"),
        refused("uid-negative", file(b"a", uid=base256(-1, 8)), "negative uid"),
        refused("gid-huge", file(b"a", gid=base256(1 << 50, 8)), "beyond 32 bits"),
        refused("uid-letters", file(b"a", uid=b"root"), "bad uid"),
        taken("uid-pax", pax({b"uid": b"3000000000", b"gid": b"5"}) + file(b"a"), "f a 1 3000000000:5"),
        taken("uid-spaces", file(b"a", uid=b"   12 \0"), "f a 1 10:0"),
        taken("owner-names", pax({b"uname": b"root\n", b"gname": b"../x"}) + file(b"a", uid=7, gid=7), "f a 1 7:7"),
    ]  # fmt: skip


def _times() -> list[Case]:
    from tests.support.corpus import refused, taken

    bad = {
        b"nan": "bad time",
        b"inf": "bad time",
        b"1e9": "bad time",
        b"99999999999999999": "out of range",
        b"-99999999999999999": "out of range",
        b"1.x": "bad time",
    }
    found = [
        refused(f"time-pax-{at}", pax({b"mtime": text}) + file(b"a"), why)
        for at, (text, why) in enumerate(bad.items())
    ]
    return [
        *found,
        taken("time-zero", file(b"a", mtime=0), "f a 1"),
        taken("time-octal-largest", file(b"a", mtime=0o77777777777), "f a 1"),
        taken("time-before-1970", pax({b"mtime": b"-1.5"}) + file(b"a"), "f a 1"),
        taken("time-many-digits", pax({b"mtime": b"1." + b"9" * 300}) + file(b"a"), "f a 1"),
        taken("time-base256-negative", file(b"a", mtime=base256(-86400)), "f a 1"),
        refused("time-base256-huge", file(b"a", mtime=base256(1 << 80)), "out of range"),
        taken("time-2262", pax({b"mtime": b"9223372035"}) + file(b"a"), "f a 1"),
        taken("time-others-ignored", pax({b"atime": b"x", b"ctime": b"nan"}) + file(b"a"), "f a 1"),
    ]  # fmt: skip


def _sizes() -> list[Case]:
    from tests.support.corpus import refused, taken

    return [
        refused("size-negative", file(b"a", size=base256(-512)), "negative size"),
        refused("size-minus", file(b"a", size=b"-1"), "bad size"),
        refused("size-not-octal", file(b"a", size=b"9"), "bad size"),
        refused("size-huge", file(b"a", size=base256(1 << 87)), "file of"),
        refused("size-8pb", file(b"a", size=base256(8 * PB)), "file of"),
        refused("size-beyond-the-end", file(b"a", size=0o77777), "cut short"),
        refused("size-pax-beyond-the-end", pax({b"size": b"100000"}) + file(b"a"), "cut short"),
        refused("size-pax-negative", pax({b"size": b"-1"}) + file(b"a"), "bad size"),
        refused("size-pax-huge", pax({b"size": b"9" * 19}) + file(b"a"), "file of"),
        refused("size-pax-endless", pax({b"size": b"9" * 5000}) + file(b"a"), "bad size"),
        refused("size-pax-zero-lie", pax({b"size": b"0"}) + file(b"a", b"x" * 512), "checksum"),
        taken("size-pax-right", pax({b"size": b"3"}) + file(b"a", b"abc", size=0), "f a 3"),
        taken("size-base256", file(b"a", b"abc", size=base256(3)), "f a 3"),
        refused("size-of-a-link-lies", symlink(b"l", b"x", size=512) + b"y" * 512, "checksum"),
        refused("size-of-a-folder-lies", header(b"d", b"5", size=512) + b"y" * 512, "checksum"),
        refused("size-of-a-long-name", extension(b"x", b"L", size=4 << 20) + file(b"a"), "extended header of"),
        refused("size-of-pax", header(b"p", b"x", size=base256(PB)) + file(b"a"), "extended header of"),
        refused("size-of-a-global-header", header(b"p", b"g", size=base256(-5)) + file(b"a"), "negative size"),
        taken("size-empty", file(b"a", b""), "f a 0"),
    ]  # fmt: skip


def _sparse_pax(real: int, pairs: list[int], **more: bytes) -> dict[bytes, bytes]:
    records = {b"GNU.sparse.map": b",".join(b"%d" % each for each in pairs), b"GNU.sparse.size": b"%d" % real}
    return records | {b"GNU.sparse." + key.encode(): value for key, value in more.items()}


def _sparse() -> list[Case]:
    from tests.support.corpus import refused, taken

    def one(records: dict[bytes, bytes], data: bytes = b"x") -> bytes:
        return pax(records) + file(b"a", data)

    def mapped(text: bytes, real: int, data: bytes = b"x") -> bytes:
        """The form 1.0, whose map stands before the data."""
        head = text + bytes(-len(text) % 512)
        records = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": b"a",
                   b"GNU.sparse.realsize": b"%d" % real}  # fmt: skip
        return pax(records) + file(b"x", head + data)

    spread = b"65536\n" + b"".join(b"%d\n1\n" % (at << 28) for at in range(65_536))
    repeated = pax(b"22 GNU.sparse.size=9\n25 GNU.sparse.offset=0\n25 GNU.sparse.offset=0\n") + file(b"a")
    return [
        taken("sparse-pax", one(_sparse_pax(TB, [0, 1])), f"f a {TB}", cp="refused"),
        taken("sparse-all-hole", one(_sparse_pax(TB, []), b""), f"f a {TB}", cp="refused"),
        taken("sparse-1.0", mapped(b"1\n5\n1\n", 9), "f a 9", cp="refused"),
        refused("sparse-pb", one(_sparse_pax(PB, [0, 1])), "file of"),
        refused("sparse-eb", one(_sparse_pax(1 << 62, [0, 1])), "file of"),
        refused("sparse-wide", mapped(spread, 1 << 44, b"x" * 65_536), "spread over"),
        refused("sparse-overlap", one(_sparse_pax(9, [0, 2, 1, 2]), b"xxxx"), "out of order"),
        refused("sparse-backwards", one(_sparse_pax(9, [5, 1, 0, 1]), b"xx"), "out of order"),
        refused("sparse-beyond", one(_sparse_pax(9, [9, 1])), "out of order"),
        refused("sparse-odd", one(_sparse_pax(9, [0])), "broken sparse map"),
        refused("sparse-too-little-data", one(_sparse_pax(99, [0, 50])), "does not match"),
        refused("sparse-too-much-data", one(_sparse_pax(99, [0, 1]), b"x" * 50), "does not match"),
        refused("sparse-without-size", one({b"GNU.sparse.map": b"0,1"}), "without its size"),
        refused("sparse-negative", one({b"GNU.sparse.map": b"-1,1", b"GNU.sparse.size": b"9"}), "bad sparse map"),
        refused("sparse-pairs-mixed", repeated, "broken"),
        refused("sparse-version-9", one(_sparse_pax(9, [0, 1], major=b"1", minor=b"9")), "unknown version"),
        refused("sparse-1.0-count-lies", mapped(b"999999\n5\n1\n", 9), "sparse map"),
        refused("sparse-1.0-no-map", mapped(b"x" * 512, 9), "sparse map"),
        refused("sparse-1.0-endless", mapped(b"1" * 5000, 9), "sparse map"),
    ]  # fmt: skip


def _old_sparse() -> list[Case]:
    from tests.support.corpus import refused, taken

    more = bytearray(sparse(b"a", [(0, 1)], 9, b"x")[:512])
    more[482] = 1
    return [
        taken("sparse-gnu", sparse(b"a", [(0, 1), (TB - 1, 1)], TB, b"xy"), f"f a {TB}", cp="refused"),
        taken("sparse-gnu-empty", sparse(b"a", [], 0, b""), "f a 0", cp="refused"),
        refused("sparse-gnu-pb", sparse(b"a", [(0, 1)], PB, b"x"), "file of"),
        refused("sparse-gnu-negative", sparse(b"a", [(-5, 1)], 9, b"x"), "negative offset"),
        refused("sparse-gnu-map-cut", summed(more), "cut short", end=b""),
        refused("sparse-gnu-overlap", sparse(b"a", [(0, 5), (2, 5)], 9, b"x" * 10), "out of order"),
    ]  # fmt: skip


def _pax() -> list[Case]:
    from tests.support.corpus import refused, taken

    broken = {
        "length-too-long": b"99 path=x\n", "length-too-short": b"5 path=x\n", "length-zero": b"0 path=x\n",
        "length-negative": b"-9 path=x\n", "length-octal": b"0o9 path=x\n", "length-huge": b"9" * 19 + b" path=x\n",
        "length-missing": b"path=x\n", "no-newline": b"10 path=xx", "no-equals": b"9 path-x\n", "no-key": b"7 =abc\n",
        "no-space": b"x" * 40, "nul-inside": b"\0\0\0 path=x\n",
    }  # fmt: skip
    found = [refused(f"pax-{name}", pax(body) + file(b"a"), "pax") for name, body in broken.items()]
    return [
        *found,
        taken("pax-empty", pax(b"") + file(b"a"), "f a 1"),
        taken("pax-padding", pax(b"9 path=b\n" + bytes(20)) + file(b"a"), "f b 1", cp="refused"),
        taken("pax-key-twice", pax(b"10 path=b1\n"[:0] + b"9 path=b\n9 path=c\n") + file(b"a"), "f c 1"),
        taken("pax-unknown-keys", pax({b"KNARR.run": b"rm -rf /", b"comment": b"\xff"}) + file(b"a"), "f a 1"),
        taken("pax-charset-binary", pax({b"hdrcharset": b"BINARY", b"path": b"\xff"}) + file(b"a"), "f \\xff 1"),
        taken("pax-a-thousand", pax({b"comment": b"x"}) * 1000 + file(b"a"), "f a 1"),
        taken("pax-overrides-long-name", extension(b"l\0", b"L") + pax({b"path": b"p"}) + file(b"a"), "f p 1"),
        taken("pax-global-comment", pax({b"comment": b"x"}, b"g") + file(b"a"), "f a 1"),
        taken("pax-global-owner", pax({b"uid": b"7"}, b"g") + file(b"a"), "f a 1 7:0", cp="taken"),
        refused("pax-global-path", pax({b"path": b"/etc/passwd"}, b"g") + file(b"a"), "for all files", cp="taken"),
        refused("pax-global-size", pax({b"size": b"0"}, b"g") + file(b"a"), "for all files", cp="taken"),
        refused("pax-at-the-end", pax({b"path": b"x"}), "ends after an extended header", cp="taken"),
        refused("long-name-at-the-end", extension(b"x\0", b"L"), "ends after an extended header", cp="taken"),
        refused("pax-cut", pax({b"path": b"x" * 600})[:700], "cut short", end=b""),
        refused("long-name-empty-then-dotdot", extension(b"\0", b"L") + file(b"../x"), "root is not a folder"),
    ]  # fmt: skip


def _attributes() -> list[Case]:
    from tests.support.corpus import refused, taken

    def xattr(name: bytes, value: bytes = b"v") -> bytes:
        return pax({b"SCHILY.xattr." + name: value}) + file(b"a")

    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    many = pax({b"SCHILY.xattr.user.%d" % at: b"v" for at in range(129)}) + file(b"a")
    return [
        taken("xattr-user", xattr(b"user.x"), "f a 1 user.x=v"),
        taken("xattr-capability", xattr(b"security.capability", capability), "f a 1 security.capability=20"),
        taken("xattr-selinux", xattr(b"security.selinux", b"system_u:object_r:shadow_t:s0\0"), "f a 1"),
        taken("xattr-ima", xattr(b"security.ima"), "f a 1"),
        taken("xattr-unknown-space", xattr(b"nonsense.x"), "f a 1"),
        taken("xattr-no-space", xattr(b"x"), "f a 1"),
        taken("xattr-overlay", xattr(b"trusted.overlay.metacopy"), "f a 1"),
        taken("xattr-large", xattr(b"user.x", b"v" * 4000), "f a 1 user.x=4000"),
        taken("xattr-65535", xattr(b"user.x", b"v" * 65_535), "f a 1 user.x=65535", cp="refused"),
        refused("xattr-65536", xattr(b"user.x", b"v" * 65_536), "too large extended"),
        refused("xattr-many", many, "too many", cp="taken"),
        refused("xattr-no-name", xattr(b""), "bad attribute name", cp="taken"),
        refused("xattr-name-nul", xattr(b"user.a\0b"), "bad attribute name"),
        refused("xattr-name-300", xattr(b"user." + b"n" * 300), "bad attribute name"),
        taken("xattr-of-a-link", pax({b"SCHILY.xattr.user.x": b"v"}) + symlink(b"l", b"x"), "l l -> x"),
        taken("xattr-of-a-folder", pax({b"SCHILY.xattr.user.x": b"v"}) + folder(b"d"), "d d user.x=v"),
        taken("xattr-libarchive", pax({b"LIBARCHIVE.xattr.user.x": b"dg=="}) + file(b"a"), "f a 1"),
    ]  # fmt: skip


def _ends() -> list[Case]:
    from tests.support.corpus import refused, taken

    whole = file(b"a", b"x" * 700)
    return [
        taken("end-missing", file(b"a"), "f a 1", end=b""),
        taken("end-one-block", file(b"a"), "f a 1", end=bytes(512)),
        taken("end-and-garbage", file(b"a"), "f a 1", end=END + b"garbage" * 5000),
        taken("end-and-another-archive", file(b"a"), "f a 1", end=END + file(b"b") + END),
        refused("end-goes-on", file(b"a") + bytes(512) + file(b"../x"), "goes on after its end", cp="taken"),
        refused("cut-in-a-header", file(b"a") + header(b"b")[:300], "cut short inside a header", end=b""),
        refused("cut-in-a-file", whole[:900], "cut short inside a file", end=b""),
        refused("cut-in-padding", whole[:1300], "cut short inside a file", end=b""),
        refused("checksum-wrong", header(b"a", checksum=b"000000\0 "), "checksum"),
        refused("checksum-letters", header(b"a", checksum=b"letters!"), "checksum"),
        refused("checksum-empty", header(b"a", checksum=bytes(8)), "checksum"),
        refused("not-a-tar", b"<!DOCTYPE html>".ljust(1024), "", end=b""),
        refused("text", b"x" * 512, "", end=b""),
        taken("old-v7", header(b"a", b"\0", magic=bytes(8)), "f a 0"),
        taken("gnu-magic-ignores-prefix", file(b"a", magic=b"ustar  \0", prefix=b"../.."), "f a 1"),
    ]  # fmt: skip


def _deep() -> list[Case]:
    """Paths are limited, so ten thousand folders one in another need links on the way."""
    from tests.support.corpus import refused, taken

    body, above = b"", b""
    for part in range(5):
        body += extension(above + b"d/" * 1990 + b"f\0", b"L") + file(b"x")
        link = b"l%d" % part
        body += symlink(link, (above + b"d/" * 1990))
        above = link + b"/"
    hops = b"".join(symlink(b"h%d" % at, b"h%d/h%d" % (at + 1, at + 1)) for at in range(12))
    return [
        taken("deep-10000", body, f"{5 * 1991 + 5} entries", cp="refused"),
        refused("links-that-double", hops + symlink(b"h12", b".") + file(b"h0/x"), "too many symlinks"),
    ]  # fmt: skip
