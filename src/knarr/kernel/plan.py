"""The launch plan: frozen steps that a daemon decides on and the keeper executes.

A plan is pure data: `containers.plan` and `machines.plan` build it, `knarr run --plan` prints it with
`describe`, and it crosses the keeper's socket as JSON. Out of scope: deciding anything (the planners do), and
the order of the conversation between keeper and child (`keeper.main`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from knarr.model import codec
from knarr.model.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(slots=True)
class Context:
    """What executing steps share: one object in the keeper for `outside`, one in the child for `inside`."""

    fds: dict[str, int] = field(default_factory=dict)
    """open descriptors by name: those that came with the request, and those that steps opened"""
    run: str = ""
    """the instance's RUN folder; only `outside` steps and steps before the pivot may use paths below it"""
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = ""
    send: list[tuple[str, int]] = field(default_factory=list)
    """(name, fd) that the child hands up to the keeper before it executes the program: a pty's master"""
    mount_image: Callable[[str, str, str], None] | None = None
    """the keeper's book of image mounts: (tree id, tree, pool)"""


class Step:
    """One small act. `execute` raises OSError; `undo` (outside steps only) must succeed when repeated."""

    __slots__ = ()

    def describe(self) -> str:
        raise NotImplementedError

    def execute(self, context: Context) -> None:
        raise NotImplementedError

    def undo(self, context: Context) -> None:
        """Take back what `execute` did; the default has nothing to take back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything needed to start one program behind a wall."""

    kinds: ClassVar[dict[str, type[Step]]] = {}

    outside: tuple[Step, ...] = ()
    """run by the keeper before the clone (cgroup folders, image mounts); undone in reverse on failure, and
    after the workload's end"""
    clone_flags: int = 0
    """CLONE_NEW… for clone3(2)"""
    join: str = ""
    """name of a pidfd among the descriptors (an exec's is `pidfd`, opened by the keeper, the parent of that
    process): the child is born in its pid namespace, `kernel.process.spawn(flags, pid_namespace=fd)`"""
    inside: tuple[Step, ...] = ()
    """run by the child after the keeper's `go`, in order"""
    fds: dict[str, int] = field(default_factory=dict)
    """name → descriptor number in the new program; everything else is closed"""
    argv: tuple[str, ...] = ()
    env: tuple[str, ...] = ()

    def describe(self) -> tuple[str, ...]:
        flags = f"clone {self.clone_flags:#x}"
        program = "exec " + " ".join(self.argv)
        return (
            *(step.describe() for step in self.outside),
            flags,
            *(step.describe() for step in self.inside),
            program,
        )


def register(cls: type[Step]) -> type[Step]:
    """Class decorator: lets a step cross the wire under its class name."""
    Plan.kinds[cls.__name__] = cls
    return cls


def to_json(plan: Plan) -> dict[str, Any]:
    """Plain JSON values of a plan."""
    return {
        "outside": [_step_to_json(step) for step in plan.outside],
        "clone_flags": plan.clone_flags,
        "join": plan.join,
        "inside": [_step_to_json(step) for step in plan.inside],
        "fds": plan.fds,
        "argv": list(plan.argv),
        "env": list(plan.env),
    }


def from_json(data: dict[str, Any]) -> Plan:
    """The plan back. Trusted input (the daemon's own), so shapes are not checked beyond the step names."""
    return Plan(
        outside=tuple(_step_from_json(item) for item in data["outside"]),
        clone_flags=data["clone_flags"],
        join=data.get("join", ""),
        inside=tuple(_step_from_json(item) for item in data["inside"]),
        fds=data["fds"],
        argv=tuple(data["argv"]),
        env=tuple(data["env"]),
    )


def _step_to_json(step: Step) -> list[Any]:
    fields = dataclasses.fields(step)  # type: ignore[arg-type]
    return [type(step).__name__, {item.name: codec.to_json(getattr(step, item.name)) for item in fields}]


def _step_from_json(data: list[Any]) -> Step:
    name, fields = data
    if name not in Plan.kinds:
        raise Invalid(f"unknown step {name!r}", hint="daemon and keeper are of different versions")
    return Plan.kinds[name](**{key: _tuples(value) for key, value in fields.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
