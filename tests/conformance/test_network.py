"""The default bridge, names, published ports, no network, the host's: the same behind every wall."""

from __future__ import annotations

import json
import socket
import urllib.request

import pytest

from conformance.harness import Wall, eventually

SERVER = "while :; do printf 'HTTP/1.0 200 OK\\r\\n\\r\\nhello' | nc -l -p 80; done"


@pytest.mark.smoke
def test_it_has_an_address_and_reaches_the_gateway(wall: Wall, box: str) -> None:
    gateway = wall.exec(box, "sh", "-c", "ip route | awk '/default/ {print $3}'").out.strip()
    assert wall.exec(box, "ping", "-c", "1", "-W", "5", gateway).code == 0


@pytest.mark.smoke
def test_a_name_resolves_to_the_other_workload(wall: Wall, box: str) -> None:
    address = json.loads(wall.knarr("inspect", box).out)[0]["network"]["address"]
    result = wall.shell(f"nslookup {box}; ping -c 1 -W 5 {box} > /dev/null && echo pong")
    assert address in result.out
    assert result.lines[-1] == "pong"


def test_network_none_has_loopback_only(wall: Wall) -> None:
    result = wall.shell(
        "ls /sys/class/net; ping -c 1 -W 2 127.0.0.1 >/dev/null && echo up", opts=("--network", "none")
    )
    assert result.lines == ["lo", "up"]


@pytest.mark.smoke
def test_published_port_answers(wall: Wall) -> None:
    with wall.box("sh", "-c", SERVER, opts=("-p", "127.0.0.1:0:80")) as name:
        ports = json.loads(wall.knarr("inspect", name).out)[0]["ports"]
        url = f"http://127.0.0.1:{ports[0]['host_port']}/"

        def answer() -> bytes | None:
            try:
                return urllib.request.urlopen(url, timeout=3).read()
            except OSError:
                return None

        assert eventually(answer, what="the answer") == b"hello"


def test_a_taken_port_is_an_error_that_names_it(wall: Wall) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = wall.run("true", opts=("-p", f"127.0.0.1:{port}:80"))
        assert result.code == 125
        assert str(port) in result.err


def test_host_network(wall: Wall) -> None:
    result = wall.shell("ls /sys/class/net", opts=("--network", "host"))
    if wall.isolation == "microvm":
        assert result.code == 125
        assert "microvm" in result.err
        return
    assert "eth0" in result.lines or len(result.lines) > 1


def test_forged_source_addresses_are_dropped(wall: Wall, box: str) -> None:
    address = json.loads(wall.knarr("inspect", box).out)[0]["network"]["address"]
    script = f"ip addr add 10.255.255.9/32 dev eth0 2>/dev/null; ping -c 1 -W 2 -I 10.255.255.9 {address} && echo forged"
    assert "forged" not in wall.shell(script, opts=("--cap-add", "NET_ADMIN")).out
