"""Descriptors: send and receive them, name unix sockets by paths of any length.

Out of scope: the messages that travel with them (`keeper.protocol`).
"""

from __future__ import annotations

import array
import errno
import os
import socket

MAX_FDS = 64


def send_fds(sock: socket.socket, data: bytes, fds: tuple[int, ...] | list[int] = ()) -> None:
    """One packet with its descriptors. Raises OSError (EAGAIN on a full non-blocking socket)."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def recv_fds(
    sock: socket.socket, size: int, limit: int = MAX_FDS, *, short: bool = False
) -> tuple[bytes, list[int]]:
    """One packet and its descriptors (close-on-exec). A cut one raises EMSGSIZE, its descriptors closed;
    with `short` one of which only descriptors are missing, which this process had no room for, is given.
    """
    numbers = array.array("i")
    room = socket.CMSG_SPACE(limit * numbers.itemsize)
    data, ancillary, flags, _ = sock.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
    fds = list(numbers)
    if flags & (socket.MSG_TRUNC if short else socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_all(fds)
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    return data, fds


def close_all(fds: list[int] | tuple[int, ...]) -> None:
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            pass


def bind_unix(path: str, kind: int = socket.SOCK_SEQPACKET, mode: int = 0o600) -> socket.socket:
    """A bound socket at `path`, which may be longer than sockaddr_un's 107 bytes. Replaces an old one."""
    folder, name = os.path.split(path)
    directory = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
        try:
            _unlink(name, directory)
            # fchmod before bind is what the kernel applies to the new inode: no moment with a wider mode
            os.fchmod(sock.fileno(), mode)
            sock.bind(f"/proc/self/fd/{directory}/{name}")
            os.chmod(name, mode, dir_fd=directory)
        except BaseException:
            sock.close()
            raise
        return sock
    finally:
        os.close(directory)


def connect_unix(path: str, kind: int = socket.SOCK_SEQPACKET) -> socket.socket:
    """A connected socket, whatever the length of `path`. Raises OSError (ENOENT, ECONNREFUSED)."""
    target = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{target}")
        except BaseException:
            sock.close()
            raise
        return sock
    finally:
        os.close(target)


def _unlink(name: str, directory: int) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
