"""The instance's place on a host whose cgroup v2 tree systemd manages: a delegated scope of its own.

Whoever starts the engine (a shell, a service, cron) may end and have its group killed; a scope is ended by
nobody else, and its limits and groups below are ours: systemd neither moves nor removes them. Asked for by
systemd-run(1), as root over systemd's own socket. Sources: systemd.scope(5), systemd.resource-control(5),
systemd's CGROUP_DELEGATION. Out of scope: the groups below (`kernel.cgroups`).
"""

from __future__ import annotations

import os
import shutil

from knarr.kernel import cgroups

BOOTED = "/run/systemd/system"
"""there when systemd is the init of this boot: sd_booted(3)"""
_SLICE = "machine.slice"


def wrap(argv: tuple[str, ...], instance: str) -> tuple[str, ...]:
    """The command line that starts `argv` in a new scope; empty where there is no need or nobody to ask."""
    runner = shutil.which("systemd-run", path="/usr/bin:/bin")
    folder = _folder(instance)
    if runner is None or not folder or os.path.isdir(folder) or not os.path.isdir(BOOTED):
        return ()
    properties = ("Delegate=yes", "TasksMax=infinity")
    return (
        *(runner, "--quiet", "--scope", f"--unit={os.path.basename(folder)}", f"--slice={_SLICE}"),
        *(f"--property={item}" for item in properties),
        *("--", *argv),
    )


def settle(instance: str) -> None:
    """Who stands in the scope itself goes into a group beside the workloads': one that has processes can't
    hand limits down to others. Raises OSError.
    """
    folder = _folder(instance)
    if folder and os.path.isdir(folder):
        leaf = f"{folder}/{cgroups.ENGINE}"
        cgroups.create(leaf)
        for pid in cgroups.pids({cgroups.V2: folder}):
            cgroups.write(f"{leaf}/cgroup.procs", str(pid))


def enter(instance: str) -> None:
    """A scope that outlived its holder (workloads live in it) takes this process in. Raises OSError."""
    folder = _folder(instance)
    if folder and os.path.isdir(folder):
        cgroups.create(f"{folder}/{cgroups.ENGINE}")
        cgroups.write(f"{folder}/{cgroups.ENGINE}/cgroup.procs", "0")


def _folder(instance: str) -> str:
    root = cgroups.unified_root()
    return f"{root}/{_SLICE}/knarr-{instance}.scope" if root else ""
