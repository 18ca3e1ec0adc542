from __future__ import annotations

import asyncio
import re
import time
from io import BytesIO
from urllib.parse import parse_qs

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from knarr.api import http
from knarr.api.native import openapi, server
from knarr.api.native.routes import Param, Route, moment, parse_query
from knarr.model import errors
from knarr.model.errors import Invalid, KnarrError


def test_every_route_is_described():
    document = openapi.document(server.ROUTES, "1")
    operations = [(path, method) for path, item in document["paths"].items() for method in item]
    assert len(operations) == len(server.ROUTES)
    assert "/v1/images/{name}/tag" in document["paths"]
    spec = document["components"]["schemas"]["WorkloadSpec"]
    assert spec["required"] == ["image"]
    assert spec["additionalProperties"] is False
    assert spec["properties"]["isolation"]["enum"] == ["container", "sandbox", "microvm", "machine"]
    text = str(document)
    for reference in re.findall(r"#/components/schemas/(\w+)", text):
        assert document["components"]["schemas"][reference]


def test_operation_names_are_unique():
    names = [route.act.__module__ + route.act.__name__ for route in server.ROUTES]
    assert len(names) == len(set(names))


def test_every_kind_of_error_has_a_status():
    kinds = {cls.kind for cls in KnarrError.__subclasses__()}
    assert kinds == set(http.STATUS)
    for route in server.ROUTES:
        assert set(route.errors) <= kinds


ROUTE = Route(
    method="GET",
    path="/",
    act=lambda call: None,
    text="",
    query=(
        Param(name="b", kind="bool", text="", default=True),
        Param(name="i", kind="int", text=""),
        Param(name="f", kind="float", text=""),
        Param(name="t", kind="time", text=""),
        Param(name="l", kind="list", text=""),
    ),
)


def query(text):
    return parse_query(ROUTE, parse_qs(text, keep_blank_values=True))


def test_query_values():
    assert query("") == {"b": True, "i": None, "f": None, "t": None, "l": []}
    got = query("b=0&i=-5&f=1.5&t=10.5&l=a&l=b")
    assert got == {"b": False, "i": -5, "f": 1.5, "t": 10_500_000_000, "l": ["a", "b"]}


@pytest.mark.parametrize(
    "text", ["x=1", "b=2", "i=1.5", "i=" + "9" * 30, "f=nan", "f=x", "t=yesterday", "i=1&i=2", "i=%D9%A3"]
)
def test_bad_query(text):
    with pytest.raises(Invalid):
        query(text)


def test_moments():
    assert moment("t", "2023-11-14T22:13:20Z") == 1_700_000_000 * 10**9
    assert abs(moment("t", "1m") - (time.time_ns() - 60 * 10**9)) < 5 * 10**9


def test_internal_errors_are_not_shown():
    secret = http.translate(RuntimeError("secret"))
    assert "secret" not in secret.message
    assert "RuntimeError" in secret.message
    assert http.translate(OSError(28, "No space left on device")).kind == "unavailable"
    known = errors.NotFound("x")
    assert http.translate(known) is known


def nested(depth):
    return "[" * depth + "]" * depth


@pytest.mark.parametrize("body", [b"{", b"\xff", nested(100).encode(), nested(100_000).encode(), b'{"a":1}{'])
def test_hostile_bodies(body):
    async def handle(request):
        try:
            return http.answer(await http.read_json(request))
        except KnarrError as error:
            return http.error_answer(error)

    async def check():
        app = web.Application()
        app.router.add_post("/", handle)
        async with TestClient(TestServer(app)) as client:
            answer = await client.post("/", data=body)
            assert answer.status == 400
            assert (await answer.json())["kind"] == "invalid"
            big = await client.post("/", data=BytesIO(b" " * (http.MAX_JSON + 1)))
            assert big.status == 400

    asyncio.run(check())


def test_unknown_paths_and_methods_answer_in_our_form():
    async def check():
        app = server.application(None)
        async with TestClient(TestServer(app)) as client:
            missing = await client.get("/v2/nothing")
            assert (missing.status, (await missing.json())["kind"]) == (404, "not_found")
            wrong = await client.put("/v1/version")
            assert wrong.status == 405
            assert wrong.headers["Allow"] == "GET"
            unknown = await client.post("/v1/workloads", json={"image": "x", "pivileged": True})
            assert unknown.status == 400
            assert "unknown field 'pivileged'" in (await unknown.json())["message"]
            assert (await client.post("/v1/workloads", json=[1])).status == 400
            assert (await client.post("/v1/workloads", json={"image": "x", "tty": "yes"})).status == 400

    asyncio.run(check())
