"""What the keeper could not do, in a user's words and with docker's exit codes. Pure.

126: the program is there and can't be executed; 127: it is not there; 125: anything of ours.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from knarr.model.errors import Conflict, Failed, Invalid, KnarrError

if TYPE_CHECKING:
    from knarr.keeper.link import KeeperError

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR)


def start_failure(name: str, program: str, error: KeeperError) -> KnarrError:
    """Of the workload's own program or of an exec in it."""
    if error.step == "exec":
        return _exec_failure(program, error)
    if error.errno == errno.ESRCH:
        return Conflict(f"workload {name!r} is not running", hint="it has just ended")
    if error.step == "ResolveUser":
        return Invalid(error.message, hint="names are looked up in the image's /etc/passwd and /etc/group")
    return Failed(f"workload {name!r} can't be started: {error.step}: {error.message}")


def _exec_failure(program: str, error: KeeperError) -> KnarrError:
    if error.errno in _NOT_THERE:
        if "/" in program:
            fact, hint = (
                "no such file, or its interpreter is missing",
                "look into the image: knarr run IMAGE ls",
            )
        else:
            fact, hint = (
                "executable file not found in $PATH",
                "give its full path, or install it in the image",
            )
        return Failed(f"exec {program!r}: {fact}", hint=hint, exit_code=127)
    hints = {
        errno.EACCES: "is it executable for this user?",
        errno.EISDIR: "it is a folder",
        errno.ENOEXEC: "it is made for another architecture, or a script without #!",
    }
    text = os.strerror(error.errno or 0).lower()
    return Failed(f"exec {program!r}: {text}", hint=hints.get(error.errno or 0), exit_code=126)
