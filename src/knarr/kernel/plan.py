"""The launch plan: frozen steps that a daemon decides on, the keeper and the program `stage` carry out.

A plan is pure data: `containers.plan` and `machines.plan` build it, `knarr run --plan` prints it with
`describe`, it crosses the keeper's socket as JSON, and its inside part goes to `stage` in bytes
(`for_stage`). Out of scope: deciding anything (the planners do), what inside steps do (csrc/stage), and the
order of the conversation between keeper and child (`keeper.launch`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from knarr.model import codec
from knarr.model.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Callable

_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, default=codec.to_json).encode

Wire = str | bytes | int | tuple["Wire", ...]
"""what crosses to `stage`: a bool is an int"""


@dataclass(slots=True)
class Context:
    """What outside steps share."""

    fds: dict[str, int] = field(default_factory=dict)
    """open descriptors by name: those that came with the request, and those that steps opened"""
    run: str = ""
    """the instance's RUN folder"""
    mount_image: Callable[[str, str, str], None] | None = None
    """the keeper's book of image mounts: (tree id, tree, pool)"""


class Step:
    """One small act: an `Outside` step of the keeper's, or one that `stage` has a function for."""

    __slots__ = ()

    def describe(self) -> str:
        raise NotImplementedError

    def wire(self) -> tuple[Wire, ...]:
        """The fields as `stage` reads them. Raises OSError for what can't be said to it."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return tuple(getattr(self, item.name) for item in fields)


class Outside(Step):
    """Carried out by the keeper: `execute` raises OSError, `undo` must succeed when repeated."""

    __slots__ = ()

    def execute(self, context: Context) -> None:
        raise NotImplementedError

    def undo(self, context: Context) -> None:
        """Take back what `execute` did; the default has nothing to take back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything needed to start one program behind a wall."""

    kinds: ClassVar[dict[str, type[Step]]] = {}

    outside: tuple[Outside, ...] = ()
    """run by the keeper before the clone (cgroup folders, image mounts); undone in reverse on failure, and
    after the workload's end"""
    clone_flags: int = 0
    """CLONE_NEW… for clone3(2)"""
    join: str = ""
    """name of a pidfd among the descriptors (an exec's is `pidfd`, opened by the keeper, the parent of that
    process): the child is born in its pid namespace"""
    inside: tuple[Step, ...] = ()
    """run by `stage` in the child, in order"""
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


class StepUnsaid(Exception):
    """A step can't be said to `stage`: the step's class, and why."""

    def __init__(self, step: str, error: OSError) -> None:
        super().__init__(step)
        self.step = step
        self.error = error


def register(cls: type[Step]) -> type[Step]:
    """Class decorator: lets a step cross the wire under its class name."""
    Plan.kinds[cls.__name__] = cls
    return cls


@functools.cache
def vocabulary() -> str:
    """A digest of every step's name and fields, so that daemon and keeper know that plans mean the same."""
    words = []
    for name, kind in sorted(Plan.kinds.items()):
        words += [name, *(item.name for item in dataclasses.fields(kind))]  # type: ignore[arg-type]
    return f"{zlib.crc32(' '.join(words).encode()):08x}"


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


def to_text(plan: Plan) -> str:
    """The same as JSON text. Most steps are those of the start before: their text is kept."""
    rest = {
        "clone_flags": plan.clone_flags,
        "join": plan.join,
        "fds": plan.fds,
        "argv": plan.argv,
        "env": plan.env,
    }
    outside, inside = (",".join(map(_step_text, steps)) for steps in (plan.outside, plan.inside))
    return f'{{"outside":[{outside}],"inside":[{inside}],{_json(rest)[1:]}'


@functools.lru_cache(maxsize=512)
def _step_text(step: Step) -> str:
    names = (item.name for item in dataclasses.fields(step))  # type: ignore[arg-type]
    return _json([type(step).__name__, {name: getattr(step, name) for name in names}])


def from_json(data: dict[str, Any]) -> Plan:
    """The plan back. Trusted input (the daemon's own), so shapes are not checked beyond the step names."""
    return Plan(
        outside=tuple(_outside(_step_from_json(item)) for item in data["outside"]),
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


def known_outside(steps: list[Any]) -> tuple[Outside, ...]:
    """Of a journal's outside steps those that this version has, to be undone. A keeper that stumbled over
    what another version called otherwise would never come up again.
    """
    found = []
    for item in steps:
        with contextlib.suppress(Invalid, LookupError, TypeError, ValueError):
            found.append(_outside(_step_from_json(item)))
    return tuple(found)


def _step_from_json(data: list[Any]) -> Step:
    name, fields = data
    if name not in Plan.kinds:
        raise Invalid(f"unknown step {name!r}", hint="daemon and keeper are of different versions")
    return Plan.kinds[name](**{key: _tuples(value) for key, value in fields.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _outside(step: Step) -> Outside:
    if not isinstance(step, Outside):
        raise Invalid(f"{type(step).__name__} is no step of the keeper's")
    return step


# in bytes: a number is i64, a text u32 length, bytes and NUL, a tuple the number of its items and they

_NUMBER = struct.Struct("=q")
_LENGTH = struct.Struct("=I")


def for_stage(plan: Plan, descriptors: tuple[str, ...]) -> bytes:
    """The plan's part for `stage`, with the names of the descriptors that go along, in their order.

    Raises `StepUnsaid`.
    """
    found = [_encode(descriptors), _NUMBER.pack(len(plan.inside))]
    for step in plan.inside:
        try:
            found.append(_step_for_stage(step))
        except OSError as error:
            raise StepUnsaid(type(step).__name__, error) from error
    try:
        found += (_encode(tuple(plan.fds.items())), _encode(plan.argv), _encode(_environment(plan.env)))
    except OSError as error:
        raise StepUnsaid("exec", error) from error
    body = b"".join(found)
    return _NUMBER.pack(len(body) + _NUMBER.size) + body


@functools.lru_cache(256)
def _step_for_stage(step: Step) -> bytes:
    """Most steps of a start are those of the one before."""
    fields = b"".join(map(_encode, step.wire()))
    return _encode(type(step).__name__) + _LENGTH.pack(len(fields)) + fields + b"\0"


def _environment(entries: tuple[str, ...]) -> tuple[str, ...]:
    """The last of each name counts."""
    named = {item.partition("=")[0]: item for item in entries if "=" in item}
    return tuple(named.values())


def _encode(value: Wire) -> bytes:
    if isinstance(value, int):
        return _NUMBER.pack(value)
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogateescape")
        if 0 in data:
            raise OSError(errno.EINVAL, "a text with a zero byte in it", value)
        return _LENGTH.pack(len(data)) + data + b"\0"
    if isinstance(value, bytes):
        return _LENGTH.pack(len(value)) + value + b"\0"
    return _NUMBER.pack(len(value)) + b"".join(map(_encode, value))
