"""Any JSON at the API and any packet at the instance's sockets: an error in our form, and all of them go on."""

from __future__ import annotations

import contextlib
import json
import os
import socket

import pytest
from hypothesis import strategies as st

from conformance.harness import Instance
from knarr.client import http
from knarr.keeper import protocol
from knarr.model import codec
from knarr.model.workload import ExecSpec, WorkloadSpec
from support.fuzzing import JSON, fuzzed

pytestmark = pytest.mark.root
FIELDS = sorted(
    {*codec._field_names(WorkloadSpec), *codec._field_names(ExecSpec), "reference", "names", "repair", "all"}
)
BODY = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5) | JSON
PATHS = st.sampled_from(
    ["/v1/workloads", "/v1/workloads/plan", "/v1/workloads/x/exec", "/v1/workloads/x/update", "/v1/workloads/x/commit",
     "/v1/images/save", "/v1/images/pull", "/v1/images/prune", "/v1/images/x/tag", "/v1/volumes", "/v1/images/push"]
)  # fmt: skip
QUERY = st.sampled_from(
    ["", "?", "?a=1", "?force=maybe", "?filter=%00", "?tail=-1", "?since=%ff", "?path=%2e%2e"]
)


@pytest.fixture(scope="module")
def instance():
    if os.geteuid() != 0:
        pytest.skip("power missing: root")
    made = Instance()
    try:
        made.knarr("daemon", "start", check=True)
        yield made
    finally:
        made.close()


def ask(instance, method: str, target: str, body: bytes) -> tuple[int, bytes]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(os.path.join(instance.run_folder, "knarr.sock"))
        sock.sendall(
            f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        parser, found, status = http.ResponseParser(method), b"", 0
        while not parser.complete:
            for event in parser.feed(sock.recv(65536)):
                if isinstance(event, http.Head):
                    status = event.status
                elif isinstance(event, bytes):
                    found += event
    return status, found


def clean(status: int, body: bytes) -> None:
    """An error in our form, whose words are ours, and never that something in us broke."""
    assert b"internal error" not in body, body
    assert b"Traceback" not in body
    assert status < 500 or status in (501, 503), (status, body)
    if status >= 400 and body:
        assert json.loads(body)["message"].strip(), body


def test_any_json_at_the_api(instance):
    @fuzzed(st.sampled_from(["POST", "PUT", "DELETE", "GET"]), PATHS, QUERY, BODY, examples=250)
    def answered(method, path, query, value):
        clean(*ask(instance, method, path + query, json.dumps(value).encode()))

    answered()


@st.composite
def specs(draw):
    """A specification that would do, with some fields as they should not be."""
    spec = {"image": "nothing:1", "isolation": draw(st.sampled_from(["container", "microvm"]))}
    return spec | draw(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3))


def test_any_specification(instance):
    @fuzzed(specs(), examples=250)
    def answered(spec):
        for path in ("/v1/workloads", "/v1/workloads/plan"):
            clean(*ask(instance, "POST", path, json.dumps(spec).encode()))

    answered()


MESSAGES = st.dictionaries(
    st.sampled_from(["type", "seq", "id", "plan", "fds", "streams", "signal", "tree_id", "exec_id", "version"]),
    JSON | st.sampled_from(["hello", "start", "exec", "signal", "mount", "unmount", "root", "forget", "list", 1]),
    max_size=6,
)  # fmt: skip


def packet(instance, name: str, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(0.5)
        sock.connect(os.path.join(instance.run_folder, name))
        sock.send(data)
        with contextlib.suppress(OSError):
            sock.recv(65536)


def test_the_keeper_survives_any_packet(instance):
    before = instance.knarr("daemon", "status", "--format", "json", check=True).out

    @fuzzed(
        MESSAGES.map(lambda message: json.dumps(message).encode()) | st.binary(min_size=1, max_size=99),
        examples=60,
    )
    def survived(data):
        packet(instance, protocol.KEEPER, data)

    survived()
    after = instance.knarr("daemon", "status", "--format", "json", check=True).out
    assert json.loads(after)["keeper_pid"] == json.loads(before)["keeper_pid"]


WORDS = st.lists(
    st.sampled_from(["put", "get", "del", "list", "role", "watch", "ack", "x/*", "", "9" * 30])
    | st.text(max_size=9),
    max_size=5,
)


def test_the_holder_survives_any_words(instance):
    before = instance.knarr("daemon", "status", "--format", "json", check=True).out

    @fuzzed(WORDS.filter(lambda words: words[:1] not in (["role"], ["del"])), examples=60)
    def survived(words):
        data = b"\0".join(word.encode("utf-8", "surrogatepass") for word in words)
        packet(instance, protocol.HOLDER, data or b"\0")

    survived()
    after = instance.knarr("daemon", "status", "--format", "json", check=True).out
    assert json.loads(after)["holder_pid"] == json.loads(before)["holder_pid"]
