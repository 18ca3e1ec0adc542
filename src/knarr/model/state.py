"""The life of a workload: an enum, one table of moves, predicates, and the event record."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from knarr.model.errors import Conflict


class Status(enum.Enum):
    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    EXITED = "exited"
    RESTARTING = "restarting"
    """ended, and about to be started by its policy"""
    REMOVING = "removing"
    REMOVED = "removed"

    @property
    def alive(self) -> bool:
        """A process of the workload may exist, now or in a moment."""
        return self.running or self in (Status.STARTING, Status.RESTARTING)

    @property
    def running(self) -> bool:
        """exec, kill, stats and attach make sense."""
        return self in (Status.RUNNING, Status.PAUSED, Status.STOPPING)


MOVES: dict[Status, frozenset[Status]] = {
    Status.CREATED: frozenset({Status.STARTING, Status.REMOVING}),
    Status.STARTING: frozenset({Status.RUNNING, Status.EXITED, Status.CREATED}),
    Status.RUNNING: frozenset({Status.PAUSED, Status.STOPPING, Status.EXITED}),
    Status.PAUSED: frozenset({Status.RUNNING, Status.STOPPING, Status.EXITED}),
    Status.STOPPING: frozenset({Status.EXITED, Status.RUNNING}),
    Status.EXITED: frozenset({Status.STARTING, Status.RESTARTING, Status.REMOVING}),
    Status.RESTARTING: frozenset({Status.STARTING, Status.EXITED}),
    Status.REMOVING: frozenset({Status.REMOVED}),
    Status.REMOVED: frozenset(),
}


def move(name: str, current: Status, wanted: Status) -> Status:
    """The wanted state. Raises `Conflict` naming from, wanted and the states it would be allowed from."""
    if wanted in MOVES[current]:
        return wanted
    allowed = ", ".join(state.value for state in Status if wanted in MOVES[state])
    raise Conflict(
        f"workload {name!r} is {current.value}, can't become {wanted.value}", hint=f"it must be: {allowed}"
    )


EXIT_UNKNOWN = -1
"""The exit code could not be learnt (never invented)."""


def exit_code(wait_status: int) -> int:
    """Docker's convention from a wait status (wait(2)): the code, or 128 + signal."""
    signal = wait_status & 0x7F
    return 128 + signal if signal else (wait_status >> 8) & 0xFF


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One line of `knarr events`. `time` is nanoseconds since the epoch."""

    time: int
    type: str
    """workload, image, network, daemon"""
    action: str
    """create, start, die, destroy, exec_create, exec_die, kill, oom, pull, tag, delete …"""
    id: str
    attributes: dict[str, str] = field(default_factory=dict)
