"""The nftables rules of one instance, as values: NAT, published ports, forwarding, and anti-spoofing.

Two tables: `ip knarr_<id>` for what is routed and `bridge knarr_<id>` for what enters from a port. Ports,
addresses and publications are elements of sets and maps: the rules never change as workloads come and go.

Policy that stands here:
* a port sends IPv4 and ARP only, from its own MAC and address; no DHCP answers, no IPv6 (so no router
  advertisements), no VLAN tags;
* workloads don't reach 127.0.0.0/8 of the host (route_localnet on the bridge would let them) nor
  169.254.0.0/16, where clouds serve credentials;
* what was not published is not reachable through the host: new connections from outside need DNAT;
* the gateway address, where names are answered, is reachable from our bridges and the host only.

Out of scope: applying any of it (`networks.manager`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from knarr.kernel.nft import Chain, Element, Set, Table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from knarr.model.resource import Attachment
    from knarr.model.workload import PortMapping

_SOURCES: Final = "sources"
_ANY: Final = "published"
_AT: Final = "published_at"
GATEWAYS: Final = "gateways"
UPLINKS: Final = "uplinks"
ANY_ADDRESS: Final = ("", "0.0.0.0")
_KINDS: Final = {
    _SOURCES: "ifname . ether_addr . ipv4_addr",
    _ANY: "inet_proto . inet_service : ipv4_addr . inet_service",
    _AT: "ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service",
    GATEWAYS: "ipv4_addr",
    UPLINKS: "ifname",
}


def table_name(instance: str) -> str:
    return f"knarr_{instance}"


def _element(table: str, name: str, key: tuple[str, ...], value: tuple[str, ...] = ()) -> Element:
    return Element(table, name, key, value, _KINDS[name])


def source(instance: str, attachment: Attachment) -> Element:
    """What a port may send from."""
    key = (attachment.link, attachment.mac, attachment.address)
    return _element(f"bridge {table_name(instance)}", _SOURCES, key)


def published(instance: str, address: str, port: PortMapping) -> Element:
    """Where a published port leads."""
    table = f"ip {table_name(instance)}"
    value = (address, str(port.container_port))
    if port.host_ip in ANY_ADDRESS:
        return _element(table, _ANY, (port.protocol, str(port.host_port)), value)
    return _element(table, _AT, (port.host_ip, port.protocol, str(port.host_port)), value)


def gateway(instance: str, address: str) -> Element:
    return _element(f"ip {table_name(instance)}", GATEWAYS, (address,))


def uplink(instance: str, name: str) -> Element:
    return _element(f"ip {table_name(instance)}", UPLINKS, (name,))


def tables(instance: str, pool: str, elements: Iterable[Element]) -> tuple[Table, Table]:
    """Both tables, complete: applied in one transaction they leave no moment without rules."""
    by_set: dict[str, list[str]] = {}
    for element in elements:
        by_set.setdefault(element.set, []).append(element.text(with_value=True))

    def make(name: str) -> Set:
        return Set(name, _KINDS[name], tuple(by_set.get(name, ())))

    routed = Table(
        "ip",
        table_name(instance),
        sets=(
            make(_ANY),
            make(_AT),
            make(GATEWAYS),
            make(UPLINKS),
        ),
        chains=(*_filters(f'"kn{instance}br*"'), *_nat(f'"kn{instance}br*"', pool)),
    )
    spoofing = Table(
        "bridge", table_name(instance), sets=(make(_SOURCES),), chains=(_ports(f'"kn{instance}p*"'),)
    )
    return routed, spoofing


def _filters(bridges: str) -> tuple[Chain, ...]:
    raw = Chain(
        "raw",
        (
            f"iifname {bridges} ip saddr 127.0.0.0/8 counter drop",
            f"iifname {bridges} ip daddr {{ 127.0.0.0/8, 169.254.0.0/16 }} counter drop",
            f'iifname != {bridges} iifname != "lo" ip daddr @{GATEWAYS} counter drop',
        ),
        hook="type filter hook prerouting priority raw; policy accept;",
    )
    forward = Chain(
        "forward",
        (
            f"iifname {bridges} ct state invalid counter drop",
            f"iifname {bridges} accept",
            f"oifname {bridges} ct state established,related accept",
            f"oifname {bridges} ct status dnat accept",
            f"oifname {bridges} counter drop",
            # Forwarding that we switched on for our own sake must not make a router of this host.
            f"iifname @{UPLINKS} oifname @{UPLINKS} counter drop",
        ),
        hook="type filter hook forward priority filter; policy accept;",
    )
    return raw, forward


def _nat(bridges: str, pool: str) -> tuple[Chain, ...]:
    publish = Chain(
        "publish",
        (
            f"dnat ip to ip daddr . meta l4proto . th dport map @{_AT}",
            f"dnat ip to meta l4proto . th dport map @{_ANY}",
        ),
    )
    arriving = Chain(
        "arriving",
        ("meta l4proto { tcp, udp } fib daddr type local jump publish",),
        hook="type nat hook prerouting priority dstnat; policy accept;",
    )
    own = Chain(
        "own",
        ("meta l4proto { tcp, udp } fib daddr type local jump publish",),
        hook="type nat hook output priority -100; policy accept;",
    )
    leaving = Chain(
        "leaving",
        (
            f"ip saddr {pool} oifname != {bridges} masquerade",
            f"ip saddr 127.0.0.0/8 oifname {bridges} masquerade",
            # A workload that calls a published port of its neighbour must get the answer from the host.
            f"ip saddr {pool} oifname {bridges} ct status dnat masquerade",
        ),
        hook="type nat hook postrouting priority srcnat; policy accept;",
    )
    return publish, arriving, own, leaving


def _ports(ports: str) -> Chain:
    return Chain(
        "ports",
        (
            f"iifname != {ports} accept",
            "ether type ip udp sport 67 counter drop",
            f"ether type ip iifname . ether saddr . ip saddr @{_SOURCES} accept",
            "ether type arp arp operation != { request, reply } counter drop",
            f"ether type arp iifname . ether saddr . arp saddr ip != @{_SOURCES} counter drop",
            f"ether type arp iifname . arp saddr ether . arp saddr ip @{_SOURCES} accept",
            "counter drop",
        ),
        hook="type filter hook prerouting priority -300; policy accept;",
    )
