"""The tar reader: the same as Python's on honest archives, a plain refusal on hostile ones, never anything else."""

from __future__ import annotations

import io
import os
import random
import struct
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import layers as support

from knarr.images.limits import Limits
from knarr.images.tarstream import TarReader
from knarr.model.errors import Invalid

NAMES = st.text(
    alphabet=st.characters(min_codepoint=1, max_codepoint=0x2FFF, exclude_categories=("Cs",)),
    min_size=1,
    max_size=120,
).map(lambda text: text.replace("/", "_").strip() or "n")


def read(data: bytes, piece: int = 4_099, limits: Limits = Limits()):
    reader = TarReader((data[at : at + piece] for at in range(0, len(data), piece)), limits)
    found = []
    while (member := reader.next()) is not None:
        content = b"".join(reader.whole() if len(found) % 2 else reader.data()) if member.stored else b""
        found.append((member, content))
    return found


def _python(data: bytes):
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as archive:
        return [(info, archive.extractfile(info).read() if info.isreg() else b"") for info in archive]


ENTRY = st.builds(
    lambda names, data, mode, uid, mtime, link: (names, data, mode, uid, mtime, link),
    st.lists(NAMES, min_size=1, max_size=4),
    st.binary(max_size=2000),
    st.integers(0, 0o7777),
    st.integers(0, 2_000_000),
    st.integers(0, 2**33),
    st.none() | NAMES,
)


@settings(max_examples=60, deadline=None)
@given(
    entries=st.lists(ENTRY, max_size=6),
    form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    piece=st.integers(1, 3000),
)
def test_reads_what_python_reads(entries, form, piece):
    members = []
    for names, data, mode, uid, mtime, link in entries:
        kind, data = (tarfile.SYMTYPE, b"") if link else (tarfile.REGTYPE, data)
        fields = {"mode": mode, "uid": uid, "gid": uid, "mtime": mtime, "linkname": link or ""}
        members.append(support.member("/".join(names), data, kind, **fields))
    data = support.tar(*members, form=form)
    ours, theirs = read(data, piece), _python(data)
    assert len(ours) == len(theirs)
    for (member, content), (info, wanted) in zip(ours, theirs, strict=True):
        assert member.name == os.fsencode(info.name)
        assert member.link == os.fsencode(info.linkname)
        assert content == wanted
        assert (member.mode, member.uid, member.gid) == (info.mode, info.uid, info.gid)
        assert member.mtime == info.mtime * 1_000_000_000


def _header(
    name=b"f",
    size=b"0",
    kind=b"0",
    mtime=b"0",
    link=b"",
    magic=b"ustar\x0000",
    mode=b"644",
    uid=b"0",
    extra=b"",
):
    parts = [
        (name, 100),
        (mode, 8),
        (uid, 8),
        (b"0", 8),
        (size, 12),
        (mtime, 12),
        (b" " * 8, 8),
        (kind, 1),
        (link, 100),
    ]
    block = b"".join(value.ljust(width, b"\0")[:width] for value, width in parts) + magic + extra
    block = bytearray(block.ljust(512, b"\0"))
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _pax(records: dict[bytes, bytes], kind=b"x", raw: bytes | None = None):
    body = b""
    for key, value in records.items():
        rest = b" " + key + b"=" + value + b"\n"
        size = len(rest) + 1
        while len(b"%d" % size) + len(rest) != size:
            size += 1
        body += b"%d" % size + rest
    body = body if raw is None else raw
    return _header(b"pax", b"%o" % len(body), kind) + body + bytes(-len(body) % 512)


