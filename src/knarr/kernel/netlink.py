"""rtnetlink: links, addresses, routes and forwarding entries, by our own codec.

`attribute`, `Message` and the builders make bytes and need no socket; `Route` is the small request and reply
socket. Several messages cross in one `send`, and every refusal is an OSError with the object's name and the
kernel's own explanation (extended ack).

Out of scope: nftables (`kernel.nft`), monitoring, and any decision about names or addresses. A link is never
looked up by dumping them all, because that grows with their number, except in `Route.links` for cold paths.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# linux/netlink.h, linux/rtnetlink.h
_NETLINK_ROUTE: Final = 0
_SOL_NETLINK: Final = 270
_NETLINK_CAP_ACK: Final = 10
_NETLINK_EXT_ACK: Final = 11
_NETLINK_GET_STRICT_CHK: Final = 12
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_REQUEST: Final = 0x1
_ACK: Final = 0x4
_DUMP: Final = 0x300
_REPLACE: Final = 0x100
_EXCL: Final = 0x200
_CREATE: Final = 0x400
_CAPPED: Final = 0x100
_ACK_TLVS: Final = 0x200
_NESTED: Final = 0x8000
_TYPE_MASK: Final = 0x3FFF

NEWLINK: Final = 16
DELLINK: Final = 17
GETLINK: Final = 18
SETLINK: Final = 19
NEWADDR: Final = 20
DELADDR: Final = 21
NEWROUTE: Final = 24
NEWNEIGH: Final = 28
DELNEIGH: Final = 29

# linux/if_link.h
IFLA_ADDRESS: Final = 1
IFLA_IFNAME: Final = 3
IFLA_MTU: Final = 4
IFLA_MASTER: Final = 10
IFLA_PROTINFO: Final = 12
IFLA_LINKINFO: Final = 18
IFLA_AF_SPEC: Final = 26
IFLA_NET_NS_FD: Final = 28
_IFLA_EXT_MASK: Final = 29
_SKIP_STATISTICS: Final = 1 << 3
_INFO_KIND: Final = 1
_INFO_DATA: Final = 2
_VETH_PEER: Final = 1
_BR_FORWARD_DELAY: Final = 1
_BR_AGEING_TIME: Final = 4
_BR_STP_STATE: Final = 5
_BR_MCAST_SNOOPING: Final = 23
_BR_MULTI_BOOLOPT: Final = 46
_BOOLOPT_NO_LL_LEARN: Final = 1
_BRPORT_MODE: Final = 4
_BRPORT_LEARNING: Final = 8
_BRPORT_UNICAST_FLOOD: Final = 9
_INET6_ADDR_GEN_MODE: Final = 8
_ADDR_GEN_NONE: Final = 1

_IFF_UP: Final = 0x1
_AF_BRIDGE: Final = 7
_NUD_NOARP: Final = 0x40
_NTF_MASTER: Final = 0x04
_RT_TABLE_MAIN: Final = 254
_RTPROT_STATIC: Final = 4
_RTN_UNICAST: Final = 1
_RECEIVE: Final = 1 << 18


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute: u16 length, u16 type, payload, padded to four bytes."""
    size = 4 + len(payload)
    return struct.pack("=HH", size, kind) + payload + b"\0" * (-size % 4)


