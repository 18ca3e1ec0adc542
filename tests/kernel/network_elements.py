"""What test_networks.py runs about the elements of sets: our netlink codec against libnftables' reading."""

from __future__ import annotations

import errno
import sys
import time

from knarr.kernel import nfset
from knarr.kernel.nft import Element, Nft, Set, Table

KINDS = {
    "ports": "ifname . ether_addr . ipv4_addr",
    "any": "inet_proto . inet_service : ipv4_addr . inet_service",
    "at": "ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service",
    "one": "ipv4_addr",
    "links": "ifname",
}
CASES = (
    ("ports", ("knabc123p1", "02:6b:0a:5a:00:01", "10.90.0.2"), ()),
    ("any", ("tcp", "80"), ("10.90.0.2", "8080")),
    ("any", ("udp", "65535"), ("10.90.0.2", "1")),
    ("at", ("127.0.0.1", "tcp", "443"), ("10.90.0.3", "443")),
    ("one", ("192.0.2.1",), ()),
    ("links", ("eth0",), ()),
)


def _table(name, family="ip"):
    return Table(family, name, tuple(Set(key, kind) for key, kind in KINDS.items()))


def _elements(table, *, native):
    return [Element(table, name, key, value, KINDS[name] if native else "") for name, key, value in CASES]


def _content(nft, family, table):
    found = nft.list_json(f"table {family} {table}")
    sets = [item.get("set") or item.get("map") for item in found]
    return {item["name"]: item.get("elem") for item in sets if item}


def refusal(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        return error
    raise AssertionError("it was not refused")


def scenario_ours_is_libnftables():
    nft = Nft()
    for family in ("ip", "bridge"):
        assert not nft.has_table(family, "ours")
        nft.apply(_table("ours", family), _table("theirs", family))
        assert nft.has_table(family, "ours")
        assert not nft.has_table(family, "our")
        nft.add(_elements(f"{family} ours", native=True))
        nft.add(_elements(f"{family} theirs", native=False))
        content = _content(nft, family, "ours")
        assert all(content.values()), content
        assert content == _content(nft, family, "theirs")
        nft.delete(_elements(f"{family} theirs", native=True))
        nft.delete(_elements(f"{family} ours", native=False))
        assert not any(_content(nft, family, "theirs").values())
        assert not any(_content(nft, family, "ours").values())
    nft.close()


def scenario_all_or_none():
    nft = Nft()
    nft.apply(_table("t"))
    one, other = (Element("ip t", "one", (f"10.0.0.{end}",), (), "ipv4_addr") for end in (1, 2))
    nft.add([one])
    nft.add([one])
    assert refusal(nft.delete, [one, other]).errno == errno.ENOENT
    assert _content(nft, "ip", "t")["one"] == ["10.0.0.1"]
    missing = Element("ip t", "no-such-set", ("10.0.0.1",), (), "ipv4_addr")
    error = refusal(nft.add, [other, missing])
    assert error.errno == errno.ENOENT
    assert error.filename == "no-such-set 10.0.0.1"
    assert _content(nft, "ip", "t")["one"] == ["10.0.0.1"]
    port = ("tcp", "80")
    nft.add([Element("ip t", "any", port, ("10.0.0.1", "80"), KINDS["any"])])
    assert (
        refusal(nft.add, [Element("ip t", "any", port, ("10.0.0.2", "80"), KINDS["any"])]).errno
        == errno.EEXIST
    )
    many = [Element("ip t", "one", (f"10.1.{n >> 8}.{n & 255}",), (), "ipv4_addr") for n in range(1000)]
    nft.add(many[: nfset.MOST])
    nft.add(many)
    assert len(_content(nft, "ip", "t")["one"]) == 1001
    nft.delete(many[: nfset.MOST])
    assert len(_content(nft, "ip", "t")["one"]) == 801
    nft.close()


def scenario_cost_is_not_the_hosts():
    nft = Nft()
    nft.apply(*(_table(f"t{number}") for number in range(50)))
    element = Element("ip t7", "one", ("10.0.0.1",), (), "ipv4_addr")
    nft.add([element])
    nft.delete([element])
    started = time.process_time()
    for _ in range(100):
        nft.add([element])
        nft.delete([element])
    each = (time.process_time() - started) / 200 * 1000
    print(f"{each:.3f} ms of processor for one element")
    assert each < 0.5
    nft.close()


if __name__ == "__main__":
    globals()[f"scenario_{sys.argv[1]}"]()
