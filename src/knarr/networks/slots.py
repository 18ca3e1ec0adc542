"""Network slots: namespaces with a veth, an address and a route, made ahead of need by one thread.

The thread is the only one that ever leaves the daemon's own network namespace. A slot exists only as a
descriptor, so it and its veth vanish with the daemon; nothing is ever pinned by a name.

Out of scope: which address a slot gets, and the bridge's rules (the `Ports` that it is given decides).
"""

from __future__ import annotations

import collections
import ctypes
import errno
import logging
import os
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from knarr.kernel import libc, netlink
from knarr.kernel.namespaces import CLONE_NEWNET

if TYPE_CHECKING:
    from collections.abc import Callable

    from knarr.model.resource import Attachment

T = TypeVar("T")
_log = logging.getLogger(__name__)
_FEWEST: Final = 2
_MOST: Final = 16
_IDLE: Final = 30.0
"""seconds without a start after which one slot less is kept"""
_LOOPBACK: Final = 1

_unshare = libc.function("unshare", [ctypes.c_int], nogil=True)
_setns = libc.function("setns", [ctypes.c_int, ctypes.c_int], nogil=True)


@dataclass(frozen=True, slots=True)
class Slot:
    attachment: Attachment
    netns: int
    """the caller's to close"""


class Ports(Protocol):
    """What makes and forgets the host's end of a slot; called on the slots' thread only.

    `reserve` is called in the host's network namespace, `new_port` in the slot's.
    """

    def reserve(self, wanted: Attachment | None) -> Attachment: ...
    def new_port(self, netns: int, attachment: Attachment) -> None: ...
    def drop_port(self, attachment: Attachment) -> None: ...


class Slots:
    """Start with `start`, which must be called in the host's network namespace; end with `close`."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._ready: collections.deque[Slot] = collections.deque()
        self._tasks: collections.deque[Callable[[], None]] = collections.deque()
        self._wake = threading.Condition()
        self._target = _FEWEST
        self._failed = False
        self._ending = False
        self._thread = threading.Thread(target=self._main, name="knarr-netns", daemon=True)

    def start(self) -> None:
        """Begin to make slots ahead, unless that began already."""
        if self._thread.ident is None:
            self._thread.start()

    def close(self) -> None:
        """Finish what was asked, then give the ready slots back."""
        with self._wake:
            self._ending = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()
        while self._ready:
            self._drop(self._ready.popleft())
        os.close(self._home)

    @property
    def ready(self) -> int:
        return len(self._ready)

    def waiting(self) -> list[Slot]:
        return list(self._ready)

    def take(self) -> Slot:
        """A ready slot at once, or a new one in some milliseconds. Raises OSError or what `Ports` raises."""
        with self._wake:
            slot = self._ready.popleft() if self._ready else None
            if slot is None:
                self._target = min(_MOST, self._target * 2)
            self._failed = False
            self._wake.notify()
        return slot or self.run(self.make)

    def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Have the slots' thread do `work`, and wait for its result."""
        done: Future[T] = Future()
        self.later(_settle, done, work, arguments)
        return done.result()

    def later(self, work: Callable[..., None], *arguments: Any) -> None:
        """Have the slots' thread do `work` soon, before it makes more slots."""
        with self._wake:
            if self._ending:
                raise OSError(errno.ESHUTDOWN, "the network is closing")
            self._tasks.append(lambda: work(*arguments))
            self._wake.notify()

    def make(self, wanted: Attachment | None = None, netns: int | None = None) -> Slot:
        """On the slots' thread: one slot, in a new namespace or in the given one (it stays the caller's)."""
        attachment = self._ports.reserve(wanted)
        try:
            return Slot(attachment, self._inside(attachment, netns))
        except BaseException:
            self._ports.drop_port(attachment)
            raise

    def _inside(self, attachment: Attachment, netns: int | None) -> int:
        """A descriptor of the namespace with the port in it."""
        if _call(_unshare, CLONE_NEWNET) if netns is None else _call(_setns, netns, CLONE_NEWNET):
            raise libc.fail("network namespace")
        try:
            inside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _settings()
                with netlink.Route() as route:
                    self._connect(route, inside, attachment)
            except BaseException:
                os.close(inside)
                raise
            return inside
        finally:
            if _call(_setns, self._home, CLONE_NEWNET):
                raise libc.fail("the daemon's network namespace")

    def _connect(self, route: netlink.Route, inside: int, attachment: Attachment) -> None:
        self._ports.new_port(inside, attachment)
        index = route.index(attachment.interface)
        route.do(
            netlink.set_link(_LOOPBACK, up=True),
            netlink.new_address(index, attachment.address, attachment.prefix),
            netlink.set_link(index, up=True),
            netlink.new_route(attachment.gateway, index),
        )

    def _drop(self, slot: Slot) -> None:
        os.close(slot.netns)
        self._ports.drop_port(slot.attachment)

    def _main(self) -> None:
        while True:
            with self._wake:
                if not self._tasks and not self._ending and not self._short() and not self._wake.wait(_IDLE):
                    self._target = max(_FEWEST, self._target - 1)
                task = self._tasks.popleft() if self._tasks else None
                if task is None and self._ending:
                    return
            if task is not None:
                task()
            elif self._short():
                self._refill()
            elif len(self._ready) > self._target:
                self._drop(self._ready.pop())

    def _short(self) -> bool:
        return len(self._ready) < self._target and not self._failed

    def _refill(self) -> None:
        try:
            self._ready.append(self.make())
        except Exception as error:
            # The next start asks again and is told the reason; trying on would only burn the processor.
            self._failed = True
            _log.warning("no network slot could be made ahead: %s", error)


def _call(function: Any, *arguments: int) -> bool:
    return int(function(*arguments)) < 0


def _settle(done: Future[T], work: Callable[..., T], arguments: tuple[Any, ...]) -> None:
    try:
        done.set_result(work(*arguments))
    except BaseException as error:
        done.set_exception(error)


def _settings() -> None:
    """What a workload expects of its namespace: port 80 and ping without root, no IPv6 on links to come."""
    for path, value in (
        ("ipv6/conf/default/disable_ipv6", b"1"),
        ("ipv4/ip_unprivileged_port_start", b"0"),
        ("ipv4/ping_group_range", b"0 2147483647"),
    ):
        try:
            fd = os.open(f"/proc/sys/net/{path}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, value)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EROFS):
                raise
