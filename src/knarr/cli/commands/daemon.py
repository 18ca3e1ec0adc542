"""`daemon start|stop|status|run`: the engine's processes, through the keeper's control program."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

from knarr.cli import tables
from knarr.cli.context import Context, printable, say
from knarr.cli.options import Arguments, Command, Option
from knarr.client import transport
from knarr.model.errors import KnarrError, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PATIENCE = 20.0


def _wait_until_served(context: Context) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            context.connect(start=False).version()
            return
        except KnarrError as error:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"the daemon was started but does not answer: {error.message}",
                    hint=f"its log is {context.root}/daemon.log",
                ) from error
        time.sleep(0.05)


def start(context: Context, a: Arguments) -> int:
    transport.control(["start", context.root, context.run])
    _wait_until_served(context)
    if not a.quiet:
        say(f"the daemon serves {context.run}/knarr.sock")
    return 0


def stop(context: Context, a: Arguments) -> int:
    words = ["stop", context.root, context.run]
    answer = transport.control([*words, "--workloads"] if a.workloads else words)
    alive = answer.get("workloads") or answer.get("alive")
    if alive and not a.workloads:
        say(f"the daemon has ended; workloads go on: {alive if isinstance(alive, int) else len(alive)}")
    return 0


def upgrade(context: Context, a: Arguments) -> int:
    transport.control(["upgrade", context.root, context.run])
    _wait_until_served(context)
    if not a.quiet:
        version = context.connect(start=False).version()["version"]
        say(f"the engine at {context.run} is knarr {version} now; workloads went on")
    return 0


def _status(context: Context) -> dict[str, Any]:
    found = transport.control(["status", context.root, context.run])
    # 0 means "not now" there; a script that kills what it reads here would kill its own process group
    return {
        key: None if value == 0 and not isinstance(value, bool) else value for key, value in found.items()
    }


def status(context: Context, a: Arguments) -> int:
    found = _status(context)
    running = bool(found["pid"])
    if a.format:
        tables.document(found, a.format)
    elif running:
        for key in ("pid", "keeper_pid", "holder_pid", "root", "run"):
            say(f"{key.replace('_', ' ')}: {printable(found.get(key))}")
    else:
        say(f"no daemon serves {context.run}")
    return 0 if running else 1


def run(context: Context, _: Arguments) -> int:
    """In the foreground for a service manager: starts the instance, shows its log, ends it when told to."""
    transport.control(["start", context.root, context.run])
    _wait_until_served(context)
    _tell_manager("READY=1")
    ended: list[int] = []

    def end(number: int, _: object) -> None:
        ended.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    log = _open_log(context.root)
    while not ended:
        _copy_log(log)
        time.sleep(0.5)
    _tell_manager("STOPPING=1")
    transport.control(["stop", context.root, context.run])
    _copy_log(log)
    return 0


def _tell_manager(state: str) -> None:
    """sd_notify(3): a datagram to the service manager, if one asked for it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    import socket

    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(address.replace("@", "\0", 1) if address[0] == "@" else address)
        sock.sendall(state.encode())


def _open_log(root: str) -> int:
    try:
        fd = os.open(os.path.join(root, "daemon.log"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    os.lseek(fd, 0, os.SEEK_END)
    return fd


def _copy_log(fd: int) -> None:
    while fd >= 0 and (data := os.read(fd, 65536)):
        sys.stderr.write(data.decode(errors="replace"))
        sys.stderr.flush()


START = Command(
    start, "start the engine in the background", "", (Option("-q --quiet", "say nothing"),), exact_codes=False
)
STOP = Command(
    stop,
    "end the daemon; workloads go on unless told otherwise",
    "",
    (Option("--workloads", "kill all workloads and end every process of the engine"),),
)
STATUS = Command(
    status,
    "which of the engine's processes run",
    "",
    (Option("-f --format", "json, or a template such as '{{.pid}}'", value="FORMAT"),),
    notes="Exits with 1 when no daemon runs.",
)
UPGRADE = Command(
    upgrade,
    "let the engine's processes become the version installed now; workloads go on",
    "",
    (Option("-q --quiet", "say nothing"),),
    notes="After a new version was put in the old one's place. microVMs keep the agent they booted with.",
)
RUN = Command(run, "start the engine and stay in the foreground, for a service manager", "")
