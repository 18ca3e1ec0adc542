"""The container wall's planner: from a workload's values to the steps that start it. Pure: no I/O, no root.

The default is Docker's posture: 14 capabilities, its system call filter, masked and read-only paths;
`privileged` and the hardened profile differ by rows of tables (`containers.security`). Out of scope:
executing anything (`kernel.steps`, the keeper) and choosing values (the engine).
"""

from __future__ import annotations

import base64
import functools
import os.path
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from knarr.containers import sharing
from knarr.kernel import cgroups, limits, mounts, seccomp, skeleton, steps
from knarr.kernel.plan import Outside, Plan, Step
from knarr.model.errors import Invalid, Unsupported
from knarr.model.namespaces import IdMap, Sharing
from knarr.model.workload import (
    Mount,
    MountKind,
    NetworkMode,
    Process,
    Resources,
    Security,
)

if TYPE_CHECKING:
    from knarr.kernel.facts import HostFacts
    from knarr.model.resource import RootFs

from knarr.containers.security import (
    DEVICES,
    DeviceNode,
    capabilities_for,
    characters,
    covered,
    device_rules,
    own_nodes,
)

__all__ = ["ContainerInput", "capabilities_for", "groups", "plan", "plan_exec"]

_STREAMS = {"stdin": 0, "stdout": 1, "stderr": 2}
_NODEV = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
_LINKS = (
    ("pts/ptmx", "/dev/ptmx"),
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("/proc/kcore", "/dev/core"),
)
_MQUEUE = steps.MountFs(kind="mqueue", target="/dev/mqueue", flags=_NODEV)
_TMPFS_FLAGS = {
    "noexec": mounts.MOUNT_ATTR_NOEXEC,
    "nosuid": mounts.MOUNT_ATTR_NOSUID,
    "nodev": mounts.MOUNT_ATTR_NODEV,
    "ro": mounts.MOUNT_ATTR_RDONLY,
    "exec": 0,
    "suid": 0,
    "dev": 0,
    "rw": 0,
    "relatime": 0,
    "noatime": 0x10,
}
_TMPFS_OPTIONS = frozenset({"size", "mode", "uid", "gid", "nr_inodes", "nr_blocks"})


@dataclass(frozen=True, kw_only=True, slots=True)
class ContainerInput:
    """Everything the plan depends on."""

    id: str
    instance: str
    run: str
    dir: str
    """ROOT/workloads/<id>, with `upper` and `work` in it"""
    rootfs: RootFs
    process: Process
    hostname: str
    facts: HostFacts
    mounts: tuple[Mount, ...] = ()
    read_only: bool = False
    network: NetworkMode = NetworkMode.BRIDGE
    resources: Resources = field(default_factory=Resources)
    security: Security = field(default_factory=Security)
    disks: dict[str, str] = field(default_factory=dict)
    """path of a disk whose use is limited → MAJOR:MINOR"""
    devices: tuple[DeviceNode, ...] = ()
    sharing: Sharing = field(default_factory=Sharing)
    ids: IdMap | None = None
    """of its user namespace, which comes as the descriptor `userns`"""
    shm_size: int | None = None
    sysctls: dict[str, str] = field(default_factory=dict)
    etc_files: dict[str, str] = field(default_factory=dict)
    """where in the container → file on the host"""


def groups(facts: HostFacts, instance: str, workload: str) -> dict[str, str]:
    """The workload's control groups, for `kernel.cgroups.stats` and its like."""
    return cgroups.group_paths(facts.cgroups, instance, workload)


def plan(given: ContainerInput) -> Plan:
    """The launch of a container. Raises `Invalid` or `Unsupported` for what can't be."""
    inside = (
        *_namespace_steps(given),
        *_root_steps(given),
        *_mount_steps(given),
        *_terminal_steps(given.process),
        *_finish_steps(given),
        *_identity_steps(given.process, given.facts),
    )
    return Plan(
        outside=_outside_steps(given),
        clone_flags=sharing.clone_flags(given),
        join=sharing.join(given),
        inside=inside,
        fds=dict(_STREAMS),
        argv=given.process.args,
        env=given.process.env,
    )


