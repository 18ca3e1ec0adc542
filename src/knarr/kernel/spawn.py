"""Start `stage` (csrc/stage.c) in new namespaces without a copy of this process' memory.

A fork of a Python process copies page tables and then every page that either side writes. `stage` shares the
memory for the moment until its exec (csrc/preload/spawn.c), and has nothing of it afterwards.
Out of scope: what is said to it (`keeper.launch`).
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

CLONE_INTO_CGROUP = 0x200000000

_NATIVE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "native-bin")
_KEPT = 3


class _Request(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("cgroup", ctypes.c_uint64),
        ("argv", ctypes.c_void_p),
        ("program", ctypes.c_int32),
        ("kept", ctypes.c_int32 * _KEPT),
        ("error", ctypes.c_int32),
    )


@functools.cache
def program() -> int:
    """`stage`, open for the life of this process.

    Whoever enters another mount namespace calls this before: the file's mount is what /proc/PID/exe of a
    process in a workload leads to. Raises OSError.
    """
    _library()
    return os.open(os.path.join(_NATIVE, "stage"), os.O_PATH | os.O_CLOEXEC)


@functools.cache
def _library() -> Any:
    entry = ctypes.PyDLL(os.path.join(_NATIVE, "spawn.so")).knarr_spawn
    entry.argtypes = [ctypes.POINTER(_Request)]
    entry.restype = ctypes.c_long
    return entry


def spawn(channel: int, flags: int = 0, *, cgroup: int | None = None) -> int:
    """A child with CLONE_… `flags`, in a v2 group if its descriptor is given, that waits at `channel`.

    Returns its pid. Raises OSError.
    """
    return _spawn((str(channel),), (channel,), flags, cgroup)


def spawn_into(channel: int, pidfd: int, flags: int = 0, *, cgroup: int | None = None) -> int:
    """The same through a helper, whose pid this is, which must be waited for: it says `pid N` into the
    channel of our child N, born in the pid namespace of the process that `pidfd` is.

    Nothing that a workload can see ever shares this process' memory, not even for that moment.
    """
    group = -1 if cgroup is None else cgroup
    kept = (channel, pidfd) if cgroup is None else (channel, pidfd, cgroup)
    return _spawn((str(channel), str(pidfd), str(flags), str(group)), kept, 0, None)


def _spawn(words: tuple[str, ...], kept: tuple[int, ...], flags: int, cgroup: int | None) -> int:
    texts = [word.encode() for word in ("stage", *words)]
    argv = (ctypes.c_char_p * (len(texts) + 1))(*texts)
    request = _Request(
        flags=flags if cgroup is None else flags | CLONE_INTO_CGROUP,
        cgroup=cgroup or 0,
        argv=ctypes.addressof(argv),
        program=program(),
        kept=(ctypes.c_int32 * _KEPT)(*kept, *(-1,) * (_KEPT - len(kept))),
    )
    pid = int(_library()(ctypes.byref(request)))
    if pid < 0:
        raise OSError(-pid, os.strerror(-pid))
    if request.error:
        os.waitpid(pid, 0)
        raise OSError(request.error, os.strerror(request.error), "stage")
    return pid
