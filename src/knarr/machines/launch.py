"""The keeper's plan for a jailed QEMU or virtiofsd: namespaces, small root, own user, no privileges."""

from __future__ import annotations

from dataclasses import dataclass

from knarr.kernel import cgroups, limits, namespaces, steps
from knarr.kernel.plan import Outside, Plan
from knarr.machines.jail import Jail
from knarr.model.workload import Resources

_SPACES = (
    namespaces.CLONE_NEWNS
    | namespaces.CLONE_NEWPID
    | namespaces.CLONE_NEWNET
    | namespaces.CLONE_NEWIPC
    | namespaces.CLONE_NEWUTS
)
VMM_OVERHEAD = 256 << 20
"""what QEMU itself may need beside the guest's RAM: translated code, buffers, page tables"""
_PROCESSES = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Confinement:
    """Where and as whom one program of a machine runs."""

    jail: Jail
    uid: int
    gid: int
    binds: tuple[tuple[str, str, bool], ...] = ()
    """(host path, place inside, read-only)"""
    groups: tuple[str, ...] = ()
    """cgroup folders to make; empty = those exist, `entry` is enough"""
    parent_files: tuple[tuple[str, str], ...] = ()
    limits: tuple[tuple[str, str], ...] = ()
    entry: tuple[str, ...] = ()


def confinement(
    jail: Jail,
    *,
    uid: int,
    gid: int,
    layout: cgroups.Layout,
    instance: str,
    name: str,
    resources: Resources,
    binds: tuple[tuple[str, str, bool], ...] = (),
) -> Confinement:
    paths = cgroups.group_paths(layout, instance, name)
    return Confinement(
        jail=jail,
        uid=uid,
        gid=gid,
        binds=binds,
        groups=tuple(dict.fromkeys(paths.values())),
        parent_files=cgroups.parent_files(layout, instance) if paths else (),
        limits=limits.files(layout, paths, resources) if paths else (),
        entry=cgroups.entry_files(layout, paths) if paths else (),
    )


def host_resources(memory: int, wanted: Resources) -> Resources:
    """The VMM's own limit: the guest's RAM and what emulating it needs; the workload's limit holds inside.
    Its part of busy CPUs is one among the host's workloads, so that holds here.
    """
    cpus = None if wanted.cpu_time is None else wanted.cpu_time + 1
    return Resources(memory=memory + VMM_OVERHEAD, cpus=cpus, cpu_shares=wanted.cpu_shares, pids=_PROCESSES)


def jailed(argv: tuple[str, ...], fds: dict[str, int], inside: Confinement, *, preload: str = "") -> Plan:
    root = inside.jail.root
    outside: tuple[Outside, ...] = ()
    if inside.groups:
        outside = (
            steps.CgroupCreate(groups=inside.groups, parent_files=inside.parent_files, files=inside.limits),
        )
    binds = tuple(
        steps.BindHere(source=source, target=root + place, read_only=read_only)
        for source, place, read_only in inside.binds
    )
    return Plan(
        outside=outside,
        clone_flags=_SPACES,
        inside=(
            steps.CgroupEnter(files=inside.entry),
            steps.Guard(),
            steps.MakePrivate(),
            steps.BindHere(source=root, target=root, read_only=True),
            *binds,
            steps.PivotRoot(target=root),
            steps.Rlimits(limits=(("core", 0, 0),)),
            steps.FixedUser(uid=inside.uid, gid=inside.gid),
            steps.BoundingSet(keep=()),
            steps.SetIds(),
            steps.Capabilities(keep=()),
            steps.NoNewPrivs(),
        ),
        fds=fds,
        argv=argv,
        env=("PATH=/usr/bin", *((f"LD_PRELOAD={preload}",) if preload else ())),
    )