def plan_exec(given: ContainerInput, process: Process, pid: int) -> Plan:
    """A further process in a running container, whose first process is `pid`.

    The keeper hands in a descriptor of that process as `pidfd`; the child is born in its pid namespace, so
    the keeper is its parent, joins its groups and every other namespace at once, and is then treated as the
    first one was.
    """
    del pid
    layout = given.facts.cgroups
    paths = groups(given.facts, given.instance, given.id)
    outside: tuple[Outside, ...] = ()
    enter: tuple[Step, ...] = ()
    if layout.version == 2:
        outside = (steps.CgroupOpen(group=paths[cgroups.V2]),)
    elif layout.version == 1:
        enter = (steps.CgroupEnter(files=cgroups.entry_files(layout, paths)),)
    inside = (
        steps.Guard(),
        *_oom_steps(process),
        *enter,
        *sharing.exec_steps(given),
        *_terminal_steps(process, console=False),
        steps.Chdir(path=process.cwd),
        *_identity_steps(process, given.facts),
    )
    return Plan(
        outside=outside,
        join="pidfd",
        inside=inside,
        fds=dict(_STREAMS),
        argv=process.args,
        env=process.env,
    )


def _outside_steps(given: ContainerInput) -> tuple[Outside, ...]:
    root = given.rootfs
    image = steps.MountImage(tree_id=root.tree_id, tree=root.tree, pool=root.pool)
    layout = given.facts.cgroups
    if not layout.version:
        _refuse_limits(given.resources)
        return (image,)
    paths = groups(given.facts, given.instance, given.id)
    files = limits.files(layout, paths, given.resources, given.disks)
    if "devices" in paths and not given.security.privileged:
        files = (*device_rules(paths["devices"], given.devices), *files)
    group = steps.CgroupCreate(
        groups=tuple(dict.fromkeys(paths.values())),
        parent_files=cgroups.parent_files(layout, given.instance),
        files=files,
        descriptor=layout.version == 2,
    )
    if layout.version == 2 and not given.security.privileged:
        return (
            image,
            group,
            steps.DeviceFilter(group=paths[cgroups.V2], characters=(*DEVICES, *characters(given.devices))),
        )
    return (image, group)


def _refuse_limits(resources: Resources) -> None:
    if resources != Resources():
        raise Unsupported(
            "container: this host has no control groups to hold limits",
            hint="mount cgroup2 at /sys/fs/cgroup, or use --isolation microvm",
        )


def _namespace_steps(given: ContainerInput) -> list[Step]:
    layout = given.facts.cgroups
    found: list[Step] = [steps.Guard(), *_oom_steps(given.process)]
    if layout.version == 1:
        paths = groups(given.facts, given.instance, given.id)
        found.append(steps.CgroupEnter(files=cgroups.entry_files(layout, paths)))
    if given.process.init:
        found.append(steps.InitProgram(path=given.facts.init))
    return found


def _oom_steps(process: Process) -> list[Step]:
    """While /proc is the host's: nothing inside has touched that one."""
    return [] if process.oom_score_adj is None else [steps.OomScore(value=process.oom_score_adj)]


def _root_steps(given: ContainerInput) -> list[Step]:
    sources: list[Step] = [
        steps.OpenSource(name=name, path=source, recursive=recursive)
        for name, source, recursive in _sources(given)
    ]
    target = os.path.join(given.dir, "work")
    lower = os.path.join(given.run, "images", given.rootfs.tree_id)
    return [
        steps.MakePrivate(),
        *sources,
        *sharing.before_root(given),
        *_mapping_steps(given, lower),
        steps.Overlay(
            lower=lower,
            upper=os.path.join(given.dir, "upper"),
            work=target,
            # any folder serves as the place of a moment; nothing looks below it once it is the root
            target=target,
            # its owner is the host's root, who is nobody in a user namespace
            below="" if given.ids else skeleton.path(given.run),
        ),
        steps.PivotRoot(target=target),
    ]


def _mapping_steps(given: ContainerInput, lower: str) -> list[Step]:
    """Image, writable layer, volumes and what asks for it: on disk they have the ids that are seen inside."""
    if given.ids is None:
        return []
    uid, gid = given.ids.root
    mapped = [
        (f"mount{index}", mount.source or "")
        for index, mount in enumerate(given.mounts)
        if mount.kind is MountKind.VOLUME or "idmap" in mount.options
    ]
    mapped += [(f"etc{index}", source) for index, source in enumerate(given.etc_files.values())]
    found: list[Step] = [steps.Idmap(sources=tuple(mapped))] if mapped else []
    return [*found, steps.IdmapHere(paths=(lower, given.dir)), steps.FsIds(uid=uid, gid=gid)]


