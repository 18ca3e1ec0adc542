"""What `api.small` accepts, the framework reads alike: two readers of one connection must never differ."""

from __future__ import annotations

import asyncio

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParserPy
from hypothesis import given, settings
from hypothesis import strategies as st

from knarr.api import small

BYTES = st.binary(max_size=12)
WORD = st.text("abcXYZ019/-_.~%+ \t:,@=&?#\x7f\xe9", max_size=10).map(lambda text: text.encode("latin-1"))
TARGET = st.builds(lambda path, query: b"/" + path + query, WORD, WORD.map(lambda text: b"?" + text) | st.just(b""))
NAME = st.sampled_from(
    [b"Host", b"content-length", b"Content-Length", b"Accept", b"Transfer-Encoding", b"Expect", b"Content-Length "]
)
VALUE = st.sampled_from([b"knarr", b"3", b"03", b"+3", b"3, 3", b"chunked", b"", b"3\t", b"0x3", b"\x0b3"]) | BYTES
HEADER = st.builds(lambda name, space, value: name + b":" + space + value, NAME, st.sampled_from([b"", b" "]), VALUE)
LINE_END = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r\n "])


@st.composite
def requests(draw):
    method = draw(st.sampled_from([b"GET", b"POST", b"DELETE", b"get", b"P\xd6ST"]))
    version = draw(st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.1 "]))
    lines = [b" ".join((method, draw(TARGET), version)), *draw(st.lists(HEADER, max_size=3))]
    text = b"".join(line + draw(LINE_END) for line in lines)
    return text + b"\r\n" + draw(BYTES)


def framework(data):
    """(method, target, body) as aiohttp has them."""

    async def read():
        loop = asyncio.get_running_loop()
        parser = HttpRequestParserPy(BaseProtocol(loop), loop, 1 << 16)
        messages, _, _ = parser.feed_data(data)
        ((head, payload),) = messages
        body = b"" if payload.is_eof() and not payload._size else await asyncio.wait_for(payload.read(), 1)
        return head.method, head.path, body

    return asyncio.run(read())


@settings(max_examples=400, deadline=None)
@given(requests())
def test_both_read_the_same(data):
    got = small.parse(data)
    if not isinstance(got, small.Request):
        return
    method, target, body = framework(data[: got.size])
    path, _, query = target.partition("?")
    assert (got.method, got.path, got.body) == (method, path, body)
    pairs = [tuple(item.split("=")) for item in query.split("&")] if query else []
    assert sorted((key, value) for key, values in got.query.items() for value in values) == sorted(pairs)
