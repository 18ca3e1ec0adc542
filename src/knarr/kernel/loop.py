"""Loop devices, for kernels that can't mount EROFS straight from files. Constants from linux/loop.h."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CLR_FD = 0x4C01
_LO_FLAGS_READ_ONLY = 1
_LO_FLAGS_AUTOCLEAR = 4
_LO_FLAGS_DIRECT_IO = 16
_ATTEMPTS = 32


@contextlib.contextmanager
def attached(file: int) -> Iterator[str]:
    """A read-only loop device over `file`. It frees itself with its last user: mount it inside the `with`."""
    path, device = _configure(file)
    try:
        yield path
    finally:
        os.close(device)


def _configure(file: int) -> tuple[str, int]:
    # struct loop_config: fd, block_size, struct loop_info64 (232 bytes), reserved[8]
    flags = _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR | _LO_FLAGS_DIRECT_IO
    info = bytearray(232)
    struct.pack_into("=I", info, 52, flags)
    config = struct.pack("=II", file, 0) + bytes(info) + bytes(64)
    with open("/dev/loop-control", "rb", buffering=0) as control:
        for _ in range(_ATTEMPTS):
            path = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
                return path, device
            except OSError as error:
                os.close(device)
                # somebody else took the free one between the two calls
                if error.errno != errno.EBUSY:
                    raise
    raise OSError(errno.EBUSY, "no free loop device", "/dev/loop-control")
