"""The resolver as a process: one scenario of test_networks.py."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

from network_tools import SOURCE, inside, net


def dns_process(n):
    fds = [n.store.get(name) for name in n.store.list("dns/")]
    assert len(fds) == 2
    code = f"import sys; sys.path[:0] = [{SOURCE!r}]; from knarr.networks.dns import main; raise SystemExit(main())"
    process = subprocess.Popen(
        [sys.executable, "-IS", "-c", code, "ROOT", n.folder, *map(str, fds)],
        pass_fds=fds,
        stdin=subprocess.DEVNULL,
    )
    for fd in fds:
        os.close(fd)
    return process


def resolve(netns, server, name, kind=1, stream=False, timeout=5.0, size=0):
    def connect():
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
        sock.settimeout(timeout)
        sock.connect((server, 53))
        return sock

    labels = b"".join(bytes((len(p),)) + p.encode() for p in name.split("."))
    question = b"\x12\x34\x01\x00\x00\x01\0\0\0\0\0\0" + labels + b"\0" + struct.pack("!HH", kind, 1)
    with inside(netns, connect) as sock:
        sock.sendall(struct.pack("!H", len(question)) + question if stream else question)
        answer = sock.recv(4096)
    answer = answer[2:] if stream else answer
    assert answer[:2] == b"\x12\x34"
    count = struct.unpack("!H", answer[6:8])[0]
    return answer[3] & 15, count, answer[len(question) :]


def upstream():
    """The host's resolver: it answers 9.9.9.9 to everything but `slow`, over both transports."""

    def answer(data):
        return (
            data[:2]
            + b"\x81\x80\0\x01\0\x01\0\0\0\0"
            + data[12:]
            + b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x09\x09\x09\x09"
        )

    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.5", 53))
    tcp = socket.create_server(("127.0.0.5", 53))

    def serve_udp():
        while True:
            data, peer = udp.recvfrom(4096)
            if b"slow" not in data:
                udp.sendto(b"\0\0" + answer(data)[2:], peer)  # a forgery: the id is wrong
                udp.sendto(answer(data), peer)

    def serve_tcp():
        while True:
            client = tcp.accept()[0]
            data = client.recv(4096)[2:]
            reply = answer(data)
            client.sendall(struct.pack("!H", len(reply)) + reply)
            client.close()

    for function in (serve_udp, serve_tcp):
        threading.Thread(target=function, daemon=True).start()


def scenario_names():
    conf = os.path.join(tempfile.mkdtemp(), "resolv.conf")
    with open(conf, "w") as file:
        file.write("nameserver 127.0.0.5\n")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "--bind", conf, "/etc/resolv.conf"], check=True)
    with net() as n:
        upstream()
        box, web = n.box("box"), n.box("web")
        dns = dns_process(n)
        try:
            ask_names(n, box, web, dns)
        finally:
            dns.kill()
            dns.wait()


def ask_names(n, box, web, dns):
    server = box.a.dns[0]
    n.manager.set_names("web", ("Web", "alias.example"), web.a.address)
    wanted = socket.inet_aton(web.a.address)
    for stream in (False, True):
        for name in ("web", "WEB", "alias.example"):
            code, count, rest = resolve(box.ns, server, name, stream=stream)
            assert (code, count, rest[-4:]) == (0, 1, wanted), name
        assert resolve(box.ns, server, "web", kind=28, stream=stream)[:2] == (0, 0)
        code, count, rest = resolve(box.ns, server, "example.org", stream=stream)
        assert (code, count, rest[-4:]) == (0, 1, b"\x09\x09\x09\x09")
    reverse = ".".join(reversed(web.a.address.split("."))) + ".in-addr.arpa"
    assert b"\x03web\0" in resolve(box.ns, server, reverse, kind=12)[2]
    unknown = "77.3." + ".".join(reversed(web.a.address.split(".")[:2])) + ".in-addr.arpa"
    assert resolve(box.ns, server, unknown, kind=12)[0] == 3
    # a slow question holds up nobody
    slow = threading.Thread(target=lambda: resolve(box.ns, server, "slow.example", timeout=15))
    slow.start()
    started = time.monotonic()
    assert resolve(box.ns, server, "web")[1] == 1
    assert time.monotonic() - started < 1
    # killed and started again: nothing is lost, because nothing was in it
    dns.kill()
    dns.wait()
    second = dns_process(n)
    try:
        assert resolve(box.ns, server, "web")[1] == 1
        n.manager.detach("web")
        assert resolve(box.ns, server, "web")[2][-4:] == b"\x09\x09\x09\x09", "a forgotten name is forwarded"
        n.manager.set_names("x", ("late",), "10.90.0.77")
        assert resolve(box.ns, server, "late")[1] == 1
    finally:
        second.kill()
        second.wait()
    os._exit(0) if slow.is_alive() and not n.manager.close(keep=False) else None


if __name__ == "__main__":
    globals()[f"scenario_{sys.argv[1]}"]()