def _sources(given: ContainerInput) -> list[tuple[str, str, bool]]:
    """(descriptor, host path, recursive)"""
    found = [
        (f"mount{index}", mount.source or "", "bind-nonrecursive" not in mount.options)
        for index, mount in _ordered(given.mounts)
        if mount.kind is not MountKind.TMPFS
    ]
    return found + [(f"etc{index}", source, False) for index, source in enumerate(given.etc_files.values())]


def _ordered(wanted: tuple[Mount, ...]) -> list[tuple[int, Mount]]:
    """Outer targets first, else as given."""
    return sorted(enumerate(wanted), key=lambda item: os.path.normpath(item[1].target).count("/"))


def _mount_steps(given: ContainerInput) -> list[Step]:
    return [
        *_host_mounts(given),
        *sharing.enter(given),
        steps.MountFs(
            kind="devpts",
            target="/dev/pts",
            flags=mounts.MS_NOSUID | mounts.MS_NOEXEC,
            data="newinstance,ptmxmode=0666,mode=0620,gid=5",
        ),
        *_ipc_mounts(given),
        *([] if _host_cgroups(given) else _cgroup_mounts(given)),
        *(_user_mount(index, mount) for index, mount in _ordered(given.mounts)),
        *(steps.Bind(fd=f"etc{index}", target=target) for index, target in enumerate(given.etc_files)),
    ]


def _host_mounts(given: ContainerInput) -> list[Step]:
    """What only the host's root may mount or make, and so before a user namespace is entered."""
    privileged = given.security.privileged
    return [
        steps.MountFs(kind="proc", target="/proc", flags=_NODEV),
        steps.MountFs(
            kind="tmpfs",
            target="/dev",
            flags=mounts.MS_NOSUID | mounts.MS_STRICTATIME,
            data="mode=755,size=65536k",
        ),
        steps.Devices(),
        steps.Folders(paths=("/dev/pts", "/dev/shm", "/dev/mqueue")),
        steps.Symlinks(links=_LINKS),
        *([steps.Nodes(nodes=own_nodes(given.devices))] if given.devices else []),
        *([steps.Nodes(nodes=given.facts.devices)] if privileged else []),
        steps.MountFs(kind="sysfs", target="/sys", flags=_NODEV | (0 if privileged else mounts.MS_RDONLY)),
        *(_cgroup_mounts(given) if _host_cgroups(given) else []),
        *([_MQUEUE] if _foreign_ipc(given) else []),
    ]


def _ipc_mounts(given: ContainerInput) -> list[Step]:
    """docker's: `none` has no shared memory at all, what is joined brings its own."""
    ipc = given.sharing.ipc
    found: list[Step] = []
    if _foreign_ipc(given):
        found.append(steps.Bind(fd="shm", target="/dev/shm"))
    elif ipc != "none":
        data = _shm_options(given.shm_size)
        found.append(steps.MountFs(kind="tmpfs", source="shm", target="/dev/shm", flags=_NODEV, data=data))
    return found if _foreign_ipc(given) else [*found, _MQUEUE]


def _foreign_ipc(given: ContainerInput) -> bool:
    """Its message queues belong to another user namespace, or to the host's."""
    return given.sharing.ipc == sharing.HOST or sharing.joins_ipc(given)


def _host_cgroups(given: ContainerInput) -> bool:
    return given.sharing.cgroup == sharing.HOST


def _shm_options(size: int | None) -> str:
    return f"mode=1777,size={'65536k' if size is None else size}"


def _cgroup_mounts(given: ContainerInput) -> list[Step]:
    layout, read_only = given.facts.cgroups, not given.security.privileged
    if not layout.version:
        return []
    by_place: dict[str, list[str]] = {}
    for controller, place in layout.roots.items():
        by_place.setdefault(place, []).append(controller)
    hierarchies = tuple((os.path.basename(place), ",".join(found)) for place, found in by_place.items())
    return [steps.CgroupMounts(hierarchies=hierarchies if layout.version == 1 else (), read_only=read_only)]