END = bytes(1024)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"x" * 512, "checksum"),
        (b"x" * 100, "cut short inside a header"),
        (_header(size=b"1000") + b"x" * 100, "cut short inside a file"),
        (_header(size=b"-1") + END, "bad size"),
        (_header(size=b"9") + END, "bad size"),
        (_header(size=b"\xff" * 12) + END, "negative size"),
        (_header(size=b"\x80" + b"\xff" * 11) + END, "of [0-9]+ bytes"),
        (_header(kind=b"M") + END, "unknown type"),
        (_header(kind=b"\xff") + END, "unknown type"),
        (bytes(512) + _header(), "goes on after its end"),
        (_pax({b"path": b"x"}), "ends after an extended header"),
        (_pax({}, raw=b"12 a=b\n") + _header() + END, "broken pax record"),
        (_pax({}, raw=b"3 \n") + _header() + END, "broken pax"),
        (_pax({}, raw=b"99999999999999999999 a=b\n") + _header() + END, "pax"),
        (_pax({}, raw=b"-5 a=b\n") + _header() + END, "bad pax record"),
        (_pax({}, raw=b"abcdefghijklmnopqrstuvwxyz") + _header() + END, "broken pax header"),
        (_pax({b"size": b"-1"}) + _header() + END, "bad size"),
        (_pax({b"size": b"99999999999999"}) + _header() + END, "of [0-9]+ bytes"),
        (_pax({b"size": b"5000"}) + _header() + b"x" * 512, "cut short inside a file"),
        (_pax({b"mtime": b"nan"}) + _header() + END, "bad time"),
        (_pax({b"mtime": b"99999999999999999"}) + _header() + END, "time out of range"),
        (_pax({b"uid": b"4294967295"}) + _header() + END, "beyond 32 bits"),
        (_pax({b"uid": "\u0663".encode()}) + _header() + END, "bad uid"),
        (_pax({b"path": b"a\0b"}) + _header() + END, "zero byte"),
        (_header(b"L", b"10", b"L") + b"a\0../../b".ljust(512, b"\0") + _header() + END, "zero byte"),
        (_header(b"K", b"10", b"K") + b"a\0b".ljust(512, b"\0") + _header() + END, "zero byte"),
        (_pax({b"SCHILY.xattr.user.x": b"v" * 65_536}) + _header() + END, "too large extended"),
        (_pax({b"path": b"x"}, b"g") + _header() + END, "for all files"),
        (_pax({b"SCHILY.xattr.user.x": b"v" * 70_000}) + _header() + END, "too large extended"),
        (_pax({b"SCHILY.xattr.%d" % n: b"" for n in range(200)}) + _header() + END, "too many"),
        (_header(b"L", b"%o" % (2 << 20), b"L") + END, "extended header of"),
        (_header(b"L", b"77777777", b"x") + END, "extended header of"),
        (
            _pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0"})
            + _header(size=b"1000")
            + b"9\n"
            + b"\0" * 510,
            "sparse",
        ),
        (
            _pax({b"GNU.sparse.map": b"0,1,2", b"GNU.sparse.size": b"9"}) + _header() + END,
            "broken sparse map",
        ),
        (
            _pax({b"GNU.sparse.map": b"5,1,0,1", b"GNU.sparse.size": b"9"})
            + _header(size=b"2")
            + b"xx".ljust(512),
            "out of order",
        ),
        (
            _pax({b"GNU.sparse.map": b"0,10", b"GNU.sparse.size": b"9"})
            + _header(size=b"12")
            + b"x".ljust(512),
            "out of order",
        ),
        (
            _pax({b"GNU.sparse.map": b"0,5", b"GNU.sparse.size": b"9"})
            + _header(size=b"1")
            + b"x".ljust(512),
            "does not match",
        ),
        (_pax({b"GNU.sparse.map": b"0,0"}) + _header() + END, "without its size"),
        (_header(kind=b"3", extra=b"".ljust(64) + b"7777777\0" + b"0".ljust(8)) + END, "out of range"),
    ],
)
def test_refuses(data, text):
    with pytest.raises(Invalid, match=text):
        read(data)


def test_what_the_writers_of_old_left_behind():
    found = read(_header(b"old/", kind=b"\0", magic=bytes(8)) + END)
    assert found[0][0].kind == b"5"[0]
    found = read(_header(b"name", magic=b"ustar\x0000", extra=bytes(80) + b"pre/fix") + END)
    assert found[0][0].name == b"pre/fix/name"
    assert read(_header(uid=b"\x80" + struct.pack(">I", 0) + b"\x01\0\0") + END)[0][0].uid == 65536
    assert read(_header(b"dump", b"4", b"D") + b"x".ljust(512) + _header(b"next") + END)[1][0].name == b"next"
    assert read(_header(b"link", b"17", b"1", link=b"t") + _header(b"next") + END)[1][0].name == b"next"
    assert read(_header(mtime=b"\xff" * 12) + END)[0][0].mtime == -1_000_000_000
    assert read(_header()) == read(_header() + bytes(512)) == read(_header() + END + b"trailing")
    assert read(b"") == []


def test_global_headers_and_fractions():
    data = (
        _pax({b"uid": b"7", b"comment": b"x"}, b"g")
        + _pax({b"mtime": b"-1.25"})
        + _header()
        + _header(b"b")
        + END
    )
    (first, _), (second, _) = read(data)
    assert (first.uid, first.mtime, second.uid, second.mtime) == (7, -1_250_000_000, 7, 0)
    assert read(_pax({b"mtime": b"1.1234567899"}) + _header() + END)[0][0].mtime == 1_123_456_789


def test_damage_is_refused_or_harmless():
    chance = random.Random(7)
    honest = (
        _pax({b"path": b"p" * 300, b"SCHILY.xattr.user.a": b"\0\n="}) + _header(size=b"5") + b"hello".ljust(512)
        + _pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"70000",
                b"GNU.sparse.name": b"s"}) + _header(size=b"1004") + b"1\n60000\n4\n".ljust(512, b"\0") + b"data".ljust(512)
        + _header(b"L", b"10", b"L") + b"longname".ljust(512, b"\0") + _header() + END
    )  # fmt: skip
    assert [member.size for member, _ in read(honest)] == [5, 70000, 0]
    for _ in range(3000):
        data = bytearray(honest)
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(len(data))] = chance.choice([0, 0xFF, 0x30, 0x39, chance.randrange(256)])
        at = chance.randrange(0, len(data), 512)
        if chance.random() < 0.7:
            data[at + 148 : at + 156] = b"%06o\0 " % (
                sum(data[at : at + 512]) - sum(data[at + 148 : at + 156]) + 256
            )
        try:
            read(bytes(data), chance.choice([100, 512, 5000]))
        except Invalid:
            pass


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=2000))
def test_noise(data):
    try:
        read(data)
    except Invalid:
        pass


def test_a_long_sparse_map_is_linear():
    count = 90_000
    text = b"%d\n" % count + b"".join(b"%d\n1\n" % (n * 2) for n in range(count))
    text += bytes(-len(text) % 512)
    stored = len(text) + count
    head = _pax(
        {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"%d" % (2 * count)}
    )
    data = head + _header(size=b"%o" % stored) + text + b"x" * count + bytes(-stored % 512) + END
    assert len(read(data, 1 << 20)[0][0].sparse) == count
    with pytest.raises(Invalid, match="too long"):
        read(data, limits=Limits(sparse_segments=1000))
