"""Elements of nftables sets and maps, by our own netlink codec: what changes with every start and removal.

libnftables parses text and lists every table of the host before it changes one element, so its cost grows
with what others have; one transaction here is one send, whatever else there is.

Out of scope: making tables, chains and rules (`kernel.nft`), and types beyond those in `_PARTS`.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, Final

from knarr.kernel import netlink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from knarr.kernel.nft import Element

# linux/netfilter/nfnetlink.h, nf_tables.h
_NETLINK_NETFILTER: Final = 12
_SUBSYSTEM: Final = 10
_BATCH_BEGIN: Final = 16
_BATCH_END: Final = 17
_GET_TABLE: Final = 1
_NEW_ELEMENT: Final = 12
_DELETE_ELEMENT: Final = 14
_TABLE_NAME: Final = 1
_LIST_TABLE: Final = 1
_LIST_SET: Final = 2
_LIST_ELEMENTS: Final = 3
_LIST_ITEM: Final = 1
_ELEMENT_KEY: Final = 1
_ELEMENT_DATA: Final = 2
_DATA_VALUE: Final = 1
_REQUEST: Final = 0x1
_ACK: Final = 0x4
_CREATE: Final = 0x400
_NLMSG_ERROR: Final = 2
_RECEIVE: Final = 1 << 18
MOST: Final = 200
"""elements of one transaction that surely fit into the socket's buffers"""
_BATCH: Final = struct.pack("!BBH", socket.AF_UNSPEC, 0, _SUBSYSTEM)
_FAMILIES: Final = {"ip": socket.AF_INET, "bridge": 7}
_PROTOCOLS: Final = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": 132}


def _name(text: str) -> bytes:
    if len(text.encode()) > 15:
        raise OSError(errno.EINVAL, "not a link's name", text)
    return text.encode().ljust(16, b"\0")


_PARTS: Final[dict[str, Callable[[str], bytes]]] = {
    "ifname": _name,
    "ether_addr": netlink.mac_bytes,
    "ipv4_addr": socket.inet_aton,
    "inet_proto": lambda text: bytes((_PROTOCOLS[text],)),
    "inet_service": lambda text: struct.pack("!H", int(text)),
}


def data(kinds: str, parts: Sequence[str]) -> bytes:
    """The value of `kinds` (`ipv4_addr . inet_service`) as the kernel's registers hold it.

    Raises OSError EINVAL for a part that its kind can't be.
    """
    names = kinds.split(" . ")
    try:
        packed = [_PARTS[name](part) for name, part in zip(names, parts, strict=True)]
    except (KeyError, ValueError, OSError, struct.error) as error:
        raise OSError(errno.EINVAL, f"not of the type {kinds}", " . ".join(parts)) from error
    if len(packed) == 1:
        return packed[0]
    return b"".join(item + b"\0" * (-len(item) % 4) for item in packed)


def encode(element: Element, *, with_value: bool) -> bytes:
    """The body of the message that names the element."""
    family, table = element.table.split(" ")
    keys, _, values = element.kind.partition(" : ")
    inner = netlink.nested(_ELEMENT_KEY, netlink.attribute(_DATA_VALUE, data(keys, element.key)))
    if with_value and values:
        value = netlink.attribute(_DATA_VALUE, data(values, element.value))
        inner += netlink.nested(_ELEMENT_DATA, value)
    body = bytes((_FAMILIES[family], 0, 0, 0))
    body += netlink.text(_LIST_TABLE, table) + netlink.text(_LIST_SET, element.set)
    return body + netlink.nested(_LIST_ELEMENTS, netlink.nested(_LIST_ITEM, inner))


def _message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """`body` begins with the four bytes of a nfgenmsg: family, version, resource."""
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body


class Elements:
    """A netfilter socket of the network namespace that the calling thread is in when it is made.

    Not for use by two threads at a time.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
        )
        self._socket.bind((0, 0))
        self._socket.setsockopt(270, 10, 1)  # NETLINK_CAP_ACK: answers without our own words
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def add(self, elements: Iterable[Element]) -> None:
        """All (`MOST` at most), or none and an OSError.

        One that is there already, with the same value, is no error.
        """
        self._change(_NEW_ELEMENT, _CREATE, list(elements), with_value=True)

    def delete(self, elements: Iterable[Element]) -> None:
        """All, or none and an OSError (ENOENT: one is not there)."""
        self._change(_DELETE_ELEMENT, 0, list(elements), with_value=False)

    def has_table(self, family: str, name: str) -> bool:
        """By its name alone: a list of all begins anew whenever anybody changes a rule meanwhile."""
        self._sequence += 1
        body = bytes((_FAMILIES[family], 0, 0, 0)) + netlink.text(_TABLE_NAME, name)
        self._socket.send(_message(_SUBSYSTEM << 8 | _GET_TABLE, _REQUEST, self._sequence, body))
        while True:
            for kind, _, sequence, answer in netlink.split(self._socket.recv(_RECEIVE)):
                if sequence != self._sequence:
                    continue
                if kind != _NLMSG_ERROR:
                    return True
                (code,) = struct.unpack_from("=i", answer)
                if code == -errno.ENOENT:
                    return False
                raise OSError(-code, os.strerror(-code), f"table {family} {name}")

    def _change(self, kind: int, flags: int, elements: Sequence[Element], *, with_value: bool) -> None:
        if not elements:
            return
        begin = self._sequence + 1
        last = begin + len(elements)
        self._sequence = last + 1
        words = [_message(_BATCH_BEGIN, _REQUEST, begin, _BATCH)]
        for sequence, element in enumerate(elements, begin + 1):
            body = encode(element, with_value=with_value)
            # Refusals are told of every message; one acknowledgement, of the last, ends the answer.
            asked = _REQUEST | flags | (_ACK if sequence == last else 0)
            words.append(_message(_SUBSYSTEM << 8 | kind, asked, sequence, body))
        words.append(_message(_BATCH_END, _REQUEST, last + 1, _BATCH))
        self._socket.send(b"".join(words))
        self._collect(begin, elements)

    def _collect(self, begin: int, elements: Sequence[Element]) -> None:
        failure: OSError | None = None
        while True:
            for kind, _, sequence, body in netlink.split(self._socket.recv(_RECEIVE)):
                place = sequence - begin
                if kind != _NLMSG_ERROR or not 0 <= place <= len(elements):
                    continue
                (code,) = struct.unpack_from("=i", body)
                if code and failure is None:
                    named = elements[max(place - 1, 0)]
                    failure = OSError(
                        -code, os.strerror(-code), f"{named.set} {named.text(with_value=False)}"
                    )
                # Place 0 speaks of the transaction as a whole: then nothing else comes.
                if place in (0, len(elements)):
                    if failure is not None:
                        raise failure
                    return
