"""The agent's protocol: what one side packs the other reads, and a hostile guest gets an error, never a crash."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.machines import wire
from knarr.machines.wire import Decoder, FromGuest, ToGuest
from knarr.model.errors import Failed

NONCE = bytes(range(16))
START = b"KNSYNC\r\n" + NONCE


def guest_frame(kind: int, session: int, payload: bytes, flags: int = 0) -> bytes:
    return wire.HEADER.pack(len(payload), kind, flags, session) + payload


def test_frames_are_at_most_4096_bytes_and_tell_that_more_follows():
    frames = wire.frames(ToGuest.START, 0, b"x" * 10_000)
    assert [len(frame) for frame in frames] == [4096, 4096, 10_000 - 2 * wire.PAYLOAD_MAX + 8]
    assert [frame[3] for frame in frames] == [1, 1, 0]


def test_an_empty_message_is_one_frame():
    assert wire.frames(ToGuest.OFF) == [b"\0\0\x0b\0\0\0\0\0"]


def test_stdin_frames_leave_room_for_their_length():
    frames = wire.stdin_frames(b"y" * 5000)
    assert [len(frame) for frame in frames] == [4096, 908]
    assert wire.stdin_frames(b"") == []


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=20),
            st.binary(max_size=99),
        )
    )
)
def test_records_round_trip(records):
    assert wire.unpack_records(wire.pack_records(tuple(records))) == dict(records)


@given(st.binary(max_size=300))
def test_hostile_records_raise_failed_only(data):
    with contextlib.suppress(Failed):
        wire.unpack_records(data)


def test_everything_before_the_marker_is_skipped():
    decoder = Decoder(NONCE)
    stale = guest_frame(FromGuest.DATA, 7, b"of the daemon before", 1 << 4)
    assert decoder.feed(stale[:10]) == []
    assert decoder.feed(stale[10:] + START[:9]) == []
    events = decoder.feed(START[9:] + guest_frame(FromGuest.HELLO, 0, b"\1\1"))
    assert [(event.kind, event.payload) for event in events] == [(FromGuest.HELLO, b"\1\1")]


@given(st.lists(st.integers(1, 30), max_size=60))
def test_any_cut_gives_the_same_events(cuts):
    stream = START + guest_frame(FromGuest.HELLO, 0, b"\1\0")
    stream += guest_frame(FromGuest.RESULT, 3, b"ab", 1) + guest_frame(FromGuest.DATA, 4, b"out", 1 << 4)
    stream += guest_frame(FromGuest.RESULT, 3, b"cd")
    decoder, events = Decoder(NONCE), []
    for cut in cuts:
        events += decoder.feed(stream[:cut])
        stream = stream[cut:]
    events += decoder.feed(stream)
    assert [(event.kind, event.session, event.stream, event.payload) for event in events] == [
        (FromGuest.HELLO, 0, 0, b"\1\0"),
        (FromGuest.DATA, 4, 1, b"out"),
        (FromGuest.RESULT, 3, 0, b"abcd"),
    ]


@given(st.binary(max_size=2000))
def test_a_hostile_guest_raises_failed_only(data):
    decoder = Decoder(NONCE)
    decoder.feed(START)
    with contextlib.suppress(Failed):
        for event in decoder.feed(data):
            assert len(event.payload) <= wire.PAYLOAD_MAX * 3


def test_an_endless_message_is_cut():
    decoder = Decoder(NONCE)
    decoder.feed(START)
    endless = guest_frame(FromGuest.RESULT, 1, b"z" * wire.PAYLOAD_MAX, 1) * 1000
    with pytest.raises(Failed, match="length"):
        decoder.feed(endless)


def test_a_frame_longer_than_allowed_is_refused():
    decoder = Decoder(NONCE)
    decoder.feed(START)
    with pytest.raises(Failed):
        decoder.feed(wire.HEADER.pack(5000, FromGuest.DATA, 0, 1))


def test_before_the_marker_memory_stays_bounded():
    decoder = Decoder(NONCE)
    for _ in range(100):
        decoder.feed(b"KNSYNC" * 10_000)
    assert len(decoder._buffer) <= len(START)


@pytest.mark.parametrize("text", [b"+1", b"0x1", b"1" * 20, b"one", b"--1"])
def test_numbers_of_a_guest_are_plain_decimals(text):
    with pytest.raises(Failed):
        wire.number({"code": text}, "code")


def test_text_of_a_guest_can_not_drive_a_terminal():
    assert wire.text({"text": b"a\x1b[2Jb\n\xff"}, "text") == "a?[2Jb?\ufffd"