def nested(kind: int, *inner: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(inner))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def u8(kind: int, value: int) -> bytes:
    return attribute(kind, bytes((value,)))


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The (type without flags, payload) pairs in `data`; stops at the first malformed one."""
    offset = 0
    while offset + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, offset)
        if size < 4 or offset + size > len(data):
            return
        yield kind & _TYPE_MASK, data[offset + 4 : offset + size]
        offset += (size + 3) & ~3


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


@dataclass(frozen=True, slots=True)
class Message:
    """One request; `name` is what an error calls it."""

    kind: int
    body: bytes
    name: str
    flags: int = 0

    def encode(self, sequence: int) -> bytes:
        flags = self.flags | _REQUEST | _ACK
        size = 16 + len(self.body)
        return struct.pack("=IHHII", size, self.kind, flags, sequence, 0) + self.body + b"\0" * (-size % 4)


@dataclass(frozen=True, slots=True)
class Link:
    index: int
    name: str
    mac: str
    up: bool
    master: int
    kind: str


def _ifinfo(*, index: int = 0, up: bool | None = None, family: int = 0) -> bytes:
    change = 0 if up is None else _IFF_UP
    return struct.pack("=BxHiII", family, 0, index, _IFF_UP if up else 0, change)


def new_bridge(name: str, *, mac: str, mtu: int = 1500) -> Message:
    """A bridge that neither delays ports, nor snoops multicast, nor learns from link-local frames.

    Link-local frames (01:80:c2:…) would otherwise reach the learning code past the prerouting hook, where
    spoofed sources are dropped.
    """
    data = nested(
        _INFO_DATA,
        u32(_BR_FORWARD_DELAY, 0),
        u32(_BR_STP_STATE, 0),
        u8(_BR_MCAST_SNOOPING, 0),
        attribute(_BR_MULTI_BOOLOPT, struct.pack("=II", _BOOLOPT_NO_LL_LEARN, _BOOLOPT_NO_LL_LEARN)),
    )
    body = (
        _ifinfo()
        + text(IFLA_IFNAME, name)
        + attribute(IFLA_ADDRESS, mac_bytes(mac))
        + u32(IFLA_MTU, mtu)
        + nested(IFLA_LINKINFO, text(_INFO_KIND, "bridge"), data)
    )
    return Message(NEWLINK, body, f"bridge {name}", _CREATE | _EXCL)


def new_veth(name: str, *, peer: str, peer_netns: int, peer_mac: str, mtu: int = 1500) -> Message:
    """A veth pair whose `peer` is made inside the namespace `peer_netns` (a descriptor)."""
    inner = (
        _ifinfo()
        + text(IFLA_IFNAME, peer)
        + attribute(IFLA_ADDRESS, mac_bytes(peer_mac))
        + u32(IFLA_MTU, mtu)
        + u32(IFLA_NET_NS_FD, peer_netns)
    )
    data = nested(_INFO_DATA, attribute(_VETH_PEER, inner))
    body = (
        _ifinfo()
        + text(IFLA_IFNAME, name)
        + u32(IFLA_MTU, mtu)
        + nested(IFLA_LINKINFO, text(_INFO_KIND, "veth"), data)
    )
    return Message(NEWLINK, body, f"veth {name}", _CREATE | _EXCL)


def set_link(
    index: int,
    *,
    name: str = "",
    up: bool | None = None,
    master: int | None = None,
    mac: str | None = None,
    mtu: int | None = None,
    no_ipv6: bool = False,
) -> Message:
    """Change a link, by index or (index 0) by name. `no_ipv6`: going up gives it no link-local address."""
    body = _ifinfo(index=index, up=up)
    if not index:
        body += text(IFLA_IFNAME, name)
    if master is not None:
        body += u32(IFLA_MASTER, master)
    if mac is not None:
        body += attribute(IFLA_ADDRESS, mac_bytes(mac))
    if mtu is not None:
        body += u32(IFLA_MTU, mtu)
    if no_ipv6:
        mode = u8(_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE)
        body += nested(IFLA_AF_SPEC, nested(socket.AF_INET6, mode))
    return Message(NEWLINK, body, f"link {name or index}")


def set_port(index: int, *, learning: bool, flood: bool, hairpin: bool = False, name: str = "") -> Message:
    """Whether a bridge's port learns source addresses, gets unknown unicast, gets back what it sent."""
    settings = nested(
        IFLA_PROTINFO,
        u8(_BRPORT_LEARNING, int(learning)),
        u8(_BRPORT_UNICAST_FLOOD, int(flood)),
        u8(_BRPORT_MODE, int(hairpin)),
    )
    return Message(SETLINK, _ifinfo(index=index, family=_AF_BRIDGE) + settings, f"port {name or index}")


def delete_link(name: str) -> Message:
    return Message(DELLINK, _ifinfo() + text(IFLA_IFNAME, name), f"link {name}")


def get_link(name: str) -> Message:
    body = _ifinfo() + text(IFLA_IFNAME, name) + u32(_IFLA_EXT_MASK, _SKIP_STATISTICS)
    return Message(GETLINK, body, f"link {name}")


def new_address(index: int, address: str, prefix: int, *, broadcast: str | None = None) -> Message:
    packed = socket.inet_aton(address)
    body = struct.pack("=BBBBi", socket.AF_INET, prefix, 0, 0, index)
    body += attribute(2, packed) + attribute(1, packed)  # IFA_LOCAL, IFA_ADDRESS
    if broadcast is not None:
        body += attribute(4, socket.inet_aton(broadcast))
    return Message(NEWADDR, body, f"address {address}/{prefix}", _CREATE | _REPLACE)


