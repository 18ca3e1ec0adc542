"""The guest's first file system: the agent as /init and the modules it loads, as an uncompressed newc cpio.

Uncompressed because the guest's emulated CPU would pay for decompression at every boot.
Out of scope: which modules are needed and where they come from (`machines.kernels`).
"""

from __future__ import annotations

from dataclasses import dataclass

_DIRECTORY = 0o040755
_FILE = 0o100755
_FOLDERS = ("dev", "proc", "sys", "run", "m")


@dataclass(frozen=True, kw_only=True, slots=True)
class Modules:
    """Modules by moment of loading, in order; name → content. A module appears in one group only."""

    early: dict[str, bytes]
    """until the agent hears the host"""
    late: dict[str, bytes]
    """the disks"""
    net: dict[str, bytes]
    folders: dict[str, bytes]
    """virtiofs"""

    def groups(self) -> dict[str, dict[str, bytes]]:
        return {"early": self.early, "late": self.late, "net": self.net, "folders": self.folders}


def build(agent: bytes, modules: Modules) -> bytes:
    """The archive's bytes; equal input gives equal bytes."""
    writer = _Cpio()
    for folder in _FOLDERS:
        writer.add(folder, _DIRECTORY, b"")
    writer.add("init", _FILE, agent)
    for group, files in modules.groups().items():
        for name, content in files.items():
            writer.add(f"m/{name}.ko", _FILE, content)
        # the agent has the initramfs bound at /boot by the time it loads anything
        writer.add(f"modules.{group}", _FILE, "".join(f"/boot/m/{name}.ko\n" for name in files).encode())
    return writer.finish()


class _Cpio:
    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def add(self, name: str, mode: int, content: bytes) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._parts.append(_pad(header + encoded))
        self._parts.append(_pad(content))

    def finish(self) -> bytes:
        self.add("TRAILER!!!", 0, b"")
        return b"".join(self._parts)


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
