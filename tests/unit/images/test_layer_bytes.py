"""Decoding layers: every form and cut of input, and the caps."""

from __future__ import annotations

import gzip
import os
import random

import pytest
import zstandard

from knarr.images.decompress import PIECE, decompressed, peek
from knarr.images.limits import Limits
from knarr.model.errors import Invalid, Unsupported

DATA = os.urandom(200_000) + bytes(3_000_000) + b"text " * 50_000


def _cut(data: bytes, size: int):
    return (data[at : at + size] for at in range(0, len(data), size))


def _through(data: bytes, size: int = 30_011, limits: Limits = Limits()) -> bytes:
    pieces = list(decompressed(_cut(data, size), limits))
    assert max(map(len, pieces), default=0) <= max(PIECE, size)
    return b"".join(pieces)


@pytest.mark.parametrize("size", [1_000, 30_011, 10_000_000])
@pytest.mark.parametrize(
    "blob",
    [
        gzip.compress(DATA),
        gzip.compress(DATA[:100]) + gzip.compress(DATA[100:]) + bytes(1024),
        b"".join(gzip.compress(DATA[at : at + 9_999], 1) for at in range(0, len(DATA), 9_999)),
        zstandard.ZstdCompressor().compress(DATA),
        zstandard.ZstdCompressor().compress(DATA[:7]) + zstandard.ZstdCompressor().compress(DATA[7:]),
        b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + zstandard.ZstdCompressor().compress(DATA),
        DATA,
    ],
    ids=["gzip", "two members", "many members", "zstd", "two frames", "skippable", "plain"],
)
def test_forms(blob, size):
    assert _through(blob, size) == DATA


def test_one_byte_at_a_time():
    data = b"tiny" * 10
    for blob in (
        gzip.compress(data) + gzip.compress(b""),
        zstandard.ZstdCompressor().compress(data),
        data,
        b"",
    ):
        assert _through(blob, 1) == (data if blob else b"")


@pytest.mark.parametrize(
    ("blob", "text"),
    [
        (gzip.compress(DATA)[:-1], "cut short"),
        (gzip.compress(DATA)[:5000], "cut short"),
        (gzip.compress(b"x") + b"garbage", "garbage"),
        (gzip.compress(b"x") + b"\0" + gzip.compress(b"x"), "garbage"),
        (gzip.compress(DATA)[:-8] + bytes(8), "broken"),
        (b"\x1f\x8b" + bytes(50), "broken"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 50, "broken"),
    ],
)
def test_broken(blob, text):
    with pytest.raises(Invalid, match=text):
        _through(blob)


def test_random_damage_is_an_error_or_harmless():
    chance = random.Random(1)
    for compress in (gzip.compress, zstandard.ZstdCompressor(write_checksum=True).compress):
        blob = bytearray(compress(DATA[:3000]))
        for _ in range(200):
            damaged = bytearray(blob)
            damaged[chance.randrange(len(blob))] ^= 1 << chance.randrange(8)
            try:
                assert len(_through(bytes(damaged))) < 1 << 20
            except (Invalid, Unsupported):
                pass


@pytest.mark.parametrize("head", [b"BZh91AY", b"\xfd7zXZ\0\0", b"PK\x03\x04aaaa"])
def test_other_compressions_are_named(head):
    with pytest.raises(Unsupported, match="compressed with"):
        _through(head + bytes(100))


def test_bombs():
    limits = Limits(layer_bytes=1 << 30, ratio=100, ratio_floor=8 << 20)
    for blob in (
        gzip.compress(bytes(64 << 20), 1),
        zstandard.ZstdCompressor().compress(bytes(64 << 20)),
        gzip.compress(gzip.compress(b"")) + b"".join(gzip.compress(bytes(1 << 20)) for _ in range(64)),
    ):
        with pytest.raises(Invalid, match="times its size"):
            _through(blob, limits=limits)
    with pytest.raises(Invalid, match="more than 1000 bytes"):
        _through(gzip.compress(bytes(2000)), limits=Limits(layer_bytes=1000))


def test_a_large_zstd_window_is_refused():
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    coder = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    blob = coder.compress(os.urandom(1000)) + coder.flush()
    with pytest.raises(Invalid, match="zstd layer is broken"):
        _through(blob)


def test_peek_loses_nothing():
    assert b"".join(peek(iter([b"a", b"b", b"c"]))[1]) == b"abc"
    assert peek(iter([]))[0] == b""
