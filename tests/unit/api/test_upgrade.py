from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.api.upgrade import CONTROL, MAX_PAYLOAD, STDERR, STDIN, STDOUT, Decoder, encode
from knarr.model.errors import Invalid


@given(st.lists(st.tuples(st.sampled_from([STDIN, CONTROL]), st.binary(max_size=300))), st.data())
def test_frames_survive_any_split(frames, data):
    wire = b"".join(encode(kind, payload) for kind, payload in frames)
    decoder = Decoder()
    got = []
    while wire:
        cut = data.draw(st.integers(1, len(wire)))
        got += decoder.feed(wire[:cut])
        wire = wire[cut:]
    assert got == frames


@pytest.mark.parametrize(
    "wire",
    [
        encode(STDOUT, b"x"),
        encode(STDERR, b""),
        b"\x09\0\0\0\0\0\0\0",
        b"\0\1\0\0\0\0\0\0",
        b"\0\0\0\0" + (MAX_PAYLOAD + 1).to_bytes(4, "big"),
    ],
)
def test_what_a_client_may_not_send(wire):
    with pytest.raises(Invalid):
        Decoder().feed(wire)


@given(st.binary(max_size=400))
def test_garbage_is_refused_or_held(wire):
    try:
        for kind, payload in Decoder().feed(wire):
            assert kind in (STDIN, CONTROL)
            assert len(payload) <= MAX_PAYLOAD
    except Invalid:
        pass
