"""The sans-IO HTTP core: whatever way bytes are cut, the same events; bad input is one kind of error."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.client import http

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nT: v\r\n\r\n"


def run(data: bytes, cuts: list[int], method: str = "GET", *, eof: bool = False):
    parser = http.ResponseParser(method)
    head, body, end = None, b"", None
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    pieces = [data[low:high] for low, high in pairwise(edges) if high > low]
    for piece in [*pieces, *([b""] if eof else [])]:
        for event in parser.feed(piece):
            if isinstance(event, http.Head):
                head = event
            elif isinstance(event, http.End):
                end = event
            else:
                body += event
    return parser, head, body, end


@given(st.lists(st.integers(0, 200), max_size=12))
def test_a_body_by_length_survives_any_cut(cuts: list[int]) -> None:
    parser, head, body, end = run(LENGTH, cuts)
    assert head.status == 200
    assert head.headers["x-a"] == "b"
    assert body == b"hello"
    assert end.rest == b""
    assert parser.keep_alive


@given(st.lists(st.integers(0, 200), max_size=12))
def test_a_chunked_body_survives_any_cut(cuts: list[int]) -> None:
    parser, head, body, end = run(CHUNKED, cuts)
    assert head.status == 201
    assert body == b"hello world"
    assert end is not None
    assert parser.keep_alive


@given(st.lists(st.integers(0, 200), max_size=4), st.binary(max_size=30))
def test_after_an_upgrade_nothing_of_the_stream_is_lost(cuts: list[int], rest: bytes) -> None:
    head_bytes = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\r\n"
    parser = http.ResponseParser("POST")
    raw = b""
    edges = [0, *sorted(cut % (len(head_bytes) + 1) for cut in cuts), len(head_bytes)]
    for low, high in pairwise(edges):
        if high > low:
            last = high == len(head_bytes)
            for event in parser.feed(head_bytes[low:high] + (rest if last else b"")):
                if isinstance(event, http.End):
                    raw = event.rest
    assert raw == rest
    assert not parser.keep_alive


@given(st.binary(max_size=300))
def test_garbage_is_a_protocol_error_or_an_answer(data: bytes) -> None:
    try:
        run(data, [], eof=True)
    except http.ProtocolError:
        pass


@given(st.integers(0, len(CHUNKED) - 1), st.integers(0, 255))
def test_a_changed_byte_never_raises_anything_else(position: int, byte: int) -> None:
    data = CHUNKED[:position] + bytes((byte,)) + CHUNKED[position + 1 :]
    try:
        run(data, [7], eof=True)
    except http.ProtocolError:
        pass


def test_without_a_length_the_end_of_the_stream_ends_the_body() -> None:
    parser, _, body, end = run(b"HTTP/1.1 200 OK\r\n\r\nall of it", [], eof=True)
    assert body == b"all of it"
    assert end is not None
    assert not parser.keep_alive


def test_a_cut_body_is_an_error() -> None:
    with pytest.raises(http.ProtocolError, match="middle"):
        run(LENGTH[:-1], [], eof=True)


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_head_has_no_body(method: str) -> None:
    _, _, body, end = run(LENGTH, [], method)
    assert body == (b"" if method == "HEAD" else b"hello")
    assert end is not None


def test_interim_answers_are_passed_over() -> None:
    parser = http.ResponseParser("GET")
    heads = [
        event.status
        for event in parser.feed(b"HTTP/1.1 100 Continue\r\n\r\n" + LENGTH)
        if isinstance(event, http.Head)
    ]
    assert heads == [100, 200]


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/2 200 OK",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 2\xb200 OK",
        b"HTTP/1.1 200 OK\r\nno colon",
        b"HTTP/1.1 200 OK\r\n folded: x",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70000,
    ],
)
def test_malformed_heads_are_refused(head: bytes) -> None:
    with pytest.raises(http.ProtocolError):
        run(head + b"\r\n\r\nxx", [])


@pytest.mark.parametrize("size", [b"", b"-1", b"0x5", b"5 5", b"f" * 16, b"1" * 300])
def test_malformed_chunks_are_refused(size: bytes) -> None:
    with pytest.raises(http.ProtocolError):
        run(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + size + b"\r\nhello\r\n", [])


@pytest.mark.parametrize("text", ["a\r\nX: y", "a\nb", "a\0b"])
def test_no_text_breaks_out_of_its_line(text: str) -> None:
    with pytest.raises(http.ProtocolError):
        http.encode_request("GET", "/v1/x", {"A": text})


@given(st.text(max_size=40))
def test_quoting_leaves_nothing_that_means_something(text: str) -> None:
    quoted = http.quote(text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape"))
    assert not set(quoted) & set("/?#& \r\n%") - {"%"}


def test_queries() -> None:
    query = {"a": True, "b": None, "c": ["x=1", "y&z"], "d": 1.5}
    assert http.encode_query(query) == "?a=1&c=x%3D1&c=y%26z&d=1.5"
    assert http.encode_query({"a": None}) == ""
