"""The zone: which names the resolver answers. One file, published by rename, that grows by whole lines.

    pool 10.90.0.0/16
    + ID ADDRESS NAME NAME …
    - ID

A start or an end of a workload appends one line, so it costs the same however many there are. `ZoneWriter`
is the daemon's, `Zone` the resolver's: it reads on when a query comes, so a name is known as soon as it
is written.
Standard library only.

Out of scope: DNS (`networks.dns`).
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_COMPACT: Final = 1000
"""lines more than twice what is alive, after which the file is written anew"""
_NAME: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9_])?", re.ASCII)


def usable(name: str) -> str | None:
    """The name as DNS compares it, or None when no query could ask for it."""
    folded = name.lower()
    return (
        folded if _NAME.fullmatch(folded) and all(0 < len(part) < 64 for part in folded.split(".")) else None
    )


class ZoneWriter:
    def __init__(self, path: str, pool: str) -> None:
        self._path = path
        self._pool = pool
        self._live: dict[str, str] = {}
        self._lines = 0
        self._fd = -1
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)

    def replace(self, entries: dict[str, tuple[str, Iterable[str]]]) -> None:
        """A new zone with exactly these: id → (address, names)."""
        self._live = {key: _line(key, address, names) for key, (address, names) in entries.items()}
        self._compact()

    def set(self, key: str, address: str, names: Iterable[str]) -> None:
        line = _line(key, address, names)
        if self._live.get(key) != line:
            self._live[key] = line
            self._append(line)

    def drop(self, key: str) -> None:
        if self._live.pop(key, None) is not None:
            self._append(f"- {key}\n")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, line: str) -> None:
        self._lines += 1
        if self._fd < 0 or self._lines > 2 * len(self._live) + _COMPACT:
            self._compact()
        else:
            os.write(self._fd, line.encode())

    def _compact(self) -> None:
        data = "".join([f"pool {self._pool}\n", *self._live.values()]).encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(f"{self._path}.new", flags, 0o600)
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        os.rename(f"{self._path}.new", self._path)
        self.close()
        self._fd = fd
        self._lines = len(self._live)


def _line(key: str, address: str, names: Iterable[str]) -> str:
    known = dict.fromkeys(folded for name in names if (folded := usable(name)))
    return f"+ {' '.join((key, address, *known))}\n"


class Zone:
    """The zone as the resolver sees it. `refresh` costs one stat(2) when nothing changed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._inode = -1
        self._offset = 0
        self._clear()

    def _clear(self) -> None:
        self._entries: dict[str, tuple[str, tuple[str, ...]]] = {}
        self.addresses: dict[str, list[str]] = {}
        """name → addresses"""
        self.names: dict[str, str] = {}
        """address → its first name"""
        self.pool: ipaddress.IPv4Network | None = None

    def refresh(self) -> None:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return
        if status.st_ino != self._inode:
            self._open()
        elif status.st_size > self._offset:
            self._read()

    def _open(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        # The open descriptor keeps the inode, so that its number can't come back as another file's.
        self._inode = os.fstat(self._fd).st_ino
        self._offset = 0
        self._clear()
        self._read()

    def _read(self) -> None:
        data = b""
        while chunk := os.pread(self._fd, 1 << 20, self._offset + len(data)):
            data += chunk
        whole = data.rfind(b"\n") + 1
        self._offset += whole
        for line in data[:whole].decode(errors="replace").splitlines():
            self._take(line.split(" "))

    def _take(self, words: list[str]) -> None:
        """A line that can't be read, of a later version or a broken disk, is no reason to stop answering."""
        match words:
            case ["pool", network] if _is(ipaddress.IPv4Network, network):
                self.pool = ipaddress.IPv4Network(network)
            case ["+", key, address, *names] if _is(ipaddress.IPv4Address, address):
                self._forget(key)
                self._entries[key] = (address, tuple(dict.fromkeys(names)))
                for name in self._entries[key][1]:
                    self.addresses.setdefault(name, []).append(address)
                if names:
                    self.names[address] = names[0]
            case ["-", key]:
                self._forget(key)
            case _:
                pass

    def _forget(self, key: str) -> None:
        address, names = self._entries.pop(key, ("", ()))
        for name in names:
            left = [other for other in self.addresses.get(name, ()) if other != address]
            if left:
                self.addresses[name] = left
            else:
                self.addresses.pop(name, None)
        if names:
            self.names.pop(address, None)


def _is(kind: Callable[[str], object], text: str) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True
