"""What the keeper could not do, in a user's words and with docker's exit codes. Pure.

126: the program is there and can't be executed; 127: it is not there; 125: anything of ours.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from knarr.model.errors import Conflict, Failed, Invalid, KnarrError, Unsupported

if TYPE_CHECKING:
    from knarr.keeper.link import KeeperError

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR)
_HINTS = {
    "no such file, or its interpreter is missing": "look into the image: knarr run IMAGE ls",
    "executable file not found in $PATH": "give its full path, or install it in the image",
    "permission denied": "is it executable for this user?",
    "is a directory": "it is a folder",
    "exec format error": "it is made for another architecture, or a script without #!",
    "no matching entries in passwd file": "names are looked up in the image's /etc/passwd and /etc/group",
    "no matching entries in group file": "names are looked up in the image's /etc/passwd and /etc/group",
}


def start_failure(name: str, program: str, error: KeeperError) -> KnarrError:
    """Of the workload's own program or of an exec in it."""
    if error.step == "exec":
        return _exec_failure(program, error)
    if error.errno == errno.ESRCH and error.step in ("start", "SetNs", "JoinedShm"):
        return Conflict(f"workload {name!r} can't be started: whom it joins has just ended")
    if error.errno == errno.ESRCH:
        return Conflict(f"workload {name!r} is not running", hint="it has just ended")
    if error.step == "ResolveUser":
        return Invalid(error.message, hint=hint_of(error.message))
    if error.step == "Sysctl":
        path, _, fact = error.message.rpartition(": ")
        return Invalid(f"sysctl {path.removeprefix('/proc/sys/').replace('/', '.')!r}: {fact.lower()}")
    if error.step in ("Idmap", "IdmapHere"):
        path = error.message.rpartition(": ")[0]
        return Unsupported(f"container can't map user ids in {path!r}: {_fact(error)}", hint="--userns host")
    if error.step == "Chdir":
        path = error.message.rpartition(": ")[0]
        return Failed(f"working directory {path!r}: {_fact(error)}", exit_code=126)
    return Failed(f"workload {name!r} can't be started: {error.step}: {error.message}")


def userns_failure(name: str, error: KeeperError) -> KnarrError:
    if error.errno in (errno.ENOSPC, errno.EUSERS, errno.EINVAL, errno.ENOSYS):
        return Unsupported(
            f"container can't give {name!r} a user namespace: {_fact(error)}",
            hint="sysctl user.max_user_namespaces says how many this host allows; --userns host goes without",
        )
    return Failed(f"workload {name!r}: user namespace: {error.message}")


def hint_of(message: str) -> str | None:
    """By the fact at its end, which every wall tells in the same words."""
    return _HINTS.get(message.rpartition(": ")[2])


def hinted(error: KnarrError) -> KnarrError:
    """What a guest's agent told, which knows no hints."""
    return type(error)(error.message, hint=error.hint or hint_of(error.message), exit_code=error.exit_code)


def _exec_failure(program: str, error: KeeperError) -> KnarrError:
    code, fact = 126, _fact(error)
    if error.errno in _NOT_THERE:
        code = 127
        fact = (
            "no such file, or its interpreter is missing"
            if "/" in program
            else "executable file not found in $PATH"
        )
    return Failed(f"exec {program!r}: {fact}", hint=_HINTS.get(fact), exit_code=code)


def _fact(error: KeeperError) -> str:
    return os.strerror(error.errno or 0).lower()
