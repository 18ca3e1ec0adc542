from __future__ import annotations

import errno
import struct

from hypothesis import given
from hypothesis import strategies as st

from knarr.kernel import netlink
from knarr.kernel.nft import Chain, Element, Set, Table


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), max_size=8))
def test_attributes_come_back(items):
    data = b"".join(netlink.attribute(kind, payload) for kind, payload in items)
    assert len(data) % 4 == 0
    assert list(netlink.attributes(data)) == items


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(data):
    list(netlink.attributes(data))


def test_a_message_is_framed():
    data = netlink.Message(netlink.NEWLINK, b"abcde", "x", 0x400).encode(7)
    size, kind, flags, sequence, port = struct.unpack_from("=IHHII", data)
    assert (size, kind, flags, sequence, port) == (21, netlink.NEWLINK, 0x405, 7, 0)
    assert len(data) == 24


def test_the_kernels_explanation_is_found():
    told = netlink.attribute(1, b"Nexthop has invalid gateway\0")
    capped = struct.pack("=i", -errno.ENETUNREACH) + b"\0" * 16 + told
    assert netlink.refusal(capped, 0x300) == (errno.ENETUNREACH, "Nexthop has invalid gateway")
    whole = struct.pack("=iIHHII", -errno.EEXIST, 20, 0, 0, 0, 0) + b"body" + told
    assert netlink.refusal(whole, 0x200) == (errno.EEXIST, "Nexthop has invalid gateway")
    assert netlink.refusal(struct.pack("=i", 0), 0) == (0, "")


def test_a_missing_link_is_named():
    with netlink.Route() as route:
        assert route.link("lo").index == 1
        assert not route.exists("kn-no-such-link")


def test_a_table_renders_as_one_replacement():
    table = Table(
        "ip",
        "t",
        (Set("s", "ipv4_addr", ("1.2.3.4",)),),
        (Chain("c", ("accept",), "type filter hook input priority 0;"),),
    )
    assert table.render() == (
        "table ip t {}\ndelete table ip t\ntable ip t {\n"
        "  set s { type ipv4_addr; elements = { 1.2.3.4 } }\n"
        "  chain c {\n    type filter hook input priority 0;\n    accept\n  }\n}\n"
    )
    element = Element("ip t", "m", ("tcp", "80"), ("10.0.0.1", "81"))
    assert element.render(with_value=True) == "element ip t m { tcp . 80 : 10.0.0.1 . 81 }\n"
    assert element.render(with_value=False) == "element ip t m { tcp . 80 }\n"
