"""A workload's place on the network from attach to detach, the same for every wall.

Out of scope: how bridges, slots, ports and names are made (`networks.manager`).
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from knarr.model.namespaces import joined
from knarr.model.workload import NetworkMode
from knarr.networks.manager import prepare_etc

if TYPE_CHECKING:
    from collections.abc import Callable

    from knarr.engine.driver import Workload
    from knarr.model.resource import Attachment
    from knarr.networks.manager import NetworkManager


_ETC = ("resolv.conf", "hosts", "hostname")


class WorkloadNetwork:
    """`driver.Network` over the network manager."""

    def __init__(self, manager: NetworkManager, save: Callable[[Workload], None]) -> None:
        self._manager = manager
        self._save = save
        self._reserved: dict[str, Attachment] = {}

    async def connect(self, w: Workload, *, vm: bool, netns: int | None = None) -> int | None:
        if w.spec.network is not NetworkMode.BRIDGE:
            w.attachment, w.ports = None, ()
            self._save(w)
            return None
        with ExitStack() as undo:
            fd: int | None = None
            if w.id in self._reserved:
                attachment = self._reserved.pop(w.id)
            elif vm:
                attachment, fd = self._manager.attach_vm(w.id, w.attachment)
            else:
                attachment, fd = self._manager.attach_container(w.id, w.attachment, netns=netns)
            undo.callback(self._manager.detach, w.id)
            if fd is not None:
                undo.callback(os.close, fd)
            ports = self._manager.publish(w.id, attachment, w.spec.ports) if w.spec.ports else ()
            self._manager.set_names(w.id, names(w), attachment.address)
            w.attachment, w.ports = attachment, ports
            # before the keeper's start, so that a new daemon knows address and ports of what it finds running
            self._save(w)
            undo.pop_all()
        return fd

    def reserve(self, workload: str) -> tuple[Attachment, int]:
        attachment, fd = self._manager.attach_vm(workload)
        self._reserved[workload] = attachment
        return attachment, fd

    def release(self, workload: str) -> None:
        if self._reserved.pop(workload, None) is not None:
            self._manager.detach(workload)

    def disconnect(self, w: Workload) -> None:
        if w.spec.network is NetworkMode.BRIDGE:
            self._manager.detach(w.id)
        w.ports = ()

    def etc_files(self, w: Workload) -> dict[str, str]:
        donor = joined(w.spec.sharing.network)
        if donor:
            folder = os.path.join(os.path.dirname(w.dir), donor)
            return {f"/etc/{name}": os.path.join(folder, name) for name in _ETC}
        return prepare_etc(
            w.dir, w.hostname, w.attachment, w.spec.network, dns=w.spec.dns, extra_hosts=w.spec.extra_hosts
        )


def names(w: Workload) -> tuple[str, ...]:
    """What the resolver answers for this workload."""
    own = (w.name, w.id[:12])
    return own if w.hostname in own else (*own, w.hostname)
