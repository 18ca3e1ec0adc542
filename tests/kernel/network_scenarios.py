"""What test_networks.py runs, one scenario a process, in a network and mount namespace made for it."""

from __future__ import annotations

import os
import select
import socket
import sys
import tempfile
import time

import pytest
from network_tools import Net, arp_frame, ask, echo, inside, links, mac, net, new_netns, outside, refused

from knarr.kernel.nft import Chain, Nft, Table
from knarr.model.errors import Conflict, Unsupported
from knarr.model.workload import PortMapping
from knarr.networks import addresses, check, rules
from knarr.networks.host import read_setting


def scenario_slots():
    before = os.stat("/proc/self/ns/net").st_ino
    with net() as n:
        n.wait_slots()
        started = time.perf_counter()
        first = n.box("first")
        took = time.perf_counter() - started
        second = n.box("second")
        server = echo(second.ns, socket.SOCK_STREAM)
        assert ask(first.ns, socket.SOCK_STREAM, second.a.address, 80) == first.a.address
        assert ask(None, socket.SOCK_STREAM, second.a.address, 80) == second.a.gateway
        inside(first.ns, lambda: socket.create_server(("127.0.0.1", 81)).close())
        assert took < 0.003, took
        print(f"a ready slot took {took * 1e6:.0f} us")
        server.close()
        for box in (first, second):
            n.manager.detach(box.id)
            os.close(box.ns)
    assert os.stat("/proc/self/ns/net").st_ino == before


def scenario_full_bridge():
    """The bridge that a slot makes necessary is the host's, with the host's settings."""
    addresses.PORTS_PER_BRIDGE = 3
    with net() as n:
        boxes = [n.box(f"w{place}") for place in range(5)]
        used = sorted({box.a.bridge for box in boxes})
        assert len(used) == 2
        for name in used:
            found = [read_setting(name, item) for item in ("forwarding", "rp_filter", "route_localnet")]
            assert found == ["1", "1", "1"], (name, found)
        server = echo(boxes[4].ns, socket.SOCK_STREAM)
        assert ask(boxes[0].ns, socket.SOCK_STREAM, boxes[4].a.address, 80) == boxes[0].a.address
        server.close()
        for box in boxes:
            n.manager.detach(box.id)
            os.close(box.ns)


def scenario_hundred():
    with net() as n:
        started = time.perf_counter()
        boxes = [n.box(f"w{place}") for place in range(100)]
        took = time.perf_counter() - started
        assert len({box.a.address for box in boxes}) == 100
        server = echo(boxes[99].ns, socket.SOCK_STREAM)
        assert ask(boxes[0].ns, socket.SOCK_STREAM, boxes[99].a.address, 80) == boxes[0].a.address
        server.shutdown(socket.SHUT_RDWR)  # or its blocked accept would keep the namespace
        server.close()
        n.manager.set_names("w0", ("zero",), boxes[0].a.address)
        for box in boxes:
            n.manager.detach(box.id)
            os.close(box.ns)
        print(f"100 slots in {took * 1000:.0f} ms")
        deadline = time.monotonic() + 20
        while sum(link.name.startswith("knabc123p") for link in links()) > 16:
            assert time.monotonic() < deadline, [link.name for link in links()]
            time.sleep(0.05)
        again = n.manager.attach_container("again", boxes[5].a)
        assert again[0] == boxes[5].a
        os.close(again[1])
        n.manager.detach("again")
    assert len(os.listdir("/proc/self/fd")) < 20, os.listdir("/proc/self/fd")


def scenario_publish():
    with net() as n:
        lan = outside()
        n.manager.close(keep=True)
        m = Net(folder=n.folder, store=n.store)
        m.manager.adopt({})
        n.manager = m.manager
        assert read_setting("up0") == "1"
        web, other = n.box("web"), n.box("other")
        servers = [echo(web.ns, socket.SOCK_STREAM), echo(web.ns, socket.SOCK_DGRAM)]
        ports = n.manager.publish(
            "web",
            web.a,
            (
                PortMapping(container_port=80, host_port=8080),
                PortMapping(container_port=80, protocol="udp"),
                PortMapping(container_port=80, host_ip="127.0.0.1", host_port=9090),
            ),
        )
        udp = ports[1].host_port
        assert udp
        for kind, port in ((socket.SOCK_STREAM, 8080), (socket.SOCK_DGRAM, udp)):
            assert ask(None, kind, "127.0.0.1", port) == web.a.gateway
            assert ask(None, kind, "192.0.2.1", port) in ("192.0.2.1", web.a.gateway)
            assert ask(lan, kind, "192.0.2.1", port) == "192.0.2.2"
            assert ask(other.ns, kind, "192.0.2.1", port) == web.a.gateway
            assert ask(web.ns, kind, "192.0.2.1", port) == web.a.gateway
        assert ask(None, socket.SOCK_STREAM, "127.0.0.1", 9090) == web.a.gateway
        assert refused(ask, lan, socket.SOCK_STREAM, "192.0.2.1", 9090, 0.5)
        # unpublished, but routed: from outside it must not be reachable
        assert refused(ask, lan, socket.SOCK_STREAM, web.a.address, 80, 0.5)
        conflicts(n, other)
        servers += [echo(lan, socket.SOCK_STREAM, port=81)]
        assert ask(web.ns, socket.SOCK_STREAM, "192.0.2.2", 81) == "192.0.2.1", "not masqueraded"
        n.manager.detach("web")
        assert refused(ask, None, socket.SOCK_STREAM, "127.0.0.1", 8080)
        assert n.manager.publish("other", other.a, (PortMapping(container_port=80, host_port=8080),))
        n.manager.detach("other")
        assert not n.store.list("sock/port/")
        for sock in servers:
            sock.close()
    assert read_setting("up0") == "0", "the old value was not put back"


