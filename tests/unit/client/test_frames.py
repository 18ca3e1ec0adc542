"""Frames survive any cut; what is no frame is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.client import frames


@given(
    st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=50)), max_size=8),
    st.lists(st.integers(0, 400), max_size=8),
)
def test_frames_come_back_however_they_are_cut(wanted: list[tuple[int, bytes]], cuts: list[int]) -> None:
    data = b"".join(frames.encode(kind, payload) for kind, payload in wanted)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    reader = frames.FrameReader()
    found = [frame for low, high in pairwise(edges) for frame in reader.feed(data[low:high])]
    assert found == wanted
    assert reader.pending == 0


@pytest.mark.parametrize("data", [b"\x04" + bytes(7), b"\x01\x01" + bytes(6), b"\x01\0\0\0\xff\xff\xff\xff"])
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(frames.FrameError):
        list(frames.FrameReader().feed(data))


@pytest.mark.parametrize("payload", [b"", b"[]", b"{", b"[" * 100_000, b"\xff"])
def test_bad_control_messages_are_refused(payload: bytes) -> None:
    with pytest.raises(frames.FrameError):
        frames.decode_control(payload)


def test_control_messages() -> None:
    ((kind, payload),) = frames.FrameReader().feed(frames.encode_control({"resize": [80, 24]}))
    assert kind == frames.CONTROL
    assert frames.decode_control(payload) == {"resize": [80, 24]}
