"""What `api.small` accepts, the framework reads alike: two readers of one connection must never differ."""

from __future__ import annotations

import asyncio

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParserPy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from knarr.api import small

BYTES = st.binary(max_size=12)
PLAIN = st.text("abcXYZ019/-_.~", max_size=10).map(str.encode)
QUERY = st.lists(
    st.sampled_from([b"a=1", b"b=x:y", b"a=", b"a", b"=1", b"a=1=2", b"%41=1", b"a=+"]), max_size=3
)
ODD = st.text("aZ9/%+ \t?#\x7f\xe9", max_size=10).map(lambda text: text.encode("latin-1"))
NAME = st.sampled_from(
    [b"Host", b"content-length", b"Transfer-Encoding", b"Expect", b"Content-Length ", b"X-Y"]
)
VALUE = (
    st.sampled_from([b"knarr", b"3", b"03", b"+3", b"3, 3", b"chunked", b"", b"3\t", b"0x3", b"\x0b3"])
    | BYTES
)
GOOD = st.sampled_from(
    [b"Content-Length: 3", b"content-length:0", b"Accept: x", b"User-Agent: a b", b"Accept:"]
)
LINE_END = st.sampled_from([b"\r\n"] * 20 + [b"\n", b"\r\n "])


@st.composite
def requests(draw):
    """Mostly what a client may send, with something odd in it here and there."""

    def seldom(odd, usual):
        return draw(odd) if draw(st.integers(0, 7)) == 0 else draw(usual)

    method = seldom(st.sampled_from([b"get", b"P\xd6ST", b""]), st.sampled_from([b"GET", b"POST", b"DELETE"]))
    version = seldom(st.sampled_from([b"HTTP/1.0", b"HTTP/1.1 ", b"HTTP/2.0"]), st.just(b"HTTP/1.1"))
    query = b"&".join(draw(QUERY))
    target = b"/" + seldom(ODD, PLAIN) + (b"?" + query if query else b"")
    headers = draw(st.lists(GOOD, max_size=2))
    headers += seldom(st.lists(st.builds(lambda name, value: name + b": " + value, NAME, VALUE)), st.just([]))
    headers.insert(0, seldom(st.just(b"Host "), st.just(b"Host: knarr")))
    lines = [b" ".join((method, target, version)), *headers]
    return b"".join(line + draw(LINE_END) for line in lines) + b"\r\n" + draw(BYTES)


def framework(data):
    """(method, target, body) as aiohttp has them."""

    async def read():
        loop = asyncio.get_running_loop()
        parser = HttpRequestParserPy(BaseProtocol(loop), loop, 1 << 16)
        messages, _, _ = parser.feed_data(data)
        ((head, payload),) = messages
        body = await asyncio.wait_for(payload.read(), 1)
        return head.method, head.path, body

    return asyncio.run(read())


@settings(max_examples=400, deadline=None)
@given(requests())
@example(b"POST /a/b?c=d&c=e HTTP/1.1\r\nHost: k\r\nContent-Length: 3\r\n\r\nabc")
@example(b"GET /a HTTP/1.1\r\nAccept:\r\nHost:k\r\n\r\nGET")
def test_both_read_the_same(data):
    got = small.parse(data)
    if not isinstance(got, small.Request):
        return
    method, target, body = framework(data[: got.size])
    path, _, query = target.partition("?")
    assert (got.method, got.path, got.body) == (method, path, body)
    pairs = [tuple(item.split("=")) for item in query.split("&")] if query else []
    assert sorted((key, value) for key, values in got.query.items() for value in values) == sorted(pairs)
