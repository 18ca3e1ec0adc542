"""An instance's beginning and end: the holder, then its roles; and what runs of it.

Out of scope: the roles' own work; the command line (`keeper.control`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from knarr.keeper import asking, protocol, roles, scope
from knarr.keeper.holder import HolderClient, listening
from knarr.kernel import fds as descriptors
from knarr.kernel.process import DEFAULT_PATH
from knarr.model.errors import Conflict, Denied, Failed, Unavailable
from knarr.store import state

if TYPE_CHECKING:
    from collections.abc import Iterator

native = roles.native
_DAEMON_PATIENCE = 15.0
_CLAIM = "lock/instance"


def start_instance(root: str, run: str, *, daemon: bool = True) -> dict[str, Any]:
    """Start what does not run yet; repeating it changes nothing. Returns `instance_status`.

    Raises `Denied` without root's rights, `Conflict` when another instance serves ROOT, `Failed` with the
    log's name.
    """
    root, run = os.path.abspath(root), os.path.abspath(run)
    _make_folders(root, run)
    with _only_one(run):
        holder = _find(run) or _start_holder(root, run)
        try:
            for name in (protocol.MOVER, protocol.KEEPER):
                listening(holder, run, name, socket.SOCK_SEQPACKET).close()
            wanted = roles.core(root, run)
            if not daemon:
                del wanted["daemon"]
            running = holder.roles()
            for name, argv in wanted.items():
                if name not in running:
                    holder.role(name, argv)
        finally:
            holder.close()
    return instance_status(root, run)


def stop_instance(root: str, run: str, *, workloads: bool = False) -> dict[str, Any]:
    """End everything if no workload lives, or kill them first when `workloads`; else end the daemon only."""
    root, run = os.path.abspath(root), os.path.abspath(run)
    holder = _find(run)
    if holder is None:
        return {"stopped": False, "workloads": 0}
    served = holder.list("served") and not holder.roles().get("daemon")
    if served and (workloads or not _live_workloads(run)):
        # ended before its workloads did: only a daemon can take the network and the control groups down
        start_instance(root, run)
        _wait_for_answer(run)
    if workloads:
        # while the daemon lives: it records their ends, and with none left it takes the network down
        _call_off_restarts(holder)
        _kill_all(run, _live_workloads(run), forget=False)
    _end_daemon(holder)
    alive = _live_workloads(run)
    if alive and not workloads:
        holder.close()
        return {"stopped": True, "workloads": len(alive), "left": sorted(alive)}
    _kill_all(run, alive)
    _unlink(state.claim_path(root))
    holder.quit()
    holder.close()
    for name in (protocol.MOVER, protocol.KEEPER, protocol.HOLDER, "knarr.sock", "docker.sock", "cri.sock"):
        _unlink(os.path.join(run, name))
    return {"stopped": True, "workloads": 0}


def upgrade_instance(root: str, run: str) -> dict[str, Any]:
    """Let every process of the engine become the program that is installed now; workloads go on.

    The holder stays: it is a program of a few words whose descriptors nothing else may hold. Raises
    `Unavailable` when nothing runs.
    """
    root, run = os.path.abspath(root), os.path.abspath(run)
    with _only_one(run):
        holder = _find(run)
        if holder is None:
            raise Unavailable(f"no daemon serves {run}", hint="knarr daemon start")
        try:
            state.check_version(root)
            _claim(holder, root)
            wanted = roles.core(root, run)
            _end_daemon(holder)
            try:
                _replace(holder, run, wanted)
            finally:
                # also when the keeper refused: without a daemon nobody could even ask again
                holder.role("daemon", wanted["daemon"])
        finally:
            holder.close()
    _wait_for_answer(run)
    return instance_status(root, run)


def _replace(holder: HolderClient, run: str, wanted: dict[str, tuple[str, ...]]) -> None:
    """Every role but the daemon."""
    before = holder.roles()
    for name in (role for role in wanted if role != "daemon"):
        holder.role(name, wanted[name])
    if before.get("keeper"):
        asking.upgrade(run)
    for name in ("mover-0", "dns"):
        # the holder starts them again at once; what they have open is the holder's
        if before.get(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(before[name], signal.SIGTERM)


def _claim(holder: HolderClient, root: str) -> None:
    """The lock on the id, which a holder of an earlier version does not have yet."""
    if not holder.list(_CLAIM):
        fd = state.claim_instance(root)
        holder.put(_CLAIM, fd)
        os.close(fd)


def _wait_for_answer(run: str) -> None:
    """The holder has the listening socket, so that connecting alone tells nothing."""
    path = os.path.join(run, "knarr.sock")
    with contextlib.suppress(OSError), descriptors.connect_unix(path, socket.SOCK_STREAM) as sock:
        sock.settimeout(_DAEMON_PATIENCE)
        sock.sendall(b"GET /v1/version HTTP/1.1\r\nHost: knarr\r\nConnection: close\r\n\r\n")
        sock.recv(1)


def _call_off_restarts(holder: HolderClient) -> None:
    """The daemon would start again what its policies want to be running."""
    pid = holder.roles().get("daemon", 0)
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)


def _end_daemon(holder: HolderClient) -> None:
    """Not before it is gone may the holder go, which the daemon needs to its last moment."""
    pid = holder.roles().get("daemon", 0)
    holder.norole("daemon")
    end = time.monotonic() + _DAEMON_PATIENCE
    while pid and os.path.exists(f"/proc/{pid}") and time.monotonic() < end:
        _pause()


def instance_status(root: str, run: str) -> dict[str, Any]:
    """Pids by role; `running` tells whether the daemon lives."""
    run = os.path.abspath(run)
    holder = _find(run)
    found = holder.roles() if holder is not None else {}
    pid = found.get("daemon", 0)
    status: dict[str, Any] = {
        "running": pid > 0,
        "root": os.path.abspath(root),
        "run": run,
        "pid": pid,
        "keeper_pid": found.get("keeper", 0),
        "holder_pid": _holder_pid(found),
        "mover_pids": [found[name] for name in sorted(found) if name.startswith("mover-")],
        "roles": found,
    }
    if holder is not None:
        holder.close()
    return status


def _make_folders(root: str, run: str) -> None:
    try:
        for folder in (root, run):
            os.makedirs(folder, mode=0o700, exist_ok=True)
            _refuse_shared(folder)
        if os.geteuid() != 0:
            raise PermissionError(1, "not root", root)
    except PermissionError as error:
        raise Denied(
            f"{error.filename}: permission denied", hint="knarr's daemon runs as root: sudo"
        ) from error
    except OSError as error:
        raise Failed(f"{error.filename}: {error.strerror}") from error


def _refuse_shared(folder: str) -> None:
    """Who may write in there could put own sockets and journals in place of ours."""
    status = os.stat(folder)
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        raise Denied(f"{folder}: others may write there", hint=f"chown root: {folder} && chmod 700 {folder}")


@contextmanager
def _only_one(run: str) -> Iterator[None]:
    """Two starters at once: the second waits and finds the work done."""
    fd = os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _find(run: str) -> HolderClient | None:
    try:
        return HolderClient(run)
    except Unavailable:
        return None


def _start_holder(root: str, run: str) -> HolderClient:
    # here, where the user reads the answer: the daemon can only write it into its log
    state.check_version(root)
    lock = _lock(root)
    try:
        claim = state.claim_instance(root)
    except BaseException:
        os.close(lock)
        raise
    log = os.open(
        os.path.join(root, "daemon.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
    )
    try:
        code = _run_holder(roles.holder_argv(run), log, state.instance_id(root))
        if code != 0:
            raise Failed(f"the holder did not start (exit code {code})", hint=f"see {root}/daemon.log")
        holder = HolderClient(run)
        holder.put("lock", lock)
        holder.put(_CLAIM, claim)
        return holder
    except FileNotFoundError as error:
        raise Failed(f"{error.filename}: not built", hint="scripts/build-native") from error
    finally:
        for fd in (log, lock, claim):
            os.close(fd)


def _run_holder(argv: tuple[str, ...], log: int, instance: str) -> int:
    """In a scope of its own where systemd gives one; else, and the log says why, in its starter's group."""

    def run(command: tuple[str, ...]) -> int:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=_environment(),
            check=False,
            start_new_session=True,
            preexec_fn=lambda: scope.enter(instance),
        ).returncode

    wrapped = scope.wrap(argv, instance)
    if wrapped and run(wrapped) == 0:
        scope.settle(instance)
        return 0
    return run(argv)