def new_route(gateway: str, index: int, *, destination: str = "0.0.0.0", prefix: int = 0) -> Message:
    """An IPv4 route by way of `gateway`; by default the default route."""
    body = struct.pack(
        "=BBBBBBBBI", socket.AF_INET, prefix, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, 0, _RTN_UNICAST, 0
    )
    if prefix:
        body += attribute(1, socket.inet_aton(destination))
    body += attribute(5, socket.inet_aton(gateway)) + u32(4, index)  # RTA_GATEWAY, RTA_OIF
    return Message(NEWROUTE, body, f"route {destination}/{prefix} via {gateway}", _CREATE | _REPLACE)


def new_forwarding_entry(index: int, mac: str) -> Message:
    """A permanent entry of the bridge's table: `mac` is behind the port `index`."""
    body = struct.pack("=BxxxiHBB", _AF_BRIDGE, index, _NUD_NOARP, _NTF_MASTER, 0)
    return Message(NEWNEIGH, body + attribute(2, mac_bytes(mac)), f"port of {mac}", _CREATE | _REPLACE)


def _link(body: bytes) -> Link:
    _, index, flags = struct.unpack_from("=HxxiI", body)
    found = dict(attributes(body[16:]))
    info = dict(attributes(found.get(IFLA_LINKINFO, b"")))
    return Link(
        index=index,
        name=found.get(IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace"),
        mac=found.get(IFLA_ADDRESS, b"").hex(":"),
        up=bool(flags & _IFF_UP),
        master=struct.unpack("=I", found[IFLA_MASTER])[0] if IFLA_MASTER in found else 0,
        kind=info.get(_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace"),
    )


def refusal(body: bytes, flags: int) -> tuple[int, str]:
    """(errno, the kernel's explanation or "") of an NLMSG_ERROR's body; errno 0 is the acknowledgement."""
    (code,) = struct.unpack_from("=i", body)
    if not flags & _ACK_TLVS:
        return -code, ""
    (size,) = struct.unpack_from("=I", body, 4)
    offset = 20 if flags & _CAPPED else 4 + ((size + 3) & ~3)
    told = dict(attributes(body[offset:])).get(1, b"")
    return -code, told.rstrip(b"\0").decode(errors="replace")


class Route:
    """A rtnetlink socket of the network namespace that the calling thread is in when it is made.

    It goes on speaking for that namespace whichever thread uses it. Not for use by two threads at a time.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
        self._sequence = 0
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def do(self, *messages: Message) -> list[bytes]:
        """Have the kernel do all, in order, in one send; the first refusal is raised after all answers came.

        The kernel goes on after a refused message: a caller that needs all or nothing undoes what was done.
        """
        return self._collect(messages, self._send(messages))

    def link(self, name: str) -> Link:
        """Raises OSError ENODEV when there is none."""
        return _link(self.do(get_link(name))[0])

    def index(self, name: str) -> int:
        """Only that: the other forty attributes of a link need not be taken apart."""
        (found,) = struct.unpack_from("=i", self.do(get_link(name))[0], 4)
        return int(found)

    def exists(self, name: str) -> bool:
        try:
            self.link(name)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return False
            raise
        return True

    def links(self) -> list[Link]:
        """All of them: for start, close and checks, never on a path that repeats."""
        dump = Message(GETLINK, _ifinfo(), "links", _DUMP)
        return [_link(body) for body in self._collect((dump,), self._send((dump,)))]

    def _send(self, messages: Sequence[Message]) -> int:
        first = self._sequence + 1
        self._sequence += len(messages)
        self._socket.send(b"".join(item.encode(first + place) for place, item in enumerate(messages)))
        return first

    def _collect(self, messages: Sequence[Message], first: int) -> list[bytes]:
        bodies: list[bytes] = []
        waiting = len(messages)
        failure: OSError | None = None
        while waiting:
            for kind, flags, sequence, body in split(self._socket.recv(_RECEIVE)):
                place = sequence - first
                if not 0 <= place < len(messages):
                    continue
                if kind not in (_NLMSG_ERROR, _NLMSG_DONE):
                    bodies.append(body)
                    continue
                waiting -= 1
                code, told = refusal(body, flags) if kind == _NLMSG_ERROR else (0, "")
                if code and failure is None:
                    failure = _error(messages[place].name, code, told)
        if failure is not None:
            raise failure
        return bodies


def split(data: bytes) -> Iterable[tuple[int, int, int, bytes]]:
    """(type, flags, sequence, body) of each message in a received datagram."""
    offset = 0
    while offset + 16 <= len(data):
        size, kind, flags, sequence, _ = struct.unpack_from("=IHHII", data, offset)
        yield kind, flags, sequence, data[offset + 16 : offset + size]
        offset += (size + 3) & ~3


def _error(name: str, code: int, told: str) -> OSError:
    words = f"{os.strerror(code)} ({told})" if told else os.strerror(code)
    return OSError(code, words, name)
