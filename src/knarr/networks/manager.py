"""The network of one instance: bridges, ports of containers and VMs, published ports, names.

Synchronous; `attach_container` with a slot ready, `set_names` and `detach` are fast enough for the daemon's
event loop, the rest takes some milliseconds. What must outlive the daemon lives in the kernel (bridges,
tables), in the descriptor store (port reservations, the resolver's sockets, the pool's lock) and in
RUN/network.json.

Out of scope: which workload wants what (the engine), and the guest's own configuration: a VM's agent sets the
address that its `Attachment` names.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from knarr.kernel import netlink
from knarr.kernel.nft import Nft
from knarr.model.errors import Conflict, Failed, KnarrError
from knarr.networks import host, published, rules, taps
from knarr.networks.addresses import BRIDGE_PREFIX, AddressPool, Subnet
from knarr.networks.etc import prepare_etc
from knarr.networks.slots import Slots
from knarr.networks.zone import ZoneWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from knarr.kernel.nft import Element
    from knarr.model.resource import Attachment
    from knarr.model.workload import PortMapping
    from knarr.networks.host import FdStore

__all__ = ["NetworkManager", "prepare_etc"]

_log = logging.getLogger(__name__)
_DNS: Final = "dns/"
_PAUSES: Final = (0.01, 0.05)
"""seconds: the daemon's event loop may wait here"""
_BRIDGE_SETTINGS: Final = (
    ("ipv6", "disable_ipv6", "1"),
    ("ipv6", "accept_ra", "0"),
    ("ipv4", "rp_filter", "1"),
    ("ipv4", "send_redirects", "0"),
    ("ipv4", "accept_redirects", "0"),
    ("ipv4", "route_localnet", "1"),  # the raw chain keeps workloads away from 127.0.0.0/8
    ("ipv4", "forwarding", "1"),
)

T = TypeVar("T")


@dataclass(slots=True)
class _Port:
    attachment: Attachment
    ports: tuple[PortMapping, ...] = ()


