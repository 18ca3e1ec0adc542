"""Taps: a machine's port as a descriptor. The link lives as long as a copy of it.

Out of scope: bridges and filters (`networks.manager`).
"""

from __future__ import annotations

import fcntl
import os
import struct

_TUNSETIFF = 0x400454CA
_TAP_PLAIN_WITH_HEADER = 0x0002 | 0x1000 | 0x4000
"""IFF_TAP, IFF_NO_PI, IFF_VNET_HDR"""


def open_tap(link: str) -> int:
    """Raises OSError, EBUSY while another has that name."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", link.encode(), _TAP_PLAIN_WITH_HEADER))
    except BaseException:
        os.close(fd)
        raise
    return fd


def unconnected(instance: str) -> int:
    """One that is down and on no bridge, like the others in all that a guest can see."""
    return open_tap(f"kn{instance}t")
