"""A daemon that ends alone, with no workload left, and the one that its holder starts in its place."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time

import pytest

from knarr.bench import image
from knarr.client.client import Client

pytestmark = pytest.mark.root
KNARR = os.path.join(sys.prefix, "bin", "knarr")


@pytest.fixture
def client(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("power missing: root")
    root, run = str(tmp_path / "root"), str(tmp_path / "run")
    try:
        with Client(root, run) as made:
            image.ensure(made)
            yield made
    finally:
        words = (KNARR, "--root", root, "--run", run, "daemon", "stop", "--workloads")
        subprocess.run(words, check=True, timeout=60)


def daemon_pid(client):
    """Of the daemon that answers at the socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(os.path.join(client.run, "knarr.sock"))
    words = (KNARR, "--root", client.root, "--run", client.run, "daemon", "status")
    told = subprocess.run(words, capture_output=True, text=True, check=True, timeout=20).stdout
    return int(dict(line.split(": ") for line in told.splitlines())["pid"])


def address_of(name, server):
    """Asked of the resolver at `server`, for some seconds."""
    labels = b"".join(bytes((len(part),)) + part for part in name.encode().split(b"."))
    query = struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.5)
        sock.connect((server, 53))
        for _ in range(10):
            try:
                sock.send(query)
                return socket.inet_ntoa(sock.recv(512)[-4:])
            except (TimeoutError, ConnectionRefusedError):
                time.sleep(0.2)
    return None


def test_names_are_answered_on_the_next_daemons_network(client):
    before = daemon_pid(client)
    os.kill(before, signal.SIGTERM)
    deadline = time.monotonic() + 20
    while True:
        try:
            if daemon_pid(client) != before:
                break
        except (OSError, subprocess.CalledProcessError):
            pass
        assert time.monotonic() < deadline
        time.sleep(0.1)
    spec = {"image": image.REFERENCE, "command": ["sleep", "1000"], "name": "box"}
    name = client.create(spec)["id"]
    client.start(name)
    try:
        place = client.inspect(name)["network"]
        assert address_of("box", place["gateway"]) == place["address"]
    finally:
        client.remove(name, force=True)
