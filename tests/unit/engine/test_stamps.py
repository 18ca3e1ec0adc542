from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from knarr.engine.stamps import Stamper, rfc3339

MOMENT = 1_700_000_000_000_000_042
STAMP = b"2023-11-14T22:13:20.000000042Z"


def test_format():
    assert rfc3339(MOMENT) == STAMP


def test_only_line_beginnings_are_stamped():
    stamper = Stamper()
    assert stamper.stamp(MOMENT, 1, b"a\nb") == STAMP + b" a\n" + STAMP + b" b"
    assert stamper.stamp(MOMENT, 2, b"other\n") == STAMP + b" other\n"
    assert stamper.stamp(MOMENT, 1, b"c\r\x0b\n") == b"c\r\x0b\n"
    assert stamper.stamp(MOMENT, 1, b"d\n") == STAMP + b" d\n"
    assert stamper.stamp(MOMENT, 1, b"") == b""


@given(st.lists(st.binary(max_size=30)))
def test_stamps_can_be_taken_out_again(chunks):
    stamper = Stamper()
    out = b"".join(stamper.stamp(MOMENT, 1, chunk) for chunk in chunks)
    data = b"".join(chunks)
    assert out.replace(STAMP + b" ", b"") == data
    lines = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
    assert out.count(STAMP) == lines
