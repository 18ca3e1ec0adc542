"""What the network scenarios share: namespaces, sockets inside them, a manager in a folder of its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import struct
import tempfile
import threading
import time
from types import SimpleNamespace

from knarr.kernel import netlink
from knarr.kernel.nft import Nft
from knarr.networks.host import LocalStore
from knarr.networks.manager import NetworkManager

_libc = ctypes.CDLL(None, use_errno=True)
_NEWNET = 0x40000000
SOURCE = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "src")


def inside(netns, function, *arguments):
    """The result of `function` in another namespace; sockets that it makes stay there."""
    box = []

    def work():
        try:
            assert _libc.setns(netns, _NEWNET) == 0
            box.append((function(*arguments), None))
        except BaseException as error:
            box.append((None, error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    result, error = box[0]
    if error is not None:
        raise error
    return result


def new_netns():
    box = []

    def work():
        assert _libc.unshare(_NEWNET) == 0
        box.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return box[0]


class Net:
    """A manager in a folder of its own, with what a scenario asks of it again and again."""

    def __init__(self, instance="abc123", folder=None, store=None, locks=None):
        self.folder = folder or tempfile.mkdtemp()
        self.store = store or LocalStore()
        self.manager = NetworkManager(
            instance, self.folder, self.store, lock_folder=locks or f"{self.folder}/locks"
        )
        self.manager.ensure()

    def wait_slots(self, count=2):
        deadline = time.monotonic() + 5
        while self.manager.slots_ready < count:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def box(self, name):
        attachment, netns = self.manager.attach_container(name)
        return SimpleNamespace(id=name, a=attachment, ns=netns)


@contextlib.contextmanager
def net(**keywords):
    os.system("ip link set lo up")
    made = Net(**keywords)
    made.manager.adopt({})
    try:
        yield made
    finally:
        made.manager.close(keep=False)
        left = [link.name for link in links() if link.name.startswith("kn")]
        assert not left, left
        assert not [t for t in Nft().list_json("tables") if "table" in t]


def links():
    with netlink.Route() as route:
        return route.links()


def outside(address="192.0.2.2"):
    """A neighbour machine: 192.0.2.2 behind a link of this host (192.0.2.1)."""
    netns = new_netns()
    with netlink.Route() as route:
        route.do(
            netlink.new_veth("up0", peer="eth0", peer_netns=netns, peer_mac="02:00:00:00:00:99"),
        )
        index = route.index("up0")
        route.do(netlink.new_address(index, "192.0.2.1", 24), netlink.set_link(index, up=True))

    def set_up():
        with netlink.Route() as route:
            index = route.index("eth0")
            route.do(
                netlink.new_address(index, address, 24),
                netlink.set_link(index, up=True),
                netlink.new_route("192.0.2.1", index),
            )

    inside(netns, set_up)
    return netns


def echo(netns, kind, address="0.0.0.0", port=80):
    """A server that answers with the address it was asked from."""

    def make():
        sock = socket.socket(socket.AF_INET, kind)
        sock.bind((address, port))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        return sock

    sock = make() if netns is None else inside(netns, make)

    def serve():
        while True:
            try:
                if kind == socket.SOCK_STREAM:
                    client, peer = sock.accept()
                    with client:
                        client.sendall(peer[0].encode())
                else:
                    _, peer = sock.recvfrom(100)
                    sock.sendto(peer[0].encode(), peer)
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    return sock


def ask(netns, kind, address, port, timeout=3.0):
    def connect():
        sock = socket.socket(socket.AF_INET, kind)
        sock.settimeout(timeout)
        return sock

    with connect() if netns is None else inside(netns, connect) as sock:
        sock.connect((address, port))
        if kind == socket.SOCK_DGRAM:
            sock.send(b"?")
        return sock.recv(100).decode()


def refused(function, *arguments):
    try:
        function(*arguments)
    except OSError:
        return True
    return False


def sniffer(netns):
    def make():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        sock.bind(("eth0", 3))
        sock.settimeout(0.3)
        return sock

    return inside(netns, make)


def heard(sock, mark, timeout=0.25):
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        if select.select([sock], [], [], left)[0] and mark in sock.recv(2000):
            return True
    return False


def mac(text):
    return bytes.fromhex(text.replace(":", ""))


def ip_frame(src_mac, dst_mac, src, dst, sport=1000, dport=2000, mark=b"MARK"):
    udp = struct.pack("!HHHH", sport, dport, 8 + len(mark), 0) + mark
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, socket.inet_aton(src), socket.inet_aton(dst)
    )
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:]
    return mac(dst_mac) + mac(src_mac) + b"\x08\x00" + head + udp


def arp_frame(eth_src, sender_mac, sender_ip, target_ip, operation=2, mark=b"MARK"):
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    body += mac(sender_mac) + socket.inet_aton(sender_ip) + b"\0" * 6 + socket.inet_aton(target_ip)
    return b"\xff" * 6 + mac(eth_src) + b"\x08\x06" + body + mark
