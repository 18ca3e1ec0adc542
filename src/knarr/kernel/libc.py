"""System calls that Python's own modules lack: encode, call, raise OSError with the path.

Constants and numbers come from the kernel's uapi headers (asm/unistd.h, linux/mount.h, linux/sched.h).
Out of scope: any decision; the modules beside this one name the calls.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

MACHINE = os.uname().machine

# Calls added since 5.0 have one number on every architecture; the older ones don't.
OPEN_TREE = 428
MOVE_MOUNT = 429
FSOPEN = 430
FSCONFIG = 431
FSMOUNT = 432
OPENAT2 = 437
MOUNT_SETATTR = 442

_OLD = {
    "x86_64": {"capget": 125, "capset": 126},
    "aarch64": {"capget": 90, "capset": 91},
}
_NUMBERS = _OLD.get(MACHINE, {})
CAPGET = _NUMBERS.get("capget", -1)
CAPSET = _NUMBERS.get("capset", -1)

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
AT_SYMLINK_NOFOLLOW = 0x100

# PyDLL keeps the GIL: one process per keeper, calls are short, and a fork must not happen with it released.
_lib = ctypes.PyDLL(None, use_errno=True)
# CDLL releases it: for calls that may wait (a mount reading a disk) in the daemon's threads.
_lib_nogil = ctypes.CDLL(None, use_errno=True)

_syscall = _lib.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long] + [ctypes.c_void_p] * 6
_syscall_nogil = _lib_nogil.syscall
_syscall_nogil.restype = ctypes.c_long
_syscall_nogil.argtypes = [ctypes.c_long] + [ctypes.c_void_p] * 6
_prctl = _lib.prctl
_prctl.argtypes = [ctypes.c_int] + [ctypes.c_void_p] * 4


def fail(path: str | bytes | None = None) -> OSError:
    """The OSError for the errno of the last call, with the path it was about."""
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), path) if path is not None else OSError(code, os.strerror(code))


def syscall(  # noqa: PLR0917 - the shape of syscall(2)
    number: int,
    a: Any = 0,
    b: Any = 0,
    c: Any = 0,
    d: Any = 0,
    e: Any = 0,
    f: Any = 0,
    *,
    path: str | bytes | None = None,
) -> int:
    """One raw call: arguments are ints, bytes, ctypes buffers or None."""
    result = _syscall(number, a, b, c, d, e, f)
    if result < 0:
        raise fail(path)
    return int(result)


def syscall_nogil(  # noqa: PLR0917
    number: int,
    a: Any = 0,
    b: Any = 0,
    c: Any = 0,
    d: Any = 0,
    e: Any = 0,
    *,
    path: str | bytes | None = None,
) -> int:
    """The same for calls that may wait: other threads run meanwhile."""
    result = _syscall_nogil(number, a, b, c, d, e, 0)
    if result < 0:
        raise fail(path)
    return int(result)


def prctl(option: int, a: Any = 0, b: Any = 0, c: Any = 0, d: Any = 0) -> int:
    result = _prctl(option, a, b, c, d)
    if result < 0:
        raise fail()
    return int(result)


def function(name: str, argtypes: list[Any], *, nogil: bool = False) -> Any:
    """A libc function with its signature; the result is an int, errors are the caller's to `fail()`."""
    entry = getattr(_lib_nogil if nogil else _lib, name)
    entry.argtypes = argtypes
    entry.restype = ctypes.c_int
    return entry


_M_ARENA_MAX = -8


def one_arena() -> None:
    """All threads' allocations from one heap: what is freed there can be used, or given back, by all."""
    if hasattr(_lib, "mallopt"):
        _lib.mallopt(_M_ARENA_MAX, 1)


def trim() -> None:
    """Give freed memory back to the system; some milliseconds with a large heap."""
    if hasattr(_lib_nogil, "malloc_trim"):
        _lib_nogil.malloc_trim(ctypes.c_size_t(0))
