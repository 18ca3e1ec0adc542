"""Published ports: each is reserved by a bound socket, so that a conflict is an error and not a surprise.

The socket never listens: packets are led to the workload before they would reach it. It lives in the
descriptor store, so that a port stays taken while the daemon is dead.

Out of scope: the redirection (`networks.rules`), and IPv6: the bridge has none, so an IPv6 host address is
refused.
"""

from __future__ import annotations

import dataclasses
import errno
import ipaddress
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from knarr.model.errors import Conflict, Denied, Failed, Invalid, Unsupported

if TYPE_CHECKING:
    from knarr.model.workload import PortMapping
    from knarr.networks.host import FdStore

PREFIX: Final = "sock/port/"
_KINDS: Final = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_ANY: Final = "0.0.0.0"


def held_name(port: PortMapping) -> str:
    return f"{PREFIX}{port.protocol}/{port.host_ip or _ANY}:{port.host_port}"


def reserve(ports: tuple[PortMapping, ...], store: FdStore) -> tuple[PortMapping, ...]:
    """Bind every host port, choosing those that are 0. All, or none and an error."""
    done: list[PortMapping] = []
    with ExitStack() as undo:
        for port in ports:
            chosen = _reserve(port, store)
            undo.callback(store.delete, held_name(chosen))
            done.append(chosen)
        undo.pop_all()
    return tuple(done)


def release(ports: tuple[PortMapping, ...], store: FdStore) -> None:
    for port in ports:
        store.delete(held_name(port))


def _reserve(port: PortMapping, store: FdStore) -> PortMapping:
    _check(port)
    with socket.socket(socket.AF_INET, _KINDS[port.protocol]) as sock:
        try:
            sock.bind((port.host_ip or _ANY, port.host_port))
        except OSError as error:
            raise _refusal(port, error) from error
        chosen = dataclasses.replace(port, host_port=sock.getsockname()[1])
        store.put(held_name(chosen), sock.fileno())
    return chosen


def _check(port: PortMapping) -> None:
    if port.protocol not in _KINDS:
        raise Unsupported(f"protocol {port.protocol!r} can't be published", hint="tcp or udp")
    if not 0 < port.container_port < 1 << 16 or not 0 <= port.host_port < 1 << 16:
        raise Invalid(f"port {port.host_port}:{port.container_port} is out of range", hint="1 to 65535")
    if not port.host_ip:
        return
    try:
        address = ipaddress.ip_address(port.host_ip)
    except ValueError:
        raise Invalid(f"{port.host_ip!r} is not an address", hint="such as 127.0.0.1:8080:80") from None
    if address.version != 4:
        raise Unsupported(
            f"port {port.host_port} can't be published on {port.host_ip}: workloads have IPv4 only",
            hint="leave the address out, or use 127.0.0.1",
        )


def _refusal(port: PortMapping, error: OSError) -> Conflict | Denied | Invalid | Failed:
    name = f"port {port.host_port}/{port.protocol}"
    if error.errno == errno.EADDRINUSE:
        return Conflict(
            f"{name} is in use on {port.host_ip or 'this host'}", hint="publish another port, or 0"
        )
    if error.errno == errno.EACCES:
        return Denied(f"{name} may not be bound", hint="knarr's daemon runs as root")
    if error.errno == errno.EADDRNOTAVAIL:
        return Invalid(f"{port.host_ip} is not an address of this host", hint="ip address shows them")
    return Failed(f"{name}: {error.strerror}")
