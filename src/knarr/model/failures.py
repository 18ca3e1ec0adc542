"""What a system call's error about a path of a workload's means to a user, the same behind every wall."""

from __future__ import annotations

import errno

from knarr.model.errors import Conflict, Denied, Failed, Invalid, KnarrError, NotFound, Unavailable

_KINDS: dict[int, type[KnarrError]] = {
    errno.ENOENT: NotFound,
    errno.ENOTDIR: Invalid,
    errno.EISDIR: Invalid,
    errno.ELOOP: Invalid,
    errno.EINVAL: Invalid,
    errno.ENAMETOOLONG: Invalid,
    errno.EXDEV: Denied,
    errno.EROFS: Conflict,
    errno.EEXIST: Conflict,
    errno.ENOSPC: Unavailable,
    errno.EDQUOT: Unavailable,
    errno.ENOMEM: Unavailable,
    errno.EMFILE: Unavailable,
    errno.ENFILE: Unavailable,
}


def of_path(code: int, text: str) -> KnarrError:
    """The error with this text; `code` is an errno."""
    kind = _KINDS.get(code, Failed)
    return kind(text, hint="out of files, memory or disk space" if kind is Unavailable else None)