def _user_mount(index: int, mount: Mount) -> Step:
    _check_target(mount.target)
    if mount.kind is MountKind.TMPFS:
        return _tmpfs(mount)
    chosen = [option for option in mount.options if option in steps.PROPAGATION]
    return steps.Bind(
        fd=f"mount{index}",
        target=mount.target,
        read_only=mount.read_only,
        propagation=chosen[0] if chosen else "rprivate",
    )


def _check_target(target: str) -> None:
    if not target.startswith("/") or "\0" in target:
        raise Invalid(f"mount target {target!r} is not an absolute path")
    if os.path.normpath(target) == "/":
        raise Invalid("nothing can be mounted at '/'", hint="name a folder below it")


def _tmpfs(mount: Mount) -> Step:
    attributes = _TMPFS_FLAGS["nosuid"] | _TMPFS_FLAGS["nodev"] | _TMPFS_FLAGS["noexec"]
    options: list[str] = []
    for option in mount.options:
        key = option.partition("=")[0]
        if option in _TMPFS_FLAGS:
            attributes |= _TMPFS_FLAGS[option]
            # `exec`, `suid`, `dev`, `rw` take their opposite back
            attributes &= ~(
                _TMPFS_FLAGS.get(f"no{option}", 0) | (_TMPFS_FLAGS["ro"] if option == "rw" else 0)
            )
        elif key in _TMPFS_OPTIONS:
            options.append(option)
        else:
            raise Invalid(
                f"tmpfs option {option!r} is unknown",
                hint=f"one of {', '.join(sorted(_TMPFS_OPTIONS | set(_TMPFS_FLAGS)))}",
            )
    if mount.read_only:
        attributes |= _TMPFS_FLAGS["ro"]
    return steps.Tmpfs(target=mount.target, options=tuple(options), attributes=attributes)


def _terminal_steps(process: Process, *, console: bool = True) -> list[Step]:
    if not process.tty:
        return []
    columns, rows = process.tty_size if len(process.tty_size) == 2 else (0, 0)
    return [steps.Pty(columns=columns, rows=rows, console=console)]


def _finish_steps(given: ContainerInput) -> list[Step]:
    own_name = given.sharing.uts != sharing.HOST
    found: list[Step] = [steps.Sethostname(name=given.hostname)] if own_name else []
    if given.network in (NetworkMode.BRIDGE, NetworkMode.NONE):
        # as dockerd does: low ports and ping need no capability inside
        values = (("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647"))
        found.append(steps.Sysctl(values=values, optional=True))
    if given.sysctls:
        found.append(steps.Sysctl(values=tuple(given.sysctls.items())))
    # made when missing, so before the root may become read-only
    found.append(steps.Chdir(path=given.process.cwd))
    masked, read_only = covered(given.security, given.facts.thermal)
    if read_only:
        found.append(steps.ReadOnlyPaths(paths=read_only))
    if masked:
        found.append(steps.Mask(paths=masked))
    if given.read_only:
        found.append(steps.ReadOnlyRoot())
    return found


def _identity_steps(process: Process, facts: HostFacts) -> list[Step]:
    """Who the program is and what it may do. The order matters: see `kernel.steps_process`."""
    keep = tuple(name for name in process.capabilities if name in facts.capabilities)
    found: list[Step] = [steps.ResolveUser(user=process.user, groups=process.groups)]
    if process.rlimits:
        rows = tuple((limit.name, limit.soft, limit.hard) for limit in process.rlimits)
        found.append(steps.Rlimits(limits=rows))
    filters = _filter(process, facts)
    if not process.no_new_privileges:
        found += filters
    found += [steps.BoundingSet(keep=keep), steps.SetIds(), steps.Capabilities(keep=keep)]
    if process.no_new_privileges:
        found += [steps.NoNewPrivs(), *filters]
    return found


def _filter(process: Process, facts: HostFacts) -> list[Step]:
    if not process.seccomp:
        return []
    return [_seccomp(process.seccomp_profile, frozenset(process.capabilities), facts.architecture)]


@functools.lru_cache(maxsize=64)
def _seccomp(profile: str, capabilities: frozenset[str], architecture: str) -> Step:
    program = seccomp.program(profile, capabilities, architecture)
    return steps.Seccomp(program=base64.b64encode(program).decode())
