"""What the instances of one host share: which pool is whose, and forwarding settings to put back.

A folder (default /run/lock/knarr) holds one lock file per pool, flock-held by a descriptor for as long as the
instance lives, and `settings.json` with the old values of what was changed and by whom. An instance that died
without closing is recognised by its free lock.

Out of scope: what is done inside an instance's own bridge and tables.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from knarr.model.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_FOLDER: Final = "/run/lock/knarr"
_HELD: Final = "lock/network"
_CANDIDATES: Final = tuple(
    str(network)
    for block, first in (("10.0.0.0/8", "10.90.0.0"), ("172.16.0.0/12", "172.20.0.0"))
    for network in ipaddress.IPv4Network(block).subnets(new_prefix=16)
    if network[0] >= ipaddress.IPv4Address(first)
)


class FdStore(Protocol):
    """Where descriptors outlive the daemon: the holder's client, whose names have the form `kind/…`."""

    def put(self, name: str, fd: int) -> None: ...
    def get(self, name: str) -> int | None: ...
    def delete(self, pattern: str) -> int: ...
    def list(self, prefix: str = "") -> list[str]: ...


class LocalStore:
    """The same inside this process, for tests and for a daemon without a holder."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}

    def put(self, name: str, fd: int) -> None:
        self.delete(name)
        self._held[name] = os.dup(fd)

    def get(self, name: str) -> int | None:
        return os.dup(self._held[name]) if name in self._held else None

    def delete(self, pattern: str) -> int:
        names = self.list(pattern[:-1]) if pattern.endswith("*") else [n for n in self._held if n == pattern]
        for name in names:
            os.close(self._held.pop(name))
        return len(names)

    def list(self, prefix: str = "") -> list[str]:
        return sorted(name for name in self._held if name.startswith(prefix))


class HostClaims:
    """One instance's claims in the shared folder."""

    def __init__(self, instance: str, store: FdStore, folder: str = DEFAULT_FOLDER) -> None:
        self._instance = instance
        self._store = store
        self._folder = folder
        os.makedirs(folder, mode=0o700, exist_ok=True)

    def claim_pool(self, wanted: str | None) -> str:
        """A pool that no instance holds and no route leads to; `wanted` is the one of last time."""
        held = self._store.get(_HELD)
        if held is not None:
            os.close(held)
            if wanted:
                return wanted
        with self._guard():
            routed = routes()
            for pool in (wanted, *_CANDIDATES) if wanted else _CANDIDATES:
                # Our own bridge of a life before this one leaves a route, and that is no hindrance.
                if pool != wanted and any(ipaddress.IPv4Network(pool).overlaps(route) for route in routed):
                    continue
                if self._lock(pool):
                    return pool
        raise Unavailable(
            "no private /16 is free for a bridge", hint="knarr system check lists what is routed"
        )

    def release_pool(self, pool: str) -> None:
        with self._guard():
            self._store.delete(_HELD)
            if self._free(self._path(pool)):
                os.unlink(self._path(pool))

    def enable_forwarding(self, links: list[str]) -> list[str]:
        """Let packets from these links be forwarded. Returns those that Knarr switched on (not the host)."""
        with self._guard():
            settings = self._settings()
            for link in links:
                if link not in settings and read_setting(link) == "0":
                    settings[link] = {"old": "0", "users": []}
                    self._save(settings)  # before the change: a kill in between must not lose the old value
                if link in settings:
                    write_setting(link, "1")
                    settings[link]["users"] = sorted({*settings[link]["users"], self._instance})
            self._save(settings)
            return [link for link in links if link in settings]

    def restore_forwarding(self) -> None:
        """Put old values back where no other living instance needs the new ones."""
        with self._guard():
            settings = self._settings()
            for link, setting in list(settings.items()):
                users = [user for user in setting["users"] if user != self._instance and self._alive(user)]
                if users:
                    setting["users"] = users
                    continue
                try:
                    write_setting(link, setting["old"])
                except FileNotFoundError:
                    pass
                del settings[link]
            self._save(settings)

    def _path(self, pool: str) -> str:
        return os.path.join(self._folder, f"pool-{pool.replace('/', '-')}")

    def _lock(self, pool: str) -> bool:
        fd = os.open(self._path(pool), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.write(fd, self._instance.encode())
            self._store.put(_HELD, fd)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True

    def _alive(self, instance: str) -> bool:
        for name in os.listdir(self._folder):
            path = os.path.join(self._folder, name)
            if name.startswith("pool-") and _content(path) == instance and not self._free(path):
                return True
        return False

    @staticmethod
    def _free(path: str) -> bool:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True

    def _settings(self) -> dict[str, Any]:
        text = _content(os.path.join(self._folder, "settings.json"))
        found: dict[str, Any] = json.loads(text) if text else {}
        return found

    def _save(self, settings: dict[str, Any]) -> None:
        publish(os.path.join(self._folder, "settings.json"), json.dumps(settings))

    @contextmanager
    def _guard(self) -> Iterator[None]:
        fd = os.open(os.path.join(self._folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def publish(path: str, text: str) -> None:
    """Replace a small file in one step."""
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write(text)
    os.rename(f"{path}.new", path)


def _content(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def routes() -> list[ipaddress.IPv4Network]:
    """What the main table leads to, without the default route."""
    return [network for _, network in _routes() if network.prefixlen]


def routed_links() -> list[str]:
    """The links that any route of the main table uses."""
    return sorted({link for link, _ in _routes()})


def _routes() -> list[tuple[str, ipaddress.IPv4Network]]:
    found = []
    for line in _content("/proc/thread-self/net/route").splitlines()[1:]:
        words = line.split()
        address, mask = (struct.pack("=I", int(words[place], 16)) for place in (1, 7))
        network = f"{socket.inet_ntoa(address)}/{socket.inet_ntoa(mask)}"
        found.append((words[0], ipaddress.IPv4Network(network, strict=False)))
    return found


def read_setting(link: str, name: str = "forwarding", family: str = "ipv4") -> str:
    return _content(f"/proc/sys/net/{family}/conf/{link}/{name}").strip()


def write_setting(link: str, value: str, name: str = "forwarding", family: str = "ipv4") -> None:
    with open(f"/proc/sys/net/{family}/conf/{link}/{name}", "w", encoding="ascii") as file:
        file.write(value)