class NetworkManager:
    """`ensure` first; `adopt` right after it when workloads of an earlier daemon live; `close` at the end.

    Without a `store` nothing outlives this process. `lock_folder` is shared by all instances of the host.
    """

    def __init__(
        self, instance: str, run: str, store: FdStore | None = None, *, lock_folder: str = host.DEFAULT_FOLDER
    ) -> None:
        self._instance = instance
        self._run = run
        self._store: FdStore = store or host.LocalStore()
        self._claims = host.HostClaims(instance, self._store, lock_folder)
        self._state = os.path.join(run, "network.json")
        self._route = netlink.Route()
        self._nft = Nft()
        self._slots: Slots | None = None
        self._lock = threading.RLock()
        self._pool: AddressPool
        self._zone: ZoneWriter
        self._bridges: dict[str, int] = {}
        self._uplinks: list[str] = []
        self._ports: dict[str, _Port] = {}

    @property
    def zone_path(self) -> str:
        return os.path.join(self._run, "dns", "zone")

    @property
    def gateway(self) -> str:
        """The address that the resolver answers on."""
        return self._pool.subnets[0].gateway

    @property
    def pool(self) -> str:
        return str(self._pool.network)

    @property
    def slots_ready(self) -> int:
        return self._slots.ready if self._slots else 0

    def ensure(self) -> None:
        """Bridge, tables, forwarding, the resolver's sockets. Idempotent. Raises `Failed`, `Unavailable`."""
        if self._slots is not None:
            return
        remembered, bridges = self._remembered()
        try:
            pool = self._claims.claim_pool(remembered)
            self._pool = AddressPool(self._instance, pool)
            self._zone = ZoneWriter(self.zone_path, pool)
            self._prepare(1 if pool != remembered else bridges)
            self._slots = Slots(self)
        except OSError as error:
            raise _failed("the network can't be set up", error) from error

    def _prepare(self, bridges: int) -> None:
        links = {link.name: link for link in self._route.links()}
        for _ in range(bridges):
            self._make_bridge(self._pool.add_bridge(), links)
        # A table of the daemon before this one stays until `adopt` has the elements to replace it with.
        uplinks = [link for link in host.routed_links() if not link.startswith(f"kn{self._instance}")]
        self._uplinks = self._claims.enable_forwarding([link for link in uplinks if link != "lo"])
        if not self._nft.has_table("ip", rules.table_name(self._instance)):
            self._apply()
        if not os.path.exists(self.zone_path):
            self._zone.replace({})
        self._listen()
        self._remember()

    def attach_container(
        self, workload: str, reserve: Attachment | None = None, *, netns: int | None = None
    ) -> tuple[Attachment, int]:
        """A network namespace, ready to be joined, for the caller to close.

        `reserve` is the attachment of an earlier start: its address is used again unless it was lost since.
        With `netns` (a descriptor, such as one owned by a user namespace) that namespace is set up instead.
        """
        slots = self._begin(workload)
        try:
            if netns is None and reserve is None:
                slot = slots.take()
            else:
                slot = slots.run(slots.make, reserve, netns)
        except OSError as error:
            raise _failed("a network namespace can't be set up", error) from error
        self._ports[workload] = _Port(slot.attachment)
        return slot.attachment, slot.netns

    def attach_vm(self, workload: str, reserve: Attachment | None = None) -> tuple[Attachment, int]:
        """A tap on the bridge, for the caller to hand to QEMU; it vanishes with its last descriptor."""
        slots = self._begin(workload)
        try:
            attachment, fd = slots.run(self._new_tap, reserve)
        except OSError as error:
            raise _failed("a tap can't be set up", error) from error
        self._ports[workload] = _Port(attachment)
        return attachment, fd

    def publish(
        self, workload: str, attachment: Attachment, ports: tuple[PortMapping, ...]
    ) -> tuple[PortMapping, ...]:
        """Lead host ports to the workload; the answer has those chosen. All, or none and an error."""
        with self._lock, ExitStack() as undo:
            chosen = published.reserve(ports, self._store)
            undo.callback(published.release, chosen, self._store)
            try:
                self._nft.add(self._published(attachment, chosen))
            except OSError as error:
                raise _failed("ports can't be published", error) from error
            undo.pop_all()
        self._ports[workload].ports += chosen
        return chosen

    def set_names(self, workload: str, names: tuple[str, ...], address: str) -> None:
        """What the resolver answers for the workload from now on."""
        self._zone.set(workload, address, names)

    def detach(self, workload: str) -> None:
        """Forget names, ports and the place on the bridge; harmless when repeated or never attached."""
        self._zone.drop(workload)
        port = self._ports.pop(workload, None)
        if port is None:
            return
        if port.ports:
            self._surely(self._withdraw, port)
        if self._slots is not None:
            self._slots.later(self._surely, self.drop_port, port.attachment)

    def _withdraw(self, port: _Port) -> None:
        with self._lock:
            self._delete(self._published(port.attachment, port.ports))
        published.release(port.ports, self._store)

    def _surely(self, work: Callable[[T], None], what: T) -> None:
        """The workload is gone and nobody else would try again: a host that refuses is asked again."""
        for pause in _PAUSES:
            try:
                work(what)
                return
            except (OSError, KnarrError) as error:
                _log.warning("the network of one that has ended: %s", error)
                time.sleep(pause)
        work(what)

    def adopt(
        self,
        live: Mapping[str, tuple[Attachment, tuple[PortMapping, ...], tuple[str, ...]]],
        stopped: Iterable[Attachment] = (),
    ) -> None:
        """Go on with the workloads that outlived the daemon before this one, and forget everything else.

        The addresses of `stopped` ones are given to others last.
        """
        with self._lock:
            for workload, (attachment, ports, _) in live.items():
                self._adopt_one(workload, attachment, ports)
            self._apply()
            kept = {published.held_name(port) for item in self._ports.values() for port in item.ports}
            for name in self._store.list(published.PREFIX):
                if name not in kept:
                    self._store.delete(name)
        self._zone.replace({key: (item.address, names) for key, (item, _, names) in live.items()})
        for attachment in stopped:
            self._pool.put_last(attachment.address)
        if self._slots is not None:
            self._slots.start()

    def close(self, *, keep: bool = True) -> None:
        """Let go. `keep=False` also removes bridges, tables and names, and puts the host's settings back."""
        if self._slots is None:
            return
        self._slots.close()
        self._slots = None
        self._zone.close()
        if not keep:
            self._remove()
        self._nft.close()
        self._route.close()

    def reserve(self, wanted: Attachment | None) -> Attachment:
        """`slots.Ports`: an address whose bridge is there."""
        with self._lock, ExitStack() as undo:
            attachment = self._take_address(wanted)
            undo.callback(self._pool.release, attachment.address)
            self._bridge(attachment)
            undo.pop_all()
        return attachment

    def new_port(self, netns: int, attachment: Attachment) -> None:
        """`slots.Ports`: the veth whose other end, eth0, lies in `netns`; all of it or nothing."""
        with self._lock, ExitStack() as undo:
            veth = netlink.new_veth(
                attachment.link, peer=attachment.interface, peer_netns=netns, peer_mac=attachment.mac
            )
            try:
                self._route.do(veth)
            except FileExistsError:
                # The one before, whose namespace the kernel has not cleared away yet.
                self._route.do(netlink.delete_link(attachment.link))
                self._route.do(veth)
            undo.callback(self._delete_link, attachment.link)
            self._join(attachment)
            undo.pop_all()

    def drop_port(self, attachment: Attachment) -> None:
        """`slots.Ports`: from here on nothing that still holds the port can send; its link goes by itself."""
        with self._lock:
            self._delete([rules.source(self._instance, attachment)])
            self._pool.release(attachment.address)

    def _new_tap(self, wanted: Attachment | None) -> tuple[Attachment, int]:
        with self._lock, ExitStack() as undo:
            attachment = self._take_address(wanted)
            undo.callback(self._pool.release, attachment.address)
            fd = taps.open_tap(attachment.link)
            undo.callback(os.close, fd)
            self._join(attachment)
            undo.pop_all()
        return attachment, fd

    def _join(self, attachment: Attachment) -> None:
        """Bind the port to its MAC and address, then put it on the bridge: so it can never spoof."""
        self._nft.add([rules.source(self._instance, attachment)])
        try:
            index = self._route.index(attachment.link)
            # Hairpin: where br_netfilter is on, the bridge itself turns back what a workload sends to a port
            # of its own that is published.
            self._route.do(
                netlink.set_link(
                    index, name=attachment.link, up=True, master=self._bridge(attachment), no_ipv6=True
                ),
                netlink.set_port(index, learning=False, flood=False, hairpin=True, name=attachment.link),
                netlink.new_forwarding_entry(index, attachment.mac),
            )
        except OSError:
            self._delete([rules.source(self._instance, attachment)])
            raise

    def _take_address(self, wanted: Attachment | None) -> Attachment:
        if wanted is not None:
            try:
                return self._pool.claim(wanted)
            except Conflict:
                pass
        attachment = self._pool.allocate()
        if attachment is None:
            self._make_bridge(self._pool.add_bridge(), {})
            self._remember()
            return self._take_address(None)
        return attachment

    def _bridge(self, attachment: Attachment) -> int:
        for subnet in self._pool.subnets[len(self._bridges) :]:
            self._make_bridge(subnet, {})
        return self._bridges[attachment.bridge]

    def _make_bridge(self, subnet: Subnet, links: Mapping[str, netlink.Link]) -> None:
        name = subnet.bridge
        if name not in links:
            self._route.do(netlink.new_bridge(name, mac=subnet.mac))
        index = self._route.index(name)
        for family, setting, value in _BRIDGE_SETTINGS:
            if host.read_setting(name, setting, family):
                host.write_setting(name, value, setting, family)
        broadcast = str(subnet.network.broadcast_address)
        self._route.do(
            netlink.new_address(index, subnet.gateway, BRIDGE_PREFIX, broadcast=broadcast),
            netlink.set_link(index, name=name, up=True, no_ipv6=True),
        )
        if self._bridges:
            self._nft.add([rules.gateway(self._instance, subnet.gateway)])
        self._bridges[name] = index

    def _begin(self, workload: str) -> Slots:
        if self._slots is None:
            raise Failed("the network is not set up", hint="knarr system check tells why")
        self._slots.start()
        if workload in self._ports:
            raise Conflict(f"workload {workload[:12]} is attached already")
        return self._slots

    def _adopt_one(self, workload: str, attachment: Attachment, ports: tuple[PortMapping, ...]) -> None:
        if workload in self._ports:
            return
        try:
            attachment = self._pool.claim(attachment)
        except Conflict:
            return
        self._ports[workload] = _Port(attachment, ports)
        held = set(self._store.list(published.PREFIX)) if ports else set()
        for port in ports:
            if published.held_name(port) not in held:
                published.reserve((port,), self._store)

    def _apply(self) -> None:
        elements = [rules.gateway(self._instance, subnet.gateway) for subnet in self._pool.subnets]
        elements += [rules.uplink(self._instance, name) for name in self._uplinks]
        attached = [port.attachment for port in self._ports.values()]
        attached += [slot.attachment for slot in (self._slots.waiting() if self._slots else ())]
        elements += [rules.source(self._instance, item) for item in attached]
        for port in self._ports.values():
            elements += self._published(port.attachment, port.ports)
        self._nft.apply(*rules.tables(self._instance, self.pool, elements))

    def _published(self, attachment: Attachment, ports: tuple[PortMapping, ...]) -> list[Element]:
        return [rules.published(self._instance, attachment.address, port) for port in ports]

    def _delete(self, elements: list[Element]) -> None:
        for element in elements:
            try:
                self._nft.delete([element])
            except FileNotFoundError:
                pass

    def _delete_link(self, name: str) -> None:
        try:
            self._route.do(netlink.delete_link(name))
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.EINVAL):
                raise

    def _listen(self) -> None:
        for kind, protocol in ((socket.SOCK_DGRAM, "udp"), (socket.SOCK_STREAM, "tcp")):
            name = f"{_DNS}{self.gateway}/{protocol}"
            held = self._store.get(name)
            if held is not None:
                os.close(held)
                continue
            with socket.socket(socket.AF_INET, kind) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    sock.bind((self.gateway, 53))
                except OSError:
                    # The one that worked must not keep this address from whoever gets it next.
                    self._store.delete(f"{_DNS}{self.gateway}/*")
                    raise
                if kind is socket.SOCK_STREAM:
                    sock.listen(64)
                self._store.put(name, sock.fileno())

    def _remembered(self) -> tuple[str | None, int]:
        try:
            with open(self._state, encoding="utf-8") as file:
                data = json.load(file)
            return str(data["pool"]), int(data["bridges"])
        except (FileNotFoundError, ValueError, KeyError):
            return None, 1

    def _remember(self) -> None:
        text = json.dumps({"pool": self.pool, "bridges": len(self._pool.subnets)})
        host.publish(self._state, text)

    def _remove(self) -> None:
        name = rules.table_name(self._instance)
        for link in self._route.links():
            if link.name.startswith((self._pool.link_prefix, f"kn{self._instance}br")):
                self._delete_link(link.name)
        self._nft.remove(("ip", name), ("bridge", name))
        self._claims.restore_forwarding()
        self._store.delete(f"{published.PREFIX}*")
        self._store.delete(f"{_DNS}*")
        self._claims.release_pool(self.pool)
        for path in (self._state, self.zone_path):
            if os.path.exists(path):
                os.unlink(path)


def _failed(what: str, error: OSError) -> KnarrError:
    name = f" ({error.filename})" if error.filename else ""
    return Failed(f"{what}: {error.strerror}{name}", hint="knarr system check tells what this host lacks")
