"""Address pools: which IPv4 address, MAC and link name a port gets. Pure arithmetic, no I/O.

One instance owns a /16. It is cut into /22s, one per bridge, because a bridge holds at most 1,023 ports.
Freed addresses are used again last, so that nobody meets the neighbour table's memory of the one before.

Out of scope: finding a free /16 (`networks.host`), and remembering addresses on disk (the engine's records
do).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

from knarr.model.errors import Conflict, Unavailable
from knarr.model.resource import Attachment

BRIDGE_PREFIX: Final = 22
PORTS_PER_BRIDGE: Final = 1000
_MAC_START: Final = "02:6b"


@dataclass(frozen=True, slots=True)
class Subnet:
    """One bridge's share of the pool."""

    number: int
    network: ipaddress.IPv4Network
    bridge: str

    @property
    def gateway(self) -> str:
        return str(self.network[1])

    @property
    def mac(self) -> str:
        return mac_of(self.network[1])


def mac_of(address: ipaddress.IPv4Address) -> str:
    """A locally administered MAC that follows from the address: neither can be had without the other."""
    return f"{_MAC_START}:{address.packed.hex(':')}"


class AddressPool:
    """The addresses of one instance. Not for use by two threads at a time."""

    def __init__(self, instance: str, pool: str) -> None:
        self.network = ipaddress.IPv4Network(pool)
        self._instance = instance
        self._shares = list(self.network.subnets(new_prefix=BRIDGE_PREFIX))
        self._free: list[dict[int, None]] = []
        self.subnets: list[Subnet] = []

    @property
    def link_prefix(self) -> str:
        return f"kn{self._instance}p"

    def add_bridge(self) -> Subnet:
        """Open the next share. Raises `Unavailable` when the pool has no more."""
        number = len(self.subnets)
        if number == len(self._shares):
            raise Unavailable(f"network {self.network} is full", hint="remove workloads that are not needed")
        subnet = Subnet(number, self._shares[number], f"kn{self._instance}br{number}")
        self.subnets.append(subnet)
        self._free.append(dict.fromkeys(range(2, 2 + PORTS_PER_BRIDGE)))
        return subnet

    def allocate(self) -> Attachment | None:
        """The longest unused address, or None when every bridge is full."""
        for number, free in enumerate(self._free):
            if free:
                offset = next(iter(free))
                del free[offset]
                return self._attachment(number, offset)
        return None

    def claim(self, attachment: Attachment) -> Attachment:
        """Take exactly the address that `attachment` has. Raises `Conflict` when it is taken or not ours."""
        place = self._place(attachment.address)
        if place is None:
            raise Conflict(f"address {attachment.address} is not in {self.network}")
        number, offset = place
        while len(self.subnets) <= number:
            self.add_bridge()
        if offset not in self._free[number]:
            raise Conflict(f"address {attachment.address} is in use")
        del self._free[number][offset]
        return self._attachment(number, offset)

    def release(self, address: str) -> None:
        """Give an address back; one that is free already or not ours is left alone."""
        place = self._place(address)
        if place is not None and place[0] < len(self._free):
            self._free[place[0]].setdefault(place[1])

    def put_last(self, address: str) -> None:
        """Let a free address be the last that is given to somebody."""
        place = self._place(address)
        if place is not None and place[0] < len(self._free) and place[1] in self._free[place[0]]:
            del self._free[place[0]][place[1]]
            self._free[place[0]][place[1]] = None

    def _place(self, address: str) -> tuple[int, int] | None:
        try:
            value = ipaddress.IPv4Address(address)
        except ValueError:
            return None
        if value not in self.network:
            return None
        number, offset = divmod(int(value) - int(self.network[0]), 1 << (32 - BRIDGE_PREFIX))
        return (number, offset) if 2 <= offset < 2 + PORTS_PER_BRIDGE else None

    def _attachment(self, number: int, offset: int) -> Attachment:
        subnet = self.subnets[number]
        address = subnet.network[offset]
        position = int(address) - int(self.network[0])
        return Attachment(
            address=str(address),
            prefix=BRIDGE_PREFIX,
            gateway=subnet.gateway,
            mac=mac_of(address),
            bridge=subnet.bridge,
            link=f"{self.link_prefix}{position:x}",
            dns=(self.subnets[0].gateway,),
        )
