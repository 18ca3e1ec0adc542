"""The small image that the start figures run: Debian's static busybox, imported once per instance."""

from __future__ import annotations

import io
import os
import tarfile
from typing import Any

from knarr.client.client import Client
from knarr.model.errors import NotFound

REFERENCE = "localhost/knarr-bench:busybox"
BUSYBOX = "/bin/busybox"
APPLETS = ("sh", "true", "sleep", "cat", "echo", "ls")


def rootfs_tar() -> bytes:
    """A root file system of one program. Raises `NotFound` where busybox-static is not installed."""
    if not os.path.exists(BUSYBOX):
        raise NotFound(f"{BUSYBOX} is not there", hint="apt-get install busybox-static")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for folder in ("bin", "etc", "proc", "sys", "dev", "tmp", "root"):
            member = tarfile.TarInfo(folder)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)
        with open(BUSYBOX, "rb") as file:
            data = file.read()
        _add(archive, "bin/busybox", data, 0o755)
        _add(archive, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644)
        _add(archive, "etc/group", b"root:x:0:\n", 0o644)
        for applet in APPLETS:
            member = tarfile.TarInfo(f"bin/{applet}")
            member.type, member.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(member)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), mode
    archive.addfile(member, io.BytesIO(data))


def ensure(client: Client) -> dict[str, Any]:
    """The image as `inspect` shows it, imported when it isn't there."""
    # on a connection of its own: one that was used for images is served by the framework from then on
    with Client(client.root, client.run) as own:
        try:
            return own.image(REFERENCE)
        except NotFound:
            for _ in own.import_image([rootfs_tar()], REFERENCE):
                pass
            return own.image(REFERENCE)
