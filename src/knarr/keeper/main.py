"""The keeper's start: into its namespaces, then the loop of `keeper.supervisor`.

Two mount namespaces are pinned in the holder, made by the first keeper and joined by each later one:

* `ro`: a copy of the host's, everything read-only. The interpreter is executed in it, so that
/proc/self/exe and
  the libraries' inodes of a child that already stands in a workload lead nowhere writable.
* `mnt`: a copy of the host's as it is, slave to it (what the host mounts or unmounts shows up), holding the
  images' mounts. The keeper works in it, its children's namespaces are copies of it: bind mounts of host
  folders are as writable as on the host.

Out of scope: messages and processes (`keeper.supervisor`).
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from knarr.keeper import roles
from knarr.keeper.holder import HolderClient
from knarr.keeper.supervisor import Keeper
from knarr.kernel import libc, mounts, namespaces, process, spawn

_INSIDE = "inside"


def main() -> int:
    root, run, *stage = sys.argv[1:]
    process.set_name("knarr-keeper")
    holder = HolderClient(run)
    if stage != [_INSIDE]:
        _execute_read_only(holder, root, run)
    os.chdir("/")
    # a child shares this memory until its exec
    process.set_dumpable(on=False)
    # while the interpreter's mounts are the read-only ones
    spawn.program()
    mnt = holder.get("mnt")
    if mnt is None:
        raise AssertionError("the first stage made the mount namespace")
    namespaces.setns(mnt, namespaces.CLONE_NEWNS)
    os.close(mnt)
    Keeper(root, run, holder).serve()
    return 0


def _execute_read_only(holder: HolderClient, root: str, run: str) -> NoReturn:
    """The same program once more, its files reached through read-only mounts."""
    namespaces.setns(_pinned(holder, "mnt"), namespaces.CLONE_NEWNS)
    namespaces.setns(_pinned(holder, "ro"), namespaces.CLONE_NEWNS)
    os.chdir("/")
    arguments = roles.argv("knarr.keeper.main", root, run, _INSIDE)
    os.execv(arguments[0], arguments)


def _pinned(holder: HolderClient, name: str) -> int:
    """The namespace `name`, made as a copy of the current one if the holder has none."""
    held = holder.get(name)
    if held is not None:
        return held
    namespaces.unshare(namespaces.CLONE_NEWNS)
    mounts.mount("", "/", flags=mounts.MS_REC | mounts.MS_SLAVE)
    if name == "ro":
        mounts.set_attributes(libc.AT_FDCWD, add=mounts.MOUNT_ATTR_RDONLY, path="/")
    made = namespaces.open_namespace("mnt")
    holder.put(name, made)
    return made
