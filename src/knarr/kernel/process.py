"""Processes: clone3 into namespaces and a cgroup, pidfds, prctl, and the exec at a launch's end.

Out of scope: the conversation between keeper and child (`keeper.launch`) and which flags a plan has.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import struct
from typing import TYPE_CHECKING, NoReturn

from knarr.kernel import fds as descriptors
from knarr.kernel import libc, namespaces, paths

if TYPE_CHECKING:
    import socket

CLONE_INTO_CGROUP = 0x200000000

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_EXIT = 8

_api = ctypes.pythonapi
_own_pid_namespace = -1


class _CloneArgs(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    )


def clone(flags: int = 0, *, cgroup: int | None = None) -> int:
    """fork(2) with CLONE_… flags, straight into a v2 cgroup if its descriptor is given. 0 in the child.

    Only for single-threaded processes, as with any fork of Python.
    """
    arguments = _CloneArgs(flags=flags, exit_signal=signal.SIGCHLD)
    if cgroup is not None:
        arguments.flags = flags | CLONE_INTO_CGROUP
        arguments.cgroup = cgroup
    # ints made before the fork: the child should touch as little as it can
    size = ctypes.sizeof(arguments)
    pointer = ctypes.byref(arguments)
    _api.PyOS_BeforeFork()
    try:
        pid = libc.syscall(libc.CLONE3, pointer, size)
    except OSError:
        _api.PyOS_AfterFork_Parent()
        raise
    if pid == 0:
        _api.PyOS_AfterFork_Child()
    else:
        _api.PyOS_AfterFork_Parent()
    return pid


def spawn(flags: int = 0, *, pid_namespace: int | None = None, cgroup: int | None = None) -> int:
    """`clone`, with the child born in the pid namespace of the process that the pidfd `pid_namespace` is.

    So an exec's process is the caller's own child without an intermediate one: setns(2) with CLONE_NEWPID
    changes only where *children* are born, and is taken back at once.
    """
    if pid_namespace is None:
        return clone(flags, cgroup=cgroup)
    home = _home_pid_namespace()
    namespaces.setns(pid_namespace, namespaces.CLONE_NEWPID)
    pid = -1
    try:
        pid = clone(flags, cgroup=cgroup)
    finally:
        if pid != 0:
            namespaces.setns(home, namespaces.CLONE_NEWPID)
    return pid


def _home_pid_namespace() -> int:
    global _own_pid_namespace
    if _own_pid_namespace < 0:
        _own_pid_namespace = namespaces.open_namespace("pid")
    return _own_pid_namespace


def pidfd_open(pid: int) -> int:
    return os.pidfd_open(pid)


def pidfd_send_signal(pidfd: int, number: int) -> None:
    signal.pidfd_send_signal(pidfd, number)


def pidfd_exit_status(pidfd: int) -> int | None:
    """The wait status of an ended, perhaps reaped process (Linux ≥ 6.15); None if unknown."""
    info = bytearray(struct.pack("=Q", _PIDFD_INFO_EXIT) + bytes(56))
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, info, True)
    except OSError:
        return None
    mask = struct.unpack_from("=Q", info)[0]
    return int(struct.unpack_from("=i", info, 60)[0]) if mask & _PIDFD_INFO_EXIT else None


def start_time(pid: int) -> int:
    """Clock ticks since boot (/proc/PID/stat field 22): tells a process from a later one with its pid."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        text = file.read()
    return int(text[text.rindex(b")") + 2 :].split()[19])


def become_subreaper() -> None:
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)


def set_dumpable(*, on: bool) -> None:
    libc.prctl(PR_SET_DUMPABLE, int(on))


def no_new_privileges() -> None:
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1)


def set_name(name: str) -> None:
    libc.prctl(PR_SET_NAME, name.encode()[:15])


def die_with_parent(number: int = signal.SIGKILL) -> None:
    libc.prctl(PR_SET_PDEATHSIG, int(number))


def reset_signals() -> None:
    """Back to what programs expect: what is ignored outlives an exec.

    Python ignores SIGPIPE, a shell's background job SIGINT and SIGQUIT, nohup SIGHUP.
    """
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def find_program(name: str, search: str) -> str:
    """The path execve should get, as execvp(3) finds it; magic links such as /proc/self/exe are refused.

    Raises ENOENT (not found) or EACCES (found, but a folder, or not executable).
    """
    if not name:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    candidates = [name] if "/" in name else [f"{folder or '.'}/{name}" for folder in search.split(":")]
    denied: OSError | None = None
    for candidate in candidates:
        try:
            _check_program(candidate)
            return candidate
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            denied = error
    raise denied or OSError(errno.ENOENT, os.strerror(errno.ENOENT), name)


def _check_program(path: str) -> None:
    fd = paths.openat2(libc.AT_FDCWD, path, os.O_PATH, resolve=paths.RESOLVE_NO_MAGICLINKS)
    try:
        mode = os.fstat(fd).st_mode
    finally:
        os.close(fd)
    if mode & 0o170000 != 0o100000 or not os.access(path, os.X_OK, effective_ids=True):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)


def execute(
    argv: tuple[str, ...],
    env: tuple[str, ...],
    numbers: dict[int, int],
    control: int | socket.socket,
    *,
    reaper: int | None = None,
) -> NoReturn:
    """Replace this process by a program whose only descriptors are `numbers` (number → descriptor).

    `control` stays open, close-on-exec: a failure can be told through it under its old number, and a
    success is its end of file. `reaper` is a sealed memfd with the `--init` program, which then starts it.
    Raises OSError when the program can't be executed.
    """
    search = next((item[5:] for item in env if item.startswith("PATH=")), DEFAULT_PATH)
    program = find_program(argv[0], search)
    reset_signals()
    wanted = dict(numbers)
    top = max(wanted, default=2) + 1
    if reaper is not None:
        wanted[top] = reaper
    number = control if isinstance(control, int) else control.fileno()
    kept = descriptors.arrange(wanted, number)
    try:
        if reaper is None:
            os.execve(program, argv, _environment(env))
        os.set_inheritable(top, False)
        _execveat(top, ("knarr-init", program, *argv), env)
    finally:
        os.dup2(kept, number, inheritable=False)
    raise AssertionError("unreachable")


def _environment(env: tuple[str, ...]) -> dict[str, str]:
    return dict(item.split("=", 1) for item in env if "=" in item)


def _execveat(fd: int, argv: tuple[str, ...], env: tuple[str, ...]) -> None:
    arguments = (ctypes.c_char_p * (len(argv) + 1))(*map(os.fsencode, argv))
    environment = (ctypes.c_char_p * (len(env) + 1))(*map(os.fsencode, env))
    libc.syscall(libc.EXECVEAT, fd, b"", arguments, environment, libc.AT_EMPTY_PATH)
