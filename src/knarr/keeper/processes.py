"""Processes by pid and start time, so that a later process with the same pid is never taken for them.

Out of scope: the journal that remembers them.
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING, Any

from knarr.kernel import process, spawn

if TYPE_CHECKING:
    from knarr.keeper.journal import Entry

_PATIENCE = 1.0


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def alive(entry: Entry) -> bool:
    """It exists, if only as a zombie."""
    try:
        return process.start_time(entry.pid) == entry.started
    except OSError:
        return False


def parent(entry: Entry) -> int:
    """The pid of its parent, 0 if it is gone."""
    try:
        with open(f"/proc/{entry.pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return 0
    fields = text[text.rindex(b")") + 2 :].split()
    return int(fields[1]) if int(fields[19]) == entry.started else 0


def open_process(entry: Entry) -> int:
    """A pidfd of it. Raises ESRCH when it is gone."""
    pidfd = process.pidfd_open(entry.pid)
    if alive(entry):
        return pidfd
    os.close(pidfd)
    raise ProcessLookupError(errno.ESRCH, f"{entry.key} does not run")


def open_root(entry: Entry) -> int:
    """Its root folder, O_PATH."""
    fd = os.open(f"/proc/{entry.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if alive(entry):
        return fd
    os.close(fd)
    raise ProcessLookupError(errno.ESRCH, f"{entry.key} does not run")


def wait_status(code: int, value: int) -> int:
    """wait(2)'s status of waitid(2)'s si_code and si_status."""
    if code == os.CLD_EXITED:
        return value << 8
    return value | (0x80 if code == os.CLD_DUMPED else 0)


def exit_of(entry: Entry) -> dict[str, Any]:
    """The fields of an `exit` message."""
    fields = {"id": entry.id, "status": entry.status, "time": entry.time}
    if entry.exec_id is not None:
        fields["exec_id"] = entry.exec_id
    return fields


def wait_for_programs(entries: list[Entry]) -> None:
    """Wait, within bounds, until children that a dead keeper left before their exec have become
    a program or ended.
    """
    stage = os.stat(spawn.program())
    before = (stage.st_dev, stage.st_ino)
    end = time.monotonic() + _PATIENCE
    for entry in entries:
        while time.monotonic() < end and alive(entry) and _program(str(entry.pid)) == before:
            time.sleep(0.002)


def _program(pid: str) -> tuple[int, int] | None:
    """Which file it executes; None for a zombie."""
    try:
        found = os.stat(f"/proc/{pid}/exe")
    except OSError:
        return None
    return found.st_dev, found.st_ino