def conflicts(n, other):
    taken = PortMapping(container_port=1, host_port=8080)
    with pytest.raises(Conflict, match="port 8080/tcp is in use"):
        n.manager.publish("other", other.a, (PortMapping(container_port=1, host_port=7000), taken))
    socket.create_server(("0.0.0.0", 7000)).close()
    with pytest.raises(Unsupported):
        n.manager.publish("other", other.a, (PortMapping(container_port=1, host_ip="::1"),))


def scenario_vm():
    with net() as n:
        box = n.box("box")
        attachment, tap = n.manager.attach_vm("vm")
        assert attachment.link.startswith("knabc123p")
        os.write(
            tap, b"\0" * 10 + arp_frame(attachment.mac, attachment.mac, attachment.address, box.a.address, 1)
        )
        deadline = time.monotonic() + 3
        while True:
            assert time.monotonic() < deadline
            if select.select([tap], [], [], 0.5)[0] and mac(box.a.mac) in os.read(tap, 2000)[10:][6:]:
                break
        os.close(tap)
        assert not any(link.name == attachment.link for link in links())
        n.manager.detach("vm")
        again, tap = n.manager.attach_vm("vm", attachment)
        assert again == attachment
        os.close(tap)
        os.close(box.ns)
        n.manager.detach("vm")


def scenario_adoption():
    with net() as n:
        keep, gone = n.box("keep"), n.box("gone")
        server = echo(keep.ns, socket.SOCK_STREAM)
        ports = n.manager.publish("keep", keep.a, (PortMapping(container_port=80, host_port=8080),))
        n.manager.publish("gone", gone.a, (PortMapping(container_port=80, host_port=8081),))
        n.manager.set_names("keep", ("keep",), keep.a.address)
        old = n.manager
        # as a killed daemon would leave it: only what the kernel and the store keep
        n.manager = Net(folder=n.folder, store=n.store).manager
        assert ask(None, socket.SOCK_STREAM, "127.0.0.1", 8080) == keep.a.gateway, "before adopt"
        n.manager.adopt({"keep": (keep.a, ports, ("keep",))})
        assert ask(None, socket.SOCK_STREAM, "127.0.0.1", 8080) == keep.a.gateway
        assert n.store.list("sock/port/") == ["sock/port/tcp/0.0.0.0:8080"]
        fresh = [n.box(f"new{place}") for place in range(4)]
        assert keep.a.address not in {box.a.address for box in fresh}
        assert ask(fresh[3].ns, socket.SOCK_STREAM, keep.a.address, 80) == fresh[3].a.address
        n.manager.detach("keep")
        assert refused(ask, None, socket.SOCK_STREAM, "127.0.0.1", 8080)
        server.close()
        old._slots.close()


def scenario_instances():
    locks = tempfile.mkdtemp()
    os.system("ip link set lo up")
    outside()
    one, two = (Net(instance=name, locks=locks).manager for name in ("aaaaaa", "bbbbbb"))
    assert one.pool != two.pool
    first, second = one.attach_container("w"), two.attach_container("w")
    server = echo(second[1], socket.SOCK_STREAM)
    assert refused(ask, first[1], socket.SOCK_STREAM, second[0].address, 80, 0.4), "instances are apart"
    server.close()
    one.close(keep=False)
    assert read_setting("up0") == "1", "the other one still needs it"
    two.close(keep=False)
    assert read_setting("up0") == "0"
    assert read_setting("all") == "0"
    assert sorted(os.listdir(locks)) == ["lock", "settings.json"]


def scenario_given_namespace():
    with net() as n:
        mine = new_netns()
        _, netns = n.manager.attach_container("w", netns=mine)
        names = inside(mine, lambda: [link.name for link in links()])
        assert names == ["lo", "eth0"], names
        os.close(netns)
        with pytest.raises(Conflict, match="attached already"):
            n.manager.attach_container("w")
        n.manager.detach("w")
        n.manager.detach("w")
        os.close(mine)


def scenario_nft_program():
    """Where libnftables is missing, the program does the same."""
    nft = Nft(program=True)
    elements = [rules.gateway("abc123", "10.90.0.1")]
    nft.apply(*rules.tables("abc123", "10.90.0.0/16", elements))
    nft.delete(elements)
    with pytest.raises(FileNotFoundError):
        nft.delete(elements)
    nft.add(elements)
    assert len([item for item in nft.list_json("chains") if "chain" in item]) == 7
    nft.remove(*(("ip", "knarr_abc123"), ("bridge", "knarr_abc123"), ("ip", "never_was")))
    assert not [item for item in nft.list_json("tables") if "table" in item]


def scenario_forward_drop():
    assert check.forward_drops() == ()
    chain = Chain("FORWARD", (), "type filter hook forward priority filter; policy drop;")
    Nft().apply(Table("ip", "filter", (), (chain,)))
    assert check.forward_drops() == ("nftables chain ip filter FORWARD",)


if __name__ == "__main__":
    globals()[f"scenario_{sys.argv[1]}"]()
