"""Which namespaces a container gets: made at its clone, made by itself, joined, or shared with the host.

Pure. With a user namespace the others belong to it, so they are made after it was entered. Out of scope:
whether a combination makes sense (`engine.sharing`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from knarr.kernel import namespaces, steps
from knarr.model.workload import NetworkMode

if TYPE_CHECKING:
    from knarr.containers.plan import ContainerInput
    from knarr.kernel.plan import Step

JOIN_PID = "join-pid"
JOIN_IPC = "join-ipc"
JOIN_NET = "join-net"
"""the keeper's names for the pidfds of whom it joins"""
HOST = "host"


def clone_flags(given: ContainerInput) -> int:
    """What the child is born with."""
    flags = namespaces.CLONE_NEWNS
    flags |= 0 if given.sharing.pid else namespaces.CLONE_NEWPID
    if given.ids is not None:
        return flags
    flags |= _own(given)
    if given.network is NetworkMode.NONE:
        flags |= namespaces.CLONE_NEWNET
    if given.facts.cgroups.version == 2:
        # with CLONE_INTO_CGROUP the new cgroup namespace starts at the new group
        flags |= _cgroup(given)
    return flags


def join(given: ContainerInput) -> str:
    """`Plan.join`: in whose pid namespace the child is born."""
    return "" if given.sharing.pid in ("", HOST) else JOIN_PID


def before_root(given: ContainerInput) -> list[Step]:
    """While the child still stands in the host's mounts, after it is in its group."""
    found: list[Step] = []
    if given.ids is None and given.facts.cgroups.version == 1 and _cgroup(given):
        # after the move, so that the namespace's root is the workload's own group
        found.append(steps.Unshare(flags=namespaces.CLONE_NEWCGROUP))
    ipc = given.sharing.ipc
    if ipc == HOST:
        found.append(steps.OpenSource(name="shm", path="/dev/shm", recursive=False))
    elif joins_ipc(given):
        found.append(steps.JoinedShm(name="shm", fd=JOIN_IPC))
        found.append(steps.SetNs(fd=JOIN_IPC, flags=namespaces.CLONE_NEWIPC))
    return [*found, *_network(given)]


def _network(given: ContainerInput) -> list[Step]:
    if given.network is NetworkMode.CONTAINER:
        return [steps.SetNs(fd=JOIN_NET, flags=namespaces.CLONE_NEWNET)]
    if needs_netns(given.network, mapped=given.ids is not None):
        found: list[Step] = [steps.SetNs(fd="netns", flags=namespaces.CLONE_NEWNET)]
        return found if given.network is NetworkMode.BRIDGE else [*found, steps.LoopbackUp()]
    return [steps.LoopbackUp()] if given.network is NetworkMode.NONE else []


def needs_netns(network: NetworkMode, *, mapped: bool) -> bool:
    """A network namespace comes as the descriptor `netns`. One that belongs to a user namespace can only be
    made in it, though sysfs must be mounted before that is entered.
    """
    return network is NetworkMode.BRIDGE or (mapped and network is NetworkMode.NONE)


def enter(given: ContainerInput) -> list[Step]:
    """The step from the host's root to the user namespace's, where there is one."""
    if given.ids is None:
        return []
    uid, gid = given.ids.root
    return [steps.EnterUser(fd="userns", uid=uid, gid=gid, flags=_own(given) | _cgroup(given) | _MOUNTS)]


_MOUNTS = namespaces.CLONE_NEWNS


def exec_steps(given: ContainerInput) -> list[Step]:
    """An exec joins everything that its workload does not share with the host, its user namespace last."""
    flags = _MOUNTS
    flags |= 0 if given.sharing.uts == HOST else namespaces.CLONE_NEWUTS
    flags |= 0 if given.sharing.ipc == HOST else namespaces.CLONE_NEWIPC
    flags |= _cgroup(given)
    flags |= 0 if given.network is NetworkMode.HOST else namespaces.CLONE_NEWNET
    found: list[Step] = [steps.SetNs(fd="pidfd", flags=flags)]
    if given.ids is not None:
        uid, gid = given.ids.root
        found.append(steps.EnterUser(fd="pidfd", uid=uid, gid=gid))
    return found


def joins_ipc(given: ContainerInput) -> bool:
    return given.sharing.ipc.startswith("container:")


def _own(given: ContainerInput) -> int:
    """UTS and IPC, unless they are somebody else's."""
    flags = 0 if given.sharing.uts == HOST else namespaces.CLONE_NEWUTS
    return flags | (0 if given.sharing.ipc == HOST or joins_ipc(given) else namespaces.CLONE_NEWIPC)


def _cgroup(given: ContainerInput) -> int:
    shared = given.sharing.cgroup == HOST or not given.facts.cgroups.version
    return 0 if shared else namespaces.CLONE_NEWCGROUP
