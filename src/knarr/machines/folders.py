"""Folders of the host in a microVM: one jailed virtiofsd per bind mount, seeing only that.

The server runs as root over the folder, because files keep their owners, but without any capability beyond
those of file systems; read-only is the host's mount, so no guest can undo it. Pure.
Out of scope: the sockets between server and QEMU (the driver makes them).
"""

from __future__ import annotations

import stat

from knarr.kernel import mounts, namespaces, steps
from knarr.kernel.plan import Plan
from knarr.machines.launch import Confinement
from knarr.machines.request import Folder
from knarr.model.errors import Unsupported
from knarr.model.workload import Mount, MountKind

_CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "SETGID",
    "SETUID",
    "MKNOD",
    "SETFCAP",
    # for the server's own jail, inside ours; it drops both before it serves
    "SYS_CHROOT",
    "SETPCAP",
)
LISTEN = 3
FILE_NAME = "file"
_DESCRIPTORS = 16384


def server_id(workload: str, index: int) -> str:
    return f"{workload}.fs{index}"


def guest_folders(binds: tuple[tuple[Mount, int], ...]) -> tuple[Folder, ...]:
    """(mount, st_mode of its source) → what the guest mounts; the order gives tags and servers."""
    return tuple(
        Folder(
            tag=f"fs{index}",
            target=mount.target,
            file="" if stat.S_ISDIR(mode) else FILE_NAME,
            read_only=mount.read_only,
        )
        for index, (mount, mode) in enumerate(binds)
    )


def wanted(all_mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
    return tuple(mount for mount in all_mounts if mount.kind is not MountKind.TMPFS)


def check(all_mounts: tuple[Mount, ...]) -> None:
    """Raises `Unsupported` for an option that would be left undone."""
    for mount in wanted(all_mounts):
        if not {"shared", "rshared", "slave", "rslave"}.isdisjoint(mount.options):
            raise Unsupported(f"isolation microvm can't propagate mounts below {mount.target!r}")
        if "idmap" in mount.options:
            raise Unsupported(
                f"isolation microvm can't do idmap of {mount.target!r}: files keep the ids of inside",
                hint="leave it away, or use --isolation container with --userns auto",
            )


def plan(mount: Mount, mode: int, inside: Confinement) -> Plan:
    """The keeper's plan of one server; its listening socket is the descriptor `listen`."""
    folder = stat.S_ISDIR(mode)
    root = inside.jail.root
    place = "/share" if folder else f"/single/{FILE_NAME}"
    outside = (
        steps.CgroupCreate(groups=inside.groups, parent_files=inside.parent_files, files=inside.limits),
    )
    return Plan(
        outside=outside if inside.groups else (),
        clone_flags=(
            namespaces.CLONE_NEWNS
            | namespaces.CLONE_NEWPID
            | namespaces.CLONE_NEWNET
            | namespaces.CLONE_NEWIPC
            | namespaces.CLONE_NEWUTS
        ),
        inside=(
            steps.CgroupEnter(files=inside.entry),
            steps.Guard(),
            steps.MakePrivate(),
            steps.BindHere(source=root, target=root, read_only=True),
            steps.BindHere(
                source=mount.source or "/nonexistent",
                target=root + place,
                read_only=mount.read_only,
                recursive=folder and "bind-nonrecursive" not in mount.options,
                attributes=mounts.MOUNT_ATTR_NODEV,
            ),
            steps.PivotRoot(target=root),
            steps.MountFs(
                kind="proc", target="/proc", flags=mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
            ),
            steps.Rlimits(limits=(("core", 0, 0), ("nofile", _DESCRIPTORS, _DESCRIPTORS))),
            steps.FixedUser(uid=0, gid=0),
            steps.BoundingSet(keep=_CAPABILITIES),
            steps.Capabilities(keep=_CAPABILITIES),
            steps.NoNewPrivs(),
        ),
        fds={"listen": LISTEN, "messages": 1, "errors": 2},
        argv=_argv(inside.jail.program, "/share" if folder else "/single"),
        env=("PATH=/usr/bin",),
    )


def _argv(program: str, source: str) -> tuple[str, ...]:
    if program.endswith("libexec/virtiofsd"):  # the Rust one, from Debian 13 on
        return (
            program,
            f"--fd={LISTEN}",
            f"--shared-dir={source}",
            "--sandbox=chroot",
            "--xattr",
            "--cache=auto",
        )
    options = f"source={source},sandbox=chroot,xattr,flock,cache=auto"
    return (program, f"--fd={LISTEN}", "-f", "-o", options)