def _environment() -> dict[str, str]:
    """The starter's (proxies), but nothing that chooses which programs and libraries run as root."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LD_", "PYTHON"))}
    return {**kept, "PATH": DEFAULT_PATH}


def _lock(root: str) -> int:
    fd = os.open(os.path.join(root, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise Conflict(
            f"another daemon already serves {root}", hint="use its --run folder, or another --root"
        ) from error
    return fd


def _live_workloads(run: str) -> set[str]:
    try:
        with asking.keeper(run) as sock:
            return {item["id"] for part in asking.ask(sock, type="list") for item in part["running"]}
    except OSError as error:
        raise Unavailable(f"the keeper of {run} does not answer: {error.strerror}") from error


def _kill_all(run: str, alive: set[str], *, forget: bool = True) -> None:
    """SIGKILL, then forget everything: outside steps (control groups) are undone."""
    with asking.keeper(run) as sock:
        for workload_id in alive:
            asking.ask(sock, type="signal", id=workload_id, signal=9)
        while alive:
            parts = asking.ask(sock, type="list")
            alive = {item["id"] for part in parts for item in part["running"]}
            if alive:
                _pause()
        for part in asking.ask(sock, type="list") if forget else []:
            for item in part["exits"]:
                asking.ask(sock, type="forget", id=item["id"])


def _pause() -> None:
    time.sleep(0.01)


def _holder_pid(found: dict[str, int]) -> int:
    """The parent of any role that lives."""
    for pid in found.values():
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                text = file.read()
            return int(text[text.rindex(b")") + 2 :].split()[1])
        except OSError:
            continue
    return 0


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
