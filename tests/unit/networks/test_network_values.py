from __future__ import annotations

import fcntl
import os

import pytest

from knarr.model.errors import Conflict, Invalid, Unavailable, Unsupported
from knarr.model.workload import NetworkMode, PortMapping
from knarr.networks import published, rules
from knarr.networks.addresses import PORTS_PER_BRIDGE, AddressPool
from knarr.networks.etc import prepare_etc
from knarr.networks.host import HostClaims, LocalStore
from knarr.networks.zone import Zone, ZoneWriter


def pool() -> AddressPool:
    made = AddressPool("abc123", "10.90.0.0/16")
    made.add_bridge()
    return made


def test_an_address_is_used_again_last():
    p = pool()
    first = p.allocate()
    assert first is not None
    assert (first.address, first.gateway, first.prefix) == ("10.90.0.2", "10.90.0.1", 22)
    p.release(first.address)
    seen = [p.allocate() for _ in range(PORTS_PER_BRIDGE)]
    assert seen[-1] == first
    assert p.allocate() is None


def test_names_of_links_fit_and_differ():
    p = pool()
    while len(p.subnets) < 64:
        p.add_bridge()
    links = [a.link for a in iter(p.allocate, None)]
    assert len(set(links)) == 64 * PORTS_PER_BRIDGE
    assert max(map(len, links + [s.bridge for s in p.subnets])) <= 15
    with pytest.raises(Unavailable):
        p.add_bridge()


def test_claiming():
    p = pool()
    first = p.allocate()
    with pytest.raises(Conflict, match="in use"):
        p.claim(first)
    p.release(first.address)
    assert p.claim(first) == first
    other = AddressPool("abc123", "10.91.0.0/16")
    with pytest.raises(Conflict, match="not in"):
        other.claim(first)
    p.release("10.90.255.255")
    p.release("nonsense")


def test_a_claim_on_a_later_bridge_opens_it():
    p = pool()
    p.add_bridge()
    far = [p.allocate() for _ in range(PORTS_PER_BRIDGE + 1)][-1]
    q = pool()
    assert q.claim(far) == far
    assert len(q.subnets) == 2


def test_the_zone_is_read_on_and_anew(tmp_path):
    path = str(tmp_path / "dns" / "zone")
    writer, reader = ZoneWriter(path, "10.90.0.0/16"), Zone(path)
    reader.refresh()
    assert reader.addresses == {}
    writer.replace({"a": ("10.90.0.2", ("One", "bad name", "x" * 64))})
    writer.set("b", "10.90.0.3", ("one", "two"))
    reader.refresh()
    assert reader.addresses == {"one": ["10.90.0.2", "10.90.0.3"], "two": ["10.90.0.3"]}
    assert reader.names == {"10.90.0.2": "one", "10.90.0.3": "one"}
    writer.drop("a")
    writer.drop("a")
    reader.refresh()
    assert reader.addresses["one"] == ["10.90.0.3"]
    for turn in range(3000):
        writer.set("c", f"10.90.1.{turn % 200}", ("three",))
    assert os.path.getsize(path) < 60_000, "not compacted"
    reader.refresh()
    assert reader.addresses["three"] == ["10.90.1.199"]
    with open(path, "ab") as file:
        file.write(b"+ torn 10.90.0")
    reader.refresh()
    assert "torn" not in str(reader.addresses)
    writer.close()


def test_the_files_in_etc(tmp_path):
    attachment = pool().allocate()
    files = prepare_etc(str(tmp_path), "box", attachment)
    assert sorted(files) == ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"]
    assert (tmp_path / "resolv.conf").read_text().startswith("nameserver 10.90.0.1\n")
    assert "10.90.0.2\tbox\n" in (tmp_path / "hosts").read_text()
    inode = os.stat(tmp_path / "hosts").st_ino
    prepare_etc(str(tmp_path), "box", None, NetworkMode.NONE)
    assert os.stat(tmp_path / "hosts").st_ino == inode, "a running container has this inode mounted"
    assert (tmp_path / "resolv.conf").read_text() == ""
    assert "127.0.0.1\tlocalhost" in (tmp_path / "hosts").read_text()


def test_etc_hosts_takes_no_line_break(tmp_path):
    prepare_etc(str(tmp_path), "a\n6.6.6.6 bank", pool().allocate())
    assert "6.6.6.6" not in (tmp_path / "hosts").read_text()


@pytest.mark.parametrize(
    ("port", "error"),
    [
        (PortMapping(container_port=80, protocol="sctp"), Unsupported),
        (PortMapping(container_port=0), Invalid),
        (PortMapping(container_port=80, host_port=70000), Invalid),
        (PortMapping(container_port=80, host_ip="nowhere"), Invalid),
        (PortMapping(container_port=80, host_ip="::1"), Unsupported),
        (PortMapping(container_port=80, host_ip="203.0.113.9"), Invalid),
    ],
)
def test_ports_that_can_not_be_published(port, error):
    store = LocalStore()
    with pytest.raises(error):
        published.reserve((PortMapping(container_port=80, host_ip="127.0.0.1"), port), store)
    assert store.list() == []


def test_a_port_is_reserved_until_released():
    store = LocalStore()
    (port,) = published.reserve((PortMapping(container_port=80, host_ip="127.0.0.1"),), store)
    with pytest.raises(Conflict, match=f"port {port.host_port}/tcp is in use on 127.0.0.1"):
        published.reserve((port,), store)
    published.release((port,), store)
    published.release(published.reserve((port,), store), store)


def test_pools_are_claimed_once(tmp_path):
    stores = [LocalStore(), LocalStore()]
    one, two = (HostClaims(name, store, str(tmp_path)) for name, store in zip("ab", stores, strict=True))
    first = one.claim_pool(None)
    assert one.claim_pool(first) == first
    second = two.claim_pool(first)
    assert second != first
    # an instance that was killed leaves its file, but not its lock
    stores[0].delete("lock/network")
    assert HostClaims("c", LocalStore(), str(tmp_path)).claim_pool(first) == first
    with open(tmp_path / f"pool-{second.replace('/', '-')}") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_rules_have_nothing_of_the_outside_in_them():
    port = PortMapping(container_port=80, host_port=8080, host_ip="127.0.0.1; flush ruleset")
    with pytest.raises(OSError, match="not an nftables word"):
        rules.published("abc123", "10.90.0.2", port).render(with_value=True)
