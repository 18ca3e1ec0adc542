"""The network files of a workload's /etc: resolv.conf, hosts and hostname.

Out of scope: mounting them (the walls do), and answering names (`networks.dns`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from knarr.model.workload import Dns, NetworkMode

if TYPE_CHECKING:
    from knarr.model.resource import Attachment

_LOCAL: Final = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""
_FORBIDDEN: Final = frozenset("\n\r\t #")


def prepare_etc(
    folder: str,
    hostname: str,
    attachment: Attachment | None,
    mode: NetworkMode = NetworkMode.BRIDGE,
    *,
    dns: Dns | None = None,
    extra_hosts: tuple[str, ...] = (),
) -> dict[str, str]:
    """Write the three files into `folder`; returns target inside → absolute path of the source."""
    texts = {
        "resolv.conf": _resolv_conf(attachment, mode, dns or Dns()),
        "hosts": _hosts(hostname, attachment, mode) + _extra(extra_hosts, attachment),
        "hostname": f"{hostname}\n",
    }
    for name, text in texts.items():
        _write(os.path.join(folder, name), text)
    return {f"/etc/{name}": os.path.join(os.path.abspath(folder), name) for name in texts}


def _write(path: str, text: str) -> None:
    # In place, not by rename: a container that already runs has this very inode mounted.
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        os.fchmod(fd, 0o644)
        left = memoryview(text.encode("utf-8", "replace"))
        while left:
            left = left[os.write(fd, left) :]
    finally:
        os.close(fd)


def _resolv_conf(attachment: Attachment | None, mode: NetworkMode, dns: Dns) -> str:
    if attachment is None and dns == Dns():
        return _content("/etc/resolv.conf") if mode is NetworkMode.HOST else ""
    servers = dns.servers or (attachment.dns if attachment is not None else ())
    lines = [f"nameserver {address}" for address in servers]
    lines += [f"search {' '.join(dns.search)}"] if dns.search and dns.search != (".",) else []
    lines += [f"options {' '.join(dns.options or ('ndots:0',))}"]
    return "".join(f"{line}\n" for line in lines)


def _extra(given: tuple[str, ...], attachment: Attachment | None) -> str:
    gateway = attachment.gateway if attachment is not None else "127.0.0.1"
    pairs = [item.split(":", 1) for item in given]
    return "".join(
        f"{gateway if address == 'host-gateway' else address.strip('[]')}\t{name}\n"
        for name, address in pairs
    )


def _hosts(hostname: str, attachment: Attachment | None, mode: NetworkMode) -> str:
    if mode is NetworkMode.HOST:
        return _content("/etc/hosts")
    clean = not _FORBIDDEN & set(hostname)
    if attachment is not None and clean:
        names = dict.fromkeys((hostname, hostname.partition(".")[0]))
        return f"{_LOCAL}{attachment.address}\t{' '.join(names)}\n"
    return _LOCAL


def _content(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""
